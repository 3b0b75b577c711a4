"""Each compiled kernel against its counterpart in reference.py, in an arena of poison that is checked afterwards."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import given, random_params, st

from alnumpy import arena, kernels, layers, lower, reference
from alnumpy.arena import Buffer, round_up
from alnumpy.kernels import cache
from alnumpy.kernels.abi import ACTIVATIONS, COLUMNS, LINE, Op
from alnumpy.layers import (
    CBAM_LAYOUTS,
    GATES,
    PADDINGS,
    Add,
    Cbam,
    Conv,
    Layer,
    Pool,
    Shuffle,
    SqueezeExcite,
    parameters,
)
from alnumpy.lower import Attention, Map, Place
from alnumpy.networks import ALNet, Block

pytest.importorskip("numba")
from alnumpy.kernels import runner

POISON = np.uint32(0x7FC0DEAD)  # a NaN, so that reading it shows in results
SIDES = st.integers(1, 40)
ACTIVATION = st.sampled_from(layers.ACTIVATIONS)
SPECIALS = st.sampled_from(["", "", "nan", "inf", "-inf"])


class Bench:
    """Runs a few steps on given buffers, and checks that nothing outside the steps' buffers was written."""

    def __init__(self, params: dict[str, np.ndarray] | None = None) -> None:
        self.steps, self.pack = arena.Steps(), lower.Pack(params or {})
        self.inputs: dict[Buffer, np.ndarray] = {}

    def input(self, array: np.ndarray) -> Buffer:
        buffer = Buffer(array.size)
        self.inputs[buffer] = array.ravel()
        return buffer

    def run(self, image: np.ndarray | None = None, result: int = 0) -> np.ndarray:
        """Returns ``result`` floats that the steps write to the output; ``read`` then gives the contents of buffers."""
        self.steps.rows.insert(0, (-1, *self.inputs))  # no operation; keeps the inputs' places unused
        self.steps.rows.append((-1, *self.inputs))
        layout = self.steps.layout()
        self.places = layout.places
        arena = layout.new_arena()
        bits = arena.view(np.uint32)
        bits[:] = POISON
        for buffer, array in self.inputs.items():
            arena[self.places[buffer] : self.places[buffer] + len(array)] = array
        weights, tables = self.pack.weights.whole(), self.pack.tables.whole()
        output = np.full(result + 2 * LINE, np.nan, np.float32)
        image = np.zeros(1, np.float32) if image is None else np.ascontiguousarray(image, np.float32)
        kernels.loaded("numba")(
            image.ctypes.data, 0, 1, output.ctypes.data, 0, weights.ctypes.data, tables.ctypes.data,
            layout.steps.ctypes.data, len(layout.steps), arena.ctypes.data,
        )  # fmt: skip
        guard = np.ones(len(arena), bool)
        for buffer, start in self.places.items():
            guard[start : start + buffer.size] = False
        assert (bits[guard] == POISON).all(), "written outside of its buffers"
        assert np.isnan(output[result:]).all(), "written past the output"
        self.arena = arena
        return output[:result]

    def read(self, buffer: Buffer) -> np.ndarray:
        return self.arena[self.places[buffer] :][: buffer.size]

    def planar(self, x: np.ndarray) -> Map:
        """(C, H, W) as a map of planes whose padding is poison, with its totals."""
        c, h, w = x.shape
        planes = np.full((c, lower.plane_size(h, w)), np.nan, np.float32)
        rows = planes[:, : h * round_up(w, LINE)].reshape(c, h, -1)
        rows[:, :, :w] = x
        return Map(self.input(planes), (h, w), totals=self.input(totals_of(x)))

    def channels_last(self, x: np.ndarray, place: Place) -> Map:
        """(C, H, W) as a map of records whose padding is 0."""
        records = np.zeros((*x.shape[1:], place.width), np.float32)
        records[:, :, place.channels] = x.transpose(1, 2, 0)
        return Map(self.input(records), x.shape[1:])

    def read_map(self, y: Map, place: Place) -> np.ndarray:
        """A map that kernels wrote, as (C, H, W)."""
        h, w = y.size
        if place.planar:
            planes = self.read(y.buffer)[: place.width * lower.plane_size(h, w)].reshape(place.width, -1)
            return planes[place.channels, : h * round_up(w, LINE)].reshape(-1, h, round_up(w, LINE))[:, :, :w]
        records = self.read(y.buffer)[: h * w * place.width].reshape(h, w, place.width)
        return records[:, :, place.channels].transpose(2, 0, 1)


def totals_of(x: np.ndarray) -> np.ndarray:
    """The totals that planar kernels accumulate for (C, H, W), all in one lane."""
    totals = np.zeros((len(x), 2, LINE), np.float32)
    totals[:, 1] = -np.inf
    totals[:, :, 0] = np.stack([x.sum((1, 2)), x.max((1, 2))], 1)
    return totals


def picture(rng: np.random.Generator, shape: tuple[int, ...], special: str = "") -> np.ndarray:
    x = rng.normal(0, 2, shape).astype(np.float32)
    if special:
        x[tuple(rng.integers(0, side) for side in shape)] = float(special)
    return x


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Checks for equal NaN and infinities, and other values equal to within rounding of the largest."""
    assert ours.shape == theirs.shape
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    assert np.isfinite(ours[finite]).all()
    scale = np.abs(theirs[finite]).max(initial=1e-20)
    np.testing.assert_allclose(ours[finite] / scale, theirs[finite] / scale, rtol=0, atol=3e-6)


def assert_totals(bench: Bench, y: Map, x: np.ndarray) -> None:
    assert y.totals
    if np.isfinite(x).all():
        totals = bench.read(y.totals)[: 2 * LINE * len(x)].reshape(len(x), 2, LINE)
        assert_same(totals[:, 0].sum(1), x.sum((1, 2)))
        assert_same(totals[:, 1].max(1), x.max((1, 2)))


def arrays_of(layers: Sequence[Layer], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random arrays for layers."""
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in parameters(layers).items()}
    return {name: np.abs(array) + 0.5 if name.endswith("running_var") else array for name, array in arrays.items()}


def conv(cin: int, channels: int, activation: str = "", **options: Any) -> Conv:
    """A convolution with a bias and without batch norm."""
    return Conv("conv", ("image",), channels, cin, bias=True, batch_norm=False, activation=activation, **options)


def plain_conv(x: np.ndarray, layer: Conv, params: dict[str, np.ndarray]) -> np.ndarray:
    """A convolution and its activation as the sums that define them: (C, H, W) -> (O, H', W')."""
    weight, bias = (params[f"{layer.name}.conv.{field}"].astype(np.float64) for field in ("weight", "bias"))
    (top, _), (left, _) = layer.pads(x.shape[1:])
    y = np.empty((layer.channels, *layer.size(x.shape[1:])))
    group = np.arange(layer.channels) * layer.groups // layer.channels  # the group of each output
    for i, j in np.ndindex(y.shape[1:]):
        y[:, i, j] = bias
        for ky, kx in np.ndindex(weight.shape[2:]):
            row, column = i * layer.stride - top + ky, j * layer.stride - left + kx
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                y[:, i, j] += (weight[:, :, ky, kx] * x[:, row, column].reshape(layer.groups, -1)[group]).sum(1)
    return plain_activation(y, layer.activation)


def plain_activation(x: np.ndarray, activation: str) -> np.ndarray:
    """An activation or a gate, by its formula."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            "": lambda: x,
            "relu": lambda: np.maximum(x, 0),
            "relu6": lambda: np.minimum(np.maximum(x, 0), 6),
            "silu": lambda: x / (1 + np.exp(-x)),
            "hardswish": lambda: x * np.minimum(np.maximum(x + 3, 0), 6) / 6,
            "sigmoid": lambda: 1 / (1 + np.exp(-x)),
            "hardsigmoid": lambda: np.minimum(np.maximum(x + 3, 0), 6) / 6,
        }[activation]()


def plain_pool(x: np.ndarray, layer: Pool) -> np.ndarray:
    """The maximum of each window's pixels, or their sum divided by nine."""
    y = np.empty((len(x), *layer.size(x.shape[1:])))
    for i, j in np.ndindex(y.shape[1:]):
        window = x[:, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
        y[:, i, j] = window.max((1, 2)) if layer.kind == "max" else window.sum((1, 2)) / 9
    return y


def plain_squeeze_excite(x: np.ndarray, layer: SqueezeExcite, params: dict[str, np.ndarray]) -> np.ndarray:
    y = x.astype(np.float64).mean((1, 2))
    for fc, activation in (("fc1", layer.activation), ("fc2", layer.gate)):
        y = plain_activation(params[f"se.{fc}.weight"] @ y + params[f"se.{fc}.bias"], activation)
    return x * y[:, None, None]


@given(SIDES, SIDES, st.integers(1, 20), SPECIALS, st.integers(0, 99))
def test_stem(height: int, width: int, channels: int, special: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = picture(rng, (3, height, width), special)
    layer = conv(3, channels, "relu", kernel=3)
    params = arrays_of([layer], rng)
    bench = Bench(params)
    unit = lower.Stem(layer, bench.pack)
    y = unit.emit(bench.steps, Map(Buffer(0), (height, width)))
    bench.run(x)
    ours = bench.read_map(y, unit.place)
    assert_same(ours, plain_conv(x, layer, params))
    assert_totals(bench, y, ours)


@given(
    SIDES, SIDES, st.sampled_from([1, 2, 8]), st.integers(1, 6), st.integers(1, 6), st.integers(1, 7),
    st.sampled_from([1, 2]), st.booleans(), st.booleans(), SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_planar_block(
    height: int, width: int, groups: int, inputs: int, t: int, outputs: int, stride: int, shuffle: bool,
    attended: bool, special: str, seed: int,
) -> None:  # fmt: skip
    """Expand, shuffle, depthwise and project in one kernel; the input may still need its attention."""
    rng = np.random.default_rng(seed)
    cin, wide = groups * inputs, groups * inputs * t
    options = {"bias": True, "batch_norm": False}
    expand = Conv("expand", ("x",), wide, cin, groups=groups, activation="relu6", **options)
    depthwise = Conv("depthwise", ("",), wide, wide, 3, stride, wide, activation="relu6", **options)
    project = Conv("project", ("",), groups * outputs, wide, groups=groups, **options)
    block = [expand, *[Shuffle("shuffle", ("",), wide, groups)] * shuffle, depthwise, project]
    params = arrays_of(block, rng)
    x = picture(rng, (cin, height, width), special)
    bench = Bench(params)
    source = bench.planar(x)
    if attended:
        channel, spatial = rng.uniform(0.1, 1, cin).astype(np.float32), np.full((height, 64), np.nan, np.float32)
        spatial = spatial[:, : round_up(width, LINE)]
        spatial[:, :width] = rng.uniform(0.1, 1, (height, width))
        source = source._replace(attention=Attention(bench.input(channel), bench.input(spatial)))
        x = x * channel[:, None, None] * spatial[:, :width]
    unit = lower.PlanarBlock(block, bench.pack)
    y = unit.emit(bench.steps, source)
    bench.run()
    ours = bench.read_map(y, unit.place)
    for layer in block:
        x = plain_conv(x, layer, params) if isinstance(layer, Conv) else reference.channel_shuffle(x[None], groups)[0]
    assert_same(ours, x)
    assert_totals(bench, y, ours)


@given(
    st.integers(1, 40), st.sampled_from([1, 2, 3, 8]), st.integers(1, 40), st.integers(1, 60),
    ACTIVATION, SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_pointwise(
    pixels: int, groups: int, inputs: int, outputs: int, activation: str, special: str, seed: int
) -> None:
    """Inputs may stand in any order, as after a shuffle."""
    rng = np.random.default_rng(seed)
    x = picture(rng, (groups * inputs, pixels, 1), special)
    layer = conv(len(x), groups * outputs, activation, groups=groups)
    params = arrays_of([layer], rng)
    bench = Bench(params)
    source = Place(rng.permutation(len(x)), len(x))
    unit = lower.Pointwise(layer, source, bench.pack)
    y = unit.emit(bench.steps, bench.channels_last(x, source))
    bench.run()
    assert_same(bench.read_map(y, unit.place), plain_conv(x, layer, params))


@given(
    st.integers(1, 120), st.integers(1, 40), st.integers(1, 100), st.booleans(), ACTIVATION, SPECIALS,
    st.integers(0, 99),
)  # fmt: skip
def test_dense(
    pixels: int, inputs: int, outputs: int, residual: bool, activation: str, special: str, seed: int
) -> None:
    """Another map may be added; records may be wider than their channels."""
    rng = np.random.default_rng(seed)
    x, other = picture(rng, (inputs, pixels, 1), special), picture(rng, (outputs, pixels, 1))
    layer = conv(inputs, outputs, "" if residual else activation)
    params = arrays_of([layer], rng)
    bench, source = Bench(params), Place(np.arange(inputs), inputs + 5)
    if inputs >= 16 and inputs % 2 == 0:  # two runs in another order, as after a shuffle
        slots = np.arange(2)[:, None] * (inputs + 7) + np.arange(3, inputs // 2 + 3)
        source = Place(rng.permutation(slots.ravel()), 2 * inputs + 9)
    unit = lower.Dense(layer, source, activation, bench.pack)
    maps = [bench.channels_last(x, source), *[bench.channels_last(other, unit.place)] * residual]
    y = unit.emit(bench.steps, *maps)
    bench.run()
    theirs = plain_conv(x, layer, params)
    assert_same(bench.read_map(y, unit.place), plain_activation(theirs + other, activation) if residual else theirs)


@pytest.mark.parametrize(
    ("channels", "start", "runs"),
    [
        ([2, 0, 1], 0, {"run": 3, "runs": 1, "x_run": 0}),
        ([5, 6], 5, {"run": 2, "runs": 1, "x_run": 0}),
        ([*range(20, 28), *range(4, 12)], 4, {"run": 8, "runs": 2, "x_run": 16}),
        ([0, 2], None, None),  # runs too short
        ([*range(9), *range(20, 28)], None, None),  # runs of different lengths
        ([*range(8), *range(20, 28), *range(41, 49)], None, None),  # runs at different distances
    ],
)
def test_equal_runs(channels: list[int], start: int | None, runs: dict[str, int] | None) -> None:
    found = lower.equal_runs(np.array(channels))
    if runs is None:
        assert found is None
    else:
        assert found is not None
        assert (list(np.array(channels)[found[0]]), *found[1:]) == (sorted(channels), start, runs)


@given(
    st.integers(1, 20), SIDES, st.integers(1, 90), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2, 3]),
    st.sampled_from(PADDINGS), ACTIVATION, SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_depthwise(
    height: int, width: int, channels: int, kernel: int, stride: int, padding: str, activation: str, special: str,
    seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x = picture(rng, (channels, height, width), special)
    layer = conv(channels, channels, activation, kernel=kernel, stride=stride, groups=channels, padding=padding)
    params = arrays_of([layer], rng)
    bench = Bench(params)
    source = lower.grouped(channels, 1)
    unit = lower.Depthwise(layer, source, bench.pack)
    y = unit.emit(bench.steps, bench.channels_last(x, source))
    bench.run()
    assert_same(bench.read_map(y, unit.place), plain_conv(x, layer, params))


@given(
    SIDES, SIDES, st.integers(1, 20), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2, 3]),
    st.sampled_from(PADDINGS), ACTIVATION, SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_image_convolution(
    height: int, width: int, channels: int, kernel: int, stride: int, padding: str, activation: str, special: str,
    seed: int,
) -> None:  # fmt: skip
    """Convolutions of the picture."""
    rng = np.random.default_rng(seed)
    x = picture(rng, (3, height, width), special)
    layer = conv(3, channels, activation, kernel=kernel, stride=stride, padding=padding)
    params = arrays_of([layer], rng)
    bench = Bench(params)
    unit = lower.ImageConvolution(layer, bench.pack)
    y = unit.emit(bench.steps, Map(Buffer(0), (height, width)))
    bench.run(x)
    assert_same(bench.read_map(y, unit.place), plain_conv(x, layer, params))


@given(SIDES, SIDES, st.integers(1, 40), st.sampled_from(["max", "mean"]), SPECIALS, st.integers(0, 99))
def test_pool(height: int, width: int, channels: int, kind: str, special: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = picture(rng, (channels, height, width), special)
    layer = Pool("pool", ("x",), channels, kind)
    bench, source = Bench(), lower.grouped(channels, 1)
    y = lower.Pooled(layer, source).emit(bench.steps, bench.channels_last(x, source))
    bench.run()
    assert_same(bench.read_map(y, source), plain_pool(x, layer))


@given(SIDES, SIDES, st.integers(1, 40), ACTIVATION, SPECIALS, st.integers(0, 99))
def test_add(height: int, width: int, channels: int, activation: str, special: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, other = picture(rng, (channels, height, width), special), picture(rng, (channels, height, width))
    bench, place = Bench(), lower.grouped(channels, 1)
    unit = lower.Sum(Add("add", ("x", "other"), channels, activation), place)
    y = unit.emit(bench.steps, bench.channels_last(x, place), bench.channels_last(other, place))
    bench.run()
    assert_same(bench.read_map(y, place), plain_activation(x + other, activation))


@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), ACTIVATION, SPECIALS, st.integers(0, 99))
def test_copy(height: int, width: int, first: int, second: int, activation: str, special: str, seed: int) -> None:
    """Two maps are joined, with channels in any order; the padding of records is 0."""
    rng = np.random.default_rng(seed)
    maps = [picture(rng, (channels, height, width), special) for channels in (first, second)]
    places = [Place(rng.permutation(len(x) + 3)[: len(x)], len(x) + 3) for x in maps]
    bench = Bench()
    unit = lower.Joined(places, activation, bench.pack)
    y = unit.emit(bench.steps, *(bench.channels_last(x, place) for x, place in zip(maps, places, strict=True)))
    bench.run()
    assert unit.place.in_order
    assert_same(bench.read_map(y, unit.place), plain_activation(np.concatenate(maps), activation))
    padding = Place(np.arange(first + second, unit.place.width), unit.place.width)
    assert not plain_activation(bench.read_map(y, padding), activation).any() or "sigmoid" in activation


@given(
    SIDES, SIDES, st.integers(1, 70), st.integers(1, 20), ACTIVATION, st.sampled_from(GATES), SPECIALS,
    st.integers(0, 99),
)  # fmt: skip
def test_squeeze_excite(
    height: int, width: int, channels: int, hidden: int, activation: str, gate: str, special: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = picture(rng, (channels, height, width), special)
    layer = SqueezeExcite("se", ("x",), channels, hidden, activation, gate)
    params = arrays_of([layer], rng)
    bench, place = Bench(params), lower.grouped(channels, 2 if channels % 2 == 0 else 1)
    y = lower.Excite(layer, place, bench.pack).emit(bench.steps, bench.channels_last(x, place))
    bench.run()
    with np.errstate(invalid="ignore"):
        assert_same(bench.read_map(y, place), plain_squeeze_excite(x, layer, params))


@pytest.mark.parametrize("activation", ["silu", "hardswish", "sigmoid", "hardsigmoid"])
def test_activations_at_their_limits(activation: str) -> None:
    x = np.float32([-np.inf, -1e4, -104, -89, -88, -50, -3, -1, -1e-6, 0, 1e-6, 1, 3, 50, 88, 89, 1e4, np.inf, np.nan])
    place, bench = Place(np.arange(1), 8), Bench()
    y = bench.channels_last(x.reshape(1, -1, 1), place)
    bench.steps.add(Op.ACTIVATE, x=y.buffer, count=8 * len(x), code=ACTIVATIONS[activation])
    bench.run()
    theirs = plain_activation(x.astype(np.float64), activation)
    np.testing.assert_allclose(bench.read_map(y, place).ravel(), theirs, rtol=4e-7, atol=1e-35)


@given(
    SIDES, SIDES, st.integers(1, 70), st.sampled_from([1, 4, 16]), st.sampled_from(sorted(CBAM_LAYOUTS)),
    st.sampled_from(["planar", "channels last"]), st.booleans(), SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_cbam(
    height: int, width: int, channels: int, reduction: int, layout: str, kind: str, pending: bool, special: str,
    seed: int,
) -> None:  # fmt: skip
    """Both attentions and the multiplication, by the kernels of each layout."""
    rng = np.random.default_rng(seed)
    x = picture(rng, (channels, height, width), special)
    layer = Cbam("cbam", ("x",), channels, max(1, channels // reduction), CBAM_LAYOUTS[layout])
    params = arrays_of([layer], rng)
    bench = Bench(params)
    if kind == "planar":
        place, source = Place(np.arange(channels), channels, planar=True), bench.planar(x)
        attended = lower.Attend(layer, place, bench.pack, pending=True)
        last = lower.ToChannelsLast(attended.place)
        y, place = last.emit(bench.steps, attended.emit(bench.steps, source)), last.place
    else:
        place = lower.grouped(channels, 2 if channels % 2 == 0 else 1)
        y = lower.Attend(layer, place, bench.pack, pending=False).emit(bench.steps, bench.channels_last(x, place))
    bench.run()
    with np.errstate(invalid="ignore"):
        assert_same(bench.read_map(y, place), reference.cbam(x[None], layer, params)[0])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 50), st.booleans(), st.integers(0, 99))
def test_embedding(height: int, width: int, channels: int, attended: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = picture(rng, (channels, height, width))
    place = lower.grouped(channels, 1)
    bench = Bench()
    source = bench.channels_last(x, place)
    if attended:
        channel, spatial = rng.uniform(0, 1, place.width), rng.uniform(0, 1, (height, round_up(width, LINE)))
        source = source._replace(attention=Attention(bench.input(channel), bench.input(spatial)))
        x = (x * channel[:channels, None, None] * spatial[:, :width]).astype(np.float32)
    lower.Embedding(channels, place).emit(bench.steps, source)
    assert_same(bench.run(result=channels), x.mean((1, 2)))


def test_sigmoid_extremes() -> None:
    """Tests a CBAM of one pixel whose channels' sums range from far below to far above the overflow of exp."""
    values = np.float32([-np.inf, -1e4, -104, -89, -88, -50, -1, -1e-6, 0, 1e-6, 1, 50, 88, 89, 1e4, np.inf])
    layer = Cbam("cbam", ("x",), len(values), 1, CBAM_LAYOUTS["max-mean-bias-bn"])
    params = {name: np.zeros(shape, np.float32) for name, shape in parameters([layer]).items()}
    params["cbam.fc2.bias"] = values / 2
    bench = Bench(params)
    place = Place(np.arange(16), 16)
    y = lower.Attend(layer, place, bench.pack, pending=False).emit(
        bench.steps, bench.channels_last(np.full((16, 1, 1), 2.0), place)
    )
    bench.run()
    ours = bench.read_map(y, place).ravel()  # the spatial attention is 0.5
    np.testing.assert_allclose(ours, reference.sigmoid(values), rtol=4e-7, atol=1e-37)


def test_arguments_are_those_of_the_kernels() -> None:
    """Each operation names the arguments of its kernel, which come after the addresses of the buffers."""
    for op in Op:
        names = list(inspect.signature(getattr(runner, op.name.lower()).py_func).parameters)
        given = [name for name in names if name not in ("images", "arena", "weights", "tables", "output")]
        assert given == list(op.arguments), op
        assert len(given) < COLUMNS


def test_a_step_with_other_arguments_is_refused() -> None:
    steps = arena.Steps()
    with pytest.raises(TypeError, match="PAD_IMAGE: missing or unknown arguments: border, height, heigth"):
        steps.add(Op.PAD_IMAGE, y=Buffer(1), heigth=1, width=1)
    assert not steps.rows


def test_importing_the_package_imports_no_numba() -> None:
    code = "import sys, alnumpy.kernels.cache as k, alnumpy.lower; k.is_cached(); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cache_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ALNUMPY_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    home = cache.cache_file()
    assert home is None or home.is_absolute()  # without HOME, the password database names it
    monkeypatch.setenv("HOME", str(tmp_path))
    home = cache.cache_file()
    assert home is not None
    assert home.parent == tmp_path / ".cache" / "alnumpy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    xdg = cache.cache_file()
    assert xdg is not None
    assert xdg.parent == tmp_path / "xdg" / "alnumpy"
    monkeypatch.setenv("ALNUMPY_CACHE_DIR", str(tmp_path / "own"))
    own = cache.cache_file()
    assert own is not None
    assert own.parent == tmp_path / "own"
    assert not cache.is_cached()
    assert cache._write(own, b"code")
    assert cache.is_cached()
    assert list(own.parent.iterdir()) == [own]


def test_cache_file_depends_on_everything_that_compiled_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        cache._digest.cache_clear()
        return cache._digest()

    digests = {digest()}
    assert digest() in digests
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: b"changed" if path.name == "simd.py" else b"")
        digests.add(digest())
    with monkeypatch.context() as patch:
        patch.setattr(cache.metadata, "version", lambda name: "0")
        digests.add(digest())
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_cpu", lambda: "another")
        digests.add(digest())
    assert len(digests) == 4
    cache._digest.cache_clear()


def test_only_whole_code_of_our_own_for_this_cpu_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from alnumpy.kernels import compiler

    path = tmp_path / "kernels.o"
    assert cache._read(path, compiler.sign) is None
    cache._write(path, compiler.sign(b"code") + b"code")
    assert cache._read(path, compiler.sign) == b"code"
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "TARGET", "another CPU")
        assert cache._read(path, compiler.sign) is None
    if hasattr(os, "getuid"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 12345)
            os.chown(path, 54321, -1) if os.geteuid() == 0 else None
            assert cache._read(path, compiler.sign) is None
    cache._write(path, compiler.sign(b"code") + b"cod")
    assert cache._read(path, compiler.sign) is None


def test_one_warning_if_kernels_cannot_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from alnumpy.kernels import compiler

    (tmp_path / "file").touch()
    monkeypatch.setenv("ALNUMPY_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(compiler, "compile_runner", lambda: b"code")
    monkeypatch.setattr(compiler, "link", lambda code: print)
    with pytest.warns(RuntimeWarning, match="ALNUMPY_CACHE_DIR") as warned:
        assert cache.warmup()[0] is None
    assert len(warned) == 1


def test_run_refuses_other_dtypes_and_shapes() -> None:
    spec = ALNet("tiny", 2, True, (), embedding=8, groups=2, cbam="")
    program = lower.lower(spec, random_params(spec))
    for x in (
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 1, 8, 8), np.float32),
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 3, 8, 0), np.float32),
        np.zeros((1, 3, 8, 16), np.float32)[..., ::2],
    ):
        with pytest.raises(ValueError, match="C-contiguous float32"):
            kernels.run(program, x)
    assert kernels.run(program, np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 8)


def test_an_interrupted_run_frees_nothing_that_a_thread_still_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    take = kernels._take_arena
    arenas: list[weakref.ref] = []
    calls: list[tuple[int, ...]] = []
    alive: list[bool] = []
    unwound, looked = threading.Event(), threading.Event()

    def taken(layout):  # type: ignore[no-untyped-def]
        arena, at = take(layout)
        arenas.append(weakref.ref(arena))
        return arena, at

    def run_program(*arguments: int) -> None:
        calls.append(arguments)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        assert unwound.wait(10)
        gc.collect()
        alive.append(arenas[1]() is not None)
        looked.set()

    monkeypatch.setattr(kernels, "loaded", lambda backend: run_program)
    monkeypatch.setattr(kernels, "_arenas", [])
    monkeypatch.setattr(kernels, "_take_arena", taken)
    spec = ALNet("small", 4, True, (Block(1, 4, 1),), embedding=24, groups=2, cbam="")
    with pytest.raises(KeyboardInterrupt):
        kernels.run(lower.lower(spec, random_params(spec)), np.zeros((40, 3, 8, 8), np.float32), 2)
    unwound.set()
    assert looked.wait(10)
    assert alive == [True]
    time.sleep(0.05)
    assert len(calls) == 2  # no other chunk was begun
