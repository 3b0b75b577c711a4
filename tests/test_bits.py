"""The same picture has the same bits with any number of BLAS's threads, even more than the CPU has cores.

OpenBLAS 0.3.21, which Debian 12 and NumPy 1.24 bring, computes a small matrix times a vector in several threads,
and its bits depend on their number if it does not divide the rows.
"""

from __future__ import annotations

import numpy as np
import pytest

import alnumpy
from alnumpy import reference
from alnumpy.postprocess import whiten

threadpoolctl = pytest.importorskip("threadpoolctl")


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


COMPUTED = {
    "network": lambda: alnumpy.load(backend="numpy").forward(*drawn((2, 3, 40, 33))),
    "1x1": lambda: np.stack([reference.conv2d(*drawn((1, k, 1, 1), (1281, k, 1, 1))) for k in (320, 961)]),
    "1x1 at once": lambda: reference.conv2d(*drawn((1, 960, 7, 7), (577, 960, 1, 1))),
    "single rows": lambda: reference.conv2d(*drawn((1, 960, 7, 7), (1, 960, 3, 3))),
    "attention": lambda: reference.linear(*drawn((1, 1153), (81, 1153))),
    "head": lambda: reference.linear(*drawn((1, 1280), (1000, 1280))),
    "whitening": lambda: whiten(*drawn((3, 1280), (1280,), (1280, 511))),
}


@pytest.mark.parametrize("what", COMPUTED)
def test_the_number_of_threads_does_not_matter(what):
    with threadpoolctl.threadpool_limits(1):
        expected = COMPUTED[what]()
    for threads in (2, 3, 4, 5, 8):
        with threadpoolctl.threadpool_limits(threads):
            np.testing.assert_array_equal(COMPUTED[what]().view(np.uint32), expected.view(np.uint32))
