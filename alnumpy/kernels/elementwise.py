"""Kernels that move or add channels-last maps: copies by a table, sums of two maps."""

from .abi import PACK
from .activation import SILU, activate, limits
from .common import kernel
from .simd import LANES, add, clamp, load, load_float, load_int, splat, store, store_float


@kernel
def copy(arena, tables, x, y, table, pixels, x_stride, y_stride, start, channels):
    """(pixels, x_stride) -> ``channels`` floats from ``start`` of each pixel of (pixels, y_stride).

    ``table`` has the place of each of them in a pixel of x; -1 stands for 0.
    """
    y += start
    for _ in range(pixels):
        for i in range(channels):
            at = load_int(tables, table + i)
            value = 0.0
            if at >= 0:
                value = load_float(arena, x + at)
            store_float(arena, y + i, value)
        x += x_stride
        y += y_stride


@kernel
def add_maps(arena, x, other, y, count, activation):
    """The sum of two maps of ``count`` floats, a multiple of PACK, whose channels are in the same places."""
    low, high = limits(activation)
    i = 0
    while i + LANES <= count:
        v = add(load(arena, x + i, LANES), load(arena, other + i, LANES))
        store(arena, y + i, clamp(v, splat(low, LANES), splat(high, LANES)))
        i += LANES
    while i < count:
        v = add(load(arena, x + i, PACK), load(arena, other + i, PACK))
        store(arena, y + i, clamp(v, splat(low, PACK), splat(high, PACK)))
        i += PACK
    if activation >= SILU:
        activate(arena, y, count, activation)
