"""Which folders a gallery is of, and what becomes of its paths where folders are moved or renamed."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable

from .database import Database
from .errors import GalleryError
from .scan import composed

FOLDERS = "folders"  # the key of ``meta``: absolute paths as JSON
BELOW = "(path = ? OR substr(path, 1, ?) = ?)"  # a picture, or all below a folder


def below(path: str) -> list[bytes | int]:
    """The values of BELOW for an absolute path."""
    folder = os.fsencode(os.path.join(path, ""))
    return [os.fsencode(path), len(folder), folder]


def folders(db: Database) -> list[str]:
    """The folders that were indexed, as absolute paths; none in a gallery of an earlier version."""
    try:
        found = json.loads(db.meta().get(FOLDERS, "[]"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise GalleryError(
            f"{db.path}: its list of folders is damaged; name them again: alnumpy index FOLDER --db FILE"
        )
    return found


def _folders(db: Database) -> list[str]:
    try:
        return folders(db)
    except GalleryError:  # what is recorded next mends it
        return []


def remember(db: Database, paths: Iterable[str]) -> None:
    """Adds folders to those that were indexed. To be called in a transaction."""
    kept: list[str] = []
    for path in sorted({*_folders(db), *(os.path.abspath(path) for path in paths)}):
        if not any(path.startswith(os.path.join(other, "")) for other in kept):
            kept.append(path)
    db.set_meta(FOLDERS, json.dumps(kept))


def as_recorded(db: Database, path: str) -> str:
    """An absolute path as the gallery spells it, whose letters may be composed otherwise, where exactly one fits."""
    if path.isascii() or db.rows(f"SELECT 1 FROM pictures WHERE {BELOW} LIMIT 1", below(path)):
        return path
    wanted, depth = composed(path), path.count(os.sep)
    recorded = (os.fsdecode(row) for (row,) in db.rows("SELECT path FROM pictures") if isinstance(row, bytes))
    above = {os.sep.join(name.split(os.sep)[: depth + 1]) for name in recorded if not name.isascii()}
    fitting = [name for name in above if composed(name) == wanted]
    return fitting[0] if len(fitting) == 1 else path


def forget(db: Database, path: str) -> None:
    """Takes a folder, and all below it, from those that were indexed. To be called in a transaction."""
    kept = [folder for folder in _folders(db) if not os.path.join(folder, "").startswith(os.path.join(path, ""))]
    db.set_meta(FOLDERS, json.dumps(kept))


def remove(db: Database, path: str) -> int:
    """Removes a file, or all below a folder, from the gallery; how many. To be called in a transaction."""
    path = as_recorded(db, os.path.abspath(path))
    forget(db, path)
    db.run(f"DELETE FROM disks WHERE {BELOW}", below(path))
    return db.run(f"DELETE FROM pictures WHERE {BELOW}", below(path))


def move(db: Database, old: str, new: str) -> int:
    """Rewrites the paths of a picture, or of all below a folder; how many. To be called in a transaction.

    Where the new path has been indexed already, that row stays. Raises GalleryError for a folder that is moved into
    itself.
    """
    old, new = os.path.abspath(old), os.path.abspath(new)
    if os.path.join(new, "").startswith(os.path.join(old, "")):
        raise GalleryError(f"{old}: cannot be moved to {new}, which is the same or below it")
    old = as_recorded(db, old)
    source, target = os.fsencode(old), os.fsencode(new)
    rewritten = "CAST(? || substr(path, ?) AS BLOB)"
    values = [target, len(source) + 1]
    db.run(
        f"DELETE FROM pictures WHERE {BELOW} AND EXISTS (SELECT 1 FROM pictures AS other "
        "WHERE other.path = CAST(? || substr(pictures.path, ?) AS BLOB))",
        [*below(old), *values],
    )
    already = db.one("SELECT changes()")
    moved = db.run(f"UPDATE pictures SET path = {rewritten}, vanished = 0 WHERE {BELOW}", [*values, *below(old)])
    db.run(f"DELETE FROM disks WHERE {BELOW}", below(old))  # which the next index finds anew
    inside = [folder for folder in _folders(db) if os.path.join(folder, "").startswith(os.path.join(old, ""))]
    forget(db, old)
    remember(db, [new + folder[len(old) :] for folder in inside])
    return int(already) + moved


def moved(db: Database, since: str) -> list[tuple[str, str, int]]:
    """Folders that are missing and whose files were all found elsewhere, by what was added since then.

    Each with the folder where they are now, and their number.
    """
    pairs: dict[tuple[str, str], set[str]] = defaultdict(set)
    sql = (
        "SELECT old.path, new.path FROM pictures AS new JOIN pictures AS old ON old.hash = new.hash "
        "WHERE new.added >= ? AND new.error IS NULL AND new.vanished = 0 AND old.path <> new.path"
    )
    for old, new in db.rows(sql, [since]):
        if isinstance(old, bytes) and isinstance(new, bytes):
            pair = _folders_that_differ(os.fsdecode(old), os.fsdecode(new))
            if pair is not None:
                pairs[pair].add(os.fsdecode(old))
    found = []
    for (source, target), paths in pairs.items():
        ((count,),) = db.rows(f"SELECT COUNT(*) FROM pictures WHERE {BELOW}", below(source))
        if count == len(paths):
            found.append((source, target, count))
    return sorted(found)


def _folders_that_differ(old: str, new: str) -> tuple[str, str] | None:
    """The highest missing folder of an old path, and the one of the new path with the same names below it, or None."""
    names, others = old.split(os.sep), new.split(os.sep)
    common = 0
    while common < min(len(names), len(others)) - 1 and names[-1 - common] == others[-1 - common]:
        common += 1
    for length in range(common, 0, -1):
        source = os.sep.join(names[:-length])
        if source and not os.path.lexists(source):
            return source, os.sep.join(others[:-length]) or os.sep
    return None
