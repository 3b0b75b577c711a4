"""The meaning of stored pixels: pages, frames, bits, bands, transparency, profiles."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

import colours
from alnumpy import ImageError, formats, pixels
from alnumpy.images import Preprocessing, preprocess, read, read_file

GREY = np.arange(16 * 12, dtype=np.uint8).reshape(12, 16)
COLOUR = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
II, MM = "<", ">"


def shown(data):
    """A file's bytes as uint8 RGB, by the rules of pixels.py."""

    def opened():
        return Image.open(io.BytesIO(data))

    image = opened()
    if image.format == "TIFF":
        pixels.choose_page(image)
    result = pixels.decode(image, opened)
    assert result.mode in ("L", "RGB")
    return np.asarray(pixels.to_srgb(result))


def saved(pixels, format, **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format, **options)
    return file.getvalue()


def png(array, depth, colour, *chunks):
    """A PNG of rows of bytes or 16-bit numbers, with further chunks before them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width = array.shape[1] * 8 // depth if depth < 8 else array.shape[1]
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in array)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(array), depth, colour, 0, 0, 0))
    parts = [head, *(chunk(*c) for c in chunks), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def directory(tags, at, following, order):
    """A TIFF's directory of numbers (type, values) for that offset."""
    body, more = struct.pack(order + "H", len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}{'BHI'[(1, 3, 4).index(kind)]}", *values)
        if len(data) > 4:
            more_at = at + 2 + 12 * len(tags) + 4 + len(more)
            more, data = more + data + bytes(len(data) % 2), struct.pack(order + "I", more_at)
        body += struct.pack(order + "HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    return body + struct.pack(order + "I", following) + more


def tiff(*pages, below=(), order=II, compressed=False):
    """A TIFF of pages (array, tags), deflated or not; pages in ``below`` are SubIFDs of the first."""
    data, stored_at = (b"II*\0" if order == II else b"MM\0*") + bytes(4), []
    for array, _ in [*pages, *below]:
        stored = array.astype(array.dtype.newbyteorder(order)).tobytes()
        stored = zlib.compress(stored) if compressed else stored
        stored_at.append((len(data), len(stored)))
        data += stored + bytes(len(stored) % 2)

    def made(number, at, following):
        array, own = [*pages, *below][number]
        height, width, samples = (*array.shape, 1)[:3]
        tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8 * array.itemsize] * samples)}
        tags |= {259: (3, [8 if compressed else 1]), 262: (3, [2 if samples > 2 else 1]), 277: (3, [samples])}
        start, length = stored_at[number]
        tags |= {273: (4, [start]), 278: (4, [height]), 279: (4, [length])} | own
        if number == 0 and below:
            tags[330] = (4, places)
        return directory(tags, at, following, order)

    places = []
    for number in range(len(pages), len(pages) + len(below)):
        places.append(len(data))
        data += made(number, len(data), 0)
    first = len(data)
    for number in range(len(pages)):
        length = len(made(number, len(data), 0))
        data += made(number, len(data), len(data) + length if number < len(pages) - 1 else 0)
    return data[:4] + struct.pack(order + "I", first) + data[8:]


# 16 bits


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("order", [II, MM])
def test_unused_upper_bits_of_grey(bits, order):
    values = GREY.astype(np.uint16) << (bits - 8) | (bits > 8)
    for data in (png(values, 16, 0), tiff((values, {}), order=order)):
        np.testing.assert_array_equal(shown(data)[..., 1], GREY)


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("order", [II, MM])
def test_unused_upper_bits_of_colour(bits, order):
    values = COLOUR.astype(np.uint16) << (bits - 8) | (bits > 8)
    files = [png(values, 16, 2), tiff((values, {}), order=order)]
    if features.check("libtiff"):
        files.append(tiff((values, {}), order=order, compressed=True))
    for data in files:
        np.testing.assert_array_equal(shown(data), COLOUR)


@pytest.mark.parametrize("colour", [4, 6])
def test_unused_upper_bits_beside_alpha(colour):
    values = (COLOUR if colour == 6 else GREY[..., None]).astype(np.uint16) << 4
    alpha = np.full((12, 16, 1), 4095, np.uint16)
    alpha[0] = 0
    expected = COLOUR.copy() if colour == 6 else np.dstack([GREY] * 3)
    expected[0] = 255
    np.testing.assert_array_equal(shown(png(np.dstack([values, alpha]), 16, colour)), expected)
    alpha[1:] = 65535  # the full range, though the colours do not use it
    np.testing.assert_array_equal(shown(png(np.dstack([values, alpha]), 16, colour)), expected)


@pytest.mark.parametrize("bits", [13, 14, 15])
def test_more_bits_need_a_hint_in_the_file(bits):
    values = GREY.astype(np.uint16) << (bits - 8)
    dark = (values >> 8).astype(np.uint8)
    grey = {"silent": png(values, 16, 0), "sBIT": png(values, 16, 0, (b"sBIT", bytes([bits])))}
    most = {281: (3, [2**bits - 1])}
    grey |= {"tiff": tiff((values, {})), "largest": tiff((values, most))}
    for name, data in grey.items():
        if name == "sBIT":
            data_of = Image.open(io.BytesIO(data))
            data_of.info["sBIT"] = bytes([bits])  # as containers.read gives it
            result = np.asarray(pixels.decode(data_of, lambda: None))
        else:
            result = shown(data)[..., 0]
        np.testing.assert_array_equal(result, dark if name in ("silent", "tiff") else GREY, name)
    colour = COLOUR.astype(np.uint16) << (bits - 8)
    np.testing.assert_array_equal(shown(tiff((colour, {281: (3, [2**bits - 1] * 3)}))), COLOUR)
    np.testing.assert_array_equal(shown(tiff((colour, {}))), colour >> 8)


def test_a_contradicted_hint_is_ignored():
    values = GREY.astype(np.uint16) << 8
    np.testing.assert_array_equal(shown(tiff((values, {281: (3, [1023])})))[..., 0], GREY)
    np.testing.assert_array_equal(shown(tiff((values, {281: (3, [int(values.max())])})))[..., 0], GREY)


def test_a_dark_picture_of_16_bits_stays_dark():
    values = GREY.astype(np.uint16) << 5  # up to 1/8 of the range
    np.testing.assert_array_equal(shown(png(values, 16, 0))[..., 0], GREY >> 3)
    assert not shown(png(np.zeros((4, 4), np.uint16), 16, 0)).any()
    assert not shown(png(np.zeros((4, 4, 3), np.uint16), 16, 2)).any()


def test_white_is_zero():
    values = GREY.astype(np.uint16) << 4
    np.testing.assert_array_equal(shown(tiff((values, {262: (3, [0])})))[..., 0], 255 - GREY)


# Transparency


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_grey_of_any_depth(depth):
    most = (1 << depth) - 1
    levels = GREY & most
    clear = most // 2
    packed = np.zeros((12, 16 * depth // 8), np.uint8)
    for i in range(8 // depth):
        packed |= levels[:, i :: 8 // depth] << (8 - depth * (i + 1))
    expected = np.where(levels == clear, 255, levels.astype(int) * 255 // most)
    for upper in (0, (depth > 1) << 14):  # bits above the depth must be ignored
        data = png(packed, depth, 0, (b"tRNS", struct.pack(">H", clear | upper)))
        np.testing.assert_array_equal(shown(data)[..., 0], expected)


def test_the_transparent_grey_of_16_bits():
    values = GREY.astype(np.uint16) << 8 | 7
    values[0, :2] = 0x1234, 0x1235
    result = shown(png(values, 16, 0, (b"tRNS", struct.pack(">H", 0x1234))))[..., 0]
    assert result[0, :3].tolist() == [255, 0x12, 2]


def test_the_transparent_colour_of_8_bits():
    colour = COLOUR.copy()
    colour[3, 3] = 1, 2, 3
    expected = colour.copy()
    expected[3, 3] = 255
    data = png(colour, 8, 2, (b"tRNS", struct.pack(">HHH", 1, 0x402, 3)))
    np.testing.assert_array_equal(shown(data), expected)


@pytest.mark.parametrize("bits", [12, 16])
def test_the_transparent_colour_of_16_bits(bits):
    values = (COLOUR.astype(np.uint16) << (bits - 8)) | 1
    values[0, 0] = 0x123, 0x456, 0x789
    values[0, 1] = 0x124, 0x456, 0x789
    expected = (values >> (bits - 8)).astype(np.uint8)
    expected[0, 0] = 255
    data = png(values, 16, 2, (b"tRNS", struct.pack(">HHH", 0x123, 0x456, 0x789)))
    np.testing.assert_array_equal(shown(data), expected)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("LA", (2, 1), (40, 255)) if mode in ("LA", "La") else Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((0, 0), (40, 0) if image.mode == "LA" else (10, 20, 30, 0))
    if mode == "PA":
        image = Image.new("PA", (2, 1), (3, 255))
        image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 10, 20, 30])
        image.putpixel((0, 0), (3, 0))
    elif mode != image.mode:
        image = image.convert(mode)
    result = np.asarray(pixels.to_srgb(pixels.flatten(image)))
    assert result.tolist() == [[[255] * 3, [40] * 3 if mode in ("LA", "La") else [10, 20, 30]]]


# Bands


def bmp(array, masks):
    """A BMP of four bytes per pixel with a header of version 4."""
    height, width, _ = array.shape
    info = struct.pack("<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, array.nbytes, 0, 0, 0, 0, *masks)
    info += b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 122 + array.nbytes, 0, 0, 122) + info + array[::-1].tobytes()


@pytest.mark.parametrize("masks", [(0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0, 0, 0, 0), (0xFF0000, 0xFF00, 0xFF, 0)])
def test_a_bmp_whose_alpha_is_zero_throughout_is_opaque(masks):
    stored = np.dstack([COLOUR[..., ::-1], np.zeros((12, 16), np.uint8)])
    np.testing.assert_array_equal(shown(bmp(stored, masks)), COLOUR)


def test_a_bmp_with_alpha():
    stored = np.dstack([COLOUR[..., ::-1], np.full((12, 16), 255, np.uint8)])
    stored[0, 0, 3] = 0
    expected = COLOUR.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(shown(bmp(stored, (0xFF0000, 0xFF00, 0xFF, 0xFF000000))), expected)


def test_wholly_transparent_pictures_of_other_formats_are_white():
    clear = Image.fromarray(np.dstack([COLOUR, np.zeros((12, 16), np.uint8)]))
    for format in ("PNG", "TIFF", "WEBP"):
        assert (shown(saved(clear, format, **({"lossless": True} if format == "WEBP" else {}))) == 255).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("order", [II, MM])
def test_the_fourth_band_of_a_tiff_is_alpha_if_the_file_says_so(depth, order):
    infrared = GREY // 3
    array = np.dstack([COLOUR, infrared])
    if depth == 16:
        array = array.astype(np.uint16) << 8 | 5
    for extra in ({}, {338: (3, [0])}):
        np.testing.assert_array_equal(shown(tiff((array, extra), order=order)), COLOUR)
    laid = np.asarray(pixels.flatten(Image.fromarray(np.dstack([COLOUR, infrared]))))
    np.testing.assert_array_equal(shown(tiff((array, {338: (3, [2])}), order=order)), laid)


def test_planes_of_a_tiff():
    planes = np.dstack([COLOUR, GREY // 3]).transpose(2, 0, 1)
    flat = planes.reshape(-1, 16)
    at = [8 + i * GREY.size for i in range(4)]
    tags = {257: (4, [12]), 258: (3, [8] * 4), 262: (3, [2]), 273: (4, at), 277: (3, [4]), 278: (4, [12])}
    tags |= {279: (4, [GREY.size] * 4), 284: (3, [2])}
    np.testing.assert_array_equal(shown(tiff((flat, tags))), COLOUR)


def test_inks_and_a_fifth_band():
    inks = np.dstack([255 - COLOUR, np.full((12, 16), 0, np.uint8), GREY])
    data = tiff((inks, {262: (3, [5]), 338: (3, [0])}))
    np.testing.assert_array_equal(shown(data), COLOUR)


def test_lab():
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[..., 0] = 255 * 50 // 100
    lab[2:, :, 1:] = 60, 196  # a = 60, b = -60, as two's complement
    result = shown(tiff((lab, {262: (3, [8])})))
    assert np.abs(result[0, 0].astype(int) - 119).max() <= 2  # L* = 50
    red, green, blue = result[3, 0].astype(int)
    assert blue > red > green


def test_floating_point_has_no_brightness():
    with pytest.raises(ImageError, match="floating-point pixels have no defined brightness"):
        pixels.flatten(Image.fromarray(np.ones((2, 2), np.float32)))


# Pages

THUMB = np.full((12, 16), 77, np.uint8)
LARGE = np.kron(GREY, np.ones((4, 4), np.uint8))


@pytest.mark.parametrize("mark", [{254: (4, [1])}, {255: (3, [2])}, {254: (4, [4])}, {}])  # or only the size
@pytest.mark.parametrize("where", ["page", "below"])
@pytest.mark.parametrize("order", [II, MM])
def test_a_thumbnail_before_the_picture(mark, where, order):
    pages = [(THUMB, mark), (LARGE, {})]
    data = tiff(*pages, order=order) if where == "page" else tiff(pages[0], below=pages[1:], order=order)
    np.testing.assert_array_equal(shown(data)[..., 0], LARGE)


def test_the_largest_page_that_is_not_a_thumbnail():
    reduced, other = {254: (4, [1])}, np.full((30, 30), 9, np.uint8)
    data = tiff((THUMB, reduced), (np.tile(LARGE, (4, 4)), reduced), (other, {}), (LARGE, {}), (other, {}))
    np.testing.assert_array_equal(shown(data)[..., 0], LARGE)


def test_a_document_stays_at_its_first_page():
    for first in (LARGE, THUMB):
        rest = np.zeros((200, 90), np.uint8)  # other proportions
        assert shown(tiff((first, {}), (rest, {}), (rest, {}))).shape[:2] == first.shape
    page = np.zeros((640, 480), np.uint8)
    assert shown(tiff((page, {}), (np.tile(page, (4, 4)), {}))).shape[:2] == (640, 480)


def test_pages_that_are_not_pictures():
    unknown = {262: (3, [32803])}  # a camera's sensor
    assert shown(tiff((THUMB, {254: (4, [1])}), (LARGE, unknown))).shape == (12, 16, 3)
    data = tiff((THUMB, {254: (4, [1])}), (LARGE, unknown), (LARGE, {}))
    np.testing.assert_array_equal(shown(data)[..., 0], LARGE)
    alone = tiff((THUMB, {254: (4, [1])}))
    assert shown(alone).shape == (12, 16, 3)


# Frames

EMPTY = [Image.new("RGB", (16, 12), "white"), Image.new("RGBA", (16, 12), (0, 0, 0, 0)), Image.new("RGB", (16, 12))]
ANIMATIONS = [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})]
if "avif" in features.modules and features.check("avif"):
    ANIMATIONS.append(("AVIF", {"quality": 100, "subsampling": "4:4:4"}))


@pytest.mark.parametrize(("format", "options"), ANIMATIONS)
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("count", [1, 3])
def test_the_first_frame_that_shows_something(format, options, empty, count):
    picture = Image.fromarray(COLOUR).convert(empty.mode)
    later = Image.new(empty.mode, (16, 12), "red")
    blanks = [Image.blend(empty, later, 0.01 * i) for i in range(1, count)]  # otherwise they are merged into one
    data = saved(empty, format, save_all=True, append_images=[*blanks, picture, later], duration=100, **options)
    assert np.abs(shown(data).astype(int) - COLOUR).mean() < 16


@pytest.mark.parametrize(("format", "options"), ANIMATIONS)
def test_an_animation_that_shows_nothing_is_its_first_frame(format, options):
    first, second = Image.new("RGB", (16, 12), "white"), Image.new("RGB", (16, 12), "blue")
    data = saved(first, format, save_all=True, append_images=[second], duration=100, **options)
    assert (shown(data) >= 254).all()
    assert (shown(saved(first, format, **options)) >= 254).all()


@pytest.mark.parametrize(("format", "options"), ANIMATIONS)
def test_an_empty_frame_does_not_replace_missing_ones(tmp_path, format, options):
    first, second = Image.new("RGB", (16, 12), "white"), Image.fromarray(COLOUR)
    data = saved(first, format, save_all=True, append_images=[second], duration=100, **options)
    whole = shown(data)
    for cut in range(0, len(data), 3):
        (tmp_path / "a").write_bytes(data[:cut])
        try:
            np.testing.assert_array_equal(np.asarray(read(tmp_path / "a")), whole)
        except ImageError as error:
            assert "a: " in str(error)  # noqa: PT017


def test_a_thumbnail_does_not_replace_its_missing_picture(tmp_path):
    data = tiff((THUMB, {254: (4, [1])}), (LARGE, {}))
    for cut in range(len(data) - 300, len(data)):
        (tmp_path / "a").write_bytes(data[:cut])
        try:
            assert read(tmp_path / "a").size == (64, 48)
        except ImageError as error:
            assert "a: " in str(error)  # noqa: PT017


def test_the_search_for_a_frame_is_bounded(monkeypatch):
    first, second = Image.new("RGB", (16, 12), "white"), Image.fromarray(COLOUR)
    blanks = [Image.new("RGB", (16, 12), (255 - i, 255, 255)) for i in range(1, 9)]
    data = saved(first, "GIF", save_all=True, append_images=[*blanks, second], duration=100)
    assert (shown(data) != 255).any()
    monkeypatch.setattr(pixels, "MAX_FRAMES", 8)
    assert (shown(data) == 255).all()
    monkeypatch.undo()
    monkeypatch.setattr(pixels, "MAX_FRAME_PIXELS", 16 * 12 * 8)
    assert (shown(data) == 255).all()


# Colours


def photo(size=(96, 64)):
    noise = np.random.default_rng(0).integers(40, 216, (5, 7, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def stored_in(image, profile):
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target)


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB", "ProPhoto"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_colours_are_those_of_the_profile(name, format):
    profile = colours.rgb_profile(name)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    data = saved(stored_in(photo(), profile), format, icc_profile=profile, **options)
    away = np.abs(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) - np.asarray(photo()))
    heeded = np.abs(shown(data).astype(int) - np.asarray(photo()))
    assert away.mean() > 5
    assert heeded.mean() < 1.2
    assert heeded.max() <= 12 or format == "JPEG"


def test_profiles_of_srgb_change_nothing():
    ours, theirs = colours.rgb_profile("sRGB"), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (ours, theirs):
        image = photo()
        image.info["icc_profile"] = profile
        assert not pixels.has_profile(image)
        np.testing.assert_array_equal(np.asarray(pixels.to_srgb(image)), np.asarray(photo()))


def test_broken_profiles_and_those_of_another_space_are_ignored():
    good = colours.rgb_profile("ProPhoto")
    grey = colours.grey_profile(1.0)
    broken = [
        b"",
        b"x" * 4000,
        good[:200],
        good[:100],
        good[:128] + bytes(len(good) - 128),
        grey,
        colours.ink_profile(),
    ]
    for profile in [*broken, good + bytes(pixels.MAX_PROFILE), None, "text"]:
        image = photo()
        image.info["icc_profile"] = profile
        assert not pixels.has_profile(image)
        np.testing.assert_array_equal(np.asarray(pixels.to_srgb(image)), np.asarray(photo()))


def test_grey_by_its_profile():
    values = np.arange(256, dtype=np.uint8)[None]
    linear = shown(saved(values, "PNG", icc_profile=colours.grey_profile(1.0)))
    assert (linear[..., 0] == linear[..., 2]).all()
    assert linear[0, [0, 55, 128, 255], 0].tolist() == pytest.approx([0, 128, 188, 255], abs=2)  # sRGB's curve
    of_colour = shown(saved(values, "PNG", icc_profile=colours.rgb_profile("ProPhoto")))
    assert of_colour[0, 128].tolist() == pytest.approx([145] * 3, abs=2)  # 0.5 ** 1.8 is 0.287
    alpha = np.dstack([values, np.full_like(values, 255)])
    alpha[0, 0, 1] = 0
    beside = shown(saved(alpha, "PNG", icc_profile=colours.grey_profile(1.0)))
    assert beside[0, 0, 0] == 255
    np.testing.assert_array_equal(beside[0, 1:], linear[0, 1:])


def test_inks_by_their_profile():
    inks = np.zeros((1, 3, 4), np.uint8)
    inks[0, 1, 0], inks[0, 2, 3] = 255, 255
    plain, heeded = (
        shown(saved(Image.frombytes("CMYK", (3, 1), inks.tobytes()), "TIFF", **options))[0].tolist()
        for options in ({}, {"icc_profile": colours.ink_profile()})
    )
    assert plain == [[255] * 3, [0, 255, 255], [0] * 3]
    assert heeded[0] == pytest.approx([255] * 3, abs=1)
    assert heeded[1] == pytest.approx([0, 148, 218], abs=25)  # printed cyan
    assert 20 < heeded[2][0] < 60


def test_large_pictures_are_made_smaller_first():
    how = Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    profile = colours.rgb_profile("Display P3")
    for size in ((96, 64), (1001, 640), (640, 1001)):
        stored = stored_in(photo(size), profile)
        stored.info["icc_profile"] = profile
        away = np.abs(preprocess(stored, how) - preprocess(photo(size), how))
        assert away.max() < 2.5 / 255


def test_profiles_in_many_threads():
    images = []
    for name in ("Display P3", "Adobe RGB", "ProPhoto"):
        profile = colours.rgb_profile(name)
        image = stored_in(photo((400, 300)), profile)
        image.info["icc_profile"] = profile
        images.append(image)
    expected = [np.asarray(pixels.to_srgb(image)) for image in images]
    wrong = []

    def work(number):
        for turn in range(20):
            which = (number + turn) % 3
            if not np.array_equal(np.asarray(pixels.to_srgb(images[which])), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# HEIC and AVIF

HEIC = Path(__file__).parent / "data" / "heic"
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


def disc():
    """The content of the pictures in tests/data/heic: gradients and a disc."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, np.where((x - 20) ** 2 + (y - 16) ** 2 < 100, 220, 60)], 2).astype(np.uint8)


needs_heif = pytest.mark.skipif(not formats.readable("HEIC"), reason="needs the extra heif")
needs_avif = pytest.mark.skipif(not formats.readable("AVIF"), reason="needs AVIF in Pillow")


@needs_heif
@pytest.mark.parametrize("name", ["plain", "turned", "alpha", "profile", "ten-bits"])
def test_heic(name):
    expected = disc()
    if name == "turned":  # turned by irot; EXIF and XMP say the same again
        expected = np.rot90(expected, -1)
    if name == "alpha":
        expected[:, :32] = 255
    image, size = read_file(HEIC / f"{name}.heic")
    assert size == image.size == ((48, 64) if name == "turned" else (64, 48))
    assert np.abs(np.asarray(image).astype(int) - expected).mean() < 2


@needs_heif
def test_heic_is_limited_before_it_is_decoded():
    with pytest.raises(ImageError, match=r"plain.heic: 64x48 pixels, more than the limit of 3000"):
        read(HEIC / "plain.heic", max_pixels=3000)


@needs_heif
def test_damaged_heic(tmp_path):
    data = (HEIC / "plain.heic").read_bytes()
    whole = np.asarray(read(HEIC / "plain.heic"))
    for length in range(12, len(data), 41):
        (tmp_path / "a.heic").write_bytes(data[:length])
        try:
            assert np.array_equal(np.asarray(read(tmp_path / "a.heic")), whole)
        except ImageError as error:
            assert "a.heic: " in str(error)  # noqa: PT017


@needs_heif
def test_metadata_of_heic_is_kept_from_the_decoder(tmp_path):
    data = (HEIC / "turned.heic").read_bytes()
    for text in (b"application/rdf+xml", b"Exif", b"mime"):
        assert text in data
        (tmp_path / "a.heic").write_bytes(data.replace(text, b"\xfe" * len(text), 1))  # crashes pi-heif 1.4
        np.testing.assert_array_equal(np.asarray(read(tmp_path / "a.heic")), np.asarray(read(HEIC / "turned.heic")))


@needs_heif
def test_heic_in_many_threads():
    expected = np.asarray(read(HEIC / "turned.heic"))
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(np.asarray(read(HEIC / "turned.heic")), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_avif
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(disc()).save(tmp_path / "a.avif", quality=95, subsampling="4:4:4", exif=exif)
    upright = np.rot90(disc(), {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert np.abs(np.asarray(read(tmp_path / "a.avif")).astype(int) - upright).mean() < 3


@needs_avif
def test_in_avif_the_container_alone_tells_the_orientation(tmp_path):
    Image.fromarray(disc()).save(tmp_path / "a.avif", quality=95, xmp=XMP)
    assert read(tmp_path / "a.avif").size == (64, 48)


@needs_avif
def test_damaged_avif(tmp_path):
    data = saved(disc(), "AVIF")
    for length in range(12, len(data), 23):
        (tmp_path / "a.avif").write_bytes(data[:length])
        with pytest.raises(ImageError, match=r"a\.avif: "):
            read(tmp_path / "a.avif")
