"""Makes a gallery anew with other weights or settings: beside it, then in its place.

The new one is a file of its own. A run that was stopped leaves it, and the next run continues it. It begins with the
old one's bookkeeping (pictures, folders, rules, disks), so that all pictures of the old one are embedded, and pictures
that are out of reach now are not forgotten. When it is complete, the old file takes it over in one transaction: readers
see the old gallery or the new one, whatever stops the process.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import images, moving, places
from .database import Database
from .embedder import Embedder
from .errors import GalleryError
from .gallery import Gallery
from .ingest import Progress, Report
from .settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Executor

BESIDE = "-new"  # the ending of the new file's name
MARK = "rebuilds"  # the key of ``meta`` that marks the new file; its value is the old one's path
COPIED = {  # the old one's bookkeeping, by table: its columns, and their first values in the new one
    "meta": ("key, value", "key, value", f"WHERE key IN ('rules', '{moving.FOLDERS}', '{places.KEY}')"),
    "disks": ("path, mount, name", "path, mount, name", ""),
    "kinds": ("path, size, mtime_ns, kind", "path, size, mtime_ns, kind", ""),
    "pictures": (
        "path, size, mtime_ns, hash, error, added, vanished",
        "path, -1, -1, hash, error, added, vanished",
        "WHERE typeof(path) = 'blob'",
    ),
}
FOUND = (
    "SELECT path FROM pictures JOIN contents ON contents.hash = pictures.hash "
    "WHERE error IS NULL AND vanished = 0 AND typeof(path) = 'blob' ORDER BY path"
)


def rebuild(
    path: str | os.PathLike[str],
    embedder: Embedder,
    *,
    dtype: str | None = None,
    fast_decode: bool | None = None,
    flip: bool | None = None,
    normalize: bool | None = None,
    weights: str = "",
    batch_size: int = 32,
    max_pixels: int = images.MAX_PIXELS,
    prune: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Report | None:
    """Makes a gallery anew, with all its folders and rules; returns None if it is as asked for already.

    The arguments are those of ``Gallery`` and its ``index``. None keeps the gallery's value, but
    ``normalize`` None takes that of the embedder or its weights. Meanwhile the old gallery can be searched. A run that
    was stopped is continued by the next one that asks for the same, and otherwise begun anew.

    Raises GalleryError, and leaves the gallery as it was, if pictures that it finds cannot be read now, unless
    ``prune``; if it is reduced; and if another process writes to it.
    """
    with Gallery(path) as made:  # the gallery must exist
        old = made.settings
    if old.reduced:
        raise GalleryError(f"{made.path}: reduced; rebuild the gallery that it was made from, and reduce that again")
    choices: dict[str, Any] = {
        "dtype": dtype or old.dtype,
        "fast_decode": old.fast_decode if fast_decode is None else fast_decode,
        "flip": old.flip if flip is None else flip,
        "normalize": normalize,
    }
    new = Settings.of(embedder, weights=weights, **choices)
    report = None
    with closing(Database(path, True)) as db:
        beside = db.path + BESIDE
        db.start_log()  # lets others read the old state while the new one is taken over
        if replace(new, weights=old.weights) != old:
            if not prune:
                _refuse(db, [path for path in _found(db) if not os.path.lexists(path)])
            _begin(db, beside, new)
            with Gallery(beside, embedder, "a", **choices, batch_size=batch_size, max_pixels=max_pixels) as gallery:
                report = gallery.index(prune=prune, progress=progress, executor=executor)
            with closing(Database(beside, True)) as target:
                if not prune:
                    _refuse(db, sorted({*_found(db)} - {*_found(target)}))
                db.take_over(target)
        db.run("DELETE FROM meta WHERE key = ?", [MARK])
        _discard(beside)
    return report


def _found(db: Database) -> list[str]:
    """The paths of the pictures that a gallery finds."""
    whole = places.Places.of(db).path
    return [whole(path) for (path,) in db.rows(FOUND)]


def _refuse(db: Database, paths: list[str]) -> None:
    """Raises GalleryError if pictures would be lost."""
    if paths:
        raise GalleryError(
            f"{db.path}: left as it was, since {len(paths)} of its pictures cannot be read now, such as {paths[0]}: "
            "let alnumpy index mark those that are missing, or go on without them, by --prune"
        )


def _begin(db: Database, beside: str, new: Settings) -> None:
    """Makes the new file, or continues that of a run that was stopped; it then has the old one's bookkeeping."""
    with closing(Database(beside, True, db.one("PRAGMA page_size"))) as target:
        recorded, mark = (target.meta().get(key) for key in ("settings", MARK))
        if recorded is not None and mark is None:
            raise GalleryError(f"{beside}: in the way, and not part of a rebuild that was stopped; move it away")
        if recorded in (None, new.to_json()):
            _copy_bookkeeping(db, target, new)
            return
    _discard(beside)
    _begin(db, beside, new)


def _copy_bookkeeping(db: Database, target: Database, new: Settings) -> None:
    with target.transaction():
        target.set_meta(MARK, db.path)
        target.set_meta("settings", new.to_json())
        for table, (columns, values, condition) in COPIED.items():
            how = "OR REPLACE" if table == "meta" else "OR IGNORE"
            places = ", ".join("?" for _ in columns.split(", "))
            rows = db.rows(f"SELECT {values} FROM {table} {condition}")
            target.run_each(f"INSERT {how} INTO {table} ({columns}) VALUES ({places})", rows)


def _discard(beside: str) -> None:
    """Removes the new file, and the files that SQLite keeps beside it."""
    for ending in ("", "-wal", "-shm", "-journal", "-lock", "-lock-journal"):
        with suppress(FileNotFoundError):
            os.unlink(beside + ending)
