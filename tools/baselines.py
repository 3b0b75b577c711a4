#!/usr/bin/env python3
"""Measures two ways to find similar pictures without a network, for comparison with ALNet.

    python tools/baselines.py pictures.zip --split test
    python tools/baselines.py paris6k --landmarks

With class folders each picture is a query against the rest, and those of its class are relevant. With Oxford5k and
Paris6k the queries' boxes are searched for, and scored by the official rule. Both ways give vectors, so that the same
code ranks them like embeddings. Needs the extra: pip install 'alnumpy[train]'.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from PIL import Image

from alnumpy.evaluation import evaluate_landmarks
from alnumpy.retrieval import evaluate
from datasets import Landmarks, landmarks, load_class_folders


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """The pixels in each of 8x8x8 cells of RGB: uint8 (N, H, W, 3) -> float32 (N, 512), square roots of shares.

    The L2 distance of square roots is Hellinger's distance of the shares, which finds more than their own L2 distance.
    """
    cells = images >> 5
    cells = cells[..., 0].astype(np.int64) * 64 + cells[..., 1] * 8 + cells[..., 2]
    counts = np.stack([np.bincount(picture.ravel(), minlength=512) for picture in cells])
    return np.sqrt(counts / cells[0].size).astype(np.float32)


def difference_hash(images: np.ndarray) -> np.ndarray:
    """Whether brightness rises between the pixels of 8 rows of 9: uint8 (N, H, W, 3) -> float32 (N, 64) of 0 and 1.

    The square of the L2 distance is the number of bits that differ, Hamming's distance.
    """
    small = [Image.fromarray(picture).convert("L").resize((9, 8), Image.Resampling.BILINEAR) for picture in images]
    grey = np.stack([np.asarray(picture) for picture in small])  # (N, 8, 9)
    return (grey[:, :, 1:] > grey[:, :, :-1]).reshape(len(images), 64).astype(np.float32)


BASELINES = {
    "colour histogram, 512 bins, Hellinger": colour_histogram,
    "difference hash, 64 bits, Hamming": difference_hash,
}


def print_landmarks(data: Landmarks) -> None:
    """The official mAP of each baseline."""
    for name, reason in data.unreadable.items():
        print(f"baselines.py: {name}: {reason}; left out", file=sys.stderr)
    size = data.images.shape[1]
    print(f"{len(data.images)} pictures at {size} pixels, {len(data.queries)} boxes in them are queries, none left out")
    for name, describe in BASELINES.items():
        scores = evaluate_landmarks(describe(data.query_images), data.queries, describe(data.images), data.names)
        print(f"{name:40}official mAP {scores.mean:.4f}")


def print_classes(images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """The scores of each baseline."""
    print(f"{len(images)} pictures of {len(names)} classes at {images.shape[1]} pixels, each a query against the rest")
    print(f"{'':40}{'P@1':>8}{'P@5':>8}{'mAP':>8}{'AP@5':>8}{'AP@5 of hits':>14}")
    for name, describe in BASELINES.items():
        vectors = describe(images)
        scores = evaluate(vectors, labels, vectors, labels, np.arange(len(labels)))
        row = (scores.precision1, scores.precision5, scores.full_map, scores.ap5)
        print(f"{name:40}{''.join(f'{value:8.4f}' for value in row)}{scores.ap5_hits:14.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or zip")
    parser.add_argument("--landmarks", action="store_true", help="it holds pictures and ground truth, no class folders")
    parser.add_argument("--split", default="", help="folder that the class folders are in (default: the top one)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (default: %(default)s)")
    args = parser.parse_args()
    try:
        if args.landmarks:
            print_landmarks(landmarks(args.source, args.size))
        else:
            print_classes(*load_class_folders(args.source, args.split, args.size))
    except (OSError, ValueError) as error:
        sys.exit(f"baselines.py: {error}")


if __name__ == "__main__":
    main()
