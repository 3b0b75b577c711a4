"""Galleries that were made apart become one."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from galleries import change, noise, small_weights

from alnumpy import Embedder, GalleryError, cli
from alnumpy.copying import merge
from alnumpy.database import Database
from alnumpy.gallery import Gallery


@pytest.fixture
def parts(tmp_path):
    """Two folders of pictures; one picture is in both, byte for byte."""
    for name, seeds in (("one", range(5)), ("two", range(5, 9))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            noise(tmp_path / name / f"{seed}.png", seed)
    shutil.copy(tmp_path / "one" / "0.png", tmp_path / "two" / "copy.png")
    (tmp_path / "two" / "broken.png").write_text("hello")
    return tmp_path / "one", tmp_path / "two"


def index(file, folder, embedder, **settings):
    with Gallery(file, embedder, "a", **settings) as gallery:
        gallery.index(folder)
    return file


def found(file, embedder=None):
    with Gallery(file, embedder) as gallery:
        return [
            (row.path, row.hash, row.width, row.height, row.embedding.tobytes())
            for row in gallery
            if row.embedding is not None
        ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_merged_gallery_is_as_one_of_both_folders(tmp_path, parts, embedder, dtype):
    files = [index(tmp_path / f"{part.name}.db", part, embedder, dtype=dtype) for part in parts]
    both = index(tmp_path / "both.db", parts, embedder, dtype=dtype)
    assert merge(files, tmp_path / "all.db") == 10
    assert found(tmp_path / "all.db") == found(both)
    with Gallery(tmp_path / "all.db", embedder, "a") as merged, Gallery(both, embedder) as whole:
        for query in (parts[0] / "3.png", parts[1] / "7.png"):
            assert merged.search(query, 10) == whole.search(query, 10)
        assert merged.groups(0.5) == whole.groups(0.5)
        assert merged.settings == whole.settings
        before = embedder.embedded
        report = merged.index()  # the folders of both are known; only the unreadable file is new
        assert (report.failed and len(report.failed), embedder.embedded) == (1, before)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def before_and_after_a_change(tmp_path, folder, embedder):
    """Two galleries of a folder, of which one picture was changed in between."""
    old = index(tmp_path / "old.db", folder, embedder)
    noise(folder / "2.png", 77)
    os.utime(folder / "2.png", ns=(2**62, 2**62))
    return old, index(tmp_path / "new.db", folder, embedder)


def test_the_row_of_the_file_that_was_changed_last_stays(tmp_path, parts, embedder):
    old, new = before_and_after_a_change(tmp_path, parts[0], embedder)
    assert found(old) != found(new)
    for name, order in (("a.db", [old, new]), ("b.db", [new, old])):
        assert merge(order, tmp_path / name) == 5
        assert found(tmp_path / name) == found(new)


def test_missing_pictures_and_damaged_rows_are_left_out(tmp_path, parts, embedder):
    files = [index(tmp_path / f"{part.name}.db", part, embedder) for part in parts]
    os.unlink(parts[0] / "4.png")
    index(files[0], parts[0], embedder)
    change(files[1], "UPDATE contents SET embedding = x'00' WHERE rowid = (SELECT MIN(rowid) FROM contents)")
    whole = {row[0] for file in files for row in found(file)}
    assert merge(files, tmp_path / "all.db") == 8
    assert {row[0] for row in found(tmp_path / "all.db")} < whole


def test_an_earlier_row_stays_if_the_later_one_is_damaged(tmp_path, parts, embedder):
    old, new = before_and_after_a_change(tmp_path, parts[0], embedder)
    later = "hash = (SELECT hash FROM pictures WHERE mtime_ns = 4611686018427387904)"
    change(new, f"UPDATE contents SET embedding = substr(embedding, 2) WHERE {later}")
    for name, order in (("a.db", [old, new]), ("b.db", [new, old])):
        assert merge(order, tmp_path / name) == 5
        assert found(tmp_path / name) == found(old)
        with closing(sqlite3.connect(tmp_path / name)) as db:
            assert db.execute("SELECT COUNT(*) FROM contents").fetchone() == (5,)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_damaged_embedding_is_taken_from_another_gallery(tmp_path, parts, embedder, order):
    files = [index(tmp_path / f"{part.name}.db", part, embedder) for part in parts]
    whole = {row[0] for file in files for row in found(file)}
    both = f"hash = (SELECT hash FROM pictures WHERE path = CAST('{parts[0] / '0.png'}' AS BLOB))"
    change(files[0], f"UPDATE contents SET embedding = zeroblob(3) WHERE {both}")
    assert merge([files[i] for i in order], tmp_path / "all.db") == 10
    assert {row[0] for row in found(tmp_path / "all.db")} == whole


def test_relative_paths_stay_relative_beside_the_others(tmp_path, parts, embedder):
    files = [index(tmp_path / f"{part.name}.db", part, embedder, relative=True) for part in parts]
    (tmp_path / "elsewhere").mkdir()
    merge(files, tmp_path / "all.db")
    merge(files, tmp_path / "elsewhere" / "all.db")
    assert found(tmp_path / "all.db") == found(tmp_path / "elsewhere" / "all.db")
    (tmp_path / "moved").mkdir()
    for name in ("all.db", "one", "two"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    assert next(row[0] for row in found(tmp_path / "moved" / "all.db")) == str(tmp_path / "moved" / "one" / "0.png")


def test_galleries_that_cannot_be_merged_are_refused_and_nothing_is_written(tmp_path, parts, embedder):
    first = index(tmp_path / "one.db", parts[0], embedder)
    others = {
        "made with dtype float32, not int8 as": index(tmp_path / "small.db", parts[1], embedder, dtype="int8"),
        "made with flip False, not True as": index(tmp_path / "flip.db", parts[1], embedder, flip=True),
        r"made with weights .*\(\w{12}\), not other.h5 \(\w{12}\) as .*other.db": index(
            tmp_path / "other.db", parts[1], Embedder(small_weights(1), backend="numpy"), weights="other.h5"
        ),
        r"missing.db: no such": tmp_path / "missing.db",
        r"text.db: damaged, or not a database": tmp_path / "text.db",
    }
    (tmp_path / "text.db").write_bytes(b"hello" * 1000)
    before = sorted(os.listdir(tmp_path))
    for message, other in others.items():
        with pytest.raises(GalleryError, match=message):
            merge([first, other], tmp_path / "all.db")
    with pytest.raises(GalleryError, match=r"flip.db: exists already"):
        merge([first, first], tmp_path / "flip.db")
    assert sorted(os.listdir(tmp_path)) == before


def test_an_error_in_reading_names_the_gallery_that_is_read(tmp_path, parts, embedder):
    first, second = (index(tmp_path / f"{part.name}.db", part, embedder) for part in parts)
    with closing(sqlite3.connect(second)) as db, db:
        rows = [(b"/" + b"x" * 100 + b"%05d" % i, b"h" * 32) for i in range(1000)]  # several pages
        sql = "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, 1, 1, ?, '2000', 0)"
        db.executemany(sql, rows)
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'pictures'").fetchone()
    data = bytearray(second.read_bytes())
    root = (page - 1) * size
    assert data[root] == 2  # an inner page of an index; the number of its last child is in bytes 8 to 11
    # The last page is of no kind: SQLite finds it when it comes to its rows, not when it opens the file.
    data[(int.from_bytes(data[root + 8 : root + 12], "big") - 1) * size] = 0
    second.write_bytes(data)
    for order in ([first, second], [second, first]):
        with pytest.raises(GalleryError, match=r"two\.db: damaged"):
            merge(order, tmp_path / "all.db")
        assert not (tmp_path / "all.db").exists()


def test_rows_that_fail_while_another_database_is_written_name_their_own(tmp_path, parts, embedder):
    source = index(tmp_path / "one.db", parts[0], embedder)

    def failing():
        yield b"a"
        raise sqlite3.DatabaseError("database disk image is malformed")

    with (
        closing(Database(source, False)) as db,
        closing(Database(tmp_path / "new.db", True)) as target,
        pytest.raises(GalleryError, match=r"one\.db: damaged"),
    ):
        target.run_each("INSERT INTO meta VALUES (?, '')", ((row,) for row in db._named(failing())))


def test_a_gallery_without_pictures_adds_none(tmp_path, parts, embedder):
    first, second = (index(tmp_path / f"{part.name}.db", part, embedder) for part in parts)
    with Gallery(second, mode="a") as gallery:
        gallery.remove(parts[1])
    for order in ([first, second], [second, first]):
        assert merge(order, tmp_path / "all.db") == 5
        assert found(tmp_path / "all.db") == found(first)
        (tmp_path / "all.db").unlink()
    assert merge([second, second], tmp_path / "none.db") == 0
    with closing(Database(tmp_path / "new.db", True)):
        pass
    with pytest.raises(GalleryError, match=r"new\.db: an empty gallery"):
        merge([first, tmp_path / "new.db"], tmp_path / "all.db")


def test_reduced_galleries_are_merged_if_they_were_reduced_alike(tmp_path, parts, embedder):
    file = index(tmp_path / "both.db", parts, embedder)
    with Gallery(file) as gallery:
        gallery.reduce(tmp_path / "small.db", 3)
    shutil.copy(tmp_path / "small.db", tmp_path / "same.db")
    assert merge([tmp_path / "small.db", tmp_path / "same.db"], tmp_path / "all.db") == 10
    assert found(tmp_path / "all.db", embedder) == found(tmp_path / "small.db", embedder)
    change(tmp_path / "same.db", "UPDATE whitening SET mean = zeroblob(length(mean))")
    with pytest.raises(GalleryError, match="reduced otherwise than"):
        merge([tmp_path / "small.db", tmp_path / "same.db"], tmp_path / "other.db")


def test_a_stopped_merge_leaves_nothing(tmp_path, parts, embedder, monkeypatch):
    files = [index(tmp_path / f"{part.name}.db", part, embedder) for part in parts]
    before = sorted(os.listdir(tmp_path))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("alnumpy.sketch.renew", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(files, tmp_path / "all.db")
    assert sorted(os.listdir(tmp_path)) == before


def test_the_command(tmp_path, parts, embedder, capsys):
    files = [str(index(tmp_path / f"{part.name}.db", part, embedder)) for part in parts]
    assert cli.main(["merge", *files, "--out", str(tmp_path / "all.db")]) == 0
    assert capsys.readouterr().out == "10 pictures of 2 galleries\n"
    assert cli.main(["merge", *files, "--out", str(tmp_path / "all.db")]) == 1
    assert "all.db: exists already" in capsys.readouterr().err
    assert cli.main(["merge", files[0], "--out", str(tmp_path / "b.db")]) == 2
    assert "two galleries or more" in capsys.readouterr().err
