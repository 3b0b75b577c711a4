"""What is to be done about a gallery's pictures: what lies in the folders, beside what is recorded.

``find`` walks the folders. ``plan`` decides, and does nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, Protocol

from . import images
from .errors import GalleryError

EMPTIED = "no pictures there now; is its disk mounted? If they are gone for good: alnumpy remove FOLDER --db FILE"
NOWHERE = "No such file or folder; if it is gone for good: alnumpy remove PATH --db FILE"
WITHOUT_PICTURES = "no pictures in this folder or below it"

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Stamp = tuple[int, int]  # a file's size in bytes and its modification time in nanoseconds


@dataclass
class Found:
    """What lies in the folders. Paths are absolute."""

    paths: set[str] = field(default_factory=set)  # pictures
    roots: tuple[str, ...] = ()  # the folders that were walked, each with a separator at its end
    failed: list[tuple[str, str]] = field(default_factory=list)  # path and reason


class Recorded(NamedTuple):
    """A file as the gallery has it."""

    stamp: Stamp | None  # None where it is to be read again, whatever it is now
    error: str | None = None
    missing: bool = False


@dataclass
class Plan:
    """What is to be done: lists of paths."""

    read: list[str] = field(default_factory=list)  # new or changed
    keep: list[str] = field(default_factory=list)  # unchanged
    back: list[str] = field(default_factory=list)  # those of ``keep`` that are marked as missing
    missing: list[str] = field(default_factory=list)  # to be marked so
    prune: list[str] = field(default_factory=list)  # those of ``missing`` that may be removed
    failed: list[tuple[str, str]] = field(default_factory=list)  # path and reason, to be reported


class Disk(Protocol):
    """What ``plan`` asks about files."""

    def stamp(self, path: str) -> Stamp | None:
        """A file's size and time; None where it cannot be reached."""

    def is_missing(self, path: str) -> bool | None:
        """Whether there is no such file; None where the system does not tell."""

    def emptied(self, folder: str) -> str | None:
        """The folder, or the one above it, that all is gone from, as a disk leaves it that is not mounted, or None."""


class RealDisk:
    """The files of this computer."""

    def __init__(self) -> None:
        self.emptied = cache(_emptied)  # many may be gone from one folder

    def stamp(self, path: str) -> Stamp | None:
        """A file's size and time; None where it cannot be reached."""
        with suppress(OSError, ValueError):
            return stamp_of(os.stat(path))
        return None

    def is_missing(self, path: str) -> bool | None:
        """Whether there is no such file; None where the system does not tell, as of a folder that may not be entered.

        A folder in the place of a picture is none.
        """
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):
            return None
        return os.path.isdir(path)


def find(folders: Paths) -> Found:
    """Pictures below folders, and single files."""
    found = Found()
    roots = []

    def fail(error: OSError) -> None:
        found.failed.append((error.filename, error.strerror or "cannot be listed"))

    for folder in map(os.path.abspath, several(folders)):
        if os.path.isdir(folder):
            roots.append(os.path.join(folder, ""))
            for parent, _, names in os.walk(folder, onerror=fail):
                found.paths.update(os.path.join(parent, name) for name in names if images.is_picture(name))
        elif os.path.exists(folder) or (os.path.islink(folder) and images.is_picture(folder)):
            found.paths.add(folder)
        else:  # perhaps a disk that is not mounted: nothing can be said about what is below
            found.failed.append((folder, NOWHERE))
    found.roots = tuple(roots)
    return found


def plan(found: Found, recorded: Mapping[str, Recorded], disk: Disk, *, prune: bool) -> Plan:
    """What to read, keep, mark, remove and report.

    A picture below the folders walked that is missing may be removed, unless its folder is empty, as that of a disk
    that is not mounted. Such a folder is reported when a picture is first missing, and when it should be removed.
    """
    decided = Plan(failed=list(found.failed))
    paths = set(found.paths)
    for path in recorded:
        if path.startswith(found.roots) and path not in paths:
            missing = disk.is_missing(path)
            if missing:
                decided.missing.append(path)
            elif missing is False:  # found by another way: named by itself, or below a link to a folder
                paths.add(path)

    known = [*paths, *(os.path.join(name, "") for name, _ in found.failed)]  # what cannot be listed may hold pictures
    bare = [root for root in found.roots if root and not any(path.startswith(root) for path in known)]
    reasons = {os.path.dirname(root): WITHOUT_PICTURES for root in bare}
    for path in decided.missing:
        emptied = next((os.path.dirname(root) for root in bare if path.startswith(root)), None)
        emptied = emptied or disk.emptied(os.path.dirname(path))
        if emptied is None:
            if prune:
                decided.prune.append(path)
        elif prune or not recorded[path].missing:  # else it was told before
            reasons[emptied] = EMPTIED
    decided.failed += reasons.items()

    for path in sorted(paths):
        then = recorded.get(path)
        if then is None or then.stamp is None or then.stamp != disk.stamp(path):
            decided.read.append(path)
            continue
        decided.keep.append(path)
        if then.missing:
            decided.back.append(path)
        if then.error:
            decided.failed.append((path, then.error))
    return decided


def several(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    """One path or several as several. Raises GalleryError for an empty one."""
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if "" in listed:  # as of a variable that is not set; it would mean the current folder
        raise GalleryError("a path is empty; the current folder is: .")
    return listed


def stamp_of(status: os.stat_result) -> Stamp:
    """A file's size, and its modification time in nanoseconds as far as SQLite can hold it: from 1677 to 2262."""
    return status.st_size, min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)


def _emptied(folder: str) -> str | None:
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        if os.path.islink(folder):  # to what is not there now
            return folder
        folder = os.path.dirname(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        return folder if next(entries, None) is None else None
    return None
