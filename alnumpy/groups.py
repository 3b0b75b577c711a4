"""Groups of pictures that look alike, each each led by the one to keep."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .database import Database
from .filters import TAKEN
from .listing import shown
from .moving import as_recorded
from .places import Places

KEEP = ("pixels", "bytes", "oldest", "newest")
# Folders whose pictures were thrown away: of freedesktop.org, Windows, macOS, and NAS of Synology and QNAP.
TRASH = re.compile(r"/(\.?Trash(es)?(-\d+)?|\$RECYCLE\.BIN|RECYCLER|#recycle|@Recycle)/", re.IGNORECASE)


class Member(NamedTuple):
    """A picture of a group."""

    path: str
    distance: float  # to the first of the group
    same: bool  # whether it is identical to the first
    width: int  # pixels
    height: int
    bytes: int
    date: str  # when it was taken according to EXIF, or else when the file was changed: ISO 8601, local time
    kept: bool  # the first of the group, or below a reference folder

    @classmethod
    def of(cls, p: _Picture, distance: float, first: _Picture) -> Member:
        """A picture as a member of the group that another one leads."""
        kept = p is first or p.reference
        return cls(p.path, distance, p.content == first.content, p.width, p.height, p.bytes, p.date, kept)


class _Picture(NamedTuple):
    content: bytes
    path: str
    width: int
    height: int
    bytes: int
    date: str
    reference: bool


def duplicates(
    db: Database,
    near: Callable[[bytes], Sequence[tuple[bytes, float]]],
    keep: str = "pixels",
    reference: Sequence[str] = (),
) -> list[list[Member]]:
    """Groups of a picture and all pictures near it, made in the order of which to keep, sorted by the first's path.

    ``near``: gives the contents within some distance of a content, and how far they are: so no two pictures of a group
    are farther apart than twice that distance. Pictures below ``reference`` folders come first, and with such folders
    groups without one of these pictures are left out; then come pictures with the most pixels, then bytes, then the
    oldest (``keep`` says which counts first); pictures in a trash folder come last. Of several links to one file the
    first counts, and missing files are left out if an identical file exists.
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, not {keep!r}")
    copies: dict[bytes, list[_Picture]] = defaultdict(list)
    for picture in sorted(_pictures(db, reference), key=lambda picture: _order(picture, keep)):
        copies[picture.content].append(picture)  # contents in the order of their first pictures
    rank = {content: i for i, content in enumerate(copies)}
    taken: set[bytes] = set()
    groups = []
    for content, pictures in copies.items():
        if content in taken:
            continue
        others = sorted((rank[other], other, apart) for other, apart in near(content) if other in rank)
        if not others and len(pictures) == 1:
            continue
        distances = {content: 0.0} | {other: apart for _, other, apart in others if other not in taken}
        taken.update(distances)
        found = shown(db, (picture for member in distances for picture in copies[member]))
        if len(found) > 1 and (found[0].reference or not reference):
            groups.append([Member.of(p, distances[p.content], found[0]) for p in found])
    return sorted(groups, key=lambda group: os.fsencode(group[0].path))


def _pictures(db: Database, reference: Sequence[str]) -> Iterator[_Picture]:
    """All pictures that can be found."""
    when = TAKEN.format(taken="contents.taken" if db.has_column("contents", "taken") else "NULL")
    places = Places.of(db)
    below = tuple(os.path.join(as_recorded(db, folder), "") for folder in reference)
    sql = (
        f"SELECT pictures.hash, path, width, height, size, {when} FROM pictures "
        "JOIN contents ON contents.hash = pictures.hash WHERE error IS NULL AND vanished = 0"
    )
    for hash, path, *numbers, date in db.rows(sql):
        if isinstance(path, bytes) and isinstance(hash, bytes):  # otherwise the row is damaged
            name = places.path(path)
            width, height, size = (number if isinstance(number, int) else 0 for number in numbers)
            taken = date if isinstance(date, str) else ""
            yield _Picture(hash, name, width, height, size, taken, name.startswith(below))


def _order(picture: _Picture, keep: str) -> tuple[object, ...]:
    """The key that sorts pictures by which to keep."""
    date = int(re.sub(r"\D", "", picture.date) or 0)
    keys = {"pixels": -picture.width * picture.height, "bytes": -picture.bytes, "oldest": date, "newest": -date}
    rest = [keys[name] for name in ("pixels", "bytes", "oldest")]
    trash = TRASH.search(picture.path.replace(os.sep, "/")) is not None
    return (not picture.reference, trash, keys[keep], *rest, os.fsencode(picture.path))
