"""Spec and weights compiled into a flat program: plain arrays that a kernel can walk through without Python.

A ``Program`` holds what does not depend on the picture's size: the weights, batch norm folded in, in the order in
which the kernels read them, and index tables. ``Program.layout`` adds what does: the step table, whose rows are the
code of an operation and its integer arguments, and the place of every buffer in one arena of float32.

Two layouts of activations are in use:

* planar: one plane a channel, rows padded to ``LINE`` floats. Vectors run along the row, so that layers of few channels
  and many pixels fill them. What the padding of a row holds is not defined.
* channels last: one record of channels a pixel. Vectors run along the channels of a group, each group padded to
  ``PACK`` channels, so that layers of many channels and few pixels fill them. Padding channels hold 0.

The channel shuffle moves no data: where it stands, the layer that follows reads in shuffled order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import numpy as np

from .kernels.abi import COLUMNS, LINE, PACK, STEM_ROWS, TILE_PACKS, Op, address
from .spec import Block, Cbam, Conv, Spec, layers, output_size

Array = np.ndarray
Size = tuple[int, int]

BAND = 8192  # floats of scratch (32 kB) that one group of a planar block may use, so that it stays in the L1 cache
LAYOUTS = 8  # layouts kept, one a picture size; the least recently used is dropped
GUARD = 4 * LINE  # floats between buffers: vectors may be read, but never written, past a buffer's end


ACTIVATION_CODES = {"": 0, "relu": 1, "relu6": 2}


def round_up(value: int, multiple: int) -> int:
    """The next multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def plane_size(height: int, width: int) -> int:
    """Floats from one plane to the next: an odd number of lines, so that planes do not share the same cache sets."""
    return (height * round_up(width, LINE) // LINE | 1) * LINE


def aligned_zeros(size: int) -> Array:
    """float32 zeros (size,) that start on a cache line."""
    raw = np.zeros(size + LINE, np.float32)
    start = -(raw.ctypes.data // 4) % LINE
    return raw[start : start + size]


class Packer:
    """Appends arrays to one flat array, each on a cache line, and returns where each begins."""

    def __init__(self, dtype: type) -> None:
        self.dtype, self.parts, self.size = dtype, list[Array](), 0

    def add(self, array: Array) -> int:
        start = self.size
        part: Array = np.ascontiguousarray(array, self.dtype).ravel()
        padding: Array = np.zeros(-len(part) % LINE, self.dtype)
        self.parts += [part, padding]
        self.size += len(part) + len(padding)
        return start

    def join(self) -> Array:
        joined = aligned_zeros(self.size) if self.dtype is np.float32 else np.zeros(self.size, self.dtype)
        if self.parts:
            np.concatenate(self.parts, out=joined)
        return joined


def fold(layer: Conv, params: Mapping[str, Array], eps: float) -> tuple[Array, Array]:
    """Weight (O, C/g, K, K) and bias (O,) of a convolution with its batch norm folded in, float64."""
    weight = np.asarray(params[f"{layer.name}.conv.weight"], np.float64)
    bias = np.asarray(params[f"{layer.name}.conv.bias"], np.float64) if layer.bias else np.zeros(layer.cout)
    scale, shift = _scale_shift(layer.name, params, eps)
    return weight * scale[:, None, None, None], bias * scale + shift


def _scale_shift(name: str, params: Mapping[str, Array], eps: float) -> tuple[Array, Array]:
    gamma, beta, mean, var = (
        np.asarray(params[f"{name}.bn.{key}"], np.float64) for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + eps)
    return scale, beta - mean * scale


def pack_stem(weight: Array, bias: Array) -> Array:
    """(O, C, 3, 3) and (O,) -> for each STEM_ROWS outputs their biases, then their weights tap by tap."""
    outputs = round_up(len(bias), STEM_ROWS)
    table = np.zeros((1 + weight[0].size, outputs))
    table[0, : len(bias)] = bias
    table[1:, : len(bias)] = weight.reshape(len(bias), -1).T
    return table.reshape(len(table), -1, STEM_ROWS).swapaxes(0, 1)


def pack_pointwise(weight: Array, bias: Array, groups: int) -> Array:
    """(O, C/g) and (O,) -> for each group and each PACK of its outputs: biases, then weights input by input.

    A kernel's tile covers up to TILE_PACKS packs, whose weights lie side by side for each input.
    """
    outputs, inputs = len(bias) // groups, weight.shape[1]
    padded = np.zeros((groups, 1 + inputs, round_up(outputs, PACK)))
    padded[:, 0, :outputs] = bias.reshape(groups, outputs)
    padded[:, 1:, :outputs] = weight.reshape(groups, outputs, inputs).swapaxes(1, 2)
    step = TILE_PACKS * PACK
    tiles = [padded[g, :, i : i + step].ravel() for g in range(groups) for i in range(0, padded.shape[2], step)]
    return np.concatenate(tiles)


def positions(channels: int, groups: int) -> Array:
    """Where each channel stands in a channels-last record whose groups are padded to PACK."""
    group = channels // groups
    index = np.arange(channels)
    return index // group * round_up(group, PACK) + index % group


def record(channels: int, groups: int) -> int:
    """Floats of one pixel of a channels-last map whose groups are padded to PACK."""
    return groups * round_up(channels // groups, PACK)


def shuffled(channels: int, groups: int, shuffle: bool) -> Array:
    """For each channel after the shuffle, the channel that it was before."""
    index = np.arange(channels)
    return index.reshape(groups, -1).T.ravel() if shuffle else index


def by_kind(spec: Spec) -> tuple[dict[str, Conv], dict[str, Cbam]]:
    """The convolutions by name, and the attentions by the name of what they follow."""
    convs = {layer.name: layer for layer in layers(spec) if isinstance(layer, Conv)}
    cbams = {layer.name.removesuffix(".cbam"): layer for layer in layers(spec) if isinstance(layer, Cbam)}
    return convs, cbams


def planar_blocks(spec: Spec) -> int:
    """How many leading blocks run planar: those before the first whose groups put out at least one full pack."""
    for i, block in enumerate(spec.blocks):
        if block.c // spec.groups >= PACK or block.s > 2:
            return i
    return len(spec.blocks)


class Buffer:
    """A part of the arena, named by the steps that use it; it gets its place when all steps are known."""

    def __init__(self, size: int) -> None:
        self.size = round_up(size, LINE)


@dataclass(frozen=True)
class Layout:
    """A program for one picture size."""

    steps: Array  # int64 (steps, COLUMNS)
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
        self.rows: list[tuple[int | Buffer, ...]] = []

    def add(self, op: Op, *arguments: int | Buffer) -> None:
        self.rows.append((int(op), *arguments))

    def layout(self) -> Layout:
        """Places the buffers: each at the lowest free address among those that are alive at the same time."""
        life: dict[Buffer, tuple[int, int]] = {}
        for i, row in enumerate(self.rows):
            for item in row:
                if isinstance(item, Buffer):
                    life[item] = life.get(item, (i, i))[0], i
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
            steps[i, : len(row)] = [starts[item] if isinstance(item, Buffer) else item for item in row]
        end = max(start + buffer.size for buffer, start in starts.items())
        return Layout(steps, end + GUARD, starts, life)


@dataclass
class Program:
    """A network ready to run: ``alnumpy.kernels.run`` executes it. Made by ``compile_program``."""

    spec: Spec
    weights: Array  # float32 (n,), on a cache line
    tables: Array  # int64 (n,)
    offsets: dict[str, int]  # where each layer's part of weights or tables begins
    _layouts: OrderedDict[Size, Layout] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Of weights and tables: asking NumPy for them takes longer than it should take to start a run."""
        return address(self.weights), address(self.tables)

    def layout(self, size: Size) -> Layout:
        """The step table and arena for pictures of (H, W). The last LAYOUTS sizes are remembered."""
        with self._lock:
            if size not in self._layouts:
                self._layouts[size] = _layout(self.spec, self.offsets, size)
                if len(self._layouts) > LAYOUTS:
                    self._layouts.popitem(last=False)
            self._layouts.move_to_end(size)
            return self._layouts[size]

    def arena_bytes(self, size: Size) -> int:
        """Bytes of activations that one thread needs for pictures of (H, W)."""
        return self.layout(size).arena_bytes


def compile_program(spec: Spec, params: Mapping[str, Array]) -> Program:
    """Folds and packs ``params``, named and shaped as in ``spec.parameters(spec)``, for the kernels."""
    weights, tables, offsets = Packer(np.float32), Packer(np.int64), dict[str, int]()
    planar = planar_blocks(spec)
    convs, cbams = by_kind(spec)
    groups = spec.groups

    def conv(name: str) -> tuple[Conv, Array, Array]:
        return convs[name], *fold(convs[name], params, spec.bn_eps)

    def add_cbam(name: str, place: Array) -> None:
        """``place``: where each channel stands in a record of channels."""
        if name in cbams:
            offsets.update(pack_cbam(cbams[name], params, spec.bn_eps, place, weights, tables))

    _, weight, bias = conv("stem")
    offsets["stem"] = weights.add(pack_stem(weight, bias))
    place = np.arange(spec.stem)  # of each channel in the current layout
    add_cbam("stem", place)
    for i, block in enumerate(spec.blocks):
        name = f"block{i + 1}"
        expand, expand_weight, expand_bias = conv(f"{name}.expand")
        _, depthwise_weight, depthwise_bias = conv(f"{name}.depthwise")
        _, project_weight, project_bias = conv(f"{name}.project")
        wide = expand.cout
        source = shuffled(wide, groups, spec.shuffle)
        expand_weight, project_weight = expand_weight[:, :, 0, 0], project_weight[:, :, 0, 0]
        depthwise_weight = depthwise_weight.reshape(wide, 9)
        if i < planar:
            columns = [expand_bias[source, None], expand_weight[source]]
            columns += [depthwise_bias[:, None], depthwise_weight]
            per_channel = np.hstack(columns).reshape(groups, -1)
            projection = project_weight.reshape(groups, block.c // groups, -1).swapaxes(1, 2).reshape(groups, -1)
            packed = np.hstack([per_channel, project_bias.reshape(groups, -1), projection])
            offsets[name] = weights.add(packed)
            offsets[f"{name}.table"] = tables.add(source // (wide // groups) * (expand.cin // groups))
            place = np.arange(block.c)
        else:
            offsets[f"{name}.expand"] = weights.add(pack_pointwise(expand_weight, expand_bias, groups))
            offsets[f"{name}.expand.table"] = tables.add(place)
            place = positions(wide, groups)[source]
            packed = np.zeros((10, record(wide, groups)))
            packed[0, place] = depthwise_bias
            packed[1:, place] = depthwise_weight.T
            offsets[f"{name}.depthwise"] = weights.add(packed)
            offsets[f"{name}.project"] = weights.add(pack_pointwise(project_weight, project_bias, groups))
            offsets[f"{name}.project.table"] = tables.add(place)
            place = positions(block.c, groups)
        add_cbam(name, place)
    _, weight, bias = conv("last")
    offsets["last"] = weights.add(pack_pointwise(weight[:, :, 0, 0], bias, 1))
    offsets["last.table"] = tables.add(place)
    add_cbam("last", np.arange(spec.embedding))
    return Program(spec, weights.join(), tables.join(), offsets)


def pack_cbam(
    layer: Cbam, params: Mapping[str, Array], eps: float, place: Array, weights: Packer, tables: Packer
) -> dict[str, int]:
    def get(name: str, default: Array) -> Array:
        return np.asarray(params.get(f"{layer.name}.{name}", default), np.float64)

    width = round_up(int(place[-1]) + 1, PACK)
    second = np.zeros((width, layer.hidden))
    second[place] = params[f"{layer.name}.fc2.weight"]
    second_bias = np.zeros(width)
    second_bias[place] = 2 * get("fc2.bias", np.zeros(layer.channels))  # both passes through the MLP add it
    real = np.zeros(width)
    real[place] = 1
    spatial = np.asarray(params[f"{layer.name}.spatial.weight"], np.float64)[0]  # (2, 7, 7)
    spatial = spatial if layer.layout.mean_first else spatial[::-1]
    spatial_bias = np.zeros(1)
    if layer.layout.spatial_bn:
        scale, spatial_bias = _scale_shift(layer.name, params, eps)
        spatial = spatial * scale
    first = get("fc1.weight", np.empty(0))
    return {
        f"{layer.name}.fc1": weights.add(pack_pointwise(first, get("fc1.bias", np.zeros(layer.hidden)), 1)),
        f"{layer.name}.fc1.table": tables.add(place),
        f"{layer.name}.fc2": weights.add(pack_pointwise(second, second_bias, 1)),
        f"{layer.name}.fc2.table": tables.add(np.arange(layer.hidden)),
        f"{layer.name}.real": weights.add(real),
        f"{layer.name}.spatial": weights.add(np.concatenate([spatial_bias, spatial.ravel()])),
    }


class Attention(NamedTuple):
    """The two factors of a CBAM, to be multiplied by whoever reads the map next."""

    channel: Buffer  # (channels)
    spatial: Buffer  # (H, row)


def _layout(spec: Spec, offsets: Mapping[str, int], size: Size) -> Layout:
    steps = Steps()
    planar, groups = planar_blocks(spec), spec.groups
    convs, cbams = by_kind(spec)
    height, width = size
    image = Buffer(image_size(size))
    steps.add(Op.PAD_IMAGE, image, height, width)
    channels = spec.stem
    plane = plane_size(height, width)
    x = Buffer(round_up(channels, STEM_ROWS) * plane)
    totals = Buffer(2 * LINE * round_up(channels, STEM_ROWS))
    steps.add(Op.STEM, image, x, offsets["stem"], height, width, channels, plane, totals)
    attention = None
    if "stem" in cbams:
        attention = add_planar_cbam(steps, offsets, cbams["stem"], x, totals, size)

    for i, block in enumerate(spec.blocks[:planar]):
        name = f"block{i + 1}"
        expand = convs[f"{name}.expand"]
        new_size = output_size(convs[f"{name}.depthwise"], size)
        x, totals = add_planar_block(steps, offsets, name, expand, block, groups, x, attention, size, new_size)
        size, channels = new_size, block.c
        attention = None
        if name in cbams:
            attention = add_planar_cbam(steps, offsets, cbams[name], x, totals, size)

    y = Buffer(size[0] * size[1] * channels)
    steps.add(Op.TO_CHANNELS_LAST, x, y, *size, channels, plane_size(*size), *_factors(attention))
    x, width = y, channels
    for i in range(planar, len(spec.blocks)):
        name = f"block{i + 1}"
        expand, depthwise, project = (convs[f"{name}.{part}"] for part in ("expand", "depthwise", "project"))
        x, width = add_pointwise(steps, offsets, expand, x, width, size)
        x, size = add_depthwise(steps, offsets, depthwise, x, width, size)
        x, width = add_pointwise(steps, offsets, project, x, width, size)
        if name in cbams:
            attention = add_cbam(steps, offsets, cbams[name], x, width, size)
            steps.add(Op.SCALE, x, *size, width, *attention)
    x, width = add_pointwise(steps, offsets, convs["last"], x, width, size)
    attention = add_cbam(steps, offsets, cbams["last"], x, width, size) if "last" in cbams else None
    steps.add(Op.EMBEDDING, x, *size, width, spec.embedding, *_factors(attention), Buffer(width))
    return steps.layout()


def _factors(attention: Attention | None) -> tuple[int | Buffer, int | Buffer]:
    """The arguments of a kernel that can do without attention: -1 stands for none."""
    return attention or (-1, -1)


def add_planar_block(
    steps: Steps,
    offsets: Mapping[str, int],
    name: str,
    expand: Conv,
    block: Block,
    groups: int,
    x: Buffer,
    attention: Attention | None,
    size: Size,
    new_size: Size,
) -> tuple[Buffer, Buffer]:
    """Emits a fused expand, depthwise, project; returns the output map and its channels' sums and maxima."""
    (height, width), (new_height, new_width) = size, new_size
    wide, stride = expand.cout, block.s
    row = round_up(width if stride == 1 else 2 * round_up(-(-width // 2), LINE // 2), LINE)
    new_row = round_up(new_width, LINE)
    per_row = stride * row + wide // groups * new_row  # scratch floats for one more row of output
    band = min(new_height, max(2, (BAND - (3 - stride) * row) // per_row))
    rows = stride * band + 3 - stride  # of input
    source = Buffer(expand.cin * plane_size(rows, row) + LINE)
    expanded = Buffer(LINE + rows * row)
    filtered = Buffer(wide // groups * plane_size(band, new_width))
    plane = plane_size(*new_size)
    y = Buffer(block.c * plane)
    totals = Buffer(2 * LINE * block.c)
    steps.add(
        Op.PLANAR_BLOCK, x, y, offsets[name], offsets[f"{name}.table"], height, width, new_height, new_width, stride,
        expand.cin, groups, expand.cin // groups, wide // groups, block.c // groups, band, plane_size(*size), plane,
        *_factors(attention), totals, source, expanded, filtered,
    )  # fmt: skip
    return y, totals


def add_planar_cbam(
    steps: Steps, offsets: Mapping[str, int], layer: Cbam, x: Buffer, totals: Buffer, size: Size
) -> Attention:
    """Emits the attention of a planar map, whose channels' sums and maxima are in ``totals``; returns its factors."""
    means = Buffer(2 * round_up(layer.channels, PACK))
    steps.add(Op.PLANAR_MEANS, totals, means, *size, layer.channels)
    channel = add_channel_attention(steps, offsets, layer, means, round_up(layer.channels, PACK))
    maps = Buffer(map_size(size))
    steps.add(Op.PLANAR_POOL, x, maps, *size, layer.channels, plane_size(*size), channel)
    return Attention(channel, add_spatial_attention(steps, offsets, layer, maps, size))


def add_cbam(steps: Steps, offsets: Mapping[str, int], layer: Cbam, x: Buffer, width: int, size: Size) -> Attention:
    """Emits the attention of a channels-last map; returns its factors."""
    means = Buffer(2 * width)
    steps.add(Op.MEANS, x, means, *size, width)
    channel = add_channel_attention(steps, offsets, layer, means, width)
    maps = Buffer(map_size(size))
    steps.add(Op.POOL, x, maps, *size, width, layer.channels, channel, offsets[f"{layer.name}.real"])
    return Attention(channel, add_spatial_attention(steps, offsets, layer, maps, size))


def add_channel_attention(steps: Steps, offsets: Mapping[str, int], layer: Cbam, means: Buffer, width: int) -> Buffer:
    """Emits the MLP over the channels' means and maxima; returns the factor of each channel."""
    channel = Buffer(width)
    at = [offsets[f"{layer.name}.{part}"] for part in ("fc1", "fc1.table", "fc2", "fc2.table")]
    hidden = Buffer(2 * round_up(layer.hidden, PACK))
    steps.add(Op.CHANNEL_ATTENTION, means, hidden, channel, *at, width, layer.channels, layer.hidden)
    return channel


def image_size(size: Size) -> int:
    """Floats of a picture with a border of zeros."""
    return 3 * (size[0] + 2) * (LINE + round_up(size[1], LINE)) + LINE


def map_size(size: Size) -> int:
    """Floats of two maps with room for the 7x7 kernel's border and for whole tiles of four rows."""
    return 2 * (round_up(size[0], 4) + 6) * (LINE + round_up(size[1], LINE)) + LINE


def add_spatial_attention(steps: Steps, offsets: Mapping[str, int], layer: Cbam, maps: Buffer, size: Size) -> Buffer:
    """Emits the 7x7 convolution over the pooled maps; returns the factor of each pixel, as a planar map."""
    spatial = Buffer(round_up(size[0], 4) * round_up(size[1], LINE))
    steps.add(Op.SPATIAL_ATTENTION, maps, spatial, offsets[f"{layer.name}.spatial"], *size)
    return spatial


def add_pointwise(
    steps: Steps, offsets: Mapping[str, int], layer: Conv, x: Buffer, width: int, size: Size
) -> tuple[Buffer, int]:
    """Emits a channels-last 1x1 convolution; returns its output and the floats of one of its pixels."""
    new_width = record(layer.cout, layer.groups)
    y = Buffer(size[0] * size[1] * new_width)
    at = offsets[layer.name], offsets[f"{layer.name}.table"]
    packs = new_width // layer.groups // PACK
    activation = ACTIVATION_CODES[layer.activation]
    pixels = size[0] * size[1]
    inputs = layer.cin // layer.groups
    steps.add(Op.POINTWISE, x, y, *at, pixels, width, new_width, layer.groups, inputs, packs, activation)
    return y, new_width


def add_depthwise(
    steps: Steps, offsets: Mapping[str, int], layer: Conv, x: Buffer, width: int, size: Size
) -> tuple[Buffer, Size]:
    """Emits a channels-last 3x3 depthwise convolution; returns its output and its size."""
    new_size = output_size(layer, size)
    y = Buffer(new_size[0] * new_size[1] * width)
    steps.add(Op.DEPTHWISE, x, y, offsets[layer.name], *size, *new_size, layer.stride, width)
    return y, new_size
