"""Depthwise convolution of channels-last maps: any kernel, stride and padding."""

from .abi import PACK
from .activation import SILU, activate, limits
from .common import inline, kernel
from .simd import LANES, clamp, fma, load, load_tile, row_of_taps, splat, store, store_tile

WIDE = max(LANES, PACK)  # channels at once; packs are left over


@kernel
def one_pixel(arena, x, x_row, channels, weights, w, y, taps, top, bottom, left, right, low_limit, high_limit):
    """All channels of one output, for any kernel; taps ``top`` to ``bottom`` and ``left`` to ``right`` exist."""
    low, high = splat(low_limit, PACK), splat(high_limit, PACK)
    for c in range(0, channels, PACK):
        total = load(weights, w + c, PACK)
        for ky in range(top, bottom):
            for kx in range(left, right):
                kernel = load(weights, w + (1 + taps * ky + kx) * channels + c, PACK)
                total = fma(kernel, load(arena, x + ky * x_row + kx * channels + c, PACK), total)
        store(arena, y + c, clamp(total, low, high))


def make_pack_of_pixels(rows, taps, stride, lanes):
    @inline
    def pack_of_pixels(arena, x, x_row, channels, first, last, zeros, weights, w, y, top, bottom, low, high):
        """Computes ``lanes`` channels of ``rows`` adjacent outputs."""
        sums = load_tile(weights, w, 0, rows, 1, lanes)
        for ky in range(top, bottom):
            kernel = w + (1 + taps * ky) * channels
            row = x + ky * x_row
            sums = row_of_taps(sums, arena, row, channels, first, last, zeros, weights, kernel, taps, stride, 1)
        store_tile(arena, y, channels, clamp(sums, splat(low, lanes), splat(high, lanes)), 1)

    return pack_of_pixels


def make_pixels(rows, taps, stride):
    wide, narrow = (make_pack_of_pixels(rows, taps, stride, lanes) for lanes in (WIDE, PACK))

    @kernel
    def pixels(arena, x, x_row, channels, column, width, zeros, weights, w, y, top, bottom, low, high):
        """Computes all channels of ``rows`` adjacent outputs. The first tap of the first one sees ``column``."""
        first, last = -column, width - column
        c = 0
        while c + WIDE <= channels:
            wide(arena, x + c, x_row, channels, first, last, zeros, weights, w + c, y + c, top, bottom, low, high)
            c += WIDE
        while c < channels:
            narrow(arena, x + c, x_row, channels, first, last, zeros, weights, w + c, y + c, top, bottom, low, high)
            c += PACK

    return pixels


def make_row(taps, stride):
    pixels_x4, pixels_x2, pixels_x1 = (make_pixels(rows, taps, stride) for rows in (4, 2, 1))

    @kernel
    def row(arena, x, x_row, width, left, channels, zeros, weights, w, y, new_width, top, bottom, low, high):
        """Computes a row of outputs. Columns beyond the map are zeros, which are faster to multiply than to skip."""
        column = -left
        x -= left * channels
        while new_width >= 4:
            pixels_x4(arena, x, x_row, channels, column, width, zeros, weights, w, y, top, bottom, low, high)
            new_width -= 4
            column += 4 * stride
            x += 4 * stride * channels
            y += 4 * channels
        if new_width >= 2:
            pixels_x2(arena, x, x_row, channels, column, width, zeros, weights, w, y, top, bottom, low, high)
            new_width -= 2
            column += 2 * stride
            x += 2 * stride * channels
            y += 2 * channels
        if new_width == 1:
            pixels_x1(arena, x, x_row, channels, column, width, zeros, weights, w, y, top, bottom, low, high)

    return row


row_k3_s1, row_k3_s2, row_k5_s1, row_k5_s2 = make_row(3, 1), make_row(3, 2), make_row(5, 1), make_row(5, 2)


@kernel
def depthwise(
    arena, weights, x, y, w, height, width, new_height, new_width, taps, stride, top, left, channels, activation
):
    """(H, W, channels) -> (H', W', channels). ``top`` and ``left`` are the padding.

    The weights: biases, the taps row by row, and as many zeros as there are channels.
    """
    low, high = limits(activation)
    x_row = width * channels
    zeros = ((weights - arena) >> 2) + w + (1 + taps * taps) * channels
    for i in range(new_height):
        first = max(0, top - i * stride)
        last = min(taps, height + top - i * stride)
        source = x + (i * stride - top) * x_row
        if taps == 3 and stride == 1:
            row_k3_s1(
                arena, source, x_row, width, left, channels, zeros, weights, w, y, new_width, first, last, low, high
            )
        elif taps == 3 and stride == 2:
            row_k3_s2(
                arena, source, x_row, width, left, channels, zeros, weights, w, y, new_width, first, last, low, high
            )
        elif taps == 5 and stride == 1:
            row_k5_s1(
                arena, source, x_row, width, left, channels, zeros, weights, w, y, new_width, first, last, low, high
            )
        elif taps == 5 and stride == 2:
            row_k5_s2(
                arena, source, x_row, width, left, channels, zeros, weights, w, y, new_width, first, last, low, high
            )
        else:
            for j in range(new_width):
                column = j * stride - left
                start, end = max(0, -column), min(taps, width - column)
                one_pixel(
                    arena, source + column * channels, x_row, channels, weights, w, y + j * channels, taps, first, last,
                    start, end, low, high,
                )  # fmt: skip
        if activation >= SILU:
            activate(arena, y, new_width * channels, activation)
        y += new_width * channels
