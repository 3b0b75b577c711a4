"""Convolutions over all inputs at once, channels last: a product of two dense matrices.

A pixel's inputs are ``runs`` of ``run`` floats, ``x_run`` floats apart: one run for a 1x1 convolution of a map whose
channels are adjacent, and one for each row and colour that the taps see in a convolution of the picture.

A tile is up to ROWS pixels by COLS vectors of LINE outputs, whose sums stay in registers over all inputs; LINE lanes
are one register of AVX-512, and several of other CPUs. A chunk of pixels, which stays in the second level cache, is
multiplied by all weights before the next; weights come from farther away, so there should be few chunks.
"""

from .abi import LINE, PANEL
from .activation import SILU, activate, limits
from .common import kernel
from .simd import LANES, add, clamp, load_tile, outer, quotient, splat, store_tile, store_tile_and_half

ROWS, COLS = (12, 2) if LANES == 16 else (6, 1) if LANES == 8 else (3, 1)  # as many as the registers hold
FEW = 4 if LANES == 16 else 3 if LANES == 8 else 1


def make_tiles(rows, cols):
    @kernel
    def tiles(
        arena, x, x_stride, run, runs, x_run, y, y_stride, other, weights, bias, w, panel, count, half, low, high
    ):  # fmt: skip
        """Computes ``count`` tiles of ``rows`` pixels; ``half``: only the lower half of the last vector are outputs."""
        low_limit, high_limit = splat(low, LINE), splat(high, LINE)
        for _ in range(count):
            sums = load_tile(weights, bias, 0, rows, cols, LINE)
            at = w
            source = x
            for _ in range(runs):
                for k in range(run):
                    sums = outer(sums, arena, source + k, x_stride, weights, at, rows, cols)
                    at += panel
                source += x_run
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


def make_columns(cols):
    many, few, one = make_tiles(ROWS, cols), make_tiles(FEW, cols), make_tiles(1, cols)

    @kernel
    def columns(
        arena, x, x_stride, run, runs, x_run, y, y_stride, other, weights, bias, w, panel, count, half, low, high
    ):  # fmt: skip
        """Computes ``count`` pixels by ``cols`` vectors of outputs, in large tiles as far as they fit."""
        for_many = quotient(count, ROWS)
        done = for_many * ROWS
        for_few = quotient(count - done, FEW)
        many(
            arena, x, x_stride, run, runs, x_run, y, y_stride, other, weights, bias, w, panel, for_many, half, low, high
        )  # fmt: skip
        x += done * x_stride
        y += done * y_stride
        other += done * y_stride if other >= 0 else 0
        few(arena, x, x_stride, run, runs, x_run, y, y_stride, other, weights, bias, w, panel, for_few, half, low, high)
        done += for_few * FEW
        x += for_few * FEW * x_stride
        y += for_few * FEW * y_stride
        other += for_few * FEW * y_stride if other >= 0 else 0
        one(
            arena, x, x_stride, run, runs, x_run, y, y_stride, other, weights, bias, w, panel, count - done, half, low,
            high,
        )  # fmt: skip

    return columns


columns_x1, columns_x2 = make_columns(1), make_columns(COLS)


@kernel
def all_outputs(arena, weights, x, x_stride, run, runs, x_run, y, y_stride, other, w, count, activation):
    """Multiplies ``count`` pixels, ``x_stride`` floats apart, by all panels of weights."""
    low, high = limits(activation)
    for start in range(0, y_stride, PANEL):
        panel = PANEL if y_stride - start > LINE else LINE
        for column in range(0, panel, COLS * LINE):
            here = start + column
            if here >= y_stride:
                break
            bias, products_at = w + column, w + panel + column
            to, plus = y + here, other + here if other >= 0 else other
            half = y_stride - here < COLS * LINE and (y_stride - here) % LINE != 0
            if COLS == 2 and panel == PANEL:
                columns_x2(
                    arena, x, x_stride, run, runs, x_run, to, y_stride, plus, weights, bias, products_at, panel, count,
                    half, low, high,
                )  # fmt: skip
            else:
                columns_x1(
                    arena, x, x_stride, run, runs, x_run, to, y_stride, plus, weights, bias, products_at, panel, count,
                    half, low, high,
                )  # fmt: skip
        w += panel * (1 + runs * run)
    if activation >= SILU:
        activate(arena, y, count * y_stride, activation)


@kernel
def dense(arena, weights, x, y, other, w, pixels, x_stride, y_stride, run, runs, x_run, chunk, activation):
    """(pixels, x_stride) -> (pixels, y_stride), plus the map ``other`` if there is one.

    Weights are panels of PANEL outputs, the last one of PANEL or LINE: biases, then weights input by input.
    """
    first = 0
    while first < pixels:  # a range with a variable step would divide
        count = min(chunk, pixels - first)
        plus = other + first * y_stride if other >= 0 else other
        source, target = x + first * x_stride, y + first * y_stride
        all_outputs(
            arena, weights, source, x_stride, run, runs, x_run, target, y_stride, plus, w, count, activation
        )  # fmt: skip
        first += chunk


@kernel
def image_convolution(
    arena, weights, x, y, w, new_height, new_width, x_row, stride, run, runs, x_run, y_stride, activation
):
    """The padded picture -> (H', W', y_stride). ``x`` is the input of the first tap of the first pixel."""
    for _ in range(new_height):
        all_outputs(arena, weights, x, stride, run, runs, x_run, y, y_stride, -1, w, new_width, activation)
        x += stride * x_row
        y += new_width * y_stride
