"""Grouped 1x1 convolution of channels-last maps: for each group a product of a narrow matrix with the pixels."""

from .abi import PACK, TILE_PACKS
from .common import clamp, inline, kernel, limits
from .simd import keep_separate, load_int, load_tile, outer, splat, store_tile


def make_tile(rows, cols):
    @inline
    def tile(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, low, high):
        """``rows`` pixels by ``cols`` packs of outputs, accumulated in registers over all inputs."""
        sums = load_tile(weights, w, 0, rows, cols, PACK)
        w += cols * PACK
        for k in range(inputs):
            at = x + load_int(tables, table + k)
            sums = outer(sums, arena, at, x_stride, weights, w, rows, cols)
            w += cols * PACK
        store_tile(arena, y, y_stride, clamp(sums, low, high), cols)

    @inline
    def all_pixels(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, pixels, low, high):
        for _ in range(pixels // rows):
            tile(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, low, high)
            x += rows * x_stride
            y += rows * y_stride

    return all_pixels


tile41, tile42, tile43 = make_tile(4, 1), make_tile(4, 2), make_tile(4, 3)
tile21, tile22, tile23 = make_tile(2, 1), make_tile(2, 2), make_tile(2, 3)
tile11, tile12, tile13 = make_tile(1, 1), make_tile(1, 2), make_tile(1, 3)


def make_columns(cols, four, two, one):
    @kernel
    def columns(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, pixels, low, high):
        """``cols`` packs of outputs at all pixels: tiles of four, then what is left."""
        keep_separate()
        four(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, pixels, low, high)
        done = pixels // 4 * 4
        x += done * x_stride
        y += done * y_stride
        if pixels & 2:
            two(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, 2, low, high)
            x += 2 * x_stride
            y += 2 * y_stride
        if pixels & 1:
            one(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, 1, low, high)

    return columns


columns1 = make_columns(1, tile41, tile21, tile11)
columns2 = make_columns(2, tile42, tile22, tile12)
columns3 = make_columns(3, tile43, tile23, tile13)


@kernel
def pointwise(arena, weights, tables, x, y, w, table, pixels, x_stride, y_stride, groups, inputs, packs, activation):
    """(pixels, x_stride) -> (pixels, y_stride). ``table`` says where in a pixel each input of each group stands."""
    keep_separate()
    low_limit, high_limit = limits(activation)
    low, high = splat(low_limit, PACK), splat(high_limit, PACK)
    for _ in range(groups):
        left = packs
        while left > 0:
            cols = min(left, TILE_PACKS)
            if cols == 3:
                columns3(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, pixels, low, high)
            elif cols == 2:
                columns2(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, pixels, low, high)
            else:
                columns1(arena, x, x_stride, y, y_stride, weights, w, tables, table, inputs, pixels, low, high)
            w += cols * PACK * (1 + inputs)
            y += cols * PACK
            left -= cols
        table += inputs
