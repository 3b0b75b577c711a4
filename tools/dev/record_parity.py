#!/usr/bin/env python3
"""Record torch's results for devices without torch: writes tests/data/recorded.npz.

    python tools/dev/record_parity.py

Each case is an operator of alnumpy.reference with its arguments, or a network with its arrays, and torch's output.
tests/test_recorded.py computes all cases again with NumPy alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from alnumpy import weights
from alnumpy.layers import CBAM_LAYOUTS
from alnumpy.networks import SPECS, ALNet, Block

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
sys.path[:0] = [str(TESTS), str(ROOT / "tools")]
from test_recorded import arrays_of, picture  # type: ignore[import-not-found]  # noqa: E402

from torch_network import Network, from_arrays, to_arrays  # noqa: E402

OUTPUT = TESTS / "data" / "recorded.npz"
NAMED_OTHERWISE: dict[str, Any] = {  # the others have torch's names
    "batch_norm": lambda x, weight, bias, mean, var: F.batch_norm(x, mean, var, weight, bias),
    "channel_shuffle": torch.channel_shuffle,
    "max_pool2d": lambda x, kernel, stride, padding: F.max_pool2d(x, kernel, stride, padding),
    "avg_pool2d": lambda x, kernel, stride, padding: F.avg_pool2d(x, kernel, stride, padding),
}
# Operator, shapes of its array arguments, other arguments.
CASES: list[tuple[str, list[tuple[int, ...]], dict[str, int]]] = [
    ("conv2d", [(2, 3, 9, 7), (8, 3, 3, 3), (8,)], {"padding": 1}),
    ("conv2d", [(1, 16, 5, 6), (24, 2, 1, 1)], {"groups": 8}),
    ("conv2d", [(2, 12, 7, 8), (12, 1, 3, 3)], {"groups": 12, "padding": 1, "stride": 2}),
    ("conv2d", [(1, 2, 4, 5), (1, 2, 7, 7)], {"padding": 3}),
    ("conv2d", [(1, 4, 11, 10), (6, 2, 3, 2)], {"groups": 2, "stride": 3}),
    ("channel_shuffle", [(2, 24, 3, 2)], {"groups": 8}),
    ("batch_norm", [(2, 5, 3, 4), (5,), (5,), (5,), (5,)], {}),
    ("relu", [(2, 3, 4, 4)], {}),
    ("relu6", [(2, 3, 4, 4)], {}),
    ("sigmoid", [(2, 3, 4, 4)], {}),
    ("silu", [(2, 3, 4, 4)], {}),
    ("hardsigmoid", [(2, 3, 4, 4)], {}),
    ("hardswish", [(2, 3, 4, 4)], {}),
    ("linear", [(3, 20), (7, 20), (7,)], {}),
    ("adaptive_avg_pool2d", [(2, 3, 7, 10)], {"output_size": 3}),
    ("max_pool2d", [(2, 3, 7, 10)], {"kernel": 3, "stride": 2, "padding": 1}),
    ("avg_pool2d", [(2, 3, 7, 10)], {"kernel": 3, "stride": 2, "padding": 1}),
]


def record() -> dict[str, np.ndarray]:
    """All cases as flat arrays, under names like ``3/input/0``, with a JSON table of contents."""
    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {}
    contents: list[dict[str, Any]] = []
    for operator, shapes, options in CASES:
        inputs = [3 * torch.randn(shape) for shape in shapes]
        if operator == "batch_norm":
            inputs[4] = inputs[4].abs() + 0.1
        prefix = str(len(contents))
        arrays |= {f"{prefix}/input/{i}": tensor.numpy() for i, tensor in enumerate(inputs)}
        function: Any = NAMED_OTHERWISE[operator] if operator in NAMED_OTHERWISE else getattr(F, operator)
        arrays[f"{prefix}/output"] = function(*inputs, **options).numpy()
        contents.append({"operator": operator, "options": options, "inputs": len(inputs)})
    for cbam in ("", *CBAM_LAYOUTS):
        spec = ALNet("small", 8, True, (Block(1, 4, 1), Block(3, 8, 2)), 24, groups=4, cbam=cbam, reduction=4)
        model = Network(spec).eval()
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
        prefix, x = str(len(contents)), torch.randn(2, 3, 13, 10)
        arrays |= {f"{prefix}/params/{name}": array for name, array in to_arrays(model).items()}
        arrays |= {f"{prefix}/input/0": x.numpy(), f"{prefix}/output": model(x).numpy()}
        contents.append({"network": spec.to_dict()})
    for name, preset in SPECS.items():
        model = from_arrays(preset, arrays_of(preset))
        arrays[f"{len(contents)}/output"] = model(torch.from_numpy(picture())).numpy()
        contents.append({"preset": name})
    for path in sorted(weights.default_path().parent.glob("*.h5")):
        shipped = weights.read(path)
        model = from_arrays(shipped.spec, dict(shipped.parameters))
        for size in ((shipped.preprocessing.size,) * 2, (37, 53)):
            prefix, x = str(len(contents)), torch.randn(1, 3, *size)
            arrays |= {f"{prefix}/input/0": x.numpy(), f"{prefix}/output": model(x).numpy()}
            contents.append({"weights": path.name})
    arrays["contents"] = np.frombuffer(json.dumps({"torch": torch.__version__, "cases": contents}).encode(), np.uint8)
    return arrays


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with torch.inference_mode():
        np.savez_compressed(OUTPUT, **record())  # type: ignore[arg-type]
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes")
