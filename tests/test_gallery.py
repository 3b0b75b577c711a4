"""The local database: what it stores, what it skips, what it survives, and that it finds the nearest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import random_params
from PIL import Image

import alnumpy
from alnumpy import Embedder, GalleryError, ImageError, gallery, images, ingest, packed, weights
from alnumpy.database import Database, migrate
from alnumpy.gallery import Gallery, Match
from alnumpy.images import Preprocessing
from alnumpy.ingest import Ingest
from alnumpy.packed import Packed, decode, encode, row_length, squared_norms
from alnumpy.postprocess import learn_whitening, whiten
from alnumpy.settings import Settings
from alnumpy.spec import Block, Spec

SMALL = Spec("small", 4, True, (Block(1, 4, 1), Block(3, 6, 2)), embedding=24, groups=2, cbam="mean-max", reduction=4)


def small_weights(seed=0):
    blank = np.ones((1, 24), np.float32)
    how = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return weights.Weights(SMALL, how, random_params(SMALL, seed), np.zeros((1, 3, 8, 8), np.float32), blank, "alnumpy")


class Counting(Embedder):
    """An embedder that counts what it embeds."""

    embedded = 0

    def _forward(self, x, pictures):
        Counting.embedded += len(x)
        return super()._forward(x, pictures)


@pytest.fixture
def embedder():
    Counting.embedded = 0
    return Counting(small_weights(), backend="numpy", threads=2)


def noise(path, seed, size=(12, 9), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them below, and a file that pretends to be one."""
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "below/c.png")):
        noise(root / name, seed)
    (root / "broken.png").write_text("hello")
    return root


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gallery.db"


def dump(path):
    """All that must not depend on how often the run was stopped: everything but the dates."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        pictures = "SELECT path, size, mtime_ns, hash, error, vanished FROM pictures ORDER BY path"
        contents = "SELECT * FROM contents ORDER BY hash"
        return [db.execute(sql).fetchall() for sql in (pictures, contents, "SELECT * FROM meta ORDER BY key")]


def change(path, sql, *values):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql, values)


def counts(report, n=5):
    """The first n of embedded, recognised, unchanged, vanished, pruned."""
    return astuple(report)[:n]


def names(matches):
    return [os.path.basename(match.path) for match in matches]


def test_what_is_stored(folder, path, embedder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise(folder / "turned.jpg", 7, (40, 20), exif=exif)
    (folder / "._turned.jpg").write_bytes(b"\0\5\x16\7")  # as macOS leaves, and no picture
    with Gallery(path, embedder, "a") as opened:
        report = opened.index(folder)
        rows = {os.path.relpath(row.path, folder): row for row in opened}
    assert counts(report, 5) == (4, 0, 0, 0, 0)
    assert [(os.path.basename(p), reason[:24]) for p, reason in report.failed] == [
        ("broken.png", "not a picture that can b")
    ]
    assert list(rows) == ["a.png", "b.png", "below/c.png", "broken.png", "turned.jpg"]
    for name, row in rows.items():
        content = (folder / name).read_bytes()
        assert (row.size, row.mtime_ns) == (len(content), os.stat(folder / name).st_mtime_ns)
        assert row.added.startswith("20")
        if name == "broken.png":
            assert (row.hash, row.embedding, row.width) == (None, None, None)
            assert row.error.startswith("not a picture")
            continue
        assert row.hash == hashlib.sha256(content).hexdigest()
        assert (row.width, row.height) == ((20, 40) if name == "turned.jpg" else (12, 9))
        np.testing.assert_array_equal(row.embedding, embedder.embed(folder / name)[0])


def test_unchanged_files_are_not_read(folder, path, embedder, monkeypatch):
    with Gallery(path, embedder, "a") as opened:
        first = opened.index(folder)
        before = dump(path)
        monkeypatch.setattr(ingest, "hash_file", None)
        again = opened.index([folder])
    assert counts(again, 5) == (0, 0, 4, 0, 0)
    assert again.failed == first.failed  # known, but still worth saying
    assert dump(path) == before


def test_renamed_copied_and_touched_files_are_not_embedded_again(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        assert opened.index(folder).embedded == 3
        os.rename(folder / "a.png", folder / "renamed.png")
        shutil.copy(folder / "b.png", folder / "copy.png")
        os.utime(folder / "below" / "c.png", ns=(1, 1))
        report = opened.index(folder, prune=True)
        assert counts(report, 5) == (0, 3, 2, 1, 1)
        assert Counting.embedded == 3
        assert opened.stats()["contents"] == 3
        assert names(opened.search(folder / "renamed.png")[0])[0] == "renamed.png"


def test_copies_in_one_batch_are_embedded_once(folder, path, embedder):
    for i in range(5):
        shutil.copy(folder / "a.png", folder / f"copy{i}.png")
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index(folder), 2) == (3, 5)
    assert Counting.embedded == 3


def test_changed_files_are_done_again(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        added = [row.added for row in opened]
        noise(folder / "a.png", 99, (30, 31))
        assert counts(opened.index(folder), 3) == (1, 0, 3)
        row = next(iter(opened))
        assert (row.width, row.height) == (30, 31)
        np.testing.assert_array_equal(row.embedding, embedder.embed(folder / "a.png")[0])
        assert [row.added for row in opened] == added
        assert opened.stats()["contents"] == 3  # the old content is gone
        (folder / "a.png").write_text("hello")
        assert opened.index(folder).embedded == 0
        assert opened.stats()["contents"] == 2


def test_vanished_pictures_are_marked_below_the_folders_walked_only(folder, path, embedder, tmp_path):
    other = tmp_path / "pictures2"  # its name starts with the other's
    other.mkdir()
    noise(other / "d.png", 5)
    with Gallery(path, embedder, "a") as opened:
        opened.index([folder, other])
        os.rename(folder / "a.png", tmp_path / "away.png")
        (other / "d.png").rename(other / "d.txt")
        assert opened.index(folder).vanished == 1
        assert opened.index(folder).vanished == 0
        assert [os.path.basename(row.path) for row in opened if row.vanished] == ["a.png"]
        assert "a.png" not in names(opened.search(folder / "b.png")[0])
        os.rename(tmp_path / "away.png", folder / "a.png")
        assert counts(opened.index(folder), 5) == (0, 0, 4, 0, 0)
        assert "a.png" in names(opened.search(folder / "b.png")[0])
        os.unlink(folder / "a.png")
        opened.index(folder)
        assert opened.index(folder, prune=True).pruned == 1  # marked by the run before
        assert counts(opened.update(prune=True), 5) == (0, 0, 3, 1, 1)  # d.png
        assert opened.stats()["contents"] == 2


def test_what_cannot_be_listed_has_not_vanished(folder, path, embedder, monkeypatch):
    walk = os.walk

    def failing(top, onerror):
        onerror(PermissionError(13, "Permission denied", os.path.join(top, "below")))
        return ((parent, below, names) for parent, below, names in walk(top) if not parent.endswith("below"))

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        monkeypatch.setattr(os, "walk", failing)
        report = opened.index(folder)
        assert (report.vanished, report.failed[0]) == (0, (str(folder / "below"), "Permission denied"))
        monkeypatch.undo()
        ((name, reason),) = opened.index(folder / "nowhere").failed
        assert (name, reason[:24]) == (str(folder / "nowhere"), "No such file or folder; ")
        assert "alnumpy remove PATH" in reason


@pytest.mark.parametrize("mount", ["", "below", "below/deep"])
@pytest.mark.parametrize("left", [(), ("notes.txt",)])
def test_pictures_of_a_disk_that_is_not_mounted_are_not_pruned(folder, path, embedder, tmp_path, mount, left):
    """The folder where it was mounted is then there, and empty; below the indexed folder that is all that tells."""
    (folder / "below" / "deep" / "er").mkdir(parents=True)
    noise(folder / "below" / "deep" / "er" / "d.png", 8)
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = dump(path)
        os.rename(folder / mount, tmp_path / "away")
        (folder / mount).mkdir()
        for name in left:
            (folder / mount / name).touch()
        away = {"": 5, "below": 2, "below/deep": 1}[mount]
        if left and mount:  # which no empty mount point has
            assert opened.index(folder, prune=True).pruned == away
            return
        reason = (
            "no pictures there now; is its disk mounted? If they are gone for good: alnumpy remove FOLDER --db FILE"
        )
        for prune in (False, True, True):
            report = opened.index(folder, prune=prune)
            assert (report.vanished, report.pruned) == (0 if prune else away, 0)
            assert (str(folder / mount).rstrip("/"), reason) in report.failed
        assert len(report.failed) == (1 if mount == "" else 2)  # broken.png
        report = opened.index(folder)  # told before; that there is nothing at all is worth saying each time
        assert report.failed[:-1] == []
        assert mount or report.failed == [(str(folder), "no pictures in this folder or below it")]
        if mount:
            assert opened.update(prune=True).pruned == 0
        shutil.rmtree(folder / mount)
        os.rename(tmp_path / "away", folder / mount)
        assert counts(opened.index(folder, prune=True)) == (0, 0, 5, 0, 0)
        assert dump(path) == before
        shutil.rmtree(folder / "below")
        assert opened.index(folder, prune=True).pruned == 2  # no mount point


def test_pictures_of_a_disk_behind_a_link_are_not_pruned(path, embedder, tmp_path):
    """The link then leads to what is not there, below a folder that has other pictures."""
    disk = tmp_path / "mount" / "photos"
    disk.mkdir(parents=True)
    (tmp_path / "library").mkdir()
    for seed, name in enumerate((disk / "a.png", tmp_path / "library" / "b.png")):
        noise(name, seed)
    link = tmp_path / "library" / "usb"
    link.symlink_to(disk)
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index([link.parent, link])) == (2, 0, 0, 0, 0)
        os.rename(disk, tmp_path / "away")
        for folders in ([link.parent, link], [link.parent]):
            report = opened.index(folders, prune=True)
            assert (report.pruned, dict(report.failed)[str(link)][:9]) == (0, "no pictur")
        os.rename(tmp_path / "away", disk)
        assert counts(opened.index([link.parent, link], prune=True)) == (0, 0, 2, 0, 0)


def test_a_folder_that_much_is_gone_from_is_listed_once(folder, path, embedder, monkeypatch):
    for i in range(20):
        shutil.copy(folder / "a.png", folder / f"copy{i}.png")
    listed = []

    def scandir(name, scandir=os.scandir):
        listed.append(os.fspath(name))
        return scandir(name)

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        for i in range(20):
            os.remove(folder / f"copy{i}.png")
        monkeypatch.setattr(os, "scandir", scandir)
        for vanished in (20, 0):
            listed.clear()
            assert opened.index(folder).vanished == vanished
            assert listed.count(str(folder)) == 2  # to find what is there, and whether something is


def test_an_empty_path_is_not_the_current_folder(folder, path, embedder, monkeypatch):
    monkeypatch.chdir(folder)
    with Gallery(path, embedder, "a") as opened:
        opened.index(".")
        for call in (opened.index, opened.add, opened.remove):
            with pytest.raises(GalleryError, match="a path is empty"):
                call(["below", ""])
        assert len(list(opened)) == 4
        assert opened.remove(".") == 4


def test_a_link_to_a_folder_that_is_not_there_is_no_picture(folder, path, embedder, tmp_path):
    link = tmp_path / "disk"
    link.symlink_to(tmp_path / "away")
    with Gallery(path, embedder, "a") as opened:
        ((name, reason),) = opened.index(link).failed
        assert (name, reason[:24]) == (str(link), "No such file or folder; ")
        assert list(opened) == []
        os.rename(folder, tmp_path / "away")
        assert counts(opened.index(link)) == (3, 0, 0, 0, 0)


def test_a_folder_without_pictures_is_named(tmp_path, path, embedder):
    (tmp_path / "p" / "below").mkdir(parents=True)
    with Gallery(path, embedder, "a") as opened:
        assert opened.index(tmp_path / "p").failed == [(str(tmp_path / "p"), "no pictures in this folder or below it")]
        noise(tmp_path / "p" / "scan", 1, format="PNG")
        opened.index(tmp_path / "p" / "scan")
        assert opened.index(tmp_path / "p").failed == []


def test_a_folder_in_the_place_of_a_picture_is_none(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        for name in ("a.png", "b.png"):
            os.unlink(folder / name)
        (folder / "a.png").mkdir()
        noise(folder / "a.png" / "d.png", 6)
        os.symlink(folder / "below", folder / "b.png")
        assert counts(opened.index(folder)) == (1, 0, 2, 2, 0)
        assert opened.stats()["unreadable"] == 1  # broken.png
        shutil.rmtree(folder / "a.png")
        noise(folder / "a.png", 0)
        assert counts(opened.index(folder, prune=True)) == (0, 1, 2, 1, 2)


def test_times_that_sqlite_cannot_hold(folder, path, embedder):
    late = 13_569_465_600 * 10**9  # in the year 2400
    os.utime(folder / "a.png", ns=(late, late))
    if os.stat(folder / "a.png").st_mtime_ns != late:
        pytest.skip("needs a file system that holds it")
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index(folder)) == (3, 0, 0, 0, 0)
        assert counts(opened.index(folder)) == (0, 0, 4, 0, 0)
        assert next(iter(opened)).mtime_ns == 2**63 - 1


def test_a_file_that_cannot_be_read_for_a_while_keeps_its_embedding(folder, path, embedder, monkeypatch, tmp_path):
    def failing(path, hash=ingest.hash_file):
        if os.path.basename(path) in ("a.png", "b.png"):
            raise PermissionError(13, "Permission denied")
        return hash(path)

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = dump(path)
        with monkeypatch.context() as patch:
            patch.setattr(ingest, "hash_file", failing)
            for name in ("a.png", "b.png"):
                os.utime(folder / name)
            for _ in range(2):
                report = opened.index(folder, prune=True)
                assert [reason for _, reason in report.failed[:2]] == ["Permission denied"] * 2
        unread = list(opened)[:2]
        assert [(row.embedding, row.width, row.size) for row in unread] == [(None, None, -1)] * 2
        assert names(opened.search(np.zeros(24))[0]) == ["c.png"]
        assert opened.stats()["pictures"] == 1
        assert [row.path for row in opened if row.embedding is not None] == [str(folder / "below" / "c.png")]
        noise(folder / "b.png", 77)  # changed meanwhile
        assert counts(opened.index(folder)) == (1, 1, 2, 0, 0)
        assert Counting.embedded == 4
        after = dump(path)
    assert [row[0] for row in after[0]] == [row[0] for row in before[0]]
    assert after[0][0][3:] == before[0][0][3:]
    assert len(after[1]) == 3  # the old content of b.png is gone


def test_what_exists_has_not_vanished_though_its_folder_does_not_show_it(folder, path, embedder, tmp_path):
    noise(folder / "scan", 9, format="PNG")  # a name without a picture's suffix
    (tmp_path / "elsewhere").mkdir()
    noise(tmp_path / "elsewhere" / "e.png", 10)
    os.symlink(tmp_path / "elsewhere", folder / "link")
    with Gallery(path, embedder, "a") as opened:
        opened.index([folder / "scan", folder / "link"])
        assert counts(opened.index(folder)) == (3, 0, 2, 0, 0)
        noise(folder / "scan", 11, format="PNG")
        (tmp_path / "elsewhere" / "e.png").rename(tmp_path / "elsewhere" / "e.txt")
        assert counts(opened.index([folder, folder / "below"], prune=True)) == (1, 0, 4, 1, 1)


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs a second user")
def test_what_may_not_be_looked_at_has_not_vanished(embedder):
    def as_nobody(code):
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[3]); import test_gallery as t; "
            "e = t.Embedder(t.small_weights(), backend='numpy', threads=1); os.setuid(65534)\n"
            f"with t.Gallery(sys.argv[1], e, 'a') as opened: {code}"
        )
        command = [sys.executable, "-c", code, path, folder, Path(__file__).parent]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        path, folder = Path(name) / "gallery.db", Path(name) / "pictures"
        (folder / "below").mkdir(parents=True)
        noise(folder / "below" / "a.png", 1)
        assert as_nobody("opened.index(sys.argv[2])").returncode == 0
        os.chmod(folder / "below", 0)
        for call in ("opened.index(sys.argv[2], prune=True)", "opened.update(prune=True)"):
            done = as_nobody(f"report = {call}; print(t.counts(report), [reason for _, reason in report.failed])")
            failed = "['Permission denied']" if "index" in call else "[]"
            assert (done.stdout, done.stderr) == (f"(0, 0, 0, 0, 0) {failed}\n", "")
        with Gallery(path) as opened:
            assert [row.vanished for row in opened] == [False]


def test_a_lack_of_memory_is_not_the_pictures_fault(folder, path, embedder, monkeypatch):
    def failing(*_):
        raise MemoryError

    with Gallery(path, embedder, "a") as opened:
        with monkeypatch.context() as patch:
            patch.setattr(images, "_read_file", failing)
            assert len(opened.index(folder).failed) == 4
        assert counts(opened.index(folder)) == (3, 0, 0, 0, 0)


def test_a_picture_whose_embedding_is_missing_is_read_again(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = dump(path)
    change(path, "DELETE FROM contents WHERE rowid = 2")
    with Gallery(path, embedder, "a") as opened:
        assert len(opened.search(np.zeros(24))[0]) == 2
        assert [reason for _, reason in opened.damaged] == ["its embedding is not of 24 float32"]
        assert counts(opened.index(folder)) == (1, 0, 3, 0, 0)
        assert len(opened.search(np.zeros(24))[0]) == 3
    assert dump(path) == before


def test_unreadable_files_are_tried_again_when_they_change(folder, path, embedder, monkeypatch):
    noise(folder / "huge.png", 3, (100, 100))
    os.mkfifo(folder / "pipe.png")
    os.symlink("nowhere", folder / "dangling.png")
    os.symlink("loop.png", folder / "loop.png")
    read = []
    monkeypatch.setattr(Ingest, "_read", lambda *a, f=Ingest._read: read.append(os.path.basename(a[1])) or f(*a))
    reasons = [
        ("broken.png", "not a picture that can be read (JPEG, PNG, WebP, BMP, GIF, TIFF"),
        ("dangling.png", "No such file or directory"),
        ("huge.png", "100x100 pixels, more than the limit"),
        ("loop.png", "Too many levels of symbolic links"),
        ("pipe.png", "not a regular file"),
    ]

    def check(report, reasons):
        found = [(os.path.basename(name), reason) for name, reason in report.failed]
        assert len(found) == len(reasons)
        for (name, reason), (wanted, text) in zip(found, reasons, strict=True):
            assert (name, reason[: len(text)]) == (wanted, text)

    with Gallery(path, embedder, "a", max_pixels=9999) as opened:
        check(opened.index(folder), reasons)
        read.clear()
        check(opened.index(folder), reasons)
        assert sorted(read) == ["dangling.png", "loop.png", "pipe.png"]  # which cost nothing to try
        noise(folder / "broken.png", 4)
        check(opened.index(folder), reasons[1:])
        assert opened.stats()["unreadable"] == 4
    with Gallery(path, embedder, "a") as opened:  # with a higher limit of pixels
        assert opened.index(folder / "broken.png").unchanged == 1  # which leaves the others to be tried again
        check(opened.index(folder), [reasons[1], *reasons[3:]])
        read.clear()
        opened.index(folder)
        assert "huge.png" not in read


def test_a_file_that_is_written_to_meanwhile_is_not_believed(folder, path, embedder, monkeypatch):
    def touched(source, *arguments, read_file=images.read_file):
        os.utime(source, (1, 1))
        return read_file(source, *arguments)

    with Gallery(path, embedder, "a") as opened:
        monkeypatch.setattr(images, "read_file", touched)
        report = opened.index(folder / "a.png")
        assert report.failed == [(str(folder / "a.png"), "it was written to while it was read")]
        monkeypatch.undo()
        assert counts(opened.index(folder / "a.png"), 2) == (1, 0)


def test_add_update_remove(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        assert opened.add(folder / "a.png").embedded == 1
        assert opened.add([folder / "b.png", folder / "below"]).embedded == 2
        noise(folder / "a.png", 50)
        noise(folder / "new.png", 51)
        os.unlink(folder / "b.png")
        assert opened.add(folder).vanished == 0
        assert opened.remove(folder / "new.png") == 1
        assert counts(opened.update(), 5) == (0, 0, 3, 1, 0)
        assert opened.remove([folder / "below", folder / "none.png"]) == 1
        assert opened.remove(os.fspath(folder)) == 3  # a.png, b.png and broken.png
        assert (list(opened), opened.stats()["contents"]) == ([], 0)


def test_names_that_are_not_text(folder, path, embedder):
    name = os.fsencode(folder) + b"/\xff\n\xc3.png"
    shutil.copy(folder / "a.png", name)
    (folder / os.fsdecode(b"\xfe.png")).write_text("hello")
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        assert name in [os.fsencode(row.path) for row in opened]
        assert [os.fsencode(m.path) for m in opened.search(folder / "a.png", 2)[0]] == [
            os.fsencode(folder / "a.png"), name
        ]  # fmt: skip
        assert opened.index(folder).unchanged == 6
        os.unlink(name)
        assert opened.index(folder, prune=True).pruned == 1


# Stops


def test_an_interrupted_run_keeps_all_but_the_batch_in_flight(tmp_path, path, embedder):
    for i in range(20):
        noise(tmp_path / f"{i:02}.png", i)

    def stop(done, total):
        assert total == 20
        if done == 8:
            raise KeyboardInterrupt

    with Gallery(path, embedder, "a", batch_size=4) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.index(tmp_path, progress=stop)
        assert opened.stats()["pictures"] == 8
        assert counts(opened.index(tmp_path), 3) == (12, 0, 8)
    with Gallery(tmp_path / "undisturbed.db", embedder, "a") as opened:
        opened.index(tmp_path)
    assert dump(path) == dump(tmp_path / "undisturbed.db")


INDEX = """
import sys
import alnumpy
from alnumpy.gallery import Gallery
embedder = alnumpy.load(sys.argv[1], backend="numpy", threads=2)
with Gallery(sys.argv[2], embedder, "a", batch_size=2) as opened:
    opened.index(sys.argv[3], progress=lambda done, total: print(done, flush=True))
"""


def test_killed_at_random_moments_it_ends_like_an_undisturbed_run(tmp_path, path):
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(100):
        noise(root / f"{i:02}.png", i % 90)  # ten copies
    (root / "50.png").write_text("broken")
    weights.write(tmp_path / "w.h5", small_weights())

    def start(db):
        command = [sys.executable, "-c", INDEX, tmp_path / "w.h5", db, root]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "undisturbed.db") as undisturbed:
        assert undisturbed.stdout.read().splitlines() == [str(done) for done in range(2, 101, 2)]
    rng = random.Random(0)
    stored = stopped = 0
    for _ in range(6):
        with start(path) as process:
            for _ in range(rng.randrange(1, 10)):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
        stopped += process.returncode == -signal.SIGKILL
        with Gallery(path) as reader:
            before, stored = stored, reader.stats()["pictures"]
            assert before <= stored <= 99
            assert len(reader.search(root / "00.png", 200)[0]) == stored
        assert dump(path)
    assert stopped  # else this machine is too fast for the test
    with start(path) as process:
        process.stdout.read()
    assert process.returncode == 0
    assert dump(path) == dump(tmp_path / "undisturbed.db")
    assert [name for name in os.listdir(tmp_path) if name.startswith("gallery.db-")] == ["gallery.db-lock"]


def kill_a_writer(path):
    """In a change that has begun to reach the file, which only the journal beside it can undo."""
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('PRAGMA cache_size = 1'); db.execute('BEGIN'); "
        "db.executemany('INSERT INTO meta VALUES (?, ?)', ((str(i), 'x' * 3000) for i in range(50))); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9


def test_a_reader_finishes_what_a_killed_writer_left(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
    before = dump(path)
    kill_a_writer(path)
    assert os.path.getsize(f"{path}-journal")
    with Gallery(path, embedder) as reader:
        assert len(reader.search(folder / "b.png", 1)[0]) == 1
    assert dump(path) == before


def test_a_continued_run_keeps_its_backend(tmp_path, path, monkeypatch):
    monkeypatch.setattr(Embedder, "_run_numba", Embedder._run_numpy)
    monkeypatch.setattr(ingest, "find_spec", lambda name: True)
    for i in range(3):
        noise(tmp_path / f"{i}.png", i)
    embedder = Embedder(small_weights(), threads=1)
    with Gallery(path, embedder, "a", batch_size=2) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.index(tmp_path, progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert dict(dump(path)[2])["unfinished"] == "numpy"
        change(path, "UPDATE meta SET value = 'numba' WHERE key = 'unfinished'")
        assert opened.index(tmp_path).backend == "numba"
        assert "unfinished" not in dict(dump(path)[2])
        noise(tmp_path / "3.png", 3)
        assert opened.index(tmp_path).backend == "numpy"


# Several processes


def test_readers_see_whole_batches_while_one_writes(tmp_path, path, embedder):
    for i in range(8):
        noise(tmp_path / f"{i}.png", i)
    with Gallery(path, embedder, "a"):
        pass
    query = np.zeros(24)
    with Gallery(path) as reader, Gallery(path, embedder, "a", batch_size=2) as writer:
        assert reader.search(query) == [[]]
        seen = []
        writer.index(tmp_path, progress=lambda done, total: seen.append((done, len(reader.search(query, 20)[0]))))
        assert seen == [(2, 2), (4, 4), (6, 6), (8, 8)]
        assert len(writer.search(query)[0]) == 8
        with pytest.raises(GalleryError, match="opened to read"):
            reader.remove(tmp_path)
    with Gallery(path) as reader:
        assert len(reader.search(query)[0]) == 8


def open_often(path, together, let_in):
    for _ in range(200):
        together.wait()
        try:
            opened = Database(path, writable=True)
        except GalleryError:
            opened = None
        together.wait()
        if opened:
            with let_in.get_lock():
                let_in.value += 1
            opened.close()


def test_of_two_writers_that_open_at_the_same_moment_one_is_let_in(path):
    processes = multiprocessing.get_context("spawn")
    together, let_in = processes.Barrier(2), processes.Value("i", 0)
    both = [processes.Process(target=open_often, args=(path, together, let_in)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert let_in.value == 200


def test_a_reader_that_pauses_lets_write(folder, path, embedder, monkeypatch):
    monkeypatch.setattr(gallery, "PART", 2)
    monkeypatch.setattr("alnumpy.database.WAIT", 0.1)
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        expected = [row.path for row in opened]
    with Gallery(path) as reader:
        rows = iter(reader)
        seen = [next(rows).path]
        noise(folder / "new.png", 9)
        with Gallery(path, embedder, "a") as opened:
            assert opened.index(folder).embedded == 1
        seen += [row.path for row in rows]
    assert seen == [*expected, str(folder / "new.png")]  # of a part not read yet


def test_a_second_writer_is_refused(path, embedder):
    with Gallery(path, embedder, "a"):
        with pytest.raises(GalleryError, match=r"gallery.db: another alnumpy is writing to it; try again"):
            Gallery(path, embedder, "a")
        code = f"from alnumpy.gallery import Gallery; Gallery({str(path)!r}, mode='a')"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another alnumpy is writing to it" in second.stderr
    with Gallery(path, embedder, "a"):
        pass
    assert sorted(os.listdir(path.parent)) == ["gallery.db", "gallery.db-lock"]


def test_a_writer_that_closes_while_another_opens_leaves_one_lock(path, monkeypatch):
    first = Database(path, writable=True)

    def connect(name, *arguments, connect=sqlite3.connect, **options):
        opened = connect(name, *arguments, **options)
        if name.endswith("-lock"):  # opened, and not yet locked
            first.close()
        return opened

    monkeypatch.setattr(sqlite3, "connect", connect)
    with closing(Database(path, writable=True)), pytest.raises(GalleryError, match="another alnumpy is writing to it"):
        Database(path, writable=True)


def write_alone(path, together, met):
    """Opens a gallery again and again, and notes whether another process had it open."""
    together.wait()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        try:
            opened = Database(path, writable=True)
        except GalleryError:
            continue
        try:
            os.close(os.open(f"{path}-alone", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            met.value = 1
        else:
            os.unlink(f"{path}-alone")
        opened.close()


def test_writers_that_come_and_go_never_meet(path):
    processes = multiprocessing.get_context("spawn")
    together, met = processes.Barrier(3), processes.Value("i", 0)
    several = [processes.Process(target=write_alone, args=(path, together, met)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0] * 3
    assert met.value == 0


def test_a_link_to_a_gallery_is_that_gallery(folder, path, embedder, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link.db"
    os.symlink(path, link)
    with Gallery(link, embedder, "a") as opened:
        opened.index(folder)
        with pytest.raises(GalleryError, match="another alnumpy is writing to it"):
            Gallery(path, embedder, "a")
    assert os.listdir(tmp_path / "links") == ["link.db"]
    with Gallery(path) as opened:
        assert opened.stats()["pictures"] == 3


def test_eight_threads_search_while_a_ninth_indexes(tmp_path, path, embedder):
    for i in range(60):
        noise(tmp_path / f"{i:02}.png", i)
    done = threading.Event()
    with Gallery(path, embedder, "a", batch_size=3) as opened, ThreadPoolExecutor(9) as pool:
        opened.index(tmp_path / "00.png")

        def search(number):
            seen = []
            while not done.is_set():
                seen.append(len(opened.search(np.zeros(24), 100)[0]))
                assert opened.search(tmp_path / "00.png", 1)[0][0] == Match(str(tmp_path / "00.png"), 0.0, True)
                assert opened.search(tmp_path / f"{number:02}.png", 1)[0][0].path
                assert len(list(opened)) >= seen[-1]
                assert opened.stats()["pictures"] >= seen[-1]
            assert seen == sorted(seen)
            return seen[-1]

        searching = [pool.submit(search, number) for number in range(8)]
        report = pool.submit(opened.index, tmp_path).result()
        done.set()
        assert all(future.result() <= 60 for future in searching)
        assert (report.embedded, len(opened.search(np.zeros(24), 100)[0])) == (59, 60)


def test_of_two_threads_that_change_a_gallery_one_waits(folder, path, embedder):
    with Gallery(path, embedder, "a", batch_size=1) as opened, ThreadPoolExecutor(2) as pool:
        reports = [future.result() for future in [pool.submit(opened.index, folder) for _ in range(2)]]
        assert sorted((report.embedded, report.unchanged) for report in reports) == [(0, 4), (3, 0)]


def test_a_gallery_is_used_from_asyncio(folder, path, embedder):
    async def work(opened):
        await asyncio.to_thread(opened.index, folder)
        found = await asyncio.gather(*(asyncio.to_thread(opened.search, folder / "a.png", 1) for _ in range(5)))
        rows = [row.path for row in await asyncio.to_thread(list, opened)]
        assert await asyncio.to_thread(opened.remove, folder / "a.png") == 1
        return found, rows

    with Gallery(path, embedder, "a") as opened:
        found, rows = asyncio.run(work(opened))
        assert found == [[[Match(str(folder / "a.png"), 0.0, True)]]] * 5
        assert len(rows) == 4
        assert folder / "a.png" not in opened


def test_galleries_of_one_file_share_what_they_read_of_it(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a") as writer:
        writer.index(folder)
        (tmp_path / "link.db").symlink_to(path)
        with Gallery(path) as one, Gallery(tmp_path / "link.db") as other:
            shared = one._snapshot()
            assert shared is other._snapshot() is writer._snapshot()
            writer.remove(folder / "a.png")
            assert one._snapshot() is not shared
            assert one._snapshot() is other._snapshot()
            assert (len(one._snapshot().paths), len(shared.paths)) == (2, 3)
            noise(folder / "d.png", 5)
            Image.open(folder / "d.png").save(folder / "e.png", compress_level=0)
            code = (
                "import alnumpy, sys; from alnumpy.gallery import Gallery\n"
                "with Gallery(sys.argv[1], mode='a') as opened: opened.remove(sys.argv[2])"
            )
        last = weakref.ref(writer._snapshot())
        assert last() is not None
    assert last() is None  # its memory is free
    with Gallery(path) as reader:
        assert len(reader.search(np.zeros(24))[0]) == 2
        subprocess.run([sys.executable, "-c", code, path, folder / "b.png"], check=True)
        assert len(reader.search(np.zeros(24))[0]) == 1  # another process has written
        with Gallery(tmp_path / "other.db", embedder, "a") as other:
            other.index(folder)
        os.replace(tmp_path / "other.db", path)
        with Gallery(path) as replaced:
            assert len(replaced.search(np.zeros(24))[0]) == 5
            assert len(reader.search(np.zeros(24))[0]) == 1


def test_a_gallery_that_is_closed_while_others_use_it(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
    started = threading.Barrier(5)

    def search_for_ever(opened):
        while True:
            assert len(opened.search(np.zeros(24))[0]) == 3
            list(opened)

    def search(opened):
        started.wait()
        with pytest.raises(ValueError, match="the gallery is closed"):
            search_for_ever(opened)
        return True

    with ThreadPoolExecutor(4) as pool, Gallery(path) as other:
        opened = Gallery(path)
        searching = [pool.submit(search, opened) for _ in range(4)]
        started.wait()
        opened.close()
        opened.close()
        assert all(future.result() for future in searching)
        assert len(other.search(np.zeros(24))[0]) == 3
    writer = Gallery(path, embedder, "a", batch_size=1)
    for i in range(3):
        noise(folder / f"new{i}.png", 10 + i)
    with pytest.raises(ValueError, match="the gallery is closed"):
        writer.index(folder, progress=lambda *_: writer.close())
    with Gallery(path) as opened:
        assert len(opened) == 5  # what was stored stays


def test_length_membership_and_text(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a") as opened:
        assert (len(opened), folder / "a.png" in opened) == (0, False)
        opened.index(folder)
        os.unlink(folder / "a.png")
        opened.index(folder)
        (tmp_path / "link").symlink_to(folder)
        assert len(opened) == len(list(opened)) == 4
        for path_in in (folder / "a.png", str(folder / "below/../b.png"), tmp_path / "link" / "b.png"):
            assert path_in in opened
        for other in (folder, folder / "new.png", "a.png", 3, None):
            assert other not in opened
        assert repr(opened) == f"<Gallery {str(path)!r}, small, 24 float32, to write>"
    assert repr(opened) == f"<Gallery {str(path)!r}, small, 24 float32, closed>"
    with Gallery(path) as opened:
        assert repr(opened).endswith("float32, to read>")


def test_a_gallery_whose_name_is_not_text_and_which_was_moved(folder, tmp_path, embedder):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff?#%20 '\n.db")
    with Gallery(strange, embedder, "a") as opened:
        opened.index(folder)
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"pictures", b"\xff?#%20 '\n.db", b"\xff?#%20 '\n.db-lock"]
    os.rename(strange, tmp_path / "moved.db")
    with Gallery(tmp_path / "moved.db", embedder, "a") as opened:
        assert counts(opened.index(folder)) == (0, 0, 4, 0, 0)


def test_the_file_is_made_with_the_umask(path, embedder):
    before = os.umask(0o027)
    try:
        with Gallery(path, embedder, "a"):
            assert {stat.S_IMODE(os.stat(file).st_mode) & 0o137 for file in path.parent.iterdir()} == {0}
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_a_gallery_in_a_read_only_folder_is_searched(folder, embedder):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "gallery.db"
        with Gallery(path, embedder, "a") as opened:
            opened.index(folder)
        os.chmod(path, 0o644)

        def search(message=""):
            os.chmod(name, 0o555)
            code = (
                "import os, sys; import numpy as np; from alnumpy.gallery import Gallery; "
                "os.getuid() or os.setuid(65534)\n"
                "with Gallery(sys.argv[1]) as opened: print(len(opened.search(np.zeros(24))[0]))"
            )
            done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
            os.chmod(name, 0o755)
            return done.stdout.strip() or done.stderr.splitlines()[-1]

        assert search() == "3"
        os.chmod(path, 0)
        assert "GalleryError: " in (refused := search())
        assert "gallery.db: cannot be opened" in refused
        os.chmod(path, 0o644)
        change(path, "PRAGMA journal_mode = WAL")  # as a killed writer leaves it
        assert sorted(os.listdir(name)) == ["gallery.db", "gallery.db-lock"]
        assert search() == "3"
        Path(name, "gallery.db-wal").write_bytes(b"unfinished")  # then the file alone may be incomplete
        os.chmod(Path(name, "gallery.db-wal"), 0o600)
        assert "GalleryError" in search()
        os.unlink(Path(name, "gallery.db-wal"))
        change(path, "PRAGMA journal_mode = DELETE")
        kill_a_writer(path)
        os.chmod(Path(name, "gallery.db-journal"), 0o644)
        assert "a writer was stopped half way" in search()
        with Gallery(path) as opened:
            assert len(opened.search(np.zeros(24))[0]) == 3


# Other files


@pytest.mark.parametrize("mode", ["r", "a"])
def test_foreign_files_are_refused_and_left_alone(tmp_path, path, embedder, mode):
    def refused(message):
        before = path.read_bytes()
        with pytest.raises(GalleryError, match=rf"gallery.db: .*{message}"):
            Gallery(path, embedder, mode)
        assert path.read_bytes() == before
        assert set(os.listdir(tmp_path)) <= {"gallery.db", "gallery.db-lock"}
        path.unlink()

    path.write_text("hello" * 1000)
    refused("damaged, or not a database")
    change(path, "CREATE TABLE bookmarks (url TEXT)")
    if mode == "a":
        change(path, "PRAGMA journal_mode = WAL")  # which a reader would leave two more files of
    refused("not an alnumpy gallery; make one with: alnumpy index")
    change(path, "PRAGMA application_id = 7")
    refused("not an alnumpy gallery")

    def made(*changes):
        with Gallery(path, embedder, "a"):
            pass
        for sql in changes:
            change(path, sql)

    made("PRAGMA user_version = 3")
    refused("version 3, this alnumpy reads 2; update alnumpy")
    made("CREATE TRIGGER t AFTER INSERT ON pictures BEGIN DELETE FROM contents; END")
    refused("its tables are not those")
    made("DROP TABLE contents", "CREATE VIEW contents AS SELECT * FROM meta")
    refused("its tables are not those")
    for text in ("", "[]", "{}", "[" * 100_000, '{"dtype": "float32"}'):
        made(f"UPDATE meta SET value = '{text}'")
        refused("its settings are damaged")
    made()
    path.write_bytes(path.read_bytes()[:6000])
    refused("damaged")
    path.mkdir()
    with pytest.raises(GalleryError, match="not a file"):
        Gallery(path, embedder, mode)


def test_missing_and_empty_files(path, embedder):
    with pytest.raises(GalleryError, match=r"no such gallery; make one with: alnumpy index FOLDER --db FILE"):
        Gallery(path)
    path.touch()
    with pytest.raises(GalleryError, match="not an alnumpy gallery"):
        Gallery(path)
    with Gallery(path, embedder, "a"):  # a writer killed at once leaves such a file
        pass
    change(path, "DELETE FROM meta")
    with pytest.raises(GalleryError, match="an empty gallery; fill it"):
        Gallery(path)
    with pytest.raises(GalleryError, match="cannot be opened"):
        Gallery(path / "below" / "gallery.db", embedder, "a")
    for wrong in ({"mode": "w"}, {"dtype": "float64"}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Gallery(path, embedder, **wrong)
    with Gallery(path, embedder, "a") as opened:
        pass
    with pytest.raises(ValueError, match="closed"):
        opened.stats()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (sqlite3.OperationalError("database is locked"), "another alnumpy is writing to it; try again"),
        (sqlite3.OperationalError("database or disk is full"), "make room and run again: what was stored before is"),
        (sqlite3.OperationalError("disk I/O error"), "a full or failing disk; what was stored before is safe"),
        (sqlite3.ProgrammingError("wrong thread"), "wrong thread"),
        (sqlite3.InterfaceError("bad parameter"), "bad parameter"),
        (sqlite3.DatabaseError("malformed"), r"damaged, or not a database \(malformed\); restore it"),
    ],
)
def test_what_sqlite_says_is_told_with_the_remedy(path, embedder, monkeypatch, error, message):
    class Failing:
        in_transaction = False

        def execute(self, *_):
            raise error

    with Gallery(path, embedder, "a") as opened, monkeypatch.context() as patch:
        for db in (opened._reader.db, opened._writer):
            patch.setattr(db, "_connection", Failing())
        for call in (opened.stats, opened.update, lambda: opened.remove("x")):
            with pytest.raises(GalleryError, match=rf"gallery.db: .*{message}"):
                call()


def test_flipped_bytes_give_named_errors_or_damaged_rows(tmp_path, folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
    good = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(20):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            with Gallery(path, embedder, "a") as opened:
                opened.search(np.zeros(24))
                opened.duplicates(1)
                opened.stats()
                list(opened)
                opened.index(folder, prune=True)
        except GalleryError:
            refused += 1
    assert refused > 50


def test_another_model_or_other_settings_are_refused(folder, path, embedder):
    with Gallery(path, embedder, "a", dtype="float16") as opened:
        opened.index(folder)
        assert opened.settings.size == 8
    other = small_weights()
    for different, message in (
        ({"embedder": Embedder(small_weights(1))}, "made with other weights, "),
        ({"embedder": Embedder(other, size=9)}, "made with size 8, not 9"),
        ({"embedder": Embedder(other, normalize=True)}, "made with normalize False, not True"),
        ({"embedder": embedder, "dtype": "int8"}, "made with dtype float16, not int8"),
        ({"embedder": embedder, "fast_decode": True}, "made with decode full, not fast"),
        ({"embedder": Embedder(replace(other, preprocessing=replace(other.preprocessing, channels="BGR")))}, "other"),
        ({"embedder": alnumpy.load(size=32)}, "network small, not alnet; dimension 24, not 1280; size 8, not 32"),
    ):
        for mode in ("r", "a"):
            with pytest.raises(GalleryError, match=message):
                Gallery(path, mode=mode, **different)
    with Gallery(path, Embedder(other), dtype="float16", fast_decode=False) as opened:
        assert opened.dtype == "float16"


def test_a_gallery_without_pictures_is_bound_to_nothing(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a", dtype="int8", flip=True) as opened:
        opened.index(tmp_path / "mistyped")
        assert not opened.bound
    other = Embedder(small_weights(1), size=9, normalize=True, backend="numpy", threads=1)
    with Gallery(path, other, "a", dtype="float16") as opened:
        assert opened.settings == Settings.of(other, dtype="float16")
        opened.index(folder)
    with pytest.raises(GalleryError, match="made with"):
        Gallery(path, embedder, "a")
    with Gallery(path, mode="a") as opened:
        assert opened.bound
        opened.remove(folder)
    with Gallery(path) as opened:  # a reader is told what it was
        assert (opened.bound, opened.dtype) == (False, "float16")
    with Gallery(path, mode="a") as opened:  # and who brings no embedder changes nothing
        assert opened.dtype == "float16"
    with Gallery(path, embedder, "a") as opened:
        assert (opened.dtype, opened.settings.size) == ("float32", 8)


def test_fast_decoding_is_recorded_and_holds_for_queries(tmp_path, path, embedder):
    wave = np.sin(np.arange(320 * 240) / 7).reshape(240, 320) * 120 + 128
    Image.fromarray(wave.astype(np.uint8)).save(tmp_path / "a.jpg")
    with Gallery(path, embedder, "a", fast_decode=True) as opened:
        opened.index(tmp_path / "a.jpg")
        (row,) = opened
        assert (row.width, row.height) == (320, 240)
        whole = embedder.embed(tmp_path / "a.jpg")[0]
        difference = np.linalg.norm(row.embedding - whole) / np.linalg.norm(whole)
        assert 0 < difference < 0.1
    with Gallery(path, embedder) as opened:
        assert opened.settings.fast_decode
        Image.open(tmp_path / "a.jpg").save(tmp_path / "c.jpg", quality="keep", comment="other bytes, same pixels")
        assert opened.search(tmp_path / "c.jpg") == [[Match(str(tmp_path / "a.jpg"), 0.0, False)]]


def test_migrations_run_in_order_and_once():
    scripts = ["CREATE TABLE t (a); INSERT INTO t VALUES (1)", "ALTER TABLE t ADD COLUMN b; UPDATE t SET b = a + 1"]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        migrate(db, scripts[:1])
        migrate(db, scripts)
        migrate(db, scripts)
        assert db.execute("SELECT * FROM t").fetchall() == [(1, 2)]
        with pytest.raises(sqlite3.OperationalError):
            migrate(db, [*scripts, "DELETE FROM t; SELECT nonsense"])
        assert db.execute("SELECT * FROM t").fetchall() == [(1, 2)]  # whole or not at all
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


def test_an_older_version_is_read_as_it_is_and_brought_up_to_date_by_a_writer(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        settings = {key: value for key, value in asdict(opened.settings).items() if key not in ("flip", "reduced")}
    change(path, "DROP TABLE whitening")  # as version 1 was
    change(path, "PRAGMA user_version = 1")
    change(path, "UPDATE meta SET value = ? WHERE key = 'settings'", json.dumps(settings))
    before = path.read_bytes()
    with Gallery(path, embedder) as opened:
        assert names(opened.search(folder / "a.png", 1)[0]) == ["a.png"]
        assert (opened.settings.flip, opened.settings.reduced) == (False, False)
    assert path.read_bytes() == before
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index(folder)) == (0, 0, 4, 0, 0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("SELECT * FROM whitening").fetchall() == []


# Search


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0), ("float16", 2**-11), ("int8", 0.5 / 127)])
def test_number_formats(dtype, bound):
    vectors = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32)
    vectors[3] = 0
    vectors[4] *= 1000
    rows = encode(vectors, dtype)
    assert (rows.dtype, rows.shape) == (np.uint8, (50, row_length(24, dtype)))
    back = decode(rows, dtype)
    assert back.dtype == np.float32
    error = np.abs(back - vectors)
    largest = np.abs(vectors) if dtype == "float16" else np.abs(vectors).max(1, keepdims=True)
    assert (error <= bound * largest * 1.0001 + 1e-7 * (dtype == "float16")).all()
    tiny = np.array([[2.6e-43, -2.6e-43]], np.float32)
    assert (np.sign(decode(encode(tiny, dtype), dtype)) * np.sign(tiny) >= 0).all()
    for bad in (np.nan, np.inf, -np.inf, -1e30):  # the last one's square is not finite
        vectors[5, 7] = bad
        assert list(np.flatnonzero(~np.isfinite(squared_norms(encode(vectors, dtype), dtype)))) == [5]


def test_number_formats_save_space(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(400, 1280)).astype(np.float32)
    sizes = {}
    for dtype in packed.DTYPES:
        with closing(Database(tmp_path / dtype, writable=True)) as db, db.transaction():
            for i, row in enumerate(encode(vectors, dtype)):
                digest = hashlib.sha256(row).digest()
                db.run("INSERT INTO contents VALUES (?, 640, 480, ?)", [digest, row.tobytes()])
                db.run(
                    "INSERT INTO pictures VALUES (?, 1, 1, ?, NULL, '', 0)", [b"/home/pictures/%09d.jpg" % i, digest]
                )
        sizes[dtype] = os.path.getsize(tmp_path / dtype)
    assert sizes["float32"] < 1.2 * vectors.nbytes
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < 0.36 * sizes["float32"]


def test_every_float16_is_converted_as_numpy_does():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    np.testing.assert_array_equal(decode(every[None].view(np.uint8), "float16")[0], every.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_search_is_exact_over_what_is_stored(tmp_path, path, embedder, monkeypatch, dtype):
    monkeypatch.setattr(packed, "BLOCK", 7)
    for i in range(40):
        noise(tmp_path / f"{i:02}.png", i % 36)  # four copies
    with Gallery(path, embedder, "a", dtype=dtype) as opened:
        opened.index(tmp_path)
        rows = list(opened)
        stored = np.stack([row.embedding for row in rows])
        queries = np.random.default_rng(1).normal(size=(5, 24)) * stored.std(0) + stored.mean(0)
        found = opened.search(queries, 12)
        distances = np.linalg.norm(stored[None] - queries.astype(np.float32)[:, None], axis=2)
        for matches, row in zip(found, distances, strict=True):
            order = np.argsort(row, kind="stable")[:12]
            assert [match.path for match in matches] == [rows[i].path for i in order]
            np.testing.assert_allclose([match.distance for match in matches], row[order], rtol=1e-5)
        assert opened._snapshot().embeddings.rows.nbytes == 40 * row_length(24, dtype)
        for row in rows:
            first = opened.search(row.path, 1)[0][0]
            assert (first.distance, first.same) == (0, True)
    with Gallery(path, embedder) as opened:
        assert opened.search(queries, 12) == found


@pytest.mark.parametrize("k", [1, 5, 7, 8, 20, 500, 600])
@pytest.mark.parametrize("held", [1, 10_000])
def test_embeddings_far_from_the_origin_are_ranked_exactly(monkeypatch, k, held):
    monkeypatch.setattr(packed, "HELD", held)
    # Whole numbers, whose distances have no rounding, and many ties.
    vectors = (np.random.default_rng(0).integers(-5, 6, (500, 24)) + 3000).astype(np.float32)
    rows = encode(vectors, "float32")
    nearest = Packed(rows, squared_norms(rows, "float32"), "float32").nearest(vectors[7:20], k)
    for query, (indices, distances) in zip(vectors[7:20], nearest, strict=True):
        wanted = np.linalg.norm(vectors.astype(np.float64) - query, axis=1)
        np.testing.assert_array_equal(indices, np.argsort(wanted, kind="stable")[:k])
        np.testing.assert_allclose(distances, np.sort(wanted)[:k], rtol=1e-6)


def test_ties_go_by_path_and_the_query_itself_is_marked(folder, path, embedder, tmp_path):
    for name in ("z.png", "aa.png", "m.png"):
        shutil.copy(folder / "b.png", folder / name)
    shutil.copy(folder / "b.png", tmp_path / "elsewhere.png")
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        for query in (folder / "b.png", tmp_path / "elsewhere.png"):
            (matches,) = opened.search(query, 5)
            assert names(matches)[:4] == ["aa.png", "b.png", "m.png", "z.png"]
            assert [match.same for match in matches] == [True] * 4 + [False]
            assert [match.distance for match in matches[:4]] == [0] * 4
        assert names(opened.search(folder / "b.png", 2)[0]) == ["aa.png", "b.png"]
        (matches,) = opened.search(Image.open(folder / "b.png"), 100)
        assert len(matches) == 6
        assert not any(match.same for match in matches)
        assert matches[0].distance == 0
        pixels = np.asarray(Image.open(folder / "b.png"))
        assert opened.search([pixels, os.fspath(folder / "b.png")], 100) == [
            matches,
            opened.search(folder / "b.png", 100)[0],
        ]


def test_searches_that_cannot_be(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        assert opened.search(np.zeros((2, 24)), 3) == [[], []]
        assert opened.search([], 3) == []
        opened.index(folder)
        for wrong in (np.zeros(23), np.zeros((1, 2, 24)), np.full(24, np.nan), np.full(24, 1e18), np.full(24, 1e300)):
            with pytest.raises(ValueError, match=r"finite embeddings \(Q, 24\)"):
                opened.search(wrong)
        with pytest.raises(ValueError, match="k must be"):
            opened.search(np.zeros(24), 0)
        for name in ("broken.png", "missing.png", "below"):
            with pytest.raises(ImageError, match=name):
                opened.search(folder / name)
    with Gallery(path) as opened:
        assert opened.search(folder / "a.png")[0][0].same  # its embedding is there
        with pytest.raises(ValueError, match="with an embedder"):
            opened.search(noise(folder / "new.png", 77))
        with pytest.raises(ValueError, match="with an embedder"):
            opened.update()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_damaged_rows_are_reported_and_not_ranked(folder, path, embedder, dtype):
    noise(folder / "d.png", 9)
    with Gallery(path, embedder, "a", dtype=dtype) as opened:
        opened.index(folder)

    def set_row(name, row):
        change(path, "UPDATE contents SET embedding = ? WHERE hash = (SELECT hash FROM pictures WHERE path = ?)",
               row, os.fsencode(folder / name))  # fmt: skip

    for short in (b"", b"123", b"0" * (row_length(24, dtype) + 1), "text", 17):
        set_row("a.png", short)
        set_row("b.png", encode(np.full((1, 24), np.nan, np.float32), dtype).tobytes())
        with Gallery(path) as opened:
            (matches,) = opened.search(np.zeros(24))
            assert sorted(names([Match(*item, False) for item in opened.damaged])) == ["a.png", "b.png"]
            assert sorted(names(matches)) == ["c.png", "d.png"]
            assert len(list(opened)) == 5
            assert opened.duplicates(1e9)[0][0].path == str(folder / "below" / "c.png")


def test_an_embedding_that_the_format_cannot_hold_is_an_error(folder, path):
    loud = small_weights()
    loud.parameters["last.bn.weight"][:] = 1e30
    loud.parameters["last.bn.bias"][:] = 1e30
    spec = replace(SMALL, cbam="")
    params = {name: array for name, array in loud.parameters.items() if ".cbam" not in name}
    params["last.conv.weight"][:] = np.inf
    embedder = Embedder(replace(loud, spec=spec, parameters=params), backend="numpy", threads=1)
    with Gallery(path, embedder, "a") as opened:
        report = opened.index(folder / "a.png")
        assert report.failed == [(str(folder / "a.png"), "its embedding is not finite in the gallery's number format")]
        assert opened.search(np.zeros(24)) == [[]]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_duplicates_are_the_connected_groups(tmp_path, path, embedder, monkeypatch, dtype):
    monkeypatch.setattr(packed, "BLOCK", 5)
    for i in range(30):
        noise(tmp_path / f"{i:02}.png", i % 27)
    with Gallery(path, embedder, "a", dtype=dtype) as opened:
        opened.index(tmp_path)
        rows = list(opened)
        vectors = np.stack([row.embedding for row in rows])
        distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
        exact = opened.duplicates(0)
        assert [names(group) for group in exact] == [["00.png", "27.png"], ["01.png", "28.png"], ["02.png", "29.png"]]
        assert all(match.distance == 0 and match.same for group in exact for match in group)
        assert [len(group) for group in opened.duplicates(1e200)] == [30]
        for threshold in np.quantile(distances, (0.08, 0.15, 0.3)):
            linked = distances <= threshold
            for _ in range(6):
                linked = linked @ linked
            wanted = {tuple(np.flatnonzero(row)) for row in linked if row.sum() > 1}
            groups = opened.duplicates(threshold)
            assert [tuple(int(Path(match.path).stem) for match in group) for group in groups] == sorted(wanted)
            first, second = groups[0][:2]
            index = [int(Path(match.path).stem) for match in (first, second)]
            np.testing.assert_allclose((first.distance, second.distance), distances[index[0], index], rtol=1e-5)


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_decodes_a_jpeg_smaller_but_not_below_the_side(tmp_path, orientation):
    y, x = np.mgrid[0:600, 0:1000]
    pixels = np.stack([x * 255 / 999, y * 255 / 599, np.full(x.shape, 90)], 2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    for draft, scale in ((0, 1), (75, 8), (76, 4), (300, 2), (301, 1)):
        image, size = images.read_file(tmp_path / "a.jpg", draft=draft)
        upright = (1000, 600) if orientation == 1 else (600, 1000)
        assert size == upright
        assert image.size == (upright[0] // scale, upright[1] // scale)
    whole, fast = (
        images.preprocess(images.read_file(tmp_path / "a.jpg", draft=d)[0], Preprocessing(32, (0, 0, 0), (1, 1, 1)))
        for d in (0, 64)
    )
    assert 0 < np.abs(whole - fast).mean() < 2 / 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert images.read_file(tmp_path / "a.png", draft=8)[0].size == (1000, 600)


# Flips and whitening


@pytest.mark.parametrize("normalize", [False, True])
def test_flips_are_averaged_in_the_gallery_and_for_queries(tmp_path, path, normalize):
    embedder = Embedder(small_weights(), normalize=normalize, backend="numpy", threads=2)
    plain = Embedder(small_weights(), backend="numpy")
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(5):
        noise(root / f"{i}.png", i, (8, 8))  # the network's size, which nothing resizes
    mirrored = Image.open(root / "3.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(tmp_path / "mirrored.png")
    with Gallery(path, embedder, "a", flip=True) as opened:
        opened.index(root)
        stored = list(opened)[3].embedding
        wanted = plain.embed([root / "3.png", tmp_path / "mirrored.png"]).mean(0)
        wanted /= np.linalg.norm(wanted) if normalize else 1
        np.testing.assert_allclose(stored, wanted, rtol=1e-6)
        for query in (tmp_path / "mirrored.png", mirrored, np.asarray(mirrored)):
            assert opened.search(query, 1) == [[Match(str(root / "3.png"), 0.0, False)]]
    with Gallery(tmp_path / "plain.db", embedder, "a") as opened:
        opened.index(root)
        assert opened.search(mirrored, 1)[0][0].distance > 0.001
    with Gallery(path, embedder) as opened:
        assert opened.settings.flip
    with pytest.raises(GalleryError, match="made with flip True, not False"):
        Gallery(path, embedder, flip=False)


@pytest.fixture
def source(tmp_path, path, embedder):
    """A gallery of 40 pictures, one a copy, one unreadable, one gone."""
    root = tmp_path / "many"
    root.mkdir()
    for i in range(38):
        noise(root / f"{i:02}.png", i)
    shutil.copy(root / "00.png", root / "38.png")
    (root / "39.png").write_text("hello")
    with Gallery(path, embedder, "a") as opened:
        opened.index(root)
        os.unlink(root / "37.png")
        opened.index(root)
    return root


def test_a_reduced_gallery_is_whitened_and_found_in_like_any_other(source, path, embedder, tmp_path):
    with Gallery(path) as whole:
        kept = whole.reduce(tmp_path / "small.db", 4)
        with pytest.raises(GalleryError, match=r"small.db: exists already; choose another name"):
            whole.reduce(tmp_path / "small.db", 4)
        rows = [row for row in whole if row.embedding is not None]
    contents = np.stack([row.embedding for row in rows if not row.path.endswith("38.png")])  # each once
    mean, projection, share = learn_whitening([contents], 4)
    assert kept == pytest.approx(share)
    assert 0.3 < kept < 1
    findable = [row for row in rows if not row.vanished]
    wanted = whiten(np.stack([row.embedding for row in findable]), mean, projection)
    with Gallery(tmp_path / "small.db", embedder) as small:
        found = list(small)
        assert [row[:6] + row[7:] for row in found] == [row[:6] + row[7:] for row in findable]
        vectors = np.stack([row.embedding for row in found])
        cosines = np.abs(np.linalg.svd(vectors.T @ wanted)[1])  # axes have no direction: equal but for signs
        assert np.linalg.norm(np.abs(vectors) - np.abs(wanted)) < 1e-3
        assert cosines.min() > 1
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        assert (small.dimension, small.settings.reduced) == (4, True)
        for query, same in ((source / "05.png", True), (Image.open(source / "05.png"), False)):
            first = small.search(query, 3)[0][0]
            assert first == Match(str(source / "05.png"), 0.0, same)
        assert small.search(vectors[7], 1)[0][0].path == found[7].path
        with pytest.raises(ValueError, match=r"\(Q, 4\), not \(24,\)"):
            small.search(np.zeros(24))
        with pytest.raises(GalleryError, match="reduced already"):
            small.reduce(tmp_path / "smaller.db", 2)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_new_pictures_are_whitened_by_what_was_learned(source, path, tmp_path, dtype):
    embedder = Embedder(small_weights(), normalize=True, backend="numpy", threads=2)
    settings = {"dtype": dtype, "flip": True}
    with Gallery(tmp_path / "whole.db", embedder, "a", **settings) as whole:
        whole.index(source)
        whole.reduce(tmp_path / "small.db", 5)
    noise(source / "new.png", 1000)
    with Gallery(tmp_path / "exact.db", embedder, "a", flip=True) as exact:
        exact.index(source / "new.png")
        (new,) = exact
    with Gallery(tmp_path / "small.db", embedder, "a", **settings, batch_size=7) as small:
        report = small.index(source)
        assert counts(report) == (1, 0, 38, 0, 0)  # the copy and the old ones are there
        assert [os.path.basename(failed) for failed, _ in report.failed] == ["39.png"]
        (mean, projection) = small._encoder.whitening
        (row,) = (row for row in small if row.path.endswith("new.png"))
        wanted = decode(encode(whiten(new.embedding[None], mean, projection), dtype), dtype)[0]
        np.testing.assert_array_equal(row.embedding, wanted)
        assert small.search(Image.open(source / "new.png"), 1)[0][0].path == row.path
    for different in ({"embedder": Embedder(small_weights(1))}, {"embedder": embedder, "flip": False}):
        with pytest.raises(GalleryError, match="made with"):
            Gallery(tmp_path / "small.db", **different)


def test_what_cannot_be_reduced_leaves_nothing_behind(source, path, embedder, tmp_path, monkeypatch):
    before = sorted(os.listdir(tmp_path))
    with Gallery(path) as whole:
        for dimensions in (25, 1000):
            with pytest.raises(GalleryError, match=r"38 embeddings vary along \d+ axes.*take fewer dimensions"):
                whole.reduce(tmp_path / "small.db", dimensions)
        with pytest.raises(GalleryError, match=r"nowhere/small.db: cannot be written \(No such file"):
            whole.reduce(tmp_path / "nowhere" / "small.db", 4)
        for name in ("small.db", "small.db-wal", "small.db-journal"):  # the last two SQLite would write into it
            (tmp_path / name).write_text("")
            with pytest.raises(GalleryError, match=rf"{name}: exists already; choose another name, or remove it"):
                whole.reduce(tmp_path / "small.db", 4)
            (tmp_path / name).unlink()
        monkeypatch.setattr(packed, "encode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            whole.reduce(tmp_path / "small.db", 4)
    assert sorted(os.listdir(tmp_path)) == before
    with (
        Gallery(tmp_path / "empty.db", embedder, "a") as empty,
        pytest.raises(GalleryError, match="0 embeddings vary along 0 axes"),
    ):
        empty.reduce(tmp_path / "small.db", 1)


def test_a_damaged_whitening_is_refused(source, path, embedder, tmp_path):
    with Gallery(path) as whole:
        whole.reduce(tmp_path / "small.db", 4)
    infinite = np.full(24, np.inf, "<f4").tobytes()
    for damage in (infinite, b"", b"x" * 95, "x" * 96, 17):
        change(tmp_path / "small.db", "UPDATE whitening SET mean = ?", damage)
        with pytest.raises(GalleryError, match=r"small.db: its whitening is damaged; reduce the whole gallery again"):
            Gallery(tmp_path / "small.db", embedder)
    with Gallery(tmp_path / "small.db") as small:  # which needs it not
        assert small.search(source / "05.png", 1)[0][0].same
