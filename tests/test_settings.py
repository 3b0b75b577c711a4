"""The model and the settings that a gallery is bound to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from galleries import small_weights
from PIL import Image

import alnumpy
from alnumpy import Embedder, GalleryError, WeightsError, images, weights
from alnumpy.gallery import Gallery, Match
from alnumpy.images import Preprocessing
from alnumpy.settings import Settings, find_weights


def test_another_model_or_other_settings_are_refused(folder, path, embedder):
    with Gallery(path, embedder, "a", dtype="float16") as opened:
        opened.index(folder)
        assert opened.settings.size == 8
    other = small_weights()
    for different, message in (
        ({"embedder": Embedder(small_weights(1))}, "made with other weights, "),
        ({"embedder": Embedder(other, size=9)}, "made with size 8, not 9"),
        ({"embedder": embedder, "normalize": True}, "made with normalize False, not True"),
        ({"embedder": embedder, "dtype": "int8"}, "made with dtype float16, not int8"),
        ({"embedder": embedder, "fast_decode": False}, "made with decode fast, not full"),
        ({"embedder": Embedder(replace(other, preprocessing=replace(other.preprocessing, channels="BGR")))}, "other"),
        ({"embedder": alnumpy.load(size=32)}, "network small, not alnet; dimension 24, not 1280; size 8, not 32"),
    ):
        for mode in ("r", "a"):
            with pytest.raises(GalleryError, match=message):
                Gallery(path, mode=mode, **different)
    with Gallery(path, Embedder(other), dtype="float16", fast_decode=True) as opened:
        assert opened.dtype == "float16"


def test_any_embedder_of_the_same_weights_fits(folder, path, tmp_path):
    """A gallery applies its own rule, not the embedder's; a new one takes that of the embedder or its weights."""
    plain, says = small_weights(), replace(small_weights(), normalize=True)
    unit, raw = (Embedder(plain, normalize=normalize, backend="numpy", threads=1) for normalize in (True, False))
    for i, (embedder, choice, wanted) in enumerate(
        (
            (raw, None, False),
            (unit, None, True),
            (unit, False, False),
            (raw, True, True),
            (Embedder(says, backend="numpy", threads=1), None, True),
            (Embedder(says, backend="numpy", threads=1), False, False),
        )
    ):
        with Gallery(tmp_path / f"{i}.db", embedder, "a", normalize=choice) as opened:
            opened.index(folder)
            assert opened.settings.normalize == wanted
            picture = next(p for p in opened if p.embedding is not None)
            assert (np.linalg.norm(picture.embedding) == pytest.approx(1, abs=1e-5)) == wanted
        for other in (raw, unit):
            with Gallery(tmp_path / f"{i}.db", other, "a") as opened, Image.open(picture.path) as image:
                np.testing.assert_array_equal(opened.embed(image)[0], picture.embedding)  # computed, not looked up


def test_weights_are_found_by_their_content(tmp_path, monkeypatch):
    """The recorded file counts if it is unchanged; otherwise a file of any name with the same arrays."""
    monkeypatch.setenv("ALNUMPY_WEIGHTS", str(tmp_path / "named"))
    (tmp_path / "named").mkdir()
    made, other = replace(small_weights(), normalize=True), small_weights(1)
    weights.write(tmp_path / "made.h5", made)
    settings = Settings.of(Embedder(made, size=9), weights=str(tmp_path / "made.h5"), fast_decode=True)
    assert find_weights(settings).normalize
    (tmp_path / "made.h5").rename(tmp_path / "named" / "kept.h5")
    weights.write(tmp_path / "named" / "another.h5", other)
    (tmp_path / "named" / "damaged.h5").write_bytes(b"")
    np.testing.assert_equal(dict(find_weights(settings).parameters), made.parameters)
    weights.write(tmp_path / "made.h5", other)  # replaces the recorded file
    np.testing.assert_equal(dict(find_weights(settings).parameters), made.parameters)
    np.testing.assert_equal(dict(find_weights(replace(settings, weights="")).parameters), made.parameters)
    (tmp_path / "named" / "kept.h5").unlink()
    with pytest.raises(WeightsError, match=r"the small weights .*made\.h5\) are neither there nor .* --weights"):
        find_weights(settings)
    shipped = Settings.of(alnumpy.load(normalize=True), weights="/an/earlier/place/alnet-photo.h5")
    assert find_weights(shipped).spec.name == "alnet"


def test_a_gallery_without_pictures_is_not_bound_to_its_settings(folder, path, embedder, tmp_path):
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
    with Gallery(path) as opened:  # a reader sees the earlier settings
        assert (opened.bound, opened.dtype) == (False, "float16")
    with Gallery(path, mode="a") as opened:  # opening without an embedder changes nothing
        assert opened.dtype == "float16"
    with Gallery(path, embedder, "a") as opened:
        assert (opened.dtype, opened.settings.size) == ("float32", 8)


def test_fast_decoding_is_recorded_and_holds_for_queries(tmp_path, path, embedder):
    wave = np.sin(np.arange(320 * 240) / 7).reshape(240, 320) * 120 + 128
    Image.fromarray(wave.astype(np.uint8)).save(tmp_path / "a.jpg")
    with Gallery(path, embedder, "a") as opened:
        opened.index(tmp_path / "a.jpg")
        (row,) = opened
        assert (row.width, row.height) == (320, 240)
        whole = embedder.embed(tmp_path / "a.jpg")[0]
        difference = np.linalg.norm(row.embedding - whole) / np.linalg.norm(whole)
        assert 0 < difference < 0.1
        (fast,) = embedder.embed_files([tmp_path / "a.jpg"], fast_decode=True)
        assert (fast.embedding == row.embedding).all()
        assert (embedder.embed(tmp_path / "a.jpg", fast_decode=True)[0] == row.embedding).all()
    with Gallery(tmp_path / "whole.db", embedder, "a", fast_decode=False) as opened:
        opened.index(tmp_path / "a.jpg")
        assert [(row.embedding == whole).all() for row in opened] == [True]
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
