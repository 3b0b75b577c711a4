#!/usr/bin/env python3
"""Convert a PyTorch checkpoint to an alnumpy weights file, from a clone: ``alnumpy convert`` with a better self-test.

    python tools/convert_weights.py runs/mnist/best.pt -o weights/alnet-mnist.h5

If torch is installed, it computes the self-test's embedding. Nothing in the checkpoint is executed.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from alnumpy.cli.common import UsageError
from alnumpy.cli.convert import arguments, lines, run
from alnumpy.convert import Arrays, self_test_by_alnumpy
from alnumpy.networks import Spec


def note(message: str) -> None:
    """A remark on stderr."""
    print("convert_weights.py:", lines(message), file=sys.stderr)


def self_test(spec: Spec, arrays: Arrays, x: np.ndarray) -> tuple[np.ndarray, str]:
    """The embedding of the self-test's input and the name of what computed it: torch if installed, else alnumpy."""
    try:
        import torch

        from torch_network import from_arrays
    except ImportError:
        note("torch is not installed: the self-test is recorded by alnumpy itself and proves less")
        return self_test_by_alnumpy(spec, arrays, x)
    with torch.inference_mode():
        return from_arrays(spec, arrays)(torch.from_numpy(x)).numpy(), f"torch {torch.__version__}"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 converted, 1 the checkpoint cannot be converted (nothing was written), 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    args = parser.parse_args(argv)
    try:
        return run(args, note=note, self_test=self_test)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
