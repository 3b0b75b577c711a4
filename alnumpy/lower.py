"""A network's layers and weights, lowered to a program for the compiled kernels.

``lower`` walks the layers once and makes units: a unit is one layer, or several that one kernel computes. It packs its
weights, batch norm folded in, in the order in which its kernel reads them, and it emits its steps for any picture size.

Two layouts of activations are in use:

* planar: one plane per channel, rows padded to ``LINE`` floats. Vectors run along the row, so that layers of few
  channels and many pixels fill them. What the padding of a row holds is not defined.
* channels last: one record of channels per pixel. Vectors run along the channels of a group, each group padded to
  ``PACK`` channels, so that layers of many channels and few pixels fill them. Padding channels hold 0.

Where a channel stands in its layout does not depend on the size. A channel shuffle therefore moves no data: it is
another order of places, in which the next layer reads.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np

from .arena import Argument, Buffer, Layout, Packer, Steps, round_up
from .errors import UnsupportedError
from .kernels.abi import ACTIVATIONS, CLAMPS, LINE, NONE, PACK, PANEL, STEM_ROWS, TILE_PACKS, Op, address
from .layers import BN, IMAGE, Add, Cbam, Concat, Conv, Layer, Mean, Pool, Shuffle, Size, Slice, SqueezeExcite
from .networks import Spec

Array = np.ndarray
Fold = Callable[[], tuple[Array, Array]]  # makes the weight and the bias that are to be packed

BAND = 8192  # floats of scratch (32 kB) that one group of a planar block may use, so that it stays in the L1 cache
CHUNK = 1 << 17  # floats (512 kB) of a dense convolution's input that stay in the second level cache
TILE_PIXELS = 12  # a chunk has a multiple of this many pixels: whole tiles on every CPU
LAYOUTS = 8  # layouts kept, one per picture size; the least recently used is dropped


# --- programs -------------------------------------------------------------------------------------------------------


@dataclass
class Program:
    """A network ready to run: ``alnumpy.kernels.run`` executes it. Made by ``lower``."""

    channels: int  # channels of the embedding
    weights: Array  # float32 (n,), on a cache line
    tables: Array  # int64 (n,)
    nodes: list[Node]
    _layouts: OrderedDict[Size, Layout] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """The addresses of weights and tables, kept because asking NumPy for them delays every run."""
        return address(self.weights), address(self.tables)

    def layout(self, size: Size) -> Layout:
        """The step table and arena for pictures of (H, W). The last LAYOUTS sizes are remembered."""
        with self._lock:
            if size not in self._layouts:
                steps, maps = Steps(), {IMAGE: Map(Buffer(0), size)}
                for node in self.nodes:
                    steps.label = node.label
                    maps[node.name] = node.unit.emit(steps, *(maps[name] for name in node.inputs))
                self._layouts[size] = steps.layout()
                if len(self._layouts) > LAYOUTS:
                    self._layouts.popitem(last=False)
            self._layouts.move_to_end(size)
            return self._layouts[size]

    def arena_bytes(self, size: Size) -> int:
        """Bytes of activations that one thread needs for pictures of (H, W)."""
        return self.layout(size).arena_bytes


class Node(NamedTuple):
    """A unit in its place in the network."""

    unit: Unit
    inputs: tuple[str, ...]  # names of the maps that it reads
    name: str  # name of the map that it makes
    layers: Sequence[Layer]  # layers that it computes, none if it only moves data

    @property
    def label(self) -> str:
        """The name of its steps: its layer, the common part of its layers' names such as "block1", or "" for none."""
        names = [layer.name for layer in self.layers] or [""]
        return names[0] if len(names) == 1 else names[0].partition(".")[0]


class Place(NamedTuple):
    """Where the channels of a map stand, for every size."""

    channels: Array  # the plane of each channel, or its index in a record
    width: int  # planes, or floats of a record
    planar: bool = False
    attended: bool = False  # planar only: every reader of the map multiplies it by the factors of its attention

    @property
    def in_order(self) -> bool:
        """Whether the channels stand one after the other."""
        return np.array_equal(self.channels, np.arange(len(self.channels)))

    def equals(self, other: Place) -> bool:
        return self.width == other.width and np.array_equal(self.channels, other.channels)


class Attention(NamedTuple):
    """The two factors of a CBAM; the next reader of the map multiplies by them."""

    channel: Argument = NONE  # (channels)
    spatial: Argument = NONE  # (H, row)


class Map(NamedTuple):
    """A map of one size, while steps are emitted."""

    buffer: Buffer
    size: Size
    attention: Attention = Attention()  # still to be multiplied
    totals: Buffer | None = None  # each channel's sums and maxima, if the map is planar


class Unit(Protocol):
    """Its constructor packs weights and decides on ``place``; ``emit`` adds the steps that make the map of one size."""

    place: Place

    @property
    def emit(self) -> Callable[..., Map]: ...


class Pack:
    """The arrays of a program, while units add theirs. A layer's arrays are read when all have their places."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.params = params
        self.weights, self.tables = Packer(np.float32), Packer(np.int64)

    def get(self, layer: Layer, name: str) -> Array:
        """An array of a layer, float32."""
        return self.params[f"{layer.name}.{name}"]

    def scale_shift(self, layer: Conv | Cbam) -> tuple[Array, Array]:
        """A layer's batch norm as factors and summands."""
        gamma, beta, mean, var = (self.get(layer, f"bn.{key}").astype(np.float64) for key in BN)
        scale = gamma / np.sqrt(var + layer.eps)
        return scale, beta - mean * scale

    def fold(self, layer: Conv) -> tuple[Array, Array]:
        """Weight (O, C/g, K, K) and bias (O,) of a convolution with its batch norm folded in.

        They are computed in float64, but the weight is never stored so: large arrays would cost time at every start.
        """
        weight = self.get(layer, "conv.weight")
        bias = self.get(layer, "conv.bias") if layer.bias else np.zeros(layer.channels)
        if not layer.batch_norm:
            return weight, bias
        scale, shift = self.scale_shift(layer)
        folded = np.multiply(weight, scale[:, None, None, None], out=np.empty_like(weight), casting="same_kind")
        return folded, bias * scale + shift


# --- sizes and orders -----------------------------------------------------------------------------------------------


def plane_size(height: int, width: int) -> int:
    """Floats from one plane to the next: an odd number of lines, so that planes do not share the same cache sets."""
    return (height * round_up(width, LINE) // LINE | 1) * LINE


def image_row(width: int) -> int:
    """Floats of a row of one colour of a picture with a border of zeros."""
    return LINE + round_up(width, LINE)


def image_size(size: Size, border: int) -> int:
    """Floats of a picture with a border of zeros: ``border`` rows above and below."""
    return 3 * (size[0] + 2 * border) * image_row(size[1]) + LINE


def map_size(size: Size) -> int:
    """Floats of two maps with room for the 7x7 kernel's border and for whole tiles of four rows."""
    return 2 * (round_up(size[0], 4) + 6) * (LINE + round_up(size[1], LINE)) + LINE


def grouped(channels: int, groups: int) -> Place:
    """Channels last, each group padded to PACK."""
    group = channels // groups
    index = np.arange(channels)
    width = round_up(group, PACK)
    return Place(index // group * width + index % group, groups * width)


def is_depthwise(layer: Conv) -> bool:
    return layer.groups == layer.cin == layer.channels


def symmetric(layer: Conv) -> bool:
    """Whether the padding is kernel // 2 on each side, for every size."""
    return layer.padding == "symmetric" or layer.stride == 1


def shuffled(channels: int, groups: int) -> Array:
    """For each channel after the shuffle, the channel that it was before."""
    return np.arange(channels).reshape(groups, -1).T.ravel()


def equal_runs(channels: Array) -> tuple[Array, int, dict[str, int]] | None:
    """Channels that stand in runs of one length at one distance: their order, where the first is, and the runs.

    None if they do not, or if runs are too short for a kernel's loop over them to pay.
    """
    order = np.argsort(channels)
    places = channels[order]
    starts = places[np.flatnonzero(np.diff(places, prepend=-2) != 1)]
    run, distance = len(places) // len(starts), int(starts[1] - starts[0]) if len(starts) > 1 else 0
    expected = np.add.outer(starts[0] + distance * np.arange(len(starts)), np.arange(run)).ravel()
    if not np.array_equal(expected, places) or (run < PACK and len(starts) > 1):
        return None
    return order, int(starts[0]), {"run": run, "runs": len(starts), "x_run": distance}


def pack_stem(packer: Packer, layer: Conv, fold: Fold) -> int:
    """Adds (O, C, 3, 3) and (O,): for each STEM_ROWS outputs their biases, then their weights tap by tap.

    Returns the start, as the next two do.
    """
    taps, panels = 9 * layer.cin, round_up(layer.channels, STEM_ROWS) // STEM_ROWS

    def fill(room: Array) -> None:
        weight, bias = fold()
        table = np.zeros((1 + taps, panels * STEM_ROWS))
        table[0, : len(bias)], table[1:, : len(bias)] = bias, weight.reshape(len(bias), -1).T
        room.reshape(panels, 1 + taps, STEM_ROWS)[...] = table.reshape(1 + taps, panels, STEM_ROWS).swapaxes(0, 1)

    return packer.reserve((1 + taps) * panels * STEM_ROWS, fill)


def fill_panels(room: Array, weight: Array, bias: Array, panel: int, multiple: int) -> None:
    """Fills ``room`` for each ``panel`` of the outputs of (O, C) and (O,): biases, then weights input by input."""
    for i in range(0, len(bias), panel):
        part, inputs = weight[i : i + panel], weight.shape[1]
        size = (1 + inputs) * round_up(len(part), multiple)
        filled, room = room[:size].reshape(1 + inputs, -1), room[size:]
        filled[0, : len(part)], filled[1:, : len(part)] = bias[i : i + panel], part.T


def pack_pointwise(packer: Packer, outputs: int, inputs: int, fold: Fold, groups: int = 1) -> int:
    """Adds (O, C/g) and (O,): for each group, panels of up to TILE_PACKS packs of its outputs.

    A kernel's tile covers the packs of a panel, whose weights lie side by side for each input.
    """

    def fill(room: Array) -> None:
        weight, bias = fold()
        each = room.reshape(groups, -1), weight.reshape(groups, -1, inputs), bias.reshape(groups, -1)
        for part, weights, biases in zip(*each, strict=True):
            fill_panels(part, weights, biases, TILE_PACKS * PACK, PACK)

    return packer.reserve(groups * (1 + inputs) * round_up(outputs // groups, PACK), fill)


def pack_dense(packer: Packer, outputs: int, inputs: int, fold: Fold) -> int:
    """Adds (O, C) and (O,) in panels of PANEL outputs, the last of PANEL or LINE."""
    size = (1 + inputs) * round_up(outputs, LINE)
    return packer.reserve(size, lambda room: fill_panels(room, *fold(), PANEL, LINE))


# --- units ----------------------------------------------------------------------------------------------------------


class Stem:
    """3x3 convolution of the picture, ReLU: planar, with the totals of each channel."""

    def __init__(self, layer: Conv, pack: Pack) -> None:
        self.layer, self.w = layer, pack_stem(pack.weights, layer, lambda: pack.fold(layer))
        self.place = Place(np.arange(layer.channels), layer.channels, planar=True)

    def emit(self, steps: Steps, x: Map) -> Map:
        (height, width), channels = x.size, self.layer.channels
        plane, rows = plane_size(height, width), round_up(channels, STEM_ROWS)
        padded, y, totals = Buffer(image_size(x.size, 1)), Buffer(rows * plane), Buffer(2 * LINE * rows)
        steps.add(Op.PAD_IMAGE, y=padded, height=height, width=width, border=1)
        steps.add(
            Op.STEM, x=padded, y=y, w=self.w, height=height, width=width, channels=channels, plane=plane, totals=totals
        )
        return Map(y, x.size, totals=totals)


class PlanarBlock:
    """Expansion, shuffle, depthwise convolution and projection in one kernel: planar, with the channels' totals."""

    def __init__(self, layers: Sequence[Layer], pack: Pack) -> None:
        self.expand, self.depthwise, self.project = (layer for layer in layers if isinstance(layer, Conv))
        groups, wide, channels = self.expand.groups, self.expand.channels, self.project.channels
        source = shuffled(wide, groups) if any(isinstance(layer, Shuffle) for layer in layers) else np.arange(wide)

        def fill(room: Array) -> None:
            (we, be), (wd, bd), (wp, bp) = (pack.fold(conv) for conv in (self.expand, self.depthwise, self.project))
            per_channel = np.hstack([be[source, None], we[source, :, 0, 0], bd[:, None], wd.reshape(wide, 9)])
            projection = wp.reshape(groups, channels // groups, -1).swapaxes(1, 2).reshape(groups, -1)
            room.reshape(groups, -1)[...] = np.hstack(
                [per_channel.reshape(groups, -1), bp.reshape(groups, -1), projection]
            )

        floats = wide * (1 + self.expand.cin // groups + 1 + 9) + channels * (1 + wide // groups)
        self.w = pack.weights.reserve(floats, fill)
        self.table = pack.tables.add(source // (wide // groups) * (self.expand.cin // groups))
        self.place = Place(np.arange(channels), channels, planar=True)

    @staticmethod
    def match(layers: Sequence[Layer], readers: Counter[str], places: Mapping[str, Place]) -> Sequence[Layer]:
        """The first layers if they are such a block of a planar map, or else none."""
        shuffles = [layer for layer in layers[1:2] if isinstance(layer, Shuffle)]
        block = layers[: 3 + len(shuffles)]
        convs = [layer for layer in block if isinstance(layer, Conv)]
        chain = all(b.inputs == (a.name,) and readers[a.name] == 1 for a, b in pairwise(block))
        source = places.get(layers[0].inputs[0])
        if source is None or not source.planar or not chain or len(convs) != 3:
            return []
        expand, depthwise, project = convs
        in_groups: list[Conv | Shuffle] = [expand, *shuffles, project]
        fits = (
            [conv.kernel for conv in convs] == [1, 3, 1]
            and [conv.activation for conv in convs] == ["relu6", "relu6", ""]
            and expand.stride == project.stride == 1
            and depthwise.stride <= 2
            and is_depthwise(depthwise)
            and len({layer.groups for layer in in_groups}) == 1
            and symmetric(depthwise)
            and project.channels // project.groups < PACK  # with more of them, channels last would fill its vectors
        )
        return block if fits else []

    def emit(self, steps: Steps, x: Map) -> Map:
        expand, groups, stride = self.expand, self.expand.groups, self.depthwise.stride
        height, width = x.size
        new_height, new_width = size = self.depthwise.size(x.size)
        filters, outputs = expand.channels // groups, self.project.channels // groups
        row = round_up(width if stride == 1 else 2 * round_up(-(-width // 2), LINE // 2), LINE)
        per_row = stride * row + filters * round_up(new_width, LINE)  # scratch floats for one more row of output
        band = min(new_height, max(2, (BAND - (3 - stride) * row) // per_row))
        rows = stride * band + 3 - stride  # rows of input
        plane = plane_size(*size)
        y, totals = Buffer(groups * outputs * plane), Buffer(2 * LINE * groups * outputs)
        steps.add(
            Op.PLANAR_BLOCK, x=x.buffer, y=y, w=self.w, table=self.table, height=height, width=width,
            new_height=new_height, new_width=new_width, stride=stride, channels=expand.cin, groups=groups,
            expand_inputs=expand.cin // groups, project_inputs=filters, outputs=outputs, band=band,
            x_plane=plane_size(*x.size), y_plane=plane, **x.attention._asdict(), totals=totals,
            source=Buffer(expand.cin * plane_size(rows, row) + LINE), expanded=Buffer(LINE + rows * row),
            filtered=Buffer(filters * plane_size(band, new_width)),
        )  # fmt: skip
        return Map(y, size, totals=totals)


class ToChannelsLast:
    """A planar map times its attention, channels last."""

    def __init__(self, source: Place) -> None:
        self.place = Place(source.channels, source.width)

    def emit(self, steps: Steps, x: Map) -> Map:
        (height, width), channels, plane = x.size, self.place.width, plane_size(*x.size)
        y = Buffer(height * width * channels)
        steps.add(
            Op.TO_CHANNELS_LAST, x=x.buffer, y=y, height=height, width=width, channels=channels, plane=plane,
            **x.attention._asdict(),
        )  # fmt: skip
        return Map(y, x.size)


class Pointwise:
    """1x1 convolution, channels last."""

    def __init__(self, layer: Conv, source: Place, pack: Pack) -> None:
        self.layer, self.x_stride, inputs = layer, source.width, layer.cin // layer.groups
        self.w = pack_pointwise(pack.weights, layer.channels, inputs, lambda: pack.fold(layer), layer.groups)
        self.table = pack.tables.add(source.channels)
        self.place = grouped(layer.channels, layer.groups)

    def emit(self, steps: Steps, x: Map) -> Map:
        pixels, groups, y_stride = x.size[0] * x.size[1], self.layer.groups, self.place.width
        y = Buffer(pixels * y_stride)
        steps.add(
            Op.POINTWISE, x=x.buffer, y=y, w=self.w, table=self.table, pixels=pixels, x_stride=self.x_stride,
            y_stride=y_stride, groups=groups, inputs=self.layer.cin // groups, packs=y_stride // groups // PACK,
            activation=ACTIVATIONS[self.layer.activation],
        )  # fmt: skip
        return Map(y, x.size)


class Dense:
    """1x1 convolution of a channels-last map whose channels stand in equal runs, plus another map if there is one."""

    def __init__(self, layer: Conv, source: Place, activation: str, pack: Pack) -> None:
        """The other map is compact."""
        runs = equal_runs(source.channels)
        assert runs
        order, self.start, self.runs = runs
        self.x_stride, self.inputs, self.activation = source.width, layer.cin, activation

        def fold() -> tuple[Array, Array]:
            weight, bias = pack.fold(layer)
            return weight[:, :, 0, 0] if source.in_order else weight[:, order, 0, 0], bias

        self.w = pack_dense(pack.weights, layer.channels, layer.cin, fold)
        self.place = grouped(layer.channels, 1)

    def emit(self, steps: Steps, x: Map, other: Map | None = None) -> Map:
        pixels, y_stride, activation = x.size[0] * x.size[1], self.place.width, ACTIVATIONS[self.activation]
        kept = self.inputs if activation < CLAMPS else self.inputs + y_stride  # floats of a pixel that are read again
        chunk = max(1, CHUNK // kept // TILE_PIXELS) * TILE_PIXELS
        y = Buffer(pixels * y_stride)
        steps.add(
            Op.DENSE, x=x.buffer + self.start, y=y, other=other.buffer if other else NONE, w=self.w, pixels=pixels,
            x_stride=self.x_stride, y_stride=y_stride, **self.runs, chunk=chunk, activation=activation,
        )  # fmt: skip
        return Map(y, x.size)


class ImageConvolution:
    """A dense convolution of the picture of any kind, channels last."""

    def __init__(self, layer: Conv, pack: Pack) -> None:
        def fold() -> tuple[Array, Array]:
            weight, bias = pack.fold(layer)
            return weight.transpose(0, 2, 1, 3).reshape(layer.channels, -1), bias  # in the order of the padded picture

        self.layer, self.place = layer, grouped(layer.channels, 1)
        self.w = pack_dense(pack.weights, layer.channels, layer.cin * layer.kernel**2, fold)

    def emit(self, steps: Steps, x: Map) -> Map:
        layer, (height, width), (new_height, new_width) = self.layer, x.size, self.layer.size(x.size)
        (top, bottom), (left, _) = layer.pads(x.size)
        border, row, y_stride = max(top, bottom), image_row(width), self.place.width
        padded, y = Buffer(image_size(x.size, border)), Buffer(new_height * new_width * y_stride)
        steps.add(Op.PAD_IMAGE, y=padded, height=height, width=width, border=border)
        steps.add(
            Op.IMAGE_CONVOLUTION, x=padded + (3 * (border - top) * row + LINE - left), y=y, w=self.w,
            new_height=new_height, new_width=new_width, x_row=3 * row, stride=layer.stride, run=layer.kernel,
            runs=3 * layer.kernel, x_run=row, y_stride=y_stride, activation=ACTIVATIONS[layer.activation],
        )  # fmt: skip
        return Map(y, (new_height, new_width))


class Depthwise:
    """Depthwise convolution, channels last."""

    def __init__(self, layer: Conv, source: Place, pack: Pack) -> None:
        rows = 1 + layer.kernel**2 + 1  # the last, of zeros, is read for pixels beyond the edges

        def fill(room: Array) -> None:
            weight, bias = pack.fold(layer)
            table = room.reshape(rows, source.width)
            table[0, source.channels] = bias
            table[1:-1, source.channels] = weight.reshape(layer.channels, -1).T

        self.layer, self.w, self.place = layer, pack.weights.reserve(rows * source.width, fill), source

    def emit(self, steps: Steps, x: Map) -> Map:
        layer, (height, width), (new_height, new_width) = self.layer, x.size, self.layer.size(x.size)
        (top, _), (left, _) = layer.pads(x.size)
        y = Buffer(new_height * new_width * self.place.width)
        steps.add(
            Op.DEPTHWISE, x=x.buffer, y=y, w=self.w, height=height, width=width, new_height=new_height,
            new_width=new_width, taps=layer.kernel, stride=layer.stride, top=top, left=left,
            channels=self.place.width, activation=ACTIVATIONS[layer.activation],
        )  # fmt: skip
        return Map(y, (new_height, new_width))


class Pooled:
    """3x3 pool, channels last."""

    def __init__(self, layer: Pool, source: Place) -> None:
        self.layer, self.place = layer, source

    def emit(self, steps: Steps, x: Map) -> Map:
        (height, width), (new_height, new_width) = x.size, self.layer.size(x.size)
        y = Buffer(new_height * new_width * self.place.width)
        steps.add(
            Op.MAX_POOL if self.layer.kind == "max" else Op.MEAN_POOL, x=x.buffer, y=y, height=height, width=width,
            new_height=new_height, new_width=new_width, channels=self.place.width,
        )  # fmt: skip
        return Map(y, (new_height, new_width))


class Sum:
    """The sum of two maps whose channels stand in the same places."""

    def __init__(self, layer: Add, place: Place) -> None:
        self.activation, self.place = ACTIVATIONS[layer.activation], place

    def emit(self, steps: Steps, x: Map, other: Map) -> Map:
        count = x.size[0] * x.size[1] * self.place.width
        y = Buffer(count)
        steps.add(Op.ADD_MAPS, x=x.buffer, other=other.buffer, y=y, count=count, activation=self.activation)
        return Map(y, x.size)


class Joined:
    """The channels of maps one after the other in one record; of a single map, its channels in their order."""

    def __init__(self, sources: Sequence[Place], activation: str, pack: Pack) -> None:
        self.activation = activation
        self.place = grouped(sum(len(source.channels) for source in sources), 1)
        self.copies, start = [], 0
        padding = np.full(self.place.width - len(self.place.channels), -1)  # zeros, of the last source
        for i, source in enumerate(sources, 1):
            table = np.append(source.channels, padding if i == len(sources) else padding[:0])
            copy = {"x_stride": source.width, "y_stride": self.place.width, "start": start, "channels": len(table)}
            self.copies.append(copy | {"table": pack.tables.add(table)})
            start += len(table)

    def emit(self, steps: Steps, *inputs: Map) -> Map:
        pixels = inputs[0].size[0] * inputs[0].size[1]
        y = Buffer(pixels * self.place.width)
        for x, copy in zip(inputs, self.copies, strict=True):
            steps.add(Op.COPY, x=x.buffer, y=y, pixels=pixels, **copy)
        if self.activation:
            steps.add(Op.ACTIVATE, x=y, count=pixels * self.place.width, code=ACTIVATIONS[self.activation])
        return Map(y, inputs[0].size)


class Excite:
    """Squeeze-and-excitation of a channels-last map, in place."""

    def __init__(self, layer: SqueezeExcite, source: Place, pack: Pack) -> None:
        self.layer, self.place = layer, source

        def first() -> tuple[Array, Array]:
            return pack.get(layer, "fc1.weight"), pack.get(layer, "fc1.bias")

        def second() -> tuple[Array, Array]:
            weight, bias = np.zeros((source.width, layer.hidden)), np.zeros(source.width)
            weight[source.channels], bias[source.channels] = pack.get(layer, "fc2.weight"), pack.get(layer, "fc2.bias")
            return weight, bias

        self.mlp = {
            "w1": pack_pointwise(pack.weights, layer.hidden, layer.channels, first),
            "table1": pack.tables.add(source.channels),
            "w2": pack_pointwise(pack.weights, source.width, layer.hidden, second),
            "table2": pack.tables.add(np.arange(layer.hidden)),
        }

    def emit(self, steps: Steps, x: Map) -> Map:
        layer, (height, width), floats = self.layer, x.size, self.place.width
        means, channel = Buffer(2 * floats), Buffer(floats)
        steps.add(Op.MEANS, x=x.buffer, y=means, height=height, width=width, channels=floats)
        steps.add(
            Op.SQUEEZE_EXCITE, means=means, hidden=Buffer(round_up(layer.hidden, PACK)), y=channel, **self.mlp,
            width=floats, hidden_channels=layer.hidden, channels=layer.channels,
            activation=ACTIVATIONS[layer.activation], gate=ACTIVATIONS[layer.gate],
        )  # fmt: skip
        steps.add(Op.SCALE, x=x.buffer, height=height, width=width, channels=floats, channel=channel, spatial=NONE)
        return x


class Means:
    """The mean over the pixels as a map of one pixel, for layers that follow it."""

    def __init__(self, source: Place) -> None:
        self.place = source

    def emit(self, steps: Steps, x: Map) -> Map:
        y = Buffer(2 * self.place.width)  # the maxima follow the means
        steps.add(Op.MEANS, x=x.buffer, y=y, height=x.size[0], width=x.size[1], channels=self.place.width)
        return Map(y, (1, 1))


class Reordered:
    """The same map with its channels in another order: nothing moves."""

    def __init__(self, order: Array, source: Place) -> None:
        self.place = source._replace(channels=source.channels[order])

    def emit(self, steps: Steps, x: Map) -> Map:
        return x


class Attend:
    """CBAM in either layout. If ``pending``, its factors are left to the next reader; else they multiply the map."""

    def __init__(self, layer: Cbam, source: Place, pack: Pack, pending: bool) -> None:
        self.layer, self.place, self.pending = layer, source._replace(attended=source.planar), pending
        place = source.channels
        self.width = round_up(source.width, PACK)

        def first() -> tuple[Array, Array]:
            bias = pack.get(layer, "fc1.bias") if layer.layout.mlp_bias else np.zeros(layer.hidden)
            return pack.get(layer, "fc1.weight"), bias

        def second() -> tuple[Array, Array]:
            weight, bias = np.zeros((self.width, layer.hidden)), np.zeros(self.width)
            weight[place] = pack.get(layer, "fc2.weight")
            if layer.layout.mlp_bias:
                bias[place] = 2 * pack.get(layer, "fc2.bias")  # both passes through the MLP add it
            return weight, bias

        def real(room: Array) -> None:
            room[place] = 1

        def spatial(room: Array) -> None:
            weight = pack.get(layer, "spatial.weight")[0]  # (2, 7, 7)
            scale, bias = pack.scale_shift(layer) if layer.layout.spatial_bn else (1, 0)
            room[:1], room[1:] = bias, (scale * (weight if layer.layout.mean_first else weight[::-1])).ravel()

        self.mlp = {
            "w1": pack_pointwise(pack.weights, layer.hidden, layer.channels, first),
            "table1": pack.tables.add(place),
            "w2": pack_pointwise(pack.weights, self.width, layer.hidden, second),
            "table2": pack.tables.add(np.arange(layer.hidden)),
        }
        self.real = pack.weights.reserve(self.width, real)
        self.spatial = pack.weights.reserve(1 + 2 * 49, spatial)

    def emit(self, steps: Steps, x: Map) -> Map:
        (height, width), channels = x.size, self.layer.channels
        size = {"height": height, "width": width}
        means, channel, maps = Buffer(2 * self.width), Buffer(self.width), Buffer(map_size(x.size))
        if self.place.planar:
            assert x.totals
            steps.add(Op.PLANAR_MEANS, totals=x.totals, y=means, **size, channels=channels)
        else:
            steps.add(Op.MEANS, x=x.buffer, y=means, **size, channels=self.width)
        steps.add(
            Op.CHANNEL_ATTENTION, means=means, hidden=Buffer(2 * round_up(self.layer.hidden, PACK)), y=channel,
            **self.mlp, width=self.width, channels=channels, hidden_channels=self.layer.hidden,
        )  # fmt: skip
        if self.place.planar:
            plane = plane_size(height, width)
            steps.add(Op.PLANAR_POOL, x=x.buffer, maps=maps, **size, channels=channels, plane=plane, channel=channel)
        else:
            steps.add(
                Op.POOL, x=x.buffer, maps=maps, **size, channels=self.width, real_channels=channels, channel=channel,
                real=self.real,
            )  # fmt: skip
        spatial = Buffer(round_up(height, 4) * round_up(width, LINE))
        steps.add(Op.SPATIAL_ATTENTION, maps=maps, y=spatial, w=self.spatial, **size)
        attention = Attention(channel, spatial)
        if self.pending:
            return Map(x.buffer, x.size, attention)
        steps.add(Op.SCALE, x=x.buffer, **size, channels=self.width, **attention._asdict())
        return Map(x.buffer, x.size)


class Embedding:
    """The mean over the pixels of a channels-last map times its attention: the result of a program."""

    def __init__(self, channels: int, source: Place) -> None:
        self.channels, self.place = channels, source

    def emit(self, steps: Steps, x: Map) -> Map:
        (height, width), channels = x.size, self.place.width
        steps.add(
            Op.EMBEDDING, x=x.buffer, height=height, width=width, channels=channels, size=self.channels,
            **x.attention._asdict(), y=Buffer(channels),
        )  # fmt: skip
        return x


# --- the walk -------------------------------------------------------------------------------------------------------


def lower(spec: Spec, params: Mapping[str, Array], packed: Array | None = None) -> Program:
    """The program of a network: ``params`` are the arrays of its layers, ``packed`` the weights of an equal program.

    With ``packed`` no array of a layer is read. Raises UnsupportedError if no kernel computes a layer, ValueError if
    ``packed`` has another length than this network's weights.
    """
    walk, rest = Walk(spec.layers(), params), list(spec.layers())
    while rest:
        done = walk.block(rest) or walk.residual(rest) or walk.layer(rest)
        if not done:
            raise UnsupportedError(f"{spec.name}: no compiled kernel computes the layer {rest[0].name}: {rest[0]}")
        del rest[:done]
    return walk.program(packed)


class Walk:
    """The units so far, and the places of the maps they make.

    ``block``, ``residual`` and ``layer`` add units for the first of the remaining layers, and return how many layers
    they took; 0 if they do not know them.
    """

    def __init__(self, layers: Sequence[Layer], params: Mapping[str, Array]) -> None:
        self.layers, self.pack = layers, Pack(params)
        self.readers = Counter(name for layer in layers for name in layer.inputs)
        self.places: dict[str, Place] = {}
        self.nodes: list[Node] = []

    def add(self, unit: Unit, inputs: tuple[str, ...], name: str, layers: Sequence[Layer] = ()) -> int:
        self.nodes.append(Node(unit, inputs, name, layers))
        self.places[name] = unit.place
        return len(layers)

    def program(self, packed: Array | None = None) -> Program:
        last = self.layers[-1]
        if not isinstance(self.nodes[-1].unit, Embedding):
            self.add(Embedding(last.channels, self.in_order(last.name)), (last.name,), "embedding")
        if packed is None:
            packed = self.pack.weights.whole()
        elif len(packed) != self.pack.weights.size:
            raise ValueError(f"{len(packed)} packed weights, but the network has {self.pack.weights.size}")
        return Program(last.channels, packed, self.pack.tables.whole(), self.nodes)

    # The place of a map by its name. If it is not laid out as asked for, it is moved, for all later readers.

    def channels_last(self, name: str) -> Place:
        if self.places[name].planar:
            self.add(ToChannelsLast(self.places[name]), (name,), name)
        return self.places[name]

    def packed(self, name: str) -> Place:
        """Records of whole packs."""
        return self.places[name] if self.channels_last(name).width % PACK == 0 else self.moved(name)

    def in_order(self, name: str) -> Place:
        """Records of whole packs that begin with all channels, one after the other."""
        return self.places[name] if self.packed(name).in_order else self.moved(name)

    def compact(self, name: str) -> Place:
        """Records that hold the channels one after the other and nothing else."""
        place = self.in_order(name)
        return place if place.width < len(place.channels) + PACK else self.moved(name)

    def moved(self, name: str, to: str = "") -> Place:
        to = to or name
        self.add(Joined([self.places[name]], "", self.pack), (name,), to)
        return self.places[to]

    def owned(self, name: str) -> str:
        """The name of a map of packed records that nobody else reads: this one, or a copy."""
        self.packed(name)
        maker = next(node.unit for node in reversed(self.nodes) if node.name == name)
        if self.readers[name] > 1 or isinstance(maker, Reordered):
            name, original = f"copy of {name}", name
            self.moved(original, name)
        return name

    def block(self, rest: Sequence[Layer]) -> int:
        block = PlanarBlock.match(rest, self.readers, self.places)
        return self.add(PlanarBlock(block, self.pack), block[0].inputs, block[-1].name, block) if block else 0

    def residual(self, rest: Sequence[Layer]) -> int:
        """A dense convolution whose only reader adds another map to it."""
        match rest[:2]:
            case [Conv(kernel=1, stride=1, groups=1, activation="", inputs=(x,)) as conv, Add() as total]:
                others = [name for name in total.inputs if name != conv.name]
                if x != IMAGE and len(others) == 1 and self.readers[conv.name] == 1:
                    self.compact(others[0])
                    unit = Dense(conv, self.in_order(x), total.activation, self.pack)
                    return self.add(unit, (x, *others), total.name, rest[:2])
        return 0

    def layer(self, rest: Sequence[Layer]) -> int:
        layer, x, inputs, places, pack = rest[0], rest[0].inputs[0], rest[0].inputs, self.places, self.pack
        unit: Unit
        match layer:
            case Conv(inputs=("image",), kernel=3, stride=1, activation="relu", groups=1):
                unit = Stem(layer, pack)
            case Conv(inputs=("image",), groups=1):
                unit = ImageConvolution(layer, pack)
            case _ if IMAGE in inputs:
                return 0
            case Conv(kernel=1, stride=1, groups=1) if equal_runs(self.channels_last(x).channels):
                unit = Dense(layer, places[x], layer.activation, pack)
            case Conv(kernel=1, stride=1):
                unit = Pointwise(layer, self.channels_last(x), pack)
            case Conv() if is_depthwise(layer):
                unit = Depthwise(layer, self.packed(x), pack)
            case Shuffle():
                unit = Reordered(shuffled(layer.channels, layer.groups), self.channels_last(x))
            case Slice():
                source = self.channels_last(x)
                unit = Reordered(np.arange(len(source.channels))[layer.indices()], source)
            case Add(inputs=(_, other)):
                if not self.packed(x).equals(self.packed(other)):
                    self.compact(x), self.compact(other)
                unit = Sum(layer, places[x])
            case Concat():
                unit = Joined([self.channels_last(name) for name in inputs], layer.activation, pack)
            case Pool():
                unit = Pooled(layer, self.packed(x))
            case SqueezeExcite():
                inputs = (self.owned(x),)
                unit = Excite(layer, places[inputs[0]], pack)
            case Cbam() if places[x].planar and not places[x].attended:
                unit = Attend(layer, places[x], pack, pending=True)
            case Cbam() if self.layers[-1].inputs == (layer.name,) and self.readers[layer.name] == 1:
                unit = Attend(layer, self.in_order(x), pack, pending=True)
            case Cbam():
                inputs = (self.owned(x),)
                unit = Attend(layer, places[inputs[0]], pack, pending=False)
            case Mean() if layer is self.layers[-1]:
                unit = Embedding(layer.channels, self.in_order(x))
            case Mean():
                unit = Means(self.packed(x))
            case _:
                return 0
        return self.add(unit, inputs, layer.name, rest[:1])
