"""Global average and maximum, and the final pooling to an embedding.

Sums over the pixels of planar maps are taken in LINE lanes on every CPU, in several registers where these are narrower,
so that the order of additions, and therefore the bits of an embedding, do not depend on the CPU.
"""

from .abi import LINE, PACK
from .common import INFINITY, kernel, round_up
from .simd import (
    add,
    broadcast,
    fma,
    inverse,
    lanes_between,
    load,
    load_float,
    max_lanes,
    maximum,
    multiply,
    splat,
    store,
    store_float,
    sum_lanes,
)


@kernel
def clear_totals(arena, totals, channels):
    """Totals are two lines per channel: partial sums and partial maxima, one per lane."""
    for c in range(channels):
        store(arena, totals + c * 2 * LINE, splat(0.0, LINE))
        store(arena, totals + c * 2 * LINE + LINE, splat(-INFINITY, LINE))


@kernel
def add_to_totals(arena, x, plane, channels, height, width, totals):
    """Adds ``height`` rows of each planar channel, which are still in cache because they were just stored."""
    row = round_up(width, LINE)
    zero, lowest = splat(0.0, LINE), splat(-INFINITY, LINE)
    for c in range(channels):
        at = totals + c * 2 * LINE
        total, highest = load(arena, at, LINE), load(arena, at + LINE, LINE)
        total2, highest2 = zero, lowest  # two of each, because an addition must wait for the one before it
        for i in range(height):
            source = x + c * plane + i * row
            j = 0
            while j + 2 * LINE <= width:
                v, v2 = load(arena, source + j, LINE), load(arena, source + j + LINE, LINE)
                total, highest = add(total, v), maximum(highest, v)
                total2, highest2 = add(total2, v2), maximum(highest2, v2)
                j += 2 * LINE
            while j < width:
                v = load(arena, source + j, LINE)
                total2 = add(total2, lanes_between(0, width - j, v, zero))
                highest2 = maximum(highest2, lanes_between(0, width - j, v, lowest))
                j += LINE
        store(arena, at, add(total, total2))
        store(arena, at + LINE, maximum(highest, highest2))


@kernel
def planar_means(arena, totals, y, height, width, channels):
    """Totals -> the means of all channels, then their maxima."""
    scale = inverse(height * width)
    padded = round_up(channels, PACK)
    for c in range(channels):
        at = totals + c * 2 * LINE
        store_float(arena, y + c, sum_lanes(load(arena, at, LINE)) * scale)
        store_float(arena, y + padded + c, max_lanes(load(arena, at + LINE, LINE)))


@kernel
def means(arena, x, y, height, width, channels):
    """Channels last -> the means of all channels, then their maxima."""
    scale = splat(inverse(height * width), PACK)
    for c in range(0, channels, PACK):
        total, highest = splat(0.0, PACK), splat(-INFINITY, PACK)
        for p in range(height * width):
            v = load(arena, x + p * channels + c, PACK)
            total, highest = add(total, v), maximum(highest, v)
        store(arena, y + c, multiply(total, scale))
        store(arena, y + channels + c, highest)


@kernel
def embedding(arena, output, x, height, width, channels, size, channel, spatial, y):
    """Channels last (H, W, channels) times attention, if any -> its mean over the pixels. ``y`` is scratch."""
    row = round_up(width, LINE)
    scale = splat(inverse(height * width), PACK)
    for c in range(0, channels, PACK):
        total = splat(0.0, PACK)
        for i in range(height):
            for j in range(width):
                v = load(arena, x + (i * width + j) * channels + c, PACK)
                total = add(total, v) if spatial < 0 else fma(broadcast(arena, spatial + i * row + j, PACK), v, total)
        if channel >= 0:
            total = multiply(total, load(arena, channel + c, PACK))
        store(arena, y + c, multiply(total, scale))
    for c in range(size):
        store_float(output, c, load_float(arena, y + c))
