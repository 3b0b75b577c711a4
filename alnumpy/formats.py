"""The kind of a file, by its name and first bytes; which kinds can be read here, and what it takes to read the others.

A name settles most files without opening them (``by_name``). Otherwise the first bytes do (``kind_of``):

    kind = by_name(name) or kind_of(head, name)

``head`` holds the first ``HEAD`` bytes of the file. Kinds are short names as people know them: "JPEG", "HEIC", "video",
"RAW". KINDS describes each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib import util
from typing import NamedTuple

import PIL
from PIL import features

from . import __version__

HEAD = 512  # tells every kind: MPEG transport streams repeat their mark after 188, SVG may begin with a comment


class Kind(NamedTuple):
    """One kind of file. ``picture``: whether it is counted when it is passed over because it cannot be read."""

    noun: str  # completes "this is ..."
    format: str = ""  # Pillow's name of the format, where alnumpy reads it
    picture: bool = True


KINDS = {
    "JPEG": Kind("JPEG", "JPEG"),
    "PNG": Kind("PNG", "PNG"),
    "WebP": Kind("WebP", "WEBP"),
    "BMP": Kind("BMP", "BMP"),
    "GIF": Kind("GIF", "GIF"),
    "TIFF": Kind("TIFF", "TIFF"),
    "AVIF": Kind("AVIF", "AVIF"),
    "HEIC": Kind("HEIC", "HEIF"),
    "RAW": Kind("a camera's RAW picture"),
    "video": Kind("a video"),
    **{
        name: Kind(name)
        for name in ("JPEG XL", "JPEG 2000", "JPEG XR", "PSD", "SVG", "PPM", "ICO", "EXR", "HDR", "DDS")
    },
    **{name: Kind(name) for name in ("QOI", "JNG", "XCF", "DICOM", "FITS", "DjVu")},
    "audio": Kind("a sound file", picture=False),
    "PDF": Kind("a PDF document", picture=False),
    "PostScript": Kind("a PostScript document", picture=False),
    "HTML": Kind("an HTML page", picture=False),
    "XML": Kind("an XML document", picture=False),
    "archive": Kind("an archive", picture=False),
    "companion": Kind("a companion file of macOS", picture=False),
    "other": Kind("a file of another kind", picture=False),
}

PICTURES = {  # suffixes of formats that are read everywhere; these files are never opened just to see their kind
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .mpo",
    "PNG": ".png .apng",
    "WebP": ".webp",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
}
SOMETIMES = {"AVIF": ".avif .avifs", "HEIC": ".heic .heif .hif .heics .heifs"}  # read if Pillow or the extra can
OTHERS = {  # suffixes that no picture has
    "video": ".mp4 .m4v .mov .qt .avi .mkv .webm .mpg .mpeg .mts .m2ts .wmv .asf .flv .3gp .3g2 .ogv .vob .insv .lrv",
    "audio": ".mp3 .m4a .aac .flac .wav .ogg .oga .opus .wma .aif .aiff .mid",
    "PDF": ".pdf",
    "archive": ".zip .gz .bz2 .xz .zst .7z .rar .tar .tgz .iso .jar .whl .deb .rpm .dmg",
    "HTML": ".html .htm",
    "XML": ".xml .xmp .plist .gpx .kml",
    "other": ".txt .md .rst .csv .tsv .json .jsonl .ndjson .yaml .yml .toml .ini .cfg .conf .log .aae .srt .vtt .url "
    ".lnk .py .pyc .js .mjs .css .c .h .cpp .hpp .rs .go .java .sh .bat .ps1 .php .rb .so .dll .exe .o .a .doc .docx "
    ".xls .xlsx .ppt .pptx .odt .ods .odp .rtf .epub .db .db-wal .db-shm .db-journal .db-lock .sqlite .sqlite3 .h5 "
    ".hdf5 .npy .npz .pt .pth .onnx .safetensors .pickle .pkl .ttf .otf .woff .woff2",
}
RAWS = (  # their first bytes are those of TIFF
    ".dng .nef .nrw .arw .sr2 .srf .cr2 .crw .cr3 .raf .orf .rw2 .rwl .raw .pef .ptx .srw .3fr .fff .iiq .erf .mef "
    ".mos .mrw .kdc .dcr .k25 .x3f .gpr .cap .eip"
)


def _kinds(table: Mapping[str, str]) -> dict[str, str]:
    return {suffix: kind for kind, suffixes in table.items() for suffix in suffixes.split()}


_SETTLED = _kinds(PICTURES) | _kinds(OTHERS)
_SOMETIMES = _kinds(SOMETIMES)
_RAWS = frozenset(RAWS.split())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def by_name(name: str) -> str | None:
    """The kind that a file's name settles, or None where its first bytes decide.

    The name of a picture that can be read is believed, since the decoder finds out the format by itself; so is a name
    that nobody gives to a picture, such as notes.txt. If it is the name of a picture that cannot be read here, such as
    HEIC without the extra, the bytes decide: there are JPEGs named photo.heic.

    >>> by_name("photo.JPG"), by_name("clip.mov"), by_name("photo.JPG~"), by_name("photo.dng")
    ('JPEG', 'video', None, None)
    """
    suffix = _suffix(name)
    kind = _SOMETIMES.get(suffix)
    return kind if kind and readable(kind) else _SETTLED.get(suffix)


_TEXT = {  # patterns of beginnings in text, after white space and a byte order mark
    "HTML": rb"<!doctype html|<html|<head",
    "SVG": rb"(?s:<\?xml.*?)?(?s:<!--.*?-->\s*|<!doctype[^>]*>\s*)*<svg",
    "XML": rb"<\?xml",
}
_STARTS = {  # patterns of the first bytes, by kind; the first that fits counts
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "RAW": rb"(II\*\0|MM\0\*).{4}CR|II(RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|\0MRM|II.{4}HEAPCCDR|FOVb|IIII[\x00-\xff]{4}waR",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XR": rb"II\xbc[\0\x01]",
    "PSD": rb"8BPS\0[\x01\x02]",
    "PPM": rb"P[1-7]\s+(#|\d|WIDTH)",
    "ICO": rb"\0\0[\x01\x02]\0[^\0]\0..[\0-\xff]\0",
    "EXR": rb"v/1\x01",
    "HDR": rb"#\?R(ADIANC|GB)E",
    "DDS": rb"DDS \x7c",
    "QOI": rb"qoif",
    "JNG": rb"\x8b[JM]NG\r\n\x1a\n|\x8aMNG\r\n\x1a\n",
    "XCF": rb"gimp xcf",
    "FITS": rb"SIMPLE  =",
    "DjVu": rb"AT&TFORM",
    "DICOM": rb".{128}DICM",
    "video": rb"\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\0\0\x01[\xba\xb3]|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\.RMF"
    rb"|.{4}(moov|mdat|wide|skip|pnot|free)|(.{4})?\x47.{187}(.{4})?\x47.{187}(.{4})?[\x47]?",
    "audio": rb"ID3|fLaC|OggS|RIFF....WAVE|FORM....AIF|MThd|\xff[\xfb\xf3\xf2]|#!AMR",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "archive": rb"PK\x03\x04|\x1f\x8b\x08|7z\xbc\xaf\x27\x1c|Rar!\x1a|BZh\d1AY|\xfd7zXZ\0|\x28\xb5\x2f\xfd",
    "companion": rb"\0\x05\x16[\x07\0]",
    "other": rb"\x7fELF|MZ.{2}|SQLite format 3\0|\x89HDF\r\n\x1a\n|\x93NUMPY|version https://git-lfs",
}
_PATTERNS = [(kind, re.compile(pattern, re.S)) for kind, pattern in _STARTS.items()]
_TEXTS = [(kind, re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:" + pattern + rb")", re.I)) for kind, pattern in _TEXT.items()]
_HEIC = re.compile(rb"hei[cxms]|hev[cxms]")
_AVIF = re.compile(rb"avi[fs]")


def kind_of(head: bytes, name: str = "") -> str | None:
    """The kind of a file by its first ``HEAD`` bytes, or None.

    The name is needed only for RAW pictures, most of which begin like a TIFF.

    >>> kind_of(b"GIF89a"), kind_of(b"II*\\0", "photo.dng"), kind_of(b"II*\\0", "photo.tif"), kind_of(b"Dear Sir,")
    ('GIF', 'RAW', 'TIFF', None)
    """
    if head[4:8] == b"ftyp":  # the container of MP4, QuickTime, HEIC, AVIF and CR3, told apart by their brands
        return _by_brands(head)
    found = next((kind for kind, pattern in _PATTERNS if pattern.match(head)), None)
    if found == "TIFF" and _suffix(name) in _RAWS:
        return "RAW"
    return found or next((kind for kind, pattern in _TEXTS if pattern.match(head)), None)


def _by_brands(head: bytes) -> str:
    end = max(16, min(int.from_bytes(head[:4], "big"), len(head)))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    if brands[0] == b"crx ":
        return "RAW"
    if brands[0] in (b"jp2 ", b"jpx ", b"jpm ", b"mjp2"):
        return "JPEG 2000"
    for brand in brands[:1] if not brands[0].startswith((b"mif", b"msf", b"miaf")) else brands:
        if _AVIF.match(brand):
            return "AVIF"
        if _HEIC.match(brand):
            return "HEIC"
    if brands[0].startswith((b"mif", b"msf", b"miaf", b"avci", b"avcs", b"j2ki", b"jpeg", b"jpgs")):
        return "HEIC"  # HEIF with another codec
    return "audio" if brands[0] in (b"M4A ", b"M4B ", b"M4P ") else "video"


@cache
def readable(kind: str) -> bool:
    """Whether files of a kind are read here, with this Pillow and these extras."""
    if kind == "HEIC":
        return heif_package() is not None
    if kind == "AVIF":  # older versions of Pillow warn about a feature that they do not know
        return "avif" in features.modules and bool(features.check("avif"))
    return bool(KINDS[kind].format)


def readable_kinds() -> list[str]:
    """The kinds that can be read here."""
    return [kind for kind in KINDS if readable(kind)]


@cache
def heif_package() -> str | None:
    """The package that decodes HEIC, by the name that it is imported by."""
    return next((name for name in ("pi_heif", "pillow_heif") if util.find_spec(name)), None)


def remedy(kind: str) -> str:
    """The command that makes a kind readable here, or "" if there is none.

    >>> remedy("video")
    ''
    """
    if readable(kind):
        return ""
    return {"HEIC": "pip install 'alnumpy[heif]'", "AVIF": "pip install 'pillow>=11.3'"}.get(kind, "")


def fault(head: bytes, name: str) -> str:
    """Why a file that begins so is not a picture that can be read here; "" if it may be one.

    >>> fault(b"", "photo.jpg"), fault(b"GIF89a", "photo.jpg")
    ('the file is empty', '')
    """
    if not head:
        return "the file is empty"
    kind = kind_of(head, name)
    if kind is None:
        return f"not a picture that can be read ({', '.join(readable_kinds())})"
    return "" if readable(kind) else refusal(kind)


def refusal(kind: str) -> str:
    """Why a file of a kind that is not read here is refused, and what to do.

    >>> refusal("JPEG XL")
    'this is JPEG XL, which is not supported; save it as JPEG or PNG'
    """
    if command := remedy(kind):
        return f"this is {KINDS[kind].noun}, which needs: {command}"
    advice = "; save it as JPEG or PNG" if KINDS[kind].picture and kind != "video" else ""
    return f"this is {KINDS[kind].noun}, which is not supported{advice}"


def passed_over(counts: Mapping[str, int]) -> str:
    """Numbers of files that were not read, by kind, as text: the most first, without documents and the like.

    >>> passed_over({"RAW": 1, "video": 3, "other": 9})
    '3 videos, 1 RAW'
    """
    parts = []
    for kind, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if number and KINDS[kind].picture:
            plural = "s" if kind == "video" and number > 1 else ""
            parts.append(f"{number} {kind}{plural}" + (f" ({command})" if (command := remedy(kind)) else ""))
    return ", ".join(parts)


@cache
def decoders() -> str:
    """The decoders here, with versions, to be recorded with a failure: another decoder may read the file."""
    parts = [f"alnumpy {__version__}", f"Pillow {PIL.__version__}"]
    if package := heif_package():
        from importlib import metadata

        parts.append(f"{package.replace('_', '-')} {metadata.version(package)}")
    return ", ".join(parts)
