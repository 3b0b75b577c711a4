"""When a picture was taken, by its EXIF data."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

ORIGINAL, DIGITIZED = 0x9003, 0x9004  # EXIF 2.32: DateTimeOriginal, DateTimeDigitized
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
LENGTH = len("2024:05:31 12:30:00")


def taken(path: str) -> str:
    """The date of a file's EXIF data in the camera's local time, "2024-05-31T12:30:00"; "" where it has none.

    Reads the header only. Data that are broken count as none: the pixels are what matters.
    """
    with suppress(Exception), Image.open(path, formats=FORMATS) as image:
        exif = Image.Exif()
        if "exif" in image.info:
            exif.load(image.info["exif"])
        elif image.format == "TIFF":
            exif = image.getexif()
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for value in (inner.get(ORIGINAL), inner.get(DIGITIZED), exif.get(ExifTags.Base.DateTime)):
            if date := parse(value):
                return date
    return ""


def parse(value: Any) -> str | None:
    """EXIF's "2024:05:31 12:30:00" in ISO 8601; None for anything else, and for "0000:00:00 00:00:00"."""
    if not isinstance(value, str):
        return None
    with suppress(ValueError):
        return datetime.strptime(value[:LENGTH], "%Y:%m:%d %H:%M:%S").isoformat()
    return None
