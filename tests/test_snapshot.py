"""Search by sketches: exact for any embeddings, correct whatever is written, and in constant memory."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing

import numpy as np
import pytest
from conftest import given, st

from alnumpy import packed, pairs, sketch, snapshot
from alnumpy.database import MIGRATIONS, Database, migrate
from alnumpy.packed import decode, encode, row_length
from alnumpy.settings import Settings
from alnumpy.snapshot import Snapshot

SMALL = {  # with these, a few embeddings make several blocks, parts, pieces and rounds
    packed: {"BLOCK": 5},
    pairs: {"TILE": 7, "REFINED": 11, "LEADING": 1},
    sketch: {"BLOCK": 16, "COMPONENTS": 2, "UNSKETCHED": 1, "CHUNK": 3},
    snapshot: {"PART": 32, "BOUNDS": 100, "GROUP": 4, "CHUNK": 3},
}


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        for module, values in SMALL.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield


def settings(dimension, dtype):
    return Settings("small", "", dimension, 8, False, "full", "", dtype)


def path_of(i):
    return b"/p/%05d.jpg" % (i * 7919 % 99991)  # in another order than the rowids


def fill(db, vectors, dtype, first=0):
    for i, row in enumerate(encode(vectors, dtype), first):
        hash = hashlib.sha256(b"%d" % i).digest()
        db.run("INSERT INTO contents (hash, width, height, embedding) VALUES (?, 1, 1, ?)", [hash, row.tobytes()])
        db.run("INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, 1, 1, ?, '', 0)",
               [path_of(i), hash])  # fmt: skip


def wanted(db, query, k, dtype, dimension):
    """The k nearest by comparison with all rows."""
    found = []
    sql = "SELECT path, embedding FROM pictures JOIN contents USING (hash) WHERE error IS NULL AND vanished = 0"
    for path, blob in db.rows(sql):
        if isinstance(path, bytes) and isinstance(blob, bytes) and len(blob) == row_length(dimension, dtype):
            row = np.frombuffer(blob, np.uint8)[None]
            if np.isfinite(packed.squared_norms(row, dtype)[0]):
                found.append((float(np.linalg.norm(decode(row, dtype) - query, axis=1)[0]), os.fsdecode(path)))
    return sorted(found)[:k]


def check(db, queries, k, dtype):
    """Searches three times, the last time from memory, and compares with a comparison with all rows."""
    dimension = queries.shape[1]
    with db.reading():
        found = Snapshot(db, settings(dimension, dtype))
        expected = [wanted(db, query, k, dtype, dimension) for query in queries]
        for _ in range(3):
            results = found.search(queries, k, [None] * len(queries))
            assert [[(match.distance, match.path) for match in matches] for matches in results] == expected
        return found


KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "equal": lambda rng, shape: np.repeat(rng.normal(size=(1, shape[1])), shape[0], 0),
    "zeros": lambda rng, shape: np.zeros(shape),
    "whole": lambda rng, shape: rng.integers(-2, 3, shape) * (rng.random(shape) < 0.2),
    "close": lambda rng, shape: 1 + 1e-6 * rng.normal(size=shape),
    "far": lambda rng, shape: 3000 + rng.integers(-5, 6, shape),
    "large": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(0, 18, (shape[0], 1)),
    "outlier": lambda rng, shape: rng.normal(size=shape) * np.where(np.arange(shape[0]) == 3, 1e17, 1)[:, None],
    "tiny": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-42, -15, (shape[0], 1)),
    "clusters": lambda rng, shape: (
        rng.normal(size=(3, shape[1]))[rng.integers(0, 3, shape[0])] * 100 + rng.normal(size=shape) * 1e-3
    ),
    "line": lambda rng, shape: rng.normal(size=(shape[0], 1)) * rng.normal(size=(1, shape[1])),
}


@pytest.mark.parametrize("dtype", packed.DTYPES)
@given(
    st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)), st.integers(1, 90), st.integers(33, 40),
    st.integers(1, 100), st.integers(1, 3), st.integers(0, 2**32),
)  # fmt: skip
def test_search_is_exact(dtype, kind, queried, count, dimension, k, queries, seed):
    rng = np.random.default_rng(seed)
    vectors = KINDS[kind](rng, (count, dimension)).astype(np.float32)
    asked = [KINDS[queried](rng, (queries, dimension)), vectors[:1] * (1 + 1e-7), vectors[-1:]]
    with tempfile.TemporaryDirectory() as folder, closing(Database(os.path.join(folder, "g.db"), True)) as db:
        db.run("PRAGMA synchronous = OFF")
        with db.transaction():
            fill(db, vectors, dtype)
            sketch.renew(db, settings(dimension, dtype))
        assert db.one("SELECT COUNT(*) FROM unsketched") == 0
        assert check(db, np.concatenate(asked).astype(np.float32), k, dtype).basis is not None


@pytest.fixture
def db(tmp_path):
    with closing(Database(tmp_path / "g.db", True)) as db:
        db.run("PRAGMA synchronous = OFF")
        yield db


@pytest.mark.parametrize("dtype", packed.DTYPES)
def test_search_stays_exact_after_any_change(db, dtype):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(3, 40)).astype(np.float32)

    def write(sql, *values):
        with db.transaction():
            db.run(sql, values)

    def renew():
        with db.transaction():
            sketch.renew(db, settings(40, dtype))

    with db.transaction():
        fill(db, rng.normal(size=(100, 40)).astype(np.float32), dtype)
    assert check(db, queries, 7, dtype).basis is None  # whole rows only
    renew()
    assert check(db, queries, 7, dtype).basis is not None
    changes = (
        "DELETE FROM contents WHERE rowid % 5 = 1",  # their pictures have no embedding now
        "DELETE FROM pictures WHERE hash IN (SELECT hash FROM contents WHERE rowid % 7 = 0)",
        "UPDATE pictures SET vanished = 1 WHERE path < x'2f702f3530'",
        "UPDATE pictures SET error = 'E' WHERE path > x'2f702f38'",
        "UPDATE contents SET rowid = rowid + 1000 WHERE rowid BETWEEN 20 AND 30",
        "UPDATE contents SET embedding = x'00' WHERE rowid % 9 = 2",
        "UPDATE contents SET embedding = 'text' WHERE rowid % 9 = 4",
        "UPDATE contents SET embedding = randomblob(length(embedding)) WHERE rowid % 9 = 8",
        "UPDATE pictures SET vanished = 0, error = NULL",
        "DELETE FROM contents WHERE rowid > 90",
        "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) "
        "SELECT path || x'31', 1, 1, hash, '', 0 FROM pictures WHERE hash IN (SELECT hash FROM contents)",
        "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.hash = contents.hash)",
    )
    for number, changing in enumerate(changes):
        write(changing)
        check(db, queries, 1000, dtype)
        with db.transaction():  # takes rowids that are free again
            fill(db, rng.normal(size=(3, 40)).astype(np.float32), dtype, 1000 + 3 * number)
        check(db, queries, 7, dtype)
        renew()
        assert db.one("SELECT COUNT(*) FROM unsketched") == 0
        check(db, queries, 7, dtype)
    db.run("VACUUM")
    check(db, queries, 7, dtype)
    write("UPDATE sketches SET codes = x'00' WHERE block = 2")
    write("UPDATE sketches SET numbers = 'text' WHERE block = 3")
    check(db, queries, 7, dtype)
    write("UPDATE basis SET axes = zeroblob(length(axes))")  # this basis bounds nothing
    assert check(db, queries, 7, dtype).basis is None
    with db.transaction():
        fill(db, rng.normal(size=(400, 40)).astype(np.float32), dtype, first=5000)
    renew()  # learns a new basis
    assert check(db, queries, 7, dtype).basis is not None
    write("DELETE FROM contents")
    check(db, queries, 7, dtype)


def test_damaged_rows_are_listed_with_and_without_sketches(db):
    with db.transaction():
        fill(db, np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32), "float32")
        sketch.renew(db, settings(40, "float32"))
        db.run("UPDATE contents SET embedding = x'00' WHERE rowid = 50")
        row = encode(np.full((1, 40), np.nan, np.float32), "float32").tobytes()
        db.run("UPDATE contents SET embedding = ? WHERE rowid = 20", [row])
        db.run("DELETE FROM contents WHERE rowid = 30")
        db.run("INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) SELECT 17, 1, 1, hash, '', 0 "
               "FROM contents WHERE rowid = 1")  # fmt: skip
    wrong, infinite = "its embedding is not of 40 float32", "its embedding is not finite"
    lost = sorted([os.fsdecode(path_of(29)), os.fsdecode(path_of(49))])
    expected = [*((path, wrong) for path in lost), ("17", wrong), (os.fsdecode(path_of(19)), infinite)]
    for _ in range(2):
        found = check(db, np.zeros((1, 40), np.float32), 60, "float32")
        assert found.damaged == expected
        assert Snapshot(db, settings(40, "float32")).damaged == expected  # even without a search
        with db.transaction():
            sketch.renew(db, settings(40, "float32"))
    with db.transaction():
        db.run("DELETE FROM basis")
    assert Snapshot(db, settings(40, "float32")).damaged == expected


def test_a_gallery_of_an_older_version_is_searched_and_gets_sketches(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as old:
        migrate(old, MIGRATIONS[:2])
        for i, row in enumerate(encode(vectors, "float32")):
            hash = hashlib.sha256(b"%d" % i).digest()
            old.execute("INSERT INTO contents VALUES (?, 1, 1, ?)", [hash, row.tobytes()])
            old.execute("INSERT INTO pictures VALUES (?, 1, 1, ?, NULL, '', 0)", [path_of(i), hash])
    with closing(Database(tmp_path / "old.db", False)) as reader:
        assert check(reader, vectors[:3], 5, "float32").basis is None
    with closing(Database(tmp_path / "old.db", True)) as writer:
        with writer.transaction():
            sketch.renew(writer, settings(40, "float32"))
        assert check(writer, vectors[:3], 5, "float32").basis is not None


def test_few_rows_are_read(db, monkeypatch):
    """The least important components come last, so that the first ones find the nearest."""
    monkeypatch.setattr(sketch, "COMPONENTS", 16)
    monkeypatch.setattr(snapshot, "PART", 4096)
    spread = 0.8 ** np.arange(64)
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(2000, 64)) * spread).astype(np.float32)
    with db.transaction():
        fill(db, vectors, "float32")
        sketch.renew(db, settings(64, "float32"))
    read = []
    monkeypatch.setattr(
        Snapshot, "rows", lambda self, rowids, rows=Snapshot.rows: read.append(rowids) or rows(self, rowids)
    )
    check(db, (rng.normal(size=(1, 64)) * spread).astype(np.float32), 10, "float32")
    assert sum(map(len, read)) / 3 < 60


@pytest.mark.parametrize("dtype", packed.DTYPES)
@given(
    st.sampled_from(sorted(KINDS)), st.integers(1, 60), st.integers(33, 40), st.floats(0, 2), st.booleans(),
    st.integers(0, 2**32),
)  # fmt: skip
def test_pairs_are_exact(dtype, kind, count, dimension, factor, sketched, seed):
    vectors = KINDS[kind](np.random.default_rng(seed), (count, dimension)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, closing(Database(os.path.join(folder, "g.db"), True)) as db:
        db.run("PRAGMA synchronous = OFF")
        with db.transaction():
            fill(db, vectors, dtype)
            if sketched:
                sketch.renew(db, settings(dimension, dtype))
        stored = decode(encode(vectors, dtype), dtype)
        good = np.flatnonzero(np.isfinite(packed.squared_norms(encode(vectors, dtype), dtype)))
        distances = {
            (i + 1, j + 1): float(np.linalg.norm(stored[i : i + 1] - stored[j], axis=1)[0])
            for i in good
            for j in good
            if i < j
        }
        threshold = factor * float(np.median([*distances.values(), 0]))
        found = {}
        with db.reading():
            for part in pairs.pairs(Snapshot(db, settings(dimension, dtype)), threshold):
                for i, j, distance in zip(*(column.tolist() for column in part), strict=True):
                    assert found.setdefault((min(i, j), max(i, j)), distance) is distance  # each pair once
        assert found == {pair: distance for pair, distance in distances.items() if distance <= threshold}


CHILD = """
import resource, sys
import numpy as np
from alnumpy.gallery import Gallery
with Gallery(sys.argv[1]) as gallery:
    queries = np.random.default_rng(1).normal(size=(3, 1280)) * 0.99 ** np.arange(1280)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gallery.search(queries, 10)
    gallery.damaged
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("sketched", [False, True])
def test_a_search_takes_little_memory(tmp_path, sketched, monkeypatch):
    pytest.importorskip("resource")
    for module, name, value in ((sketch, "BLOCK", 4096), (sketch, "COMPONENTS", 256), (packed, "BLOCK", 512)):
        monkeypatch.setattr(module, name, value)
    rng = np.random.default_rng(0)
    with closing(Database(tmp_path / "g.db", True)) as db:
        db.run("PRAGMA synchronous = OFF")
        of = settings(1280, "float32")
        with db.transaction():
            db.set_meta("settings", of.to_json())
            for first in range(0, 8000, 1000):  # 41 MB
                vectors = rng.normal(size=(1000, 1280)).astype(np.float32) * np.float32(0.99) ** np.arange(1280)
                fill(db, vectors.astype(np.float32), "float32", first)
            if sketched:
                sketch.renew(db, of)
    run = [sys.executable, "-c", CHILD, tmp_path / "g.db"]
    kilobytes = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert kilobytes < 20_000
