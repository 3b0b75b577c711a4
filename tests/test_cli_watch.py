"""``alnumpy index --watch``, as it runs beside whoever changes the folder."""

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
    assert (process.returncode, out, err) == (143, "", "alnumpy: terminated\n")


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
    os.utime(path, (time.time() + 9999, time.time() + 9999))  # a clock that is ahead
    assert not still(str(path))
    still.look_again()
    assert still(str(path))
    assert not still(str(tmp_path / "none"))
    put(DIGITS[0], tmp_path / "old.png")
    assert still(str(tmp_path / "old.png"))


def test_changes():
    before = {"a": ("1", None, False), "b": ("2", None, False), "c": ("3", None, True), "d": ("4", None, False)}
    after = {"a": ("1", None, False), "b": ("5", None, False), "c": ("3", None, False), "e": (None, "bad\n", False)}
    assert list(watch.changes(before, after)) == [
        "changed\tb", "back\tc", "removed\td", "unreadable (bad\\n)\te"
    ]  # fmt: skip
