"""Decides what to do about a gallery's pictures by comparing the folders with the records.

``find`` walks the folders by the rules of what to leave out. ``plan`` decides, and changes nothing itself. A picture
that may only be out of reach is not removed:

- a file that cannot be listed or looked at does not count as missing;
- pictures are not removed from a folder that is empty now, as the folder of a disk that is not mounted would be;
- nor are those recorded on a disk that is not there now. It is there if a file system of the recorded name is mounted
  at the recorded place. Many file systems have no lasting name, network shares among them, and some change it: such a
  disk is known by its pictures, and is there if one of those recorded is still in its place;
- nor are those of a folder that is missing as a whole, if it stood at the top of the folders walked.

All of these are named, with the command that removes them.
"""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from functools import cache
from typing import NamedTuple, Protocol

from . import formats, images
from .errors import GalleryError

REMOVE = "alnumpy remove FOLDER --db FILE"
EMPTIED = f"no pictures there now; is its disk mounted? If they were deleted: {REMOVE}"
AWAY = f"its disk is not there now; if its pictures were deleted: {REMOVE}"
GONE = f"missing as a whole; if it was deleted: {REMOVE}"
NOWHERE = "No such file or folder"
DELETED = f"{NOWHERE}; if it was deleted: alnumpy remove PATH --db FILE"
WITHOUT_PICTURES = "no pictures in this folder or below it"
STILL = 10  # seconds after the last write to a file from which on it counts as complete

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# Names of files and folders that hold no pictures of one's own: hidden ones, thumbnails and bins of NAS and desktops,
# and Lightroom's previews; upper and lower case alike.
HIDDEN = (".*", "@eaDir", "@__thumb", "#recycle", "$RECYCLE.BIN", "lost+found", "SYNOFILE_THUMB_*", "*.lrdata")
NO_MEDIA = ".nomedia"  # a file of this name marks a folder without pictures

_hidden = re.compile("|".join(map(translate, HIDDEN)), re.I)


@dataclass(frozen=True)
class Rules:
    """What to leave out below a folder that is indexed; the folder itself is taken under any name."""

    # Patterns for fnmatch: for a name, or if they have a slash for a path below the folder.
    exclude: tuple[str, ...] = ()
    hidden: bool = False  # whether to take files that HIDDEN and NO_MEDIA leave out

    def leave_out(self, name: str, below: str) -> bool:
        """Whether a file or folder is left out, from its name and its path below the folder that is indexed."""
        if not self.hidden and _hidden.match(name):
            return True
        return any(fnmatchcase(below if "/" in pattern else name, pattern.strip("/")) for pattern in self.exclude)


class Stamp(NamedTuple):
    """What identifies a file as unchanged; times in nanoseconds, within the range of SQLite: 1677 to 2262."""

    size: int
    mtime_ns: int
    ctime_ns: int | None = None  # None if it was not recorded: then the others decide

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp in a file's status."""
        times = (min(max(time, -(2**63)), 2**63 - 1) for time in (status.st_mtime_ns, status.st_ctime_ns))
        return cls(status.st_size, *times)

    def fits(self, now: Stamp) -> bool:
        """Whether a file recorded with this stamp has not changed."""
        return self[:2] == now[:2] and self.ctime_ns in (None, now.ctime_ns)


class Volume(NamedTuple):
    """The disk that a folder lies on."""

    mount: str  # the highest folder above the folder on that disk
    name: str  # the UUID or number of its file system, or "" if it has none that lasts


class Kind(NamedTuple):
    """The kind of a file whose name does not show it, from its first bytes; valid for a size and time."""

    size: int
    mtime_ns: int
    kind: str  # a key of formats.KINDS, or ""


@dataclass
class Found:
    """What lies in the folders. Paths are absolute."""

    paths: set[str] = field(default_factory=set)  # pictures
    roots: tuple[str, ...] = ()  # the folders that were walked, each with a separator at its end
    failed: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    refused: dict[str, str] = field(default_factory=dict)  # named files that are not pictures, with the reason
    rules: Rules = field(default_factory=Rules)  # the rules of what was left out
    silent: set[str] = field(default_factory=set)  # folders that were left out because of NO_MEDIA
    kinds: dict[str, Kind] = field(default_factory=dict)  # kinds to be remembered

    def passed_over(self) -> dict[str, int]:
        """Numbers of files that are not read, by kind."""
        return passed_over(Counter(known.kind for known in self.kinds.values()))


class Recorded(NamedTuple):
    """A file as the gallery has it."""

    stamp: Stamp
    error: str | None = None
    missing: bool = False  # whether it was missing when its folder was last walked
    left_out: bool = False
    again: bool = False  # whether to read it even if it has not changed


@dataclass
class Plan:
    """What is to be done: lists of paths."""

    read: list[str] = field(default_factory=list)  # new or changed
    keep: list[str] = field(default_factory=list)  # unchanged
    back: list[str] = field(default_factory=list)  # pictures in ``keep`` that are marked as missing or left out
    missing: list[str] = field(default_factory=list)  # to be marked as missing
    left_out: list[str] = field(default_factory=list)  # to be marked as left out
    prune: list[str] = field(default_factory=list)  # pictures in ``missing`` that may be removed
    failed: list[tuple[str, str]] = field(default_factory=list)  # path and reason, to be reported
    respelled: dict[str, str] = field(default_factory=dict)  # the present spelling of recorded paths
    stamps: dict[str, Stamp] = field(default_factory=dict)  # complete stamps for ``keep``
    volumes: dict[str, Volume] = field(default_factory=dict)  # the disks of the folders in ``read`` and ``keep``
    renamed: dict[Volume, Volume] = field(default_factory=dict)  # disks whose name has changed


class Disk(Protocol):
    """The questions that ``plan`` asks about files."""

    def stamp(self, path: str) -> Stamp | None:
        """A file's size and times; None if it cannot be reached."""

    def is_missing(self, path: str) -> bool | None:
        """Whether there is no such file; None if the system does not tell."""

    def exists(self, path: str) -> bool:
        """Whether there is a file, a folder or a link."""

    def emptied(self, folder: str) -> str | None:
        """The folder, or the one above it, that is empty or missing, as after an unmount; None if there is none."""

    def volume(self, folder: str) -> Volume:
        """The disk that a folder lies on, or the nearest one above it that is there."""


class RealDisk:
    """The files of this computer. Answers about folders are kept."""

    def __init__(self) -> None:
        self.emptied = cache(_emptied)
        self.exists = cache(os.path.lexists)
        self._device = cache(_device)
        self._mount = cache(self._find_mount)
        self._names = cache(_file_systems)

    def stamp(self, path: str) -> Stamp | None:
        """A file's size and times; None if it cannot be reached."""
        with suppress(OSError, ValueError):
            return Stamp.of(os.stat(path))
        return None

    def is_missing(self, path: str) -> bool | None:
        """Whether there is no such file; None if the system does not tell, as in a folder that may not be entered.

        A folder in the place of a picture counts as a missing picture.
        """
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):
            return None
        return os.path.isdir(path)

    def volume(self, folder: str) -> Volume:
        """The disk that a folder lies on, or the nearest one above it that is there."""
        mount, device = self._mount(folder)
        return Volume(mount, self._names().get(device, f"{device:x}" if os.name == "nt" else ""))

    def _find_mount(self, folder: str) -> tuple[str, int]:
        device, above = self._device(folder), os.path.dirname(folder)
        if above == folder:
            return folder, device or 0
        mount = self._mount(above)
        return mount if device in (None, mount[1]) else (folder, device)


def find(folders: Paths, rules: Rules | None = None, kinds: Mapping[str, Kind] | None = None) -> Found:
    """Pictures below folders, and single files. ``kinds``: the remembered kinds of files without a telling name."""
    found = Found(rules=rules or Rules())
    roots = []
    for folder in map(os.path.abspath, several(folders)):
        if os.path.isdir(folder):
            roots.append(os.path.join(folder, ""))
            for path in _walk(folder, found):
                kind = _kind(path, kinds or {}, found)
                if kind and formats.readable(kind):
                    found.paths.add(path)
        elif os.path.exists(folder) or (os.path.islink(folder) and images.is_picture(folder)):
            if fault := _fault(folder):
                found.refused[folder] = fault
            else:
                found.paths.add(folder)
        else:  # perhaps its disk is not mounted: nothing is known about files below it
            found.failed.append((folder, NOWHERE))
    found.roots = tuple(roots)
    return found


def _fault(path: str) -> str:
    """Why a file that was named is not a picture, as far as its first bytes tell; "" if it may be one."""
    with suppress(OSError, ValueError):  # a file that cannot be read is reported when that is tried
        return images.fault(path) if os.path.isfile(path) else ""
    return ""


def _walk(root: str, found: Found) -> Iterator[str]:
    """The files below a folder that no rule leaves out; links to folders are not followed."""
    start, rules = len(os.path.join(root, "")), found.rules
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError as error:
            found.failed.append((folder, error.strerror or "cannot be listed"))
            continue
        if not rules.hidden and folder != root and any(entry.name == NO_MEDIA for entry in entries):
            found.silent.add(folder)
            continue
        for entry in entries:
            if rules.leave_out(entry.name, entry.path[start:].replace(os.sep, "/")):
                continue
            try:
                link = entry.is_symlink()
                is_folder = os.path.isdir(entry.path) if link else entry.is_dir()
            except OSError as error:
                found.failed.append((entry.path, error.strerror or "cannot be looked at"))
                continue
            if not is_folder:
                yield entry.path
            elif not link:
                waiting.append(entry.path)


def _kind(path: str, kinds: Mapping[str, Kind], found: Found) -> str | None:
    """The kind of a file; from its first bytes if its name does not show it and they were not read before."""
    kind = "companion" if images.is_companion(path) else formats.by_name(path)
    if kind is not None and (formats.readable(kind) or not formats.KINDS[kind].picture):
        return kind
    with suppress(OSError, ValueError):
        size, mtime_ns, _ = Stamp.of(os.stat(path))
        known = kinds.get(path)
        if known is None or known[:2] != (size, mtime_ns):
            known = Kind(size, mtime_ns, kind or images.kind_of_file(path) or "")
        found.kinds[path] = known
        return known.kind
    return kind


def plan(
    found: Found,
    recorded: Mapping[str, Recorded],
    volumes: Mapping[str, Volume],
    disk: Disk,
    *,
    named: Iterable[str] = (),
    prune: bool = False,
    rehash: bool = False,
) -> Plan:
    """What to read, keep, mark, remove and report.

    ``recorded``: the pictures of the gallery; ``volumes``: the disks that their folders were on; ``named``: folders
    that were walked earlier, as ``found.roots`` now. ``rehash``: unchanged files are read as well.
    """
    named = set(named)
    paths = found.paths | (found.refused.keys() & recorded.keys())  # a picture that is now something else is recorded
    decided = Plan(failed=[(name, reason) for name, reason in found.refused.items() if name not in paths])
    for name, reason in found.failed:
        if reason == NOWHERE and (os.path.join(name, "") in named or _holds(name, recorded)):
            reason = DELETED
        decided.failed.append((name, reason))
    # A folder that cannot be listed may hold pictures; if it does not exist, each of its recorded pictures is checked.
    unlisted = tuple(os.path.join(name, "") for name, reason in found.failed if reason != NOWHERE)
    walked = tuple(filter(None, found.roots))  # elsewhere it is unknown what the rules leave out
    missing: list[str] = []
    for path, then in recorded.items():
        if not path.startswith(found.roots) or path in paths:
            continue
        if _is_left_out(path, found):
            if not then.left_out:
                decided.left_out.append(path)
        elif not path.startswith(unlisted) and (path.startswith(walked) or not then.left_out):
            lost = disk.is_missing(path)
            if lost:
                missing.append(path)
            elif lost is False:  # the file exists elsewhere: named by itself, or below a link to a folder
                paths.add(path)

    decided.respelled = respelled(paths - recorded.keys(), missing)
    spelled = {new: recorded[old] for old, new in decided.respelled.items()}
    decided.missing = [path for path in missing if path not in decided.respelled]
    in_place = set()  # disks with a picture that is still in its place
    for path in sorted(paths):
        folder = os.path.dirname(path)
        if folder not in decided.volumes:
            decided.volumes[folder] = disk.volume(folder)
        known, now = recorded.get(path) or spelled.get(path), disk.stamp(path)
        if known and now and known.stamp[:2] == now[:2] and folder in volumes:
            in_place.add(volumes[folder])
        if known is None or known.again or rehash or now is None or not known.stamp.fits(now):
            decided.read.append(path)
            continue
        decided.keep.append(path)
        if known.stamp != now:
            decided.stamps[path] = now
        if known.missing or known.left_out:
            decided.back.append(path)
        if known.error:
            decided.failed.append((path, known.error))

    known_paths = [*paths, *(os.path.join(name, "") for name, _ in found.failed)]
    bare = [root for root in found.roots if root and not any(path.startswith(root) for path in known_paths)]
    reasons = {os.path.dirname(root): WITHOUT_PICTURES for root in bare}
    away: dict[Volume, bool] = {}
    for path in decided.missing:
        folder = os.path.dirname(path)
        kept, reason = next((os.path.dirname(root) for root in bare if path.startswith(root)), None), EMPTIED
        if kept is None and (volume := volumes.get(folder)):
            if volume not in away:
                now_there = disk.volume(volume.mount)
                certain = volume.name or volume.mount == os.path.dirname(volume.mount)  # / is always mounted
                away[volume] = volume not in in_place and not (volume == now_there and certain)
                if volume != now_there and not away[volume]:
                    decided.renamed[volume] = now_there
            if away[volume]:
                kept, reason = volume.mount, AWAY
        kept = kept or disk.emptied(folder)
        if kept is None and prune:
            kept, reason = _missing_as_a_whole(folder, {*found.roots, *named}, disk), GONE
        if kept is None:
            if prune:
                decided.prune.append(path)
        elif prune or not recorded[path].missing:  # otherwise an earlier run has reported it
            reasons[kept] = reason
    decided.failed += reasons.items()
    return decided


def _holds(name: str, recorded: Iterable[str]) -> bool:
    """Whether a picture, or one below a folder, is recorded."""
    below = os.path.join(name, "")
    return any(path == name or path.startswith(below) for path in recorded)


def _is_left_out(path: str, found: Found) -> bool:
    """Whether a rule leaves out a file, or a folder above it, below the innermost folder that was walked."""
    root = max((root for root in found.roots if path.startswith(root)), key=len, default="")
    below = ""
    for name in path[len(root) :].split(os.sep) if root else ():
        below = f"{below}/{name}" if below else name
        if found.rules.leave_out(name, below) or os.path.join(root, below) in found.silent:
            return True
    return False


def respelled(new: Iterable[str], missing: Iterable[str]) -> dict[str, str]:
    """Missing paths that are among the new ones with letters composed otherwise, if exactly one fits exactly one."""
    forms: dict[str, tuple[list[str], list[str]]] = {}
    for at, some in enumerate((missing, new)):
        for path in some:
            if not path.isascii():
                forms.setdefault(composed(path), ([], []))[at].append(path)
    return {old[0]: now[0] for old, now in forms.values() if len(old) == len(now) == 1}


def _missing_as_a_whole(folder: str, roots: Iterable[str], disk: Disk) -> str | None:
    """The missing folder, a root or directly below one, that is a folder or contains it."""
    for root in sorted(filter(None, roots), key=len):
        if os.path.join(folder, "").startswith(root):
            top = os.path.join(root, folder[len(root) :].split(os.sep)[0])
            for whole in (os.path.dirname(root), top):
                if not disk.exists(whole):
                    return whole
    return None


def passed_over(kinds: Mapping[str, int]) -> dict[str, int]:
    """Numbers of files by kind, without files that are read and those of unknown kind."""
    return {kind: number for kind, number in kinds.items() if kind in formats.KINDS and not formats.readable(kind)}


def several(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    """One path or several as several paths. Raises GalleryError for an empty one."""
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if "" in listed:  # for example from a variable that is not set; it would mean the current folder
        raise GalleryError("a path is empty; the current folder is: .")
    return listed


def composed(path: str) -> str:
    """A path in the spelling (NFC) that is compared, since letters with accents may be composed or not."""
    return unicodedata.normalize("NFC", path)


class Still:
    """Tells which files are no longer being written to: those unchanged since the look before, or older."""

    def __init__(self) -> None:
        self.before: dict[str, Stamp | None] = {}
        self.now: dict[str, Stamp | None] = {}

    def __call__(self, path: str) -> bool:
        stamp = self.now[path] = RealDisk().stamp(path)
        return stamp is not None and (stamp == self.before.get(path) or stamp[1] < (time.time() - STILL) * 1e9)

    def look_again(self) -> None:
        """Call this between two looks."""
        self.before, self.now = self.now, {}


def _emptied(folder: str) -> str | None:
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        if os.path.islink(folder):  # its target is missing
            return folder
        folder = os.path.dirname(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        return folder if next(entries, None) is None else None
    return None


def _device(folder: str) -> int | None:
    with suppress(OSError, ValueError):
        return os.stat(folder).st_dev
    return None


def _file_systems() -> dict[int, str]:
    """The lasting names of file systems, by device; only Linux tells."""
    names = {}
    with suppress(OSError), os.scandir("/dev/disk/by-uuid") as entries:
        for entry in entries:
            with suppress(OSError):
                names[os.stat(entry.path).st_rdev] = entry.name
    return names
