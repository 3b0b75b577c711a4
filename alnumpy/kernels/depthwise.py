"""3x3 depthwise convolution of channels-last maps."""

from .abi import PACK
from .common import inline, kernel
from .simd import clamp, fma, load_tile, row_of_taps, splat, store_tile


def make_pixel(cols):
    @inline
    def pixel(arena, x, x_row, width, weights, w, y, top, bottom, left, right):
        """``cols`` packs of channels of one output; taps ``top`` to ``bottom`` and ``left`` to ``right`` exist."""
        sums = load_tile(weights, w, 0, 1, cols, PACK)
        for ky in range(top, bottom):
            for kx in range(left, right):
                taps = load_tile(weights, w + (1 + 3 * ky + kx) * width, 0, 1, cols, PACK)
                sums = fma(taps, load_tile(arena, x + ky * x_row + kx * width, 0, 1, cols, PACK), sums)
        store_tile(arena, y, 0, clamp(sums, splat(0.0, PACK), splat(6.0, PACK)), cols)

    return pixel


pixel1, pixel8 = make_pixel(1), make_pixel(8)


@kernel
def one_pixel(arena, x, x_row, channels, weights, w, y, top, bottom, left, right):
    """All channels of one output at the map's edge."""
    c = 0
    while c + 8 * PACK <= channels:
        pixel8(arena, x + c, x_row, channels, weights, w + c, y + c, top, bottom, left, right)
        c += 8 * PACK
    while c < channels:
        pixel1(arena, x + c, x_row, channels, weights, w + c, y + c, top, bottom, left, right)
        c += PACK


def make_pixels(count, stride):
    @kernel
    def pixels(arena, x, x_row, channels, weights, w, y, top, bottom):
        """All channels of ``count`` adjacent outputs whose taps all exist in their rows."""
        for c in range(0, channels, PACK):
            sums = load_tile(weights, w + c, 0, count, 1, PACK)
            for ky in range(top, bottom):
                taps = w + c + (1 + 3 * ky) * channels
                sums = row_of_taps(sums, arena, x + c + ky * x_row, channels, weights, taps, 3, stride, 1)
            store_tile(arena, y + c, channels, clamp(sums, splat(0.0, PACK), splat(6.0, PACK)), 1)

    return pixels


four1, two1, four2, two2 = make_pixels(4, 1), make_pixels(2, 1), make_pixels(4, 2), make_pixels(2, 2)


@kernel
def depthwise(arena, weights, x, y, w, height, width, new_height, new_width, stride, channels):
    """(H, W, channels) -> (H', W', channels), ReLU6. Taps outside the map are left out."""
    x_row = width * channels
    for i in range(new_height):
        top = max(0, 1 - i * stride)
        bottom = min(3, height + 1 - i * stride)
        j = 0
        while j < new_width:
            source = x + (i * stride - 1) * x_row + (j * stride - 1) * channels
            room = (width - 2 - j * stride) // stride + 1 if j * stride >= 1 and stride <= 2 else 0  # with all taps
            if room >= 4:
                count = 4
                if stride == 1:
                    four1(arena, source, x_row, channels, weights, w, y, top, bottom)
                else:
                    four2(arena, source, x_row, channels, weights, w, y, top, bottom)
            elif room >= 2:
                count = 2
                if stride == 1:
                    two1(arena, source, x_row, channels, weights, w, y, top, bottom)
                else:
                    two2(arena, source, x_row, channels, weights, w, y, top, bottom)
            else:
                count = 1
                left = max(0, 1 - j * stride)
                right = min(3, width + 1 - j * stride)
                one_pixel(arena, source, x_row, channels, weights, w, y, top, bottom, left, right)
            j += count
            y += count * channels
