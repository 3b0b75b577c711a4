"""Search results as a sheet and as a page: their content, and that neither loads nor trusts anything."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from alnumpy.errors import printable
from alnumpy.gallery import Match
from alnumpy.montage import CELL, GAP, MARK, PALE, SIDE, _fit, _font, link_to, thumbnail, write_html, write_montage

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "gray")


@pytest.fixture
def searches(tmp_path):
    """Two queries: one with six results, one of which is missing, and one without results."""
    matches = []
    for i, color in enumerate(COLORS):
        path = os.fspath(tmp_path / f"{color}.png")
        Image.new("RGB", (200, 100), color).save(path)
        matches.append(Match(path, i / 4, i == 0))
    os.unlink(matches[3].path)
    return [(matches[0].path, matches[:6]), (matches[6].path, [])]


def centre(sheet, column, line):
    return sheet.getpixel((GAP + column * CELL[0] + SIDE // 2, GAP + line * CELL[1] + SIDE // 2 + 20))


def test_montage(searches):
    file = io.BytesIO()
    write_montage(file, searches)
    sheet = Image.open(file)
    assert (sheet.format, sheet.mode, sheet.size) == ("PNG", "RGB", (GAP + 6 * CELL[0], GAP + 3 * CELL[1]))

    def rgb(color):
        return Image.new("RGB", (1, 1), color).getpixel((0, 0))

    shown = [centre(sheet, i, 0) for i in range(6)]
    assert shown == [rgb(color) for color in ("red", "red", "green", "blue", PALE, "purple")]
    assert [centre(sheet, i, 1) for i in range(2)] == [rgb("white"), rgb("cyan")]
    assert [centre(sheet, i, 2) for i in range(2)] == [rgb("gray"), rgb("white")]
    assert sheet.getpixel((GAP - 3, GAP + 9)) == rgb(MARK)
    below = np.asarray(sheet)[GAP + SIDE + 4 : GAP + CELL[1] - GAP]  # captions are below the pictures, not between them
    ink = [(below[:, GAP + i * CELL[0] : GAP + i * CELL[0] + SIDE] < 128).any() for i in range(6)]
    assert ink == [True] * 6
    assert (below[:, GAP + SIDE + 4 : CELL[0]] == 255).all()
    with pytest.raises(ValueError, match="too large; take fewer"):
        write_montage(file, searches * 10_000)


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "\udcff\n\x1b[31m\u202e\u4e2d.png", ""])
def test_captions_fit_for_any_name(name):
    text = _fit(printable(name))
    assert "\n" not in text
    assert len(text) < 60
    if len(name) > 200:
        assert re.fullmatch(r"a+\.\.\.a*\.png", text)
    font, encoding = _font()
    text.encode(encoding)
    assert all(font.getmask(c).getbbox() for c in text)
    assert _fit("\u00fcber \u00e9t\u00e9 \u4e2d.png") == (
        "\u00fcber \u00e9t\u00e9 ?.png" if _font()[1] == "latin-1" else "uber ete ?.png"
    )
    assert _fit("e\u0301t\u00e9 \u017e.png") == _fit("\u00e9t\u00e9 z.png")  # the spelling of macOS


class Page(HTMLParser):
    """Collects the tags, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


def test_html(searches):
    file = io.BytesIO()
    write_html(file, searches)
    page = Page(file.getvalue().decode("ascii"))
    tags = [tag for tag, _ in page.tags]
    assert (tags.count("section"), tags.count("figure"), tags.count("img")) == (2, 8, 7)
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    assert "default-src 'none'" in next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    for source, color in zip(sources, ("red", "red", "green", "blue", "purple", "cyan", "gray"), strict=True):
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (160, 80)
        wanted = Image.new("RGB", (1, 1), color).getpixel((0, 0))
        assert np.abs(np.subtract(image.getpixel((80, 40)), wanted)).max() < 5
    start = page.texts.index("query")
    assert page.texts[start : start + 8] == [
        "query", "red.png", "#1  0.0000  same", "red.png", "#2  0.2500", "green.png", "#3  0.5000", "blue.png"
    ]  # fmt: skip
    assert "cannot be read" in page.texts
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links[1] == f"file://{searches[0][0]}"


def test_links_are_relative_if_the_page_lies_above_the_pictures(tmp_path):
    (tmp_path / "a b").mkdir()
    inside, outside = tmp_path / "a b" / "c:#%.png", tmp_path.parent / "x.png"
    assert link_to(str(inside), str(tmp_path / "page.html")) == "./a%20b/c%3A%23%25.png"
    assert link_to(str(inside), str(tmp_path / "a b" / "page.html")) == "./c%3A%23%25.png"
    assert link_to(str(outside), str(tmp_path / "page.html")) == outside.as_uri()
    assert link_to(str(inside), "") == inside.as_uri()
    file = io.BytesIO()
    write_html(file, [(str(inside), [Match(str(inside), 0.0, True)])], page=str(tmp_path / "page.html"))
    page = Page(file.getvalue().decode())
    assert {a["href"] for tag, a in page.tags if tag == "a"} == {"./a%20b/c%3A%23%25.png"}
    assert {a["data-folder"] for tag, a in page.tags if tag == "figcaption"} == {str(tmp_path / "a b")}
    assert str(inside) in page.texts  # the heading


def test_pictures_above_the_limit_are_not_shown(searches):
    for limit, shown in ((20_000, 7), (19_999, 0)):
        sheet, page = io.BytesIO(), io.BytesIO()
        write_montage(sheet, searches, limit)
        write_html(page, searches, limit)
        assert page.getvalue().count(b"<img ") == shown
        assert (centre(Image.open(sheet), 1, 0) == (255, 0, 0)) == bool(shown)


def test_names_cannot_break_the_page(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\"'><script>alert(1)<\\script>&amp;\n.png"
    Image.new("RGB", (9, 9)).save(os.fsdecode(name), "PNG")
    file = io.BytesIO()
    write_html(file, [(os.fsdecode(name), [Match(os.fsdecode(name), 0.0, True)])])
    page = Page(file.getvalue().decode())
    tags = {tag for tag, _ in page.tags}
    assert tags - {"html", "head", "meta", "title", "style", "body"} == {
        "h1", "h2", "p", "section", "figure", "a", "img", "figcaption", "b", "br"
    }  # fmt: skip
    assert page.texts.count(r"""\udcff"'><script>alert(1)<\script>&amp;\n.png""") == 2
    assert {attributes["title"] for tag, attributes in page.tags if tag == "a"} == {printable(os.fsdecode(name))}
    links = {attributes["href"].removeprefix("file://") for tag, attributes in page.tags if tag == "a"}
    assert {unquote_to_bytes(link) for link in links} == {name}  # a click opens the file


def test_thumbnails_are_upright_and_keep_their_proportions(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (1000, 600), "red").save(tmp_path / "a.jpg", exif=exif)
    assert thumbnail(os.fspath(tmp_path / "a.jpg")).size == (96, 160)
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    assert thumbnail(os.fspath(tmp_path / "small.png")).size == (30, 20)
    assert thumbnail(os.fspath(tmp_path / "gone.png")) is None
    (tmp_path / "text.jpg").write_text("a letter")
    assert thumbnail(os.fspath(tmp_path / "text.jpg")) is None
