"""What torch computed, computed again without torch: needs NumPy, Pillow and h5py alone, and no test runner.

A device proves itself with ``python tests/test_recorded.py``. The records are made by tools/record_parity.py.
"""

from __future__ import annotations

import json
import unittest
from pathlib import Path

import numpy as np

import alnumpy
from alnumpy import Spec, reference
from alnumpy.weights import default_path

RECORDED = Path(__file__).parent / "data" / "recorded.npz"


class Recorded(unittest.TestCase):
    """Every recorded case within float32 rounding of torch's output."""

    def test_all_cases(self) -> None:
        """Operators to 2e-6 of the largest output, embeddings to a relative error of 1e-5."""
        with np.load(RECORDED, allow_pickle=False) as arrays:
            cases = json.loads(bytes(arrays["contents"]))["cases"]
            self.assertGreater(len(cases), 15)
            for i, case in enumerate(cases):
                with self.subTest(case=i, **case):
                    inputs = [arrays[f"{i}/input/{j}"] for j in range(case.get("inputs", 1))]
                    expected = arrays[f"{i}/output"]
                    if "operator" in case:
                        y = getattr(reference, case["operator"])(*inputs, **case["options"])
                        error, most = np.abs(y - expected).max() / np.abs(expected).max(), 2e-6
                    else:
                        if "network" in case:
                            spec, prefix = Spec.from_dict(case["network"]), f"{i}/params/"
                            params = {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
                            y = reference.forward(spec, params, *inputs)
                        else:
                            y = alnumpy.load(default_path().with_name(case["weights"])).forward(*inputs)
                        error, most = np.linalg.norm(y - expected) / np.linalg.norm(expected), 1e-5
                    self.assertEqual((y.shape, y.dtype), (expected.shape, expected.dtype))
                    self.assertLessEqual(error, most)


if __name__ == "__main__":
    unittest.main(verbosity=2)
