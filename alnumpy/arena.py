"""A step table and the arena it works in: what compiled kernels run, as plain arrays.

Steps name the buffers that they read and write; ``Steps.layout`` gives each buffer its place in one arena of float32,
where buffers that are never in use at the same time share their room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .kernels.abi import COLUMNS, LINE, Op, address

Array = np.ndarray

GUARD = 4 * LINE  # floats between buffers: vectors may be read, but never written, past a buffer's end


def round_up(value: int, multiple: int) -> int:
    """The next multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def aligned_zeros(size: int, dtype: type | np.dtype = np.float32) -> Array:
    """Zeros (size,) that start on a cache line."""
    raw = np.zeros(size + LINE, dtype)
    start = -(raw.ctypes.data // raw.itemsize) % LINE
    return raw[start : start + size]


class Packer:
    """Gives arrays their places in one flat array, each on a cache line, and fills it when all have theirs."""

    def __init__(self, dtype: type) -> None:
        self.dtype, self.size = dtype, 0
        self.parts: list[tuple[int, int, Callable[[Array], object]]] = []

    def reserve(self, size: int, fill: Callable[[Array], object]) -> int:
        """Where room for ``size`` numbers begins; ``fill`` is called with the room, zeros, by ``whole``."""
        start, self.size = self.size, round_up(self.size + size, LINE)
        self.parts.append((start, size, fill))
        return start

    def add(self, array: Array) -> int:
        return self.reserve(array.size, lambda room: np.copyto(room.reshape(array.shape), array, casting="same_kind"))

    def whole(self) -> Array:
        """The flat array."""
        array = aligned_zeros(self.size, self.dtype)
        for start, size, fill in self.parts:
            fill(array[start : start + size])
        return array


class Buffer:
    """A part of the arena, named by the steps that use it; it gets its place when all steps are known."""

    def __init__(self, size: int) -> None:
        self.size = round_up(size, LINE)

    def __add__(self, floats: int) -> Part:
        return Part(self, floats)


class Part(NamedTuple):
    """A buffer from an offset on, counted in floats."""

    buffer: Buffer
    floats: int


Argument = int | Buffer | Part


@dataclass(frozen=True)
class Layout:
    """A program for one picture size."""

    steps: Array  # int64 (steps, COLUMNS)
    labels: list[str]  # the layer that each step belongs to
    arena_size: int  # floats
    places: dict[Buffer, int]  # where each buffer begins in the arena
    life: dict[Buffer, tuple[int, int]]  # the first and the last step that use it

    @property
    def arena_bytes(self) -> int:
        return 4 * self.arena_size

    @cached_property
    def steps_address(self) -> int:
        return address(self.steps)

    def new_arena(self) -> Array:
        """float32 (arena_size,): room for all activations of one picture."""
        return aligned_zeros(self.arena_size)


class Steps:
    """A step table under construction."""

    def __init__(self) -> None:
        self.rows: list[tuple[Argument, ...]] = []
        self.labels: list[str] = []
        self.label = ""  # the layer of the steps that are added next

    def add(self, op: Op, **arguments: Argument) -> None:
        """Appends a step. Raises TypeError if its arguments are not those that ``op`` names."""
        if wrong := arguments.keys() ^ set(op.arguments):
            raise TypeError(f"{op.name}: missing or unknown arguments: {', '.join(sorted(wrong))}")
        self.rows.append((int(op), *(arguments[name] for name in op.arguments)))
        self.labels.append(self.label)

    def layout(self) -> Layout:
        """Places the buffers: each at the lowest free address among those that are alive at the same time."""
        life: dict[Buffer, tuple[int, int]] = {}
        for i, row in enumerate(self.rows):
            for item in row:
                if not isinstance(item, int):
                    buffer = item if isinstance(item, Buffer) else item.buffer
                    life[buffer] = life.get(buffer, (i, i))[0], i
        starts: dict[Buffer, int] = {}
        for buffer in sorted(life, key=lambda b: -b.size):
            first, last = life[buffer]
            start = GUARD
            for other in sorted(starts, key=lambda b: starts[b]):
                alive = life[other][0] <= last and first <= life[other][1]
                if alive and starts[other] < start + buffer.size + GUARD:
                    start = max(start, starts[other] + other.size + GUARD)
            starts[buffer] = start
        steps = np.zeros((len(self.rows), COLUMNS), np.int64)
        for i, row in enumerate(self.rows):
            for column, item in enumerate(row):
                match item:
                    case Buffer():
                        steps[i, column] = starts[item]
                    case Part(buffer, floats):
                        steps[i, column] = starts[buffer] + floats
                    case _:
                        steps[i, column] = item
        end = max(start + buffer.size for buffer, start in starts.items())
        return Layout(steps, self.labels, end + GUARD, starts, life)
