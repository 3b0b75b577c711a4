"""From file to network input, in every format and colour mode."""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import pytest
from conftest import given, st
from PIL import Image

import alnumpy
import fuzz
from alnumpy import ImageError, SpecError, images
from alnumpy.images import Preprocessing, preprocess, read
from fuzz import image_seeds

HOW = Preprocessing(size=8, mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 2.0))


def gradient(width=12, height=9):
    """A picture whose pixels all differ: red rises to the right, green downwards, blue is constant."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 20, y * 25, np.full_like(x, 90)], 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tiff", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 100, "subsampling": 0}, 3),
        ("gif", {}, 8),
    ],
)
def test_each_format(tmp_path, suffix, options, tolerance):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(gradient()).save(path, **options)
    image = read(path)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - gradient()).max() <= tolerance


def test_a_format_outside_the_list_is_refused(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(gradient()).save(path, format="PPM")
    with pytest.raises(ImageError, match=r"picture.png: this is PPM, which is not supported; save it as JPEG or PNG"):
        read(path)


def test_unreadable_kinds_of_files_are_named(tmp_path):
    heads = {
        "this is a video, which is not supported": b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(100),
        "this is an HTML page, which is not supported": b"<!DOCTYPE html><html>Not found</html>",
        "this is JPEG XL, which is not supported; save it as JPEG or PNG": b"\xff\x0a" + bytes(100),
        "not a picture that can be read (JPEG, PNG, WebP, BMP, GIF, TIFF": b"a letter",
        "damaged PNG: the header before its pixels cannot be read": b"\x89PNG\r\n\x1a\n" + bytes(9),
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(2000),
    }
    for reason, head in heads.items():
        (tmp_path / "photo.jpg").write_bytes(head)
        with pytest.raises(ImageError, match="photo.jpg: .*" + re.escape(reason)):
            read(tmp_path / "photo.jpg")


def test_a_raw_picture_is_not_read_as_a_tiff(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.dng", format="TIFF")
    with pytest.raises(ImageError, match="this is a camera's RAW picture"):
        read(tmp_path / "a.dng")


def test_pictures_are_found_by_name_or_by_first_bytes(tmp_path):
    names = ["a.jfif", "b.jpe", "c.mpo", "d", "e.JPG~", "f.heic", "g.dng", "h.bmp"]
    for name in names:
        Image.fromarray(gradient()).save(tmp_path / name, format="JPEG")
    (tmp_path / "notes").write_text("a letter")
    (tmp_path / "broken.jpg").write_text("a letter")  # found by its name, so it is reported
    (tmp_path / "._d").write_bytes((tmp_path / "d").read_bytes())
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "missing", tmp_path / "link")
    found = images.find(tmp_path)
    assert [os.path.basename(path) for path in found] == sorted([*names, "broken.jpg"])
    for path in found:
        if not path.endswith("broken.jpg"):
            assert read(path).size == (12, 9)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = gradient()
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "a.png")), upright)


def test_palette(tmp_path):
    image = Image.fromarray(gradient()).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "a.png")), np.asarray(image.convert("RGB")))


def test_transparent_palette_is_laid_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    assert [read(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


def test_alpha_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 0), (200, 0, 0, 255), (200, 0, 0, 51)])
    image.save(tmp_path / "a.png")
    pixels = [read(tmp_path / "a.png").getpixel((x, 0)) for x in range(3)]
    assert pixels == [(255, 255, 255), (200, 0, 0), (244, 204, 204)]


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (100, 255)])
    image.save(tmp_path / "a.png")
    assert [read(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (100,) * 3]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_is_repeated(tmp_path, mode):
    image = Image.fromarray(gradient()).convert(mode)
    image.save(tmp_path / "a.png")
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "a.png")), np.stack([grey] * 3, 2))


def test_exif_orientation_of_a_pil_image():
    image = Image.fromarray(gradient())
    image.getexif()[0x0112] = 3
    np.testing.assert_array_equal(np.asarray(read(image)), gradient()[::-1, ::-1])


@pytest.mark.parametrize(("mode", "source"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_alpha(mode, source):
    image = Image.new(source, (2, 1))
    image.putdata([(0, 0), (100, 255)] if source == "LA" else [(0, 0, 0, 0), (100, 100, 100, 255)])
    picture = read(image.convert(mode))
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (100,) * 3]


def test_palette_with_alpha():
    image = Image.new("PA", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([(0, 0), (1, 255)])
    assert [read(image).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (200, 100, 50)]


def test_transparent_16_bit_grey_is_white(tmp_path):
    values = np.array([[0x1234, 0x4567]], np.uint16)
    data = io.BytesIO()
    Image.fromarray(values).save(data, "PNG")
    at = data.getvalue().index(b"IDAT") - 4
    transparent = struct.pack(">I4sH", 2, b"tRNS", 0x1234)
    transparent += struct.pack(">I", zlib.crc32(transparent[4:]))
    (tmp_path / "a.png").write_bytes(data.getvalue()[:at] + transparent + data.getvalue()[at:])
    assert np.asarray(read(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0x45]


def tiff_of_16_bits(path, values, bits, photometric):
    """A TIFF written by hand: Pillow writes neither 12 bits nor white as 0."""
    pixels = np.array(values, "<u2").tobytes()
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(pixels)))
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags))
    data += b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    path.write_bytes(data + bytes(4))


def test_16_bit_tiff_with_white_as_0(tmp_path):
    tiff_of_16_bits(tmp_path / "a.tiff", [0, 65535, 0x4000], 16, photometric=1)
    assert np.asarray(read(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 255, 64]
    tiff_of_16_bits(tmp_path / "a.tiff", [0, 65535, 0x4000], 16, photometric=0)
    assert np.asarray(read(tmp_path / "a.tiff"))[0, :, 0].tolist() == [255, 0, 191]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(read(tmp_path / f"a.{suffix}"))[0, :, 1].tolist() == [0, 0, 1, 128, 255]


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(read(tmp_path / "a.jpg"))[4, 4].astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize(
    "values", [np.array([[0.5]], np.float32), np.array([[70_000]], np.int32), np.array([[-1]], np.int32)]
)
def test_pixels_without_a_defined_brightness_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"a.tiff: .* no defined brightness"):
        read(tmp_path / "a.tiff")


def test_sources_other_than_files():
    np.testing.assert_array_equal(np.asarray(read(gradient())), gradient())
    np.testing.assert_array_equal(np.asarray(read(Image.fromarray(gradient()))), gradient())
    for wrong in (None, 3, {}, io.StringIO("a.png")):
        with pytest.raises(TypeError, match="a picture"):
            read(wrong)
    with pytest.raises(ImageError, match="picture: not a picture that can be read"):
        read(b"a.png")
    with pytest.raises(ImageError, match="without pixels"):
        read(Image.new("RGB", (0, 5)))
    for wrong in (gradient().astype(float), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(ImageError, match="must be uint8"):
            read(wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"hello", "not a picture"), (None, "truncated")],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    if content is None:
        Image.fromarray(gradient(200, 200)).save(path)
        content = path.read_bytes()[:-500]
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"a.jpg: .*{message}"):
        read(path)


def test_a_fifo_or_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    for name, message in [("fifo.png", "not a regular"), ("dangling.png", "No such file"), ("", "not a regular")]:
        with pytest.raises(ImageError, match=message):
            read(tmp_path / name)
    with pytest.raises(ImageError, match="null byte"):
        read("a\0b.png")


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", max_pixels=60_000).size == (300, 200)
    with pytest.raises(ImageError, match="300x200 pixels, more than the limit of 59999"):
        read(tmp_path / "a.png", max_pixels=59_999)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(ImageError, match="20000x10000 pixels, more than the limit"):
        read(path)


def test_normalisation():
    pixels = np.full((8, 8, 3), [255, 0, 51], np.uint8)
    x = preprocess(read(pixels), HOW)
    assert (x.shape, x.dtype) == ((3, 8, 8), np.float32)
    np.testing.assert_allclose(x[:, 0, 0], [1, -1, (0.2 - 0.125) / 2], rtol=1e-6)


def test_channels_bgr():
    pixels = np.full((8, 8, 3), [255, 0, 51], np.uint8)
    swapped = preprocess(read(pixels), Preprocessing(8, (0, 0, 0), (1, 1, 1), channels="BGR"))
    np.testing.assert_allclose(swapped[:, 0, 0], [0.2, 0, 1], rtol=1e-6)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["bilinear", "bicubic"]))
def test_proportions_are_kept(width, height, interpolation):
    """Cropping before resizing agrees with resizing the short side, then cropping the centre, except at the edges."""
    size = 10
    how = Preprocessing(size, (0, 0, 0), (1, 1, 1), interpolation=interpolation)
    y, x = np.mgrid[0:height, 0:width]
    picture = Image.fromarray(np.stack([x * 255 / width, y * 255 / height, x * 0], 2).astype(np.uint8))
    ours = preprocess(picture, how) * 255
    scale = size / min(width, height)
    resized = picture.resize((round(width * scale), round(height * scale)), images.INTERPOLATIONS[interpolation])
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    theirs = np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    step = 255 / min(resized.size)  # half a pixel of the gradient, plus pixels that the filter sees beyond the crop
    assert np.abs(ours - theirs).max() <= step + 2


def opencv_bilinear(pixels, size):
    """The centre square as OpenCV's INTER_LINEAR resizes it: each pixel lies between four pixels of the picture."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    weights = []
    for length in (height, width):
        at = (np.arange(size) + 0.5) * side / size - 0.5 + (length - side) / 2
        first = np.floor(at).astype(int)
        rows = np.zeros((size, length))
        for offset, part in ((0, 1 - (at - first)), (1, at - first)):
            np.add.at(rows, (np.arange(size), np.clip(first + offset, 0, length - 1)), part)
        weights.append(rows)
    return np.einsum("ih,hwc,jw->cij", weights[0], pixels, weights[1])


@pytest.mark.parametrize(("height", "width", "size"), [(40, 57, 8), (57, 40, 32), (8, 8, 8), (5, 7, 24), (1, 9, 3)])
def test_opencv_bilinear(height, width, size):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    plain, opencv = (
        preprocess(read(pixels), Preprocessing(size, (0, 0, 0), (1 / 255,) * 3, interpolation=name))
        for name in ("bilinear", "opencv-bilinear")
    )
    assert np.abs(opencv - opencv_bilinear(pixels, size)).max() <= 1.01  # OpenCV rounds to whole numbers
    if min(height, width) > size:  # the two differ if the picture shrinks
        assert np.abs(plain - opencv).max() > 30
    else:
        assert np.abs(plain - opencv).max() <= 1.01


def test_the_crop_is_centred_to_half_a_pixel():
    ramp = np.repeat(np.arange(0, 250, 50, dtype=np.uint8)[None, :, None], 4, 0).repeat(3, 2)  # 4 rows, 5 columns
    x = preprocess(read(ramp), Preprocessing(4, (0, 0, 0), (1, 1, 1))) * 255
    np.testing.assert_allclose(x[0, 0], [25, 75, 125, 175], atol=1)  # each between two columns


def test_extreme_proportions_take_no_memory():
    strip = Image.new("RGB", (60_000, 1), "red")
    x = preprocess(strip, Preprocessing(64, (0, 0, 0), (1, 1, 1)))
    np.testing.assert_array_equal(x[:, 5, 5], [1, 0, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 5000},
        {"size": 8.0},
        {"mean": (0, 0)},
        {"mean": "abc"},
        {"std": (1, 0, 1)},
        {"std": (1, float("nan"), 1)},
        {"std": (1, 1, 1e-320)},
        {"mean": (0, 0, 1e308)},
        {"crop": "none"},
        {"resize": "stretch"},
        {"interpolation": "nearest"},
        {"channels": "LAB"},
        {"unknown": 1},
    ],
)
def test_absurd_preprocessing_is_refused(change):
    fields = {"size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)} | change
    with pytest.raises(SpecError, match="preprocessing"):
        Preprocessing.from_dict(fields)


def test_find_takes_pictures_sorted_and_folders_only_on_request(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "below/c.webp", "below/deep/d.tif", "._a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "below" / "loop").symlink_to(tmp_path)

    def names(recursive):
        return [os.path.relpath(path, tmp_path) for path in images.find(tmp_path, recursive)]

    assert names(False) == ["a.png", "b.JPG"]
    assert names(True) == ["a.png", "b.JPG", "below/c.webp", "below/deep/d.tif"]
    with pytest.raises(FileNotFoundError):
        images.find(tmp_path / "nowhere")


# Hostile files


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    """A small picture in each format and mode, which the fuzzer begins with."""
    folder = tmp_path_factory.mktemp("good")
    image_seeds(folder)
    return sorted(folder.iterdir())


def attempt(path):
    """The picture, or None after an error, which must name the file."""
    try:
        return read(path)
    except ImageError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    return None


@pytest.mark.filterwarnings("ignore:::PIL")
def test_truncated_files_are_named_unless_complete(tmp_path, good_files):
    for good in good_files:
        content, pixels = good.read_bytes(), np.asarray(read(good))
        cut = tmp_path / good.name
        refused = 0
        for length in range(0, len(content), 17):
            cut.write_bytes(content[:length])
            picture = attempt(cut)
            refused += picture is None
            if picture:  # a GIF's second frame or a PNG's last chunk was cut
                np.testing.assert_array_equal(np.asarray(picture), pixels)
        assert refused > len(content) / 17 / 3


@pytest.mark.filterwarnings("ignore:::PIL")
def test_flipped_bits_give_a_picture_or_a_named_error(tmp_path, good_files):
    found = []
    for good in good_files:
        content = good.read_bytes()
        path = tmp_path / good.name
        for position in range(0, len(content), 23):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            found.append(attempt(path))
    pictures = list(filter(None, found))
    assert 50 < len(pictures) < len(found) - 50
    assert all(np.isfinite(preprocess(picture, HOW)).all() for picture in pictures)


def test_a_wrong_suffix_does_not_matter(tmp_path, good_files):
    for good in good_files:
        for suffix in (".jpg", ".gif", ".tif", ".txt", ""):
            renamed = tmp_path / f"a{suffix}"
            renamed.write_bytes(good.read_bytes())
            np.testing.assert_array_equal(np.asarray(read(renamed)), np.asarray(read(good)))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp", "jpg"])
def test_extreme_sizes(tmp_path, suffix):
    widest = {"webp": 16383, "jpg": 65500}.get(suffix, 65535)  # what the format can hold
    for size in ((1, 1), (1, 16000), (widest, 1), (widest, 2)):
        path = tmp_path / f"a.{suffix}"
        Image.new("RGB", size, "red").save(path, quality=100, lossless=True)
        assert read(path).size == size
        x = preprocess(read(path), Preprocessing(8, (0, 0, 0), (1, 1, 1)))
        np.testing.assert_allclose(x.mean((1, 2)), [1, 0, 0], atol=0.02)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "gif"])
def test_the_first_of_many_frames_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 3
    assert read(tmp_path / f"a.{suffix}").getpixel((0, 0)) == (255, 0, 0)


def exif_of(kind, count, value):
    """EXIF with one entry, the orientation, in TIFF's form."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, count) + value + bytes(4)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0" + b"\xff" * 50,
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40,  # 65,535 entries
        exif_of(3, 1, b"\0\0\0\0"),
        exif_of(3, 1, b"\x09\0\0\0"),
        exif_of(2, 4, b"six\0"),
        exif_of(5, 1, b"\x08\0\0\0"),  # a fraction
        exif_of(3, 0xFFFFFFFF, b"\x06\0\0\0"),
    ],
)
def test_broken_exif_turns_nothing(tmp_path, exif):
    picture = Image.fromarray(gradient())
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "a.jpg", exif=exif)
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "a.jpg")), np.asarray(read(tmp_path / "plain.jpg")))


def png_header(width, height):
    """The first bytes of a PNG of that size, and nothing of its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">II4s", zlib.crc32(chunk), 99, b"IDAT")


def test_a_headers_size_is_not_trusted(tmp_path):
    path = tmp_path / "a.png"
    for width, height in ((65535, 65535), (2**31 - 1, 2**31 - 1), (20_000, 1_501)):
        path.write_bytes(png_header(width, height) + bytes(100))
        with pytest.raises(ImageError, match=r"too many pixels|more than the limit of 30000000"):
            read(path)
    path.write_bytes(png_header(0, 5))
    with pytest.raises(ImageError, match=r"a\.png: "):
        read(path)


def with_scans(path, more, **options):
    """A progressive JPEG whose last scan is repeated that many times."""
    Image.fromarray(gradient()).save(path, progressive=True, **options)
    content = path.read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + last * more + content[-2:])
    return content.count(b"\xff\xda") + more


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    """A thousand scans of 50 bytes over 29 million pixels took three minutes."""
    path = tmp_path / "a.jpg"
    scans = with_scans(path, 0)
    assert 5 < scans < 20
    with_scans(path, 30 - scans)
    assert read(path).size == (12, 9)
    for more in (31 - scans, 5000):
        with_scans(path, more)
        for draft in (0, 8):
            with pytest.raises(ImageError, match=r"a\.jpg: a JPEG of more than 30 scans"):
                images.read_file(path, draft=draft)


def test_scans_outside_of_the_picture_do_not_count(tmp_path):
    """Phones put thumbnails into the header, and a second picture or a video behind the first."""
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient(500, 400)).save(path, quality=95, comment=b"\xff\xda" * 100)
    pixels = np.asarray(read(path))
    with open(path, "ab") as file:
        file.write(bytes(200_000) + b"\xff\xda" * 100)
    np.testing.assert_array_equal(np.asarray(read(path)), pixels)


def test_the_limit_can_be_raised_above_pillows_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (15, 10)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").size == (15, 10)
    with pytest.raises(ImageError, match=r"a.png: 15x10 pixels, more than the limit of 149"):
        read(tmp_path / "a.png", max_pixels=149)


PEAK = """
import sys
from fuzz import memory
from alnumpy import images
images.read(sys.argv[1])
before = memory("VmHWM")
image = images.read(sys.argv[2])
print((memory("VmHWM") - before) / (image.width * image.height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["a.webp", "grey.png", "a.png", "progressive.jpg"])
def test_memory_per_pixel_is_below_the_limits_assumption(tmp_path, name):
    picture = Image.effect_noise((1500, 1400), 40).convert("LA" if name == "grey.png" else "RGBA")
    picture.putalpha(100)
    if name.endswith("jpg"):
        picture = picture.convert("RGB").convert("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"progressive": True, "subsampling": 0} if name.endswith("jpg") else {"method": 0, "compress_level": 1}
    picture.save(tmp_path / name, exif=exif, **options)
    picture.resize((9, 9)).save(tmp_path / f"small-{name}", exif=exif)
    command = [sys.executable, "-c", PEAK, tmp_path / f"small-{name}", tmp_path / name]
    tools = os.path.dirname(fuzz.__file__)
    peak = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tools).stdout
    assert 3 < float(peak) < 20  # bytes per pixel: 18, and some for the rest of the process
    assert 18 * images.MAX_PIXELS < 550e6


def test_a_batch_outlives_every_kind_of_file(tmp_path, good_files):
    """Each path gives an embedding or an error that names it, and does not stop the others."""
    os.mkdir(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket.png"))
    os.symlink("nowhere", tmp_path / "dangling.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(good_files[0].read_bytes()[:99])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    more = (tmp_path / "missing.png", tmp_path / ("a" * 300), "a\0b.png")
    bad = [*map(str, sorted(tmp_path.iterdir())), *map(str, more)]
    assert len(bad) == 12
    odd = [os.fsencode(tmp_path) + name for name in (b"/new\nline.png", b"/\xff\xfe.png", b"/-o.png", b"/ .png")]
    for name in odd:
        shutil.copy(good_files[0], name)
    good = [os.fsdecode(name) for name in odd] + list(map(str, good_files))
    paths = [path for pair in itertools.zip_longest(bad, good) for path in pair if path]
    found = {path: (x, error) for path, x, error in alnumpy.load(backend="numpy").embed_files(paths, batch_size=3)}
    assert list(found) == paths
    for path in bad:
        x, error = found[path]
        assert x is None
        assert str(error).startswith(f"{path}: ")
    for path in good:
        x, error = found[path]
        assert error is None
        assert np.isfinite(x).all()


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_a_file_without_permission_is_named():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.png")
        Image.new("RGB", (4, 4)).save(path)
        os.chmod(folder, 0o755)
        os.chmod(path, 0)
        code = "import os, sys; from alnumpy import images; os.getuid() or os.setuid(65534); images.read(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"alnumpy.errors.ImageError: {path}: Permission denied"
