"""How a gallery's file is read: one connection and one snapshot for all threads and galleries of it in a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from weakref import WeakValueDictionary

from .database import Database
from .settings import Settings, check_unchanged
from .snapshot import Snapshot

_opening = Lock()
_readers: WeakValueDictionary[tuple[object, ...], Reader] = WeakValueDictionary()


class Reader:
    """Reads one file. Made by ``open_reader``, and closed by the last call of ``close``."""

    def __init__(self, path: str):
        self.db = Database(path, False)
        self.users = 0
        self._snapshot: Snapshot | None = None
        self._version = -1  # version of the data when they were read

    def close(self) -> None:
        """Gives up one use of the file; the last one closes it."""
        with _opening:
            self.users -= 1
            if self.users == 0:
                self._snapshot = None
                self.db.close()

    @contextmanager
    def snapshot(self, settings: Settings) -> Iterator[Snapshot]:
        """All that can be found, for use inside the block, while other threads wait. Raises GalleryError."""
        with self.db.reading():
            version = self.db.one("PRAGMA data_version")  # changes when other connections write
            if self._snapshot is None or version != self._version:
                self._snapshot = None  # frees its memory first
                check_unchanged(self.db, settings)
                self._snapshot = Snapshot(self.db, settings)
                self._version = version
            elif self._snapshot.settings != settings:
                check_unchanged(self.db, settings)
            yield self._snapshot


def open_reader(path: str) -> Reader:
    """The reader of a gallery's file; a new one if this process does not have it open. Raises GalleryError."""
    with _opening:
        identity: tuple[object, ...] = ()
        with suppress(OSError):  # opening the file will explain it
            found = os.stat(path)
            identity = found.st_dev, found.st_ino
        key = os.getpid(), path, *identity  # SQLite's connections must not be used after a fork
        reader = _readers.get(key)
        if reader is None or reader.users == 0:
            reader = Reader(path)
            if not reader.db.immutable:  # an immutable connection does not see changes
                _readers[key] = reader
        reader.users += 1
        return reader
