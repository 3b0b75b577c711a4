"""Exact ranking by L2 distance, and the measures of retrieval that are compared in the literature.

Equal distances are ranked by position in the gallery. Sources: the paper's equations (7) and (8) and what its public
code computes instead; Philbin et al., CVPR 2007, for the Oxford and Paris rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import NamedTuple

import numpy as np

Array = np.ndarray

BLOCK = 1 << 22  # distances held at once, 16 MB: bounds the memory for any number of queries


class Scores(NamedTuple):
    """Means over all queries that have a relevant picture in the gallery."""

    full_map: float  # mean over the relevant ranks of the precision there, whole ranking, rectangle rule
    ap5_hits: float  # the same over the first five results, divided by the hits among them: the tables' "mAP@5"
    ap5: float  # the same over the first five results, divided by min(5, number of relevant pictures)
    precision1: float  # share of the first result that is relevant
    precision5: float  # share of the first five results (or of all, where there are fewer) that are relevant
    queries: int  # how many queries the means are over
    without_relevant: int  # queries left out because nothing in the gallery is relevant to them


def squared_distances(queries: Array, gallery: Array, gallery_norms: Array | None = None) -> Array:
    """Squared L2 distances float32 (Q, N) of (Q, D) to (N, D), as norms minus twice one matrix product.

    ``gallery_norms``: squared norms of the gallery (N,), if they are known already.
    """
    if gallery_norms is None:
        gallery_norms = np.einsum("nd,nd->n", gallery, gallery)
    d = queries @ gallery.T
    d *= -2
    d += gallery_norms
    d += np.einsum("qd,qd->q", queries, queries)[:, None]
    return np.maximum(d, 0, out=d)  # rounding can put a picture's distance to itself below 0


def rankings(queries: Array, gallery: Array, itself: Array | None = None) -> Iterator[tuple[slice, Array]]:
    """All gallery indices by distance, in blocks of queries: (slice of the queries, int64 (B, N)).

    Equal rows of the gallery are ties, which go by index.

    ``itself``: the gallery index of each query, which is ranked last at any distance, or -1 if it is not there.
    """
    norms = np.einsum("nd,nd->n", gallery, gallery)
    # A matrix product can round the distances of equal pictures differently: they all get one of them.
    seen: dict[bytes, int] = {}
    firsts = np.array([seen.setdefault(sha256(row.tobytes()).digest(), i) for i, row in enumerate(gallery)], np.int64)
    copies = np.flatnonzero(firsts != np.arange(len(gallery)))
    step = max(1, BLOCK // max(1, len(gallery)))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        d = squared_distances(queries[part], gallery, norms)
        d[:, copies] = d[:, firsts[copies]]
        if itself is not None:
            rows = np.flatnonzero(itself[part] >= 0)
            d[rows, itself[part][rows]] = np.inf
        # The bits of floats that are not negative are ordered as the floats: sorting keys of distance and index is a
        # stable argsort, and more than twice as fast.
        keys = d.astype(np.float32, copy=False).view(np.uint32).astype(np.int64)
        keys <<= 32
        keys |= np.arange(len(gallery))
        keys.sort(axis=1)
        keys &= 0xFFFFFFFF
        yield part, keys


def average_precision(relevant: Array, k: int | None = None, by_hits: bool = False) -> Array:
    """AP of ranked relevance bool (Q, N), rectangle rule: float64 (Q,), NaN for a query without a relevant picture.

    The mean over the relevant ranks of the precision there; with ``k`` over the first k ranks, divided by
    min(k, relevant pictures), or with ``by_hits`` by the hits among the first k (0 where there is none).
    """
    total = relevant.sum(1)
    top = relevant[:, :k]
    hits = top.cumsum(1, dtype=np.int32)
    gained = np.einsum("qk,qk->q", hits / np.arange(1, top.shape[1] + 1), top)
    among = hits[:, -1] if by_hits and top.shape[1] else total if k is None else np.minimum(k, total)
    return np.where(total > 0, gained / np.maximum(among, 1), np.nan)


def evaluate(
    queries: Array,
    query_labels: Array,
    gallery: Array,
    gallery_labels: Array,
    itself: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores of queries (Q, D) with labels (Q,) against a gallery (N, D) with labels (N,): equal labels are relevant.

    ``itself``: the gallery index of each query, to be left out of its ranking, or -1; None leaves nothing out.
    ``progress(done, total)`` is called after each block of queries.
    """
    if len(queries) == 0 or len(gallery) == 0:
        nan = float("nan")
        return Scores(nan, nan, nan, nan, nan, 0, len(queries))
    others = len(gallery) - (np.zeros(len(queries)) if itself is None else itself >= 0)  # pictures ranked per query
    columns: list[Array] = []
    for part, order in rankings(queries, gallery, itself):
        relevant = gallery_labels[order] == query_labels[part, None]
        if itself is not None:
            relevant[:, -1] &= itself[part] < 0  # the query itself was ranked last
        columns.append(
            np.stack(
                [
                    average_precision(relevant),
                    average_precision(relevant, 5, by_hits=True),
                    average_precision(relevant, 5),
                    relevant[:, 0],
                    relevant[:, :5].sum(1) / np.clip(others[part], 1, 5),
                ]
            )
        )
        if progress is not None:
            progress(part.stop, len(queries))
    scores = np.concatenate(columns, 1)
    answered = np.isfinite(scores[0])
    means = scores[:, answered].mean(1) if answered.any() else np.full(len(scores), np.nan)
    full_map, ap5_hits, ap5, precision1, precision5 = map(float, means)
    counts = int(answered.sum()), int((~answered).sum())
    return Scores(full_map, ap5_hits, ap5, precision1, precision5, *counts)


def official_average_precision(ranked: Array, positive: Array, junk: Array) -> float:
    """AP of one query by the rule of the Oxford and Paris benchmarks: junk ignored, trapezoid between recall steps.

    ``ranked``: gallery indices, best first (N,). ``positive``: indices of the good and the ok pictures, -1 for each
    that is not in the gallery and so never found. ``junk``: indices that do not count at all. Raises ValueError if
    there is no positive picture.
    """
    if len(positive) == 0:
        raise ValueError("a query without a positive picture has no average precision")
    kept = ranked[~np.isin(ranked, junk)]
    relevant = np.isin(kept, positive)
    hits = relevant.cumsum()
    precision = hits / np.arange(1, len(kept) + 1)
    before = np.concatenate([[1.0], precision[:-1]])  # the rule starts at precision 1
    return float(((before + precision) / 2)[relevant].sum() / len(positive))
