"""Embeddings in few bytes: number formats, and exact L2 search of rows as they are stored.

Rows are converted to float32 one block at a time, so that a gallery in "float16" takes half and one in "int8" a quarter
of the memory of its float32 embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

DTYPES = ("float32", "float16", "int8")
LARGEST = 1e37  # largest squared norm for which squared distances are finite in float32
BLOCK = 512  # rows converted at once: 2.6 MB, which stays in the cache
# Bound on the rounding error of a squared distance, relative to the squared norms; generous for 1280 float32 terms.
ROUNDING = 1e-5

Array = np.ndarray


def row_length(dimension: int, dtype: str) -> int:
    """Bytes of a stored embedding."""
    return {"float32": 4 * dimension, "float16": 2 * dimension, "int8": 4 + dimension}[dtype]


def encode(vectors: Array, dtype: str) -> Array:
    """Embeddings float32 (N, D) as they are stored, uint8 (N, row_length), little-endian.

    "int8": a float32 scale, then the components divided by it and rounded; the largest becomes 127.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # squared_norms() finds values that the format cannot hold
        if dtype != "int8":
            return np.ascontiguousarray(vectors, {"float32": "<f4", "float16": "<f2"}[dtype]).view(np.uint8)
        scale = np.abs(vectors).max(1, keepdims=True).astype("<f4") / np.float32(127)
        codes = np.rint(vectors / np.where(scale > 0, scale, 1)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], 1)


def decode(rows: Array, dtype: str) -> Array:
    """The inverse of ``encode`` for finite rows: uint8 (N, row_length) -> float32 (N, D). A view for "float32"."""
    if dtype == "float32":
        return rows.view("<f4").astype(np.float32, copy=False)
    if dtype == "int8":
        vectors = rows[:, 4:].view(np.int8).astype(np.float32)
        vectors *= rows[:, :4].copy().view("<f4")
        return vectors
    if _flushes():
        return rows.view("<f2").astype(np.float32)
    # float16: NumPy's own conversion is slow, most of all for zeros, of which embeddings have many. So move
    # sign, exponent and fraction to their places in a float32, and correct the different bias of the exponent.
    bits = rows.view("<i2").astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)
    vectors = bits.view(np.float32)
    vectors *= np.float32(2.0**112)
    return vectors


@cache
def _flushes() -> bool:
    """Whether NumPy treats the smallest float32 as 0, as it does with the vectors of 32-bit ARM."""
    return not (np.full(64, 2.0**-140, np.float32) * np.float32(2.0**112)).all()


def squared_norms(rows: Array, dtype: str) -> Array:
    """Squared L2 norms float32 (N,) of stored embeddings (N, row_length); infinite for one that cannot be ranked."""
    norms = np.empty(len(rows), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), BLOCK):
            block = decode(rows[start : start + BLOCK], dtype)
            part = norms[start : start + BLOCK]
            part[:] = np.einsum("nd,nd->n", block, block)
            if dtype == "float16":  # decode() turns its infinities and NaNs into numbers of 65536 and more
                part[np.abs(block).max(1) >= 65536] = np.inf
    norms[~(norms <= LARGEST)] = np.inf
    return norms


class Packed(NamedTuple):
    """The finite embeddings of some contents, as they are stored."""

    rowids: Array  # int64 (n,), ascending
    norms: Array  # float32 (n,): squared norms
    rows: Array  # uint8 (n, row_length)
    dtype: str

    @classmethod
    def of(cls, rowids: Array, rows: Array, dtype: str) -> Packed:
        """The finite embeddings among stored ones (n, row_length)."""
        norms = squared_norms(rows, dtype)
        whole = cls(rowids, norms, rows, dtype)
        good = np.isfinite(norms)
        return whole if good.all() else whole.some(good)

    @classmethod
    def joined(cls, several: Sequence[Packed]) -> Packed:
        """Joins at least one into one."""
        rowids, norms, rows, (dtype, *_) = zip(*several, strict=True)
        return cls(np.concatenate(rowids), np.concatenate(norms), np.concatenate(rows), dtype)

    def some(self, index: Array) -> Packed:
        """The embeddings at some positions."""
        return Packed(self.rowids[index], self.norms[index], self.rows[index], self.dtype)

    @property
    def rests(self) -> Array:
        """As in ``sketch.Sketches``: norms of what is left out, here 0."""
        return np.zeros(len(self.norms), np.float32)

    @property
    def errors(self) -> Array:
        """As in ``sketch.Sketches``: rounding errors, here 0."""
        return self.rests

    def bound(self, vectors: Array, bounds: Array) -> None:
        """Writes lower bounds of the squared distances to queries (Q, D), which are exact up to rounding."""
        scaled = np.ascontiguousarray(-2 * vectors.T)
        keep = np.float32(1 - ROUNDING)
        norms = np.einsum("qd,qd->q", vectors, vectors) * keep
        rows = (
            BLOCK if self.dtype != "float32" else 4 * BLOCK
        )  # float32 rows need no conversion, so blocks can be larger
        for start in range(0, len(self.rows), rows):
            part = bounds[start : start + rows]
            block = decode(self.rows[start : start + rows], self.dtype)
            if len(vectors) == 1:  # one dot product per row reads the memory faster than a matrix-vector product
                np.matmul(block[:, None], scaled, out=part[:, None])
            else:
                np.matmul(block, scaled, out=part)
            part += self.norms[start : start + rows, None] * keep
            part += norms
