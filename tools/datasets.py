"""Training and test data in their published formats, as uint8 NumPy arrays."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

MNIST_FILES = {"train": "train", "test": "t10k"}


def _read_idx(folder: Path, name: str, ndim: int) -> np.ndarray:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            break
    else:
        raise FileNotFoundError(f"{folder}: neither {name} nor {name}.gz is there; the four MNIST idx files are needed")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">u4", ndim, 4) if len(data) >= 4 + 4 * ndim else ()
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) != 4 + 4 * ndim + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path}: not an idx file of {ndim}-dimensional bytes, or cut short")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape([int(side) for side in shape])


def mnist(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """MNIST from its four idx files, gzipped or not: images (N, 28, 28) and labels (N,), both uint8.

    ``split`` is "train" or "test". Raises FileNotFoundError for a missing file, ValueError for a damaged one.
    """
    prefix = MNIST_FILES[split]
    images = _read_idx(Path(folder), f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(Path(folder), f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    return images, labels
