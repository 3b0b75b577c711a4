"""Embeddings in few bytes: number formats, and exact L2 search of rows as they are stored.

Rows are converted to float32 a block at a time, so that a gallery in "float16" takes a half and in "int8" a quarter of
the memory that its embeddings would.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import retrieval

DTYPES = ("float32", "float16", "int8")
LARGEST = 1e37  # squared norm: then squared distances are finite in float32, too
BLOCK = 512  # rows converted at once: 2.6 MB, which stays in the cache
GROUP = 64  # distances whose least one is looked at first
HELD = 1 << 24  # distances held at once, 64 MB: bounds the memory whatever the number of queries

Array = np.ndarray


def row_length(dimension: int, dtype: str) -> int:
    """Bytes of a stored embedding."""
    return {"float32": 4 * dimension, "float16": 2 * dimension, "int8": 4 + dimension}[dtype]


def encode(vectors: Array, dtype: str) -> Array:
    """Embeddings float32 (N, D) as they are stored, uint8 (N, row_length), little-endian.

    "int8": a float32 scale, then the components divided by it and rounded; the largest becomes 127.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # squared_norms() tells what the format cannot hold
        if dtype != "int8":
            return np.ascontiguousarray(vectors, {"float32": "<f4", "float16": "<f2"}[dtype]).view(np.uint8)
        scale = np.abs(vectors).max(1, keepdims=True).astype("<f4") / np.float32(127)
        codes = np.rint(vectors / np.where(scale > 0, scale, 1)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], 1)


def decode(rows: Array, dtype: str) -> Array:
    """The inverse of ``encode`` for finite rows: uint8 (N, row_length) -> float32 (N, D). For "float32" a view."""
    if dtype == "float32":
        return rows.view("<f4").astype(np.float32, copy=False)
    if dtype == "int8":
        vectors = rows[:, 4:].view(np.int8).astype(np.float32)
        vectors *= rows[:, :4].copy().view("<f4")
        return vectors
    # float16: NumPy's own conversion is slow, most of all for zeros, which embeddings are full of. So move sign,
    # exponent and fraction to their places in a float32, and make up for the different bias of the exponent.
    bits = rows.view("<i2").astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)
    vectors = bits.view(np.float32)
    vectors *= np.float32(2.0**112)
    return vectors


def squared_norms(rows: Array, dtype: str) -> Array:
    """Squared L2 norms float32 (N,) of stored embeddings (N, row_length); infinite for one that cannot be ranked."""
    norms = np.empty(len(rows), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), BLOCK):
            block = decode(rows[start : start + BLOCK], dtype)
            part = norms[start : start + BLOCK]
            part[:] = np.einsum("nd,nd->n", block, block)
            if dtype == "float16":  # whose infinities and NaNs decode() makes numbers of 65536 and more
                part[np.abs(block).max(1) >= 65536] = np.inf
    norms[~(norms <= LARGEST)] = np.inf
    return norms


class Packed:
    """Finite embeddings as they are stored, uint8 (N, row_length), with their squared norms, float32 (N,)."""

    def __init__(self, rows: Array, norms: Array, dtype: str):
        self.rows = rows
        self.norms = norms
        self.dtype = dtype

    def __getitem__(self, index: slice | Array) -> Array:
        """Some embeddings, float32 (n, D)."""
        return decode(self.rows[index], self.dtype)

    def distances(self, query: Array, indices: Array) -> Array:
        """Exact L2 distances float32 (n,) of a query (D,) to some of the embeddings."""
        distances = np.empty(len(indices), np.float32)
        for start in range(0, len(indices), BLOCK):
            part = slice(start, start + BLOCK)
            distances[part] = np.linalg.norm(self[indices[part]] - query, axis=1)
        return distances

    def nearest(self, queries: Array, k: int) -> Iterator[tuple[Array, Array]]:
        """For each query of (Q, D) the indices of the k nearest, nearest first, ties by index, and their distances."""
        count = len(self.rows)
        largest = self.norms.max(initial=0)
        rows = BLOCK if self.dtype != "float32" else 4 * BLOCK  # which need no conversion
        step = max(1, HELD // max(1, count))
        for first in range(0, len(queries), step):
            block = queries[first : first + step]
            scaled = np.ascontiguousarray(-2 * block.T)
            scores = np.empty((count, len(block)), np.float32)  # squared distances less the query's squared norm
            for start in range(0, count, rows):
                part = scores[start : start + rows]
                vectors = self[start : start + rows]
                if len(block) == 1:  # a dot product a row reads the memory faster than a matrix-vector product
                    np.matmul(vectors[:, None], scaled, out=part[:, None])
                else:
                    np.matmul(vectors, scaled, out=part)
                part += self.norms[start : start + rows, None]
            whole = count // GROUP
            least = scores[: whole * GROUP].reshape(whole, GROUP, len(block)).min(1)  # of each group
            if whole * GROUP < count:
                least = np.concatenate([least, scores[whole * GROUP :].min(0, keepdims=True)])
            # The kth least of the groups' minima is never below the kth least of all, and fast to find.
            among = least if k <= len(least) else scores
            limits = np.partition(among, k - 1, axis=0)[k - 1] if k < count else np.full(len(block), np.inf)
            # What rounding could place among the first k is compared again, exactly.
            limits += retrieval.ROUNDING * (largest + np.einsum("qd,qd->q", block, block))
            for i, (query, limit) in enumerate(zip(block, limits, strict=True)):
                groups = np.flatnonzero(least[:, i] <= limit)
                near = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
                near = near[near < count]  # the last group may be a part of one
                near = near[scores[near, i] <= limit]
                distances = self.distances(query, near)
                order = np.argsort(distances, kind="stable")[:k]
                yield near[order], distances[order]

    def groups(self, threshold: float) -> list[Array]:
        """Indices of those within a distance of ``threshold`` of some other of their group, in ascending order."""
        threshold = min(threshold, LARGEST**0.5 * 2)  # which no distance exceeds
        count = len(self.rows)
        group = np.arange(count)  # the first of each one's group
        for start in range(0, count, BLOCK):
            ours, our_norms = self[start : start + BLOCK], self.norms[start : start + BLOCK, None]
            for other in range(start, count, BLOCK):
                theirs, norms = self[other : other + BLOCK], self.norms[other : other + BLOCK]
                squared = retrieval.squared_distances(ours, theirs, norms)
                squared -= retrieval.ROUNDING * (norms + our_norms)
                for i, row in enumerate(squared <= threshold * threshold, start):
                    near = np.flatnonzero(row & (group[other : other + BLOCK] != group[i]))
                    near = near[np.linalg.norm(theirs[near] - ours[i - start], axis=1) <= threshold]
                    if len(near):
                        joined = np.append(group[other + near], group[i])
                        group[np.isin(group, joined)] = joined.min()
        first, sizes = np.unique(group, return_counts=True)
        return [np.flatnonzero(group == leader) for leader in first[sizes > 1]]
