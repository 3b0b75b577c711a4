"""Averages with the mirrored picture, and galleries of fewer dimensions."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from galleries import change, counts, noise, small_weights
from PIL import Image

from alnumpy import Embedder, GalleryError, packed
from alnumpy.gallery import Gallery, Match
from alnumpy.packed import decode, encode
from alnumpy.postprocess import learn_whitening, whiten


@pytest.mark.parametrize("normalize", [False, True])
def test_flips_are_averaged_in_the_gallery_and_for_queries(tmp_path, path, normalize):
    embedder = Embedder(small_weights(), normalize=normalize, backend="numpy", threads=2)
    plain = Embedder(small_weights(), backend="numpy")
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(5):
        noise(root / f"{i}.png", i, (8, 8))  # the network's size, so it is not resized
    mirrored = Image.open(root / "3.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(tmp_path / "mirrored.png")
    with Gallery(path, embedder, "a", flip=True) as opened:
        opened.index(root)
        stored = list(opened)[3].embedding
        wanted = plain.embed([root / "3.png", tmp_path / "mirrored.png"]).mean(0)
        wanted /= np.linalg.norm(wanted) if normalize else 1
        np.testing.assert_allclose(stored, wanted, rtol=1e-6)
        for query in (tmp_path / "mirrored.png", mirrored, np.asarray(mirrored)):
            assert opened.search(query, 1) == [[Match(str(root / "3.png"), 0.0, False)]]
    with Gallery(tmp_path / "plain.db", embedder, "a") as opened:
        opened.index(root)
        assert opened.search(mirrored, 1)[0][0].distance > 0.001
    with Gallery(path, embedder) as opened:
        assert opened.settings.flip
    with pytest.raises(GalleryError, match="made with flip True, not False"):
        Gallery(path, embedder, flip=False)


@pytest.fixture
def source(tmp_path, path, embedder):
    """A gallery of 40 pictures: one a copy, one unreadable, one missing."""
    root = tmp_path / "many"
    root.mkdir()
    for i in range(38):
        noise(root / f"{i:02}.png", i)
    shutil.copy(root / "00.png", root / "38.png")
    (root / "39.png").write_text("hello")
    with Gallery(path, embedder, "a") as opened:
        opened.index(root)
        os.unlink(root / "37.png")
        opened.index(root)
    return root


def test_a_reduced_gallery_is_whitened_and_searched_like_any_other(source, path, embedder, tmp_path):
    with Gallery(path) as whole:
        kept = whole.reduce(tmp_path / "small.db", 4)
        with pytest.raises(GalleryError, match=r"small.db: exists already; choose another name"):
            whole.reduce(tmp_path / "small.db", 4)
        rows = [row for row in whole if row.embedding is not None]
    contents = np.stack([row.embedding for row in rows if not row.path.endswith("38.png")])  # each content once
    mean, projection, share = learn_whitening([contents], 4)
    assert kept == pytest.approx(share)
    assert 0.3 < kept < 1
    findable = [row for row in rows if not row.vanished]
    wanted = whiten(np.stack([row.embedding for row in findable]), mean, projection)
    with Gallery(tmp_path / "small.db", embedder) as small:
        found = list(small)
        assert [row[:6] + row[7:] for row in found] == [row[:6] + row[7:] for row in findable]
        vectors = np.stack([row.embedding for row in found])
        cosines = np.abs(np.linalg.svd(vectors.T @ wanted)[1])  # axes have no direction: signs may differ
        assert np.linalg.norm(np.abs(vectors) - np.abs(wanted)) < 1e-3
        assert cosines.min() > 1
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        assert (small.dimension, small.settings.reduced) == (4, True)
        for query, same in ((source / "05.png", True), (Image.open(source / "05.png"), False)):
            first = small.search(query, 3)[0][0]
            assert first == Match(str(source / "05.png"), 0.0, same)
        assert small.search(vectors[7], 1)[0][0].path == found[7].path
        with pytest.raises(ValueError, match=r"\(Q, 4\), not \(24,\)"):
            small.search(np.zeros(24))
        with pytest.raises(GalleryError, match="reduced already"):
            small.reduce(tmp_path / "smaller.db", 2)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_new_pictures_are_whitened_by_the_recorded_projection(source, path, tmp_path, dtype):
    embedder = Embedder(small_weights(), normalize=True, backend="numpy", threads=2)
    settings = {"dtype": dtype, "flip": True}
    with Gallery(tmp_path / "whole.db", embedder, "a", **settings) as whole:
        whole.index(source)
        whole.reduce(tmp_path / "small.db", 5)
    noise(source / "new.png", 1000)
    with Gallery(tmp_path / "exact.db", embedder, "a", flip=True) as exact:
        exact.index(source / "new.png")
        (new,) = exact
    with Gallery(tmp_path / "small.db", embedder, "a", **settings, batch_size=7) as small:
        report = small.index(source)
        assert counts(report) == {"embedded": 1, "unchanged": 38}  # the copy and the earlier pictures are there
        assert [os.path.basename(failed) for failed, _ in report.failed] == ["39.png"]
        (mean, projection) = small._encoder.whitening
        (row,) = (row for row in small if row.path.endswith("new.png"))
        wanted = decode(encode(whiten(new.embedding[None], mean, projection), dtype), dtype)[0]
        np.testing.assert_array_equal(row.embedding, wanted)
        assert small.search(Image.open(source / "new.png"), 1)[0][0].path == row.path
    for different in ({"embedder": Embedder(small_weights(1))}, {"embedder": embedder, "flip": False}):
        with pytest.raises(GalleryError, match="made with"):
            Gallery(tmp_path / "small.db", **different)


def test_a_failed_reduction_leaves_nothing_behind(source, path, embedder, tmp_path, monkeypatch):
    before = sorted(os.listdir(tmp_path))
    with Gallery(path) as whole:
        for dimensions in (25, 1000):
            with pytest.raises(GalleryError, match=r"38 embeddings vary along \d+ axes.*take fewer dimensions"):
                whole.reduce(tmp_path / "small.db", dimensions)
        with pytest.raises(GalleryError, match=r"nowhere/small.db: cannot be written \(No such file"):
            whole.reduce(tmp_path / "nowhere" / "small.db", 4)
        for name in ("small.db", "small.db-wal", "small.db-journal"):  # the last two SQLite would write into it
            (tmp_path / name).write_text("")
            with pytest.raises(GalleryError, match=rf"{name}: exists already; choose another name, or remove it"):
                whole.reduce(tmp_path / "small.db", 4)
            (tmp_path / name).unlink()
        monkeypatch.setattr(packed, "encode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            whole.reduce(tmp_path / "small.db", 4)
    assert sorted(os.listdir(tmp_path)) == before
    with (
        Gallery(tmp_path / "empty.db", embedder, "a") as empty,
        pytest.raises(GalleryError, match="0 embeddings vary along 0 axes"),
    ):
        empty.reduce(tmp_path / "small.db", 1)


def test_a_damaged_whitening_is_refused(source, path, embedder, tmp_path):
    with Gallery(path) as whole:
        whole.reduce(tmp_path / "small.db", 4)
    infinite = np.full(24, np.inf, "<f4").tobytes()
    for damage in (infinite, b"", b"x" * 95, "x" * 96, 17):
        change(tmp_path / "small.db", "UPDATE whitening SET mean = ?", damage)
        with pytest.raises(GalleryError, match=r"small.db: its whitening is damaged; reduce the whole gallery again"):
            Gallery(tmp_path / "small.db", embedder)
    with Gallery(tmp_path / "small.db") as small:  # works without it
        assert small.search(source / "05.png", 1)[0][0].same
