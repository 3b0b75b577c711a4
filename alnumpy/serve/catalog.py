"""The page's questions to a gallery besides searches: pictures by their content, the newest ones, folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from .. import packed
from ..database import Database
from ..filters import TAKEN, Filter
from ..moving import as_recorded
from ..places import Places
from ..settings import Settings

ASKED_FOR = 500  # paths in one statement
FOLDERS = 2000  # most folders that are listed
FINDABLE = "error IS NULL AND vanished = 0 AND typeof(path) = 'blob' AND length(pictures.hash) = 32"


class Shown(NamedTuple):
    """A picture as the page shows it."""

    path: str
    id: str  # SHA-256 of its content, in hexadecimal
    width: int  # pixels, upright
    height: int
    bytes: int
    date: str  # when it was taken according to EXIF, or else when the file was changed: ISO 8601, local time

    def details(self) -> dict[str, Any]:
        """All but the path, as fields of a JSON object."""
        return {"id": self.id, "width": self.width, "height": self.height, "bytes": self.bytes, "date": self.date}


class Unreadable(NamedTuple):
    """A picture without an embedding, and the reason."""

    path: str
    error: str


class Catalog:
    """Reads a gallery's file beside the gallery. For any number of threads."""

    def __init__(self, path: str):
        self.db = Database(path, False)
        self._dated = self.db.has_column("contents", "taken")

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    def of(self, paths: Iterable[str]) -> dict[str, Shown]:
        """The pictures among some paths that can be found, by path."""
        places = Places.of(self.db)
        names = [places.stored(path) for path in paths]
        found: list[Shown] = []
        for start in range(0, len(names), ASKED_FOR):
            part = names[start : start + ASKED_FOR]
            found += self._rows(f"path IN ({', '.join('?' * len(part))})", part)
        return {picture.path: picture for picture in found}

    def copies(self, id: str) -> list[Shown]:
        """All pictures of one content, by path."""
        return list(self._rows("pictures.hash = ? ORDER BY path", [bytes.fromhex(id)]))

    def embedding(self, id: str, settings: Settings) -> np.ndarray | None:
        """The embedding, float32 (D,), of a content; None if no picture that can be found has it."""
        sql = f"SELECT embedding FROM contents JOIN pictures ON pictures.hash = contents.hash WHERE {FINDABLE} "
        length = packed.row_length(settings.dimension, settings.dtype)
        for (blob,) in self.db.rows(sql + "AND contents.hash = ? LIMIT 1", [bytes.fromhex(id)]):
            if isinstance(blob, bytes) and len(blob) == length:
                row = np.frombuffer(blob, np.uint8)[None]
                if np.isfinite(packed.squared_norms(row, settings.dtype)[0]):
                    vector: np.ndarray = packed.decode(row, settings.dtype)[0]
                    return vector
        return None

    def newest(self, folders: Iterable[str], since: str, until: str, count: int, skip: int = 0) -> list[Shown]:
        """Pictures by when their files were changed, the latest first; filtered as by ``Gallery.search``."""
        chosen = Filter(tuple(as_recorded(self.db, folder) for folder in folders), since, until)
        places = Places.of(self.db)
        condition, values = chosen.sql(places, self._dated)
        # Dates are in the large table of contents, which is read only for them.
        contents = "JOIN contents ON contents.hash = pictures.hash" if since or until else ""
        sql = (
            f"SELECT path FROM pictures {contents} WHERE {FINDABLE} AND {condition} "
            "ORDER BY mtime_ns DESC, path LIMIT ? OFFSET ?"
        )
        paths = [places.path(path) for (path,) in self.db.rows(sql, [*values, count, skip])]
        found = self.of(paths)
        return [found[path] for path in paths if path in found]

    def __len__(self) -> int:
        """The number of pictures that can be found."""
        count: int = self.db.one(f"SELECT COUNT(*) FROM pictures WHERE {FINDABLE}")
        return count

    def folders(self) -> list[str]:
        """The folders with pictures and the folders above them, except folders that contain all pictures."""
        places = Places.of(self.db)
        rows = self.db.rows(f"SELECT path FROM pictures WHERE {FINDABLE}")
        folders = {os.path.dirname(places.path(path)) for (path,) in rows}
        top = ""
        with suppress(ValueError):  # there are none, or they are on different drives
            top = os.path.commonpath(folders)
        for folder in list(folders):
            while len(folder) > len(top) and (folder := os.path.dirname(folder)) not in folders:
                folders.add(folder)
        return sorted(folders)[:FOLDERS]

    def unreadable(self) -> list[Unreadable]:
        """Pictures without an embedding."""
        sql = "SELECT path, error FROM pictures WHERE error IS NOT NULL AND vanished = 0 AND typeof(path) = 'blob'"
        places = Places.of(self.db)
        return [Unreadable(places.path(path), str(error)) for path, error in self.db.rows(f"{sql} ORDER BY path")]

    def _rows(self, condition: str, values: Sequence[Any]) -> Iterator[Shown]:
        places = Places.of(self.db)
        taken = TAKEN.format(taken="contents.taken" if self._dated else "NULL")
        sql = (
            "SELECT path, pictures.hash, CAST(width AS INTEGER), CAST(height AS INTEGER), CAST(size AS INTEGER), "
            f"CAST({taken} AS TEXT) FROM pictures JOIN contents ON contents.hash = pictures.hash "
            f"WHERE {FINDABLE} AND {condition}"
        )
        for path, hash, *details in self.db.rows(sql, values):
            yield Shown(places.path(path), hash.hex(), *details)
