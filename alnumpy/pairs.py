"""Pairs of contents that look alike, found exactly without a comparison of each with every other.

Bounds from a few leading components of the sketches rule out nearly all pairs, bounds from whole sketches nearly all
that remain, and the rest are compared by whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from . import packed, sketch
from .errors import GalleryError
from .packed import LARGEST, ROUNDING, Packed
from .sketch import Sketches
from .snapshot import Snapshot

Array = np.ndarray
Near = Callable[[bytes], list[tuple[bytes, float]]]  # from a hash to the hashes of near contents, and their distances

LEADING = 64  # components that are compared first
TILE = 1024  # contents per side of the square of pairs compared at once
REFINED = 2048  # pairs of sketches compared at once
MOST = 10_000_000  # pairs held in memory: half a gigabyte
FARTHEST = 3e38  # a squared distance just below infinity


def pairs(snapshot: Snapshot, threshold: float) -> Iterator[tuple[Array, Array, Array]]:
    """All pairs of contents within a distance, in parts: rowids and rowids int64 (n,), distances float32 (n,).

    Each pair once, in no order. Memory: 540 bytes per content.
    """
    threshold = min(threshold, LARGEST**0.5 * 2)  # no distance is larger
    contents = _read(snapshot)
    count = len(contents.rowids)
    points = _points(contents)
    first = points[:, 0]
    waiting: list[tuple[Array, Array]] = []
    rows = 0
    for start in range(0, count, TILE):
        ours = slice(start, start + TILE)
        for other in range(start, count, TILE):
            theirs = slice(other, other + TILE)
            reach = threshold + float(contents.errors[ours].max()) + float(contents.errors[theirs].max())
            if first[theirs].min() - first[ours].max() > reach:
                continue
            norms = float(contents.norms[ours].max() + contents.norms[theirs].max())
            limit = min(reach**2 * (1 + 1e-6) + ROUNDING * norms, FARTHEST)
            squares = _squares(points[ours], points[theirs])
            near = np.flatnonzero(squares <= limit)
            if len(near) == 0:
                continue
            a, b = np.divmod(near, squares.shape[1])
            a, b = a + start, b + other
            a, b = _refined(contents, a[a < b], b[a < b], threshold)
            waiting.append((a, b))
            rows += min(2 * len(a), 2 * TILE)
            if rows >= 2 * TILE:
                yield from _exact(snapshot, contents, waiting, threshold)
                waiting, rows = [], 0
    yield from _exact(snapshot, contents, waiting, threshold)


def _squares(a: Array, b: Array) -> Array:
    """Squared distances float32 (n, m) of points (n, D) and (m, D)."""
    ones = np.ones(len(a), np.float32), np.ones(len(b), np.float32)
    left = np.column_stack([a, np.einsum("nd,nd->n", a, a), ones[0]])
    right = np.column_stack([-2 * b, ones[1], np.einsum("nd,nd->n", b, b)])
    squares: Array = left @ right.T
    return squares


def _refined(contents: Sketches, a: Array, b: Array, threshold: float) -> tuple[Array, Array]:
    """The pairs of contents that their whole sketches do not rule out."""
    kept = []
    for start in range(0, len(a), REFINED):
        i, j = a[start : start + REFINED], b[start : start + REFINED]
        products = np.einsum("nk,nk->n", contents.codes[i].astype(np.float32), contents.codes[j].astype(np.float32))
        products = products * contents.scales[i] * contents.scales[j] + contents.rests[i] * contents.rests[j]
        norms = contents.norms[i] + contents.norms[j]
        reach = np.float32(threshold) + contents.errors[i] + contents.errors[j]
        kept.append(norms * np.float32(1 - ROUNDING) - 2 * products <= reach**2 * np.float32(1 + 1e-6))
    if kept:
        good = np.concatenate(kept)
        a, b = a[good], b[good]
    return a, b


def _exact(
    snapshot: Snapshot, contents: Sketches, waiting: list[tuple[Array, Array]], threshold: float
) -> Iterator[tuple[Array, Array, Array]]:
    """The pairs of contents that are within a distance by their whole rows."""
    if not waiting:
        return
    a, b = (contents.rowids[np.concatenate(side)] for side in zip(*waiting, strict=True))
    piece = snapshot.rows(np.unique(np.concatenate([a, b])))
    if len(piece.rowids) == 0:
        return
    at = np.minimum(np.searchsorted(piece.rowids, (a, b)), len(piece.rowids) - 1)
    there = (piece.rowids[at] == (a, b)).all(0)  # both exist and are intact
    a, b, at = a[there], b[there], at[:, there]
    for start in range(0, len(a), packed.BLOCK):
        part = slice(start, start + packed.BLOCK)
        left, right = (packed.decode(piece.rows[side[part]], piece.dtype) for side in at)
        distances = np.linalg.norm(left - right, axis=1)
        near = distances <= threshold
        if near.any():
            yield a[part][near], b[part][near], distances[near]


def _points(sketches: Sketches) -> Array:
    """Points float32 (n, LEADING + 1) whose distances are at most those of the sketches."""
    points = np.empty((len(sketches.rowids), min(LEADING, sketches.codes.shape[1]) + 1), np.float32)
    for start in range(0, len(points), packed.BLOCK):
        part = slice(start, start + packed.BLOCK)
        vectors = sketches.codes[part] * sketches.scales[part, None]
        points[part, :-1] = vectors[:, :LEADING]
        other = vectors[:, LEADING:]
        points[part, -1] = np.sqrt(np.einsum("nk,nk->n", other, other) + sketches.rests[part] ** 2)
    return points


def _read(snapshot: Snapshot) -> Sketches:
    """The sketches of all contents that can be found, even those that are not stored yet, by their first component."""
    settings = snapshot.settings
    basis = snapshot.basis or sketch.learn_from(snapshot.db, settings, min(sketch.COMPONENTS, settings.dimension))
    parts = [Sketches.empty(0, basis.axes.shape[1])]
    parts += (Sketches.of(piece, basis) if isinstance(piece, Packed) else piece for piece in snapshot.pieces())
    good = [part.some(np.isfinite(part.norms)) for part in parts]
    together = Sketches(*map(np.concatenate, zip(*good, strict=True)))
    return together.some(np.argsort(together.codes[:, 0] * together.scales, kind="stable"))


def near(snapshot: Snapshot, distance: float) -> Near:
    """For each content those within a distance, and how far. Raises GalleryError if they are too many to hold."""
    found = []
    count = 0
    for part in pairs(snapshot, distance):
        found.append(part)
        count += len(part[0])
        if count > MOST:
            raise GalleryError(
                f"{snapshot.db.path}: more than {MOST:,} pairs of pictures are within {distance:g} of each other; "
                "take a smaller distance"
            )
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    a, b, distances = map(np.concatenate, zip(none, *found, strict=True))
    contents = {rowid: hash for rowid, (hash, _) in snapshot.pictures(np.concatenate([a, b])).items()}
    rowids = {hash: rowid for rowid, hash in contents.items()}
    order = np.argsort(np.concatenate([a, b]), kind="stable")
    a, b, distances = np.concatenate([a, b])[order], np.concatenate([b, a])[order], np.tile(distances, 2)[order]

    def of(content: bytes) -> list[tuple[bytes, float]]:
        if (rowid := rowids.get(content)) is None:
            return []
        part = slice(*np.searchsorted(a, [rowid, rowid + 1]))
        others = zip(b[part].tolist(), distances[part].tolist(), strict=True)
        return [(contents[other], apart) for other, apart in others if other in contents]

    return of
