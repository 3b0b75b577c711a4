"""The folders of a gallery, and what happens to its paths when folders are moved or renamed."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable

from .database import Database
from .errors import GalleryError
from .places import BELOW, KEY, RELATIVE, Places
from .scan import composed

FOLDERS = "folders"  # the key of ``meta``: paths as JSON


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
    places = Places.of(db)
    return [places.path(os.fsencode(path)) for path in found]


def _folders(db: Database) -> list[str]:
    try:
        return folders(db)
    except GalleryError:  # the next recording mends it
        return []


def remember(db: Database, paths: Iterable[str]) -> None:
    """Adds folders to those that were indexed. Call it in a transaction."""
    record(db, Places.of(db), outermost([*_folders(db), *map(os.path.abspath, paths)]))


def outermost(paths: Iterable[str]) -> list[str]:
    """The folders that are not below another one of them, each once."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(os.path.join(other, "")) for other in kept):
            kept.append(path)
    return kept


def forget(db: Database, path: str) -> None:
    """Removes a folder, and all below it, from those that were indexed. Call it in a transaction."""
    kept = [folder for folder in _folders(db) if not os.path.join(folder, "").startswith(os.path.join(path, ""))]
    record(db, Places.of(db), kept)


def record(db: Database, places: Places, folders: list[str]) -> None:
    """Records the folders that were indexed."""
    db.set_meta(FOLDERS, json.dumps([os.fsdecode(places.stored(folder)) for folder in folders]))


def as_recorded(db: Database, path: str | os.PathLike[str]) -> str:
    """The whole path of a picture or folder, as the gallery spells it.

    Its letters may be composed otherwise there; that spelling is taken if exactly one fits.
    """
    places = Places.of(db)
    path = places.whole(path)
    if path.isascii() or db.rows(f"SELECT 1 FROM pictures WHERE {BELOW} LIMIT 1", places.below(path)):
        return path
    wanted, depth = composed(path), path.count(os.sep)
    recorded = (places.path(row) for (row,) in db.rows("SELECT path FROM pictures") if isinstance(row, bytes))
    above = {os.sep.join(name.split(os.sep)[: depth + 1]) for name in recorded if not name.isascii()}
    fitting = [name for name in above if composed(name) == wanted]
    return fitting[0] if len(fitting) == 1 else path


def remove(db: Database, path: str | os.PathLike[str]) -> int:
    """Removes a file, or all below a folder, from the gallery. Returns how many. Call it in a transaction."""
    path = as_recorded(db, path)
    below = Places.of(db).below(path)
    forget(db, path)
    db.run(f"DELETE FROM disks WHERE {BELOW}", below)
    return db.run(f"DELETE FROM pictures WHERE {BELOW}", below)


def move(db: Database, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> int:
    """Rewrites the paths of a picture, or of all below a folder. Returns how many. Call it in a transaction.

    If the new path has been indexed already, that row stays. Raises GalleryError for a folder that is moved into
    itself, or to a place where the gallery cannot have pictures.
    """
    places = Places.of(db)
    old, new = as_recorded(db, old), places.whole(new)
    if os.path.join(new, "").startswith(os.path.join(old, "")):
        raise GalleryError(f"{old}: cannot be moved to {new}, which is the same or below it")
    places.check(new)
    below = places.below(old)
    inside = [places.path(row) for (row,) in db.rows(f"SELECT path FROM pictures WHERE {BELOW}", below)]
    # If a folder is moved to one above it, a new path can be the old path of another picture.
    pairs = [(places.stored(new + path[len(old) :]), places.stored(path)) for path in sorted(inside, key=len)]
    there = {row for (row,) in db.rows("SELECT path FROM pictures")} - {stored for _, stored in pairs}
    db.run_each("DELETE FROM pictures WHERE path = ?", [[stored] for target, stored in pairs if target in there])
    db.run_each("UPDATE pictures SET path = ?, vanished = 0 WHERE path = ?", pairs)
    db.run(f"DELETE FROM disks WHERE {BELOW}", below)  # the next index records them again
    folders = [folder for folder in _folders(db) if os.path.join(folder, "").startswith(os.path.join(old, ""))]
    forget(db, old)
    remember(db, [new + folder[len(old) :] for folder in folders])
    return len(pairs)


def respell(db: Database, relative: bool) -> None:
    """Makes all paths of a gallery relative to its folder, or whole. Call it in a transaction.

    Raises GalleryError if a picture or folder is not below the gallery's folder.
    """
    before, folders = Places.of(db), _folders(db)
    if relative == bool(before.folder):
        return
    after = Places.beside(db.path) if relative else Places("")
    for folder in folders:
        after.check(folder)
    for table in ("pictures", "kinds"):
        paths = [row for (row,) in db.rows(f"SELECT path FROM {table}") if isinstance(row, bytes)]
        whole = [before.path(row) for row in paths]
        for path in whole if table == "pictures" else ():
            after.check(path)
        db.run_each(
            f"UPDATE {table} SET path = ? WHERE path = ?",
            [(after.stored(path), row) for path, row in zip(whole, paths, strict=True)],
        )
    db.run("DELETE FROM disks")  # the next index records them again
    db.set_meta(KEY, RELATIVE if relative else "whole")
    record(db, after, folders)


def moved(db: Database, since: str) -> list[tuple[str, str, int]]:
    """Missing folders whose pictures were all found elsewhere, among the pictures added since then.

    Each comes with the folder where they are now, and their number.
    """
    places = Places.of(db)
    pairs: dict[tuple[str, str], set[str]] = defaultdict(set)
    sql = (
        "SELECT old.path, new.path FROM pictures AS new JOIN pictures AS old ON old.hash = new.hash "
        "WHERE new.added >= ? AND new.error IS NULL AND new.vanished = 0 AND old.path <> new.path"
    )
    for old, new in db.rows(sql, [since]):
        if isinstance(old, bytes) and isinstance(new, bytes):
            pair = _folders_that_differ(places.path(old), places.path(new))
            if pair is not None:
                pairs[pair].add(places.path(old))
    found = []
    for (source, target), paths in pairs.items():
        sql = f"SELECT COUNT(*) FROM pictures WHERE {BELOW} AND error IS NULL"  # unreadable pictures tell nothing
        ((count,),) = db.rows(sql, places.below(source))
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
