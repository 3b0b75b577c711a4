"""The gallery's file: foreign, damaged, older, read-only, and what SQLite says about it."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from galleries import change, counts, kill_a_writer, names

from alnumpy import GalleryError, database, listing
from alnumpy.database import MIGRATIONS, Database, migrate
from alnumpy.gallery import Gallery


def test_a_gallery_whose_name_is_not_text_and_which_was_moved(folder, tmp_path, embedder):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff?#%20 '\n.db")
    with Gallery(strange, embedder, "a") as opened:
        opened.index(folder)
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"pictures", b"\xff?#%20 '\n.db", b"\xff?#%20 '\n.db-lock"]
    os.rename(strange, tmp_path / "moved.db")
    with Gallery(tmp_path / "moved.db", embedder, "a") as opened:
        assert counts(opened.index(folder)) == {"unchanged": 4}


def test_the_file_is_made_with_the_umask(path, embedder):
    before = os.umask(0o027)
    try:
        with Gallery(path, embedder, "a"):
            assert {stat.S_IMODE(os.stat(file).st_mode) & 0o137 for file in path.parent.iterdir()} == {0}
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_a_gallery_in_a_read_only_folder_is_searched(folder, embedder, tmp_path):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "gallery.db"
        with Gallery(path, embedder, "a") as opened:
            opened.index(folder)
        os.chmod(path, 0o644)
        copy = tmp_path / "copy.db"
        shutil.copy(path, copy)

        def search():
            os.chmod(name, 0o555)
            code = (
                "import os, sys; import numpy as np; from alnumpy.gallery import Gallery\n"
                "def search(path):\n"
                "    with Gallery(path) as opened: return len(opened.search(np.zeros(24))[0])\n"
                # Python may be in a folder that only root can read, so root imports everything first by doing the same
                "search(sys.argv[2]); os.getuid() or os.setuid(65534); print(search(sys.argv[1]))"
            )
            done = subprocess.run([sys.executable, "-c", code, path, copy], capture_output=True, text=True, check=False)
            os.chmod(name, 0o755)
            return done.stdout.strip() or done.stderr.splitlines()[-1]

        assert search() == "3"
        os.chmod(path, 0)
        assert "GalleryError: " in (refused := search())
        assert "gallery.db: cannot be opened" in refused
        os.chmod(path, 0o644)
        change(path, "PRAGMA journal_mode = WAL")  # a killed writer leaves it so
        assert sorted(os.listdir(name)) == ["gallery.db", "gallery.db-lock"]
        assert search() == "3"
        Path(name, "gallery.db-wal").write_bytes(b"unfinished")  # the file alone may then be incomplete
        os.chmod(Path(name, "gallery.db-wal"), 0o600)
        assert "GalleryError" in search()
        os.unlink(Path(name, "gallery.db-wal"))
        change(path, "PRAGMA journal_mode = DELETE")
        kill_a_writer(path)
        os.chmod(Path(name, "gallery.db-journal"), 0o644)
        assert "a writer was stopped half way" in search()
        with Gallery(path) as opened:
            assert len(opened.search(np.zeros(24))[0]) == 3


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
        change(path, "PRAGMA journal_mode = WAL")  # a reader would leave two more files
    refused("not an alnumpy gallery; make one with: alnumpy index")
    change(path, "PRAGMA application_id = 7")
    refused("not an alnumpy gallery")

    def made(*changes):
        with Gallery(path, embedder, "a"):
            pass
        for sql in changes:
            change(path, sql)

    newer = len(MIGRATIONS) + 1
    made(f"PRAGMA user_version = {newer}")
    refused(f"version {newer}, this alnumpy reads {newer - 1}; update alnumpy")
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
        (sqlite3.OperationalError("database is locked"), "on many network shares; keep the gallery on a local disk"),
        (sqlite3.OperationalError("locking protocol"), "network shares cannot; keep the gallery on a local disk"),
        (sqlite3.OperationalError("database or disk is full"), "make room and run again: what was stored before is"),
        (sqlite3.OperationalError("disk I/O error"), "a full or failing disk; what was stored before is safe"),
        (sqlite3.ProgrammingError("wrong thread"), "wrong thread"),
        (sqlite3.InterfaceError("bad parameter"), "bad parameter"),
        (sqlite3.DatabaseError("malformed"), r"damaged, or not a database \(malformed\); restore it"),
    ],
)
def test_sqlite_errors_come_with_a_remedy(path, embedder, monkeypatch, error, message):
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
                opened.groups(1)
                opened.stats()
                list(opened)
                opened.index(folder, prune=True)
        except GalleryError:
            refused += 1
    assert refused > 50


def test_migrations_run_in_order_and_once():
    scripts = ["CREATE TABLE t (a); INSERT INTO t VALUES (1)", "ALTER TABLE t ADD COLUMN b; UPDATE t SET b = a + 1"]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        migrate(db, scripts[:1])
        migrate(db, scripts)
        migrate(db, scripts)
        assert db.execute("SELECT * FROM t").fetchall() == [(1, 2)]
        with pytest.raises(sqlite3.OperationalError):
            migrate(db, [*scripts, "DELETE FROM t; SELECT nonsense"])
        assert db.execute("SELECT * FROM t").fetchall() == [(1, 2)]  # all of it or nothing
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


def make_older(path, version):
    """Turns a gallery into one that an earlier alnumpy made."""
    made = path.with_name("older.db")
    with closing(sqlite3.connect(made, isolation_level=None)) as db:
        migrate(db, MIGRATIONS[:version])
        db.execute("ATTACH ? AS new", [os.fspath(path)])
        for table, columns in OLDEST.items():
            db.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM new.{table}")
        db.execute("DELETE FROM meta WHERE key IN ('rules', 'folders')")
        if version == 1:
            text = json.dumps({key: value for key, value in json.loads(setting(db)).items() if key not in LATER})
            db.execute("UPDATE meta SET value = ? WHERE key = 'settings'", [text])
    os.replace(made, path)


OLDEST = {
    "meta": "key, value",
    "contents": "hash, width, height, embedding",
    "pictures": "path, size, mtime_ns, hash, error, added, vanished",
}
LATER = ("flip", "reduced")


def setting(db):
    return db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()[0]


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_an_older_version_is_read_as_it_is_and_migrated_by_a_writer(folder, path, embedder, version):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        opened.remove(folder / "b.png")
    make_older(path, version)
    before = path.read_bytes()
    with Gallery(path, embedder) as opened:
        assert names(opened.search(folder / "a.png", 1)[0]) == ["a.png"]
        assert (opened.settings.flip, opened.settings.reduced) == (False, False)
        assert (len(opened), opened.stats()["passed_over"], opened.stats()["hidden"]) == (3, {}, False)
        opened.reduce(path.with_name("small.db"), 1)
    assert path.read_bytes() == before
    with Gallery(path, embedder, "a") as opened:
        assert len(opened.search(folder / "a.png")[0]) == 2
        report = opened.index(folder)
        # Failed files are tried again, since the decoders that failed are not recorded.
        assert (counts(report), len(report.failed)) == ({"embedded": 1, "unchanged": 2}, 1)
        assert counts(opened.index(folder)) == {"unchanged": 4}
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert db.execute("SELECT * FROM whitening").fetchall() == []
        assert db.execute("SELECT COUNT(*) FROM pictures WHERE ctime_ns IS NULL").fetchone() == (0,)
        assert db.execute("SELECT COUNT(*) FROM disks").fetchone() == (2,)


def test_paths_out_of_order_end_a_loop(folder, path, embedder, monkeypatch):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        rows = opened._reader.db.rows
        again = [0, -math.inf, 2]  # whatever the last path was
        monkeypatch.setattr(opened._reader.db, "rows", lambda sql, values=(): rows(sql, values and again))
        with pytest.raises(GalleryError, match=r"gallery.db: damaged; restore it"):
            list(opened)


def test_damaged_paths_sort_as_in_sqlite():
    values = [b"b", "b", 2, None, -math.inf, b"a", "", 1.5]
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE t (value)")
        db.executemany("INSERT INTO t VALUES (?)", [[value] for value in values])
        expected = [value for (value,) in db.execute("SELECT value FROM t ORDER BY value")]
    assert sorted(values, key=listing._order) == expected


def test_a_reader_sees_the_tables_of_one_moment(tmp_path, monkeypatch):
    """A writer that makes the tables, script by script, must not disturb the queries of a reader."""
    path = tmp_path / "gallery.db"
    Database(path, True).close()
    schema = database._schema
    refused = []

    def meanwhile(connection):
        with closing(sqlite3.connect(path, timeout=0)) as other:
            try:
                other.execute("PRAGMA user_version = 1")
            except sqlite3.OperationalError as error:
                refused.append(str(error))
        monkeypatch.setattr(database, "_schema", schema)
        return schema(connection)

    monkeypatch.setattr(database, "_schema", meanwhile)
    Database(path, False).close()
    assert refused == ["database is locked"]
