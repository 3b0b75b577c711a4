"""Depthwise convolution of channels-last maps: any kernel, stride and padding."""

from .abi import PACK
from .activation import SILU, activate, limits
from .common import inline, kernel
from .simd import LANES, clamp, fma, load_tile, row_of_taps, splat, store_tile

WIDE = max(LANES, PACK)  # channels at once; what is left is a pack


def make_edge(cols):
    @inline
    def edge(arena, x, x_row, channels, weights, w, y, taps, top, bottom, left, right, low, high):
        """``cols`` packs of channels of one output; taps ``top`` to ``bottom`` and ``left`` to ``right`` exist."""
        sums = load_tile(weights, w, 0, 1, cols, PACK)
        for ky in range(top, bottom):
            for kx in range(left, right):
                kernel = load_tile(weights, w + (1 + taps * ky + kx) * channels, 0, 1, cols, PACK)
                sums = fma(kernel, load_tile(arena, x + ky * x_row + kx * channels, 0, 1, cols, PACK), sums)
        store_tile(arena, y, 0, clamp(sums, low, high), cols)

    return edge


edge_1x1, edge_1x8 = make_edge(1), make_edge(8)


@kernel
def one_pixel(arena, x, x_row, channels, weights, w, y, taps, top, bottom, left, right, low_limit, high_limit):
    """All channels of one output, of which some taps may lie outside the map."""
    low, high = splat(low_limit, PACK), splat(high_limit, PACK)
    c = 0
    while c + 8 * PACK <= channels:
        edge_1x8(arena, x + c, x_row, channels, weights, w + c, y + c, taps, top, bottom, left, right, low, high)
        c += 8 * PACK
    while c < channels:
        edge_1x1(arena, x + c, x_row, channels, weights, w + c, y + c, taps, top, bottom, left, right, low, high)
        c += PACK


def make_pack_of_pixels(rows, taps, stride, lanes):
    @inline
    def pack_of_pixels(arena, x, x_row, channels, weights, w, y, top, bottom, low, high):
        """``lanes`` channels of ``rows`` adjacent outputs."""
        sums = load_tile(weights, w, 0, rows, 1, lanes)
        for ky in range(top, bottom):
            kernel = w + (1 + taps * ky) * channels
            sums = row_of_taps(sums, arena, x + ky * x_row, channels, weights, kernel, taps, stride, 1)
        store_tile(arena, y, channels, clamp(sums, splat(low, lanes), splat(high, lanes)), 1)

    return pack_of_pixels


def make_pixels(rows, taps, stride):
    wide, narrow = (make_pack_of_pixels(rows, taps, stride, lanes) for lanes in (WIDE, PACK))

    @kernel
    def pixels(arena, x, x_row, channels, weights, w, y, top, bottom, low, high):
        """All channels of ``rows`` adjacent outputs whose taps all exist in their rows."""
        c = 0
        while c + WIDE <= channels:
            wide(arena, x + c, x_row, channels, weights, w + c, y + c, top, bottom, low, high)
            c += WIDE
        while c < channels:
            narrow(arena, x + c, x_row, channels, weights, w + c, y + c, top, bottom, low, high)
            c += PACK

    return pixels


pixels_4x1_k3_s1, pixels_4x1_k3_s2 = make_pixels(4, 3, 1), make_pixels(4, 3, 2)
pixels_2x1_k3_s1, pixels_2x1_k3_s2 = make_pixels(2, 3, 1), make_pixels(2, 3, 2)
pixels_4x1_k5_s1, pixels_4x1_k5_s2 = make_pixels(4, 5, 1), make_pixels(4, 5, 2)


@kernel
def depthwise(
    arena, weights, x, y, w, height, width, new_height, new_width, taps, stride, top, left, channels, activation
):
    """(H, W, channels) -> (H', W', channels). ``top`` and ``left`` are the padding; taps outside are left out."""
    low, high = limits(activation)
    x_row = width * channels
    for i in range(new_height):
        first = max(0, top - i * stride)
        last = min(taps, height + top - i * stride)
        y_row = y
        j = 0
        while j < new_width:
            column = j * stride - left
            source = x + (i * stride - top) * x_row + column * channels
            if column >= 0 and column + 3 * stride + taps <= width and (taps == 3 or taps == 5) and stride <= 2:
                count = 4
                if taps == 3:
                    if stride == 1:
                        pixels_4x1_k3_s1(arena, source, x_row, channels, weights, w, y, first, last, low, high)
                    else:
                        pixels_4x1_k3_s2(arena, source, x_row, channels, weights, w, y, first, last, low, high)
                elif stride == 1:
                    pixels_4x1_k5_s1(arena, source, x_row, channels, weights, w, y, first, last, low, high)
                else:
                    pixels_4x1_k5_s2(arena, source, x_row, channels, weights, w, y, first, last, low, high)
            elif column >= 0 and column + stride + taps <= width and taps == 3 and stride <= 2:
                count = 2
                if stride == 1:
                    pixels_2x1_k3_s1(arena, source, x_row, channels, weights, w, y, first, last, low, high)
                else:
                    pixels_2x1_k3_s2(arena, source, x_row, channels, weights, w, y, first, last, low, high)
            else:
                count = 1
                start, end = max(0, -column), min(taps, width - column)
                one_pixel(
                    arena, source, x_row, channels, weights, w, y, taps, first, last, start, end, low, high
                )  # fmt: skip
            j += count
            y += count * channels
        if activation >= SILU:
            activate(arena, y_row, new_width * channels, activation)
