"""The fast path: a program (see ``alnumpy.lower``) run by compiled kernels.

They come in a library that was compiled ahead of time (``library``), or are compiled by Numba on first use (``cache``).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import library
from .abi import address

if TYPE_CHECKING:
    from ..arena import Layout
    from ..lower import Program

_runners: dict[str, Callable[..., None]] = {}  # runners by backend, loaded on first use
_library: tuple[library.Choice, Callable[..., None] | None, str] | None = None
_loading = threading.RLock()


def packaged() -> tuple[library.Choice, str]:
    """Loads the library that runs here; returns the choice, or why there is none, and its level."""
    global _library
    with _loading:
        if _library is None:
            choice = library.choose()
            run, level = None, ""
            if choice.path is not None:
                try:
                    run, level = library.load(choice.path)
                except OSError as error:  # a policy, a noexec disk, a damaged file: compute otherwise
                    choice = library.Choice(None, str(error))
            _library = choice, run, level
        choice, run, level = _library
        if run is not None:
            _runners["compiled"] = run
        return choice, level


def loaded(backend: str) -> Callable[..., None]:
    """The function that runs a program: "compiled" from the packaged library, "numba" from kernels that Numba compiles.

    Raises ImportError if it is not available.
    """
    with _loading:
        if backend not in _runners:
            if backend == "numba":
                from . import cache

                _runners[backend] = cache.load()
            elif packaged()[0].path is None:
                raise ImportError(f"no compiled kernels: {packaged()[0].reason}")
        return _runners[backend]


_arenas: list[tuple[np.ndarray, int]] = []  # unused arenas with addresses, one per thread that ever ran at once


def _take_arena(layout: Layout) -> tuple[np.ndarray, int]:
    try:
        arena, at = _arenas.pop()
        if len(arena) >= layout.arena_size:
            return arena, at
    except IndexError:
        pass
    arena = layout.new_arena()
    return arena, address(arena)


def run(program: Program, x: np.ndarray, threads: int = 1, backend: str = "numba") -> np.ndarray:
    """Embeds pictures: float32 (N, 3, H, W), C-contiguous -> float32 (N, embedding). The GIL is released.

    An embedding does not depend on ``threads`` or on a picture's place in the batch, to the last bit. Raises
    ValueError for another shape or dtype, and ImportError if ``loaded`` does.
    """
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:] or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise ValueError(f"expected C-contiguous float32 (N, 3, H, W), not {x.dtype} {x.shape}")
    run_program = loaded(backend)
    count, _, height, width = x.shape
    image_size, output_size = 3 * height * width, program.channels
    output = np.empty((count, output_size), np.float32)
    x_address, output_address = address(x), address(output)
    layout = program.layout((height, width))
    threads = max(1, min(threads, count))
    chunk = max(1, count // (8 * threads))  # so small that threads finish together
    starts = deque(range(0, count, chunk))
    arenas = [_take_arena(layout) for _ in range(threads)]  # allocated here, so that threads cannot fail

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

    # An exception here, such as Ctrl-C, must not free memory that a helper still uses, nor let it work on for long.
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
