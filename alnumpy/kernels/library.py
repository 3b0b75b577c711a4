"""Kernels that were compiled ahead of time: the packaged library that this CPU can run. Needs no Numba.

``python tools/dev/build_kernels.py`` makes the libraries. The environment variable ALNUMPY_LIBRARY names another file
to load instead, ALNUMPY_TARGET a lower level than this CPU's (as in ``target.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .abi import NUMBER

FOLDER = Path(__file__).parent / "lib"
MANIFEST = "manifest.json"
OTHERS = ("__init__", "cache", "library", "target")  # sources here that are not part of the kernels
ARGUMENTS = 10  # number of a runner's arguments, all int64
LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4")  # levels of the runners in a library for x86-64

NEON, VFP4 = 1 << 12, 1 << 16  # bits of AT_HWCAP on 32-bit ARM
AT_HWCAP = 16
HWPROBE, IMA_EXTENSIONS, VECTOR = 258, 4, 1 << 2  # the system call of RISC-V, its key and the bit of V 1.0


class Choice(NamedTuple):
    """The library for this computer and the reason for it, or the reason why there is none."""

    path: Path | None
    reason: str


class Machine(NamedTuple):
    """The properties of a computer that the choice of a library depends on."""

    system: str  # sys.platform
    name: str  # the system's name of the processor
    bits: int  # bits of an address in this process
    has: Callable[[str], bool]  # whether the CPU has "neon" (with VFPv4) or "vector"


def this_machine() -> Machine:
    """The computer that this process runs on."""
    name = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    return Machine(sys.platform, name.lower(), 64 if sys.maxsize > 2**32 else 32, _has)


def choose(machine: Machine | None = None) -> Choice:
    """The library to load. The system may still refuse to load it."""
    if own := os.environ.get("ALNUMPY_LIBRARY"):
        return Choice(Path(own), "ALNUMPY_LIBRARY names it")
    system, name, bits, has = machine or this_machine()
    if system == "linux" and bits == 64:
        match name:
            case "x86_64" | "amd64":
                return _packaged("linux-x86_64.so", "64-bit x86")
            case "aarch64":
                return _packaged("linux-aarch64.so", "64-bit ARM")
            case "riscv64" if has("vector"):
                return _packaged("linux-riscv64-v.so", "RISC-V with vectors")
            case "riscv64":
                return _packaged("linux-riscv64.so", "RISC-V without vectors")
    if system == "linux" and name in ("armv7l", "armv8l", "aarch64"):
        if has("neon"):
            return _packaged("linux-armv7.so", "32-bit ARM with NEON and VFPv4")
        return Choice(None, "a 32-bit ARM without NEON and VFPv4")
    if system == "win32" and bits == 64 and name == "amd64":
        return _packaged("windows-x86_64.dll", "64-bit x86")
    if system == "darwin" and name in ("arm64", "x86_64"):
        file = FOLDER / f"macos-{name}.dylib"
        return Choice(None, f"{file.name} has not been tried yet; ALNUMPY_LIBRARY={file} loads it")
    return Choice(None, f"there is none for {bits}-bit {name or 'unknown CPUs'} on {system}")


def _packaged(name: str, reason: str) -> Choice:
    path = FOLDER / name
    return Choice(path, f"for {reason}") if path.exists() else Choice(None, f"{path} is missing")


def load(path: Path) -> tuple[Callable[..., None], str]:
    """The runner of a library for this CPU, and the name of its level. It releases the GIL while it runs.

    Raises OSError if the system does not load it, if it is not a library of these kernels, and if ALNUMPY_TARGET names
    a level that is not in it or that this CPU cannot run.
    """
    try:
        library = ctypes.CDLL(str(path))
        number, level = library.alnumpy_abi, library.alnumpy_level
    except AttributeError:
        raise OSError(f"{path}: not a library of alnumpy's kernels") from None
    number.restype = level.restype = ctypes.c_int64
    if number() != NUMBER:
        raise OSError(f"{path}: made for another version of alnumpy")
    best = level()
    if wanted := os.environ.get("ALNUMPY_TARGET"):
        if wanted not in LEVELS[: best + 1] or not hasattr(library, "alnumpy_run_1"):
            raise OSError(f"{path}: has no kernels for ALNUMPY_TARGET={wanted} that this CPU can run")
        best = LEVELS.index(wanted)
    run = getattr(library, f"alnumpy_run_{best}")
    run.restype, run.argtypes = None, [ctypes.c_int64] * ARGUMENTS
    return run, LEVELS[best] if hasattr(library, "alnumpy_run_1") else ""


def _has(feature: str) -> bool:
    """Asks Linux whether the CPU has a feature."""
    libc = ctypes.CDLL(None)
    if feature == "neon":
        libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        return libc.getauxval(AT_HWCAP) & (NEON | VFP4) == NEON | VFP4
    # In AT_HWCAP a different draft of the vector extension has the same bit; this call of Linux 6.5 tells them apart.
    pair = (ctypes.c_uint64 * 2)(IMA_EXTENSIONS, 0)
    libc.syscall.restype = ctypes.c_long
    failed = libc.syscall(ctypes.c_long(HWPROBE), pair, ctypes.c_size_t(1), ctypes.c_size_t(0), None, ctypes.c_uint(0))
    return not failed and bool(pair[1] & VECTOR)


def manifest() -> Any:
    """The sources and tools of the libraries, and the SHA-256 of each library."""
    import json  # not needed at each start

    return json.loads((FOLDER / MANIFEST).read_text())


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources_digest() -> str:
    """SHA-256 of the kernels' sources, as the manifest records it."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in OTHERS):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
