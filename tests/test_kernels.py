"""Each compiled kernel against its twin in reference.py, in an arena that is poisoned before and checked after."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import given, random_params, st

from alnumpy import kernels, reference
from alnumpy import program as prg
from alnumpy.kernels.abi import LINE, PACK, STEM_ROWS, Op
from alnumpy.spec import CBAM_LAYOUTS, Block, Cbam, Conv, Spec, layer_parameters, layers, output_size

pytest.importorskip("numba")
from alnumpy.kernels.simd import LANES

POISON = np.uint32(0x7FC0DEAD)  # a NaN, so that reading it shows in results
SIDES = st.integers(1, 40)
SPECIALS = st.sampled_from(["", "", "nan", "inf", "-inf"])


class Bench:
    """Runs a few steps on given buffers, and checks that nothing outside the steps' buffers was written."""

    def __init__(self) -> None:
        self.steps = prg.Steps()
        self.weights, self.tables = prg.Packer(np.float32), prg.Packer(np.int64)
        self.inputs: dict[prg.Buffer, np.ndarray] = {}

    def input(self, array: np.ndarray) -> prg.Buffer:
        buffer = prg.Buffer(array.size)
        self.inputs[buffer] = array.ravel()
        return buffer

    def run(self, image: np.ndarray | None = None, result: int = 0) -> np.ndarray:
        """Returns ``result`` floats that the steps put out; ``read`` then gives what buffers hold."""
        self.steps.rows.insert(0, (-1, *self.inputs))  # no operation; keeps the inputs' places from being used before
        self.steps.rows.append((-1, *self.inputs))
        layout = self.steps.layout()
        self.places = layout.places
        arena = layout.new_arena()
        bits = arena.view(np.uint32)
        bits[:] = POISON
        for buffer, array in self.inputs.items():
            arena[self.places[buffer] : self.places[buffer] + len(array)] = array
        weights, tables = self.weights.join(), self.tables.join()
        output = np.full(result + 2 * LINE, np.nan, np.float32)
        image = np.zeros(1, np.float32) if image is None else np.ascontiguousarray(image, np.float32)
        kernels._load()(
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

    def read(self, buffer: prg.Buffer) -> np.ndarray:
        return self.arena[self.places[buffer] :][: buffer.size]


def to_planar(x: np.ndarray) -> np.ndarray:
    """(C, H, W) -> planes whose padding is poison."""
    c, h, w = x.shape
    planes = np.full((c, prg.plane_size(h, w)), np.nan, np.float32)
    rows = planes[:, : h * prg.round_up(w, LINE)].reshape(c, h, -1)
    rows[:, :, :w] = x
    return planes


def from_planar(planes: np.ndarray, c: int, h: int, w: int) -> np.ndarray:
    planes = planes[: c * prg.plane_size(h, w)].reshape(c, -1)
    return planes[:, : h * prg.round_up(w, LINE)].reshape(c, h, -1)[:, :, :w]


def totals_of(x: np.ndarray) -> np.ndarray:
    """What the planar kernels accumulate for (C, H, W), all in one lane."""
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
    """The same NaN and infinities; the rest within rounding of the largest value."""
    assert ours.shape == theirs.shape
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    assert np.isfinite(ours[finite]).all()
    scale = np.abs(theirs[finite]).max(initial=1e-20)
    np.testing.assert_allclose(ours[finite] / scale, theirs[finite] / scale, rtol=0, atol=3e-6)


def assert_totals(totals: np.ndarray, x: np.ndarray) -> None:
    if np.isfinite(x).all():
        totals = totals[: 2 * LINE * len(x)].reshape(len(x), 2, LINE)[:, :, :LANES]
        assert_same(totals[:, 0].sum(1), x.sum((1, 2)))
        assert_same(totals[:, 1].max(1), x.max((1, 2)))


@given(SIDES, SIDES, st.integers(1, 20), SPECIALS, st.integers(0, 99))
def test_stem(height: int, width: int, channels: int, special: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = picture(rng, (3, height, width), special)
    weight, bias = rng.normal(size=(channels, 3, 3, 3)), rng.normal(size=channels)
    bench = Bench()
    image = prg.Buffer(prg.image_size((height, width)))
    plane = prg.plane_size(height, width)
    y = prg.Buffer(prg.round_up(channels, STEM_ROWS) * plane)
    totals = prg.Buffer(2 * LINE * prg.round_up(channels, STEM_ROWS))
    bench.steps.add(Op.PAD_IMAGE, image, height, width)
    at = bench.weights.add(prg.pack_stem(weight, bias))
    bench.steps.add(Op.STEM, image, y, at, height, width, channels, plane, totals)
    bench.run(x)
    ours = from_planar(bench.read(y), channels, height, width)
    with np.errstate(invalid="ignore"):  # BLAS may meet infinity times zero in numbers that it throws away
        convolved = reference.conv2d(x[None], weight.astype(np.float32), bias.astype(np.float32), padding=1)
    theirs = reference.relu(convolved)
    assert_same(ours, theirs[0])
    assert_totals(bench.read(totals), ours)


@given(
    SIDES, SIDES, st.sampled_from([1, 2, 8]), st.integers(1, 6), st.integers(1, 6), st.integers(1, 7),
    st.sampled_from([1, 2]), st.booleans(), st.booleans(), SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_planar_block(
    height: int, width: int, groups: int, inputs: int, t: int, outputs: int, stride: int, shuffle: bool,
    attended: bool, special: str, seed: int,
) -> None:  # fmt: skip
    """Expand, shuffle, depthwise and project in one kernel, of an input with or without attention still to multiply."""
    rng = np.random.default_rng(seed)
    block = Block(t, groups * outputs, stride)
    spec = Spec("one", groups * inputs, True, (block,), embedding=1, groups=groups, shuffle=shuffle, cbam="")
    params = random_params(spec, seed)
    program = prg.compile_program(spec, params)
    x = picture(rng, (spec.stem, height, width), special)
    channel, spatial = rng.uniform(0.1, 1, spec.stem), rng.uniform(0.1, 1, (height, width))
    expand, *others = layers(spec)[1:-1]
    assert isinstance(expand, Conv)
    new_size = -(-height // stride), -(-width // stride)

    bench = Bench()
    bench.weights.add(program.weights)
    bench.tables.add(program.tables)
    attention = None
    if attended:
        rows = np.full((height, prg.round_up(width, LINE)), np.nan, np.float32)
        rows[:, :width] = spatial
        attention = prg.Attention(bench.input(channel), bench.input(rows))
    y, totals = prg.add_planar_block(
        bench.steps, program.offsets, "block1", expand, block, groups, bench.input(to_planar(x)), attention,
        (height, width), new_size,
    )  # fmt: skip
    bench.run()
    ours = from_planar(bench.read(y), block.c, *new_size)

    theirs = x[None]
    if attended:
        theirs = theirs * channel.astype(np.float32)[:, None, None] * spatial.astype(np.float32)
    for layer in [expand, *others]:
        if isinstance(layer, Conv):
            with np.errstate(invalid="ignore"):
                theirs = reference.conv_bn_activation(theirs, layer, params)
        else:
            theirs = reference.channel_shuffle(theirs, groups)
    assert_same(ours, theirs[0])
    assert_totals(bench.read(totals), ours)


@given(
    st.integers(1, 40), st.sampled_from([1, 2, 3, 8]), st.integers(1, 40), st.integers(1, 60),
    st.sampled_from(sorted(prg.ACTIVATION_CODES)), SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_pointwise(
    pixels: int, groups: int, inputs: int, outputs: int, activation: str, special: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = picture(rng, (pixels, groups * inputs), special)
    weight, bias = rng.normal(size=(groups * outputs, inputs, 1, 1)), rng.normal(size=groups * outputs)
    layer = Conv("conv", groups * inputs, groups * outputs, 1, 1, groups, False, activation)
    bench = Bench()
    order = rng.permutation(x.shape[1])  # where the inputs stand: a shuffle
    offsets = {
        "conv": bench.weights.add(prg.pack_pointwise(weight[:, :, 0, 0], bias, groups)),
        "conv.table": bench.tables.add(order),
    }
    shuffled = np.empty_like(x)
    shuffled[:, order] = x
    y, width = prg.add_pointwise(bench.steps, offsets, layer, bench.input(shuffled), x.shape[1], (pixels, 1))
    bench.run()
    ours = bench.read(y)[: pixels * width].reshape(pixels, width)[:, prg.positions(groups * outputs, groups)]
    x4 = x.T[None, :, :, None]
    with np.errstate(invalid="ignore"):
        theirs = reference.conv2d(x4, weight.astype(np.float32), bias.astype(np.float32), groups=groups)
    assert_same(ours, reference.ACTIVATIONS[activation](theirs)[0, :, :, 0].T)


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.sampled_from([1, 2, 3]), SPECIALS,
    st.integers(0, 99),
)  # fmt: skip
def test_depthwise(height: int, width: int, packs: int, stride: int, special: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = packs * PACK
    x = picture(rng, (height, width, channels), special)
    weight, bias = rng.normal(size=(channels, 1, 3, 3)), rng.normal(size=channels)
    layer = Conv("conv", channels, channels, 3, stride, channels, False, "relu6")
    bench = Bench()
    offsets = {"conv": bench.weights.add(np.vstack([bias, weight.reshape(channels, 9).T]))}
    y, size = prg.add_depthwise(bench.steps, offsets, layer, bench.input(x), channels, (height, width))
    assert size == output_size(layer, (height, width))
    bench.run()
    ours = bench.read(y)[: channels * size[0] * size[1]].reshape(*size, channels)
    x4, weight, bias = x.transpose(2, 0, 1)[None], weight.astype(np.float32), bias.astype(np.float32)
    with np.errstate(invalid="ignore"):
        theirs = reference.relu6(reference.conv2d(x4, weight, bias, stride, 1, groups=channels))
    assert_same(ours, theirs[0].transpose(1, 2, 0))


@given(
    SIDES, SIDES, st.integers(1, 70), st.sampled_from([1, 4, 16]), st.sampled_from(sorted(CBAM_LAYOUTS)),
    st.sampled_from(["planar", "channels last"]), SPECIALS, st.integers(0, 99),
)  # fmt: skip
def test_cbam(
    height: int, width: int, channels: int, reduction: int, layout: str, kind: str, special: str, seed: int
) -> None:
    """Both attentions and the multiplication, by the kernels of each layout of activations."""
    rng = np.random.default_rng(seed)
    x = picture(rng, (channels, height, width), special)
    layer = Cbam("cbam", channels, max(1, channels // reduction), CBAM_LAYOUTS[layout])
    shapes = layer_parameters(layer)
    params = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    params |= {name: rng.uniform(0.5, 2, 1).astype(np.float32) for name in shapes if name.endswith("running_var")}
    size = height, width
    bench = Bench()
    if kind == "planar":
        place, record = np.arange(channels), channels
        offsets = prg.pack_cbam(layer, params, 1e-5, place, bench.weights, bench.tables)
        source, totals = bench.input(to_planar(x)), bench.input(totals_of(x))
        attention = prg.add_planar_cbam(bench.steps, offsets, layer, source, totals, size)
        y = prg.Buffer(channels * height * width)
        plane = prg.plane_size(*size)
        bench.steps.add(Op.TO_CHANNELS_LAST, source, y, *size, channels, plane, *attention)
    else:
        groups = 2 if channels % 2 == 0 else 1
        place, record = prg.positions(channels, groups), prg.record(channels, groups)
        offsets = prg.pack_cbam(layer, params, 1e-5, place, bench.weights, bench.tables)
        pixels = np.zeros((height, width, record), np.float32)
        pixels[:, :, place] = x.transpose(1, 2, 0)
        y = bench.input(pixels)
        attention = prg.add_cbam(bench.steps, offsets, layer, y, record, size)
        bench.steps.add(Op.SCALE, y, *size, record, *attention)
    bench.run()
    ours = bench.read(y)[: record * height * width].reshape(height, width, record)[:, :, place]
    with np.errstate(invalid="ignore"):
        theirs = reference.cbam(x[None], layer, params)
    assert_same(ours.transpose(2, 0, 1), theirs[0])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 50), st.booleans(), st.integers(0, 99))
def test_embedding(height: int, width: int, channels: int, attended: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    record = prg.round_up(channels, PACK)
    x = picture(rng, (height, width, record))
    channel = rng.uniform(0, 1, record).astype(np.float32)
    spatial = rng.uniform(0, 1, (height, prg.round_up(width, LINE))).astype(np.float32)
    bench = Bench()
    factors = (bench.input(channel), bench.input(spatial)) if attended else (-1, -1)
    source = bench.input(x)
    bench.steps.add(Op.EMBEDDING, source, height, width, record, channels, *factors, prg.Buffer(record))
    ours = bench.run(result=channels)
    theirs = x * channel * spatial[:, :width, None] if attended else x
    assert_same(ours, theirs.mean((0, 1))[:channels])


def test_sigmoid_extremes() -> None:
    """Through a CBAM of one pixel whose channels' sums reach from far below to far above where exp overflows."""
    values = np.float32([-np.inf, -1e4, -104, -89, -88, -50, -1, -1e-6, 0, 1e-6, 1, 50, 88, 89, 1e4, np.inf])
    layer = Cbam("cbam", len(values), 1, CBAM_LAYOUTS["max-mean-bias-bn"])
    params = {name: np.zeros(shape, np.float32) for name, shape in layer_parameters(layer).items()}
    params["cbam.fc2.bias"] = values / 2
    bench = Bench()
    offsets = prg.pack_cbam(layer, params, 1e-5, np.arange(16), bench.weights, bench.tables)
    channel = prg.add_channel_attention(bench.steps, offsets, layer, bench.input(np.zeros(32)), 16)
    bench.run()
    np.testing.assert_allclose(bench.read(channel), reference.sigmoid(values), rtol=4e-7, atol=1e-37)


def test_importing_the_package_imports_no_numba() -> None:
    code = "import sys, alnumpy.kernels as k, alnumpy.program; k.is_cached(); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cache_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ALNUMPY_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    home = kernels.cache_file()
    assert home is None or home.is_absolute()  # without HOME, the password database says
    monkeypatch.setenv("HOME", str(tmp_path))
    home = kernels.cache_file()
    assert home is not None
    assert home.parent == tmp_path / ".cache" / "alnumpy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    xdg = kernels.cache_file()
    assert xdg is not None
    assert xdg.parent == tmp_path / "xdg" / "alnumpy"
    monkeypatch.setenv("ALNUMPY_CACHE_DIR", str(tmp_path / "own"))
    own = kernels.cache_file()
    assert own is not None
    assert own.parent == tmp_path / "own"
    assert not kernels.is_cached()
    assert kernels._write(own, b"code")
    assert kernels.is_cached()
    assert list(own.parent.iterdir()) == [own]


def test_cache_file_depends_on_all_that_compiled_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        kernels._digest.cache_clear()
        return kernels._digest()

    digests = {digest()}
    assert digest() in digests
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: b"changed" if path.name == "simd.py" else b"")
        digests.add(digest())
    with monkeypatch.context() as patch:
        patch.setattr(kernels.metadata, "version", lambda name: "0")
        digests.add(digest())
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_cpu", lambda: "another")
        digests.add(digest())
    assert len(digests) == 4
    kernels._digest.cache_clear()


def test_only_whole_code_of_our_own_for_this_cpu_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from alnumpy.kernels import compiler

    path = tmp_path / "kernels.o"
    assert kernels._read(path, compiler.sign) is None
    kernels._write(path, compiler.sign(b"code") + b"code")
    assert kernels._read(path, compiler.sign) == b"code"
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "host", lambda: "another CPU")
        assert kernels._read(path, compiler.sign) is None
    if hasattr(os, "getuid"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 12345)
            os.chown(path, 54321, -1) if os.geteuid() == 0 else None
            assert kernels._read(path, compiler.sign) is None
    kernels._write(path, compiler.sign(b"code") + b"cod")
    assert kernels._read(path, compiler.sign) is None


def test_where_nothing_can_be_kept_one_warning_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from alnumpy.kernels import compiler

    (tmp_path / "file").touch()
    monkeypatch.setenv("ALNUMPY_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(kernels, "_run_program", None)
    monkeypatch.setattr(compiler, "compile_runner", lambda: b"code")
    monkeypatch.setattr(compiler, "link", lambda code: print)
    with pytest.warns(RuntimeWarning, match="ALNUMPY_CACHE_DIR") as warned:
        kernels.warmup()
    assert len(warned) == 1
    assert kernels.warmup()[0] is None  # and no second warning


def test_run_refuses_what_the_kernels_cannot_read() -> None:
    spec = Spec("tiny", 2, True, (), embedding=8, groups=2, cbam="")
    program = prg.compile_program(spec, random_params(spec))
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

    monkeypatch.setattr(kernels, "_load", lambda: run_program)
    monkeypatch.setattr(kernels, "_arenas", [])
    monkeypatch.setattr(kernels, "_take_arena", taken)
    spec = Spec("small", 4, True, (Block(1, 4, 1),), embedding=24, groups=2, cbam="")
    with pytest.raises(KeyboardInterrupt):
        kernels.run(prg.compile_program(spec, random_params(spec)), np.zeros((40, 3, 8, 8), np.float32), 2)
    unwound.set()
    assert looked.wait(10)
    assert alive == [True]
    time.sleep(0.05)
    assert len(calls) == 2  # and no other chunk was begun
