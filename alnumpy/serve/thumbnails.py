"""Pictures made smaller, as JPEGs that hold nothing but pixels, and kept on disk within a limit.

A picture is asked for by its content, and the file that is made smaller must have that content. So a file that is not a
picture of the gallery is never shown, wherever its path leads by now.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import IO, Any

from PIL import Image

from .. import decode, pixels

SMALL, LARGE = 400, 1600  # sides in pixels
QUALITY = 82
AT_ONCE = 4  # pictures made smaller at the same time; others wait
CACHE_FILE = "thumbnails.db"
PAGE = 4096  # bytes of SQLite's pages
WAIT = 5.0  # seconds to wait for another process's transaction


class Cache:
    """JPEGs in one SQLite file of limited size; the oldest are removed. For any number of threads and processes.

    Nothing is kept if the file cannot be written; a damaged file is begun anew.
    """

    def __init__(self, path: Path | None, limit: int):
        self.path = path
        self.pages = max(16, limit // PAGE)
        self._lock = Lock()
        self._db = self._open()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def get(self, id: str, side: int) -> bytes | None:
        """The JPEG of a content, or None."""
        rows = self._run("SELECT jpeg FROM thumbnails WHERE hash = ? AND side = ?", [bytes.fromhex(id), side])
        return next((jpeg for (jpeg,) in rows if isinstance(jpeg, bytes)), None)

    def put(self, id: str, side: int, jpeg: bytes) -> None:
        """Keeps a JPEG, unless it is larger than the file may be."""
        if len(jpeg) < (self.pages - 16) * PAGE:
            self._run("INSERT OR REPLACE INTO thumbnails (hash, side, jpeg) VALUES (?, ?, ?)",
                      [bytes.fromhex(id), side, jpeg])  # fmt: skip

    def _run(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement; none if the file fails."""
        with self._lock:
            while self._db is not None:
                try:
                    return self._db.execute(sql, values).fetchall()
                except sqlite3.OperationalError as error:
                    if "full" not in str(error) or not self._make_room():
                        return []
                except sqlite3.DatabaseError:  # damaged
                    self._db.close()
                    self._db = self._open(anew=True)
        return []

    def _make_room(self) -> int:
        """Removes the oldest tenth. Returns how many."""
        oldest = "SELECT number FROM thumbnails ORDER BY number LIMIT 1 + (SELECT COUNT(*) FROM thumbnails) / 10"
        with suppress(sqlite3.Error):
            if self._db is not None:
                return self._db.execute(f"DELETE FROM thumbnails WHERE number IN ({oldest})").rowcount
        return 0

    def _open(self, anew: bool = False) -> sqlite3.Connection | None:
        """The file, or None if it cannot be written. A file that is damaged, or larger than allowed, is begun anew."""
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if anew:
                self.path.unlink(missing_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # thumbnails are as private as the pictures
            db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error):
            return None
        try:
            db.execute(f"PRAGMA page_size = {PAGE}")
            db.execute("PRAGMA synchronous = OFF")  # a file damaged by a power cut is begun anew
            (allowed,) = db.execute(f"PRAGMA max_page_count = {self.pages}").fetchone()
            db.execute(
                "CREATE TABLE IF NOT EXISTS thumbnails ("
                "number INTEGER PRIMARY KEY, hash BLOB, side INTEGER, jpeg BLOB, UNIQUE (hash, side))"
            )
            db.execute("SELECT number, hash, side, jpeg FROM thumbnails LIMIT 1").fetchall()
            if allowed > self.pages:
                raise sqlite3.DatabaseError("larger than allowed")
        except sqlite3.Error as error:
            db.close()
            usable = not anew and not isinstance(error, sqlite3.OperationalError)
            return self._open(anew=True) if usable else None
        return db


class Thumbnails:
    """Makes and keeps small versions of a gallery's pictures."""

    def __init__(self, cache: Cache, max_pixels: int):
        self.cache = cache
        self.max_pixels = max_pixels
        self._making = BoundedSemaphore(AT_ONCE)

    def get(self, id: str, side: int, paths: Iterable[str]) -> bytes | None:
        """The JPEG of a content that files with these paths had; None if none of them has it any more.

        Raises ImageError if it cannot be decoded.
        """
        if (kept := self.cache.get(id, side)) is not None:
            return kept
        for path in paths:
            with self._making, opened(path, id) as file:
                if file is not None:
                    made = smaller(file, path, side, self.max_pixels)
                    self.cache.put(id, side, made)
                    return made
        return None


@contextmanager
def opened(path: str, id: str) -> Iterator[IO[bytes] | None]:
    """A file that has a content; None if it cannot be read, or has another content by now."""

    def at_once(name: str, flags: int) -> int:  # a pipe in the picture's place would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with ExitStack() as stack:
        found = None
        with suppress(OSError, ValueError):  # ValueError: a NUL byte in the name
            file = stack.enter_context(open(path, "rb", opener=at_once))
            found = file if _hash(file) == id else None
            file.seek(0)
        yield found


def _hash(file: IO[bytes]) -> str:
    """SHA-256 in hexadecimal of a regular file; a device may have no end."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return ""
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def smaller(file: IO[bytes], name: str, side: int, max_pixels: int) -> bytes:
    """A picture at most ``side`` pixels wide and high, upright, in sRGB, as a JPEG. Raises ImageError."""

    def shrink(image: Image.Image) -> Image.Image:
        image.thumbnail((side, side))
        return pixels.to_srgb(image)

    image, _ = decode.decode(file, name, max_pixels, side, shrink)
    image.info.clear()  # otherwise a comment would be written as well
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
