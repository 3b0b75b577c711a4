"""How a gallery's file stores paths: absolute, or relative to its own folder, so that both can be moved together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import GalleryError

if TYPE_CHECKING:
    from .database import Database

KEY = "paths"  # its key in the table ``meta``
RELATIVE = "relative"  # its value if paths are relative
BELOW = "(path = ? OR substr(path, 1, ?) = ?)"  # a picture, or all below a folder

# Relative paths begin with "./", unlike all whole paths, and have "/" on all systems. "." is the gallery's folder.


class Places(NamedTuple):
    """Translates between whole paths and stored ones."""

    folder: str  # the gallery's folder if paths are relative to it, else ""

    @classmethod
    def of(cls, db: Database) -> Places:
        """The paths of a gallery as it is recorded."""
        return cls.beside(db.path) if db.meta().get(KEY) == RELATIVE else cls("")

    @classmethod
    def beside(cls, path: str) -> Places:
        """The paths of a gallery that keeps them relative."""
        return cls(os.path.dirname(os.path.realpath(path)))

    def is_inside(self, path: str) -> bool:
        """Whether a whole path is one that the gallery can have."""
        return os.path.join(path, "").startswith(os.path.join(self.folder, ""))

    def whole(self, path: str | os.PathLike[str]) -> str:
        """A path from the root; without links if it leads through them into the folder that paths are relative to."""
        path = os.path.abspath(path)
        if self.folder and not self.is_inside(path) and self.is_inside(real := os.path.realpath(path)):
            return real
        return path

    def check(self, path: str) -> None:
        """Raises GalleryError for a whole path that the gallery cannot have."""
        if self.folder and not self.is_inside(path):
            raise GalleryError(
                f"{path}: not below {self.folder}, to which this gallery keeps paths relative; move the gallery's file "
                "above it, or keep whole paths: alnumpy index --no-relative"
            )

    def stored(self, path: str) -> bytes:
        """A whole path as it is stored; a folder above the gallery's stands for everything below that folder."""
        if self.folder:
            if os.path.join(self.folder, "").startswith(os.path.join(path, "")):
                return b"."
            if self.is_inside(path):
                below = path[len(os.path.join(self.folder, "")) :]
                return b"./" + os.fsencode(below.replace(os.sep, "/"))
        return os.fsencode(path)

    def path(self, stored: object) -> str:
        """The whole path of a stored one, as text even if a damaged database holds something else."""
        if not isinstance(stored, bytes):
            return repr(stored)
        name = os.fsdecode(stored)
        if self.folder and name.startswith("."):
            return os.path.join(self.folder, name[2:].replace("/", os.sep)) if name != "." else self.folder
        return name

    def below(self, path: str) -> list[bytes | int]:
        """The values of BELOW for a whole path."""
        stored = self.stored(path)
        folder = stored + b"/" if self.folder and stored[:1] == b"." else os.fsencode(os.path.join(path, ""))
        return [stored, len(folder), folder]

    def stored_mount(self, mount: str) -> bytes:
        """The place where a disk is mounted, as it is stored; often above the gallery's folder, and moved with it."""
        return os.fsencode(os.path.relpath(mount, self.folder).replace(os.sep, "/") if self.folder else mount)

    def mount(self, stored: bytes) -> str:
        """The inverse of ``stored_mount``."""
        mount = os.fsdecode(stored)
        return os.path.abspath(os.path.join(self.folder, mount.replace("/", os.sep))) if self.folder else mount
