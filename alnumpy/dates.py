"""When a picture was taken, according to its EXIF data."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

ORIGINAL, DIGITIZED = 0x9003, 0x9004  # EXIF 2.32: DateTimeOriginal, DateTimeDigitized
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
LENGTH = len("2024:05:31 12:30:00")
SEARCHED = 1 << 24  # bytes of a HEIC or AVIF in which its EXIF data is looked for


def taken(path: str) -> str:
    """The date in a file's EXIF data in the camera's local time, "2024-05-31T12:30:00"; "" if there is none.

    Reads only the header. Broken data count as none, since the pixels are what matters.
    """
    with suppress(Exception):
        exif = _exif(path)
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for value in (inner.get(ORIGINAL), inner.get(DIGITIZED), exif.get(ExifTags.Base.DateTime)):
            if date := parse(value):
                return date
    return ""


def _exif(path: str) -> Image.Exif:
    exif = Image.Exif()
    with open(path, "rb") as file:
        if file.read(12)[4:8] == b"ftyp":  # HEIC or AVIF; Pillow may be unable to open it
            data = file.read(SEARCHED)
            if found := re.search(rb"Exif\0\0(?=MM\0\*|II\*\0)", data):
                exif.load(data[found.start() :])
            return exif
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            if "exif" in image.info:
                exif.load(image.info["exif"])
            elif image.format == "TIFF":
                exif = image.getexif()
                exif.get_ifd(ExifTags.IFD.Exif)  # read now, while the file is open; Pillow keeps it
        return exif


def parse(value: Any) -> str | None:
    """EXIF's "2024:05:31 12:30:00" in ISO 8601; None for anything else, and for "0000:00:00 00:00:00"."""
    if not isinstance(value, str):
        return None
    with suppress(ValueError):
        return datetime.strptime(value[:LENGTH], "%Y:%m:%d %H:%M:%S").isoformat()
    return None
