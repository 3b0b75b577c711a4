"""Kinds of files, by name and by first bytes."""

from __future__ import annotations

import doctest
import io
import struct

import PIL
import pytest
from PIL import Image, features

from alnumpy import formats
from alnumpy.formats import by_name, kind_of, passed_over, refusal


def saved(format, mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, (32, 32)).save(file, format, **options)
    return file.getvalue()[: formats.HEAD]


def ftyp(major, *compatible):
    return struct.pack(">I", 16 + 4 * len(compatible)) + b"ftyp" + major + bytes(4) + b"".join(compatible) + bytes(400)


def test_examples():
    assert doctest.testmod(formats).failed == 0


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        *[(name, name) for name in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "ICO", "PPM", "DDS", "PDF")],
        *[("WEBP", "WebP"), ("JPEG2000", "JPEG 2000"), ("MPO", "JPEG"), ("EPS", "PostScript"), ("PCX", None)],
    ],
)
def test_files_written_by_pillow(format, kind):
    assert kind_of(saved(format)) == kind


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bitmaps_of_any_depth(mode):
    assert kind_of(saved("BMP", mode)) == "BMP"


def test_big_endian_and_big_tiff():
    assert [kind_of(head + bytes(8)) for head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")] == ["TIFF"] * 4


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"heic", b"miaf"), "HEIC"),
        (ftyp(b"mif1", b"miaf", b"avif"), "AVIF"),
        (ftyp(b"mif1"), "HEIC"),
        (ftyp(b"hevc", b"msf1"), "HEIC"),
        (ftyp(b"avif"), "AVIF"),
        (ftyp(b"avis", b"msf1"), "AVIF"),
        (ftyp(b"crx "), "RAW"),
        (ftyp(b"jp2 "), "JPEG 2000"),
        (ftyp(b"qt  "), "video"),
        (ftyp(b"isom", b"avc1", b"mp41"), "video"),
        (ftyp(b"3gp5"), "video"),
        (ftyp(b"M4A "), "audio"),
        (b"\0\0\0\x08wide" + bytes(100), "video"),
    ],
)
def test_brands(head, kind):
    assert kind_of(head) == kind


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"II*\0\x10\0\0\0CR\2\0", "RAW"),
        (b"IIRO\x08\0\0\0", "RAW"),
        (b"IIU\0\x18\0\0\0", "RAW"),
        (b"FUJIFILMCCD-RAW 0201", "RAW"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1" + bytes(20), "PSD"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "video"),
        (b"\0\0\1\xba" + bytes(40), "video"),
        ((b"G" + bytes(187)) * 3, "video"),
        (b"  <?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns=", "SVG"),
        (b"<svg>", "SVG"),
        (b"\xef\xbb\xbf<!DOCTYPE html><svg>", "HTML"),
        (b"<?xml version='1.0'?><gpx>", "XML"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\3\4" + bytes(30), "archive"),
        (b"\0\x05\x16\x07" + bytes(30), "companion"),
        (b"", None),
        (b"BMW and other cars", None),
        (b"Peter wrote:", None),
        (bytes(512), None),
        (b"\x89PNG\r\n", None),
    ],
)
def test_first_bytes(head, kind):
    assert kind_of(head) == kind


def test_a_raw_picture_is_told_from_a_tiff_by_its_name():
    for name in ("a.dng", "a.NEF", "b/c.arw", "a.pef"):
        assert kind_of(saved("TIFF"), name) == "RAW"
    assert kind_of(saved("TIFF"), "a.tif") == "TIFF"
    assert kind_of(saved("JPEG"), "a.dng") == "JPEG"  # despite its name


@pytest.mark.parametrize(
    "suffix", ["jpg", "JPEG", "jfif", "jpe", "mpo", "png", "webp", "bmp", "dib", "gif", "tif", "TIFF"]
)
def test_pictures_by_name(suffix):
    assert formats.readable(by_name(f"folder.x/a.{suffix}"))


@pytest.mark.parametrize("name", ["a", "a.JPG~", "a.jpg.bak", "a.dng", "a.jxl", ".jpg", "jpg", "a.thm", "a."])
def test_names_that_settle_nothing(name):
    assert by_name(name) is None


def test_names_that_no_picture_has():
    names = {"a.mp4": "video", "a.MOV": "video", "notes.txt": "other", "a.json": "other", "a.zip": "archive"}
    assert {name: by_name(name) for name in names} == names


def test_every_kind_that_is_found_is_described():
    found = {*formats._STARTS, *formats._TEXT, *formats.PICTURES, *formats.SOMETIMES, *formats.OTHERS}
    assert found <= set(formats.KINDS)


@pytest.fixture
def without_extras(monkeypatch):
    for function in (formats.readable, formats.heif_package, formats.decoders):
        function.cache_clear()
        monkeypatch.setattr(formats.util, "find_spec", lambda name: None)
        monkeypatch.setattr(formats.features, "modules", {})
    yield
    for function in (formats.readable, formats.heif_package, formats.decoders):
        function.cache_clear()


def test_without_extras(without_extras):
    assert by_name("a.heic") is None
    assert by_name("a.avif") is None
    assert refusal("HEIC") == "this is HEIC, which needs: pip install 'alnumpy[heif]'"
    assert refusal("AVIF") == "this is AVIF, which needs: pip install 'pillow>=11.3'"
    counts = {"HEIC": 12, "video": 3, "RAW": 1, "other": 40, "PDF": 2, "AVIF": 0}
    assert passed_over(counts) == "12 HEIC (pip install 'alnumpy[heif]'), 3 videos, 1 RAW"
    assert formats.decoders() == f"alnumpy {formats.__version__}, Pillow {PIL.__version__}"


def test_kinds_readable_with_the_installed_packages():
    assert formats.readable("AVIF") == ("avif" in features.modules and features.check("avif"))
    assert by_name("a.avif") == ("AVIF" if formats.readable("AVIF") else None)
    assert by_name("a.HEIC") == ("HEIC" if formats.readable("HEIC") else None)


def test_no_files_passed_over():
    assert passed_over({"other": 3, "HTML": 1}) == ""
    assert passed_over({"video": 1}) == "1 video"
    assert refusal("HTML") == "this is an HTML page, which is not supported"
