"""3x3 pools of channels-last maps, stride 2, padding 1."""

from .abi import PACK
from .common import INFINITY, kernel
from .simd import add, load, maximum_or_nan, multiply, splat, store


@kernel
def max_pool(arena, x, y, height, width, new_height, new_width, channels):
    """(H, W, channels) -> the maximum of each window; pixels outside the map do not count."""
    for i in range(new_height):
        for j in range(new_width):
            for c in range(0, channels, PACK):
                highest = splat(-INFINITY, PACK)
                for row in range(max(0, 2 * i - 1), min(height, 2 * i + 2)):
                    for column in range(max(0, 2 * j - 1), min(width, 2 * j + 2)):
                        highest = maximum_or_nan(highest, load(arena, x + (row * width + column) * channels + c, PACK))
                store(arena, y + c, highest)
            y += channels


@kernel
def mean_pool(arena, x, y, height, width, new_height, new_width, channels):
    """(H, W, channels) -> the mean of each window of nine; pixels outside the map count as zeros."""
    for i in range(new_height):
        for j in range(new_width):
            for c in range(0, channels, PACK):
                total = splat(0.0, PACK)
                for row in range(max(0, 2 * i - 1), min(height, 2 * i + 2)):
                    for column in range(max(0, 2 * j - 1), min(width, 2 * j + 2)):
                        total = add(total, load(arena, x + (row * width + column) * channels + c, PACK))
                store(arena, y + c, multiply(total, splat(1 / 9, PACK)))
            y += channels
