"""Whole networks by the compiled kernels, compared with reference.py and with recorded bits.

python tests/test_compiled.py        # records the bits of embeddings again: tests/data/bits.json
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from conftest import DATA, random_params
from test_lower import ALNETS, ODD, PRESETS, Custom, digest

from alnumpy import kernels, reference
from alnumpy.layers import CBAM_LAYOUTS, Chain, evaluate
from alnumpy.lower import lower
from alnumpy.networks import SPECS, ALNet, Spec

pytest.importorskip("numba")
from alnumpy.kernels.target import TARGET

RECORDED = DATA / "bits.json"
SIZES = [(28, 28), (32, 32), (37, 53), (64, 64), (128, 128), (160, 160), (1, 1), (1, 7), (5, 3)]
WITHOUT_KERNELS: set[str] = set()  # presets that only NumPy computes
OTHERS = [name for name in SPECS if not name.startswith(("alnet", "lnet")) and name not in WITHOUT_KERNELS]
RECORDED_SPECS = [
    *ALNETS,
    *(SPECS[name] for name in OTHERS if not name.endswith(("1-paper", "2-paper", "lite1", "lite2"))),
]
FMA = TARGET.lanes > 4 or not TARGET.triple.startswith("x86")
NETWORKS = [*PRESETS[:4], *(ALNet(f"alnet {cbam}", cbam=cbam) for cbam in CBAM_LAYOUTS)]


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_network(spec: Spec) -> None:
    """Every preset and every CBAM layout, at the sizes of the paper, odd ones and tiny ones."""
    params = random_params(spec)
    program = lower(spec, params)
    for i, size in enumerate(SIZES):
        count = 1 if size[0] > 64 else 1 + i % 5
        x = pictures(count, size)
        assert error(kernels.run(program, x), reference.forward(spec, params, x)) <= 1e-5, size


@pytest.mark.parametrize("spec", ODD, ids=lambda spec: spec.name)
def test_other_networks(spec: Spec) -> None:
    params = random_params(spec)
    program = lower(spec, params)
    for count, size in enumerate([(1, 1), (2, 9), (16, 16), (33, 17), (40, 35)], 1):
        x = pictures(count, size)
        assert error(kernels.run(program, x), reference.forward(spec, params, x)) <= 1e-5, size


@pytest.mark.parametrize("name", OTHERS)
def test_compared_network(name: str) -> None:
    """Every other preset, at sizes whose strides leave odd and even maps, down to one pixel."""
    spec = SPECS[name]
    params = random_params(spec)
    program = lower(spec, params)
    for count, size in enumerate([(32, 32), (33, 47), (97, 64), (1, 1), (5, 9)], 1):
        x = pictures(min(count, 2), size)
        assert error(kernels.run(program, x), reference.forward(spec, params, x)) <= 1e-5, size


def in_a_network(build: Callable[[Chain], None]) -> None:
    """Compares the kernels and reference.py on layers behind a stem of six channels."""
    net = Chain()
    net.conv("stem", 6, "relu", kernel=3, stride=1)
    build(net)
    net.mean("pool")
    spec = Custom(net)
    params = random_params(spec)
    x = pictures(2, (13, 10))
    theirs = evaluate(net.layers, x, lambda layer, *inputs: reference.compute(layer, params, *inputs))
    assert error(kernels.run(lower(spec, params), x), theirs[:, :, 0, 0]) <= 1e-5


def test_planar_maps_of_any_width_are_read_by_every_layer() -> None:
    in_a_network(lambda net: net.depthwise("next", "silu"))
    in_a_network(lambda net: net.pool("next", "max"))
    in_a_network(lambda net: net.squeeze_excite("next", 3, "relu", "sigmoid"))
    in_a_network(lambda net: net.shuffle("next", 3))
    in_a_network(lambda net: net.slice("next", 3, 1, 2))
    in_a_network(lambda net: net.plus("next", "stem"))
    in_a_network(lambda net: net.concat("next", "stem", "stem", "silu"))
    in_a_network(lambda net: None)


def test_a_map_changed_in_place_has_no_other_reader() -> None:
    def excited(net: Chain) -> None:
        expanded = net.conv("wide", 16, "relu")
        net.squeeze_excite("se", 4, "relu", "sigmoid")
        net.plus("sum", expanded)

    def attended(net: Chain) -> None:
        net.conv("wide", 16, "relu")
        left = net.slice("left", 8, 0)
        net.at("wide")
        net.slice("right", 8, 8)
        net.cbam("cbam", 2, CBAM_LAYOUTS["mean-max"])
        net.plus("sum", left)

    in_a_network(excited)
    in_a_network(attended)


def test_maps_in_different_orders_are_added() -> None:
    def build(net: Chain) -> None:
        first = net.conv("first", 12, groups=3)
        net.shuffle("shuffle", 4)
        net.plus("sum", first, "relu")

    in_a_network(build)


def bits(spec: Spec) -> str:
    program = lower(spec, random_params(spec))
    return digest(*(kernels.run(program, pictures(1, size)) for size in ((28, 28), (37, 53))))


@pytest.mark.skipif(not FMA, reason="without fused multiply-add every product is rounded")
@pytest.mark.parametrize("spec", RECORDED_SPECS, ids=lambda spec: spec.name)
def test_embeddings_are_as_recorded(spec: Spec) -> None:
    """Embeddings have the same bits on every CPU with fused multiply-add, whatever its lanes."""
    assert bits(spec) == json.loads(RECORDED.read_text())[spec.name]


@pytest.mark.parametrize("name", ["alnet", "efficientnet-b0", "shufflenet-v1", "shufflenet-v2"])
def test_bitwise_reproducible(name: str) -> None:
    """The bits depend on neither the threads, the place in the batch, the run, nor earlier contents of the arena."""
    spec = SPECS[name]
    program = lower(spec, random_params(spec))
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
    program = lower(spec, params)
    x = pictures(3, (20, 24))
    x[1, 2, 7, 23] = value
    with np.errstate(invalid="ignore"):
        theirs = reference.forward(spec, params, x)
    ours = kernels.run(program, x)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    finite = np.isfinite(theirs)
    assert error(ours[finite], theirs[finite]) <= 1e-5


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({spec.name: bits(spec) for spec in RECORDED_SPECS}, indent=1) + "\n")
