"""What a gallery is bound to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from galleries import small_weights
from PIL import Image

import alnumpy
from alnumpy import Embedder, GalleryError, images
from alnumpy.gallery import Gallery, Match
from alnumpy.images import Preprocessing
from alnumpy.settings import Settings


def test_another_model_or_other_settings_are_refused(folder, path, embedder):
    with Gallery(path, embedder, "a", dtype="float16") as opened:
        opened.index(folder)
        assert opened.settings.size == 8
    other = small_weights()
    for different, message in (
        ({"embedder": Embedder(small_weights(1))}, "made with other weights, "),
        ({"embedder": Embedder(other, size=9)}, "made with size 8, not 9"),
        ({"embedder": Embedder(other, normalize=True)}, "made with normalize False, not True"),
        ({"embedder": embedder, "dtype": "int8"}, "made with dtype float16, not int8"),
        ({"embedder": embedder, "fast_decode": True}, "made with decode full, not fast"),
        ({"embedder": Embedder(replace(other, preprocessing=replace(other.preprocessing, channels="BGR")))}, "other"),
        ({"embedder": alnumpy.load(size=32)}, "network small, not alnet; dimension 24, not 1280; size 8, not 32"),
    ):
        for mode in ("r", "a"):
            with pytest.raises(GalleryError, match=message):
                Gallery(path, mode=mode, **different)
    with Gallery(path, Embedder(other), dtype="float16", fast_decode=False) as opened:
        assert opened.dtype == "float16"


def test_a_gallery_without_pictures_is_bound_to_nothing(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a", dtype="int8", flip=True) as opened:
        opened.index(tmp_path / "mistyped")
        assert not opened.bound
    other = Embedder(small_weights(1), size=9, normalize=True, backend="numpy", threads=1)
    with Gallery(path, other, "a", dtype="float16") as opened:
        assert opened.settings == Settings.of(other, dtype="float16")
        opened.index(folder)
    with pytest.raises(GalleryError, match="made with"):
        Gallery(path, embedder, "a")
    with Gallery(path, mode="a") as opened:
        assert opened.bound
        opened.remove(folder)
    with Gallery(path) as opened:  # a reader is told what it was
        assert (opened.bound, opened.dtype) == (False, "float16")
    with Gallery(path, mode="a") as opened:  # and who brings no embedder changes nothing
        assert opened.dtype == "float16"
    with Gallery(path, embedder, "a") as opened:
        assert (opened.dtype, opened.settings.size) == ("float32", 8)


def test_fast_decoding_is_recorded_and_holds_for_queries(tmp_path, path, embedder):
    wave = np.sin(np.arange(320 * 240) / 7).reshape(240, 320) * 120 + 128
    Image.fromarray(wave.astype(np.uint8)).save(tmp_path / "a.jpg")
    with Gallery(path, embedder, "a", fast_decode=True) as opened:
        opened.index(tmp_path / "a.jpg")
        (row,) = opened
        assert (row.width, row.height) == (320, 240)
        whole = embedder.embed(tmp_path / "a.jpg")[0]
        difference = np.linalg.norm(row.embedding - whole) / np.linalg.norm(whole)
        assert 0 < difference < 0.1
    with Gallery(path, embedder) as opened:
        assert opened.settings.fast_decode
        Image.open(tmp_path / "a.jpg").save(tmp_path / "c.jpg", quality="keep", comment="other bytes, same pixels")
        assert opened.search(tmp_path / "c.jpg") == [[Match(str(tmp_path / "a.jpg"), 0.0, False)]]


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_decodes_a_jpeg_smaller_but_not_below_the_side(tmp_path, orientation):
    y, x = np.mgrid[0:600, 0:1000]
    pixels = np.stack([x * 255 / 999, y * 255 / 599, np.full(x.shape, 90)], 2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    for draft, scale in ((0, 1), (75, 8), (76, 4), (300, 2), (301, 1)):
        image, size = images.read_file(tmp_path / "a.jpg", draft=draft)
        upright = (1000, 600) if orientation == 1 else (600, 1000)
        assert size == upright
        assert image.size == (upright[0] // scale, upright[1] // scale)
    whole, fast = (
        images.preprocess(images.read_file(tmp_path / "a.jpg", draft=d)[0], Preprocessing(32, (0, 0, 0), (1, 1, 1)))
        for d in (0, 64)
    )
    assert 0 < np.abs(whole - fast).mean() < 2 / 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert images.read_file(tmp_path / "a.png", draft=8)[0].size == (1000, 600)
