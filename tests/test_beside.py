"""Broken metadata beside intact pixels, odd ends of files, and messages of C libraries."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from alnumpy import ImageError, images, montage
from alnumpy.images import read

UPRIGHT = Image.merge(
    "RGB", [Image.linear_gradient("L").resize((24, 16)), *[Image.radial_gradient("L").resize((24, 16))] * 2]
)


def encoded(format, image=UPRIGHT, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(source):
    return np.asarray(read(source))


def chunk(kind, data, flip=0):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ flip)


def png(*chunks, before=b"IDAT", data=None):
    data = data or encoded("PNG")
    at = data.index(before) - 4
    return data[:at] + b"".join(chunks) + data[at:]


def jpeg(*segments, **options):
    data = encoded("JPEG", **options)
    made = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in segments
    )
    return data[:2] + made + data[2:]


def webp(*chunks):
    data = encoded("WEBP", lossless=True)
    body = data[8:] + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(*entries, order="<", compression=1):
    """A TIFF of grey pixels with more entries: tag, type, count, four bytes."""
    image = np.asarray(UPRIGHT.convert("L"))
    data = zlib.compress(image.tobytes()) if compression == 8 else image.tobytes()
    long = [
        (256, 24),
        (257, 16),
        (258, 8),
        (259, compression),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 16),
        (279, len(data)),
    ]
    made = [(tag, struct.pack(order + "HHII", tag, 4, 1, value)) for tag, value in long]
    made += [(tag, struct.pack(order + "HHI", tag, kind, count) + value) for tag, kind, count, value in entries]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(made)) + b"".join(raw for _, raw in sorted(made)) + bytes(4)
    return mark + struct.pack(order + "I", 8 + len(data)) + data + directory


JUNK = b"\xff\xfe\0\1" * 9
MUCH = zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize(
    "kind", ["tEXt", "zTXt", "iTXt", "iCCP", "eXIf", "pHYs", "gAMA", "cHRM", "sRGB", "tIME", "sPLT", "hIST", "vpAg"]
)
@pytest.mark.parametrize(
    ("content", "flip"), [(b"Comment\0\0" + MUCH, 0), (JUNK, 0), (b"", 0), (JUNK, 1), (b"Comment\0\1\0\0\0" + MUCH, 1)]
)
def test_chunks_beside_the_pixels_of_a_png(kind, content, flip):
    broken = chunk(kind.encode(), content, flip)
    for data in (png(broken), png(broken, broken), png(broken, before=b"IEND"), png(broken, before=b"IDAT") + b"more"):
        np.testing.assert_array_equal(pixels(data), np.asarray(UPRIGHT))


def test_an_animation_whose_control_chunks_are_damaged_stands_still():
    frames = encoded("PNG", save_all=True, append_images=[UPRIGHT.rotate(90)] * 2)
    at = frames.index(b"fcTL") + 10
    broken = frames[:at] + b"\x7f" + frames[at + 1 :]
    np.testing.assert_array_equal(pixels(broken), np.asarray(UPRIGHT))


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xE3, 0xED, 0xEE, 0xEF, 0xFE])
@pytest.mark.parametrize(
    "content", [b"", JUNK, b"\xff\xda" * 60, b"Exif\0\0" + JUNK, b"MPF\0II*\0" + JUNK, b"Photoshop 3.0\0" + JUNK]
)
@pytest.mark.parametrize("dpi", [None, (72, 72)])
def test_segments_beside_the_pixels_of_a_jpeg(marker, content, dpi):
    options = {"dpi": dpi} if dpi else {}
    np.testing.assert_array_equal(
        pixels(jpeg((marker, content), (marker, content), **options)), pixels(encoded("JPEG"))
    )


@pytest.mark.parametrize("content", [b"", b"x", JUNK, b"Exif\0\0MM\0*" + JUNK, b"II*\0\x08\0\0\0\xff\xff"])
@pytest.mark.parametrize("kind", [b"EXIF", b"XMP ", b"ICCP", b"what"])
def test_chunks_beside_the_pixels_of_a_webp(kind, content):
    np.testing.assert_array_equal(pixels(webp((kind, content), (kind, content))), np.asarray(UPRIGHT))


ODD_ENTRIES = [
    (tag, kind, count, value)
    for tag in (
        270,
        271,
        282,
        283,
        296,
        305,
        306,
        315,
        531,
        700,
        33432,
        33723,
        34377,
        34665,
        34853,
        37724,
        42112,
        60000,
    )
    for kind, count, value in (
        (2, 3, b"72\0\0"),
        (3, 2, b"\3\0\2\0"),
        (5, 1, b"\xff" * 4),
        (12, 9, b"\0\0\1\0"),
        (99, 1, b"\0" * 4),
    )
]


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_entries_beside_the_pixels_of_a_tiff(order, compression):
    wanted = np.asarray(UPRIGHT.convert("L").convert("RGB"))
    for entry in ODD_ENTRIES:
        np.testing.assert_array_equal(pixels(tiff(entry, order=order, compression=compression)), wanted)
    np.testing.assert_array_equal(pixels(tiff((296, 3, 1, b"\3\0\0\0"), (282, 2, 3, b"72\0\0"))), wanted)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
SIX = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, 274, 3, 1, 6, 0) + bytes(4)
DIGITS = b"\nexif\n  32\n" + (b"Exif\0\0" + SIX).hex().encode() + b"\n"
HEADER = b"http://ns.adobe.com/xap/1.0/\0"


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)), before=b"IEND"),
        png(chunk(b"eXIf", SIX, flip=1)),
        png(chunk(b"tEXt", b"Raw profile type exif\0" + DIGITS)),
        png(chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(DIGITS))),
        jpeg((0xE1, HEADER + XMP), quality=100, subsampling=0),
        jpeg((0xE1, b"Exif\0\0" + SIX), (0xE1, HEADER + XMP.replace(b"6", b"8")), quality=100, subsampling=0),
        webp((b"XMP ", XMP)),
        webp((b"EXIF", b"Exif\0\0Exif\0\0" + SIX)),
        tiff((274, 3, 1, b"\6\0\0\0")),
        tiff((274, 3, 1, b"\0\6\0\0"), order=">", compression=8),
    ],
)  # fmt: skip
def test_the_orientation_wherever_it_stands(data, tmp_path):
    turned = UPRIGHT.transpose(Image.Transpose.ROTATE_270)
    found = pixels(data).astype(int)
    assert found.shape == (24, 16, 3)
    if data[:2] in (b"II", b"MM"):
        turned = turned.convert("L").convert("RGB")
    assert np.abs(found - np.asarray(turned)).max() <= (4 if data.startswith(b"\xff") else 0)
    (tmp_path / "a").write_bytes(data)
    assert images.read_file(tmp_path / "a")[1] == (16, 24)
    assert montage.thumbnail(str(tmp_path / "a")).size == (16, 24)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_undefined_orientation_is_ignored(value):
    exif = SIX.replace(struct.pack("<HH", 6, 0), struct.pack("<HH", value, 0))
    np.testing.assert_array_equal(pixels(png(chunk(b"eXIf", exif))), np.asarray(UPRIGHT))


# Ends of JPEGs


PHOTO = Image.effect_noise((160, 120), 70).convert("RGB")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 30}, {"optimize": True}])
def test_a_jpeg_without_its_end_marker_is_complete_if_it_has_all_rows(options):
    data = encoded("JPEG", PHOTO, **options)
    wanted = pixels(data)
    for end in (
        data[:-2],
        data[:-1],
        data[:-2] + bytes(5000),
        data + bytes(3),
        data + b"\xff\xd8\xff" * 5,
        data + data,
    ):
        np.testing.assert_array_equal(pixels(end), wanted)
    for cut in (data[: len(data) * 95 // 100], data[: len(data) // 2], data[: len(data) // 2] + bytes(9000)):
        with pytest.raises(ImageError, match="truncated"):
            pixels(cut)


def test_scans_are_counted_in_the_picture_alone():
    several = [encoded("JPEG", PHOTO.rotate(angle), progressive=True) for angle in range(6)]
    assert sum(data.count(b"\xff\xda") for data in several) > 30
    np.testing.assert_array_equal(pixels(b"".join(several)), pixels(several[0]))
    two = encoded("MPO", PHOTO, save_all=True, append_images=[PHOTO.rotate(90)])
    comment = b"\xff\xfe" + struct.pack(">H", 82) + b"\xff\xda" * 40
    np.testing.assert_array_equal(pixels(two[:2] + comment + two[2:]), pixels(encoded("JPEG", PHOTO)))


def test_unsupported_kinds_of_jpeg_and_png_are_named():
    data = encoded("JPEG", PHOTO)
    at = data.index(b"\xff\xc0")
    with pytest.raises(ImageError, match="a JPEG of 12 bits per sample"):
        read(data[:at] + b"\xff\xc1\0\x11\x0c" + data[at + 5 :])
    with pytest.raises(ImageError, match=r"hierarchical"):
        read(data[:at] + b"\xff\xc5" + data[at + 2 :])
    with pytest.raises(ImageError, match=r"Apple's variant of PNG \(CgBI\)"):
        read(png(chunk(b"CgBI", b"\x50\0\x20\2"), before=b"IHDR"))


def test_a_progressive_jpeg_that_takes_too_much_is_named(tmp_path):
    file = tmp_path / "a.jpg"
    Image.new("L", (8000, 8000)).save(file, progressive=True, quality=1)
    data = bytearray(file.read_bytes())
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    file.write_bytes(data)
    with pytest.raises(ImageError, match="65500x65500 pixels"):
        read(file)


@pytest.mark.parametrize(
    ("limit", "size"), [(19_200, (160, 120)), (19_199, (80, 60)), (4800, (80, 60)), (4799, (40, 30)), (300, (20, 15))]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_above_the_limit_is_decoded_smaller(tmp_path, limit, size, progressive):
    PHOTO.save(tmp_path / "a.jpg", progressive=progressive)
    image, whole = images.read_file(tmp_path / "a.jpg", max_pixels=limit)
    assert (image.size, whole) == (size, (160, 120))
    assert images.read_file(tmp_path / "a.jpg", max_pixels=limit, draft=110)[0].size == size  # the same when reduced
    with pytest.raises(ImageError, match="160x120 pixels, more than the limit of 299"):
        read(tmp_path / "a.jpg", 299)


# Messages that C libraries write


def odd_tiffs():
    """TIFFs whose entries are changed one by one: types, counts and values."""
    good = [encoded("TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    for data in [*good, tiff(compression=8)]:
        (at,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            for offset, form, value in ((0, "<H", 60000), (2, "<H", 12), (4, "<I", 77), (8, "<I", 0xFFFFFF0)):
                odd = bytearray(data)
                struct.pack_into(form, odd, entry + offset, value)
                yield bytes(odd)


ODD = """
import sys, pathlib, warnings
from concurrent.futures import ThreadPoolExecutor
from alnumpy import ImageError, images
def load(path):
    try:
        images.read(path)
    except ImageError as error:
        return str(error).partition(": ")[2]
with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    print(*pool.map(load, sorted(pathlib.Path(sys.argv[1]).iterdir())), sep="\\n")
"""


def test_odd_tiffs_write_nothing_to_the_terminal(tmp_path):
    for number, data in enumerate(odd_tiffs()):
        (tmp_path / f"{number}.tif").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", ODD, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    reasons = done.stdout.splitlines()
    assert len(reasons) == number + 1 > 150
    assert 20 < reasons.count("None") < len(reasons) - 20
    assert not [reason for reason in reasons if "decoder error" in reason or "-2" in reason]
    folder = [sys.executable, "-m", "alnumpy", "index", str(tmp_path), "--db", str(tmp_path / "g.db")]
    done = subprocess.run(folder, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines
    assert not [line for line in lines if ".tif: " not in line and not line.startswith("alnumpy: ")]


def test_threads_read_at_once():
    data = [png(chunk(b"eXIf", SIX)), jpeg((0xE1, b"Exif\0\0" + SIX)), webp(), tiff(compression=8)] * 8
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(pixels, data), map(pixels, data), strict=True):
            np.testing.assert_array_equal(one, other)
