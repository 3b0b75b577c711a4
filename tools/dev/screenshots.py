#!/usr/bin/env python3
"""Takes docs/serve.jpg, the picture of the page of ``alnumpy serve`` in docs/SERVE.md.

    python tools/dev/screenshots.py --chromium /usr/bin/chromium

The photographs on it are landscapes drawn here, from random numbers, so that nobody has rights to them. They get dates,
a few of them are duplicated, and they are indexed and searched like any others. Needs Playwright and a Chromium: pip
install 'alnumpy[browser]'.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parents[2]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
WIDTH, HEIGHT = 960, 720
Rng = np.random.Generator
Colour = tuple[int, int, int]


# Landscapes


def sky(*colours: Colour) -> Image.Image:
    """A gradient from the top to the bottom."""
    at = np.linspace(0, len(colours) - 1, HEIGHT)
    bands = [np.interp(at, range(len(colours)), [colour[i] for colour in colours]) for i in range(3)]
    return Image.fromarray(np.repeat(np.stack(bands, 1)[:, None].astype(np.uint8), WIDTH, 1))


def ridge(rng: Rng, base: float, height: float, rough: float) -> np.ndarray:
    """The line of hills, or for a high roughness of mountains: heights in pixels from the top, (WIDTH,)."""
    x = np.linspace(0, 1, WIDTH)
    line = np.zeros(WIDTH)
    for octave in range(1, 8):
        wave = np.sin(2 * np.pi * (x * 2**octave * rng.uniform(0.4, 0.7) + rng.random()))
        line += (np.abs(wave) if rough > 0.5 else wave) * rough ** (octave - 1) / 2
    return HEIGHT * (base - height * line)


def ground(draw: ImageDraw.ImageDraw, line: np.ndarray, colour: Colour) -> None:
    """Fills everything below a line."""
    draw.polygon([(0, HEIGHT), *enumerate(line.tolist()), (WIDTH, HEIGHT)], fill=colour)


def glow(image: Image.Image, x: float, y: float, radius: float, colour: Colour, spread: float = 3) -> None:
    """A sun or moon in its own light."""
    light = Image.new("L", image.size)
    ImageDraw.Draw(light).ellipse(
        [x - spread * radius, y - spread * radius, x + spread * radius, y + spread * radius], fill=90
    )
    light = light.filter(ImageFilter.GaussianBlur(radius))
    ImageDraw.Draw(light).ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    image.paste(colour, mask=light.filter(ImageFilter.GaussianBlur(1.5)))


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """A colour between two."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def pine(draw: ImageDraw.ImageDraw, x: float, foot: float, height: float, colour: Colour | int) -> None:
    """A conifer."""
    for part in range(4):
        top, low = foot - height * (1 - 0.2 * part), foot - height * (0.66 - 0.2 * part)
        half = height * (0.09 + 0.055 * part)
        draw.polygon([(x, top), (x - half, low), (x + half, low)], fill=colour)


def sunset(rng: Rng) -> Image.Image:
    image = sky((56, 36, 92), (186, 70, 92), (250, 150, 84), (255, 214, 140))
    glow(image, rng.uniform(200, 760), rng.uniform(330, 430), rng.uniform(38, 60), (255, 240, 200))
    draw = ImageDraw.Draw(image)
    for part in range(4):
        ground(draw, ridge(rng, 0.66 + 0.1 * part, 0.07, 0.4), mixed((150, 66, 92), (26, 14, 38), part / 3))
    return image


def mountains(rng: Rng) -> Image.Image:
    image = sky((70, 130, 190), (150, 195, 225), (225, 236, 240))
    draw = ImageDraw.Draw(image)
    for part in range(3):
        line = ridge(rng, 0.72 + 0.09 * part, 0.36 - 0.1 * part, 0.56)
        ground(draw, line, mixed((136, 158, 184), (44, 66, 84), part / 2))
        if part == 0:
            snow = np.minimum(
                line + 34 + 14 * np.sin(np.arange(WIDTH) / 7) + 9 * np.sin(np.arange(WIDTH) / 3.1), 0.6 * HEIGHT
            )
            snow = np.maximum(snow, line)
            draw.polygon([*enumerate(line.tolist()), *reversed(list(enumerate(snow.tolist())))], fill=(244, 247, 250))
    for _ in range(60):
        x = rng.uniform(0, WIDTH)
        pine(draw, x, HEIGHT - rng.uniform(-20, 40), rng.uniform(70, 150), (22, 44, 46))
    return image


def night(rng: Rng) -> Image.Image:
    image = sky((8, 12, 34), (18, 30, 70), (48, 62, 110))
    draw = ImageDraw.Draw(image)
    for _ in range(320):
        x, y, r = rng.uniform(0, WIDTH), rng.uniform(0, 500), rng.choice([0.6, 0.8, 1.4])
        draw.ellipse([x - r, y - r, x + r, y + r], fill=mixed((120, 130, 170), (255, 255, 240), rng.random()))
    glow(image, rng.uniform(150, 800), rng.uniform(100, 220), rng.uniform(28, 44), (240, 240, 220), 2)
    for part in range(3):
        ground(draw, ridge(rng, 0.78 + 0.08 * part, 0.2, 0.52), mixed((36, 46, 86), (6, 8, 20), part / 2))
    return image


def sea(rng: Rng) -> Image.Image:
    image = sky((92, 170, 222), (190, 224, 240), (20, 108, 150), (8, 66, 104))
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(330, 400)
    draw.rectangle([0, horizon, WIDTH, HEIGHT], fill=(24, 112, 156))
    for _ in range(260):
        y = horizon + (HEIGHT - horizon) * rng.random() ** 1.6
        near = (y - horizon) / (HEIGHT - horizon)
        x, length = rng.uniform(-50, WIDTH), 14 + 130 * near
        draw.line(
            [x, y, x + length, y], fill=mixed((70, 156, 194), (10, 78, 120), rng.random()), width=round(1 + 4 * near)
        )
    for _ in range(rng.integers(1, 4)):
        x, y, h = rng.uniform(120, 840), horizon + rng.uniform(10, 90), rng.uniform(70, 150)
        draw.polygon([(x, y - h), (x, y - 8), (x - h * 0.42, y - 8)], fill=(250, 250, 246))
        draw.polygon([(x + 5, y - h * 0.86), (x + 5, y - 8), (x + h * 0.34, y - 8)], fill=(236, 232, 222))
        draw.polygon(
            [(x - h * 0.4, y), (x + h * 0.4, y), (x + h * 0.3, y + h * 0.13), (x - h * 0.3, y + h * 0.13)],
            fill=(150, 54, 40),
        )
    return image


def desert(rng: Rng) -> Image.Image:
    image = sky((96, 168, 206), (214, 224, 210), (246, 220, 170))
    glow(image, rng.uniform(200, 760), rng.uniform(110, 200), 42, (255, 248, 220))
    draw = ImageDraw.Draw(image)
    for part in range(5):
        colour = mixed((232, 176, 110), (176, 96, 46), (part % 2) * 0.35 + part / 9)
        ground(draw, ridge(rng, 0.6 + 0.1 * part, 0.11, 0.3), colour)
    return image


def forest(rng: Rng) -> Image.Image:
    image = sky((196, 214, 212), (222, 230, 222), (206, 218, 206))
    for part in range(5):
        layer = Image.new("RGB", image.size, mixed((176, 198, 190), (18, 48, 40), part / 4))
        mask = Image.new("L", image.size)
        draw = ImageDraw.Draw(mask)
        for _ in range(26):
            foot, height = 400 + 72 * part + rng.uniform(-20, 30), rng.uniform(130, 210) + 34 * part
            pine(draw, rng.uniform(-30, WIDTH + 30), foot, height, 255)
        draw.rectangle([0, 400 + 72 * part, WIDTH, HEIGHT], fill=255)
        image.paste(layer, mask=mask)
    return image


def city(rng: Rng) -> Image.Image:
    image = sky((18, 20, 48), (60, 44, 92), (206, 108, 110))
    draw = ImageDraw.Draw(image)
    for part in range(3):
        x = -30.0
        while x < WIDTH:
            width, top = rng.uniform(44, 104), HEIGHT * (0.28 + 0.16 * part) + rng.uniform(0, 190)
            draw.rectangle([x, top, x + width, HEIGHT], fill=mixed((76, 62, 110), (16, 16, 34), part / 2))
            for wx in np.arange(x + 8, x + width - 10, 15):
                for wy in np.arange(top + 12, HEIGHT, 22):
                    if rng.random() < 0.16 + 0.16 * part:
                        draw.rectangle(
                            [wx, wy, wx + 6, wy + 10], fill=mixed((255, 226, 150), (255, 170, 90), rng.random())
                        )
            x += width + rng.uniform(0, 14)
    return image


def meadow(rng: Rng) -> Image.Image:
    image = sky((116, 186, 232), (206, 230, 240), (150, 196, 92))
    draw = ImageDraw.Draw(image)
    ground(draw, ridge(rng, 0.52, 0.05, 0.4), (122, 178, 92))
    ground(draw, ridge(rng, 0.6, 0.04, 0.4), (86, 150, 66))
    petals = [(214, 48, 60), (250, 206, 70), (236, 120, 170), (250, 250, 246), (132, 84, 190)]
    main = petals[rng.integers(len(petals))]
    for i in range(420):
        y = HEIGHT * (0.62 + 0.4 * (i / 420))
        x, r = rng.uniform(0, WIDTH), 2 + 12 * (i / 420) ** 1.5
        draw.line([x, y, x, y + 4 * r], fill=(48, 104, 44), width=max(1, round(r / 4)))
        colour = main if rng.random() < 0.75 else petals[rng.integers(len(petals))]
        for turn in range(5):
            dx, dy = r * np.cos(turn * 1.257), r * np.sin(turn * 1.257)
            draw.ellipse([x + dx - r * 0.7, y + dy - r * 0.7, x + dx + r * 0.7, y + dy + r * 0.7], fill=colour)
        draw.ellipse([x - r * 0.45, y - r * 0.45, x + r * 0.45, y + r * 0.45], fill=(246, 190, 40))
    return image


def balloons(rng: Rng) -> Image.Image:
    image = sky((80, 150, 214), (164, 206, 234), (252, 226, 190))
    draw = ImageDraw.Draw(image)
    for part in range(2):
        ground(draw, ridge(rng, 0.86 + 0.07 * part, 0.05, 0.45), mixed((128, 150, 120), (62, 92, 66), part))
    for _ in range(rng.integers(3, 7)):
        x, y, r = rng.uniform(80, 880), rng.uniform(90, 460), rng.uniform(36, 92)
        colours = [(206, 52, 46), (242, 158, 44), (46, 120, 160), (250, 236, 204), (98, 62, 128)]
        first, second = (colours[i] for i in rng.choice(len(colours), 2, replace=False))
        draw.polygon(
            [
                (x - r * 0.75, y + r * 0.6),
                (x + r * 0.75, y + r * 0.6),
                (x + r * 0.2, y + r * 1.5),
                (x - r * 0.2, y + r * 1.5),
            ],
            fill=second,
        )
        for i, share in enumerate((1, 0.66, 0.3)):
            draw.ellipse([x - r * share, y - r, x + r * share, y + r], fill=first if i % 2 == 0 else second)
        draw.rectangle([x - r * 0.17, y + r * 1.6, x + r * 0.17, y + r * 1.85], fill=(92, 58, 34))
    return image


FAMILIES: dict[str, Callable[[Rng], Image.Image]] = {
    "2021/Iceland": mountains,
    "2022/Lisbon": sunset,
    "2022/Regatta": sea,
    "2023/Black Forest": forest,
    "2023/Cappadocia": balloons,
    "2024/Morocco": desert,
    "2024/Night walks": city,
    "2025/Camping": night,
    "2025/Garden": meadow,
}  # fmt: skip


def photographs(folder: Path, each: int = 8) -> list[Path]:
    """Draws landscapes into folders, with dates like those of photographs' files."""
    written = []
    for family, (name, draw) in enumerate(FAMILIES.items()):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            rng = np.random.default_rng([family, number])
            image = draw(rng)
            grain = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
            tint = rng.uniform(0.8, 1.12) * rng.uniform(0.88, 1.1, 3)  # the colour of the hour and the weather
            y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
            light = 1 - 0.14 * (x**2 + y**2)[..., None]
            image = Image.fromarray((np.asarray(image) * light * tint + grain).clip(0, 255).astype(np.uint8))
            path = folder / name / f"IMG_{1000 + 137 * family + 9 * number}.jpg"
            taken = time.mktime(
                (int(name[:4]), 3 + family % 7, 2 + 3 * number, 9 + number, 10 * family % 60, 0, 0, 0, -1)
            )
            image.save(path, quality=88)
            written.append(path)
            os.utime(path, (taken, taken))
    for path, copy in (
        (written[each + 1], "2022/Best of Lisbon.jpg"),
        (written[4 * each + 2], "2023/Cappadocia/small.png"),
    ):
        Image.open(path).resize((WIDTH // 2, HEIGHT // 2)).save(folder / copy)
        os.utime(folder / copy, (path.stat().st_mtime + 3 * 86400,) * 2)
    return written


# Running


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """The page's address, as long as the block lasts. The gallery and the cache lie in the folder."""
    command = [sys.executable, "-m", "alnumpy", "serve", "--db", str(folder / "gallery.db"), "--port", "0", *options]
    environment = os.environ | {"ALNUMPY_CACHE_DIR": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address.startswith("http"):
            sys.exit("alnumpy serve has not started")
        yield address
    finally:
        process.terminate()
        process.wait()


SETTLED = """() => {
  const status = document.querySelector("#status").textContent;
  const visible = [...document.images].filter((image) => {
    const box = image.getBoundingClientRect();
    return image.getAttribute("src") && box.top < innerHeight && box.bottom > 0 && box.width;
  });
  return status && !status.includes("\u2026") && visible.every((image) => image.complete);
}"""


def settled(page: Any) -> None:
    """Waits until everything visible has been loaded; at most half a minute."""
    for _ in range(150):
        page.wait_for_timeout(200)
        if page.evaluate(SETTLED):
            return
    raise TimeoutError("the page does not come to rest")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "serve.jpg", help="default: %(default)s")
    parser.add_argument(
        "--all", type=Path, metavar="FOLDER", help="also write each view in each size and theme to this folder"
    )
    args = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        photographs(folder / "Pictures")
        subprocess.run(
            [sys.executable, "-m", "alnumpy", "index", folder / "Pictures", "--db", folder / "gallery.db"],
            check=True, stdout=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        browser = playwright.chromium.launch(executable_path=args.chromium, args=FLAGS)
        with served(folder) as address:
            if args.all:
                args.all.mkdir(parents=True, exist_ok=True)
                shoot_all(browser, address, args.all)
            shots = [shoot(browser, address, theme) for theme in ("light", "dark")]
        browser.close()
    sheet = Image.new("RGB", (shots[0].width * 2, shots[0].height))
    for i, shot in enumerate(shots):
        sheet.paste(shot, (i * shot.width, 0))
    sheet = sheet.resize((1440, round(1440 * sheet.height / sheet.width)), Image.Resampling.LANCZOS)
    sheet.save(args.out, quality=86, optimize=True, progressive=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


def shoot(browser: Any, address: str, theme: str) -> Image.Image:
    """A search on a desktop."""
    import io

    page = browser.new_page(viewport={"width": 1080, "height": 940}, color_scheme=theme)
    page.goto(address)
    page.get_by_label("Find pictures like IMG_1548.jpg").first.click()
    settled(page)
    page.mouse.move(0, 0)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def shoot_all(browser: Any, address: str, folder: Path) -> None:
    """Each view, on a desktop and on a phone, light and dark."""
    for theme in ("light", "dark"):
        for device, size in (("desktop", (1280, 900)), ("phone", (390, 844))):
            page = browser.new_page(
                viewport={"width": size[0], "height": size[1]}, color_scheme=theme, has_touch=device == "phone"
            )
            for view, path in (("start", ""), ("duplicates", "?duplicates=similar")):
                page.goto(address + path)
                settled(page)
                page.screenshot(path=folder / f"{view}-{device}-{theme}.png")
            page.goto(address)
            settled(page)
            page.locator(".go").nth(20).click()
            settled(page)
            page.screenshot(path=folder / f"search-{device}-{theme}.png")
            page.get_by_role("button", name="Search for a part").click()
            page.screenshot(path=folder / f"region-{device}-{theme}.png")
            page.keyboard.press("Enter")
            settled(page)
            page.locator(".go").nth(2).focus()
            page.keyboard.press("v")
            settled(page)
            page.screenshot(path=folder / f"large-{device}-{theme}.png")
            page.goto(address + "?duplicates=similar")
            settled(page)
            page.get_by_label("Compare").nth(1).click()
            settled(page)
            page.screenshot(path=folder / f"compare-{device}-{theme}.png")
            page.close()


if __name__ == "__main__":
    sys.exit(main())
