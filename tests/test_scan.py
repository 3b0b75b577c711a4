"""Folders as they change: what counts as missing, and what is never removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from galleries import counts, dump, names, noise

from alnumpy import GalleryError
from alnumpy.gallery import Gallery


def test_vanished_pictures_are_marked_below_the_folders_walked_only(folder, path, embedder, tmp_path):
    other = tmp_path / "pictures2"  # its name starts with the other's
    other.mkdir()
    noise(other / "d.png", 5)
    with Gallery(path, embedder, "a") as opened:
        opened.index([folder, other])
        os.rename(folder / "a.png", tmp_path / "away.png")
        (other / "d.png").rename(other / "d.txt")
        assert opened.index(folder).vanished == 1
        assert opened.index(folder).vanished == 0
        assert [os.path.basename(row.path) for row in opened if row.vanished] == ["a.png"]
        assert "a.png" not in names(opened.search(folder / "b.png")[0])
        os.rename(tmp_path / "away.png", folder / "a.png")
        assert counts(opened.index(folder)) == {"unchanged": 4}
        assert "a.png" in names(opened.search(folder / "b.png")[0])
        os.unlink(folder / "a.png")
        opened.index(folder)
        assert opened.index(folder, prune=True).pruned == 1  # marked by the run before
        assert counts(opened.update(prune=True)) == {"unchanged": 3, "vanished": 1, "pruned": 1}  # d.png
        assert opened.stats()["contents"] == 2


def test_what_cannot_be_listed_has_not_vanished(folder, path, embedder, monkeypatch):
    walk = os.walk

    def failing(top, onerror):
        onerror(PermissionError(13, "Permission denied", os.path.join(top, "below")))
        return ((parent, below, names) for parent, below, names in walk(top) if not parent.endswith("below"))

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        monkeypatch.setattr(os, "walk", failing)
        report = opened.index(folder)
        assert (report.vanished, report.failed[0]) == (0, (str(folder / "below"), "Permission denied"))
        monkeypatch.undo()
        ((name, reason),) = opened.index(folder / "nowhere").failed
        assert (name, reason[:24]) == (str(folder / "nowhere"), "No such file or folder; ")
        assert "alnumpy remove PATH" in reason


@pytest.mark.parametrize("mount", ["", "below", "below/deep"])
@pytest.mark.parametrize("left", [(), ("notes.txt",)])
def test_pictures_of_a_disk_that_is_not_mounted_are_not_pruned(folder, path, embedder, tmp_path, mount, left):
    """The folder where it was mounted is then there, and empty; below the indexed folder that is all that tells."""
    (folder / "below" / "deep" / "er").mkdir(parents=True)
    noise(folder / "below" / "deep" / "er" / "d.png", 8)
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        before = dump(path)
        os.rename(folder / mount, tmp_path / "away")
        (folder / mount).mkdir()
        for name in left:
            (folder / mount / name).touch()
        away = {"": 5, "below": 2, "below/deep": 1}[mount]
        if left and mount:  # which no empty mount point has
            assert opened.index(folder, prune=True).pruned == away
            return
        reason = (
            "no pictures there now; is its disk mounted? If they are gone for good: alnumpy remove FOLDER --db FILE"
        )
        for prune in (False, True, True):
            report = opened.index(folder, prune=prune)
            assert (report.vanished, report.pruned) == (0 if prune else away, 0)
            assert (str(folder / mount).rstrip("/"), reason) in report.failed
        assert len(report.failed) == (1 if mount == "" else 2)  # broken.png
        report = opened.index(folder)  # told before; that there is nothing at all is worth saying each time
        assert report.failed[:-1] == []
        assert mount or report.failed == [(str(folder), "no pictures in this folder or below it")]
        if mount:
            assert opened.update(prune=True).pruned == 0
        shutil.rmtree(folder / mount)
        os.rename(tmp_path / "away", folder / mount)
        assert counts(opened.index(folder, prune=True)) == {"unchanged": 5}
        assert dump(path) == before
        shutil.rmtree(folder / "below")
        assert opened.index(folder, prune=True).pruned == 2  # no mount point


def test_pictures_of_a_disk_behind_a_link_are_not_pruned(path, embedder, tmp_path):
    """The link then leads to what is not there, below a folder that has other pictures."""
    disk = tmp_path / "mount" / "photos"
    disk.mkdir(parents=True)
    (tmp_path / "library").mkdir()
    for seed, name in enumerate((disk / "a.png", tmp_path / "library" / "b.png")):
        noise(name, seed)
    link = tmp_path / "library" / "usb"
    link.symlink_to(disk)
    with Gallery(path, embedder, "a") as opened:
        assert counts(opened.index([link.parent, link])) == {"embedded": 2}
        os.rename(disk, tmp_path / "away")
        for folders in ([link.parent, link], [link.parent]):
            report = opened.index(folders, prune=True)
            assert (report.pruned, dict(report.failed)[str(link)][:9]) == (0, "no pictur")
        os.rename(tmp_path / "away", disk)
        assert counts(opened.index([link.parent, link], prune=True)) == {"unchanged": 2}


def test_a_folder_that_much_is_gone_from_is_listed_once(folder, path, embedder, monkeypatch):
    for i in range(20):
        shutil.copy(folder / "a.png", folder / f"copy{i}.png")
    listed = []

    def scandir(name, scandir=os.scandir):
        listed.append(os.fspath(name))
        return scandir(name)

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        for i in range(20):
            os.remove(folder / f"copy{i}.png")
        monkeypatch.setattr(os, "scandir", scandir)
        for vanished in (20, 0):
            listed.clear()
            assert opened.index(folder).vanished == vanished
            assert listed.count(str(folder)) == 2  # to find what is there, and whether something is


def test_an_empty_path_is_not_the_current_folder(folder, path, embedder, monkeypatch):
    monkeypatch.chdir(folder)
    with Gallery(path, embedder, "a") as opened:
        opened.index(".")
        for call in (opened.index, opened.add, opened.remove):
            with pytest.raises(GalleryError, match="a path is empty"):
                call(["below", ""])
        assert len(list(opened)) == 4
        assert opened.remove(".") == 4


def test_a_link_to_a_folder_that_is_not_there_is_no_picture(folder, path, embedder, tmp_path):
    link = tmp_path / "disk"
    link.symlink_to(tmp_path / "away")
    with Gallery(path, embedder, "a") as opened:
        ((name, reason),) = opened.index(link).failed
        assert (name, reason[:24]) == (str(link), "No such file or folder; ")
        assert list(opened) == []
        os.rename(folder, tmp_path / "away")
        assert counts(opened.index(link)) == {"embedded": 3}


def test_a_folder_without_pictures_is_named(tmp_path, path, embedder):
    (tmp_path / "p" / "below").mkdir(parents=True)
    with Gallery(path, embedder, "a") as opened:
        assert opened.index(tmp_path / "p").failed == [(str(tmp_path / "p"), "no pictures in this folder or below it")]
        noise(tmp_path / "p" / "scan", 1, format="PNG")
        opened.index(tmp_path / "p" / "scan")
        assert opened.index(tmp_path / "p").failed == []


def test_a_folder_in_the_place_of_a_picture_is_none(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        for name in ("a.png", "b.png"):
            os.unlink(folder / name)
        (folder / "a.png").mkdir()
        noise(folder / "a.png" / "d.png", 6)
        os.symlink(folder / "below", folder / "b.png")
        assert counts(opened.index(folder)) == {"embedded": 1, "unchanged": 2, "vanished": 2}
        assert opened.stats()["unreadable"] == 1  # broken.png
        shutil.rmtree(folder / "a.png")
        noise(folder / "a.png", 0)
        assert counts(opened.index(folder, prune=True)) == {"recognised": 1, "unchanged": 2, "vanished": 1, "pruned": 2}


def test_what_exists_has_not_vanished_though_its_folder_does_not_show_it(folder, path, embedder, tmp_path):
    noise(folder / "scan", 9, format="PNG")  # a name without a picture's suffix
    (tmp_path / "elsewhere").mkdir()
    noise(tmp_path / "elsewhere" / "e.png", 10)
    os.symlink(tmp_path / "elsewhere", folder / "link")
    with Gallery(path, embedder, "a") as opened:
        opened.index([folder / "scan", folder / "link"])
        assert counts(opened.index(folder)) == {"embedded": 3, "unchanged": 2}
        noise(folder / "scan", 11, format="PNG")
        (tmp_path / "elsewhere" / "e.png").rename(tmp_path / "elsewhere" / "e.txt")
        assert counts(opened.index([folder, folder / "below"], prune=True)) == {
            "embedded": 1,
            "unchanged": 4,
            "vanished": 1,
            "pruned": 1,
        }


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs a second user")
def test_what_may_not_be_looked_at_has_not_vanished(embedder):
    def as_nobody(code):
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[3]); import galleries as t; "
            "from alnumpy import Embedder, Gallery; "
            "e = Embedder(t.small_weights(), backend='numpy', threads=1); os.setuid(65534)\n"
            f"with Gallery(sys.argv[1], e, 'a') as opened: {code}"
        )
        command = [sys.executable, "-c", code, path, folder, Path(__file__).parent]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        path, folder = Path(name) / "gallery.db", Path(name) / "pictures"
        (folder / "below").mkdir(parents=True)
        noise(folder / "below" / "a.png", 1)
        assert as_nobody("opened.index(sys.argv[2])").returncode == 0
        os.chmod(folder / "below", 0)
        for call in ("opened.index(sys.argv[2], prune=True)", "opened.update(prune=True)"):
            done = as_nobody(f"report = {call}; print(t.counts(report), [reason for _, reason in report.failed])")
            failed = "['Permission denied']" if "index" in call else "[]"
            assert (done.stdout, done.stderr) == (f"{{}} {failed}\n", "")
        with Gallery(path) as opened:
            assert [row.vanished for row in opened] == [False]
