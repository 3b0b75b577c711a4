"""CBAM: channel attention (a small MLP), spatial attention (a 7x7 convolution), and the multiplication by both."""

from .abi import LINE, PACK
from .activation import sigmoid
from .common import INFINITY, inline, kernel, round_up
from .pointwise import pointwise
from .simd import (
    LANES,
    add,
    broadcast,
    broadcast_tile,
    column_of_taps,
    gather,
    inverse,
    lanes_between,
    load,
    load_float,
    load_tile,
    max_lanes,
    maximum,
    multiply,
    splat,
    splat_tile,
    store,
    store_float,
    store_tile,
    sum_lanes,
    where,
)

TAPS = 7


@kernel
def channel_attention(
    arena, weights, tables, means, hidden, y, w1, table1, w2, table2, width, channels, hidden_channels
):
    """Means and maxima (2, width) -> sigmoid(MLP(mean) + MLP(max)).

    Both go through the first layer together; the second is linear, so it is applied once, to the sum.
    """
    padded = round_up(hidden_channels, PACK)
    pointwise(arena, weights, tables, means, hidden, w1, table1, 2, width, padded, 1, channels, padded // PACK, 1)
    for i in range(0, padded, PACK):
        store(arena, hidden + i, add(load(arena, hidden + i, PACK), load(arena, hidden + padded + i, PACK)))
    pointwise(arena, weights, tables, hidden, y, w2, table2, 1, padded, width, 1, hidden_channels, width // PACK, 0)
    for i in range(0, width, LANES):  # may pass the end of y: buffers are whole lines
        store(arena, y + i, sigmoid(load(arena, y + i, LANES)))


@inline
def map_plane(height, width):
    """The size of a map, as map_size in lower.py has it: rows for whole tiles of four, and the kernel's border."""
    return (round_up(height, 4) + TAPS - 1) * (LINE + round_up(width, LINE))


@kernel
def clear_maps(arena, maps, height, width):
    for i in range(0, 2 * map_plane(height, width) + LINE, LANES):
        store(arena, maps + i, splat(0.0, LANES))


def make_planar_pool(cols):
    @inline
    def pool(arena, x, plane, channels, channel, scale):
        """Mean and maximum over the channels of ``cols`` adjacent vectors, each channel multiplied by its attention."""
        total, highest = splat_tile(0.0, cols, LANES), splat_tile(-INFINITY, cols, LANES)
        for c in range(channels):
            v = multiply(load_tile(arena, x + c * plane, 0, 1, cols, LANES), broadcast(arena, channel + c, LANES))
            total, highest = add(total, v), maximum(highest, v)
        return multiply(total, scale), highest

    return pool


pool_1x1, pool_1x2 = make_planar_pool(1), make_planar_pool(2)


@kernel
def planar_pool(arena, x, maps, height, width, channels, plane, channel):
    """Planar (channels, H, row) times channel attention -> padded maps of the mean and maximum over the channels."""
    clear_maps(arena, maps, height, width)
    row = round_up(width, LINE)
    map_row = LINE + row
    second = map_plane(height, width)
    scale = splat(inverse(channels), LANES)
    zero = splat(0.0, LANES)
    for i in range(height):
        source = x + i * row
        target = maps + (i + TAPS // 2) * map_row + LINE
        j = 0
        while j + 2 * LANES <= width:
            mean, highest = pool_1x2(arena, source + j, plane, channels, channel, scale)
            store_tile(arena, target + j, 0, mean, 2)
            store_tile(arena, target + second + j, 0, highest, 2)
            j += 2 * LANES
        while j < width:
            mean, highest = pool_1x1(arena, source + j, plane, channels, channel, scale)
            store(arena, target + j, lanes_between(0, width - j, mean[0], zero))
            store(arena, target + second + j, lanes_between(0, width - j, highest[0], zero))
            j += LANES


@kernel
def pool(arena, weights, x, maps, height, width, channels, real_channels, channel, real):
    """Channels last times channel attention -> the padded maps of its mean and maximum over the channels.

    ``real`` is 1 at channels and 0 at padding.
    """
    clear_maps(arena, maps, height, width)
    map_row = LINE + round_up(width, LINE)
    second = map_plane(height, width)
    scale = inverse(real_channels)
    zero, lowest = splat(0.0, PACK), splat(-INFINITY, PACK)
    for i in range(height):
        for j in range(width):
            total, highest = zero, lowest
            for c in range(0, channels, PACK):
                v = multiply(load(arena, x + c, PACK), load(arena, channel + c, PACK))
                mask = load(weights, real + c, PACK)
                total = add(total, where(mask, v, zero))
                highest = maximum(highest, where(mask, v, lowest))
            target = maps + (i + TAPS // 2) * map_row + LINE + j
            store_float(arena, target, sum_lanes(total) * scale)
            store_float(arena, target + second, max_lanes(highest))
            x += channels


def make_spatial(cols):
    @inline
    def spatial(arena, maps, map_row, second, y, row, weights, w):
        """Convolves four rows of ``cols`` adjacent vectors."""
        sums = broadcast_tile(weights, w, 0, 4, cols, LANES)
        for m in range(2):
            for kx in range(TAPS):
                at = maps + m * second + kx
                taps = w + 1 + m * TAPS * TAPS + kx
                sums = column_of_taps(sums, arena, at, map_row, weights, taps, TAPS, TAPS, cols)
        store_tile(arena, y, row, sums, cols)

    return spatial


spatial_4x1, spatial_4x2 = make_spatial(1), make_spatial(2)


@kernel
def spatial_attention(arena, weights, maps, y, w, height, width):
    """Two padded maps -> sigmoid(7x7 convolution), planar (H rounded up to 4, row)."""
    row = round_up(width, LINE)
    map_row = LINE + row
    second = map_plane(height, width)
    for i in range(0, height, 4):
        source = maps + i * map_row + LINE - TAPS // 2
        target = y + i * row
        j = 0
        while j + LANES < width:
            spatial_4x2(arena, source + j, map_row, second, target + j, row, weights, w)
            j += 2 * LANES
        if j < width:
            spatial_4x1(arena, source + j, map_row, second, target + j, row, weights, w)
    for i in range(0, height * row, LANES):
        store(arena, y + i, sigmoid(load(arena, y + i, LANES)))


@kernel
def scale(arena, x, height, width, channels, channel, spatial):
    """Multiplies a channels-last map in place by channel attention, and by spatial attention if there is any."""
    row = round_up(width, LINE)
    for i in range(height):
        for j in range(width):
            factor = broadcast(arena, spatial + i * row + j, PACK) if spatial >= 0 else splat(1.0, PACK)
            for c in range(0, channels, PACK):
                v = multiply(load(arena, x + c, PACK), load(arena, channel + c, PACK))
                store(arena, x + c, multiply(v, factor))
            x += channels


@kernel
def to_channels_last(arena, x, y, height, width, channels, plane, channel, spatial):
    """Planar -> channels last, times channel and spatial attention if there are any (not negative)."""
    row = round_up(width, LINE)
    whole = channels // PACK * PACK
    one = splat(1.0, PACK)
    for i in range(height):
        for j in range(width):
            source = x + i * row + j
            factor = broadcast(arena, spatial + i * row + j, PACK) if channel >= 0 else one
            for c in range(0, whole, PACK):
                v = gather(arena, source + c * plane, plane, PACK)
                if channel >= 0:
                    v = multiply(multiply(v, load(arena, channel + c, PACK)), factor)
                store(arena, y + c, v)
            for c in range(whole, channels):
                scalar = load_float(arena, source + c * plane)
                if channel >= 0:
                    scalar = scalar * load_float(arena, channel + c) * load_float(arena, spatial + i * row + j)
                store_float(arena, y + c, scalar)
            y += channels
