"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` only when the block ends without an error.

    It is written beside ``path`` under a private temporary name, synced to disk, given the mode that the umask allows
    and renamed: a stop at any moment leaves the old file, or none. Links are followed; what is a device or a pipe is
    written to as it is. Raises OSError, which names ``path``, where it cannot be written.
    """
    import tempfile  # takes 5 ms, which a command that writes no file need not pay

    target = os.path.realpath(path)
    if not os.fspath(path) or os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "Is a folder, not a file to write", os.fspath(path))
    if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
        with open(target, "wb") as file:
            yield file
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)[:50]}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    try:
        with os.fdopen(handle, "wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
