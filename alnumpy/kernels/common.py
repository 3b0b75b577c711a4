"""What several kernels share: how they are compiled, activations, the geometry of planar maps."""

import functools
from typing import Any

from numba import njit

from .abi import LINE
from .simd import LANES, add, clamp, divide, fma, maximum, multiply, power_of_two, rint, splat

# No wrappers: only the runner is called from Python. Nothing here may raise, allocate or touch an object, so that the
# same code can be compiled ahead of time for a device without Numba.
# Numba hands a caller's forceinline down to its callees where they do not say otherwise.
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
    """As in lower.py: an odd number of lines."""
    return (height * (round_up(width, LINE) // LINE) | 1) * LINE


@inline
def limits(activation):
    """An activation code as the interval to which it clamps."""
    low = -INFINITY if activation == 0 else 0.0
    high = 6.0 if activation == 2 else INFINITY
    return low, high


@inline
def sigmoid(x):
    """1 / (1 + exp(-x)) of a vector of LANES: within 2 ulp, 0 where exp overflows, NaN where x is NaN.

    exp(t) = 2^n * exp(r) with n = round(t / ln 2), |r| <= ln(2) / 2; the Taylor series to r^7 is exact to 1e-8.
    """
    one = splat(1.0, LANES)
    t = clamp(multiply(x, splat(-1.0, LANES)), splat(-88.0, LANES), splat(89.0, LANES))
    n = rint(multiply(t, splat(1.4426950408889634, LANES)))
    r = fma(n, splat(-0.693359375, LANES), t)  # ln 2 in two parts, the first exact in float32 with bits to spare
    r = fma(n, splat(2.12194440054690583e-4, LANES), r)
    p = splat(1 / 5040, LANES)
    p = fma(p, r, splat(1 / 720, LANES))
    p = fma(p, r, splat(1 / 120, LANES))
    p = fma(p, r, splat(1 / 24, LANES))
    p = fma(p, r, splat(1 / 6, LANES))
    p = fma(p, r, splat(0.5, LANES))
    p = fma(p, r, one)
    p = fma(p, r, one)
    n = maximum(n, splat(-127.0, LANES))  # this order turns NaN, which has no integer, into a number; p is NaN still
    return divide(one, add(one, multiply(p, power_of_two(n))))
