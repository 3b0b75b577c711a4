"""Galleries as files for other programs."""

from __future__ import annotations

import base64
import csv
import json
import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from zipfile import ZipFile

import numpy as np
import pytest
from galleries import change, noise, small_weights

from alnumpy import Embedder, GalleryError, MissingExtraError, cli, exporting
from alnumpy.exporting import export
from alnumpy.gallery import Gallery

FORMATS = ["parquet", "npz", "jsonl", "csv"]


@pytest.fixture
def made(tmp_path, path, embedder):
    """Returns a function that makes a gallery of five pictures, one with a name that is not UTF-8, and two faults."""

    def make(**settings):
        root = tmp_path / "pictures"
        root.mkdir()
        for i in range(5):
            noise(root / f"{i}, ä.png", i, (12, 9 + i))
        os.rename(root / "4, ä.png", os.fsencode(root) + b"/4\xff.png")
        noise(root / "gone.png", 9)
        (root / "broken.png").write_text("hello")
        for i in range(5):
            os.utime(os.fsencode(root) + (b"/4\xff.png" if i == 4 else f"/{i}, ä.png".encode()), (0, 1_700_000_000 + i))
        with Gallery(path, embedder, "a", **settings) as gallery:
            gallery.index(root)
            (root / "gone.png").unlink()
            gallery.index(root)
            return [row for row in gallery if row.error is None and not row.vanished]

    return make


def load(file, format):
    """An exported file as a dictionary of lists; the vectors float32 (n, dimension)."""
    if format == "parquet":
        columns = pytest.importorskip("pyarrow.parquet").read_table(file).to_pydict()
    elif format == "npz":
        with np.load(file, allow_pickle=False) as arrays:
            assert arrays["vector"].dtype == np.float32
            columns = {name: arrays[name].tolist() for name in arrays}
    else:
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
            if format == "csv":
                rows = [row | {"vector": json.loads(row["vector"])} for row in csv.DictReader(lines)]
                rows = [row | {name: int(row[name]) for name in ("size", "width", "height")} for row in rows]
            else:
                rows = [{"path_base64": ""} | json.loads(line) for line in lines]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    columns["vector"] = np.array(columns.get("vector", ()), np.float32)
    return columns


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_picture_that_can_be_found_is_a_row(made, path, tmp_path, format, dtype, monkeypatch):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(exporting, "PART", 2)  # five rows are several parts
    rows = made(dtype=dtype)
    assert export(path, tmp_path / "out", format) == (5, [])
    found = load(tmp_path / "out", format)
    assert set(found) == {"path", "hash", "size", "date", "width", "height", "vector", "path_base64"}
    whole = [os.fsencode(row.path) for row in rows]
    assert whole[4].endswith(b"4\xff.png")
    text = "surrogateescape" if format == "csv" else "replace"  # CSV has the bytes themselves
    assert found["path"] == [name.decode("utf-8", text) for name in whole]
    assert found["path_base64"] == [""] * 4 + [base64.b64encode(whole[4]).decode()]
    for name in ("hash", "size", "width", "height"):
        assert found[name] == [getattr(row, name) for row in rows]
    assert found["height"] == [9, 10, 11, 12, 13]
    assert [date[-2:] for date in found["date"]] == ["20", "21", "22", "23", "24"]
    assert {date[:10] for date in found["date"]} <= {"2023-11-14", "2023-11-15"}  # local time
    np.testing.assert_array_equal(found["vector"], [row.embedding for row in rows])
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_gallery_has_no_rows(path, tmp_path, embedder, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    noise(tmp_path / "only.png", 1)
    with Gallery(path, embedder, "a") as gallery:
        gallery.index(tmp_path / "only.png")
        gallery.remove(tmp_path / "only.png")
    assert export(path, tmp_path / "out", format) == (0, [])
    assert len(load(tmp_path / "out", format)["vector"]) == 0
    if format == "npz":
        with np.load(tmp_path / "out", allow_pickle=False) as arrays:
            assert (arrays["vector"].shape, arrays["path"].shape) == ((0, 24), (0,))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_damaged_rows_are_left_out_and_named(made, path, tmp_path, format, dtype, capsys):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    rows = made(dtype=dtype)
    infinite = {"float32": b"\xff" * 96, "float16": b"\xff" * 48, "int8": b"\xff" * 28}[dtype]
    hashes = [bytes.fromhex(row.hash) for row in rows]
    change(path, "UPDATE contents SET embedding = ? WHERE hash = ?", infinite, hashes[0])
    change(path, "UPDATE contents SET embedding = ? WHERE hash = ?", b"short", hashes[1])
    change(path, "DELETE FROM contents WHERE hash = ?", hashes[2])
    code = cli.main(["export", "--db", str(path), "--format", format, "--output", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "2 pictures\n"), err
    assert err.startswith(f"alnumpy: {rows[0].path}: left out: its row is damaged")
    assert "and 2 more" in err
    found = load(tmp_path / "out", format)
    assert found["hash"] == [row.hash for row in rows[3:]]
    np.testing.assert_array_equal(found["vector"], [row.embedding for row in rows[3:]])


@pytest.mark.parametrize("format", FORMATS)
def test_a_failed_export_leaves_the_old_file(made, path, tmp_path, format, monkeypatch):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    made()
    (tmp_path / "out").write_text("old")
    real, calls = exporting.packed.decode, []

    def failing(*args):
        calls.append(1)
        if len(calls) > (8 if format == "npz" else 3):  # npz reads twice
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(exporting.packed, "decode", failing)
    with pytest.raises(OSError, match="No space left"):
        export(path, tmp_path / "out", format)
    assert (tmp_path / "out").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_an_npz_needs_no_room_elsewhere(made, path, tmp_path, monkeypatch):
    rows = made()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert export(path, tmp_path / "out.npz", "npz") == (len(rows), [])
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".", "tmp"))]


def test_galleries_that_cannot_be_exported_are_named(made, path, tmp_path, monkeypatch, capsys):
    with pytest.raises(GalleryError, match=r"no\.db: no such gallery"):
        export(tmp_path / "no.db", tmp_path / "out", "csv")
    (tmp_path / "text.db").write_text("hello " * 1000)
    with pytest.raises(GalleryError, match=r"text\.db: damaged, or not a database"):
        export(tmp_path / "text.db", tmp_path / "out", "csv")
    made()
    before = path.read_bytes()
    assert cli.main(["export", "--db", str(path), "--format", "csv", "--output", str(path)]) == 2
    assert capsys.readouterr().err == f"alnumpy: {path} is the gallery itself\n"
    assert path.read_bytes() == before
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"Parquet needs pyarrow: pip install 'alnumpy\[parquet\]'"):
        export(path, tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


def test_an_npz_has_members_that_numpy_wrote_the_same_way(made, path, tmp_path):
    rows = made()
    export(path, tmp_path / "out.npz", "npz")
    np.save(tmp_path / "vectors.npy", np.stack([row.embedding for row in rows]))
    with ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None
        assert archive.read("vector.npy") == (tmp_path / "vectors.npy").read_bytes()


def test_the_date_is_that_of_the_exif_data(tmp_path, path):
    from PIL import Image

    exif = Image.Exif()
    exif[306] = "2019:07:08 09:10:11"
    noise(tmp_path / "a.jpg", 0, exif=exif)
    with Gallery(path, Embedder(small_weights(), backend="numpy"), "a") as gallery:
        gallery.index(tmp_path / "a.jpg")
    export(path, tmp_path / "out", "jsonl")
    assert load(tmp_path / "out", "jsonl")["date"] == ["2019-07-08T09:10:11"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT taken FROM contents").fetchall() == [("2019-07-08T09:10:11",)]
