"""Galleries whose paths are relative to their own folder: they are moved together with the pictures."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from galleries import Counting, counts, names, noise
from test_cli import run

from alnumpy import GalleryError
from alnumpy.gallery import Gallery


@pytest.fixture
def disk(tmp_path, embedder):
    """A disk with a gallery and four pictures beside and below it: one copied, one in a folder with an accent."""
    disk = tmp_path / "disk"
    for folder in ("p/one", "p/twö"):
        (disk / folder).mkdir(parents=True)
    for seed, name in enumerate(("p/one/a.png", "p/one/b.png", "p/twö/c.png")):
        noise(disk / name, seed)
    shutil.copy(disk / "p/one/a.png", disk / "copy.png")
    with Gallery(disk / "g.db", embedder, "a", relative=True) as opened:
        assert counts(opened.index(disk)) == {"embedded": 3, "recognised": 1}
    return disk


def stored(path):
    """The paths that a gallery's file holds."""
    with closing(sqlite3.connect(path)) as db:
        return {os.fsdecode(row) for (row,) in db.execute("SELECT path FROM pictures UNION SELECT path FROM disks")}


def paths(gallery, root):
    return sorted(os.path.relpath(picture.path, root) for picture in gallery)


ALL = ["copy.png", "p/one/a.png", "p/one/b.png", "p/twö/c.png"]


@pytest.mark.parametrize("place", ["elsewhere", "deeper/and/elsewhere"])
def test_everything_works_after_the_whole_folder_was_moved(disk, tmp_path, embedder, place):
    assert stored(disk / "g.db") == {".", "./p/one", "./p/twö", *(f"./{name}" for name in ALL)}
    now = tmp_path / place
    now.parent.mkdir(parents=True, exist_ok=True)
    disk.rename(now)
    with Gallery(now / "g.db", embedder) as opened:
        assert opened.folders == [str(now)]
        assert paths(opened, now) == ALL
        assert paths_of(opened.pictures(now / "p" / "twö"), now) == paths_of(opened.pictures(tmp_path), now)[3:]
        assert now / "p/one/a.png" in opened
        assert disk / "p/one/a.png" not in opened
        assert opened.search(now / "p/one/b.png", 1)[0][0][:2] == (str(now / "p/one/b.png"), 0)
        assert names(opened.search(np.zeros(24), 9, folders=now / "p/twö")[0]) == ["c.png"]
        (group,) = opened.groups("exact", reference=now / "p")
        assert [os.path.relpath(member.path, now) for member in group] == ["p/one/a.png", "copy.png"]
    with Gallery(now / "g.db", embedder, "a") as opened:
        before = Counting.embedded
        assert counts(opened.index()) == {"unchanged": 4}
        (now / "copy.png").unlink()
        shutil.rmtree(now / "p" / "twö")
        report = opened.index(prune=True)
        assert counts(report) == {"unchanged": 2, "vanished": 2, "pruned": 2}
        noise(now / "p/one/new.png", 9)
        assert counts(opened.index()) == {"unchanged": 2, "embedded": 1}
        assert Counting.embedded == before + 1
        (now / "p/one").rename(now / "p/three")
        assert opened.move(now / "p/one", now / "p/three") == 3
        assert counts(opened.index()) == {"unchanged": 3}
        assert opened.remove(now / "p/three/b.png") == 1
        assert paths(opened, now) == ["p/three/a.png", "p/three/new.png"]
    assert stored(now / "g.db") >= {"./p/three/a.png", "./p/three/new.png"}


def paths_of(pictures, root):
    return [os.path.relpath(picture.path, root) for picture in pictures]


def test_only_folders_missing_as_a_whole_are_kept_after_a_move(disk, tmp_path, embedder):
    disk.rename(tmp_path / "now")
    shutil.rmtree(tmp_path / "now" / "p")
    with Gallery(tmp_path / "now" / "g.db", embedder, "a") as opened:
        report = opened.index(prune=True)
        assert counts(report) == {"unchanged": 1, "vanished": 3}
        assert [path for path, _ in report.failed] == [str(tmp_path / "now" / "p")]


def test_a_copy_of_the_whole_is_recognised(disk, tmp_path, embedder):
    shutil.copytree(disk, tmp_path / "copy")
    before = Counting.embedded
    with Gallery(tmp_path / "copy" / "g.db", embedder, "a") as opened:
        report = opened.index()
        assert report.vanished == report.embedded == 0
        assert (paths(opened, tmp_path / "copy"), Counting.embedded) == (ALL, before)


def test_pictures_outside_the_gallerys_folder_are_refused(disk, tmp_path, embedder):
    other = tmp_path / "other"
    other.mkdir()
    noise(other / "x.png", 7)
    with Gallery(disk / "g.db", embedder, "a") as opened:
        for folder in (other, tmp_path, other / "x.png"):
            with pytest.raises(GalleryError, match=f"{folder}: not below {disk}, to which"):
                opened.index(folder)
            with pytest.raises(GalleryError, match="not below"):
                opened.add(folder)
        with pytest.raises(GalleryError, match="not below"):
            opened.move(disk / "p", other)
        (tmp_path / "link").symlink_to(disk)
        assert counts(opened.index(tmp_path / "link" / "p")) == {"unchanged": 3}  # the link leads there
        assert tmp_path / "link" / "p" / "one" / "a.png" in opened
        assert opened.folders == [str(disk)]
        assert paths(opened, disk) == ALL


def test_paths_become_relative_and_whole_again(disk, tmp_path, embedder):
    other = tmp_path / "other"
    other.mkdir()
    noise(other / "x.png", 7)
    with Gallery(disk / "g.db", embedder, "a", relative=False) as opened:
        assert paths(opened, disk) == ALL
        assert opened.stats()["relative"] is False
        assert opened.folders == [str(disk)]
        assert counts(opened.index()) == {"unchanged": 4}
        assert stored(disk / "g.db") == {
            str(disk),
            str(disk / "p/one"),
            str(disk / "p/twö"),
            *(str(disk / name) for name in ALL),
        }
        opened.index(other)
    for mode in ("r", "a"):
        with pytest.raises(GalleryError, match="opened to read" if mode == "r" else f"{other}: not below"):
            Gallery(disk / "g.db", embedder, mode, relative=True)
    with Gallery(disk / "g.db", embedder, "a") as opened:
        opened.remove(other)
    with Gallery(disk / "g.db", embedder, "a", relative=True) as opened:
        assert opened.stats()["relative"] is True
        assert (paths(opened, disk), opened.folders) == (ALL, [str(disk)])
        assert counts(opened.index()) == {"unchanged": 4}
    assert stored(disk / "g.db") >= {f"./{name}" for name in ALL}


def test_a_reduced_gallery_stays_relative_in_the_same_folder(disk, tmp_path, embedder):
    for seed in range(20):
        noise(disk / "p" / f"{seed}.png", 100 + seed)
    with Gallery(disk / "g.db", embedder, "a") as opened:
        opened.index()
        everything = paths(opened, disk)
        opened.reduce(disk / "small.db", 3)
        opened.reduce(tmp_path / "small.db", 3)
    with Gallery(tmp_path / "small.db", embedder) as opened:
        assert (paths(opened, disk), opened.folders, opened.stats()["relative"]) == (everything, [str(disk)], False)
    disk.rename(tmp_path / "now")
    with Gallery(tmp_path / "now" / "small.db", embedder, "a") as opened:
        assert (paths(opened, tmp_path / "now"), opened.folders) == (everything, [str(tmp_path / "now")])
        assert counts(opened.index()) == {"unchanged": 24}


def test_commands(tmp_path):
    """A gallery is made by a command, moved, and used by all commands that read or change it."""
    disk = tmp_path / "disk"
    for label in ("cat", "dog"):
        (disk / label).mkdir(parents=True)
        for seed in range(2):
            noise(disk / label / f"{seed}.png", seed + 10 * (label == "dog"))
    outside = run("index", "disk", "--relative", "--db", "g.db", "--exclude", "x", cwd=disk / "cat")
    assert outside[0] == 1
    code, _, err = run("index", "disk/cat", "--relative", "--db", "disk/dog/g.db", cwd=tmp_path)
    assert code == 1
    assert f"{disk}/cat: not below {disk}/dog, to which" in err
    assert not (disk / "dog" / "g.db").exists()
    assert run("index", "disk", "--relative", "--db", "disk/g.db", cwd=tmp_path)[0] == 0
    disk.rename(tmp_path / "now")
    at = tmp_path / "now"
    assert json.loads(run("stats", "--db", "now/g.db", "--json", cwd=tmp_path)[1])["relative"] is True
    listed = run("list", "now/cat", "--db", "now/g.db", cwd=tmp_path)[1].splitlines()
    assert listed == [f"{at}/cat/0.png", f"{at}/cat/1.png"]
    out = run("search", "now/dog/0.png", "-k", "1", "--in", "now/dog", "--db", "now/g.db", cwd=tmp_path)[1]
    assert out == f"0.0000\t{at}/dog/0.png\tsame\n"
    (at / "labels.csv").write_text(
        "path,label\n" + "".join(f"{p.relative_to(at)},{p.parent.name}\n" for p in at.glob("*/*.png"))
    )
    code, _, err = run("eval", "--labels", "now/labels.csv", "--db", "now/g.db", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert run("index", "--db", "now/g.db", cwd=tmp_path)[1].startswith(
        "0 embedded, 0 recognised, 4 unchanged, 0 vanished"
    )
