"""The fast path: a program (see ``alnumpy.lower``) run by compiled kernels.

Numba is imported to compile them, which happens once: the object code is kept in a file named after a digest of all
that it depends on, which is the kernels' sources, the versions of Numba and llvmlite, and the CPU. Code that is out of
date is never found. To run what is kept, llvmlite is imported, and Numba is not.
"""

from __future__ import annotations

import hashlib
import os
import platform
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import replacing
from .abi import address

if TYPE_CHECKING:
    from ..arena import Layout
    from ..lower import Program


def cache_file() -> Path | None:
    """Where compiled kernels are kept, whether or not they are; None where there is no home for them or no Numba."""
    base = os.environ.get("ALNUMPY_CACHE_DIR")
    if not base:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        base = os.path.join(cache, "alnumpy") if os.path.isabs(cache) else None
    try:
        return Path(base).absolute() / f"kernels-{_digest()}.o" if base else None
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join([metadata.version("numba"), metadata.version("llvmlite"), _cpu()]).encode())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """The CPU's name, features and ALNUMPY_TARGET, without importing llvmlite; LLVM's view is checked on loading."""
    lines = [platform.machine(), os.environ.get("ALNUMPY_TARGET", "")]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read().split("\n\n")[0].splitlines()
        keys = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "isa")
        lines += [line for line in first if line.startswith(keys)]
    except OSError:  # not Linux, where asking for the processor's name starts another process
        lines.append(platform.processor())
    return "\n".join(lines)


def is_cached() -> bool:
    """Whether the first run will find its kernels compiled. Cheap: imports nothing."""
    path = cache_file()
    return path is not None and _is_ours(path)


def warmup() -> tuple[Path | None, float]:
    """Compiles the kernels, or loads them; returns the file that keeps them, if any, and the seconds it took.

    Raises ImportError where Numba is not installed.
    """
    start = time.perf_counter()
    _load()
    path = cache_file()
    return path if path is not None and path.exists() else None, time.perf_counter() - start


_run_program: Callable[..., None] | None = None
_load_lock = threading.Lock()


def _load() -> Callable[..., None]:
    """The compiled runner."""
    global _run_program
    with _load_lock:
        if _run_program is None:
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
                        stacklevel=3,
                    )
            _run_program = compiler.link(code)
        return _run_program


def _is_ours(path: Path) -> bool:
    """Whether a file exists and is ours or the administrator's: what it holds will be executed."""
    try:
        return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)
    except OSError:
        return False


def _read(path: Path, sign: Callable[[bytes], bytes]) -> bytes | None:
    """Object code that is ours, whole and for this CPU; None where there is none."""
    if not _is_ours(path):
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    signature, code = content[:32], content[32:]
    return code if signature == sign(code) else None


def _write(path: Path, content: bytes) -> bool:
    """Writes a file at once, so that other processes see all of it or none; returns whether that was possible."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, 0o600) as file:
            file.write(content)
    except OSError:
        return False
    return True


_arenas: list[tuple[np.ndarray, int]] = []  # not in use, with addresses; one for each thread that ever ran at once


def _take_arena(layout: Layout) -> tuple[np.ndarray, int]:
    try:
        arena, at = _arenas.pop()
        if len(arena) >= layout.arena_size:
            return arena, at
    except IndexError:
        pass
    arena = layout.new_arena()
    return arena, address(arena)


def run(program: Program, x: np.ndarray, threads: int = 1) -> np.ndarray:
    """Embeds pictures: float32 (N, 3, H, W), C-contiguous -> float32 (N, embedding). The GIL is released.

    An embedding does not depend on ``threads`` nor on a picture's place in the batch, to the last bit. Raises
    ValueError for another shape or dtype, and ImportError where Numba is not installed.
    """
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:] or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise ValueError(f"expected C-contiguous float32 (N, 3, H, W), not {x.dtype} {x.shape}")
    run_program = _load()
    count, _, height, width = x.shape
    image_size, output_size = 3 * height * width, program.channels
    output = np.empty((count, output_size), np.float32)
    x_address, output_address = address(x), address(output)
    layout = program.layout((height, width))
    threads = max(1, min(threads, count))
    chunk = max(1, count // (8 * threads))  # small enough that threads finish together
    starts = deque(range(0, count, chunk))
    arenas = [_take_arena(layout) for _ in range(threads)]  # here, so that a thread can no longer fail

    def work(arena_address: int, *in_use: object) -> None:
        while starts:
            try:
                start = starts.popleft()
            except IndexError:  # another thread took the last
                break
            run_program(
                x_address + 4 * start * image_size, image_size, min(chunk, count - start),
                output_address + 4 * start * output_size, output_size,
                *program.addresses, layout.steps_address, len(layout.steps), arena_address,
            )  # fmt: skip

    # An exception here, as Ctrl-C, must not free what a helper is still working with, nor let it work on for long.
    helpers = [threading.Thread(target=work, args=(at, x, output, arena, layout, program)) for arena, at in arenas[1:]]
    try:
        for helper in helpers:
            helper.start()
        work(arenas[0][1])
        for helper in helpers:
            helper.join()
    finally:
        starts.clear()
    _arenas.extend(arenas)
    return output
