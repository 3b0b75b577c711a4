"""Makes a smaller gallery from a gallery: embeddings PCA-whitened to fewer dimensions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import compress

import numpy as np

from . import moving, packed, postprocess, sketch
from .database import Database
from .errors import GalleryError
from .places import KEY, Places
from .settings import Settings

Array = np.ndarray

CONTENTS = (
    "SELECT rowid, hash, width, height, embedding FROM contents WHERE rowid > ? "
    "AND typeof(embedding) = 'blob' AND length(embedding) = ? ORDER BY rowid LIMIT ?"
)


def reduce(source: Database, settings: Settings, path: str | os.PathLike[str], dimensions: int) -> float:
    """Writes the gallery of ``Gallery.reduce``; returns the share of the variance that is kept. Raises GalleryError."""
    target = os.path.abspath(path)
    for name in (target, target + "-wal", target + "-journal"):  # SQLite would apply old logs to the new file
        if os.path.lexists(name):
            raise GalleryError(f"{name}: exists already; choose another name, or remove it first")
    if settings.reduced:
        raise GalleryError(f"{source.path}: reduced already; reduce the gallery that it was made from")
    try:
        embeddings = (vectors for _, vectors in _blocks(source, settings))
        whitening = postprocess.learn_whitening(embeddings, dimensions)
    except ValueError as error:
        raise GalleryError(f"{source.path}: {error}; index more pictures, or take fewer dimensions") from None
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(target), prefix=".alnumpy-") as folder:
            whole = os.path.join(folder, os.path.basename(target))
            with closing(Database(whole, True)) as db, db.transaction():
                _copy(source, settings, db, whitening, target)
            os.rename(whole, target)
    except OSError as error:
        raise GalleryError(f"{target}: cannot be written ({error.strerror})") from None
    return whitening.kept


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


def _blocks(source: Database, settings: Settings) -> Iterator[tuple[list[tuple[bytes, int, int]], Array]]:
    """All contents, each once, a block at a time: hash, width and height, and embeddings float32 (n, dimension)."""
    last = -(2**63)
    length = packed.row_length(settings.dimension, settings.dtype)
    while part := source.rows(CONTENTS, [last, length, packed.BLOCK]):
        if part[-1][0] <= last:  # otherwise it would go round for ever
            raise GalleryError(f"{source.path}: damaged (rows out of order); restore it, or index into another file")
        last = part[-1][0]
        rows = np.frombuffer(b"".join(row[4] for row in part), np.uint8).reshape(len(part), -1)
        good = np.isfinite(packed.squared_norms(rows, settings.dtype))
        contents = [(hash, width, height) for _, hash, width, height, _ in compress(part, good)]
        yield contents, packed.decode(rows[good], settings.dtype)


def _copy(source: Database, settings: Settings, db: Database, whitening: postprocess.Whitening, target: str) -> None:
    """Fills a new database with all that can be found. Paths stay relative where it will lie in the same folder."""
    before, after = Places.of(source), Places.beside(target)
    if before != after:
        after = Places("")
    mean, projection, _ = whitening
    smaller = replace(settings, dimension=projection.shape[1], reduced=True)
    db.set_meta("settings", smaller.to_json())
    for key, value in source.meta().items():
        if key == "rules" or (key == KEY and after.folder):
            db.set_meta(key, value)
    moving.record(db, after, moving.folders(source))
    if source.version > 4:
        disks = source.rows("SELECT path, mount, name FROM disks WHERE typeof(path) = 'blob'")
        respelled = [(after.stored(before.path(p)), after.stored_mount(before.mount(m)), name) for p, m, name in disks]
        db.run_each("INSERT INTO disks VALUES (?, ?, ?)", respelled)
    blobs = [array.astype("<f4").tobytes() for array in (mean, projection)]
    db.run("INSERT INTO whitening VALUES (?, ?)", blobs)
    findable = "FROM pictures WHERE error IS NULL AND vanished = 0"
    used = {hash for (hash,) in source.rows(f"SELECT hash {findable}")}
    copied = set()
    for contents, vectors in _blocks(source, settings):
        for (hash, width, height), vector in zip(contents, vectors, strict=True):
            if hash in used:  # one by one, as a query will be: BLAS rounds by the size of the batch
                blob = packed.encode(postprocess.whiten(vector[None], mean, projection), settings.dtype).tobytes()
                db.run(
                    "INSERT INTO contents (hash, width, height, embedding) VALUES (?, ?, ?, ?)",
                    [hash, width, height, blob],
                )
                copied.add(hash)
    rows = source.rows(f"SELECT path, size, mtime_ns, hash, added {findable} AND typeof(path) = 'blob'")
    db.run_each(
        "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, ?, ?, ?, ?, 0)",
        ((after.stored(before.path(path)), *row) for path, *row in rows if row[2] in copied),
    )
    sketch.renew(db, smaller)
    if source.has_column("contents", "taken"):
        db.run_each("UPDATE contents SET taken = ? WHERE hash = ?", source.rows("SELECT taken, hash FROM contents"))
