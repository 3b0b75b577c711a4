"""Search results to look at: a PNG montage, and an HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import os
import unicodedata
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

from . import images
from .errors import ImageError, printable

SIDE = 160  # side of a thumbnail in pixels
GAP = 12
LINE = 14  # height of a line of caption
COLUMNS = 6  # pictures side by side, the query included
CELL = (SIDE + GAP, SIDE + 2 * LINE + GAP)
INK, PALE, MARK = (
    "#1d1d1f",
    "#e8e8ec",
    "#c2410c",
)  # text, pictures that cannot be shown, the query's frame


class Shown(Protocol):
    """Any result: a Match, or a Member of a group."""

    @property
    def path(self) -> str: ...
    @property
    def distance(self) -> float: ...
    @property
    def same(self) -> bool: ...


Search = tuple[str, Sequence[Shown]]  # a query's path and its results

ABOUT = (
    'Numbers are L2 distances: the smaller, the more alike; "same" marks files identical to {}. Point at a picture '
    "for its path; click to open it."
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --pale: #f5f5f7; --line: #d2d2d7; --mark: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ed; --paper: #161618; --pale: #242427; --line: #3a3a3e; --mark: #fb8c4b; }
}
body { font: 14px/1.4 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.5em; }
section { display: flex; flex-wrap: wrap; gap: 12px; padding: 1em 0; border-top: 1px solid var(--line); }
h2 { flex: 100%; margin: 0; font-size: 14px; overflow-wrap: anywhere; }
figure { margin: 0; width: 164px; }
figure a { display: flex; width: 160px; height: 160px; align-items: center; justify-content: center;
  background: var(--pale); border: 2px solid transparent; color: inherit; }
figure.query a { border-color: var(--mark); }
figcaption { overflow-wrap: anywhere; font-size: 12px; line-height: 17px; max-height: 119px; overflow: hidden; }
figcaption::after { content: attr(data-folder); display: block; opacity: 0.7; }
b { font-variant-numeric: tabular-nums; white-space: pre; }
</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
"""


def thumbnail(path: str, max_pixels: int = images.MAX_PIXELS) -> Image.Image | None:
    """A picture upright and in RGB, at most SIDE pixels wide and high; None where it cannot be read any more."""
    try:
        image, _ = images.read_file(path, max_pixels, SIDE)
    except ImageError:
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def write_montage(file: IO[bytes], searches: Sequence[Search], max_pixels: int = images.MAX_PIXELS) -> None:
    """A PNG: for each query a framed thumbnail, followed by the results by rank, with distance and file name.

    Pictures of more than ``max_pixels`` are not shown. Raises ValueError for more results than a picture can hold.
    """
    lines = [-(-max(1, len(matches)) // (COLUMNS - 1)) for _, matches in searches]
    width, height = GAP + COLUMNS * CELL[0], GAP + sum(lines) * CELL[1]
    if width * height > images.MAX_PIXELS:
        raise ValueError(f"a montage of {width}x{height} pixels is too large; take fewer queries or results, or HTML")
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for (query, matches), count in zip(searches, lines, strict=True):
        _paste(sheet, draw, (GAP, top), thumbnail(query, max_pixels), query, "query")
        draw.rectangle((GAP - 4, top - 4, GAP + SIDE + 3, top + SIDE + 3), outline=MARK, width=3)
        for i, match in enumerate(matches):
            at = (GAP + (1 + i % (COLUMNS - 1)) * CELL[0], top + i // (COLUMNS - 1) * CELL[1])
            _paste(sheet, draw, at, thumbnail(match.path, max_pixels), match.path, caption(i + 1, match))
        top += count * CELL[1]
    sheet.save(file, "PNG")


def caption(rank: int, match: Shown) -> str:
    """The first line below a result."""
    return f"#{rank}  {match.distance:.4f}{'  same' if match.same else ''}"


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    image: Image.Image | None,
    path: str,
    text: str,
) -> None:
    """A thumbnail in the middle of its square, and two lines of caption below."""
    left, top = at
    if image is None:
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=PALE)
        draw.text((left + 8, top + SIDE // 2 - 6), "cannot be read", INK)
    else:
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
    for line, words in enumerate((text, printable(os.path.basename(path)))):
        draw.text((left, top + SIDE + 5 + line * LINE), _fit(words), INK, font=_font()[0])


def _font() -> tuple[Any, str]:
    """Pillow's own font, and the encoding that it can show: its bitmap font has the accents of Latin-1."""
    font = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    return font, "ascii" if isinstance(font, ImageFont.FreeTypeFont) else "latin-1"


def _letter(letter: str, encoding: str) -> str:
    """A letter that can be shown: itself, or without its accents, or else a question mark."""
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        letter = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
        return letter.encode("ascii", "replace").decode()
    return letter


def _fit(text: str) -> str:
    """Text at most as wide as a thumbnail, in letters that Pillow's own font can show."""
    font, encoding = _font()
    text = "".join(_letter(c, encoding) for c in unicodedata.normalize("NFC", text))
    if font.getlength(text) <= SIDE:
        return text
    keep = len(text) - 1
    while font.getlength(shortened := f"{text[: keep // 2]}...{text[len(text) - keep + keep // 2 :]}") > SIDE:
        keep -= 1
    return shortened


def write_html(
    file: IO[bytes],
    searches: Sequence[Search],
    max_pixels: int = images.MAX_PIXELS,
    *,
    page: str = "",
    title: str = "Search results",
    first: str = "query",
    meaning: str = "",
) -> None:
    """A page with thumbnails inside, readable offline: no script, no other file. Each picture links to its file.

    Links are relative to ``page``, the path that the page will have, for pictures beside and below it, so that the
    folder can be moved as a whole. Pictures of more than ``max_pixels`` are not shown. ``first``: the caption of the
    queries. ``meaning``: what distances mean, as a part of a sentence.
    """
    about = escape(ABOUT.format(f"the {first}") + (f" Here, {meaning}." if meaning else ""))
    file.write(PAGE.replace("{title}", escape(title)).replace("{text}", about).encode())
    for query, matches in searches:
        file.write(f"<section>\n<h2>{escape(printable(query))}</h2>\n".encode())
        _write_figure(file, thumbnail(query, max_pixels), query, first, page, ' class="query"')
        for rank, match in enumerate(matches, 1):
            _write_figure(file, thumbnail(match.path, max_pixels), match.path, caption(rank, match), page)
        file.write(b"</section>\n")
    file.write(b"</body>\n</html>\n")


def link_to(path: str, page: str) -> str:
    """The address of a picture in a page: relative if it is beside or below the page, else absolute."""
    path = os.path.abspath(path)
    folder = os.path.join(os.path.dirname(os.path.abspath(page)), "")
    if page and path.startswith(folder):
        return "./" + quote(os.fsencode(path[len(folder) :].replace(os.sep, "/")))
    return Path(path).as_uri()


def _write_figure(
    file: IO[bytes], image: Image.Image | None, path: str, text: str, page: str, attributes: str = ""
) -> None:
    name = escape(printable(os.path.basename(path)))
    shown = "cannot be read"
    if image is not None:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=85)
        shown = f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
    link = escape(link_to(path, page))
    folder = escape(printable(os.path.dirname(path)))
    title = escape(printable(path))
    file.write(
        f'<figure{attributes}><a href="{link}" title="{title}">{shown}</a>'
        f'<figcaption data-folder="{folder}"><b>{escape(text)}</b><br>{name}</figcaption></figure>\n'.encode()
    )
