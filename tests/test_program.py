"""Programs: the whole network by the kernels against reference.py, and the layout of buffers in the arena.

python tests/test_program.py        # records anew what programs consist of: tests/data/programs.json
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from conftest import DATA, random_params

from alnumpy import kernels, reference
from alnumpy import program as prg
from alnumpy.spec import CBAM_LAYOUTS, SPECS, Block, Conv, Spec

pytest.importorskip("numba")
from alnumpy.kernels.simd import LANES

RECORDED = DATA / "programs.json"
ALNETS = [*SPECS.values(), *(Spec(name=f"alnet {cbam}", cbam=cbam) for cbam in CBAM_LAYOUTS if cbam != "mean-max")]
BLOCKS = (Block(1, 4, 1), Block(3, 6, 2), Block(2, 16, 3), Block(1, 18, 1))
ODD = [
    Spec("no blocks", 5, False, (), embedding=7, groups=1),
    Spec("one group", 3, True, (Block(2, 5, 2), Block(2, 9, 1)), embedding=9, groups=1, reduction=2),
    Spec("stride 3", 4, True, BLOCKS, embedding=24, groups=2, reduction=4, cbam="max-mean-bias-bn"),
    Spec("one channel a group", 6, True, (Block(5, 6, 1), Block(7, 12, 2)), embedding=40, groups=6, shuffle=False),
]
WIDE = Spec("alnet with a stem of 160", 160)
SIZES = [(28, 28), (32, 32), (37, 53), (64, 64), (128, 128), (160, 160), (1, 1), (1, 7), (5, 3)]
RECORDED_SIZES = [(1, 1), (1, 7), (5, 3), (28, 28), (37, 53), (64, 64), (128, 128), (160, 160)]


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("spec", ALNETS, ids=lambda spec: spec.name)
def test_network(spec: Spec) -> None:
    """Every preset and every CBAM layout, at the sizes of the paper, odd ones and tiny ones."""
    params = random_params(spec)
    program = prg.compile_program(spec, params)
    for i, size in enumerate(SIZES):
        count = 1 if size[0] > 64 else 1 + i % 5
        x = pictures(count, size)
        assert error(kernels.run(program, x), reference.forward(spec, params, x)) <= 1e-5, size


@pytest.mark.parametrize("spec", ODD, ids=lambda spec: spec.name)
def test_other_networks(spec: Spec) -> None:
    params = random_params(spec)
    program = prg.compile_program(spec, params)
    for count, size in enumerate([(1, 1), (2, 9), (16, 16), (33, 17), (40, 35)], 1):
        x = pictures(count, size)
        assert error(kernels.run(program, x), reference.forward(spec, params, x)) <= 1e-5, size


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def embeddings(program: prg.Program) -> str:
    return digest(*(kernels.run(program, pictures(1, size)) for size in ((28, 28), (37, 53))))


def contents(program: prg.Program) -> dict[str, Any]:
    """What a program consists of, as digests: its arrays, and for each size its steps and the places of its buffers."""
    layouts = {}
    for height, width in RECORDED_SIZES:
        layout = program.layout((height, width))
        places = np.array(sorted((start, buffer.size) for buffer, start in layout.places.items()))
        layouts[f"{height}x{width}"] = [layout.arena_size, digest(layout.steps, places)]
    return {"weights": digest(program.weights), "tables": digest(program.tables), "layouts": layouts}


@pytest.mark.parametrize("spec", [*ALNETS, *ODD, WIDE], ids=lambda spec: spec.name)
def test_programs_are_as_recorded(spec: Spec) -> None:
    """Number for number; embeddings bit for bit on CPUs with as many lanes as those of the record."""
    program, recorded = prg.compile_program(spec, random_params(spec)), json.loads(RECORDED.read_text())[spec.name]
    bits = recorded.pop("embeddings")
    assert contents(program) == recorded
    if str(LANES) in bits:
        assert embeddings(program) == bits[str(LANES)]


def record() -> None:
    """Writes ``RECORDED``; the embeddings of other numbers of lanes stay as long as the rest is as it was."""
    before, recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}, {}
    for spec in [*ALNETS, *ODD, WIDE]:
        program = prg.compile_program(spec, random_params(spec))
        bits = before.get(spec.name, {}).get("embeddings", {})
        recorded[spec.name] = contents(program) | {"embeddings": bits | {str(LANES): embeddings(program)}}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


def test_bitwise_reproducible() -> None:
    """For any thread count, place in the batch, run, and history of the arena."""
    spec = SPECS["alnet"]
    program = prg.compile_program(spec, random_params(spec))
    x = pictures(5, (37, 29))
    alone = np.concatenate([kernels.run(program, picture[None]) for picture in x])
    for threads in (1, 2, 3, 8):
        for _ in range(3):
            np.testing.assert_array_equal(kernels.run(program, x, threads), alone)
        for arena, _ in kernels._arenas:
            arena[:] = np.nan
        np.testing.assert_array_equal(kernels.run(program, x[::-1].copy(), threads)[::-1], alone)
        kernels.run(program, pictures(1, (64, 50)))


@pytest.mark.parametrize("name", ["alnet", "lnet"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(name: str, value: float) -> None:
    spec = SPECS[name]
    params = random_params(spec)
    program = prg.compile_program(spec, params)
    x = pictures(3, (20, 24))
    x[1, 2, 7, 23] = value
    with np.errstate(invalid="ignore"):
        theirs = reference.forward(spec, params, x)
    ours = kernels.run(program, x)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    finite = np.isfinite(theirs)
    assert error(ours[finite], theirs[finite]) <= 1e-5


def test_fold_is_convolution_then_batch_norm() -> None:
    layer = Conv("stem", 3, 4, 3, 1, 1, True, "")
    spec = Spec("one", 4, True, (), embedding=1, groups=1, cbam="")
    params = {name: array.astype(np.float64) for name, array in random_params(spec).items()}
    x = pictures(2, (6, 5)).astype(np.float64)
    weight, bias = prg.fold(layer, params, spec.bn_eps)
    theirs = reference.conv_bn_activation(x, layer, params, spec.bn_eps)
    np.testing.assert_allclose(reference.conv2d(x, weight, bias, padding=1), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [*ALNETS, *ODD], ids=lambda spec: spec.name)
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (128, 128)])
def test_buffers_alive_together_are_apart(spec: Spec, size: tuple[int, int]) -> None:
    layout = prg.compile_program(spec, random_params(spec)).layout(size)
    for buffer, start in layout.places.items():
        assert prg.GUARD <= start <= layout.arena_size - buffer.size - prg.GUARD
        for other, other_start in layout.places.items():
            (first, last), (other_first, other_last) = layout.life[buffer], layout.life[other]
            together = first <= other_last and other_first <= last
            if buffer is not other and together:
                assert start + buffer.size + prg.GUARD <= other_start or other_start + other.size + prg.GUARD <= start


def test_arena_is_reused() -> None:
    """At 128x128 the stem's 2 MB map is the largest of a network that puts out 9 MB in all, expanded maps left out."""
    layout = prg.compile_program(SPECS["alnet"], random_params(SPECS["alnet"])).layout((128, 128))
    assert layout.arena_bytes < 4e6
    assert layout.arena_bytes < 0.6 * 4 * sum(buffer.size for buffer in layout.places)


def test_layouts_are_remembered_and_bounded() -> None:
    spec = ODD[0]
    program = prg.compile_program(spec, random_params(spec))
    first = program.layout((1, 1))
    assert program.layout((1, 1)) is first
    for side in range(2, prg.LAYOUTS + 3):
        program.layout((side, side))
    assert len(program._layouts) == prg.LAYOUTS
    assert program.layout((1, 1)) is not first


if __name__ == "__main__":
    record()
