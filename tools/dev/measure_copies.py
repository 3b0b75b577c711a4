#!/usr/bin/env python3
"""Measures how far altered copies and other pictures are from pictures, for each network and setting.

python tools/dev/measure_copies.py FOLDER [WEIGHTS ...] prints the tables of docs/DUPLICATES.md and the numbers of
alnumpy/likeness.py. FOLDER holds photographs that show different things. Pictures and copies are files, decoded as in
a gallery: at their own size, and enlarged, so that fast decoding has an effect.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

import alnumpy
from alnumpy import images, postprocess, weights

Change = Callable[[Image.Image], Image.Image | bytes]


def saved(image: Image.Image, format: str = "JPEG", quality: int = 95) -> bytes:
    """A picture as a lossy file."""
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return file.getvalue()


def encoded(format: str, quality: int) -> Change:
    """Saves a picture once more."""
    return lambda image: saved(image, format, quality)


def scaled(factor: float) -> Change:
    """Makes a picture smaller or larger."""
    return lambda image: image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)


def cropped(share: float) -> Change:
    """Cuts off a share of width and height, from the left and the top."""
    return lambda image: image.crop((round(image.width * share), round(image.height * share), *image.size))


def rotated(degrees: float) -> Change:
    """Turns a picture and crops the corners of another colour."""

    def change(image: Image.Image) -> Image.Image:
        turned = image.rotate(degrees, Image.Resampling.BICUBIC)
        angle = np.radians(degrees)
        left = round(image.height * np.sin(angle) / 2)
        top = round(image.width * np.sin(angle) / 2)
        return turned.crop((left, top, image.width - left, image.height - top))

    return change


def brightened(factor: float) -> Change:
    """Makes a picture brighter or darker."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


# Level, name, change. "near": changes by programs; "similar": changes by people.
CHANGES: list[tuple[str, str, Change]] = [
    ("near", "JPEG, quality 90", encoded("JPEG", 90)),
    ("near", "JPEG, quality 50", encoded("JPEG", 50)),
    ("near", "WebP, quality 75", encoded("WEBP", 75)),
    ("near", "half the size", scaled(0.5)),
    ("near", "1% cropped", cropped(0.01)),
    ("near", "5% brighter", brightened(1.05)),
    ("similar", "5% cropped", cropped(0.05)),
    ("similar", "10% cropped", cropped(0.1)),
    ("similar", "rotated by 2 degrees", rotated(2)),
    ("similar", "20% brighter", brightened(1.2)),
    ("similar", "20% darker", brightened(0.8)),
    ("", "a quarter of the size", scaled(0.25)),
    ("", "rotated by 90 degrees", lambda image: image.transpose(Image.Transpose.ROTATE_90)),
    ("", "mirrored", ImageOps.mirror),
    ("", "grey", lambda image: ImageOps.grayscale(image).convert("RGB")),
]
SHARE = 0.95  # share of the copies that a level's distance must find
SETTINGS = ("as it is", "normalised", "flipped", "normalised, flipped")


def embeddings(embedder: alnumpy.Embedder, files: list[bytes], fast: bool) -> list[np.ndarray]:
    """Embeddings (N, D) of picture files for each of SETTINGS, made as in a gallery."""
    draft = embedder.preprocessing.draft if fast else 0
    x = np.stack([images.load(file, embedder.preprocessing, draft=draft)[0] for file in files])
    plain, flipped = embedder.forward(x), postprocess.average_mirrored(embedder.forward, x)
    return [plain, postprocess.l2_normalize(plain), flipped, postprocess.l2_normalize(flipped)]


def measure(embedder: alnumpy.Embedder, originals: list[bytes], fast: bool) -> tuple[list[str], np.ndarray]:
    """The rows of a table, and the levels (2, settings)."""
    pictures = [images.read(file) for file in originals]
    side = min(min(picture.size) for picture in pictures)
    whole = embeddings(embedder, originals, fast)
    rows = []
    levels: dict[str, list[list[float]]] = {"near": [], "similar": []}
    for level, title, change in CHANGES:
        made = [change(picture) for picture in pictures]
        copies = embeddings(embedder, [copy if isinstance(copy, bytes) else saved(copy) for copy in made], fast)
        apart = [np.linalg.norm(a - b, axis=1) for a, b in zip(whole, copies, strict=True)]
        far = [float(np.quantile(d, SHARE)) for d in apart]
        counts = level and (
            title != "half the size" or side // 2 >= embedder.preprocessing.draft
        )  # otherwise it has lost too much
        if counts:
            levels[level].append(far)
        cells = [f"{np.median(d):.3g} / {q:.3g}" for d, q in zip(apart, far, strict=True)]
        rows.append(f"| {title}{'' if counts else ' *'} | {' | '.join(cells)} |")
    found = np.array([np.max(levels["near"], 0), np.max([*levels["near"], *levels["similar"]], 0)])
    nearest = []
    for vectors in whole:
        apart = np.linalg.norm(vectors[:, None] - vectors, axis=2)
        np.fill_diagonal(apart, np.inf)
        nearest.append(apart.min(1))
    cells = [f"{np.quantile(n, 0.05):.3g} / {np.median(n):.3g}" for n in nearest]
    rows.append(f"| nearest other picture, 5% / median | {' | '.join(cells)} |")
    shares = [[f"{np.mean(n <= limit):.1%}" for limit in limits] for n, limits in zip(nearest, found.T, strict=True)]
    rows.append(f"| others within near, similar | {' | '.join(', '.join(share) for share in shares)} |")
    return rows, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="photographs of different things")
    parser.add_argument("weights", nargs="*", default=[weights.default_path()], help="names or files of weights")
    parser.add_argument("--pictures", type=int, default=300, help="number of pictures, spread over the folder")
    parser.add_argument("--enlarged", type=int, default=4, help="factor of enlarging (default: %(default)s)")
    args = parser.parse_args()
    found = images.find(args.folder, recursive=True)
    paths = found[:: max(1, len(found) // args.pictures)][: args.pictures]
    small = [Path(path).read_bytes() for path in paths]
    pictures = [images.read(file) for file in small]
    sides = sorted(min(picture.size) for picture in pictures)
    large = [
        saved(p.resize([args.enlarged * n for n in p.size], Image.Resampling.BICUBIC), quality=90) for p in pictures
    ]
    numbers = {}
    for named in args.weights:
        embedder = alnumpy.load(named)
        name, size = weights.locate(named).stem, embedder.preprocessing.size
        levels = []
        for what, files, fast in (
            (f"as they are, short sides of {sides[0]} to {sides[-1]} pixels", small, True),
            (f"enlarged {args.enlarged} times, decoded fast", large, True),
            (f"enlarged {args.enlarged} times, decoded whole", large, False),
        ):
            rows, level = measure(embedder, files, fast)
            levels.append(level)
            print(f"#### {name}, {size} pixels, {len(files)} pictures {what}\n")
            print(f"| | {' | '.join(SETTINGS)} |\n|---|---|---|---|---|")
            print(f"| **near, similar** | {' | '.join(f'{near:.2g}, {similar:.2g}' for near, similar in level.T)} |")
            print("\n".join(rows), end="\n\n", flush=True)
        for i, (near, similar) in enumerate(np.max(levels, 0).T):
            numbers[name, size, i % 2 == 1, i >= 2] = float(f"{near:.2g}"), float(f"{similar:.2g}")
    for key, value in numbers.items():
        print(f"    {key}: {value},")


if __name__ == "__main__":
    main()
