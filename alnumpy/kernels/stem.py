"""The stem: a dense 3x3 convolution of the three colour planes."""

from .abi import LINE, STEM_ROWS
from .common import INFINITY, inline, kernel, round_up
from .pool import add_to_totals, clear_totals
from .simd import LANES, broadcast_tile, clamp, load, load_float, outer, splat, store, store_float, store_tile

COLORS = 3
BAND = 8  # rows; such a band of a tile's channels is still in cache when its sums are taken


@kernel
def pad_image(images, arena, y, height, width, border):
    """(3, H, W) -> (H + 2 * border, 3, LINE + row), zero around the picture; a row's left border is its padding."""
    row = LINE + round_up(width, LINE)
    zero = splat(0.0, LANES)
    whole = width // LANES * LANES
    above = border * COLORS * row
    for i in range(0, above, LANES):
        store(arena, y + i, zero)
    y += above
    for i in range(height):
        for c in range(COLORS):
            source = (c * height + i) * width
            for j in range(0, LINE, LANES):
                store(arena, y + j, zero)
            y += LINE
            for j in range(0, whole, LANES):
                store(arena, y + j, load(images, source + j, LANES))
            for j in range(whole, row - LINE, LANES):
                store(arena, y + j, zero)
            for j in range(whole, width):
                store_float(arena, y + j, load_float(images, source + j))
            y += row - LINE
    for i in range(0, above + LINE, LANES):
        store(arena, y + i, zero)


def make_tile(cols):
    @inline
    def tile(arena, x, row, y, plane, weights, w, zero, infinity):
        """Computes STEM_ROWS channels of ``cols`` adjacent vectors; ``x`` is the upper left input of the first."""
        sums = broadcast_tile(weights, w, 1, STEM_ROWS, cols, LANES)
        w += STEM_ROWS
        for c in range(COLORS):
            for ky in range(3):
                for kx in range(3):
                    at = x + (ky * COLORS + c) * row + kx
                    sums = outer(sums, weights, w, 1, arena, at, STEM_ROWS, cols)
                    w += STEM_ROWS
        store_tile(arena, y, plane, clamp(sums, zero, infinity), cols)

    return tile


tile_8x1, tile_8x2 = make_tile(1), make_tile(2)


@kernel
def stem(arena, weights, x, y, w, height, width, channels, plane, totals):
    """The padded image -> planar (channels, H, row), ReLU, with the sum and maximum of each channel."""
    y_row = round_up(width, LINE)
    row = LINE + y_row
    zero, infinity = splat(0.0, LANES), splat(INFINITY, LANES)
    weights_of_tile = STEM_ROWS * (1 + 9 * COLORS)
    clear_totals(arena, totals, round_up(channels, STEM_ROWS))
    for first in range(0, height, BAND):
        last = min(height, first + BAND)
        for c in range(0, channels, STEM_ROWS):
            tile_w = w + c // STEM_ROWS * weights_of_tile
            for i in range(first, last):
                source = x + i * COLORS * row + LINE - 1
                target = y + c * plane + i * y_row
                j = 0
                while j + LANES < width:
                    tile_8x2(arena, source + j, row, target + j, plane, weights, tile_w, zero, infinity)
                    j += 2 * LANES
                if j < width:
                    tile_8x1(arena, source + j, row, target + j, plane, weights, tile_w, zero, infinity)
            rows = y + c * plane + first * y_row
            add_to_totals(arena, rows, plane, STEM_ROWS, last - first, width, totals + c * 2 * LINE)
