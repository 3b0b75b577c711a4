#!/usr/bin/env python3
"""Measures how far altered copies of pictures are from them, and other pictures, for each network and setting.

python tools/measure_copies.py FOLDER [WEIGHTS ...] prints the table of docs/DUPLICATES.md and the numbers of
alnumpy/likeness.py. FOLDER holds photographs that show different things.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

import alnumpy
from alnumpy import images, postprocess, weights

Change = Callable[[Image.Image], Image.Image]


def encoded(format: str, quality: int) -> Change:
    """Through a lossy file."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, format, quality=quality)
        return Image.open(file).convert("RGB")

    return change


def scaled(factor: float) -> Change:
    """Smaller or larger."""
    return lambda image: image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)


def cropped(share: float) -> Change:
    """A share of width and height cut off, from the left and the top."""
    return lambda image: image.crop((round(image.width * share), round(image.height * share), *image.size))


def rotated(degrees: float) -> Change:
    """Turned, and cropped to what has no corners of another colour."""

    def change(image: Image.Image) -> Image.Image:
        turned = image.rotate(degrees, Image.Resampling.BICUBIC)
        angle = np.radians(degrees)
        left = round(image.height * np.sin(angle) / 2)
        top = round(image.width * np.sin(angle) / 2)
        return turned.crop((left, top, image.width - left, image.height - top))

    return change


def brightened(factor: float) -> Change:
    """Brighter or darker."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


# Level, name, change. "near": what programs do to a picture on its way; "similar": what people do to it.
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
SHARE = 0.95  # of the copies that a level's distance must find


def settings() -> Iterator[tuple[bool, bool]]:
    """Whether embeddings are L2-normalised, and averaged with the mirrored picture's."""
    yield from ((False, False), (True, False), (False, True), (True, True))


def embeddings(embedder: alnumpy.Embedder, pictures: list[Image.Image], normalize: bool, flip: bool) -> np.ndarray:
    """Embeddings (N, D) of pictures, as a gallery with these settings has them."""
    x = np.stack([images.preprocess(picture, embedder.preprocessing) for picture in pictures])
    vectors = postprocess.average_mirrored(embedder.forward, x) if flip else embedder.forward(x)
    return postprocess.l2_normalize(vectors) if normalize else vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="photographs of different things")
    parser.add_argument("weights", nargs="*", default=[weights.default_path()], help="weights files")
    parser.add_argument("--pictures", type=int, default=300, help="how many, spread over the folder")
    args = parser.parse_args()
    found = images.find(args.folder, recursive=True)
    paths = found[:: max(1, len(found) // args.pictures)][: args.pictures]
    pictures = [images.read(path) for path in paths]
    short = sorted(min(picture.size) for picture in pictures)
    print(f"{len(pictures)} pictures, short sides of {short[0]} to {short[-1]} pixels\n")
    numbers = {}
    for file in args.weights:
        embedder = alnumpy.load(file)
        name, size = Path(file).stem, embedder.preprocessing.size
        columns: list[list[str]] = []
        for normalize, flip in settings():
            originals = embeddings(embedder, pictures, normalize, flip)
            apart = np.linalg.norm(originals[:, None] - originals[None], axis=2)
            np.fill_diagonal(apart, np.inf)
            nearest = apart.min(1)
            far: dict[str, np.ndarray] = {}
            levels: dict[str, list[float]] = {"near": [], "similar": []}
            for level, title, change in CHANGES:
                copies = embeddings(embedder, [change(picture) for picture in pictures], normalize, flip)
                far[title] = np.linalg.norm(copies - originals, axis=1)
                if level:
                    levels[level].append(float(np.quantile(far[title], SHARE)))
            near = float(f"{max(levels['near']):.2g}")
            similar = float(f"{max(levels['similar']):.2g}")
            numbers[name, size, normalize, flip] = near, similar
            column = [f"{near:g}, {similar:g}"]
            column += [f"{np.median(d):.3g} / {np.quantile(d, SHARE):.3g}" for d in far.values()]
            column += [f"{np.quantile(nearest, 0.05):.3g} / {np.median(nearest):.3g}"]
            column += [f"{np.mean(nearest <= near):.1%}, {np.mean(nearest <= similar):.1%}"]
            columns.append(column)
        titles = ["**near, similar**", *(title for _, title, _ in CHANGES), "nearest other picture, 5% / median"]
        titles.append("others within near, similar")
        print(f"### {name}, {size} pixels\n")
        print("| | as it is | normalised | flipped | normalised, flipped |\n|---|---|---|---|---|")
        for i, title in enumerate(titles):
            print(f"| {title} | {' | '.join(column[i] for column in columns)} |")
        print()
    for key, value in numbers.items():
        print(f"    {key}: {value},")


if __name__ == "__main__":
    main()
