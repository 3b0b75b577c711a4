"""What a program and the kernels that run it agree on. No Numba here."""

from enum import IntEnum

import numpy as np

LINE = 16  # floats: planar rows are padded to this, which is one vector of the widest CPU, or several of a narrower
PACK = 8  # channels: packed weights and channels-last groups are padded to this
STEM_ROWS = 8  # output channels that the stem computes together
TILE_PACKS = 3  # packs of output channels that a pointwise tile computes together
COLUMNS = 24  # of the step table: the operation, then its arguments


class Op(IntEnum):
    """Codes of the operations. A step's arguments are those of the kernel of the same name, in order."""

    PAD_IMAGE = 0
    STEM = 1
    PLANAR_BLOCK = 2
    PLANAR_MEANS = 3
    PLANAR_POOL = 4
    TO_CHANNELS_LAST = 5
    POINTWISE = 6
    DEPTHWISE = 7
    MEANS = 8
    POOL = 9
    SCALE = 10
    CHANNEL_ATTENTION = 11
    SPATIAL_ATTENTION = 12
    EMBEDDING = 13


def address(array: np.ndarray) -> int:
    """Where an array's data begins in memory."""
    return array.__array_interface__["data"][0]
