"""The findable content of a gallery at one moment: exact search, and groups of duplicates, in constant memory.

A search passes over sketches of the embeddings (see ``sketch``), which tell which rows can be among the nearest, and
reads those rows. Small galleries and those of older versions have no sketches: there a search passes over all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from . import packed, sketch
from .database import Database
from .errors import GalleryError
from .packed import Packed
from .places import Places
from .settings import Settings
from .sketch import Queries, Sketches

Array = np.ndarray
Piece = Packed | Sketches

HELD = 1 << 27  # bytes of rows and sketches that are kept from the second pass on; the rest is read in each pass
BOUNDS = 1 << 22  # bounds of distances held at once, 16 MB
PART = 1 << 20  # rows ranked at once: bounds the memory for galleries of any size
GROUP = 64  # bounds in a group; search looks at the groups' minima first
CHUNK = 256  # rows read and compared before looking whether more are needed
LARGEST = 3e38  # above every distance, and below infinity

FINDABLE = "error IS NULL AND vanished = 0"
# Contents that only missing or unreadable pictures have.
HIDDEN = (
    f"SELECT rowid FROM contents WHERE hash IN (SELECT hash FROM pictures WHERE NOT ({FINDABLE})) "
    f"AND NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.hash = contents.hash AND {FINDABLE}) ORDER BY rowid"
)
# Pictures without an embedding, or without a path: numbers and texts come before blobs.
LOST = (
    "SELECT path FROM pictures WHERE hash IN (SELECT hash FROM pictures EXCEPT SELECT hash FROM contents) "
    f"AND {FINDABLE} UNION SELECT path FROM pictures WHERE path < x'' AND {FINDABLE}"
)
# A content whose embedding has the right length.
WHOLE = "SELECT 1 FROM contents WHERE rowid = ? AND typeof(embedding) = 'blob' AND length(embedding) = ?"
# The pictures of some contents.
PICTURES = (
    "SELECT contents.rowid, contents.hash, path FROM contents CROSS JOIN pictures ON pictures.hash = contents.hash "
    f"WHERE contents.rowid IN ({', '.join('?' * sketch.FETCHED)}) AND {FINDABLE}"
)


class Match(NamedTuple):
    """A result: a picture and its L2 distance.

    Parameters:
        path: the picture's absolute path.
        distance: the L2 distance from the query.
        same: whether its file is identical to the query: the query itself, or a copy.

    Example:
        >>> first = gallery.search("pictures/a.png")[0][0]
        >>> os.path.basename(first.path), first.distance, first.same
        ('a.png', 0.0, True)
    """

    path: str
    distance: float
    same: bool  # whether its file is identical to the query: the query itself, or a copy


class Nearest(NamedTuple):
    """The contents nearest to a query so far, nearest first, with all that are as far as the last."""

    distances: Array  # float32 (n,)
    rowids: Array  # int64 (n,): rowids of contents

    def limit(self, k: int) -> float:
        """The distance of the k-th; infinite if there are fewer."""
        return float(self.distances[k - 1]) if len(self.distances) >= k else np.inf

    def add(self, distances: Array, rowids: Array, k: int) -> Nearest:
        """The nearest after adding more contents."""
        merged = Nearest(np.concatenate([self.distances, distances]), np.concatenate([self.rowids, rowids]))
        order = np.argsort(merged.distances, kind="stable")
        merged = Nearest(merged.distances[order], merged.rowids[order])
        kept = int(np.searchsorted(merged.distances, np.float32(merged.limit(k)), "right"))
        return Nearest(merged.distances[:kept], merged.rowids[:kept])


class Snapshot:
    """The state of a gallery at one moment. Use it inside ``db.reading()``, which keeps that moment."""

    def __init__(self, db: Database, settings: Settings):
        self.db = db
        self.settings = settings
        self.places = Places.of(db)
        self.basis = sketch.read_basis(db, settings)
        self._hidden = _column(db, HIDDEN)
        self._length = packed.row_length(settings.dimension, settings.dtype)
        self._contents: int = db.one("SELECT COUNT(*) FROM contents")
        self._unsketched = np.zeros(0, np.int64)
        self._blocks: list[int] = []
        size = self._contents * self._length
        if self.basis is not None:
            self._unsketched = _column(db, "SELECT content FROM unsketched ORDER BY content")
            self._blocks = _column(db, "SELECT block FROM sketches ORDER BY block").tolist()
            sketches = len(self._blocks) * sketch.BLOCK * (sketch.components(settings) + 16)
            size = sketches + len(self._unsketched) * self._length
        self._size = size
        self._held: list[Piece] | None = None
        self._passed = False
        self._bad: set[int] = set()  # rowids of contents whose rows are known to be damaged

    # Search

    def search(self, queries: Array, k: int, hashes: Sequence[bytes | None]) -> list[list[Match]]:
        """The k nearest to each query of (Q, D), nearest first, ties by path; ``hashes``: the queries' contents."""
        k = wanted = min(k, 2**62)
        while True:
            nearest = self.nearest(queries, wanted)
            pictures = self.pictures(np.concatenate([np.zeros(0, np.int64), *(found.rowids for found in nearest)]))
            results = [self._matches(*found, pictures, hash)[:k] for found, hash in zip(nearest, hashes, strict=True)]
            pairs = zip(nearest, results, strict=True)
            if all(len(result) >= k or len(found.rowids) < wanted for found, result in pairs):
                return results
            wanted *= 2  # in a damaged gallery some contents belong to no picture

    def nearest(self, vectors: Array, k: int) -> list[Nearest]:
        """The k nearest contents to each query of (Q, D), and all that are as near as the last of them."""
        none = Nearest(np.zeros(0, np.float32), np.zeros(0, np.int64))
        results = [none] * len(vectors)
        step = max(1, BOUNDS // max(1, min(PART, self._contents)))
        for start in range(0, len(vectors), step):
            with np.errstate(over="ignore", invalid="ignore"):
                queries = Queries.of(vectors[start : start + step], self.basis)
                for part in self._parts(queries):
                    results[start : start + step] = self._rank(queries, k, part, results[start : start + step])
        return results

    def _parts(self, queries: Queries) -> Iterator[_Part]:
        """Bounds of the distances to all contents, in parts."""
        pieces = iter(self.pieces())
        piece = next(pieces, None)
        while piece is not None:
            part = []
            count = 0
            while piece is not None and count < PART:
                part.append(_Part.of(piece, queries))
                count += len(piece.norms)
                piece = next(pieces, None)
            yield _Part.joined(part)

    def _rank(self, queries: Queries, k: int, part: _Part, nearest: list[Nearest]) -> list[Nearest]:
        """The nearest contents to each query, after adding a part."""

        def possible(i: int, bounds: Array, errors: Array) -> Array:
            reach = np.minimum((nearest[i].limit(k) + queries.errors[i] + errors) ** 2 * (1 + 1e-6), LARGEST)
            return np.asarray(bounds <= reach)

        # First the rows that are probably nearest, to learn the distance of the k-th.
        probable = [self._probable(queries, i, k, part) for i in range(len(nearest))]
        nearest = self._compare(queries.vectors, k, part, probable, nearest)
        waiting = []
        for i, seen in enumerate(probable):
            near = _members(np.flatnonzero(possible(i, part.least[:, i], part.group_errors)))
            near = np.setdiff1d(near[possible(i, part.bounds[near, i], part.errors[near])], seen, assume_unique=True)
            waiting.append(near[np.argsort(part.bounds[near, i])])
        chunk = CHUNK * len(waiting)  # many queries share it
        while any(map(len, waiting)):
            nearest = self._compare(queries.vectors, k, part, [near[:chunk] for near in waiting], nearest)
            waiting = [near[chunk:] for near in waiting]
            waiting = [near[possible(i, part.bounds[near, i], part.errors[near])] for i, near in enumerate(waiting)]
            chunk *= 2
        return nearest

    def _probable(self, queries: Queries, i: int, k: int, part: _Part) -> Array:
        """Positions of k contents that are probably among the nearest to query i.

        The parts of two embeddings outside their sketches are mostly at right angles to each other.
        """
        least = part.least[:, i]
        count = min(len(least), max(k, 16))
        near = _members(np.argpartition(least, count - 1)[:count] if count < len(least) else np.arange(count))
        near = near[part.bounds[near, i] < LARGEST]
        guesses = part.bounds[near, i] + 2 * queries.rests[i] * part.rests[near]
        return near[np.argpartition(guesses, k - 1)[:k]] if k < len(near) else near

    def _compare(
        self, queries: Array, k: int, part: _Part, positions: list[Array], nearest: list[Nearest]
    ) -> list[Nearest]:
        """The nearest to each query (Q, D), after comparing whole rows at its positions in a part."""
        asked = np.repeat(np.arange(len(positions)), [len(at) for at in positions])
        rowids = part.rowids[np.concatenate(positions)]
        order = np.argsort(rowids)
        asked, rowids = asked[order], rowids[order]
        together = np.unique(rowids)
        nearest = list(nearest)
        for start in range(0, len(together), packed.BLOCK):
            some = together[start : start + packed.BLOCK]
            piece = self.rows(some)
            if len(piece.rowids) == 0:
                continue
            bounds = np.empty((len(piece.norms), len(queries)), np.float32)
            piece.bound(queries, bounds)
            here = slice(*np.searchsorted(rowids, [some[0], some[-1] + 1]))
            at = np.minimum(np.searchsorted(piece.rowids, rowids[here]), len(piece.rowids) - 1)
            there = piece.rowids[at] == rowids[here]
            near = np.zeros(bounds.shape, bool)
            near[at[there], asked[here][there]] = True
            near &= bounds <= np.array([found.limit(k) ** 2 * (1 + 1e-6) for found in nearest])
            vectors = packed.decode(piece.rows, piece.dtype)
            for i in np.flatnonzero(near.any(0)).tolist():
                distances = np.linalg.norm(vectors[near[:, i]] - queries[i], axis=1)
                nearest[i] = nearest[i].add(distances, piece.rowids[near[:, i]], k)
        return nearest

    def rows(self, rowids: Array) -> Packed:
        """The intact rows among some contents, by ascending rowid."""
        if self.basis is None and self._held:
            (piece,) = self._held
            assert isinstance(piece, Packed)
            return piece.some(_positions(piece.rowids, rowids))
        return self._whole(*sketch.read_rows(self.db, self.settings, rowids))

    def pictures(self, rowids: Array) -> dict[int, tuple[bytes, list[bytes]]]:
        """For each of some contents its hash and the paths of its pictures."""
        pictures: dict[int, tuple[bytes, list[bytes]]] = {}
        for part in sketch.batches(np.unique(rowids)):
            for rowid, hash, path in self.db.rows(PICTURES, part):
                if isinstance(path, bytes):
                    pictures.setdefault(rowid, (hash, []))[1].append(path)
        return pictures

    def _matches(
        self, distances: Array, rowids: Array, pictures: dict[int, tuple[bytes, list[bytes]]], query: bytes | None
    ) -> list[Match]:
        """Pictures by distance and path."""
        found = [
            (distance, path, hash == query)
            for distance, rowid in zip(distances.tolist(), rowids.tolist(), strict=True)
            if rowid in pictures
            for hash, paths in [pictures[rowid]]
            for path in paths
        ]
        return [Match(self.places.path(path), distance, same) for distance, path, same in sorted(found)]

    def embedding(self, hash: bytes) -> Array | None:
        """The embedding, float32 (D,), of a file's content; None if no picture here has it."""
        sql = (
            "SELECT embedding FROM contents WHERE hash = ? AND length(embedding) = ? "
            f"AND EXISTS (SELECT 1 FROM pictures WHERE pictures.hash = contents.hash AND {FINDABLE})"
        )
        for (blob,) in self.db.rows(sql, [hash, self._length]):
            if isinstance(blob, bytes):
                row = np.frombuffer(blob, np.uint8)[None]
                if np.isfinite(packed.squared_norms(row, self.settings.dtype)[0]):
                    vector: Array = packed.decode(row, self.settings.dtype)[0]
                    return vector
        return None

    # What is passed over

    def pieces(self) -> Iterable[Piece]:
        """All contents that can be found, as sketches if there are some, and else as whole rows."""
        if self._held is None and self._passed and self._size <= HELD:
            held = list(self._read())
            rows = [piece for piece in held if isinstance(piece, Packed)]
            self._held = [Packed.joined(rows)] if rows and len(rows) == len(held) else held
        return self._read() if self._held is None else self._held

    def _read(self) -> Iterator[Piece]:
        if self.basis is None:
            last = -(2**63)
            sql = (
                "SELECT rowid, CASE WHEN length(embedding) = ? THEN embedding END FROM contents "
                "WHERE rowid > ? ORDER BY rowid LIMIT ?"
            )
            while part := self.db.rows(sql, [self._length, last, packed.BLOCK]):
                if part[-1][0] <= last:  # otherwise a damaged table would lead in circles
                    raise GalleryError(f"{self.db.path}: damaged; restore it, or move it away and index again")
                last = part[-1][0]
                yield self._whole(*sketch.sort_out(part, self.settings))
        for start in range(0, len(self._unsketched), packed.BLOCK):
            rowids = self._unsketched[start : start + packed.BLOCK]
            yield self._whole(*sketch.read_rows(self.db, self.settings, rowids))
        for block in self._blocks:
            yield self._sketches(block)
        self._passed = True

    def _whole(self, good: Packed, damaged: Array) -> Packed:
        """Whole rows, without contents that cannot be found."""
        self._bad.update(damaged.tolist())
        hidden = _among(good.rowids, self._hidden)
        return good.some(~hidden) if hidden.any() else good

    def _sketches(self, block: int) -> Piece:
        """A block of sketches, or its whole rows if it is damaged."""
        ((numbers, codes),) = self.db.rows("SELECT numbers, codes FROM sketches WHERE block = ?", [block])
        sketches = Sketches.from_blobs(block, numbers, codes, sketch.components(self.settings))
        if sketches is None:
            rowids = np.arange(block * sketch.BLOCK, (block + 1) * sketch.BLOCK)
            rowids = rowids[~_among(rowids, self._unsketched)]
            return self._whole(*sketch.read_rows(self.db, self.settings, rowids))
        sketches.remove(_among(sketches.rowids, self._unsketched))
        self._bad.update(sketches.rowids[(sketches.scales == sketch.DAMAGED) & np.isinf(sketches.norms)].tolist())
        sketches.remove(_among(sketches.rowids, self._hidden))
        return sketches

    @cached_property
    def damaged(self) -> list[tuple[str, str]]:
        """Rows that cannot be ranked: path and reason."""
        if not self._passed:
            for _ in self._read():
                pass
        wrong = f"its embedding is not of {self.settings.dimension} {self.settings.dtype}"
        found = [(path, wrong) for (path,) in self.db.rows(LOST)]
        bad = np.array(sorted(self._bad), np.int64)
        for rowid, (_, paths) in self.pictures(bad).items():
            finite = self.db.rows(WHOLE, [rowid, self._length])
            found += [(path, "its embedding is not finite" if finite else wrong) for path in paths]
        named = [(self.places.path(path), reason) for path, reason in found]
        return sorted(named, key=lambda item: (item[1] != wrong, item[0]))


class _Part(NamedTuple):
    """Bounds of squared distances for a multiple of GROUP contents."""

    rowids: Array  # int64 (n,)
    rests: Array  # float32 (n,)
    errors: Array  # float32 (n,)
    bounds: Array  # float32 (n, Q)
    least: Array  # float32 (n / GROUP, Q)
    group_errors: Array  # float32 (n / GROUP,)

    @classmethod
    def of(cls, piece: Piece, queries: Queries) -> _Part:
        """The bounds for a piece."""
        count = len(piece.norms)
        whole = -(-count // GROUP) * GROUP
        rowids, rests, errors = np.zeros(whole, np.int64), np.zeros(whole, np.float32), np.zeros(whole, np.float32)
        rowids[:count], rests[:count], errors[:count] = piece.rowids, piece.rests, piece.errors
        bounds = np.full((whole, len(queries.vectors)), np.inf, np.float32)
        if isinstance(piece, Packed):
            piece.bound(queries.vectors, bounds[:count])
        else:
            piece.bound(queries, bounds[:count])
        groups = whole // GROUP, GROUP
        least = bounds.reshape(*groups, len(queries.vectors)).min(1)
        return cls(rowids, rests, errors, bounds, least, errors.reshape(groups).max(1))

    @classmethod
    def joined(cls, parts: list[_Part]) -> _Part:
        """Joins several parts into one."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


def _members(groups: Array) -> Array:
    """The positions of all members of some groups."""
    return (groups[:, None] * GROUP + np.arange(GROUP)).ravel()


def _positions(rowids: Array, some: Array) -> Array:
    """Positions in ``rowids`` of those that are in ``some``; both are ascending."""
    if len(rowids) == 0:
        return np.zeros(0, np.int64)
    some = some[np.searchsorted(some, rowids[0]) : np.searchsorted(some, rowids[-1], "right")]
    at = np.searchsorted(rowids, some)
    return at[rowids[at] == some]


def _among(rowids: Array, some: Array) -> Array:
    """Whether each rowid is in ``some``: bool (n,); both are ascending."""
    among = np.zeros(len(rowids), bool)
    among[_positions(rowids, some)] = True
    return among


def _column(db: Database, sql: str) -> Array:
    return np.array([value for (value,) in db.rows(sql)], np.int64)
