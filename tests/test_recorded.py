"""Results of torch, computed again without torch. Needs only NumPy, Pillow and h5py, and no test runner.

Check a device with ``python tests/test_recorded.py``. The records are made by tools/dev/record_parity.py.
"""

from __future__ import annotations

import json
import math
import unittest
from pathlib import Path
from zlib import crc32

import numpy as np

import alnumpy
from alnumpy import SPECS, Spec, kernels, reference
from alnumpy.errors import UnsupportedError
from alnumpy.layers import parameters
from alnumpy.lower import lower
from alnumpy.weights import default_path

RECORDED = Path(__file__).parent / "data" / "recorded.npz"


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from 0 to 1 that are equal on every machine, since they are made from whole numbers by SplitMix64."""
    bits = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits += np.uint64(crc32(name.encode()))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(40)).astype(np.float64).reshape(shape) / 2**24


def picture() -> np.ndarray:
    """The input of all presets: 48 rows, where the two paddings differ, and 33 columns, where they are the same."""
    return (2 * uniform("picture", (1, 3, 48, 33)) - 1).astype(np.float32)


def arrays_of(spec: Spec) -> dict[str, np.ndarray]:
    """The arrays of a preset; recording them would take too much space."""
    arrays = {}
    for name, shape in parameters(spec.layers()).items():
        u = uniform(name, shape)
        if name.endswith("running_var"):
            u = 0.5 + 1.5 * u
        elif name.endswith("bn.weight"):
            u = 1 + 0.15 * u
        elif len(shape) == 1:
            u = 0.6 * u - 0.3
        else:
            u = (2 * u - 1) * (6 / math.prod(shape[1:])) ** 0.5
        arrays[name] = u.astype(np.float32)
    return arrays


class Recorded(unittest.TestCase):
    """Every recorded case is within float32 rounding of torch's output."""

    def test_all_cases(self) -> None:
        """Operators agree to 2e-6 of the largest output, embeddings to a relative error of 1e-5."""
        with np.load(RECORDED, allow_pickle=False) as arrays:
            cases = json.loads(bytes(arrays["contents"]))["cases"]
            self.assertGreaterEqual({case.get("preset", "") for case in cases}, set(SPECS))
            for i, case in enumerate(cases):
                with self.subTest(case=i, **case):
                    names = [f"{i}/input/{j}" for j in range(case.get("inputs", 1))]
                    inputs = [picture()] if "preset" in case else [arrays[name] for name in names]
                    expected = arrays[f"{i}/output"]
                    if "operator" in case:
                        y = getattr(reference, case["operator"])(*inputs, **case["options"])
                        error, most = np.abs(y - expected).max() / np.abs(expected).max(), 2e-6
                    else:
                        if "network" in case:
                            spec, prefix = Spec.from_dict(case["network"]), f"{i}/params/"
                            params = {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
                            y = reference.forward(spec, params, *inputs)
                        elif "preset" in case:
                            spec = SPECS[case["preset"]]
                            y = reference.forward(spec, arrays_of(spec), *inputs)
                        else:
                            path = default_path().with_name(case["weights"])
                            y = alnumpy.load(path, backend="numpy").forward(*inputs)
                        error, most = np.linalg.norm(y - expected) / np.linalg.norm(expected), 1e-5
                    self.assertEqual((y.shape, y.dtype), (expected.shape, expected.dtype))
                    self.assertLessEqual(error, most)

    def test_the_packaged_kernels(self) -> None:
        """Embeddings of every preset by the library for this CPU agree to a relative error of 1e-5."""
        if kernels.packaged()[0].path is None:
            self.skipTest(kernels.packaged()[0].reason)
        with np.load(RECORDED, allow_pickle=False) as arrays:
            for i, case in enumerate(json.loads(bytes(arrays["contents"]))["cases"]):
                if "preset" in case:
                    with self.subTest(case=i, **case):
                        spec = SPECS[case["preset"]]
                        try:
                            program = lower(spec, arrays_of(spec))
                        except UnsupportedError as error:  # test_compiled.py knows the presets that only NumPy computes
                            self.skipTest(str(error))
                        y = kernels.run(program, picture(), backend="compiled")
                        expected = arrays[f"{i}/output"]
                        self.assertLessEqual(np.linalg.norm(y - expected), 1e-5 * np.linalg.norm(expected))


if __name__ == "__main__":
    unittest.main(verbosity=2)
