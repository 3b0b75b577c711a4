"""The page of ``alnumpy serve`` in a real browser: Chromium, driven by Playwright.

Skipped without a browser. ``ALNUMPY_CHROMIUM`` names it (/usr/bin/chromium), ``ALNUMPY_AXE`` the axe.min.js of the
npm package axe-core, which looks for barriers to people who see, hear or move differently.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import DIGITS
from PIL import Image
from test_cli import run
from test_serve_process import serving

api = pytest.importorskip("playwright.sync_api")
screenshots = pytest.importorskip("screenshots")
CHROMIUM = os.environ.get("ALNUMPY_CHROMIUM", "/usr/bin/chromium")
AXE = os.environ.get("ALNUMPY_AXE", "")
if not os.path.exists(CHROMIUM):
    pytest.skip(f"{CHROMIUM} is not here; set ALNUMPY_CHROMIUM", allow_module_level=True)

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Landscapes in nine folders, two of the pictures twice, and their gallery."""
    desk = tmp_path_factory.mktemp("browser")
    screenshots.photographs(desk / "p", 3)
    assert run("index", "p", "--db", "g.db", "--backend", "numpy", cwd=desk)[0] == 0
    return desk


@pytest.fixture(scope="module")
def address(desk):
    with serving(desk, "--db", "g.db", "--backend", "numpy") as (_, address):
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=screenshots.FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, address):
    """Opens pages; none may write to its console, or send a request to another server."""
    contexts, said = [], []

    def open_page(path="", size=DESKTOP, **options):
        context = chromium.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: "status of 422" in message.text or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: r.url.startswith((address, "blob:")) or said.append(f"asked for {r.url}"))
        page.goto(address + path)
        screenshots.settled(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def tiles(page):
    return page.locator("#grid .go")


def names(page):
    """The names of the pictures in the grid."""
    return [image.get_attribute("alt") for image in tiles(page).locator("img").all()]


def seen(page):
    """Waits for the page. Returns the number of pictures shown."""
    screenshots.settled(page)
    return tiles(page).count()


def test_it_begins_with_the_gallery(opened):
    page = opened()
    assert page.title() == "alnumpy: search your photos"
    assert page.locator("#count").inner_text() == "29 pictures"
    assert seen(page) == 29
    assert names(page)[0] == "IMG_2114.jpg"  # the latest
    assert "2025 / Garden" in page.locator("#grid li").first.inner_text()
    assert "2025" in page.locator("#grid li .quiet").first.inner_text()


def test_upload_and_click_through(opened, desk, tmp_path):
    page = opened()
    Image.open(desk / "p" / "2023" / "Cappadocia" / "IMG_1548.jpg").rotate(2).save(tmp_path / "mine.png")
    page.locator("#file").set_input_files(tmp_path / "mine.png")
    assert seen(page) == 29
    assert page.locator("#query-name").inner_text() == "mine.png"
    assert names(page)[0] == "IMG_1548.jpg"
    numbers = [float(text) for text in page.locator("#grid .number").all_inner_texts()]
    assert numbers == sorted(numbers)
    bars = [bar.bounding_box()["width"] for bar in page.locator("#grid .bar span").all()[:20:6]]
    assert bars == sorted(bars)
    tiles(page).nth(1).click()
    assert seen(page) == 29
    second = names(page)[0]
    assert page.locator("#query-name").inner_text() == second != "mine.png"
    assert "identical" in page.locator("#grid li").first.inner_text()
    page.go_back()
    seen(page)
    assert page.locator("#query-name").inner_text() == "mine.png"
    page.get_by_role("link", name="Clear").click()
    assert seen(page) == 29
    assert page.locator("#heading").inner_text() == "Your pictures"


def test_a_dropped_picture_is_searched_for_and_another_file_refused(opened, desk):
    page = opened()
    drop = """([name, type, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], name, { type }));
      for (const kind of ["dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
      }
    }"""
    picture = desk / "p" / "2022" / "Regatta" / "IMG_1274.jpg"
    page.evaluate(drop, ["dropped.jpg", "image/jpeg", list(picture.read_bytes())])
    seen(page)
    assert names(page)[0] == "IMG_1274.jpg"
    assert "identical" in page.locator("#grid li").first.inner_text()
    page.evaluate(drop, ["text.txt", "text/plain", [104, 105]])
    api.expect(page.locator("#status")).to_contain_text("not a picture", timeout=30_000)
    assert tiles(page).count() == 0


def test_filters(opened, desk):
    page = opened()
    tiles(page).first.click()
    assert seen(page) == 29
    page.get_by_label("Folder").fill(f"{desk}/p/2023")
    page.get_by_label("Folder").press("Enter")
    assert seen(page) == 7
    page.get_by_label("Until").fill("2023-06-30")
    page.get_by_label("Until").press("Tab")
    assert seen(page) == 3
    assert all("Black Forest" in text for text in page.locator("#grid li").all_inner_texts())
    assert "in=" in page.url
    page.reload()
    assert seen(page) == 3
    page.get_by_role("button", name="Clear filters").click()
    assert seen(page) == 29
    page.get_by_label("Distance at most").fill("0.01")
    page.get_by_label("Distance at most").press("Tab")
    assert seen(page) == 1
    page.get_by_label("Leave out identical files").check()
    seen(page)
    assert page.locator("#status").inner_text() == "No picture passes these filters."
    page.get_by_role("link", name="Clear").click()
    assert seen(page) == 29
    assert page.locator("#narrow").get_attribute("open") is not None


def test_a_region_is_drawn(opened):
    page = opened()
    tiles(page).nth(4).click()
    seen(page)
    before = page.locator("#grid .number").all_inner_texts()
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.6, steps=4)
    page.mouse.up()
    seen(page)
    region = re.search(r"region=(\d+)%2C(\d+)%2C(\d+)%2C(\d+)", page.url)
    assert [abs(int(n) - wanted) <= 4 for n, wanted in zip(region.groups(), (192, 72, 480, 360), strict=True)] == [
        True
    ] * 4
    assert page.locator("#grid .number").all_inner_texts() != before
    drawn = page.locator("#region").bounding_box()
    assert abs(drawn["width"] - box["width"] / 2) < 4
    page.get_by_role("button", name="Search for all of it").click()
    seen(page)
    assert page.locator("#grid .number").all_inner_texts() == before


def test_pictures_like_another_are_left_out(opened):
    page = opened()
    tiles(page).first.click()
    assert seen(page) == 29
    page.locator("#grid .enlarge").nth(5).click()
    page.get_by_role("button", name="Leave out pictures like it").click()
    fewer = seen(page)
    assert 0 < fewer < 29
    page.get_by_role("button", name="Include again").click()
    assert seen(page) == 29


def test_duplicates_stand_side_by_side_and_what_differs_is_marked(opened):
    page = opened("?duplicates=near")
    groups = page.locator(".group")
    group = groups.filter(has_text="Best of Lisbon.jpg")
    first, copy = group.locator(".member").first, group.locator(".member", has_text="Best of Lisbon.jpg")
    assert "the one to keep" in first.inner_text()
    differing = copy.locator(".differs").all_inner_texts()
    assert any("480 \u00d7 360 (25%)" in text for text in differing)
    assert any("/p/2022" in text for text in differing)
    assert first.locator(".differs").count() == 0
    assert abs(first.bounding_box()["y"] - group.locator(".member").nth(1).bounding_box()["y"]) < 1  # side by side
    group.get_by_label("Compare Best of Lisbon.jpg").click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator("figure").count() == 2
    assert dialog.locator("figure:visible").count() == 2
    assert "480 \u00d7 360" in dialog.inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="Identical files").check()
    screenshots.settled(page)
    assert page.locator("#status").inner_text() == "None found."
    page.get_by_label("Within a distance of").fill("0")
    page.get_by_label("Within a distance of").press("Enter")
    screenshots.settled(page)
    assert "threshold" not in page.url
    assert page.url.endswith("?duplicates=0")


def test_by_keyboard_alone(opened):
    """From the first Tab to a search, a region, a filter, the large view and back."""
    page = opened()

    def active():
        return page.evaluate("() => (document.activeElement.ariaLabel || document.activeElement.textContent).trim()")

    def tab_to(text):
        for _ in range(40):
            page.keyboard.press("Tab")
            if text in active():
                return
        raise AssertionError(f"Tab does not lead to {text}")

    page.keyboard.press("Tab")
    assert active() == "Skip to the pictures"
    page.keyboard.press("Enter")
    tab_to("Find pictures like IMG_2114.jpg")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    seen(page)
    second = page.locator("#query-name").inner_text()
    assert second == "IMG_2105.jpg"
    tab_to(f"Find pictures like {second}")
    page.keyboard.press("ArrowRight")
    wanted = active().removeprefix("Find pictures like ")
    page.keyboard.press("v")
    caption = page.locator("#shown figcaption")
    assert f"2 of 29: {wanted}" in caption.inner_text()
    page.keyboard.press("ArrowRight")
    assert "3 of 29" in caption.inner_text()
    page.keyboard.press("End")
    assert "29 of 29" in caption.inner_text()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert "1 of 29" in caption.inner_text()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    page.wait_for_function("name => document.activeElement.ariaLabel?.endsWith(name)", arg=second)  # after its event
    page.keyboard.press("v")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    seen(page)
    assert page.locator("#query-name").inner_text() == wanted
    page.locator("#choose-region").focus()
    page.keyboard.press("Enter")
    assert active().startswith("Region: ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    seen(page)
    assert "region=288%2C180%2C480%2C396" in page.url
    page.locator("#region").focus()
    page.keyboard.press("Escape")
    seen(page)
    assert "region" not in page.url
    page.get_by_label("From").focus()
    page.keyboard.type("01012025")
    page.keyboard.press("Tab")
    seen(page)
    assert "since=2025-01-01" in page.url
    assert seen(page) == 6


def test_on_a_phone(opened, desk):
    page = opened(size=PHONE, has_touch=True, is_mobile=True)
    assert page.get_by_text("Take a photo").is_visible()
    assert not page.get_by_label("Folder").is_visible()
    page.get_by_text("Filters", exact=True).tap()
    assert page.get_by_label("Folder").is_visible()
    page.locator("#photo").set_input_files(desk / "p" / "2024" / "Morocco" / "IMG_1685.jpg")
    assert seen(page) == 29
    assert names(page)[0] == "IMG_1685.jpg"
    for path in (
        "",
        "?duplicates=near",
        "?like=" + page.locator("#grid .go").first.get_attribute("href").split("=")[1],
    ):
        page.goto(page.url.split("?")[0] + path)
        screenshots.settled(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#grid .enlarge").first.tap()
    box = page.locator("#not-this").bounding_box()
    assert box["y"] + box["height"] <= PHONE["height"]


def test_an_index_beside_shows_its_progress_and_its_pictures(opened, chromium, tmp_path):
    (tmp_path / "p").mkdir()
    shutil.copy(DIGITS[0], tmp_path / "p")
    with serving(tmp_path, "--db", "g.db", "--index", "p", "--watch", "1", "--backend", "numpy") as (_, address):
        page = chromium.new_page()
        page.goto(address)
        page.locator("#grid .go").nth(0).wait_for()
        for i in range(1, 25):
            shutil.copy(DIGITS[i], tmp_path / "p" / f"{i}.png")
            os.utime(tmp_path / "p" / f"{i}.png", (1e9 + i, 1e9 + i))
        page.locator("#grid .go").nth(24).wait_for()
        assert page.locator("#count").inner_text() == "25 pictures"
        page.close()


@pytest.mark.skipif(not AXE, reason="needs axe-core: npm install axe-core, and ALNUMPY_AXE=.../axe.min.js")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_barrier_is_found(opened, theme, size):
    source = Path(AXE).read_text()

    def check(page, where):
        page.evaluate(source)
        found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
        told = [
            f"{v['impact']}: {v['id']}: {v['nodes'][0]['html'][:200]} {v['nodes'][0]['failureSummary']}" for v in found
        ]
        assert told == [], where

    page = opened(size=size, color_scheme=theme, bypass_csp=True)
    check(page, "start")
    tiles(page).first.click()
    seen(page)
    check(page, "search")
    page.get_by_role("button", name="Search for a part").click()
    check(page, "region")
    page.keyboard.press("Escape")
    page.locator("#grid .enlarge").nth(2).click()
    screenshots.settled(page)
    check(page, "large")
    page.get_by_role("button", name="Leave out pictures like it").click()
    seen(page)
    check(page, "unlike")
    page = opened("?duplicates=near", size=size, color_scheme=theme, bypass_csp=True)
    check(page, "duplicates")
    page.locator(".member .go").nth(1).click()
    screenshots.settled(page)
    check(page, "compare")
