"""The commands that maintain a library: the default gallery, list, move, stats."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from conftest import DIGITS
from test_cli import run

import alnumpy
from alnumpy.gallery import Gallery

ALL_WELL = "{} embedded, {} recognised, {} unchanged, {} vanished, 0 removed, 0 failed\n"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with three pictures, one of them in a folder below, and the user's data folder, which is still empty."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("ALNUMPY_DB", raising=False)
    (tmp_path / "p" / "below").mkdir(parents=True)
    for digit, name in ((0, "a.png"), (5, "b.png"), (9, "below/c.png")):
        shutil.copy(DIGITS[digit], tmp_path / "p" / name)
    return tmp_path


def listed(desk, *arguments):
    return json.loads(run("list", "--json", *arguments, cwd=desk)[1])


def test_without_db_there_is_one_gallery_per_user(desk):
    code, out, err = run("search", "p/a.png", cwd=desk)
    assert (code, out) == (1, "")
    assert "no such gallery" in err
    code, out, err = run("index", "p", cwd=desk)
    assert (code, out) == (0, ALL_WELL.format(3, 0, 0, 0))
    assert err.endswith("alnumpy index --weights efficientnet-lite0 --rebuild\n")
    assert run("index", "p", cwd=desk) == (0, ALL_WELL.format(0, 0, 3, 0), "")
    assert (desk / "data" / "alnumpy" / "gallery.db").exists()
    assert (desk / "data" / "alnumpy").stat().st_mode & 0o077 == 0
    code, out, err = run("search", "p/a.png", "-k", "1", cwd=desk)
    assert (code, out, err) == (0, f"0.0000\t{desk}/p/a.png\tsame\n", "")
    assert run("search", "p/a.png", env={"ALNUMPY_DB": "none.db"}, cwd=desk)[0] == 1
    assert run("index", "p", cwd=desk, env={"ALNUMPY_DB": "mine.db"})[0] == 0
    assert (desk / "mine.db").exists()


def test_index_alone_brings_everything_up_to_date(desk):
    code, out, err = run("index", cwd=desk)
    assert (code, out) == (2, "")
    assert "make one with: alnumpy index FOLDER" in err
    shutil.copy(DIGITS[3], desk / "single.png")
    run("index", "p", "single.png", cwd=desk)
    shutil.copy(DIGITS[12], desk / "p" / "below" / "new.png")
    os.unlink(desk / "p" / "a.png")
    os.unlink(desk / "single.png")
    assert run("index", cwd=desk) == (0, ALL_WELL.format(1, 0, 2, 2), "")
    run("remove", "p", cwd=desk)
    assert run("index", cwd=desk)[1] == ALL_WELL.format(0, 0, 0, 0)
    assert json.loads(run("stats", "--json", cwd=desk)[1])["folders"] == []


def test_a_folder_is_recorded_once(desk):
    for folder in ("p/below", "p", "p/below"):
        run("index", folder, cwd=desk)
    assert json.loads(run("stats", "--json", cwd=desk)[1])["folders"] == [str(desk / "p")]
    assert f"folder: {desk / 'p'}\n" in run("stats", cwd=desk)[1]
    (desk / "p").rename(desk / "q")
    code, _, err = run("index", cwd=desk)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{desk / 'p'}: No such file or folder" in err


def test_a_mistyped_folder_leaves_no_file(desk):
    (desk / "empty").mkdir()
    for folder in ("pp", "empty"):
        code, out, err = run("index", folder, cwd=desk)
        assert (code, out) == (1, ALL_WELL.format(0, 0, 0, 0).replace("0 failed", "1 failed"))
        assert f"{desk / folder}: " in err
        assert run("index", folder, "--db", "new.db", cwd=desk)[0] == 1
    assert sorted(os.listdir(desk)) == ["empty", "p"]


def test_a_gallery_of_an_earlier_version_has_no_folders(desk):
    run("index", "p", "--db", "g.db", cwd=desk)
    with closing(sqlite3.connect(desk / "g.db", isolation_level=None)) as db:
        db.execute("DELETE FROM meta WHERE key = 'folders'")
    code, out, err = run("index", "--db", "g.db", cwd=desk)
    assert (code, out) == (0, ALL_WELL.format(0, 0, 3, 0))
    assert "name it once: alnumpy index FOLDER" in err
    with closing(sqlite3.connect(desk / "g.db", isolation_level=None)) as db:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('folders', '{')")
    code, out, err = run("index", "--db", "g.db", cwd=desk)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert run("index", "p", "--db", "g.db", cwd=desk)[0] == 0
    assert run("index", "--db", "g.db", cwd=desk)[0] == 0


def test_list(desk):
    (desk / "p" / "bad.png").write_text("hello")
    run("index", "p", cwd=desk)
    os.unlink(desk / "p" / "a.png")
    run("index", cwd=desk)
    code, out, err = run("list", cwd=desk)
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [f"{desk}/p/{name}" for name in ("a.png", "b.png", "bad.png", "below/c.png")]
    assert (lines[0][1], lines[1][1:], lines[2][1].split(":")[0]) == ("missing", [], "unreadable")
    first, second, bad, _ = listed(desk)
    assert (first["missing"], second["missing"]) == (True, False)
    assert (second["width"], second["height"], second["error"]) == (28, 28, None)
    assert second["bytes"] == (desk / "p" / "b.png").stat().st_size
    assert bad["error"].startswith("not a picture")
    assert [row["path"] for row in listed(desk, "p/below")] == [f"{desk}/p/below/c.png"]
    rows = list(csv.DictReader(io.StringIO(run("list", "--csv", cwd=desk)[1])))
    assert [row["missing"] for row in rows] == ["yes", "", "", ""]
    assert run("list", "p/b.png", "-0", cwd=desk)[1] == f"{desk}/p/b.png\0"
    code, out, err = run("list", "elsewhere", "--json", cwd=desk)
    assert (code, json.loads(out)) == (1, [])
    assert "elsewhere: not in the gallery" in err


def test_a_moved_folder_is_named_and_moved(desk):
    run("index", "p", cwd=desk)
    before = [row["sha256"] for row in listed(desk)]
    (desk / "q").mkdir()
    (desk / "p").rename(desk / "q" / "r")
    code, out, err = run("index", "q", cwd=desk)
    assert (code, out) == (0, ALL_WELL.format(0, 3, 0, 0))
    command = f"alnumpy move {desk}/p {desk}/q/r"
    advice = f"all its 3 pictures are below {desk}/q/r now; to forget the old paths: {command}"
    assert err == f"alnumpy: {desk}/p: missing, and {advice}\n"
    assert run(*command.split()[1:], cwd=desk) == (0, "3 moved\n", "")
    assert [row["path"] for row in listed(desk)] == [f"{desk}/q/r/{name}" for name in ("a.png", "b.png", "below/c.png")]
    assert [row["sha256"] for row in listed(desk)] == before
    assert json.loads(run("stats", "--json", cwd=desk)[1])["folders"] == [f"{desk}/q"]


def test_an_unreadable_file_does_not_hide_that_a_folder_was_moved(desk):
    (desk / "p" / "bad.png").write_text("no picture")
    run("index", "p", cwd=desk)
    (desk / "p").rename(desk / "q")
    err = run("index", "q", cwd=desk)[2]
    assert f"all its 3 pictures are below {desk}/q now; to forget the old paths: alnumpy move {desk}/p {desk}/q" in err
    assert run("move", "p", "q", cwd=desk)[1] == "4 moved\n"


def test_move_reads_no_file(desk):
    run("index", "p", cwd=desk)
    shutil.rmtree(desk / "p")
    (desk / "new").mkdir()
    assert run("move", "p", "new", cwd=desk) == (0, "3 moved\n", "")
    assert [row["path"] for row in listed(desk)] == [f"{desk}/new/{name}" for name in ("a.png", "b.png", "below/c.png")]
    assert json.loads(run("stats", "--json", cwd=desk)[1])["folders"] == [f"{desk}/new"]
    code, out, err = run("move", "p", "new", cwd=desk)
    assert (code, out, err) == (1, "0 moved\n", "alnumpy: p: not in the gallery, nor anything below it\n")
    assert "move the files first" in run("move", "new", "nowhere", cwd=desk)[2]
    code, _, err = run("move", "new", "new", cwd=desk)
    assert (code, "the same or below it" in err) == (1, True)


def test_half_of_a_folder_elsewhere_does_not_count_as_moved(desk):
    run("index", "p", cwd=desk)
    (desk / "q").mkdir()
    shutil.move(desk / "p" / "a.png", desk / "q" / "a.png")
    shutil.rmtree(desk / "p")
    code, _, err = run("index", "q", cwd=desk)
    assert (code, err) == (0, "")


def test_move_of_names_that_are_not_text(tmp_path):
    (tmp_path / "p").mkdir()
    shutil.copy(DIGITS[0], os.fsencode(tmp_path) + b"/p/\xff'\n.png")
    with Gallery(tmp_path / "g.db", alnumpy.load(backend="numpy"), "a") as gallery:
        gallery.index(tmp_path / "p")
        assert gallery.move(tmp_path / "p", tmp_path / "\udcfe") == 1
        (picture,) = gallery
        assert os.fsencode(picture.path) == os.fsencode(tmp_path) + b"/\xfe/\xff'\n.png"
        assert gallery.folders == [str(tmp_path / "\udcfe")]
