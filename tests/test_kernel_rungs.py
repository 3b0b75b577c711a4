"""All rungs of tools/dev/kernel_rungs.py compute the same product, for any size."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")
import kernel_rungs


@pytest.mark.parametrize(("pixels", "inputs", "outputs"), [(1, 1, 32), (13, 5, 64), (40, 33, 96)])
def test_rungs_agree(pixels, inputs, outputs):
    times = kernel_rungs.measure(pixels, inputs, outputs, 1)
    assert len(times) == 6
    assert all(ms > 0 for ms in times.values())


def test_a_wrong_rung_is_noticed(monkeypatch):
    def wrong(x, w, bias, y):
        y[:] = x @ w.T

    monkeypatch.setattr(kernel_rungs, "plain", wrong)
    with pytest.raises(ValueError, match="plain loops: relative error"):
        kernel_rungs.measure(3, 4, 32, 1)
