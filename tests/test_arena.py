"""Places of buffers in the arena."""

from __future__ import annotations

import pytest
from conftest import random_params
from test_lower import ALNETS

from alnumpy.arena import GUARD
from alnumpy.lower import lower
from alnumpy.networks import SPECS, Spec


@pytest.mark.parametrize("spec", ALNETS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (128, 128)])
def test_buffers_alive_together_are_apart(spec: Spec, size: tuple[int, int]) -> None:
    layout = lower(spec, random_params(spec)).layout(size)
    for buffer, start in layout.places.items():
        assert GUARD <= start <= layout.arena_size - buffer.size - GUARD
        for other, other_start in layout.places.items():
            (first, last), (other_first, other_last) = layout.life[buffer], layout.life[other]
            together = first <= other_last and other_first <= last
            if buffer is not other and together:
                assert start + buffer.size + GUARD <= other_start or other_start + other.size + GUARD <= start


def test_arena_is_reused() -> None:
    """At 128x128 the stem's 2 MB map is the largest; all outputs together are 9 MB, without the expanded maps."""
    layout = lower(SPECS["alnet"], random_params(SPECS["alnet"])).layout((128, 128))
    assert layout.arena_bytes < 4e6
    assert layout.arena_bytes < 0.6 * 4 * sum(buffer.size for buffer in layout.places)
