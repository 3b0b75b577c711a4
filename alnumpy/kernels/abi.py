"""The interface between a program and the kernels that run it. Does not import Numba."""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np

LINE = 16  # floats; planar rows are padded to this: one vector of the widest CPUs, or several of narrower ones
PACK = 8  # channels; packed weights and channels-last groups are padded to this
STEM_ROWS = 8  # output channels that the stem computes together
TILE_PACKS = 3  # packs of output channels that a pointwise tile computes together
PANEL = 32  # output channels whose weights lie side by side for each input of a dense convolution
CLAMPS = 3  # activations with codes below this clamp to an interval
COLUMNS = 24  # columns of the step table: the operation, then its arguments
NONE = -1  # the place of a buffer that a step can do without
ACTIVATIONS = {  # codes of the activations that kernels compute
    "": 0, "relu": 1, "relu6": 2, "silu": 3, "hardswish": 4, "sigmoid": 5, "hardsigmoid": 6,
}  # fmt: skip


class Op(IntEnum):
    """The operations: each a code, and the arguments of a step by name, in the order of the step table.

    The kernel of the same name takes them in this order, after the addresses of its buffers. ``x`` and ``y`` are the
    places of the input and the output in the arena, ``w`` and ``table`` those of the weights and the index table.
    """

    arguments: tuple[str, ...]

    def __new__(cls, code: int, arguments: str = "") -> Op:
        op = int.__new__(cls, code)
        op._value_, op.arguments = code, tuple(arguments.split())
        return op

    PAD_IMAGE = 0, "y height width border"
    STEM = 1, "x y w height width channels plane totals"
    PLANAR_BLOCK = (
        2,
        "x y w table height width new_height new_width stride channels groups expand_inputs project_inputs outputs "
        "band x_plane y_plane channel spatial totals source expanded filtered",
    )
    PLANAR_MEANS = 3, "totals y height width channels"
    PLANAR_POOL = 4, "x maps height width channels plane channel"
    TO_CHANNELS_LAST = 5, "x y height width channels plane channel spatial"
    POINTWISE = 6, "x y w table pixels x_stride y_stride groups inputs packs activation"
    DEPTHWISE = 7, "x y w height width new_height new_width taps stride top left channels activation"
    MEANS = 8, "x y height width channels"
    POOL = 9, "x maps height width channels real_channels channel real"
    SCALE = 10, "x height width channels channel spatial"
    CHANNEL_ATTENTION = 11, "means hidden y w1 table1 w2 table2 width channels hidden_channels"
    SPATIAL_ATTENTION = 12, "maps y w height width"
    EMBEDDING = 13, "x height width channels size channel spatial y"
    IMAGE_CONVOLUTION = 14, "x y w new_height new_width x_row stride run runs x_run y_stride activation"
    COPY = 15, "x y table pixels x_stride y_stride start channels"
    ADD_MAPS = 16, "x other y count activation"
    ACTIVATE = 17, "x count code"
    MAX_POOL = 18, "x y height width new_height new_width channels"
    MEAN_POOL = 19, "x y height width new_height new_width channels"
    DENSE = 21, "x y other w pixels x_stride y_stride run runs x_run chunk activation"
    SQUEEZE_EXCITE = 20, "means hidden y w1 table1 w2 table2 width hidden_channels channels activation gate"


# The version of this interface. Libraries of kernels tell theirs, and are not run if it is another one.
NUMBER = zlib.crc32(
    repr([LINE, PACK, STEM_ROWS, TILE_PACKS, PANEL, CLAMPS, COLUMNS, NONE, ACTIVATIONS]).encode()
    + "".join(f"{op.name} {op.value} {op.arguments}" for op in Op).encode()
)


def address(array: np.ndarray) -> int:
    """Where an array's data begins in memory."""
    return array.__array_interface__["data"][0]
