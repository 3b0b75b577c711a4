"""A gallery is made anew with another network; the old one stays until the new one is complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from galleries import dump, noise, small_weights

from alnumpy import Embedder, GalleryError, weights
from alnumpy.gallery import Gallery
from alnumpy.rebuilding import rebuild

TESTS = Path(__file__).parent


def other(seed=1, **options):
    return Embedder(small_weights(seed), backend="numpy", threads=1, **options)


@pytest.fixture
def gallery(path, folder, embedder):
    """A gallery with a rule, a single file from another folder, a missing picture and an unreadable one."""
    (folder.parent / "more").mkdir()
    single, gone = folder.parent / "more" / "single.png", folder / "gone.png"
    for seed, name in enumerate((single, gone, folder / "left.out.png"), 5):
        noise(name, seed)
    with Gallery(path, embedder, "a", dtype="float16", flip=True) as opened:
        opened.index(folder, exclude="*.out.png")
        opened.add(single)
        gone.unlink()
        opened.index(folder)
    return path


def beside(path):
    return sorted(name for name in os.listdir(path.parent) if name.startswith(path.name))


def fresh(path, folder, embedder, **options):
    """The contents of a gallery of the same pictures that was made with the new network at once."""
    with Gallery(path, embedder, "a", dtype="float16", flip=True, **options) as opened:
        opened.index(folder, exclude="*.out.png")
        opened.add(folder.parent / "more" / "single.png")
        return {picture.path: picture.embedding for picture in opened if picture.embedding is not None}


def test_everything_but_the_embeddings_is_kept(gallery, folder, tmp_path):
    with Gallery(gallery) as opened:
        before = {p.path: (p.hash, p.added, p.vanished, p.left_out) for p in opened}
        rules, folders = opened.stats()["exclude"], opened.folders
    report = rebuild(gallery, other(), weights="/w/other.h5")
    assert (report.embedded, [os.path.basename(path) for path, _ in report.failed]) == (4, ["broken.png"])
    assert beside(gallery) == ["gallery.db", "gallery.db-lock"]
    with Gallery(gallery, other()) as opened:
        assert {p.path for p in opened} == before.keys()
        for p in opened:
            hash, _, vanished, left_out = before[p.path]
            assert (p.vanished, p.left_out) == (vanished, left_out)
            assert p.error is not None or p.hash == hash
        assert (opened.stats()["exclude"], opened.folders) == (rules, folders)
        assert (opened.settings.weights, opened.dtype, opened.settings.flip) == ("/w/other.h5", "float16", True)
        found = {p.path: p.embedding for p in opened if p.embedding is not None}
        wanted = fresh(tmp_path / "fresh.db", folder, other())
        assert found.keys() == wanted.keys()
        for name, embedding in wanted.items():
            np.testing.assert_array_equal(found[name], embedding)
            assert opened.search(name, k=1)[0][0].path == name
    noise(folder / "gone.png", 6)  # the missing picture is back, and recognised
    with Gallery(gallery, other(), "a") as opened:
        assert opened.index().embedded == 1
        assert opened.search(folder / "gone.png", k=1)[0][0].path == str(folder / "gone.png")


def test_options_of_a_new_gallery_can_be_changed(gallery):
    assert rebuild(gallery, other(0), dtype="int8", flip=False, normalize=True, fast_decode=True) is not None
    with Gallery(gallery) as opened:
        settings = opened.settings
        assert (settings.dtype, settings.flip, settings.normalize, settings.decode) == ("int8", False, True, "fast")
    assert rebuild(gallery, other(0), normalize=True) is None  # nothing would change
    says = replace(small_weights(0), normalize=True)
    assert rebuild(gallery, Embedder(says, backend="numpy", threads=1)) is None
    assert rebuild(gallery, other(0)) is not None  # these weights say otherwise
    with Gallery(gallery) as opened:
        assert not opened.settings.normalize


def test_the_old_gallery_is_searched_until_the_new_one_is_complete(gallery, folder, embedder):
    reader = Gallery(gallery, embedder)
    wanted = reader.search(folder / "a.png")
    seen = []

    def progress(done, total):
        with Gallery(gallery, embedder) as opened:
            seen.append(opened.search(folder / "a.png") == reader.search(folder / "a.png") == wanted)
        with pytest.raises(GalleryError, match="another alnumpy is writing to it"):
            Gallery(gallery, embedder, "a")

    rebuild(gallery, other(), batch_size=2, progress=progress)
    assert seen == [True] * 3
    with reader:  # the reader must not compare embeddings of two networks
        for ask in (
            lambda: reader.search(folder / "a.png"),
            lambda: reader.search(folder / "a.png", folders=folder),
            lambda: reader.groups(1.0),
            lambda: reader.damaged,
        ):
            with pytest.raises(GalleryError, match="made anew meanwhile"):
                ask()
        with Gallery(gallery, other()) as opened:  # shares its connection
            assert opened.search(folder / "a.png", k=1)[0][0].path == str(folder / "a.png")
            with pytest.raises(GalleryError, match="made anew meanwhile"):
                reader.search(folder / "a.png")


def test_pictures_out_of_reach_are_not_lost(gallery, folder, embedder):
    before = dump(gallery)
    (folder / "a.png").rename(folder / "hidden")
    with pytest.raises(GalleryError, match=r"left as it was, since 1 of its pictures.*a\.png: let alnumpy index mark"):
        rebuild(gallery, other())
    (folder / "a.png").write_text("damaged")
    with pytest.raises(GalleryError, match="left as it was, since 1 of its pictures"):
        rebuild(gallery, other())
    assert dump(gallery) == before
    assert rebuild(gallery, other(), prune=True) is not None
    with Gallery(gallery) as opened:
        assert [os.path.basename(p.path) for p in opened if p.error] == ["a.png", "broken.png"]


def test_a_file_that_is_not_a_rebuild_is_left_alone(gallery, folder, embedder, tmp_path):
    with Gallery(f"{gallery}-new", embedder, "a") as opened:
        opened.index(folder)
    before = dump(Path(f"{gallery}-new"))
    with pytest.raises(GalleryError, match="in the way, and not part of a rebuild that was stopped"):
        rebuild(gallery, other())
    assert dump(Path(f"{gallery}-new")) == before
    with pytest.raises(GalleryError, match="no such gallery"):
        rebuild(tmp_path / "none.db", other())
    assert not (tmp_path / "none.db").exists()
    with Gallery(gallery) as opened:
        opened.reduce(tmp_path / "small.db", 2)
    with pytest.raises(GalleryError, match=r"small\.db: reduced"):
        rebuild(tmp_path / "small.db", other())


KILLED = """
import os, signal, sys
from galleries import small_weights
from alnumpy import Embedder
from alnumpy.database import Database
from alnumpy.rebuilding import rebuild

path, seed, moment = sys.argv[1:]

def kill(done=0, *_):
    os.kill(os.getpid(), signal.SIGKILL)

def half_way(db, target):
    target._db.backup(db._db, pages=1, progress=lambda status, left, total: kill() if left < total // 2 else None)

def after(db, target):
    target._db.backup(db._db)
    kill()

if moment != "embedding":
    Database.take_over = {"half way": half_way, "after": after}[moment]
progress = kill if moment == "embedding" else None
rebuild(path, Embedder(small_weights(int(seed)), backend="numpy", threads=1), batch_size=2, progress=progress)
"""


def kill_at(moment, gallery, seed=1):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", KILLED, gallery, str(seed), moment]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize(("moment", "embedded"), [("embedding", 2), ("half way", 0)])
def test_a_killed_rebuild_is_continued(gallery, folder, embedder, tmp_path, moment, embedded):
    with Gallery(gallery, embedder) as opened:
        wanted = opened.search(folder / "a.png")
    before = dump(gallery)
    kill_at(moment, gallery)
    assert dump(gallery) == before
    with Gallery(gallery, embedder) as opened:
        assert opened.search(folder / "a.png") == wanted
    noise(folder / "new.png", 9)  # indexed between the two runs, and not lost
    with Gallery(gallery, embedder, "a") as opened:
        assert opened.index(folder).embedded == 1
    assert rebuild(gallery, other()).embedded == embedded + 1  # the run continues
    assert beside(gallery) == ["gallery.db", "gallery.db-lock"]
    with Gallery(gallery) as opened:
        found = {p.path: p.embedding for p in opened if p.embedding is not None}
    wanted = fresh(tmp_path / "fresh.db", folder, other())
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_rebuild_killed_after_it_was_complete(gallery, folder):
    kill_at("after", gallery)
    with Gallery(gallery, other()) as opened:
        assert opened.search(folder / "a.png", k=1)[0][0].path == str(folder / "a.png")
    assert rebuild(gallery, other()) is None
    assert beside(gallery) == ["gallery.db", "gallery.db-lock"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_rebuild_with_another_network_begins_anew(gallery, folder):
    kill_at("embedding", gallery)
    assert rebuild(gallery, other(2)).embedded == 4
    with Gallery(gallery, other(2)) as opened:
        assert opened.search(folder / "a.png", k=1)[0][0].path == str(folder / "a.png")


def test_relative_paths_stay_so(gallery, folder, embedder, tmp_path):
    with Gallery(gallery, embedder, "a", relative=True) as opened:
        paths = [p.path for p in opened]
    assert rebuild(gallery, other()).embedded == 4
    with Gallery(gallery) as opened:
        assert [p.path for p in opened] == paths
    (tmp_path / "disk").mkdir()
    for name in ("gallery.db", "pictures", "more"):
        (tmp_path / name).rename(tmp_path / "disk" / name)
    with Gallery(tmp_path / "disk" / "gallery.db", other()) as opened:
        moved = tmp_path / "disk" / "pictures" / "a.png"
        assert opened.search(moved, k=1)[0][0].path == str(moved)


def test_small_pages_of_an_earlier_version(gallery, folder, embedder):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(gallery)) as connection:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("VACUUM")
    with Gallery(gallery, embedder) as reader:
        reader.search(folder / "a.png")
        assert rebuild(gallery, other()).embedded == 4


def test_by_the_command_line(path, folder, tmp_path, capsys, monkeypatch):
    from alnumpy.cli import main

    shutil.copy(weights.locate("alnet-mnist"), tmp_path / "own.h5")
    (folder / "broken.png").unlink()
    assert main(["index", str(folder), "--db", str(path), "--backend", "numpy", "--dtype", "int8"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alnumpy: {path}: a new gallery with alnet-photo")
    command = f"alnumpy index --weights efficientnet-lite0 --rebuild --db {path}"
    assert line.endswith(command)
    assert main([*command.split()[1:], "--size", "32", "--backend", "numpy"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 embedded, 0 recognised, 0 unchanged")
    assert err == ""
    with Gallery(path) as opened:
        settings = opened.settings
        assert (settings.network, settings.size, settings.normalize) == ("efficientnet-lite0", 32, True)
        assert settings.dtype == "int8"
    assert main(["index", "--rebuild", "--db", str(path), "--backend", "numpy"]) == 0
    assert capsys.readouterr().err == f"alnumpy: {path}: made with these weights and settings already\n"
    assert main(["index", "--rebuild", "--weights", str(tmp_path / "own.h5"), "--db", str(path)]) == 0
    with Gallery(path) as opened:
        assert (opened.settings.weights, opened.settings.size) == (str(tmp_path / "own.h5"), 28)
    for wrong in ([str(folder)], ["--watch"], ["--exclude", "x"], ["--no-hidden"], ["--rehash"]):
        assert main(["index", "--rebuild", *wrong, "--db", str(path)]) == 2
