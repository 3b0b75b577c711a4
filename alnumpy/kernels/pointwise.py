"""Grouped 1x1 convolution of channels-last maps: for each group a product of a narrow matrix with the pixels."""

from .abi import PACK, TILE_PACKS
from .activation import SILU, activate, limits
from .common import kernel
from .simd import clamp, load_int, load_tile, outer, splat, store_tile


def make_tiles(rows, cols):
    @kernel
    def tiles(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, count, low, high):
        """Computes ``count`` tiles of ``rows`` pixels by ``cols`` packs of outputs; the sums stay in registers."""
        for _ in range(count):
            sums = load_tile(weights, w, 0, rows, cols, PACK)
            at = w
            for k in range(inputs):
                at += cols * PACK
                sums = outer(sums, arena, x + load_int(tables, table + k), x_stride, weights, at, rows, cols)
            store_tile(arena, y, y_stride, clamp(sums, low, high), cols)
            x += rows * x_stride
            y += rows * y_stride

    return tiles


tiles_4x1, tiles_4x2, tiles_4x3 = make_tiles(4, 1), make_tiles(4, 2), make_tiles(4, 3)
tiles_2x1, tiles_2x2, tiles_2x3 = make_tiles(2, 1), make_tiles(2, 2), make_tiles(2, 3)
tiles_1x1, tiles_1x2, tiles_1x3 = make_tiles(1, 1), make_tiles(1, 2), make_tiles(1, 3)


@kernel
def pointwise(arena, weights, tables, x, y, w, table, pixels, x_stride, y_stride, groups, inputs, packs, activation):
    """(pixels, x_stride) -> (pixels, y_stride). ``table`` has the place in a pixel of each input of each group."""
    start, floats = y, pixels * y_stride
    low_limit, high_limit = limits(activation)
    low, high = splat(low_limit, PACK), splat(high_limit, PACK)
    rest = pixels // 4 * 4
    x2, y2 = x + rest * x_stride, rest * y_stride
    rest += pixels & 2
    x1, y1 = x + rest * x_stride, rest * y_stride
    fours, twos, ones = pixels // 4, (pixels & 2) // 2, pixels & 1
    for _ in range(groups):
        left = packs
        while left > 0:
            cols = min(left, TILE_PACKS)
            if cols == 3:
                tiles_4x3(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, fours, low, high)
                tiles_2x3(arena, x2, x_stride, y + y2, y_stride, weights, w, tables, table, inputs, twos, low, high)
                tiles_1x3(arena, x1, x_stride, y + y1, y_stride, weights, w, tables, table, inputs, ones, low, high)
            elif cols == 2:
                tiles_4x2(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, fours, low, high)
                tiles_2x2(arena, x2, x_stride, y + y2, y_stride, weights, w, tables, table, inputs, twos, low, high)
                tiles_1x2(arena, x1, x_stride, y + y1, y_stride, weights, w, tables, table, inputs, ones, low, high)
            else:
                tiles_4x1(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, fours, low, high)
                tiles_2x1(arena, x2, x_stride, y + y2, y_stride, weights, w, tables, table, inputs, twos, low, high)
                tiles_1x1(arena, x1, x_stride, y + y1, y_stride, weights, w, tables, table, inputs, ones, low, high)
            w += cols * PACK * (1 + inputs)
            y += cols * PACK
            left -= cols
        table += inputs
    if activation >= SILU:
        activate(arena, start, floats, activation)
