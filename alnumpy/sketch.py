"""Sketches: a compact copy of a gallery's embeddings, from which a search learns which few rows it must read.

A sketch of an embedding x holds its leading principal components c, as int8 with a scale, and the norm r of the rest of
x - mean. Both parts are orthogonal, so by the triangle inequality in each of them

    |x - q|^2 >= |c(x) - c(q)|^2 + (r(x) - r(q))^2,

which is one product of matrices. The rounding error of int8 has a known bound, and a margin covers float32's rounding,
so that no row that belongs to the result is ever passed over; the result itself is computed from whole rows.

Sketches lie in the gallery's file, in blocks of consecutive rowids of ``contents``. Triggers note in ``unsketched``
each row that is written or removed by anyone; ``renew`` sketches these rows later; until then they are read whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from . import packed
from .database import Database
from .packed import Packed
from .settings import Settings

Array = np.ndarray

COMPONENTS = 256  # principal components that are kept, at most
BLOCK = 4096  # rowids per block
UNSKETCHED = 1 << 23  # bytes of rows without sketches that are allowed, since readers read them whole
SAMPLE = 1 << 24  # bytes of the embeddings, as float32, from which principal components are learned
GROWTH = 4  # principal components are learned again when a gallery has grown by this factor
MARGIN = 1e-4  # bound on the error of a distance, relative to the norms; generous for float32 and rounded axes
FETCHED = 256  # rows that one statement asks for
CHUNK = 512  # codes converted at once: half a megabyte, which stays in the cache
TINY = 1e-18  # bound on the error of a distance if squares underflow
ABSENT, DAMAGED = 0, 1  # scales that mark a sketch without an embedding; its norm is infinite


class Basis(NamedTuple):
    """The axes on which sketches are taken."""

    mean: Array  # float32 (D,)
    axes: Array  # float32 (D, K), orthonormal columns

    def split(self, vectors: Array) -> tuple[Array, Array, Array]:
        """Splits embeddings float32 (n, D): components (n, K), norms of the rest (n,), and norms of the whole (n,)."""
        centred = vectors - self.mean
        components = centred @ self.axes
        length = np.linalg.norm(centred, axis=1)
        centred -= components @ self.axes.T
        return components, np.linalg.norm(centred, axis=1), length


class Queries(NamedTuple):
    """Queries and their sketches."""

    vectors: Array  # float32 (Q, D)
    components: Array  # float32 (Q, K)
    rests: Array  # float32 (Q,)
    errors: Array  # float32 (Q,)

    @classmethod
    def of(cls, vectors: Array, basis: Basis | None) -> Queries:
        """Makes queries of embeddings float32 (Q, D)."""
        if basis is None:
            none = np.zeros(len(vectors), np.float32)
            return cls(vectors, np.zeros((len(vectors), 0), np.float32), none, none)
        components, rests, lengths = basis.split(vectors)
        return cls(vectors, components, rests, MARGIN * lengths)


class Sketches(NamedTuple):
    """The sketches of some contents."""

    rowids: Array  # int64 (n,), ascending
    norms: Array  # float32 (n,): squared norms of the embeddings; infinite if there is none
    scales: Array  # float32 (n,): scales of the codes; ABSENT or DAMAGED if there is no embedding
    rests: Array  # float32 (n,): norms of the parts outside the components
    errors: Array  # float32 (n,): how much a distance to the sketch can exceed the distance to the embedding
    codes: Array  # int8 (n, K)

    @classmethod
    def of(cls, embeddings: Packed, basis: Basis) -> Sketches:
        """The sketches of embeddings."""
        with np.errstate(over="ignore", invalid="ignore"):  # axes may overflow if only a part of them is used
            components, rests, lengths = basis.split(packed.decode(embeddings.rows, embeddings.dtype))
        scales = np.maximum(np.abs(components).max(1) / np.float32(127), np.finfo(np.float32).tiny)
        codes = np.rint(components / scales[:, None]).clip(-127, 127)
        rounded = codes * scales[:, None]
        norms = np.einsum("nk,nk->n", rounded, rounded) + rests**2
        errors = np.linalg.norm(components - rounded, axis=1) + MARGIN * lengths + np.float32(TINY)
        return cls(embeddings.rowids, norms, scales, rests, errors, codes.astype(np.int8))

    @classmethod
    def empty(cls, block: int, components: int) -> Sketches:
        """A block without any embedding."""
        rowids = np.arange(block * BLOCK, (block + 1) * BLOCK)
        norms, scales, rests, errors = np.zeros((4, BLOCK), np.float32)
        norms[:] = np.inf
        return cls(rowids, norms, scales, rests, errors, np.zeros((BLOCK, components), np.int8))

    @classmethod
    def from_blobs(cls, block: int, numbers: object, codes: object, components: int) -> Sketches | None:
        """A row of the table ``sketches``; None if it is damaged."""
        sizes = 16 * BLOCK, BLOCK * components
        if not isinstance(numbers, bytes) or not isinstance(codes, bytes) or (len(numbers), len(codes)) != sizes:
            return None
        four = np.frombuffer(numbers, "<f4").reshape(4, BLOCK).astype(np.float32)
        if not (four >= 0).all():
            return None
        norms, scales, rests, errors = four
        rowids = np.arange(block * BLOCK, (block + 1) * BLOCK)
        return cls(rowids, norms, scales, rests, errors, np.frombuffer(codes, np.int8).reshape(BLOCK, components))

    def blobs(self) -> tuple[bytes, bytes]:
        """``numbers`` and ``codes`` as they are stored."""
        numbers = np.stack([self.norms, self.scales, self.rests, self.errors]).astype("<f4")
        return numbers.tobytes(), self.codes.tobytes()

    def some(self, index: Array) -> Sketches:
        """The sketches at some positions."""
        return Sketches(*[column[index] for column in self])

    def bound(self, queries: Queries, bounds: Array) -> None:
        """Writes lower bounds of the squares of (distance to each of Q queries + errors): float32 (n, Q)."""
        keep = np.float32(1 - packed.ROUNDING)
        wanted = np.ascontiguousarray(-2 * queries.components.T)
        norms = (np.einsum("qk,qk->q", queries.components, queries.components) + queries.rests**2) * keep
        for start in range(0, len(self.codes), CHUNK):
            rows = slice(start, start + CHUNK)
            part = np.matmul(self.codes[rows].astype(np.float32), wanted, out=bounds[rows])
            part *= self.scales[rows, None]
            part += np.multiply.outer(self.rests[rows], -2 * queries.rests)
            part += self.norms[rows, None] * keep
            part += norms

    def remove(self, at: Array) -> None:
        """Removes the sketches at some positions."""
        self.norms[at] = np.inf
        self.scales[at] = ABSENT


def components(settings: Settings) -> int:
    """How many components the sketches of a gallery have; 0 if rows are so small that they need none."""
    count = min(COMPONENTS, settings.dimension)
    return count if packed.row_length(settings.dimension, settings.dtype) >= 2 * (count + 16) else 0


def learn(vectors: Array, count: int) -> Basis:
    """The mean and the leading principal axes of embeddings float32 (N, D), by subspace iteration.

    Axes that are not the best cost time in a search, but never change a result.
    """
    mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
    centred = vectors - mean
    largest = np.abs(centred).max(initial=0)
    centred /= largest if largest > 0 else 1
    dimension = vectors.shape[1]
    axes = np.random.default_rng(0).standard_normal((dimension, min(dimension, count + 16)))
    for _ in range(4):
        axes = np.linalg.qr(centred.T @ (centred @ axes.astype(np.float32)) + 1e-6 * axes)[0]
    # The product with the covariance sorts the axes, the leading ones first.
    variances = np.square(centred @ axes.astype(np.float32)).sum(0)
    return Basis(mean, np.ascontiguousarray(np.linalg.qr(axes[:, np.argsort(-variances)[:count]])[0], np.float32))


def read_basis(db: Database, settings: Settings) -> Basis | None:
    """The basis of a gallery's sketches; None if it has none, or one that does not bound distances."""
    count = components(settings)
    if count == 0 or not db.rows("SELECT 1 FROM sqlite_master WHERE name = 'basis'"):  # a file of an older version
        return None
    sql = "SELECT mean, axes FROM basis WHERE length(mean) = ? AND length(axes) = ?"
    for mean, axes in db.rows(sql, [4 * settings.dimension, 4 * settings.dimension * count]):
        if isinstance(mean, bytes) and isinstance(axes, bytes):
            basis = Basis(np.frombuffer(mean, "<f4"), np.frombuffer(axes, "<f4").reshape(-1, count))
            product = basis.axes.T @ basis.axes
            if np.isfinite(basis.mean).all() and np.linalg.norm(product - np.eye(count)) < MARGIN:
                return basis
    return None


def renew(db: Database, settings: Settings) -> None:
    """Sketches rows without sketches, if they are many. Call it in a transaction. Raises GalleryError."""
    count = components(settings)
    length = packed.row_length(settings.dimension, settings.dtype)
    if count == 0 or db.one("SELECT COUNT(*) FROM unsketched") * length < UNSKETCHED:
        return
    basis = read_basis(db, settings)
    contents = db.one("SELECT COUNT(*) FROM contents")
    if basis is None or contents > GROWTH * db.one("SELECT contents FROM basis"):
        basis = learn_from(db, settings, count)
        db.run("DELETE FROM basis")
        db.run("DELETE FROM sketches")
        blobs = [array.astype("<f4").tobytes() for array in basis]
        db.run("INSERT INTO basis VALUES (?, ?, ?)", [*blobs, contents])
        db.run("INSERT OR IGNORE INTO unsketched SELECT rowid FROM contents")
    for (block,) in db.rows("SELECT DISTINCT content >> ? FROM unsketched", [BLOCK.bit_length() - 1]):
        sketches = Sketches.empty(block, count)
        for numbers, codes in db.rows("SELECT numbers, codes FROM sketches WHERE block = ?", [block]):
            before = Sketches.from_blobs(block, numbers, codes, count) or sketches
            sketches = before._replace(codes=before.codes.copy())
        first = int(sketches.rowids[0])
        inside = db.rows("SELECT content FROM unsketched WHERE content BETWEEN ? AND ?", [first, first + BLOCK - 1])
        changed = np.array(inside, np.int64)[:, 0]
        sketches.remove(changed - first)
        for start in range(0, len(changed), packed.BLOCK):
            good, bad = read_rows(db, settings, changed[start : start + packed.BLOCK])
            for column, values in zip(sketches, Sketches.of(good, basis), strict=True):
                column[good.rowids - first] = values
            sketches.scales[bad - first] = DAMAGED
        db.run("INSERT OR REPLACE INTO sketches VALUES (?, ?, ?)", [block, *sketches.blobs()])
    db.run("DELETE FROM unsketched")


def learn_from(db: Database, settings: Settings, count: int) -> Basis:
    """The basis of ``count`` axes that fits a sample of a gallery."""
    contents = db.one("SELECT COUNT(*) FROM contents")
    step = max(1, -(-contents * 4 * settings.dimension // SAMPLE))
    rowids = np.array(
        [rowid for (rowid,) in db.rows("SELECT rowid FROM contents WHERE rowid % ? = 0", [step])], np.int64
    )
    sample = np.zeros((max(1, len(rowids)), settings.dimension), np.float32)
    used = 0
    for start in range(0, len(rowids), packed.BLOCK):
        good, _ = read_rows(db, settings, rowids[start : start + packed.BLOCK])
        sample[used : used + len(good.rowids)] = packed.decode(good.rows, settings.dtype)
        used += len(good.rowids)
    return learn(sample[: max(1, used)], count)


def read_rows(db: Database, settings: Settings, rowids: Array) -> tuple[Packed, Array]:
    """The contents with some rowids, ascending, and the rowids of damaged ones; missing ones are left out."""
    found: list[tuple[int, object]] = []
    sql = (
        "SELECT rowid, CASE WHEN length(embedding) = ? THEN embedding END FROM contents "
        f"WHERE rowid IN ({', '.join('?' * FETCHED)})"
    )
    for part in batches(rowids):
        found += db.rows(sql, [packed.row_length(settings.dimension, settings.dtype), *part])
    return sort_out(found, settings)


def sort_out(found: Sequence[tuple[int, object]], settings: Settings) -> tuple[Packed, Array]:
    """Sorts rowids and embeddings from the database: those that can be ranked, and the rowids of damaged ones."""
    blobs = [blob for _, blob in found if isinstance(blob, bytes)]
    rowids = np.array([rowid for rowid, _ in found], np.int64)
    whole = np.array([isinstance(blob, bytes) for _, blob in found], bool)
    length = packed.row_length(settings.dimension, settings.dtype)
    rows = np.frombuffer(b"".join(blobs), np.uint8).reshape(-1, length)
    good = Packed.of(rowids[whole], rows, settings.dtype)
    return good, rowids if len(good.rowids) == 0 else np.setdiff1d(rowids, good.rowids)


def batches(rowids: Array) -> Iterator[list[int]]:
    """Batches for one statement, all equally long so that SQLite compiles it once; the last rowid is repeated."""
    for start in range(0, len(rowids), FETCHED):
        part = rowids[start : start + FETCHED].tolist()
        yield part + part[-1:] * (FETCHED - len(part))
