"""``alnumpy duplicates``: which pictures make a group, and which comes first."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import run

from alnumpy import groups, likeness
from alnumpy.cli import common
from alnumpy.database import Database
from alnumpy.gallery import Gallery

ROOT = Path(__file__).parents[1]


def photo(seed, size=(240, 160)):
    """A picture of large shapes, which survive resizing and other formats."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def desk(tmp_path):
    """Two photos with versions (identical, saved again, smaller), and one without."""
    p = tmp_path / "p"
    (p / "Trash").mkdir(parents=True)
    photo(1).save(p / "one.png")
    shutil.copy(p / "one.png", p / "copy.png")
    photo(1).save(p / "saved.jpg", quality=90)
    photo(1, (120, 80)).save(p / "small.png")
    photo(2).save(p / "Trash" / "two.png")
    photo(2, (120, 80)).save(p / "two-small.png")
    photo(4).save(p / "alone.png")
    for i, name in enumerate(("one.png", "copy.png", "saved.jpg", "small.png", "Trash/two.png", "two-small.png")):
        at = time.mktime((2024, 1, 10 - i, 12, 0, 0, 0, 0, -1))
        os.utime(p / name, (at, at))
    assert run("index", "p", "--db", "g.db", cwd=tmp_path)[0] == 0
    return tmp_path


def found(desk, *options):
    """The names in each group, in order."""
    code, out, err = run("duplicates", "--db", "g.db", "--json", *options, cwd=desk)
    assert (code, err) == (0, "")
    return [[os.path.relpath(row["path"], desk / "p") for row in group] for group in json.loads(out)]


def test_near_by_default_and_the_one_to_keep_first(desk):
    one, two = found(desk)
    assert one[:2] == ["copy.png", "one.png"]  # equal in pixels and bytes, but older
    assert set(one[2:]) == {"saved.jpg", "small.png"}
    assert two == ["two-small.png", "Trash/two.png"]  # a picture in the trash is never first
    assert set(found(desk, "--like", "similar")[0]) >= set(one)
    assert found(desk, "--like", "exact") == [["copy.png", "one.png"]]
    assert found(desk, "--threshold", "0") == [["copy.png", "one.png"]]
    assert len(found(desk, "--threshold", "1e9")) == 1


def test_which_picture_of_a_group_comes_first(desk):
    assert found(desk, "--keep", "oldest")[0][0] == "small.png"
    assert found(desk, "--keep", "newest")[0][0] == "one.png"
    assert found(desk, "--keep", "bytes")[0][0] == max(
        ("copy.png", "saved.jpg", "small.png"), key=lambda name: (desk / "p" / name).stat().st_size
    )


def test_reference_folders_come_first_and_are_kept(desk):
    (desk / "p" / "mine").mkdir()
    shutil.move(desk / "p" / "small.png", desk / "p" / "mine" / "small.png")
    shutil.copy(desk / "p" / "mine" / "small.png", desk / "p" / "mine" / "again.png")
    run("index", "p", "--db", "g.db", cwd=desk)
    (group,) = found(desk, "--reference", "p/mine")
    assert set(group[:2]) == {"mine/again.png", "mine/small.png"}
    out = run("duplicates", "--db", "g.db", "--reference", "p/mine", "-0", cwd=desk)[1]
    assert {os.path.relpath(path, desk / "p") for path in out.split("\0")[:-1]} == {"one.png", "copy.png", "saved.jpg"}


def test_output_formats(desk):
    code, out, err = run("duplicates", "--db", "g.db", "--like", "exact", cwd=desk)
    size = (desk / "p" / "one.png").stat().st_size
    assert (code, err) == (0, "")
    assert out == (
        f"0.0000\t{desk}/p/copy.png\t240x160\t{size}\t2024-01-09T12:00:00\n"
        f"0.0000\t{desk}/p/one.png\t240x160\t{size}\t2024-01-10T12:00:00\tsame\n"
    )
    rows = list(csv.DictReader(io.StringIO(run("duplicates", "--db", "g.db", "--csv", cwd=desk)[1])))
    assert [row["group"] for row in rows] == ["1"] * 4 + ["2"] * 2
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "1", "2"]
    assert (rows[1]["same"], rows[2]["same"], rows[1]["width"], rows[1]["bytes"]) == ("yes", "", "240", str(size))
    first = json.loads(run("duplicates", "--db", "g.db", "--json", cwd=desk)[1])[0][0]
    assert (first["width"], first["height"], first["bytes"], first["date"]) == (240, 160, size, "2024-01-09T12:00:00")
    others = run("duplicates", "--db", "g.db", "-0", cwd=desk)[1].split("\0")[:-1]
    assert {os.path.relpath(path, desk / "p") for path in others} == {
        "one.png", "saved.jpg", "small.png", "Trash/two.png"
    }  # fmt: skip
    assert run("duplicates", "--db", "g.db", "--like", "near", "--threshold", "1", cwd=desk)[0] == 2


def test_a_page_side_by_side(desk):
    code, out, _ = run("duplicates", "--db", "g.db", "--html", "d.html", cwd=desk)
    assert (code, out.count("\n")) == (0, 7)
    page = (desk / "d.html").read_text()
    assert (page.count("<section>"), page.count("<img "), page.count('class="query"')) == (2, 6, 2)
    assert 'href="./p/copy.png"' in page
    assert "files identical to the first. Point at a picture" in page
    with Gallery(desk / "g.db") as gallery:
        assert likeness.explain(gallery.settings, "first") in page
    assert run("duplicates", "--db", "g.db", "--html", "p/one.png", cwd=desk)[0] == 2
    assert run("duplicates", "--db", "g.db", "--html", "g.db", cwd=desk)[0] == 2


def test_levels_of_unmeasured_networks_are_refused(desk):
    run("index", "p", "--db", "h.db", "--size", "40", cwd=desk)
    code, out, err = run("duplicates", "--db", "h.db", cwd=desk)
    assert (code, out) == (1, "")
    assert "at 40: take --like exact, or --threshold" in err
    assert run("duplicates", "--db", "h.db", "--like", "exact", cwd=desk)[0] == 0
    with Gallery(desk / "g.db") as gallery:
        near, similar = likeness.measured(gallery.settings)
        assert 0 < near < similar
        assert f"up to {near:g}" in likeness.explain(gallery.settings)


def test_what_distances_mean_is_told_on_a_terminal(capsys, monkeypatch):
    common.tell_distances("up to 1 alike")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    common.tell_distances("")
    common.tell_distances("up to 1 alike")
    assert capsys.readouterr() == ("", "alnumpy: distances: up to 1 alike\n")


@pytest.mark.parametrize("normalize", ["--no-normalize", "--normalize"])
@pytest.mark.parametrize("flip", [[], ["--flip"]])
@pytest.mark.parametrize("name", ["alnet-photo", "efficientnet-lite0"])
def test_the_settings_of_the_networks_that_ship_were_measured(desk, name, normalize, flip):
    run("index", "p", "--db", "h.db", "--weights", name, normalize, *flip, cwd=desk)
    assert run("duplicates", "--db", "h.db", cwd=desk)[0] == 0


def test_no_group_is_wider_than_twice_the_distance(tmp_path):
    """A chain a-b-c-d of near pictures: a takes b, and c takes d, in whatever order the pairs come."""

    chain = {b"/a": [(b"/b", 1.0)], b"/b": [(b"/c", 1.0), (b"/a", 1.0)], b"/c": [(b"/b", 1.0), (b"/d", 0.5)],
             b"/d": [(b"/c", 0.5)]}  # fmt: skip
    with closing(Database(tmp_path / "g.db", True)) as db:
        for i, name in enumerate(chain):
            db.run("INSERT INTO contents (hash, width, height, embedding) VALUES (?, ?, 1, x'')", [name, 100 - i])
            db.run("INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, 1, 1, ?, '', 0)",
                   [name, name])  # fmt: skip
        result = groups.duplicates(db, chain.__getitem__)
    assert [[(member.path, member.distance) for member in group] for group in result] == [
        [("/a", 0.0), ("/b", 1.0)], [("/c", 0.0), ("/d", 0.5)]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "trash"),
    [("/home/a/.Trash-1000/files/x.jpg", True), ("/mnt/#recycle/x.jpg", True), ("C:/$Recycle.Bin/x.jpg", True),
     ("/home/a/.local/share/Trash/files/x.jpg", True), ("/home/a/Trashy/x.jpg", False), ("/a/trash.jpg", False)],
)  # fmt: skip
def test_trash_folders(path, trash):
    assert bool(groups.TRASH.search(path)) == trash


def test_the_page_has_the_levels():
    page = (ROOT / "docs" / "DUPLICATES.md").read_text()
    for name, size in (("alnet-photo", 64), ("efficientnet-lite0", 128)):
        cells = re.search(rf"^\| {name}, {size} pixels \| (.*) \|$", page, re.M)[1].split(" | ")
        keys = [(name, size, normalize, flip) for flip in (False, True) for normalize in (False, True)]
        assert [tuple(map(float, cell.split(", "))) for cell in cells] == [likeness.DISTANCES[key] for key in keys]


def test_levels_are_measured(tmp_path):
    """The proposed distances are the largest numbers of the tables."""
    for seed in range(3):
        photo(seed, (160, 120)).save(tmp_path / f"{seed}.png")
    command = [sys.executable, ROOT / "tools" / "dev" / "measure_copies.py", tmp_path, "alnet-mnist", "--enlarged", "2"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tables = re.findall(r"\*\*near, similar\*\* \| (.*) \|", out)
    assert len(tables) == 3
    assert re.findall(r"^\| (half the size.*?) \|", out, re.M) == ["half the size"] * 3
    first = [tuple(map(float, table.split(" | ")[0].split(", "))) for table in tables]
    near, similar = map(float, re.search(r"'alnet-mnist', 28, False, False\): \((.*), (.*)\)", out).groups())
    assert (near, similar) == (max(near for near, _ in first), max(similar for _, similar in first))
    assert 0 < near <= similar
