"""Indexing: which files are stored, not read again, or tried again."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import time
import unicodedata
from contextlib import closing

import numpy as np
import PIL
import pytest
from galleries import Counting, change, counts, dump, names, noise
from PIL import Image

import alnumpy
from alnumpy import formats, images, ingest, worker
from alnumpy.gallery import Gallery
from alnumpy.worker import read_file


def test_stored_rows(folder, path, embedder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise(folder / "turned.jpg", 7, (40, 20), exif=exif)
    (folder / "._turned.jpg").write_bytes(b"\0\5\x16\7")  # a companion file of macOS, not a picture
    with Gallery(path, embedder, "a") as opened:
        report = opened.index(folder)
        rows = {os.path.relpath(row.path, folder): row for row in opened}
    assert counts(report) == {"embedded": 4}
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
        monkeypatch.setattr(worker, "hash_file", None)
        again = opened.index([folder])
    assert counts(again) == {"unchanged": 4}
    assert again.failed == first.failed  # known faults are reported again
    assert dump(path) == before


def test_renamed_copied_and_touched_files_are_not_embedded_again(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        assert opened.index(folder).embedded == 3
        os.rename(folder / "a.png", folder / "renamed.png")
        shutil.copy(folder / "b.png", folder / "copy.png")
        os.utime(folder / "below" / "c.png", ns=(1, 1))
        report = opened.index(folder, prune=True)
        assert counts(report) == {"recognised": 3, "unchanged": 2, "vanished": 1, "pruned": 1}
        assert Counting.embedded == 3
        assert opened.stats()["contents"] == 3
        assert names(opened.search(folder / "renamed.png")[0])[0] == "renamed.png"


def test_copies_in_one_batch_are_embedded_once(folder, path, embedder):
    for i in range(5):
        shutil.copy(folder / "a.png", folder / f"copy{i}.png")
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index(folder)) == {"embedded": 3, "recognised": 5}
    assert Counting.embedded == 3


def test_changed_files_are_done_again(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        added = [row.added for row in opened]
        noise(folder / "a.png", 99, (30, 31))
        assert counts(opened.index(folder)) == {"embedded": 1, "unchanged": 3}
        row = next(iter(opened))
        assert (row.width, row.height) == (30, 31)
        np.testing.assert_array_equal(row.embedding, embedder.embed(folder / "a.png")[0])
        assert [row.added for row in opened] == added
        assert opened.stats()["contents"] == 3  # the old content was removed
        (folder / "a.png").write_text("hello")
        assert opened.index(folder).embedded == 0
        assert opened.stats()["contents"] == 2


def test_times_that_sqlite_cannot_hold(folder, path, embedder):
    late = 13_569_465_600 * 10**9  # in the year 2400
    os.utime(folder / "a.png", ns=(late, late))
    if os.stat(folder / "a.png").st_mtime_ns != late:
        pytest.skip("needs a file system that holds it")
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index(folder)) == {"embedded": 3}
        assert counts(opened.index(folder)) == {"unchanged": 4}
        assert next(iter(opened)).mtime_ns == 2**63 - 1


def test_a_file_that_cannot_be_read_for_a_while_keeps_its_embedding(folder, path, embedder, monkeypatch, tmp_path):
    def failing(path, hash=worker.hash_file):
        if os.path.basename(path) in ("a.png", "b.png"):
            raise PermissionError(13, "Permission denied")
        return hash(path)

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = dump(path)
        with monkeypatch.context() as patch:
            patch.setattr(worker, "hash_file", failing)
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
        noise(folder / "b.png", 77)  # changes between the two runs
        assert counts(opened.index(folder)) == {"embedded": 1, "recognised": 1, "unchanged": 2}
        assert Counting.embedded == 4
        after = dump(path)
    assert [row[0] for row in after[0]] == [row[0] for row in before[0]]
    assert after[0][0][3:] == before[0][0][3:]
    assert len(after[1]) == 3  # the old content of b.png was removed


def test_a_lack_of_memory_is_not_blamed_on_the_picture(folder, path, embedder, monkeypatch):
    def failing(*_):
        raise MemoryError

    with Gallery(path, embedder, "a") as opened:
        with monkeypatch.context() as patch:
            patch.setattr("alnumpy.formats.kind_of", failing)
            assert len(opened.index(folder).failed) == 4
        assert counts(opened.index(folder)) == {"embedded": 3}


def test_a_picture_whose_embedding_is_missing_is_read_again(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = dump(path)
    change(path, "DELETE FROM contents WHERE rowid = 2")
    with Gallery(path, embedder, "a") as opened:
        assert len(opened.search(np.zeros(24))[0]) == 2
        assert [reason for _, reason in opened.damaged] == ["its embedding is not of 24 float32"]
        assert counts(opened.index(folder)) == {"embedded": 1, "unchanged": 3}
        assert len(opened.search(np.zeros(24))[0]) == 3
    assert dump(path) == before


def test_unreadable_files_are_tried_again_when_they_change(folder, path, embedder, monkeypatch):
    noise(folder / "huge.png", 3, (100, 100))
    os.mkfifo(folder / "pipe.png")
    os.symlink("nowhere", folder / "dangling.png")
    os.symlink("loop.png", folder / "loop.png")
    read = []
    monkeypatch.setattr(ingest, "read_file", lambda *a, f=read_file: read.append(os.path.basename(a[0])) or f(*a))
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
        assert sorted(read) == ["dangling.png", "loop.png", "pipe.png"]  # trying these costs nothing
        noise(folder / "broken.png", 4)
        check(opened.index(folder), reasons[1:])
        assert opened.stats()["unreadable"] == 4
    with Gallery(path, embedder, "a") as opened:  # with a higher limit of pixels
        assert opened.index(folder / "broken.png").unchanged == 1  # the others are still to be tried again
        check(opened.index(folder), [reasons[1], *reasons[3:]])
        read.clear()
        opened.index(folder)
        assert "huge.png" not in read


def test_a_file_that_changes_while_it_is_read_is_refused(folder, path, embedder, monkeypatch):
    def touched(source, *arguments, load=images.load):
        os.utime(source, (1, 1))
        return load(source, *arguments)

    with Gallery(path, embedder, "a") as opened:
        monkeypatch.setattr(images, "load", touched)
        report = opened.index(folder / "a.png")
        assert report.failed == [(str(folder / "a.png"), "it was written to while it was read")]
        monkeypatch.undo()
        assert counts(opened.index(folder / "a.png")) == {"embedded": 1}


def test_add_update_remove(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        assert opened.add(folder / "a.png").embedded == 1
        assert opened.add([folder / "b.png", folder / "below"]).embedded == 2
        noise(folder / "a.png", 50)
        noise(folder / "new.png", 51)
        os.unlink(folder / "b.png")
        assert opened.add(folder).vanished == 0
        assert opened.remove(folder / "new.png") == 1
        assert counts(opened.update()) == {"unchanged": 3, "vanished": 1}
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


@pytest.mark.parametrize("name", ["a.png", "broken.png"])
def test_a_file_replaced_with_its_size_and_time_kept_is_noticed(folder, path, embedder, name):
    (folder / "a.png").rename(folder / "a.bmp.png")
    for seed, file in enumerate(("a.png", "new.bmp")):
        noise(folder / file, 20 + seed, format="BMP")
    if name == "broken.png":
        (folder / name).write_bytes(bytes(os.path.getsize(folder / "a.png")))
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = os.stat(folder / name)
        time.sleep(0.02)
        (folder / name).write_bytes((folder / "new.bmp").read_bytes())
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = os.stat(folder / name)
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert after.st_ctime_ns > before.st_ctime_ns
        assert opened.index(folder).recognised == 1
        found = {os.path.basename(match.path): match.same for match in opened.search(folder / "new.bmp")[0]}
        assert found[name]


def test_failed_files_are_tried_again_by_another_version_or_on_request(folder, path, embedder, monkeypatch):
    read = []
    monkeypatch.setattr(ingest, "read_file", lambda *a, f=read_file: read.append(os.path.basename(a[0])) or f(*a))
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        with closing(sqlite3.connect(path)) as db:
            ((tried,),) = db.execute("SELECT tried FROM pictures WHERE error IS NOT NULL")
            assert db.execute("SELECT COUNT(*) FROM pictures WHERE tried IS NOT NULL").fetchone() == (1,)
        assert tried == f"{formats.decoders()}, at most {opened.max_pixels} pixels"
        assert tried.startswith(f"alnumpy {alnumpy.__version__}, Pillow {PIL.__version__}, ")
        read.clear()
        opened.index(folder)
        assert read == []
        opened.index(folder, retry=True)
        opened.update(retry=True)
        assert read == ["broken.png"] * 2
        for versions in ("alnumpy 9", "alnumpy 9, Pillow 99"):
            read.clear()
            monkeypatch.setattr(formats, "decoders", lambda versions=versions: versions)
            for _ in range(2):
                assert len(opened.index(folder).failed) == 1
            assert read == ["broken.png"]
        read.clear()
        assert counts(opened.index(folder / "below", rehash=True)) == {"recognised": 1}
        assert read == ["c.png"]
        assert counts(opened.update(rehash=True)) == {"recognised": 3}
        assert len(read) == 5


def test_files_passed_over_are_counted_by_kind(folder, path, embedder, monkeypatch):
    (folder / "clip.mp4").write_bytes(b"video")
    (folder / "photo.xyz").write_bytes(b"8BPS\0\1" + bytes(600))
    noise(folder / "scan", 30, format="PNG")
    (folder / "notes.txt").write_text("hello")
    (folder / "notes").write_text("hello")
    opened_files = []

    def kind_of_file(path, f=images.kind_of_file):
        opened_files.append(os.path.basename(path))
        return f(path)

    monkeypatch.setattr(images, "kind_of_file", kind_of_file)
    with Gallery(path, embedder, "a") as opened:
        report = opened.index(folder)
        assert (report.embedded, report.passed_over) == (4, {"video": 1, "PSD": 1})
        assert sorted(opened_files) == ["notes", "photo.xyz", "scan"]  # files whose names do not tell their kind
        assert opened.index(folder).passed_over == report.passed_over
        assert len(opened_files) == 3  # the kinds are remembered
        assert opened.stats()["passed_over"] == {"video": 1, "PSD": 1}
        noise(folder / "photo.xyz", 31, format="PNG")
        (folder / "clip.mp4").unlink()
        assert (opened.index(folder).embedded, opened.stats()["passed_over"]) == (1, {})


def test_a_renamed_folder_whose_letters_are_composed_otherwise(folder, path, embedder):
    composed, apart = (unicodedata.normalize(form, "Žofín") for form in ("NFC", "NFD"))
    (folder / "below").rename(folder / apart)
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        if os.path.exists(folder / composed):
            pytest.skip("a file system that knows one spelling")
        (folder / apart).rename(folder / composed)
        assert counts(opened.index(folder, prune=True)) == {"unchanged": 4}
        assert [os.path.relpath(row.path, folder) for row in opened if not row.path.isascii()] == [f"{composed}/c.png"]
        assert opened.search(folder / composed / "c.png", 1)[0][0].same
