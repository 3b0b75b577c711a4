"""The commands that work on a gallery, as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from contextlib import closing

import pytest
from conftest import DIGITS
from PIL import Image
from test_cli import run

import alnumpy

SIZE = f"size: {alnumpy.load().preprocessing.size}"  # the size of the default weights


@pytest.fixture
def desk(tmp_path):
    """A folder with three pictures, one of them twice, and a gallery of them."""
    (tmp_path / "p" / "below").mkdir(parents=True)
    for digit, name in ((0, "a.png"), (5, "b.png"), (9, "below/c.png"), (0, "copy.png")):
        shutil.copy(DIGITS[digit], tmp_path / "p" / name)
    code, out, err = run("index", "p", "--db", "g.db", cwd=tmp_path)
    assert (code, out) == (0, "3 embedded, 1 recognised, 0 unchanged, 0 vanished, 0 removed, 0 failed\n")
    assert re.fullmatch(
        r"alnumpy: g\.db: a new gallery with alnet-photo.*efficientnet-lite0 --rebuild --db g\.db\n", err
    )
    return tmp_path


def test_index_again(desk):
    os.unlink(desk / "p" / "copy.png")
    (desk / "p" / "bad.png").write_text("hello")
    code, out, err = run("index", "p", "nowhere", "--db", "g.db", "--prune", "--verbose", cwd=desk)
    assert (code, out) == (1, "0 embedded, 0 recognised, 3 unchanged, 1 vanished, 1 removed, 2 failed\n")
    assert re.fullmatch(
        r"alnumpy: .*/nowhere: No such file or folder\n"
        r"alnumpy: .*/p/bad.png: not a picture .*\n"
        r"alnumpy: backend none, .* s: network 0.00 s, .*\n",
        err,
    )
    code, out, _ = run("stats", "--db", "g.db", cwd=desk)
    assert code == 0
    assert {"pictures: 3", "unreadable: 1", "vanished: 0", "contents: 3", "dtype: float32", SIZE} <= set(
        out.splitlines()
    )
    assert re.search(r"^unreadable: .*/p/bad.png: not a picture", out, re.M)


def test_search(desk):
    code, out, err = run("search", "p/a.png", "--db", "g.db", "-k", "3", cwd=desk)
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[:2] == [["0.0000", str(desk / "p" / name), "same"] for name in ("a.png", "copy.png")]
    assert float(lines[2][0]) > 0
    assert len(lines[2]) == 2
    code, out, _ = run("search", "p", "--db", "g.db", "-k", "1", "--csv", cwd=desk)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["query"] for row in rows] == ["p/a.png", "p/b.png", "p/copy.png"]
    assert {(row["rank"], row["distance"], row["same"]) for row in rows} == {("1", "0.0", "yes")}
    code, out, err = run("search", "p/none.png", "p/b.png", "--db", "g.db", "--json", cwd=desk)
    assert (code, err) == (1, "alnumpy: p/none.png: No such file or directory\n")
    (answer,) = json.loads(out)
    assert answer["query"] == "p/b.png"
    assert [result["rank"] for result in answer["results"]] == [1, 2, 3, 4]
    assert answer["results"][0] == {"rank": 1, "distance": 0.0, "path": str(desk / "p" / "b.png"), "same": True}


def test_folders_and_galleries_without_pictures_are_named(desk):
    (desk / "empty" / "below").mkdir(parents=True)
    code, out, err = run("search", "empty", "--db", "g.db", cwd=desk)
    assert (code, out, err) == (1, "", "alnumpy: empty: no pictures in this folder itself\n")
    code, out, err = run("index", "empty", "--db", "new.db", cwd=desk)
    assert (code, out) == (1, "0 embedded, 0 recognised, 0 unchanged, 0 vanished, 0 removed, 1 failed\n")
    assert err == f"alnumpy: {desk}/empty: no pictures in this folder or below it\n"
    code, out, err = run("search", "p/a.png", "--db", "new.db", cwd=desk)
    assert (code, out) == (1, "")
    assert err.endswith("new.db: no such gallery; make one with: alnumpy index FOLDER --db FILE\n")
    assert run("remove", "p", "--db", "g.db", cwd=desk)[0] == 0
    code, out, err = run("search", "p/a.png", "--db", "g.db", cwd=desk)
    assert (code, out) == (1, "")
    assert err == "alnumpy: g.db: has no pictures to find; fill it with: alnumpy index FOLDER --db FILE\n"


def test_a_file_that_is_not_a_picture_makes_no_gallery(desk):
    (desk / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    (desk / "bad.jpg").write_text("hello")
    (desk / "empty.jpg").touch()
    (desk / "photo.txt").write_bytes((desk / "p" / "a.png").read_bytes())  # a picture, whatever its name says
    before = sorted(os.listdir(desk))
    for name, fault in (
        ("clip.mov", "this is a video, which is not supported"),
        ("bad.jpg", "not a picture that can be read (JPEG, "),
        ("empty.jpg", "the file is empty"),
    ):
        code, out, err = run("index", name, "--db", "new.db", cwd=desk)
        assert (code, out) == (1, "0 embedded, 0 recognised, 0 unchanged, 0 vanished, 0 removed, 1 failed\n")
        assert err.startswith(f"alnumpy: {desk}/{name}: {fault}")
        assert err.count("\n") == 1
    assert sorted(os.listdir(desk)) == before
    code, out, err = run("index", "clip.mov", "photo.txt", "p", "--db", "g.db", cwd=desk)
    assert (code, out) == (1, "0 embedded, 1 recognised, 4 unchanged, 0 vanished, 0 removed, 1 failed\n")
    assert err == f"alnumpy: {desk}/clip.mov: this is a video, which is not supported\n"
    assert run("index", "--db", "g.db", cwd=desk)[::2] == (0, "")  # the video is not in the gallery


def test_a_recorded_picture_that_is_one_no_longer_is_reported_once(desk):
    (desk / "p" / "a.png").write_text("hello")
    code, out, err = run("index", "p/a.png", "p", "--db", "g.db", cwd=desk)
    assert (code, out) == (1, "0 embedded, 0 recognised, 3 unchanged, 0 vanished, 0 removed, 1 failed\n")
    assert err.startswith(f"alnumpy: {desk}/p/a.png: not a picture")
    assert err.count("\n") == 1
    assert run("index", "p/a.png", "--db", "g.db", cwd=desk)[0] == 1


def test_after_a_mistyped_folder_other_settings_can_be_chosen(desk):
    assert run("index", "P", "--db", "new.db", "--dtype", "int8", "--size", "40", "--normalize", cwd=desk)[0] == 1
    assert run("index", "p", "--db", "new.db", "--dtype", "float16", cwd=desk)[0] == 0
    out = run("stats", "--db", "new.db", cwd=desk)[1]
    assert {"dtype: float16", SIZE, "normalize: True"} <= set(out.splitlines())


def test_an_empty_folder_is_not_pruned(desk):
    shutil.move(desk / "p", desk / "away")
    (desk / "p").mkdir()
    code, out, err = run("index", "p", "--db", "g.db", "--prune", cwd=desk)
    assert (code, out) == (1, "0 embedded, 0 recognised, 0 unchanged, 4 vanished, 0 removed, 1 failed\n")
    assert err.startswith(f"alnumpy: {desk}/p: no pictures there now; is its disk mounted? ")
    assert run("remove", "p", "--db", "g.db", cwd=desk) == (0, "4 removed\n", "")


def test_remove(desk):
    assert run("remove", "p/a.png", "p/below", "--db", "g.db", cwd=desk) == (0, "2 removed\n", "")
    assert (desk / "p" / "a.png").exists()
    shutil.rmtree(desk / "p")
    code, out, err = run("remove", desk / "p" / "b.png", "p/a.png", "nowhere", "--db", "g.db", cwd=desk)
    assert (code, out) == (1, "1 removed\n")
    assert err == "".join(
        f"alnumpy: {name}: not in the gallery, nor anything below it\n" for name in ("p/a.png", "nowhere")
    )
    code, out, err = run("remove", "", "--db", "g.db", cwd=desk)
    assert (code, out, err) == (1, "", "alnumpy: a path is empty; the current folder is: .\n")
    assert run("remove", "p", "--db", "g.db", cwd=desk) == (0, "1 removed\n", "")
    assert "contents: 0" in run("stats", "--db", "g.db", cwd=desk)[1].splitlines()
    before = sorted(os.listdir(desk))
    assert run("remove", "p", "--db", "none.db", cwd=desk)[::2] == (
        1, f"alnumpy: {desk}/none.db: no such gallery; make one with: alnumpy index FOLDER --db FILE\n"
    )  # fmt: skip
    assert sorted(os.listdir(desk)) == before


def test_large_pictures_are_shown_if_the_limit_allows(desk):
    Image.new("RGB", (6000, 5001), "red").save(desk / "p" / "large.png")
    limit = ("--max-pixels", "40000000")
    assert run("index", "p", "--db", "g.db", *limit, cwd=desk)[1].startswith("1 embedded")
    command = ("search", "p/large.png", "--db", "g.db", "-k", "1", "--montage", "m.png", "--html", "m.html")
    assert run(*command, *limit, cwd=desk)[0] == 0
    assert (desk / "m.html").read_text().count("<img ") == 2
    with Image.open(desk / "m.png") as montage:
        assert montage.getpixel((92, 92)) == (255, 0, 0)


def test_pages_are_written_even_if_the_reader_of_stdout_stops(desk):
    reader, writer = os.pipe()
    os.close(reader)
    command = ["search", "p/a.png", "--db", "g.db", "--montage", "m.png", "--html", "m.html"]
    process = subprocess.run(
        [sys.executable, "-u", "-m", "alnumpy", *command], stdout=writer, stderr=subprocess.PIPE, cwd=desk, check=False
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, b"")
    assert {"m.png", "m.html"} <= set(os.listdir(desk))


def test_montage_and_page(desk):
    code, out, _ = run("search", "p/a.png", "--db", "g.db", "--montage", "m.png", "--html", "m.html", cwd=desk)
    assert (code, out.count("\n")) == (0, 4)
    with Image.open(desk / "m.png") as montage:
        assert montage.format == "PNG"
    assert (desk / "m.html").read_text().count("<img ") == 5
    before = sorted(os.listdir(desk))
    assert run("search", "p/a.png", "--db", "g.db", "--html", "nowhere/m.html", cwd=desk)[0] == 1
    os.symlink(desk / "p", desk / "link")
    for precious in ("g.db", "p/a.png", "p/b.png", "link/below/c.png"):
        content = (desk / precious).read_bytes()
        code, out, err = run("search", "p/a.png", "--db", "g.db", "--html", precious, cwd=desk)
        assert (code, out) == (2, "")
        assert precious in err
        assert (desk / precious).read_bytes() == content
    os.unlink(desk / "link")
    both = run("search", "p/a.png", "--db", "g.db", "--montage", "new", "--html", "p/../new", cwd=desk)
    assert both == (2, "", "alnumpy: --montage and --html both name p/../new\n")
    assert sorted(os.listdir(desk)) == before


def test_duplicates(desk):
    code, out, _ = run("duplicates", "--db", "g.db", "--threshold", "0", cwd=desk)
    lines = [line.split("\t") for line in out.splitlines()]
    assert (code, {line[1] for line in lines}) == (0, {f"{desk}/p/a.png", f"{desk}/p/copy.png"})
    assert [line[5:] for line in lines] == [[], ["same"]]
    groups = json.loads(run("duplicates", "--db", "g.db", "--threshold", "1e9", "--json", cwd=desk)[1])
    assert [{os.path.basename(match["path"]) for match in group} for group in groups] == [
        {"a.png", "b.png", "c.png", "copy.png"}
    ]


def test_the_settings_of_a_gallery_need_not_be_repeated(desk):
    made = ("index", "p", "--db", "h.db", "--size", "40", "--normalize", "--dtype", "int8", "--fast-decode")
    assert run(*made, cwd=desk)[0] == 0
    shutil.copy(DIGITS[3], desk / "p" / "d.png")
    assert run("index", "p", "--db", "h.db", cwd=desk)[1].startswith("1 embedded, 0 recognised, 4 unchanged")
    assert run("search", DIGITS[4], "--db", "h.db", cwd=desk)[0] == 0
    code, out, err = run("index", "p", "--db", "h.db", "--size", "30", cwd=desk)
    assert (code, out) == (1, "")
    assert "made with size 40, not 30" in err


@pytest.mark.parametrize(
    "arguments",
    ["search p/a.png --db g.db -k 0", "search p/a.png --db g.db --json --csv",
     "duplicates --db g.db --threshold nan", "duplicates --db g.db --threshold -1",
     "remove --db g.db"],
)  # fmt: skip
def test_wrong_usage_is_exit_2(arguments):
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize("command", ["index p", "search p/a.png", "duplicates --threshold 1", "stats", "remove p"])
def test_a_file_that_is_no_gallery_is_refused(desk, command):
    (desk / "other.db").write_text("hello" * 100)
    code, out, err = run(*command.split(), "--db", "other.db", cwd=desk)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"alnumpy: .*/other.db: damaged, or not a database .*\n", err)
    assert (desk / "other.db").read_text() == "hello" * 100


def test_damaged_rows_are_named_and_not_ranked(desk):
    database = sqlite3.connect(desk / "g.db")
    database.execute("UPDATE contents SET embedding = x'00' WHERE rowid = 2")
    database.commit()
    database.close()
    code, out, err = run("search", "p/a.png", "--db", "g.db", cwd=desk)
    assert (code, out.count("\n")) == (1, 3)
    assert "p/b.png: damaged in the gallery" in err


@pytest.fixture
def digits(tmp_path):
    """A folder with eight pictures, and a gallery of them."""
    (tmp_path / "d").mkdir()
    for digit in DIGITS[:8]:
        (tmp_path / "d" / digit.name).write_bytes(digit.read_bytes())
    code, out, _ = run("index", "d", "--db", "g.db", "--normalize", "--flip", cwd=tmp_path)
    assert (code, out[:10]) == (0, "8 embedded")
    return tmp_path


def test_reduce(digits):
    code, out, err = run("reduce", "--db", "g.db", "--dimensions", "4", "--out", "small.db", cwd=digits)
    assert (code, err) == (0, "")
    start, end = "8 pictures, 1280 dimensions to 4, which hold ", "% of the variance\n"
    assert (out[: len(start)], out[-len(end) :]) == (start, end)
    assert 50 < float(out[len(start) : -len(end)]) < 100
    code, out, _ = run("stats", "--db", "small.db", cwd=digits)
    assert {"pictures: 8", "dimension: 4", "flip: True", "normalize: True", "reduced: True"} <= set(out.splitlines())
    (digits / "d" / "new.png").write_bytes(DIGITS[9].read_bytes())
    code, out, _ = run("index", "d", "--db", "small.db", cwd=digits)
    assert (code, out[:37]) == (0, "1 embedded, 0 recognised, 8 unchanged")
    code, out, _ = run("search", "d/new.png", "--db", "small.db", "-k", "3", cwd=digits)
    assert (code, out.splitlines()[0]) == (0, f"0.0000\t{digits / 'd' / 'new.png'}\tsame")
    assert run("search", DIGITS[10], "--db", "small.db", cwd=digits)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--dimensions 8 --out small.db", 1, "g.db: 8 embeddings vary along 7 axes, so they cannot be whitened to 8"),
        ("--dimensions 4 --out g.db", 1, "g.db: exists already; choose another name"),
        ("--dimensions 4 --out nowhere/s.db", 1, "nowhere/s.db: cannot be written"),
        ("--dimensions 0 --out small.db", 2, "must be a whole number of at least 1"),
        ("--out small.db", 2, "--dimensions"),
        ("--dimensions 4", 2, "--out"),
    ],
)
def test_galleries_that_cannot_be_reduced_are_named(digits, arguments, code, message):
    before = (digits / "g.db").read_bytes()
    found, out, err = run("reduce", "--db", "g.db", *arguments.split(), cwd=digits)
    assert (found, out) == (code, "")
    assert message in err
    assert sorted(path.name for path in digits.iterdir()) == ["d", "g.db", "g.db-lock"]
    assert (digits / "g.db").read_bytes() == before


def test_files_left_out_and_passed_over_are_reported(desk):
    (desk / "p" / ".old").mkdir()
    shutil.copy(desk / "p" / "a.png", desk / "p" / ".old" / "d.png")
    (desk / "p" / "clip.mp4").write_bytes(b"video")
    code, out, err = run("index", "p", "--hidden", "--db", "g.db", cwd=desk)
    assert (code, err) == (0, "alnumpy: passed over: 1 video\n")
    with closing(sqlite3.connect(desk / "g.db", isolation_level=None)) as db:
        db.execute("DELETE FROM meta WHERE key = 'rules'")  # earlier versions recorded no rules
    code, out, err = run("index", "p", "--db", "g.db", cwd=desk)
    assert (code, err.splitlines()[0][:63]) == (0, "alnumpy: 1 picture of the gallery left out now, by rules; the e")
    assert "find them again: --hidden (hidden files, thumbnails and bins), or --include PATTERN" in err
    stats = run("stats", "--db", "g.db", cwd=desk)[1]
    assert "left_out: 1\n" in stats
    assert "passed_over: 1 video\n" in stats
    assert run("index", "p", "--exclude", "*.png", "--db", "g.db", cwd=desk)[0] == 1  # nothing is left
    assert "exclude: *.png\n" in run("stats", "--db", "g.db", cwd=desk)[1]
    code, out, _ = run("index", "--include", "*.png", "--hidden", "--rehash", "--retry", "--db", "g.db", cwd=desk)
    assert (code, re.sub(r"[1-9]\d*", "N", out)[:39]) == (0, "0 embedded, N recognised, 0 unchanged, ")
    code, _, err = run("index", "p", "--include", "*.x", "--db", "g.db", cwd=desk)
    assert (code, err) == (1, "alnumpy: *.x: not among the patterns to leave out: none\n")


def test_names_whose_letters_are_composed_otherwise(desk):
    composed, apart = (unicodedata.normalize(form, "Žofín") for form in ("NFC", "NFD"))
    (desk / "p" / apart).mkdir()
    for seed, label in enumerate("aabb"):
        Image.new("RGB", (9, 9), (60 * seed, 255 - 60 * seed, 9)).save(desk / "p" / apart / f"ü{seed}{label}.png")
    if os.path.exists(desk / "p" / composed):
        pytest.skip("a file system that knows one spelling")
    run("index", f"p/{apart}", "--db", "letters.db", cwd=desk)
    lines = [f"p/{composed}/ü{seed}{label}.png,{label}" for seed, label in enumerate("aabb")]
    (desk / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    code, out, err = run("eval", "--db", "letters.db", "--labels", "labels.csv", cwd=desk)
    assert (code, err) == (0, "")
    assert "4 pictures with 2 labels" in out
    assert run("list", f"p/{composed}", "--db", "letters.db", cwd=desk)[1].count("\n") == 4
    found = run("search", f"p/{apart}/ü0a.png", "--in", f"p/{composed}", "--db", "letters.db", cwd=desk)
    assert (found[0], found[1].count("\n")) == (0, 4)
    assert run("remove", f"p/{composed}/ü0a.png", "--db", "letters.db", cwd=desk)[:2] == (0, "1 removed\n")
    assert run("remove", f"p/{composed}", "--db", "letters.db", cwd=desk)[:2] == (0, "3 removed\n")


def test_a_missing_result_is_marked_with_the_remedy(desk):
    run("index", "p", "--db", "g.db", cwd=desk)
    (desk / "p" / "b.png").unlink()
    code, out, err = run("search", "p/a.png", "--db", "g.db", cwd=desk)
    assert code == 0
    assert re.search(r"/p/b.png\tmissing\n", out)
    assert f"{desk / 'p' / 'b.png'}: missing; is its disk mounted? If so, alnumpy index" in err
    found = json.loads(run("search", "p/a.png", "--json", "--db", "g.db", cwd=desk)[1])[0]["results"]
    assert [os.path.basename(row["path"]) for row in found if row.get("missing")] == ["b.png"]
    rows = list(csv.DictReader(io.StringIO(run("search", "p/a.png", "--csv", "--db", "g.db", cwd=desk)[1])))
    assert [os.path.basename(row["path"]) for row in rows if row["missing"] == "yes"] == ["b.png"]
