"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

unfinished: set[str] = set()  # temporary files in use; __main__.leave removes them when it ends the process


def data_folder() -> Path:
    """The folder for a user's own data, which may not exist yet."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        home = os.path.expanduser("~/Library/Application Support")
    else:
        home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home, "alnumpy")


def cache_folder() -> Path | None:
    """The folder for data that can be made again, which may not exist yet; None if there is no place for it."""
    base = os.environ.get("ALNUMPY_CACHE_DIR")
    if not base:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        base = os.path.join(cache, "alnumpy") if os.path.isabs(cache) else None
    return Path(base).absolute() if base else None


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o664) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` only when the block ends without an error.

    It is written beside ``path`` under a private temporary name, synced to disk, given ``mode`` less the umask, and
    renamed: a stop at any moment leaves the old file, or none. Links are followed; a device or a pipe is
    written to directly. Raises OSError, which names ``path``, if it cannot be written.
    """
    target = os.path.realpath(path)
    if not os.fspath(path) or os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "Is a folder, not a file to write", os.fspath(path))
    if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
        with open(target, "wb") as file:
            yield file
        return
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:50]}.{os.urandom(8).hex()}")
    unfinished.add(temporary)  # before the file exists: a signal may come at any moment
    try:
        with open(temporary, "xb+", opener=_private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, mode & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        with suppress(FileNotFoundError):  # it has been renamed, or was never made
            os.unlink(temporary)
        unfinished.discard(temporary)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
