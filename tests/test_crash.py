"""Stored pictures survive a kill at any moment, a full disk, a disk that becomes read-only, and other processes.

``python tests/test_crash.py 100`` kills an indexer a hundred times; the test does so five times.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from galleries import dump
from PIL import Image, ImageDraw

from alnumpy import GalleryError
from alnumpy.gallery import Gallery

COUNT = 48


def draw(folder: Path) -> Path:
    """A few dozen pictures, some in folders below, some copies of others, and two that cannot be read."""
    (folder / "below").mkdir(parents=True)
    for i in range(COUNT):
        image = Image.new("RGB", (160, 120), (i * 5, 255 - i * 5, 90))
        ImageDraw.Draw(image).ellipse((i, 2 * i, 60 + i, 50 + i), fill=(200, i * 3, 40))
        image.save(folder / ("below" if i % 3 else ".") / f"{i:02}.{'jpg' if i % 2 else 'png'}")
    for i in range(5):
        shutil.copy(folder / "00.png", folder / f"copy{i}.png")
    (folder / "broken.png").write_text("hello")
    (folder / "empty.jpg").touch()
    return folder


def index(db, folder, **options):
    """A process that indexes a folder, by the command line."""
    command = [sys.executable, "-m", "alnumpy", "index", folder, "--db", db, "--backend", "numpy", "--batch-size", "2"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, **pipes)


def finish(db, folder):
    """Indexes without disturbance. Exit code 1: two pictures cannot be read."""
    with index(db, folder) as process:
        message = process.stderr.read()
    assert (process.returncode, "Traceback" in message) == (1, False), message
    left = sorted(name for name in os.listdir(db.parent) if name.startswith(db.name))
    assert left == [db.name, f"{db.name}-lock"], message
    return dump(db)


class Undisturbed(NamedTuple):
    """Pictures, and the gallery of an undisturbed run over them."""

    pictures: Path
    db: Path
    stored: list


def undisturbed_in(folder: Path) -> Undisturbed:
    pictures, db = draw(folder / "pictures"), folder / "undisturbed.db"
    return Undisturbed(pictures, db, finish(db, pictures))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return undisturbed_in(tmp_path_factory.mktemp("undisturbed"))


def made(db: Path) -> bool:
    """Whether the tables are there: an interrupted creation is undone."""
    with closing(sqlite3.connect(db)) as opened:
        return bool(opened.execute("SELECT * FROM sqlite_master").fetchall())


def kill_at_random(undisturbed: Undisturbed, db: Path, kills: int) -> dict[str, int]:
    """Kills a number of indexers and checks what each one left. Returns counts of what happened.

    If none of them was storing, because the machine has become slower or faster meanwhile, it kills some more.
    """
    pictures, _, expected = undisturbed
    rng = random.Random(0)
    start = time.monotonic()
    with index(db, pictures, stderr=subprocess.DEVNULL) as process:
        while not os.path.exists(db):
            time.sleep(0.001)
        opened = time.monotonic() - start
    lasted = time.monotonic() - start
    assert dump(db) == expected
    db.unlink()
    happened = {"killed": 0, "while storing": 0, "log left": 0, "ended first": 0, "runs compared": 0}
    while happened["killed"] < kills or (not happened["while storing"] and happened["killed"] < 10 * kills):
        with index(db, pictures, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.9 * opened, opened + (lasted - opened) * rng.random()))
            process.kill()
        if process.returncode == 1:  # it ended before it was killed
            happened["ended first"] += 1
            assert dump(db) == expected
            db.unlink()
            happened["runs compared"] += 1
            continue
        happened["killed"] += 1
        happened["log left"] += os.path.exists(f"{db}-wal")
        if not os.path.exists(db) or not made(db):
            continue
        rows, contents, meta = dump(db)  # dump checks integrity
        assert set(rows) <= set(expected[0])
        assert set(contents) <= set(expected[1])
        if not meta:
            continue
        happened["while storing"] += 0 < len(rows) < len(expected[0])
        with Gallery(db) as reader:  # a reader needs no repair by a writer
            assert len(reader.search(np.ones(reader.dimension), 100)[0]) == sum(row[3] is not None for row in rows)
    assert finish(db, pictures) == expected
    happened["runs compared"] += 1
    return happened


def test_killed_at_random_moments_nothing_is_lost(tmp_path, undisturbed):
    happened = kill_at_random(undisturbed, tmp_path / "gallery.db", 5)
    assert happened["while storing"]  # otherwise this machine is too fast for the test


def private_mounts(script, *arguments):
    """Runs a shell script in a mount namespace of its own. Skips the test if that is not allowed."""
    unshare = shutil.which("unshare")
    allowed = [unshare, "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    if unshare is None or subprocess.run(allowed, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    command = [unshare, "-m", "sh", "-euc", script, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# $1 Python, $2 pictures, $3 where to mount, $4 where to copy to
FULL = """
run() {
    "$1" -m alnumpy index "$2" --db "$3/gallery.db" --backend numpy --batch-size 2 2>"$4/$5.txt" >"$4/o.txt" || echo $?
}
mount -t tmpfs -o size=SIZEk none "$3"
run "$@" full
mkdir "$4/then"; cp "$3"/gallery.db* "$4/then" 2>/dev/null || true
mount -o remount,size=64m "$3"
run "$@" room
cp "$3"/* "$4"
"""


COPY = """
mount -t tmpfs -o size=100k none "$3"
"$1" -m alnumpy merge "$2" "$4" --out "$3/new.db" || echo $?
"$1" -m alnumpy reduce --db "$2" --dimensions 2 --out "$3/new.db" || echo $?
ls -A "$3"
"""


def test_a_copy_onto_a_full_disk_is_named_and_leaves_nothing(tmp_path, undisturbed):
    other = shutil.copy(undisturbed.db, tmp_path.with_suffix(".db"))
    done = private_mounts(COPY, sys.executable, undisturbed.db, tmp_path, other)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1"]), done
    first, second = done.stderr.splitlines()
    assert first == second
    assert first.startswith(f"alnumpy: {tmp_path}/new.db: d")  # "database or disk is full", "disk I/O error"


@pytest.mark.parametrize("size", [64, 700])
def test_a_full_disk_loses_nothing(tmp_path, undisturbed, size):
    """Kilobytes: at 64 there is no room to begin, at 700 for some batches."""
    pictures, _, expected = undisturbed
    for name in ("disk", "out"):
        (tmp_path / name).mkdir()
    script = FULL.replace("SIZE", str(size))
    done = private_mounts(script, sys.executable, pictures, tmp_path / "disk", tmp_path / "out")
    message = (tmp_path / "out" / "full.txt").read_text()
    assert (done.returncode, done.stdout.split(), "Traceback" in message) == (0, ["1", "1"], False), (done, message)
    assert f"alnumpy: {tmp_path}/disk/gallery.db: d" in message  # "database or disk is full", "disk I/O error"
    then = tmp_path / "out" / "then" / "gallery.db"
    stored = []
    if then.exists() and then.stat().st_size:
        stored, contents, _ = dump(then)
        assert set(stored) <= set(expected[0])
        assert set(contents) <= set(expected[1])
    assert (len(stored) > 0) == (size == 700)
    assert dump(tmp_path / "out" / "gallery.db") == expected


# $1 Python, $2 pictures, $3 where to mount, $4 where to copy to
READ_ONLY = """
alnumpy() { "$python" -m alnumpy "$@" --backend numpy 2>>"$out/err.txt" >>"$out/out.txt" || echo $?; }
python=$1 out=$4
mount -t tmpfs none "$3"
cp -r "$2" "$3/pictures"
alnumpy index "$3/pictures" --db "$3/gallery.db"
alnumpy search "$3/pictures/00.png" --db "$3/gallery.db"
mount -o remount,ro "$3"
alnumpy search "$3/pictures/00.png" --db "$3/gallery.db"
alnumpy index "$3/pictures" --db "$3/gallery.db"
alnumpy index "$3/pictures" --db "$3/new.db"
cp "$3/gallery.db" "$4"
"""


def test_on_a_read_only_medium_a_gallery_is_searched_and_not_changed(tmp_path, undisturbed):
    for name in ("disk", "out"):
        (tmp_path / name).mkdir()
    done = private_mounts(READ_ONLY, sys.executable, undisturbed.pictures, tmp_path / "disk", tmp_path / "out")
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "1"]), done.stderr  # the three runs of index
    found = [line for line in (tmp_path / "out" / "out.txt").read_text().splitlines() if line.startswith("0.0000")]
    assert len(found) == 12  # the picture and five copies, before and after
    assert found[:6] == found[6:]
    lines = (tmp_path / "out" / "err.txt").read_text().splitlines()
    errors = [line for line in lines if "picture" not in line and "a new gallery" not in line]
    for line, name in zip(errors, ("gallery.db", "new.db"), strict=True):
        assert line.startswith(f"alnumpy: {tmp_path}/disk/{name}: ")
    assert len(dump(tmp_path / "out" / "gallery.db")[0]) == COUNT + 7


def test_a_second_indexer_is_refused(tmp_path, undisturbed):
    db = tmp_path / "gallery.db"
    with index(db, undisturbed.pictures) as first, index(db, undisturbed.pictures) as second:
        messages = [process.stderr.read() for process in (first, second)]
    refused = [message for message in messages if "another alnumpy is writing to it; try again" in message]
    assert len(refused) == 1
    assert (first.returncode, second.returncode) == (1, 1)
    assert "Traceback" not in "".join(messages)
    assert dump(db) == undisturbed.stored


def test_readers_in_other_processes_see_whole_batches(tmp_path, undisturbed):
    with Gallery(undisturbed.db) as reader:
        query = np.ones(reader.dimension)
        distances = {match.path: match.distance for match in reader.search(query, 100)[0]}
    db = tmp_path / "gallery.db"
    stored: list[int] = []
    refused = []
    with index(db, undisturbed.pictures) as process:
        while process.poll() is None:
            try:
                with Gallery(db) as reader:
                    stored.append(len(list(reader)))
                    found = {match.path: match.distance for match in reader.search(query, 100)[0]}
            except GalleryError as error:
                refused.append((len(stored), str(error)))
            else:
                assert found.items() <= distances.items()
    assert stored == sorted(stored)
    assert len(set(stored)) > 2
    assert all(number % 2 == 0 or number == COUNT + 7 for number in stored)
    for before, message in refused:  # the gallery did not exist yet, or had just been made
        assert before == 0
        assert any(text in message for text in ("no such", "not an alnumpy", "an empty", "writing to it")), message
    assert dump(db) == undisturbed.stored


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(kill_at_random(undisturbed_in(Path(folder)), Path(folder, "gallery.db"), int(sys.argv[1])))
