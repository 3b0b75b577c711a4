"""The options of ``alnumpy search`` that narrow or combine searches."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import time
from contextlib import closing

import numpy as np
import pytest
from conftest import DATA, DIGITS
from PIL import ExifTags, Image
from test_cli import run

import alnumpy
from alnumpy import dates, filters
from alnumpy.gallery import Gallery

NAMES = ("a.png", "b.png", "below/c.png", "below/d.png")


@pytest.fixture
def desk(tmp_path):
    """Four pictures of four days, two by EXIF and two by the file's time, in two folders, and a gallery of them."""
    (tmp_path / "p" / "below").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        if i % 2:
            exif = Image.Exif()
            exif[0x8769] = {dates.ORIGINAL: f"2023:0{i}:02 03:04:05"}
            Image.open(DIGITS[5 * i]).save(tmp_path / "p" / name, exif=exif)
        else:
            shutil.copy(DIGITS[5 * i], tmp_path / "p" / name)
        at = time.mktime((2024, i + 1, 15, 12, 0, 0, 0, 0, -1))
        os.utime(tmp_path / "p" / name, (at, at))
    assert run("index", "p", "--db", "g.db", cwd=tmp_path)[0] == 0
    return tmp_path


def found(desk, *options, query="p/a.png", code=0):
    """The names that a search finds, nearest first."""
    result = run("search", query, "--db", "g.db", "--json", *options, cwd=desk)
    assert result[0] == code
    return [os.path.relpath(row["path"], desk / "p") for answer in json.loads(result[1]) for row in answer["results"]]


def test_in_folders(desk):
    assert set(found(desk)) == set(NAMES)
    assert set(found(desk, "--in", "p/below")) == {"below/c.png", "below/d.png"}
    assert set(found(desk, "--in", "p/below", "--in", "p/b.png")) == {"b.png", "below/c.png", "below/d.png"}
    code, out, err = run("search", "p/a.png", "--db", "g.db", "--in", "p/belo", cwd=desk)
    assert (code, out) == (1, "")
    assert "p/belo: not in the gallery" in err


def test_since_and_until(desk):
    """a: 15 January 2024; b: 2 January 2023 by EXIF; c: 15 March 2024; d: 2 March 2023 by EXIF."""
    assert set(found(desk, "--since", "2024")) == {"a.png", "below/c.png"}
    assert set(found(desk, "--until", "2023")) == {"b.png", "below/d.png"}
    assert found(desk, "--since", "2023-03", "--until", "2023-03") == ["below/d.png"]
    assert found(desk, "--since", "2023-03-02T03:04:05", "--until", "2023-03-02") == ["below/d.png"]
    assert found(desk, "--since", "2023-03-02T03:04:06", "--until", "2023-12-31") == []
    assert set(found(desk, "--since", "2024-01-16", "--until", "2024-03-15")) == {"below/c.png"}
    for wrong in ("yesterday", "2024-13", "2024-02-30", "24", "2024-1-1"):
        assert run("search", "p/a.png", "--db", "g.db", "--since", wrong, cwd=desk)[0] == 2


def test_a_gallery_of_an_earlier_version_gets_dates(desk):
    with closing(sqlite3.connect(desk / "g.db", isolation_level=None)) as db:
        db.execute("UPDATE contents SET taken = NULL")
    assert found(desk, "--until", "2023") == []
    assert "4 unchanged" in run("index", "p", "--db", "g.db", cwd=desk)[1]
    assert set(found(desk, "--until", "2023")) == {"b.png", "below/d.png"}
    run("reduce", "--db", "g.db", "--dimensions", "2", "--out", "small.db", cwd=desk)
    shutil.move(desk / "small.db", desk / "g.db")
    assert set(found(desk, "--until", "2023")) == {"b.png", "below/d.png"}


def test_dates():
    assert dates.parse("2024:05:31 12:30:00") == "2024-05-31T12:30:00"
    for wrong in ("0000:00:00 00:00:00", "2024:02:30 00:00:00", "", "    :  :     :  :  ", None, b"2024", 3):
        assert dates.parse(wrong) is None
    assert [filters.is_date(text) for text in ("2024", "2024-05", "2024-05-31T12:30", "2024-", "")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "heic"])
def test_dates_in_exif_data(tmp_path, suffix):
    if suffix == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a.{suffix}"

    def save(original):
        exif = Image.Exif()
        exif[ExifTags.Base.DateTime] = "2024:01:01 00:00:00"
        exif[0x8769] = {dates.DIGITIZED: "2023:02:30 03:04:05", dates.ORIGINAL: original}
        if suffix == "heic":  # Pillow cannot write EXIF here: it goes into a part that decoders skip
            data = exif.tobytes()
            part = struct.pack(">I4s", len(data) + 8, b"free") + data
            path.write_bytes((DATA / "heic" / "plain.heic").read_bytes() + part)
        else:
            Image.new("RGB", (64, 48)).save(path, exif=exif.tobytes())

    save("2022:05:06 07:08:09")
    assert dates.taken(str(path)) == "2022-05-06T07:08:09"
    save("2022:05:99 07:08:09")
    assert dates.taken(str(path)) == "2024-01-01T00:00:00"  # the date of digitizing is not used either
    path.write_bytes(path.read_bytes()[:40])
    assert dates.taken(str(path)) == dates.taken(str(tmp_path / "none")) == ""


def test_distance_and_copies(desk):
    shutil.copy(desk / "p" / "a.png", desk / "p" / "copy.png")
    run("index", "p", "--db", "g.db", cwd=desk)
    assert set(found(desk, "--max-distance", "0")) == {"a.png", "copy.png"}
    others = found(desk, "--skip-same")
    assert set(others) == set(NAMES[1:])
    assert found(desk, "-k", "2", "--skip-same") == others[:2]
    assert found(desk, "-k", "2", "--skip-same", "--in", "p") == others[:2]
    code, out, err = run("search", "p/a.png", "--db", "g.db", "--skip-same", "--max-distance", "0", cwd=desk)
    assert (code, out) == (0, "")
    assert "no picture meets" in err


def test_filters_rank_like_a_search_without_them(desk):
    plain = run("search", "p", "--db", "g.db", "--csv", cwd=desk)
    assert plain == run("search", "p", "--db", "g.db", "--csv", "--in", "p", cwd=desk)
    assert plain == run("search", "p", "--db", "g.db", "--csv", "--since", "0001", cwd=desk)


def test_folders_of_queries(desk):
    answers = json.loads(run("search", "p", "--recursive", "--db", "g.db", "--json", "-k", "1", cwd=desk)[1])
    assert [answer["query"] for answer in answers] == [f"p/{name}" for name in NAMES]
    assert [answer["results"][0]["path"] for answer in answers] == [str(desk / "p" / name) for name in NAMES]


def test_one_ranking_by_the_mean(desk):
    with Gallery(desk / "g.db", alnumpy.load()) as gallery:
        vectors = {os.path.relpath(picture.path, desk / "p"): picture.embedding for picture in gallery}
        centre = (vectors["a.png"] + vectors["below/d.png"]) / 2
        expected = sorted(vectors, key=lambda name: np.linalg.norm(vectors[name] - centre))
    answers = json.loads(run("search", "p/a.png", "p/below/d.png", "--mean", "--db", "g.db", "--json", cwd=desk)[1])
    assert [os.path.relpath(row["path"], desk / "p") for answer in answers for row in answer["results"]] == expected
    same = {os.path.relpath(row["path"], desk / "p") for row in answers[0]["results"] if row["same"]}
    assert same == {"a.png", "below/d.png"}
    code, out, err = run("search", "p/a.png", "p/none.png", "--mean", "--db", "g.db", cwd=desk)
    assert (code, out, err) == (1, "", "alnumpy: p/none.png: No such file or directory\n")


def test_unlike_another(desk):
    with Gallery(desk / "g.db", alnumpy.load()) as gallery:
        vectors = {os.path.relpath(picture.path, desk / "p"): picture.embedding for picture in gallery}
    a, d = vectors["a.png"], vectors["below/d.png"]
    expected = {n for n, v in vectors.items() if np.linalg.norm(v - a) <= np.linalg.norm(v - d)}
    assert set(found(desk, "--not", "p/below/d.png")) == expected
    assert "below/d.png" not in expected
    code, out, err = run("search", "p/a.png", "--not", "none.png", "--db", "g.db", cwd=desk)
    assert (code, out, err) == (1, "", "alnumpy: none.png: No such file or directory\n")


def test_a_region_of_the_query(desk):
    whole = Image.open(desk / "p" / "below" / "c.png").convert("RGB")
    wide = Image.new("RGB", (100, 60), "red")
    wide.paste(whole, (50, 20))
    wide.save(desk / "wide.png")
    region = f"50,20,{whole.width},{whole.height}"
    assert found(desk, "--region", region, "-k", "1", query="wide.png") == ["below/c.png"]
    (row,) = json.loads(run("search", "wide.png", "--region", region, "-k1", "--db", "g.db", "--json", cwd=desk)[1])
    assert row["results"][0]["distance"] < 1e-3
    assert len(found(desk, "--region", "90,50,999,999", query="wide.png")) == 4  # cut off at the picture's edges
    code, _, err = run("search", "wide.png", "--region", "100,0,5,5", "--db", "g.db", cwd=desk)
    assert (code, err) == (1, "alnumpy: wide.png: 100x60 pixels, no part of it lies in the region\n")
    for wrong in ("1,2,3", "1,2,0,3", "-1,2,3,4", "a,b,c,d"):
        assert run("search", "wide.png", f"--region={wrong}", "--db", "g.db", cwd=desk)[0] == 2


def test_stdout_has_results_only(desk):
    code, out, err = run("search", "p/a.png", "p/b.png", "--db", "g.db", "-k", "3", cwd=desk)
    assert (code, err) == (0, "p/a.png:\np/b.png:\n")
    assert [line.count("\t") for line in out.splitlines()] == [2, 1, 1, 2, 1, 1]


def test_arguments_of_the_library(desk):
    with Gallery(desk / "g.db", alnumpy.load()) as gallery:
        query = desk / "p" / "a.png"
        assert [m.path for m in gallery.search(query, since="2024-03")[0]] == [str(desk / "p" / "below" / "c.png")]
        assert gallery.search(query, folders=desk / "p" / "below", skip_same=True)[0][0].path.startswith(
            str(desk / "p")
        )
        assert len(gallery.search(query, folders=[desk / "p"], max_distance=0)[0]) == 1
        assert gallery.embed([query]).shape == (1, 1280)
        with pytest.raises(ValueError, match="not a date"):
            gallery.search(query, until="now")
