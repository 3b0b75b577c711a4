"""Kernels that Numba compiles here: kept in a file, so that they are compiled only once.

The object code is kept under a digest of everything that it depends on: the kernels' sources, the versions of Numba and
llvmlite, and the CPU. Outdated code is never found. Running kept code imports llvmlite, but not Numba.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from ..files import cache_folder, replacing
from .library import sources_digest


def cache_file() -> Path | None:
    """Path of the cached kernels, which may not exist yet; None without a cache folder or without Numba."""
    folder = cache_folder()
    try:
        return folder / f"kernels-{_digest()}.o" if folder else None
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _digest() -> str:
    parts = [sources_digest(), metadata.version("numba"), metadata.version("llvmlite"), _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _cpu() -> str:
    """The CPU's name, features and ALNUMPY_TARGET, without importing llvmlite; LLVM's view is checked on loading."""
    lines = [platform.machine(), os.environ.get("ALNUMPY_TARGET", "")]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read().split("\n\n")[0].splitlines()
        keys = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "isa")
        lines += [line for line in first if line.startswith(keys)]
    except OSError:  # not Linux; asking for the processor's name would start another process
        lines.append(platform.processor())
    return "\n".join(lines)


def is_cached() -> bool:
    """Whether the first run will find its kernels compiled. Cheap: imports nothing."""
    path = cache_file()
    return path is not None and _is_ours(path)


def warmup() -> tuple[Path | None, float]:
    """Compiles the kernels, or loads them; returns the file that keeps them, if any, and the seconds it took.

    Raises ImportError if Numba is not installed.
    """
    start = time.perf_counter()
    load()
    path = cache_file()
    return path if path is not None and path.exists() else None, time.perf_counter() - start


def load() -> Callable[..., None]:
    """The runner, from the file or compiled. Raises ImportError if Numba is not installed."""
    from . import compiler

    path = cache_file()
    code = _read(path, compiler.sign) if path else None
    if code is None:
        code = compiler.compile_runner()
        if path is None or not _write(path, compiler.sign(code) + code):
            warnings.warn(
                f"alnumpy: compiled kernels cannot be kept (in {path}), so every process will compile them "
                "again; set ALNUMPY_CACHE_DIR to a folder of your own that can be written",
                RuntimeWarning,
                stacklevel=4,
            )
    return compiler.link(code)


def _is_ours(path: Path) -> bool:
    """Whether a file exists and belongs to us or the administrator: its code will be executed."""
    try:
        return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)
    except OSError:
        return False


def _read(path: Path, sign: Callable[[bytes], bytes]) -> bytes | None:
    """Object code that is ours, complete and for this CPU; None if there is none."""
    if not _is_ours(path):
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    signature, code = content[:32], content[32:]
    return code if signature == sign(code) else None


def _write(path: Path, content: bytes) -> bool:
    """Writes a file whole, so that other processes see all of it or none; returns whether that was possible."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, 0o600) as file:
            file.write(content)
    except OSError:
        return False
    return True
