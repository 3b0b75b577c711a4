"""3x3 depthwise convolution of channels-last maps."""

from .abi import PACK
from .common import clamp, inline, kernel
from .simd import fma, keep_separate, load_tile, splat, store_tile


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
def depthwise(arena, weights, x, y, w, height, width, new_height, new_width, stride, channels):
    """(H, W, channels) -> (H', W', channels), ReLU6. Taps outside the map are left out."""
    keep_separate()
    x_row = width * channels
    for i in range(new_height):
        top = max(0, 1 - i * stride)
        bottom = min(3, height + 1 - i * stride)
        for j in range(new_width):
            left = max(0, 1 - j * stride)
            right = min(3, width + 1 - j * stride)
            source = x + (i * stride - 1) * x_row + (j * stride - 1) * channels
            c = 0
            while c + 8 * PACK <= channels:
                pixel8(arena, source + c, x_row, channels, weights, w + c, y + c, top, bottom, left, right)
                c += 8 * PACK
            while c < channels:
                pixel1(arena, source + c, x_row, channels, weights, w + c, y + c, top, bottom, left, right)
                c += PACK
            y += channels
