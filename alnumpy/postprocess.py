"""Operations on embeddings before they are compared: average with the mirrored picture's, L2 norm, PCA whitening.

Whitening is Jegou and Chum's, ECCV 2012: centre, turn to the principal axes of a gallery, keep the first, divide by the
standard deviation along each, L2-normalise. Common patterns, which many components repeat, then weigh no more
than rare ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Array = np.ndarray

ROUNDING = 1e-12  # variances up to this, relative to the mean squared norm, are only float32's rounding


class Whitening(NamedTuple):
    """A map from embeddings of D components to K that vary independently, with variance 1."""

    mean: Array  # float32 (D,)
    projection: Array  # float32 (D, K)
    kept: float  # share of the variance of the embeddings along the K axes


def l2_normalize(vectors: Array) -> Array:
    """Float32 (N, D), each row divided by its L2 norm; a row of zeros stays as it is."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def average_mirrored(forward: Callable[[Array], Array], x: Array) -> Array:
    """The mean of the embeddings of pictures and of their mirror images: (N, 3, H, W) -> (N, D).

    It has the same bits in any batch if the embeddings of ``forward`` have, like those of an ``Embedder``.
    """
    plain, mirrored = np.split(forward(np.concatenate([x, x[..., ::-1]])), 2)
    return (plain + mirrored) / 2


def learn_whitening(blocks: Iterable[Array], dimensions: int) -> Whitening:
    """The whitening that fits embeddings in blocks (n, D); computes in float64, in the memory of one block.

    Raises ValueError for more dimensions than the embeddings vary along: at most their number less one, and fewer if
    components repeat each other. Reliable axes need many more embeddings than that.
    """
    count, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for block in blocks:
        block = block.astype(np.float64)
        count += len(block)
        total = total + block.sum(0)
        products = products + block.T @ block
    mean, moments = total / max(count, 1), products / max(count, 1)
    variances, axes = np.linalg.eigh(moments - np.outer(mean, mean))  # smallest first
    rank = int((variances > ROUNDING * np.trace(moments)).sum())
    if not 1 <= dimensions <= rank:
        raise ValueError(f"{count} embeddings vary along {rank} axes, so they cannot be whitened to {dimensions}")
    axes, largest = axes[:, : -dimensions - 1 : -1], variances[: -dimensions - 1 : -1]
    projection = np.ascontiguousarray(axes / np.sqrt(largest), np.float32)
    return Whitening(mean.astype(np.float32), projection, float(largest.sum() / variances.sum()))


def whiten(vectors: Array, mean: Array, projection: Array) -> Array:
    """Embeddings float32 (N, D) whitened and L2-normalised: (N, K)."""
    # Not computed by BLAS, to have the same bits in any batch and with any number of threads.
    return l2_normalize(np.einsum("nd,kd->nk", vectors - mean, np.ascontiguousarray(projection.T)))
