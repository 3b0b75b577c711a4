"""Shared by several kernels: how they are compiled, and the geometry of planar maps."""

import functools
from typing import Any

from numba import njit

from .abi import LINE

# No wrappers: only the runner is called from Python. Nothing here may raise, allocate or touch an object, so that the
# same code can be compiled ahead of time for a device without Numba.
# Numba passes a caller's forceinline on to its callees unless they say otherwise.
kernel: Any = functools.partial(
    njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=False
)
inline: Any = functools.partial(kernel, forceinline=True)  # for parts of a kernel, whose vectors must stay in registers

INFINITY = float("inf")


@inline
def round_up(value, multiple):
    return (value + multiple - 1) // multiple * multiple


@inline
def plane_size(height, width):
    """The floats of a plane, as in lower.py: an odd number of lines."""
    return (height * (round_up(width, LINE) // LINE) | 1) * LINE
