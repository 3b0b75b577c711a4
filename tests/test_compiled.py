"""Whole networks by the compiled kernels: against reference.py, and bit for bit.

python tests/test_compiled.py        # records the bits of embeddings anew: tests/data/bits.json
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DATA, random_params
from test_lower import ALNETS, ODD, PRESETS, digest

from alnumpy import kernels, reference
from alnumpy.layers import CBAM_LAYOUTS
from alnumpy.lower import lower
from alnumpy.networks import SPECS, ALNet, Spec

pytest.importorskip("numba")
from alnumpy.kernels.simd import LANES

RECORDED = DATA / "bits.json"
SIZES = [(28, 28), (32, 32), (37, 53), (64, 64), (128, 128), (160, 160), (1, 1), (1, 7), (5, 3)]
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


def bits(spec: Spec) -> str:
    program = lower(spec, random_params(spec))
    return digest(*(kernels.run(program, pictures(1, size)) for size in ((28, 28), (37, 53))))


@pytest.mark.parametrize("spec", ALNETS, ids=lambda spec: spec.name)
def test_embeddings_are_as_recorded(spec: Spec) -> None:
    """Bit for bit, on CPUs with as many lanes as those of the record."""
    recorded = json.loads(RECORDED.read_text())[spec.name]
    if str(LANES) not in recorded:
        pytest.skip(f"not recorded for {LANES} lanes")
    assert bits(spec) == recorded[str(LANES)]


def test_bitwise_reproducible() -> None:
    """For any thread count, place in the batch, run, and history of the arena."""
    spec = SPECS["alnet"]
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
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for spec in ALNETS:
        recorded[spec.name] = recorded.get(spec.name, {}) | {str(LANES): bits(spec)}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
