"""Search among some of a gallery's pictures: below folders, of a time, unlike others."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from . import packed
from .database import Database
from .places import BELOW, Places
from .settings import Settings
from .snapshot import Match

# A date as text, compared up to its own length: 2024, 2024-05, 2024-05-31, 2024-05-31T12, ...
DATE = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d)?)?)?)?)?")
# When a picture was taken according to EXIF, or else when its file was changed, in local time.
CHANGED = "strftime('%Y-%m-%dT%H:%M:%S', pictures.mtime_ns / 1000000000, 'unixepoch', 'localtime')"
TAKEN = f"COALESCE(NULLIF({{taken}}, ''), {CHANGED})"

Array = np.ndarray


def is_date(text: str) -> bool:
    """Whether text is a date, or the beginning of one: a year, a month, a day, or a time of day."""
    whole = text + "0001-01-01T00:00:00"[len(text) :]
    with suppress(ValueError):
        return DATE.fullmatch(text) is not None and bool(datetime.fromisoformat(whole))
    return False


@dataclass(frozen=True)
class Filter:
    """Which pictures are looked at; by default all."""

    folders: tuple[str, ...] = ()  # absolute paths: only pictures at or below one of them
    since: str = ""  # the earliest date
    until: str = ""  # the latest date; includes the whole year, month or day

    def __post_init__(self) -> None:
        if bad := [date for date in (self.since, self.until) if date and not is_date(date)]:
            raise ValueError(f"not a date such as 2024, 2024-05 or 2024-05-31: {bad[0]!r}")

    def sql(self, places: Places, dated: bool) -> tuple[str, list[bytes | int | str]]:
        """A condition on ``pictures`` and ``contents``, and its values; ``dated``: whether contents have dates."""
        taken = TAKEN.format(taken="contents.taken" if dated else "NULL")
        conditions, values = ["1"], list[bytes | int | str]()
        if self.folders:
            conditions.append(f"({' OR '.join([BELOW] * len(self.folders))})")
            values += [value for folder in self.folders for value in places.below(folder)]
        if self.since:
            conditions.append(f"{taken} >= ?")
            values.append(self.since)
        if self.until:
            conditions.append(f"substr({taken}, 1, ?) <= ?")
            values += [len(self.until), self.until]
        return " AND ".join(conditions), values


def search(
    db: Database,
    settings: Settings,
    queries: Array,
    k: int,
    chosen: Filter,
    hashes: Sequence[Collection[bytes]],
    unlike: Array,
    skip_same: bool,
) -> list[list[Match]]:
    """The k nearest to each query of (Q, D) among the pictures chosen, nearest first, ties by path.

    Pictures that are nearer to one of ``unlike``, (M, D), than to the query are left out. ``hashes``: the contents that
    count as each query's own, left out if ``skip_same``. Reads the rows chosen once, a block at a time.
    """
    places = Places.of(db)
    condition, values = chosen.sql(places, db.has_column("contents", "taken"))
    length = packed.row_length(settings.dimension, settings.dtype)
    sql = (
        "SELECT path, pictures.hash, embedding FROM pictures JOIN contents ON contents.hash = pictures.hash "
        f"WHERE error IS NULL AND vanished = 0 AND length(embedding) = ? AND {condition} ORDER BY path"
    )
    found: list[list[tuple[float, bytes, bytes]]] = [[] for _ in queries]
    with db.cursor(sql, [length, *values]) as rows:
        while part := [row for _, row in zip(range(packed.BLOCK), rows, strict=False)]:
            part = [row for row in part if isinstance(row[0], bytes) and isinstance(row[2], bytes)]
            block = np.frombuffer(b"".join(blob for _, _, blob in part), np.uint8).reshape(len(part), length)
            good = np.isfinite(packed.squared_norms(block, settings.dtype))
            vectors = packed.decode(block, settings.dtype)
            others = [np.linalg.norm(vectors - other, axis=1) for other in unlike]
            for i, (query, own) in enumerate(zip(queries, hashes, strict=True)):
                distances = np.linalg.norm(vectors - query, axis=1)
                kept = np.all([good, *(distances <= other for other in others)], axis=0)
                near = [j for j in np.flatnonzero(kept).tolist() if not (skip_same and part[j][1] in own)]
                found[i] += [(float(distances[j]), part[j][0], part[j][1]) for j in near]
                found[i].sort(key=lambda item: item[:2])
                del found[i][k:]
    return [
        [Match(places.path(path), distance, hash in own) for distance, path, hash in nearest]
        for nearest, own in zip(found, hashes, strict=True)
    ]
