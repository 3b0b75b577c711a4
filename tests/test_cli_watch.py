"""``alnumpy index --watch``, while pictures are changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

from conftest import DIGITS

from alnumpy.cli import watch


def put(digit, path, age=100):
    """A picture that was last written to some seconds ago."""
    shutil.copy(digit, path)
    os.utime(path, (time.time() - age, time.time() - age))


def test_one_line_per_change(tmp_path):
    (tmp_path / "p").mkdir()
    put(DIGITS[0], tmp_path / "p" / "a.png")
    command = [sys.executable, "-m", "alnumpy", "index", "p", "--db", "g.db", "--watch", "1", "--backend", "numpy"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True)
    try:
        assert process.stdout.readline() == f"added\t{tmp_path}/p/a.png\n"
        put(DIGITS[5], tmp_path / "p" / "b.png")
        assert process.stdout.readline() == f"added\t{tmp_path}/p/b.png\n"
        put(DIGITS[9], tmp_path / "p" / "b.png", 50)
        assert process.stdout.readline() == f"changed\t{tmp_path}/p/b.png\n"
        (tmp_path / "p" / "a.png").rename(tmp_path / "a.png")
        assert process.stdout.readline() == f"missing\t{tmp_path}/p/a.png\n"
        (tmp_path / "a.png").rename(tmp_path / "p" / "a.png")
        assert process.stdout.readline() == f"back\t{tmp_path}/p/a.png\n"
        (tmp_path / "p" / "bad.png").write_text("hello")
        assert process.stdout.readline().startswith("unreadable (not a picture")
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[1:]) == (143, "", ["alnumpy: terminated"])


def test_a_file_that_is_being_written_waits(tmp_path):
    still = watch.Still()
    path = tmp_path / "a.png"
    path.write_text("half")
    assert not still(str(path))
    still.look_again()
    path.write_text("more than half")
    assert not still(str(path))
    still.look_again()
    assert still(str(path))
    os.utime(path, (time.time() + 9999, time.time() + 9999))  # another computer's clock is ahead
    assert not still(str(path))
    still.look_again()
    assert still(str(path))
    assert not still(str(tmp_path / "none"))
    put(DIGITS[0], tmp_path / "old.png")
    assert still(str(tmp_path / "old.png"))


def test_changes():
    there, missing, left_out = (False, False), (True, False), (False, True)
    before = {"a": ("1", None, *there), "b": ("2", None, *there), "c": ("3", None, *missing), "d": ("4", None, *there),
              "f": ("6", None, *there), "g": ("7", None, *left_out)}  # fmt: skip
    after = {"a": ("1", None, *there), "b": ("5", None, *there), "c": ("3", None, *there), "e": (None, "bad\n", *there),
             "f": ("6", None, *left_out), "g": ("7", None, *there)}  # fmt: skip
    assert list(watch.changes(before, after)) == [
        "changed\tb", "back\tc", "removed\td", "unreadable (bad\\n)\te", "left out\tf", "back\tg"
    ]  # fmt: skip


def test_the_options_of_index_count(tmp_path):
    """Rules are kept, failed files are tried again once, and options that exclude each other are refused."""
    (tmp_path / "p" / ".hidden").mkdir(parents=True)
    put(DIGITS[0], tmp_path / "p" / "a.png")
    put(DIGITS[1], tmp_path / "p" / "b.tmp.png")
    put(DIGITS[2], tmp_path / "p" / ".hidden" / "c.png")
    index = [sys.executable, "-m", "alnumpy", "index", "p", "--db", "g.db", "--backend", "numpy"]
    subprocess.run([*index, "--exclude", "a.png"], cwd=tmp_path, check=True, capture_output=True)
    options = ["--watch", "1", "--exclude", "b.*", "--include", "a.png", "--hidden", "--retry", "--rehash"]
    process = subprocess.Popen([*index, *options], cwd=tmp_path, stdout=-1, stderr=-1, text=True)
    try:
        lines = sorted(process.stdout.readline().strip() for _ in range(3))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert lines == [
        f"added\t{tmp_path}/p/.hidden/c.png", f"added\t{tmp_path}/p/a.png", f"left out\t{tmp_path}/p/b.tmp.png"
    ]  # fmt: skip
    for wrong, code in (("--verbose", 2), ("--include=x", 1)):
        assert subprocess.run([*index, "--watch", wrong], cwd=tmp_path, capture_output=True).returncode == code
