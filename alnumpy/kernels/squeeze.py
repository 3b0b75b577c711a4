"""Squeeze-and-excitation: a factor for each channel from the means of all."""

from .abi import PACK
from .common import kernel, round_up
from .pointwise import pointwise


@kernel
def squeeze_excite(
    arena, weights, tables, means, hidden, y, w1, table1, w2, table2, width, hidden_channels, channels, activation, gate
):  # fmt: skip
    """Means (width) -> gate(fc2(activation(fc1(means))))."""
    padded = round_up(hidden_channels, PACK)
    pointwise(
        arena, weights, tables, means, hidden, w1, table1, 1, width, padded, 1, channels, padded // PACK, activation
    )
    pointwise(arena, weights, tables, hidden, y, w2, table2, 1, padded, width, 1, hidden_channels, width // PACK, gate)
