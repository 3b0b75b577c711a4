"""Grouped 1x1 convolution of channels-last maps: for each group a product of a narrow matrix with the pixels."""

from .abi import PACK, TILE_PACKS
from .common import kernel, limits
from .simd import clamp, load_int, load_tile, outer, splat, store_tile


def make_tiles(rows, cols):
    @kernel
    def tiles(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, count, low, high):
        """``count`` tiles of ``rows`` pixels by ``cols`` packs of outputs, accumulated in registers over all inputs."""
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


tiles41, tiles42, tiles43 = make_tiles(4, 1), make_tiles(4, 2), make_tiles(4, 3)
tiles21, tiles22, tiles23 = make_tiles(2, 1), make_tiles(2, 2), make_tiles(2, 3)
tiles11, tiles12, tiles13 = make_tiles(1, 1), make_tiles(1, 2), make_tiles(1, 3)


@kernel
def pointwise(arena, weights, tables, x, y, w, table, pixels, x_stride, y_stride, groups, inputs, packs, activation):
    """(pixels, x_stride) -> (pixels, y_stride). ``table`` says where in a pixel each input of each group stands."""
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
                tiles43(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, fours, low, high)
                tiles23(arena, x2, x_stride, y + y2, y_stride, weights, w, tables, table, inputs, twos, low, high)
                tiles13(arena, x1, x_stride, y + y1, y_stride, weights, w, tables, table, inputs, ones, low, high)
            elif cols == 2:
                tiles42(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, fours, low, high)
                tiles22(arena, x2, x_stride, y + y2, y_stride, weights, w, tables, table, inputs, twos, low, high)
                tiles12(arena, x1, x_stride, y + y1, y_stride, weights, w, tables, table, inputs, ones, low, high)
            else:
                tiles41(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, fours, low, high)
                tiles21(arena, x2, x_stride, y + y2, y_stride, weights, w, tables, table, inputs, twos, low, high)
                tiles11(arena, x1, x_stride, y + y1, y_stride, weights, w, tables, table, inputs, ones, low, high)
            w += cols * PACK * (1 + inputs)
            y += cols * PACK
            left -= cols
        table += inputs
