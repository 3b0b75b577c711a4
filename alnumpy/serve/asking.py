"""The parameters and the picture of a request, checked before anything is done."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from flask import request

from ..filters import is_date
from ..likeness import LEVELS

MAX_UPLOAD = 50_000_000  # bytes of a picture
MAX_TEXT = 20_000_000  # bytes of a picture in base64, which takes several times as much memory
TIMES = 20  # how often a parameter may be given

T = TypeVar("T")


class Ended(Exception):
    """Refuses a request, with a status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def end(status: int, reason: str) -> NoReturn:
    """Refuses the request."""
    raise Ended(status, reason)


def one(name: str, read: Callable[[str], T], otherwise: T) -> T:
    """A parameter of the address, or its default if it is missing. Ends the request if it is wrong."""
    found = request.args.getlist(name)
    if len(found) > 1:
        end(400, f"{name} is given {len(found)} times")
    return several(name, read)[0] if found else otherwise


def several(name: str, read: Callable[[str], T]) -> list[T]:
    """A parameter that may be given several times."""
    found = request.args.getlist(name)
    if len(found) > TIMES:
        end(400, f"{name} is given {len(found)} times, which may be {TIMES}")
    try:
        return [read(text) for text in found]
    except ValueError as error:
        end(400, f"{name}: {error}")


def known(*names: str) -> None:
    """Ends the request if it has another parameter: a filter with a mistyped name must not be ignored."""
    if unknown := set(request.args) - set(names):
        end(400, f"unknown parameter {min(unknown)!r}; there are {', '.join(names) or 'none here'}")


def number(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return read


def distance(text: str) -> float:
    """Reads a distance."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"must be a number of at least 0, not {text!r}")
    return value


def date(text: str) -> str:
    """Reads a date, or the beginning of one; an empty text stands for any date."""
    if text and not is_date(text):
        raise ValueError(f"must be a date such as 2024, 2024-05 or 2024-05-31, not {text!r}")
    return text


def folder(text: str) -> str:
    """Reads the path of a folder."""
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError(f"must be the absolute path of a folder, not {text!r}")
    os.fsencode(text)  # raises ValueError if the file system cannot have such letters
    return os.path.normpath(text)


def region(text: str) -> tuple[int, int, int, int]:
    """Reads a part of a picture."""
    if not re.fullmatch(r"\d{1,9},\d{1,9},0*[1-9]\d{0,8},0*[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"must be X,Y,WIDTH,HEIGHT in pixels, not {text!r}")
    x, y, width, height = map(int, text.split(","))
    return x, y, width, height


def flag(text: str) -> bool:
    """Reads a switch."""
    if text not in ("0", "1"):
        raise ValueError(f"must be 0 or 1, not {text!r}")
    return text == "1"


def is_content(text: str) -> bool:
    """Whether a text can be the ID of a picture: SHA-256 in hexadecimal."""
    return re.fullmatch(r"[0-9a-f]{64}", text, re.ASCII) is not None


def content(text: str) -> str:
    """Reads the ID of a picture."""
    if not is_content(text):
        raise ValueError("must be an ID of 64 digits from 0 to f, as results have it")
    return text


def level(text: str) -> str:
    """Reads how alike the pictures of a group are."""
    if text not in LEVELS:
        raise ValueError(f"must be one of {', '.join(LEVELS)}, not {text!r}")
    return text


def body() -> bytes:
    """The picture in a request: its bytes, or JSON with the bytes in base64, which a template can write."""
    if request.mimetype == "multipart/form-data":
        end(415, "send the bytes of the picture as they are: curl --data-binary @photo.jpg")
    most = MAX_TEXT if request.mimetype == "application/json" else MAX_UPLOAD
    data = request.get_data(cache=False)
    if len(data) > most:
        end(413, f"the body may have {most // 1_000_000} MB")
    if request.mimetype == "application/json":
        try:
            data = base64.b64decode(json.loads(data)["picture"].rpartition("base64,")[2])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            end(400, 'as JSON a picture is {"picture": "..."}, its bytes in base64')
    if not data:
        end(400, "send the bytes of a picture")
    return data
