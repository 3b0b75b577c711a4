"""A gallery made anew with other weights or settings: beside it, then in its place.

The new one is a file of its own, which a run that was stopped leaves and the next one goes on with. It begins with the
old one's bookkeeping (pictures, folders, rules, disks), so that all is embedded that the old one knows, and nothing is
forgotten that is out of reach now. When it is whole, the old file takes it over in one transaction: whoever reads meets
the old gallery or the new one, whatever stops the process.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from . import images, moving, places
from .database import Database
from .embedder import Embedder
from .errors import GalleryError
from .gallery import Gallery
from .ingest import Progress, Report
from .settings import Settings

BESIDE = "-new"  # what the name of the new file ends with
MARK = "rebuilds"  # the key of ``meta`` that tells it from other files: the old one's path
COPIED = {  # the old one's bookkeeping, by table: its columns, and what the new one knows of them at first
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
) -> Report | None:
    """Makes a gallery anew, with all its folders and rules; None where it is as asked for already.

    The arguments are those of ``Gallery`` and its ``index``. None leaves what the gallery has, but ``normalize`` None
    what the embedder or its weights say. Others may search in the gallery as it was meanwhile. A run that was stopped
    is continued by the next one that asks for the same, and else begun anew.

    Raises GalleryError, and leaves the gallery as it was, where pictures that it finds cannot be read now, unless
    ``prune``; where it is reduced; and where another process writes to it.
    """
    with Gallery(path) as made:  # which must exist
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
        db.start_log()  # so that others can read what was while the new one is taken over
        if replace(new, weights=old.weights) != old:
            if not prune:
                _refuse(db, [path for path in _found(db) if not os.path.lexists(path)])
            _begin(db, beside, new)
            with Gallery(beside, embedder, "a", **choices, batch_size=batch_size, max_pixels=max_pixels) as gallery:
                report = gallery.index(prune=prune, progress=progress)
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
    """Raises GalleryError where there are pictures that would be lost."""
    if paths:
        raise GalleryError(
            f"{db.path}: left as it was, since {len(paths)} of its pictures cannot be read now, such as {paths[0]}: "
            "let alnumpy index mark those that are missing, or go on without them, by --prune"
        )


def _begin(db: Database, beside: str, new: Settings) -> None:
    """Makes the new file, or goes on with the one of a run that was stopped; it then knows what the old one does."""
    with closing(Database(beside, True, db.one("PRAGMA page_size"))) as target:
        recorded, mark = (target.meta().get(key) for key in ("settings", MARK))
        if recorded is not None and mark is None:
            raise GalleryError(f"{beside}: in the way, and not of a rebuild that was stopped; move it away")
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
    """Removes the new file, and those that SQLite keeps beside it."""
    for ending in ("", "-wal", "-shm", "-journal", "-lock", "-lock-journal"):
        with suppress(FileNotFoundError):
            os.unlink(beside + ending)
