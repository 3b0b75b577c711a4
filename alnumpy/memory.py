"""A bound on the memory that pictures take while they are decoded, one for the whole process.

    with memory.hold(bytes):
        ...  # decode

waits until that much of the budget is free. ``set_limit`` or the environment variable ALNUMPY_MEMORY sets the budget in
bytes, for example 300M or 2G. By default it is half of the machine's free memory (within the limits of its control
groups and of the address space), but at most 200 MB for up to two threads that decode, and 100 MB for each further one.
Several processes on one machine should each get a share.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .errors import AlnumpyError

VARIABLE = "ALNUMPY_MEMORY"
PER_THREAD = 100_000_000  # two upright phone pictures, or one that has to be turned, of 12 megapixels
SHARE = 0.5  # part of the machine's free memory
ALONE = 1 << 62  # more than any budget: held by a thread that must be the only one

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Budget:
    """Bytes that threads hold together, given out in the order of asking."""

    def __init__(self) -> None:
        self.limit: int | None = None  # the limit that was set; otherwise the environment or the machine decides
        self.clear()

    def clear(self) -> None:
        """Forgets who holds what."""
        self.held = 0
        self._holders = 0
        self._waiting: deque[object] = deque()
        self._room = 0  # the machine's free memory when nothing was held
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Waits until ``count`` bytes fit into the budget or nothing else is held: a single picture never waits.

        A thread must not call this again within the block: it would wait for itself.
        """
        _return_what_is_freed()
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not (self._waiting[0] is ticket and self._fits(count)):
                    self._changed.wait()
                self._holders += 1
                self.held += count
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self.held -= count
                self._changed.notify_all()

    def _fits(self, count: int) -> bool:
        if not self._holders:
            self._room = room()
        return self.held + count <= self.allowed() or not self._holders

    def allowed(self) -> int:
        """The budget in bytes, for the threads that decode or wait for it at present."""
        if self.limit is not None:
            return self.limit
        if text := os.environ.get(VARIABLE):
            return parse(text)
        threads = max(2, self._holders + len(self._waiting))
        return min(int(SHARE * (self._room or room())), PER_THREAD * threads)


_budget = Budget()
hold = _budget.hold


def held() -> int:
    """Bytes that are held at present."""
    return min(_budget.held, ALONE - 1)


def set_limit(count: int | None) -> None:
    """Sets the budget of this process in bytes; None returns to what the environment or the machine says."""
    if count is not None and count < 1:
        raise ValueError(f"the limit of memory must be at least 1 byte, not {count}")
    _budget.limit = count


def parse(text: str) -> int:
    """Bytes: "300M" is 300,000,000. Raises AlnumpyError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*([KMG]?)B?", text.strip(), re.I)
    if not found or not (count := int(float(found[1]) * _UNITS[found[2].upper()])):
        raise AlnumpyError(f"the environment variable {VARIABLE} must be a number of bytes, such as 300M, not {text!r}")
    return count


def room(root: str = "/") -> int:
    """Bytes that this process may still take; a gigabyte where the system does not tell. ``root`` serves tests."""
    found = [n for n in (_available(root), _group_room(root), _address_room()) if n is not None]
    return max(0, min(found, default=10**9))


def obtainable(count: int) -> bool:
    """Whether the process could get ``count`` bytes at this moment, in one piece."""
    try:
        mmap.mmap(-1, max(1, count)).close()  # touches no page
    except (OSError, MemoryError, ValueError, OverflowError):
        return False
    return True


@cache
def _return_what_is_freed() -> None:
    """Makes glibc return memory of 8 MB and more to the system as soon as it is freed, which it does only at first.

    Later it would keep up to 64 MB for each thread that has decoded large pictures. A user who has set glibc's
    variables keeps them.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):  # no ctypes, or another C library
        return
    mallopt(-3, 8 << 20)  # M_MMAP_THRESHOLD
    mallopt(-1, 16 << 20)  # M_TRIM_THRESHOLD, which follows the other only while neither is set


def _available(root: str) -> int | None:
    """The memory that Linux reports as available without swapping."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root, "proc/meminfo"), re.M)
    return int(found[1]) * 1024 if found else None


def _group_room(root: str) -> int | None:
    """The memory that the control groups of this process leave; version 2 has one tree, version 1 a tree for memory."""
    rooms = []
    for line in _text(root, "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        tree = "sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup"
        limit, usage, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):  # in a container the path may lead nowhere, and its root holds the limit
            folder = "/".join([tree, *parts[:depth]])
            most, used = (_text(root, f"{folder}/{name}").strip() for name in (limit, usage))
            if most.isdecimal() and used.isdecimal():
                found = re.search(rf"^{cached} (\d+)", _text(root, f"{folder}/memory.stat"), re.M)
                rooms.append(int(most) - int(used) + (int(found[1]) if found else 0))
    return min(rooms, default=None)


def _address_room() -> int | None:
    """The memory that a limit on the address space leaves (ulimit -v)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return None
    found = re.search(r"^VmSize:\s*(\d+) kB", _text("/", "proc/self/status"), re.M)
    return most - int(found[1]) * 1024 if found else most


def _text(root: str, name: str) -> str:
    try:
        return Path(root, name).read_bytes().decode(errors="replace")
    except OSError:
        return ""


if hasattr(os, "register_at_fork"):  # the threads that hold memory here do not exist in a child process
    os.register_at_fork(after_in_child=_budget.clear)
