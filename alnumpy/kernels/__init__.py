"""The fast path: a program (see ``alnumpy.program``) run by compiled kernels. Numba is imported on the first run.

Compiled code is kept in a folder named after a digest of all that it depends on: the kernels' sources, the versions of
Python, Numba and llvmlite, and the CPU. Code that is out of date is never found there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..program import Program

READY = "ready"  # a file in the cache folder, written when everything has been compiled


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, whether or not it exists; None where there is no home for it or no Numba."""
    base = os.environ.get("ALNUMPY_CACHE_DIR")
    if not base:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        base = os.path.join(cache, "alnumpy") if os.path.isabs(cache) else None
    try:
        return Path(base).absolute() / f"kernels-{_digest()}" if base else None
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = [metadata.version("numba"), metadata.version("llvmlite"), str(sys.implementation.cache_tag)]
    digest.update("\0".join([*versions, _cpu()]).encode())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """The CPU's name and features, without importing llvmlite; Numba checks LLVM's own view of them once more."""
    lines = [platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read().split("\n\n")[0].splitlines()
        keys = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "isa")
        lines += [line for line in first if line.startswith(keys)]
    except OSError:
        pass  # not Linux
    return "\n".join(lines)


def is_cached() -> bool:
    """Whether the first run will find its kernels compiled. Cheap: imports nothing."""
    folder = cache_folder()
    return folder is not None and (folder / READY).exists()


def warmup() -> tuple[Path | None, float]:
    """Compiles the kernels, or loads them; returns the folder that keeps them, if any, and the seconds it took.

    Raises ImportError where Numba is not installed.
    """
    start = time.perf_counter()
    _load()
    return _folder, time.perf_counter() - start


_run_program: Callable[..., None] | None = None
_folder: Path | None = None
_load_lock = threading.Lock()


def _load() -> Callable[..., None]:
    """The compiled runner."""
    global _run_program, _folder
    with _load_lock:
        if _run_program is None:
            import numba

            from . import runner

            _folder = _writable(cache_folder())
            if _folder is None:
                warnings.warn(
                    "alnumpy: no folder to keep compiled kernels in, so every process compiles them again; "
                    "set ALNUMPY_CACHE_DIR to a folder of your own that can be written",
                    RuntimeWarning,
                    stacklevel=3,
                )
            config: Any = numba.config
            before = config.CACHE_DIR, config.OPT
            try:
                config.CACHE_DIR = str(_folder or "")
                config.OPT = type(config.OPT)(2)  # level 3 compiles for twice as long, for slower code
                _run_program = runner.compile_runner(cache=_folder is not None)
            finally:
                config.CACHE_DIR, config.OPT = before
            if _folder is not None:
                (_folder / READY).touch()
        return _run_program


def _writable(folder: Path | None) -> Path | None:
    """The folder, made if need be; None where we may not write, or it is not ours: what it holds will be executed."""
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return None
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return folder


_arenas: list[np.ndarray] = []  # those not in use: at most one for each thread that has ever run at the same time


def run(program: Program, x: np.ndarray, threads: int = 1) -> np.ndarray:
    """Embeds pictures: float32 (N, 3, H, W), C-contiguous -> float32 (N, embedding). The GIL is released.

    An embedding does not depend on ``threads`` nor on a picture's place in the batch, to the last bit. Raises
    ValueError for another shape or dtype, and ImportError where Numba is not installed.
    """
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:] or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise ValueError(f"expected C-contiguous float32 (N, 3, H, W), not {x.dtype} {x.shape}")
    run_program = _load()
    count, _, height, width = x.shape
    layout = program.layout((height, width))
    output = np.empty((count, program.spec.embedding), np.float32)
    threads = max(1, min(threads, count))
    chunk = max(1, count // (8 * threads))  # small enough that threads finish together
    starts = deque(range(0, count, chunk))

    def work() -> None:
        try:
            arena = _arenas.pop()
        except IndexError:
            arena = np.empty(0, np.float32)
        if len(arena) < layout.arena_size:
            arena = layout.new_arena()
        while starts:
            try:
                start = starts.popleft()
            except IndexError:  # another thread took the last
                break
            run_program(
                x[start:].ctypes.data, x[0].size, min(chunk, count - start),
                output[start:].ctypes.data, output.shape[1],
                program.weights.ctypes.data, program.tables.ctypes.data,
                layout.steps.ctypes.data, len(layout.steps), arena.ctypes.data,
            )  # fmt: skip
        _arenas.append(arena)

    helpers = [threading.Thread(target=work) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    return output
