"""Galleries made of galleries: one with shorter embeddings (``reduce``), or one of several (``merge``)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import compress
from typing import NamedTuple

import numpy as np

from . import moving, packed, postprocess, sketch
from .database import Database
from .errors import GalleryError
from .places import KEY, RELATIVE, Places
from .settings import Settings, bind

Array = np.ndarray

FOUND = "error IS NULL AND vanished = 0 AND typeof(path) = 'blob'"


class Content(NamedTuple):
    """A row of the table ``contents`` without its embedding."""

    hash: bytes
    width: int
    height: int
    taken: str | None


class Source(NamedTuple):
    """A gallery to copy from."""

    db: Database
    settings: Settings


def reduce(db: Database, settings: Settings, path: str | os.PathLike[str], dimensions: int) -> float:
    """Writes the gallery of ``Gallery.reduce``; returns the share of the variance that is kept. Raises GalleryError."""
    target = _free(path)
    if settings.reduced:
        raise GalleryError(f"{db.path}: reduced already; reduce the gallery that it was made from")
    source = Source(db, settings)
    try:
        embeddings = (packed.decode(rows, settings.dtype) for _, rows in _blocks(source))
        whitening = postprocess.learn_whitening(embeddings, dimensions)
    except ValueError as error:
        raise GalleryError(f"{db.path}: {error}; index more pictures, or take fewer dimensions") from None
    smaller = replace(settings, dimension=dimensions, reduced=True)
    mean, projection, kept = whitening

    def whitened(row: Array) -> Array:  # one by one, as a query will be: BLAS rounds by the size of the batch
        vector = postprocess.whiten(packed.decode(row[None], settings.dtype), mean, projection)
        return packed.encode(vector, settings.dtype)[0]

    _write(target, [source], smaller, [array.astype("<f4").tobytes() for array in (mean, projection)], whitened)
    return kept


def merge(galleries: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> int:
    """Writes one gallery with all pictures that can be found in several, which were made with the same settings.

    Of a path that is in several, the row of the file that was changed last stays, and of those the one that was added
    last; rows with damaged embeddings do not count. Paths are kept relative if they are so in all galleries, which must
    then lie in one folder with the new file. What the galleries leave out is recorded if it is the same in all.

    Parameters:
        galleries: the files of the galleries; they are not changed.
        path: the new file.

    Returns:
        The number of pictures in the new gallery.

    Raises:
        GalleryError: and writes nothing, if ``path`` exists, if a gallery is missing, damaged or empty, or if their
            settings differ.

    Example:
        >>> from alnumpy.copying import merge
        >>> merge(["pictures.db"], "all.db") == len(gallery)
        True
    """
    target = _free(path)
    with ExitStack() as stack:
        sources = []
        for name in galleries:
            db = stack.enter_context(closing(Database(name, False)))
            stack.enter_context(db.reading())
            sources.append(Source(db, bind(db, None, "", {})[0]))
        (first, settings), *others = sources
        whitening = _stored_whitening(first)
        for db, theirs in others:
            different = settings.differences(replace(theirs, weights=settings.weights))
            if different and theirs == replace(settings, identity=theirs.identity, weights=theirs.weights):
                mine, other = (f"{made.weights} ({made.identity[:12]})" for made in (settings, theirs))
                different = f"weights {mine}, not {other}"
            if different:
                raise GalleryError(f"{first.path}: made with {different} as {db.path}; only equal ones can be merged")
            if _stored_whitening(db) != whitening:
                raise GalleryError(
                    f"{first.path}: reduced otherwise than {db.path}; merge the galleries that they were made from, "
                    "and reduce that"
                )
        return _write(target, sources, settings, whitening, lambda row: row)


def _free(path: str | os.PathLike[str]) -> str:
    """The whole path of a new gallery. Raises GalleryError if there is a file already."""
    target = os.path.abspath(path)
    for name in (target, target + "-wal", target + "-journal"):  # SQLite would apply old logs to the new file
        if os.path.lexists(name):
            raise GalleryError(f"{name}: exists already; choose another name, or remove it first")
    return target


def _stored_whitening(db: Database) -> Sequence[bytes]:
    """The mean and the projection as the file of a reduced gallery has them, or nothing."""
    rows = db.rows("SELECT mean, projection FROM whitening") if db.has_column("whitening", "mean") else []
    return rows[0] if rows else ()


def read_whitening(db: Database, settings: Settings, embedding: int) -> tuple[Array, Array] | None:
    """The mean (D,) and the projection (D, dimension) of a reduced gallery, which new embeddings, of D, need.

    None if the gallery is not reduced. Raises GalleryError for damaged ones.
    """
    if not settings.reduced:
        return None
    shape = embedding, settings.dimension
    sql = "SELECT mean, projection FROM whitening WHERE length(mean) = ? AND length(projection) = ?"
    for row in db.rows(sql, [4 * shape[0], 4 * shape[0] * shape[1]]):
        if all(isinstance(blob, bytes) for blob in row):
            mean, projection = (np.frombuffer(blob, "<f4") for blob in row)
            if np.isfinite(mean).all() and np.isfinite(projection).all():
                return mean, projection.reshape(shape)
    raise GalleryError(f"{db.path}: its whitening is damaged; reduce the whole gallery again")


def _blocks(source: Source) -> Iterator[tuple[list[Content], Array]]:
    """All contents, each once, a block at a time, with their embeddings as they are stored, uint8 (n, bytes)."""
    db, settings = source
    taken = "taken" if db.has_column("contents", "taken") else "NULL"
    sql = (
        f"SELECT rowid, hash, width, height, {taken}, embedding FROM contents WHERE rowid > ? "
        "AND typeof(embedding) = 'blob' AND length(embedding) = ? ORDER BY rowid LIMIT ?"
    )
    last = -(2**63)
    length = packed.row_length(settings.dimension, settings.dtype)
    while part := db.rows(sql, [last, length, packed.BLOCK]):
        if part[-1][0] <= last:  # otherwise it would go round for ever
            raise GalleryError(f"{db.path}: damaged (rows out of order); restore it, or index into another file")
        last = part[-1][0]
        rows = np.frombuffer(b"".join(row[5] for row in part), np.uint8).reshape(len(part), -1)
        good = np.isfinite(packed.squared_norms(rows, settings.dtype))
        yield [Content(*row[1:5]) for row in compress(part, good)], rows[good]


def _write(
    target: str,
    sources: Sequence[Source],
    settings: Settings,
    whitening: Sequence[bytes],
    change: Callable[[Array], Array],
) -> int:
    """Writes a new gallery whole, or nothing. Returns the number of its pictures.

    ``change`` makes an embedding, as it is stored, that of the new gallery.
    """
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(target), prefix=".alnumpy-") as folder:
            whole = os.path.join(os.path.realpath(folder), os.path.basename(target))
            with closing(Database(whole, True)) as db, db.transaction():
                places = _copy_about(sources, settings, db, target)
                if whitening:
                    db.run("INSERT INTO whitening VALUES (?, ?)", whitening)
                for source in sources:
                    _copy_contents(source, db, change)
                for source in sources:  # a content that is damaged in one may be whole in another
                    _copy_pictures(source, db, places)
                db.drop_unused_contents()
                sketch.renew(db, settings)
                count: int = db.one("SELECT COUNT(*) FROM pictures")
            os.rename(whole, target)
    except OSError as error:
        raise GalleryError(f"{target}: cannot be written ({error.strerror})") from None
    except GalleryError as error:  # such as a full disk
        raise GalleryError(str(error).replace(whole, target)) from None
    return count


def _copy_about(sources: Sequence[Source], settings: Settings, db: Database, target: str) -> Places:
    """Copies settings, rules, folders and disks; returns how paths are kept.

    Relative paths stay so if the new file lies beside the other galleries.
    """
    places, after = [Places.of(source.db) for source in sources], Places.beside(target)
    if any(before != after for before in places):
        after = Places("")
    db.set_meta("settings", settings.to_json())
    if after.folder:
        db.set_meta(KEY, RELATIVE)
    rules = {source.db.meta().get("rules") for source in sources}
    if len(rules) == 1 and (same := rules.pop()) is not None:
        db.set_meta("rules", same)
    moving.record(db, after, moving.outermost(path for source in sources for path in moving.folders(source.db)))
    for source, before in zip(sources, places, strict=True):
        if source.db.version > 4:
            disks = source.db.rows("SELECT path, mount, name FROM disks WHERE typeof(path) = 'blob'")
            respelled = [
                (after.stored(before.path(p)), after.stored_mount(before.mount(m)), name) for p, m, name in disks
            ]
            db.run_each("INSERT OR REPLACE INTO disks VALUES (?, ?, ?)", respelled)
    return after


def _respelled(rows: Iterable[tuple], before: Places, after: Places) -> Iterator[tuple]:
    return ((after.stored(before.path(path)), *rest) for path, *rest in rows)


def _copy_contents(source: Source, db: Database, change: Callable[[Array], Array]) -> None:
    """Copies the contents of pictures that can be found."""
    for contents, rows in _blocks(source):
        for content, row in zip(contents, rows, strict=True):
            if source.db.rows(f"SELECT 1 FROM pictures WHERE hash = ? AND {FOUND} LIMIT 1", [content.hash]):
                db.run(
                    "INSERT OR IGNORE INTO contents (hash, width, height, taken, embedding) VALUES (?, ?, ?, ?, ?)",
                    [*content, change(row).tobytes()],
                )


def _copy_pictures(source: Source, db: Database, after: Places) -> None:
    """Copies the pictures whose contents have been copied, unless there is a later row of the same path."""
    with source.db.cursor(f"SELECT path, size, mtime_ns, hash, added FROM pictures WHERE {FOUND}") as rows:
        db.run_each(
            "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) SELECT ?, ?, ?, ?4, ?, 0 "
            "WHERE EXISTS (SELECT 1 FROM contents WHERE hash = ?4) "
            "ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns, "
            "hash = excluded.hash, added = excluded.added "
            "WHERE (excluded.mtime_ns, excluded.added) > (mtime_ns, added)",
            _respelled(rows, Places.of(source.db), after),
        )
