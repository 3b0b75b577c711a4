"""Networks lowered to programs, compared with records number for number.

python tests/test_lower.py        # records the programs again: tests/data/programs.json
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from conftest import DATA, random_params

from alnumpy import reference
from alnumpy.errors import UnsupportedError
from alnumpy.kernels.abi import Op
from alnumpy.layers import BN, Chain, Concat, Conv, parameters
from alnumpy.lower import LAYOUTS, Pack, Program, lower
from alnumpy.networks import SPECS, ALNet, Block, Spec

RECORDED = DATA / "programs.json"
PRESETS = [SPECS[name] for name in ("alnet", "lnet-cbam", "lnet-cs", "lnet", "alnet-stem160")]
LAYOUTS_OF_CBAM = [ALNet(f"alnet {cbam}", cbam=cbam) for cbam in ("max-mean", "max-mean-bias-bn")]
BLOCKS = (Block(1, 4, 1), Block(3, 6, 2), Block(2, 16, 3), Block(1, 18, 1))
ODD = [
    ALNet("no blocks", 5, False, (), embedding=7, groups=1),
    ALNet("one group", 3, True, (Block(2, 5, 2), Block(2, 9, 1)), embedding=9, groups=1, reduction=2),
    ALNet("stride 3", 4, True, BLOCKS, embedding=24, groups=2, reduction=4, cbam="max-mean-bias-bn"),
    ALNet("one channel a group", 6, True, (Block(5, 6, 1), Block(7, 12, 2)), embedding=40, groups=6, shuffle=False),
]
ALNETS = [*PRESETS, *LAYOUTS_OF_CBAM, *ODD]
SIZES = [(1, 1), (1, 7), (5, 3), (28, 28), (37, 53), (64, 64), (128, 128), (160, 160)]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def contents(program: Program) -> dict[str, Any]:
    """Digests of a program: its arrays, and for each size its steps and the places of its buffers."""
    layouts = {}
    for height, width in SIZES:
        layout = program.layout((height, width))
        places = np.array(sorted((start, buffer.size) for buffer, start in layout.places.items()))
        layouts[f"{height}x{width}"] = [layout.arena_size, digest(layout.steps, places)]
    return {"weights": digest(program.weights), "tables": digest(program.tables), "layouts": layouts}


@pytest.mark.parametrize("spec", ALNETS, ids=lambda spec: spec.name)
def test_programs_are_as_recorded(spec: Spec) -> None:
    assert contents(lower(spec, random_params(spec))) == json.loads(RECORDED.read_text())[spec.name]


def test_fold_is_convolution_then_batch_norm() -> None:
    rng = np.random.default_rng(0)
    layer = Conv("stem", ("image",), 4, 3, 3, bias=True, eps=1e-3)
    params = {name: rng.normal(size=shape) for name, shape in parameters([layer]).items()}
    params["stem.bn.running_var"] = np.array([0.0, 1e-4, 1.0, 3.0])
    x = rng.normal(size=(2, 3, 6, 5))
    weight, bias = Pack(params).fold(layer)
    theirs = reference.conv2d(x, params["stem.conv.weight"], params["stem.conv.bias"], padding=1)
    theirs = reference.batch_norm(theirs, *(params[f"stem.bn.{field}"] for field in BN), 1e-3)
    np.testing.assert_allclose(reference.conv2d(x, weight, bias, padding=1), theirs, rtol=1e-12, atol=1e-12)


def test_layouts_are_remembered_and_bounded() -> None:
    spec = ODD[0]
    program = lower(spec, random_params(spec))
    first = program.layout((1, 1))
    assert program.layout((1, 1)) is first
    for side in range(2, LAYOUTS + 3):
        program.layout((side, side))
    assert len(program._layouts) == LAYOUTS
    assert program.layout((1, 1)) is not first


class Custom(Spec):
    """A spec of any list of layers."""

    def __init__(self, chain: Chain) -> None:
        object.__setattr__(self, "name", "custom")
        object.__setattr__(self, "layers", lambda: chain.layers)


def test_a_network_without_kernels_is_refused_by_name() -> None:
    net = Chain()
    net.conv("stem", 8, kernel=3)
    net.conv("dense", 8, kernel=3)
    net.mean("pool")
    with pytest.raises(UnsupportedError, match="custom: no compiled kernel computes the layer dense"):
        lower(Custom(net), random_params(Custom(net)))


def test_shuffles_and_slices_move_nothing() -> None:
    spec = SPECS["shufflenet-v2"]
    layout = lower(spec, random_params(spec)).layout((64, 64))
    copied = [label for label, op in zip(layout.labels, layout.steps[:, 0], strict=True) if op == Op.COPY]
    assert set(copied) == {layer.name for layer in spec.layers() if isinstance(layer, Concat)}
    assert all(width <= 464 for width in layout.steps[layout.steps[:, 0] == Op.COPY, 6])


if __name__ == "__main__":
    recorded = {spec.name: contents(lower(spec, random_params(spec))) for spec in ALNETS}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
