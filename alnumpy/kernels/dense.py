"""1x1 convolution of channels-last maps whose inputs stand one after the other: a product of two dense matrices.

A tile is up to ROWS pixels by COLS vectors of LINE outputs, whose sums stay in registers over all inputs; LINE lanes
are one register of AVX-512, and several of other CPUs. A chunk of pixels, which stays in the second level cache, meets
all weights before the next; weights come from farther away, so there should be few chunks.
"""

from .abi import LINE, PANEL
from .activation import SILU, activate, limits
from .common import kernel
from .simd import LANES, add, clamp, load_tile, outer, quotient, splat, store_tile, store_tile_and_half

ROWS, COLS = (12, 2) if LANES == 16 else (6, 1) if LANES == 8 else (3, 1)  # as many as the registers hold
FEW = 4 if LANES == 16 else 3 if LANES == 8 else 1


def make_tiles(rows, cols):
    @kernel
    def tiles(arena, x, x_stride, y, y_stride, other, weights, bias, w, panel, inputs, count, half, low, high):
        """``count`` tiles of ``rows`` pixels; ``half``: of the last vector only the lower half are outputs."""
        low_limit, high_limit = splat(low, LINE), splat(high, LINE)
        for _ in range(count):
            sums = load_tile(weights, bias, 0, rows, cols, LINE)
            at = w
            for k in range(inputs):
                sums = outer(sums, arena, x + k, x_stride, weights, at, rows, cols)
                at += panel
            if other >= 0:
                sums = add(sums, load_tile(arena, other, y_stride, rows, cols, LINE))
                other += rows * y_stride
            sums = clamp(sums, low_limit, high_limit)
            if half:
                store_tile_and_half(arena, y, y_stride, sums, cols)
            else:
                store_tile(arena, y, y_stride, sums, cols)
            x += rows * x_stride
            y += rows * y_stride

    return tiles


tiles_many_x1, tiles_few_x1, tiles_1x1 = make_tiles(ROWS, 1), make_tiles(FEW, 1), make_tiles(1, 1)
tiles_many_x2, tiles_few_x2, tiles_1x2 = make_tiles(ROWS, COLS), make_tiles(FEW, COLS), make_tiles(1, COLS)


@kernel
def dense(arena, weights, x, y, other, w, pixels, x_stride, y_stride, inputs, chunk, activation):
    """(pixels, x_stride) -> (pixels, y_stride), plus the map ``other`` where there is one.

    Weights are panels of PANEL outputs, the last of PANEL or LINE: biases, then weights input by input.
    """
    low, high = limits(activation)
    first = 0
    while first < pixels:  # a range whose step is not constant would divide
        count = min(chunk, pixels - first)
        many = quotient(count, ROWS)
        few = quotient(count - many * ROWS, FEW)
        ones = count - many * ROWS - few * FEW
        source, target = x + first * x_stride, y + first * y_stride
        x_few, y_few = source + many * ROWS * x_stride, many * ROWS * y_stride
        x_one, y_one = x_few + few * FEW * x_stride, y_few + few * FEW * y_stride
        residual = other + first * y_stride if other >= 0 else other
        r_few, r_one = (residual + y_few, residual + y_one) if other >= 0 else (other, other)
        at = w
        for start in range(0, y_stride, PANEL):
            panel = PANEL if y_stride - start > LINE else LINE
            for column in range(0, panel, COLS * LINE):
                here = start + column
                if here >= y_stride:
                    break
                bias, products_at = at + column, at + panel + column
                to, plus = target + here, residual + here if other >= 0 else other
                plus_few, plus_one = (r_few + here, r_one + here) if other >= 0 else (other, other)
                half = y_stride - here < COLS * LINE and (y_stride - here) % LINE != 0
                if COLS == 2 and panel == PANEL:
                    tiles_many_x2(
                        arena, source, x_stride, to, y_stride, plus, weights, bias, products_at, panel, inputs, many,
                        half, low, high,
                    )  # fmt: skip
                    tiles_few_x2(
                        arena, x_few, x_stride, to + y_few, y_stride, plus_few, weights, bias, products_at, panel,
                        inputs, few, half, low, high,
                    )  # fmt: skip
                    tiles_1x2(
                        arena, x_one, x_stride, to + y_one, y_stride, plus_one, weights, bias, products_at, panel,
                        inputs, ones, half, low, high,
                    )  # fmt: skip
                else:
                    tiles_many_x1(
                        arena, source, x_stride, to, y_stride, plus, weights, bias, products_at, panel, inputs, many,
                        half, low, high,
                    )  # fmt: skip
                    tiles_few_x1(
                        arena, x_few, x_stride, to + y_few, y_stride, plus_few, weights, bias, products_at, panel,
                        inputs, few, half, low, high,
                    )  # fmt: skip
                    tiles_1x1(
                        arena, x_one, x_stride, to + y_one, y_stride, plus_one, weights, bias, products_at, panel,
                        inputs, ones, half, low, high,
                    )  # fmt: skip
            at += panel * (1 + inputs)
        if activation >= SILU:
            activate(arena, target, count * y_stride, activation)
        first += chunk
