"""What a gallery knows about its pictures: rows by path, counts, and which files stand for others."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from . import moving, packed, scan
from .database import Database
from .errors import GalleryError
from .ingest import LEFT_OUT, MISSING, read_rules
from .places import BELOW, KEY, RELATIVE, Places
from .scan import Paths
from .settings import Settings

PART = 256  # pictures that are read at a time

Array = np.ndarray


class Picture(NamedTuple):
    """A file in a gallery.

    Parameters:
        path: the absolute path.
        size: in bytes; -1 if it could not be read.
        mtime_ns: when it was last changed.
        hash: SHA-256 in hexadecimal; with an error it may be that of an earlier content.
        width, height: pixels, upright; None without an embedding.
        embedding: float32 (dimension,), or None.
        added: when it was added, UTC, ISO 8601.
        error: why it has no embedding, or None.
        vanished: whether it was missing when its folder was last indexed.
        left_out: whether a rule left it out when its folder was last indexed.

    Example:
        >>> picture = next(iter(gallery))
        >>> os.path.basename(picture.path), picture.width, picture.height, picture.error
        ('a.png', 28, 28, None)
    """

    path: str
    size: int  # bytes; -1 if it could not be read
    mtime_ns: int
    hash: str | None  # SHA-256 in hexadecimal; with an error it may be that of an earlier content
    width: int | None  # pixels, upright
    height: int | None
    embedding: Array | None  # float32 (dimension,)
    added: str  # UTC, ISO 8601
    error: str | None  # why it has no embedding
    vanished: bool  # whether it was missing when its folder was last indexed
    left_out: bool = False  # whether a rule left it out when its folder was last indexed


class HasPath(Protocol):
    """A result of any kind."""

    @property
    def path(self) -> str:
        """The file that it names."""


Row = TypeVar("Row", bound=HasPath)


def pictures(reading: Callable[[], Database], settings: Settings, paths: Paths, embeddings: bool) -> Iterator[Picture]:
    """All pictures by path, or those that are named or lie below folders; read in parts, each from ``reading()``."""
    db = reading()
    places = Places.of(db)
    wanted = [moving.as_recorded(db, path) for path in scan.several(paths)]
    condition = f" AND ({' OR '.join([BELOW] * len(wanted))})" if wanted else ""
    values = [value for path in wanted for value in places.below(path)]
    last: Any = -math.inf  # less than every path, for SQLite
    length = packed.row_length(settings.dimension, settings.dtype) if embeddings else -1
    sql = (
        "SELECT path, size, mtime_ns, pictures.hash, width, height, "
        "CASE WHEN length(embedding) = ? THEN embedding END, added, error, vanished "
        "FROM pictures LEFT JOIN contents ON contents.hash = pictures.hash AND error IS NULL "
        f"WHERE path > ?{condition} ORDER BY path LIMIT ?"
    )
    while part := reading().rows(sql, [length, last, *values, PART]):
        if _order(part[-1][0]) <= _order(last):  # otherwise a damaged index would lead in circles
            raise GalleryError(f"{db.path}: damaged; restore it, or move it away and index again")
        for last, size, mtime_ns, hash, width, height, blob, added, error, vanished in part:
            embedding = None
            if isinstance(blob, bytes):
                row = np.frombuffer(blob, np.uint8)[None]
                if np.isfinite(packed.squared_norms(row, settings.dtype)[0]):
                    embedding = packed.decode(row, settings.dtype)[0]
            digest = hash.hex() if isinstance(hash, bytes) else None
            state = vanished == MISSING, vanished == LEFT_OUT
            yield Picture(places.path(last), size, mtime_ns, digest, width, height, embedding, added, error, *state)


def _order(path: Any) -> tuple[int, Any]:
    """A key that sorts paths like SQLite, even those of a damaged database: nothing, numbers, texts, blobs."""
    if path is None:
        return -1, 0
    return (2 if isinstance(path, bytes) else 1 if isinstance(path, str) else 0), path


def contains(db: Database, path: str | os.PathLike[str]) -> bool:
    """Whether a file is recorded, under this path or the one that its links lead to."""
    places = Places.of(db)
    paths = [places.stored(moving.as_recorded(db, some)) for some in (path, os.path.realpath(path))]
    return bool(db.rows("SELECT 1 FROM pictures WHERE path IN (?, ?)", paths))


def stats(db: Database, settings: Settings) -> dict[str, Any]:
    """Numbers of pictures and contents, the size of the file in bytes, the settings and the rules."""
    (counts,) = db.rows(
        "SELECT COUNT(*) FILTER (WHERE error IS NULL AND vanished = 0), "
        "COUNT(*) FILTER (WHERE error IS NOT NULL AND vanished = 0), COUNT(*) FILTER (WHERE vanished = 1), "
        "COUNT(*) FILTER (WHERE vanished = 2), (SELECT COUNT(*) FROM contents) FROM pictures"
    )
    kinds = dict(db.rows("SELECT kind, COUNT(*) FROM kinds GROUP BY kind")) if db.version > 4 else {}
    size = db.one("PRAGMA page_count") * db.one("PRAGMA page_size")
    names = ("pictures", "unreadable", "vanished", "left_out", "contents")
    found = dict(zip(names, counts, strict=True)) | {"passed_over": scan.passed_over(kinds), "bytes": size}
    found["relative"] = db.meta().get(KEY) == RELATIVE
    return found | asdict(settings) | asdict(read_rules(db))


def shown(db: Database, results: Iterable[Row]) -> list[Row]:
    """The results without further links to one file, and without missing files that have an identical existing one."""
    places = Places.of(db)
    kept = []
    files: set[tuple[int, int]] = set()
    for result in results:
        try:
            status = os.stat(result.path)
        except (FileNotFoundError, NotADirectoryError):
            if _has_identical(db, places, result.path):
                continue
        except (OSError, ValueError):  # unknown whether it is missing
            pass
        else:
            if (file := (status.st_dev, status.st_ino)) in files and status.st_ino:
                continue
            files.add(file)
        kept.append(result)
    return kept


def _has_identical(db: Database, places: Places, path: str) -> bool:
    """Whether a file with the content of a missing one exists."""
    sql = "SELECT path FROM pictures WHERE hash = (SELECT hash FROM pictures WHERE path = ?) AND vanished = 0"
    return any(os.path.exists(places.path(row)) for (row,) in db.rows(sql, [places.stored(path)]))
