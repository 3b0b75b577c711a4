"""Changes of folders: which pictures count as missing, and which are never removed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from galleries import change, counts, dump, names, noise

from alnumpy import GalleryError
from alnumpy.gallery import Gallery
from alnumpy.scan import (
    AWAY,
    DELETED,
    EMPTIED,
    GONE,
    NOWHERE,
    WITHOUT_PICTURES,
    Found,
    Recorded,
    Rules,
    Stamp,
    Volume,
    find,
    plan,
)


def test_missing_pictures_are_marked_only_below_the_folders_walked(folder, path, embedder, tmp_path):
    other = tmp_path / "pictures2"  # its name begins with the name of the other
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
        assert counts(opened.index(folder)) == {"recognised": 1, "unchanged": 3}  # renaming changes the ctime of one
        assert "a.png" in names(opened.search(folder / "b.png")[0])
        os.unlink(folder / "a.png")
        opened.index(folder)
        assert opened.index(folder, prune=True).pruned == 1  # marked by the run before
        assert counts(opened.update(prune=True)) == {"unchanged": 3, "vanished": 1, "pruned": 1}  # d.png
        assert opened.stats()["contents"] == 2


@pytest.mark.parametrize("call", ["scandir", "is_dir", "lstat"])
def test_folders_that_cannot_be_listed_are_named_and_not_missing(folder, path, embedder, monkeypatch, call):
    """A folder that may not be entered, or one of a network share whose handle is stale."""
    below = str(folder / "below")

    def refuse():
        raise OSError(errno.ESTALE, "Stale file handle", below)

    class Entry:
        def __init__(self, entry):
            self.path, self.name = entry.path, entry.name
            self.is_symlink = entry.is_symlink
            self.is_dir = refuse if call == "is_dir" and entry.path == below else entry.is_dir

    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def scandir(name, scandir=os.scandir):
        if call == "scandir" and os.fspath(name) == below:
            refuse()
        with scandir(name) as entries:
            return Entries(map(Entry, entries))

    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", scandir)
            lstat = os.lstat
            patch.setattr(os, "lstat", lambda name: refuse() if below in os.fspath(name) else lstat(name))
            report = opened.index(folder, prune=True)
        failed = dict(report.failed)
        assert (report.vanished, report.pruned) == (0, 0)
        assert failed.get(below) == (None if call == "lstat" else "Stale file handle")
        ((name, reason),) = opened.index(folder / "nowhere").failed
        assert (name, reason) == (str(folder / "nowhere"), "No such file or folder")


@pytest.mark.parametrize("mount", ["", "below", "below/deep"])
@pytest.mark.parametrize("left", [(), ("notes.txt",)])
def test_pictures_of_a_disk_that_is_not_mounted_are_not_pruned(folder, path, embedder, tmp_path, mount, left):
    """The mount point is an empty folder then; below the indexed folder nothing else tells."""
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
        if left and mount:  # an empty mount point has no file
            assert opened.index(folder, prune=True).pruned == away
            return
        reason = "no pictures there now; is its disk mounted? If they were deleted: alnumpy remove FOLDER --db FILE"
        for prune in (False, True, True):
            report = opened.index(folder, prune=prune)
            assert (report.vanished, report.pruned) == (0 if prune else away, 0)
            assert (str(folder / mount).rstrip("/"), reason) in report.failed
        assert len(report.failed) == (1 if mount == "" else 2)  # broken.png
        report = opened.index(folder)  # reported before; a folder without any picture is reported each time
        assert report.failed[:-1] == []
        assert mount or report.failed == [(str(folder), "no pictures in this folder or below it")]
        if mount:
            assert opened.update(prune=True).pruned == 0
        shutil.rmtree(folder / mount)
        os.rename(tmp_path / "away", folder / mount)
        assert counts(opened.index(folder, prune=True)) == {"unchanged": 5}
        assert dump(path) == before
        shutil.rmtree(folder / "below" / "deep")
        assert opened.index(folder, prune=True).pruned == 1  # it is not a mount point
        shutil.rmtree(folder / "below")
        report = opened.index(folder, prune=True)
        assert (report.pruned, dict(report.failed)[str(folder / "below")][:21]) == (0, "missing as a whole; i")
        assert opened.update(prune=True).pruned == 0
        assert opened.remove(folder / "below") == 1


def test_pictures_of_a_disk_behind_a_link_are_not_pruned(path, embedder, tmp_path):
    """The link then leads nowhere, below a folder that has other pictures."""
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


def test_a_folder_with_many_missing_pictures_is_listed_once(folder, path, embedder, monkeypatch):
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
            assert listed.count(str(folder)) == 2  # once to find pictures, once to see whether it is empty


def test_an_empty_path_is_not_the_current_folder(folder, path, embedder, monkeypatch):
    monkeypatch.chdir(folder)
    with Gallery(path, embedder, "a") as opened:
        opened.index(".")
        for call in (opened.index, opened.add, opened.remove):
            with pytest.raises(GalleryError, match="a path is empty"):
                call(["below", ""])
        assert len(list(opened)) == 4
        assert opened.remove(".") == 4


def test_a_link_to_a_missing_folder_is_not_a_picture(folder, path, embedder, tmp_path):
    link = tmp_path / "disk"
    link.symlink_to(tmp_path / "away")
    with Gallery(path, embedder, "a") as opened:
        ((name, reason),) = opened.index(link).failed
        assert (name, reason) == (str(link), "No such file or folder")
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


def test_a_folder_in_the_place_of_a_picture_is_not_a_picture(folder, path, embedder):
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


def test_an_existing_file_is_not_missing_even_if_its_folder_does_not_list_it(folder, path, embedder, tmp_path):
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
def test_files_that_may_not_be_looked_at_are_not_missing(embedder):
    def as_nobody(code):
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[3]); import galleries as t\n"
            "from alnumpy import Embedder, Gallery; e = Embedder(t.small_weights(), backend='numpy', threads=1)\n"
            # Python may be in a folder that only root can read, so root imports everything first by doing the same
            "with Gallery(sys.argv[1] + '-first', e, 'a') as first: first.index(sys.argv[2], prune=True)\n"
            "os.setuid(65534)\n"
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


# Decisions, without files and without SQLite


HOME, USB = Volume("/", ""), Volume("/p/usb", "stick")


class Files:
    """An imagined disk: files with their sizes, folders, and mounted volumes."""

    def __init__(self, *files, sizes=(), mounted=(), folders=(), unknown=()):
        self.files = dict.fromkeys(files, 1) | dict(sizes)
        self.mounted = mounted
        self.unknown = unknown
        self.folders = {"/", *folders}
        for path in self.files:
            while (path := os.path.dirname(path)) not in self.folders:
                self.folders.add(path)

    def stamp(self, path):
        return Stamp(self.files[path], 7, 7) if path in self.files else None

    def is_missing(self, path):
        return None if path in self.unknown else path not in self.files

    def exists(self, path):
        return path in self.folders or path in self.files

    def emptied(self, folder):
        while folder not in self.folders:
            folder = os.path.dirname(folder)
        below = (os.path.join(folder, ""),)
        return (
            None if any(path != folder and path.startswith(below) for path in [*self.files, *self.folders]) else folder
        )

    def volume(self, folder):
        within = [volume for volume in self.mounted if f"{folder}/".startswith(f"{volume.mount}/")]
        return max(within, key=lambda volume: len(volume.mount), default=HOME)


NFC, NFD = (unicodedata.normalize(form, "/p/Žofín/ü.png") for form in ("NFC", "NFD"))
MIXED = NFC[:5] + NFD[6:]
A, B, U, V = "/p/a/1.png", "/p/a/2.png", "/p/usb/3.png", "/p/usb/4.png"
ON_USB = {"/p/a": HOME, "/p/usb": USB}
OTHER, NAMELESS = Volume("/p/usb", "another"), Volume("/p/usb", "")


@pytest.mark.parametrize(
    ("disk", "volumes", "pruned", "told"),
    [
        # One file of several is missing: it was deleted.
        (Files(A, U, V, mounted=[USB]), ON_USB, [B], {}),
        (Files(A, B, U, mounted=[USB]), ON_USB, [V], {}),
        # The disk is not mounted: its folder is there and empty, or has a file in it, or is missing.
        (Files(A, B, folders=["/p/usb"]), ON_USB, [], {"/p/usb": AWAY}),
        (Files(A, B, "/p/usb/NOT MOUNTED"), ON_USB, [], {"/p/usb": AWAY}),
        (Files(A, B), ON_USB, [], {"/p/usb": AWAY}),
        # The same without a recorded disk, as in galleries of an older alnumpy.
        (Files(A, B, folders=["/p/usb"]), {}, [], {"/p/usb": EMPTIED}),
        (Files(A, B), {}, [], {"/p/usb": GONE}),
        (Files(A, B, "/p/usb/notes.txt"), {}, [U, V], {}),
        # Another disk is mounted there, with none of the pictures, or with a file of the same name.
        (Files(A, B, "/p/usb/5.png", mounted=[OTHER]), ON_USB, [], {"/p/usb": AWAY}),
        (Files(A, B, sizes={U: 999}, mounted=[OTHER]), ON_USB, [], {"/p/usb": AWAY}),
        # The same disk under another name, as after a restart: a picture is in its place.
        (Files(A, B, U, mounted=[OTHER]), ON_USB, [V], {}),
        (Files(A, B, U, mounted=[NAMELESS]), dict(ON_USB, **{"/p/usb": NAMELESS}), [V], {}),
        # A disk without a name that lasts, and none of its pictures: perhaps another.
        (Files(A, B, "/p/usb/5", mounted=[NAMELESS]), dict(ON_USB, **{"/p/usb": NAMELESS}), [], {"/p/usb": AWAY}),
        # All pictures of the disk were deleted, and it is there.
        (Files(A, B, "/p/usb/notes.txt", mounted=[USB]), ON_USB, [U, V], {}),
        # A folder is missing as a whole: at the top, or further down.
        (Files(U, V, mounted=[USB]), ON_USB, [], {"/p/a": GONE}),
        (Files(U, V, "/p/a", mounted=[USB]), ON_USB, [A, B], {}),  # a file is in its place
        # Nothing is there at all.
        (Files(folders=["/p"]), {}, [], {"/p": EMPTIED}),
        # The system does not tell.
        (Files(A, U, V, mounted=[USB], unknown=[B]), ON_USB, [], {}),
    ],
)
def test_decisions_on_removal(disk, volumes, pruned, told):
    recorded = {path: Recorded(Stamp(1, 7, 7)) for path in (A, B, U, V)}
    found = Found(paths={path for path in disk.files if path.endswith(".png")}, roots=("/p/",))
    for prune in (True, False):
        decided = plan(found, recorded, volumes, disk, prune=prune)
        assert decided.prune == (pruned if prune else [])
        if prune or GONE not in told.values():
            assert dict(decided.failed) == told
        unknown = set(disk.unknown)
        assert sorted(decided.missing) == sorted({A, B, U, V} - disk.files.keys() - unknown)
    again = {path: then._replace(missing=path in decided.missing) for path, then in recorded.items()}
    assert plan(found, again, volumes, disk).failed == [(p, WITHOUT_PICTURES) for p in told if p == "/p"]  # told once
    everything = plan(Found(roots=("",)), recorded, volumes, disk, named=["/p/"], prune=True)
    if "/p" not in told:
        assert (everything.prune, dict(everything.failed)) == (pruned, told)


@pytest.mark.parametrize(("name", "known"), [("/p/a", True), (A, True), ("/q", True), ("/p/aa", False), ("/r", False)])
def test_only_what_the_gallery_holds_may_have_been_deleted(name, known):
    found = Found(failed=[(name, NOWHERE)])
    decided = plan(found, {A: Recorded(Stamp(1, 7))}, {}, Files(), named=["/q/"])
    assert decided.failed == [(name, DELETED if known else NOWHERE)]


def test_a_folder_below_a_missing_one_may_be_removed():
    recorded = {path: Recorded(Stamp(1, 7)) for path in (A, "/p/a/below/3.png")}
    decided = plan(Found({A}, ("/p/",)), recorded, {"/p/a/below": HOME}, Files(A), prune=True)
    assert decided.prune == ["/p/a/below/3.png"]
    assert plan(Found(roots=("",)), recorded, {}, Files(A), named=["/p/a/below/"], prune=True).prune == []


@pytest.mark.parametrize(
    ("then", "read"),
    [
        (Recorded(Stamp(1, 7, 7)), False),
        (Recorded(Stamp(1, 7)), False),  # without ctime, as an older alnumpy recorded it
        (Recorded(Stamp(1, 7, 8)), True),  # replaced by one of the same size and time
        (Recorded(Stamp(1, 8, 7)), True),
        (Recorded(Stamp(2, 7, 7)), True),
        (Recorded(Stamp(1, 7, 7), again=True), True),
        (Recorded(Stamp(1, 7, 7), error="broken"), False),
        (Recorded(Stamp(1, 7, 7), missing=True), False),
        (Recorded(Stamp(1, 7, 7), left_out=True), False),
        (None, True),
    ],
)
def test_decisions_on_reading(then, read):
    decided = plan(Found({A}, ("/p/",)), {} if then is None else {A: then}, {}, Files(A))
    assert (decided.read, decided.keep) == (([A], []) if read else ([], [A]))
    assert decided.volumes == {"/p/a": HOME}
    if not read:
        assert decided.back == ([A] if then.missing or then.left_out else [])
        assert decided.failed == ([(A, "broken")] if then.error else [])
        assert decided.stamps == ({A: Stamp(1, 7, 7)} if then.stamp.ctime_ns is None else {})
        assert plan(Found({A}, ("/p/",)), {A: then}, {}, Files(A), rehash=True).read == [A]


@pytest.mark.parametrize(
    ("recorded", "now", "respelled"),
    [
        ([NFD], [NFC], {NFD: NFC}),
        ([NFC], [NFD], {NFC: NFD}),
        ([NFD], [NFD], {}),
        ([NFD], [NFD, NFC], {}),  # both are there
        ([NFD, NFC], [MIXED], {}),  # nobody knows which of the two it was
        ([NFD], [NFC, MIXED], {}),
        (["/p/a.png"], ["/p/b.png"], {}),
    ],
)
def test_composed_and_decomposed_names_match_if_one_fits_one(recorded, now, respelled):
    gallery = {path: Recorded(Stamp(1, 7, 7)) for path in recorded}
    decided = plan(Found(set(now), ("/p/",)), gallery, {}, Files(*now), prune=True)
    assert decided.respelled == respelled
    if respelled:
        assert (decided.read, decided.keep, decided.missing, decided.prune) == ([], now, [], [])


# Rules of what to leave out


def draw(root, *names):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(root / name, seed)


def found_in(root, **rules):
    return sorted(os.path.relpath(path, root) for path in find(root, Rules(**rules)).paths)


def test_files_left_out_by_default(tmp_path):
    hidden = [
        ".hidden.png", ".thumbnails/a.png", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "@__thumb/a.jpg", "#recycle/a.jpg",
        "$RECYCLE.BIN/a.png", "$Recycle.Bin/b.png", ".Trash-1000/files/a.jpg", ".stversions/a~1.jpg",
        "lost+found/a.png", ".zfs/snapshot/x/a.jpg", "SYNOFILE_THUMB_M.jpg", "LR Previews.lrdata/a.jpg",
        "below/.git/a.png", "none/deep/a.png",
    ]  # fmt: skip
    taken = ["a.png", "below/b.png", "eaDir/c.png", "Recycle/d.png", "ü.png"]
    draw(tmp_path, *hidden, *taken)
    (tmp_path / "none" / ".nomedia").touch()
    (tmp_path / "below" / "._b.png").write_bytes(b"\0\5\x16\7")  # a companion file of macOS, hidden or not
    assert found_in(tmp_path) == sorted(taken)
    assert found_in(tmp_path, hidden=True) == sorted(taken + hidden)
    assert found_in(tmp_path / ".thumbnails") == ["a.png"]  # a named folder is taken
    assert found_in(tmp_path / "none") == ["deep/a.png"]


def test_patterns_of_excluded_files(tmp_path):
    names = ["a.png", "a.jpg", "drafts/b.png", "2019/drafts/c.png", "2019/d.png", ".e/f.png"]
    draw(tmp_path, *names)
    assert found_in(tmp_path, exclude=("*.jpg",)) == ["2019/d.png", "2019/drafts/c.png", "a.png", "drafts/b.png"]
    assert found_in(tmp_path, exclude=("drafts",)) == ["2019/d.png", "a.jpg", "a.png"]
    for pattern in ("2019/drafts", "/2019/drafts", "2019/drafts/", "2019/*ts"):
        assert found_in(tmp_path, exclude=(pattern,)) == ["2019/d.png", "a.jpg", "a.png", "drafts/b.png"]
    rules = {"exclude": ("[ad].*", "Drafts"), "hidden": True}
    assert found_in(tmp_path, **rules) == [".e/f.png", "2019/drafts/c.png", "drafts/b.png"]


def test_a_picture_left_out_by_a_rule_is_not_found_and_keeps_its_embedding(folder, path, embedder):
    (folder / ".hidden").mkdir()
    noise(folder / ".hidden" / "d.png", 9)
    with Gallery(path, embedder, "a") as opened:
        assert opened.index(folder, hidden=True).embedded == 4
        contents = opened.stats()["contents"]
        for _ in range(2):  # the gallery keeps the rule
            report = opened.index(folder, prune=True)
            assert (report.left_out, report.vanished, report.pruned) == (0, 0, 0)
        assert opened.index(folder, exclude=["below"]).left_out == 1
        report = opened.index(folder, hidden=False, prune=True)
        assert (report.left_out, report.vanished, report.pruned) == (1, 0, 0)
        assert sorted(names(opened.search(np.zeros(24))[0])) == ["a.png", "b.png"]
        stats = opened.stats()
        assert (stats["left_out"], stats["pictures"], stats["contents"]) == (2, 2, contents)
        assert (stats["exclude"], stats["hidden"]) == (("below",), False)
        assert [os.path.basename(row.path) for row in opened if row.left_out] == ["d.png", "c.png"]
        shutil.rmtree(folder / "below")  # whether files are missing does not matter if they are left out
        report = opened.update(prune=True)
        assert (report.left_out, report.vanished, report.pruned) == (0, 0, 0)
        assert counts(opened.index(folder, hidden=True)) == {"unchanged": 4}
        with pytest.raises(GalleryError, match=r"lost: not among the patterns to leave out: below"):
            opened.index(folder, include=["lost"])
        assert counts(opened.index(folder, include=["below"])) == {"unchanged": 4, "vanished": 1}
        assert opened.stats()["exclude"] == ()
    for damage in ("", "[]", "{}x", '{"exclude": 3}', '{"exclude": [3]}', '{"hidden": 1}', '{"other": 1}'):
        change(path, "UPDATE meta SET value = ? WHERE key = 'rules'", damage)
        with Gallery(path, embedder, "a") as opened, pytest.raises(GalleryError, match=r"its rules .* are damaged"):
            opened.index(folder)


# Disks


MOUNTED = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[3])
from galleries import Counting, counts, noise, small_weights
from alnumpy import Gallery
def mount(*more): subprocess.run(["mount", "-t", "tmpfs", "none", "media/B"], check=True)
def umount(): subprocess.run(["umount", "media/B"], check=True)
os.chdir(sys.argv[1])
with Gallery("g.db", Counting(small_weights(), backend="numpy", threads=1), "a") as opened:
    def index():
        report = opened.index("media", prune=True)
        told = {os.path.relpath(path): reason.partition(";")[0] for path, reason in report.failed}
        print(report.pruned, told, len(opened), flush=True)
    mount()
    noise("media/B/2.png", 2)
    index()
    umount()
    index()                                        # the mount point is empty
    open("media/B/placeholder", "w").close()
    index()
    os.unlink("media/B/placeholder")
    os.rmdir("media/B")
    index()                                        # and is gone, as udisks leaves it
    os.mkdir("media/B")
    mount()
    noise("media/B/other.png", 3)
    index()                                        # another disk
    umount()
    print(opened.remove("media/B"))
"""


def test_a_disk_that_is_mounted_and_unmounted(tmp_path):
    unshare = ["unshare", "-rm"]
    (tmp_path / "media" / "B").mkdir(parents=True)
    try:
        mount = [*unshare, "mount", "-t", "tmpfs", "none", tmp_path / "media" / "B"]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount in a namespace of its own")
    noise(tmp_path / "media" / "1.png", 1)
    command = [*unshare, sys.executable, "-c", MOUNTED, tmp_path, "-", Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    away = "0 {'media/B': 'its disk is not there now'}"
    assert done.stdout.splitlines() == ["0 {} 2", f"{away} 2", f"{away} 2", f"{away} 2", f"{away} 3", "2"]
