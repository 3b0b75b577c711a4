"""What moves or adds channels-last maps: the picture as patches, copies by a table, sums of two maps."""

from .abi import PACK
from .activation import SILU, activate, limits
from .common import kernel
from .simd import LANES, add, clamp, load, load_float, load_int, splat, store, store_float

COLORS = 3


@kernel
def patches(images, arena, y, height, width, new_height, new_width, taps, stride, top, left, record):
    """The picture (3, H, W) -> for each output pixel of a convolution the colours that its taps see, zeros outside.

    A record holds them colour by colour and row by row; what follows them in it is not defined.
    """
    for i in range(new_height):
        for j in range(new_width):
            column = j * stride - left
            inside = column >= 0 and column + PACK <= width  # whole vectors can be read
            at = y
            for c in range(COLORS):
                for ky in range(taps):
                    row = i * stride - top + ky
                    source = (c * height + row) * width + column
                    exists = row >= 0 and row < height
                    if exists and inside:
                        store(arena, at, load(images, source, PACK))  # what is too much is overwritten by the next
                    else:
                        for kx in range(taps):
                            value = 0.0
                            if exists and column + kx >= 0 and column + kx < width:
                                value = load_float(images, source + kx)
                            store_float(arena, at + kx, value)
                    at += taps
            y += record


@kernel
def copy(arena, tables, x, y, table, pixels, x_stride, y_stride, start, channels):
    """(pixels, x_stride) -> ``channels`` floats from ``start`` of each pixel of (pixels, y_stride).

    ``table`` says where in a pixel of x each of them stands; -1 is for 0.
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
    """The sum of two maps of ``count`` floats, a multiple of PACK, whose channels stand in the same places."""
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
