"""What several test files share: networks with random arrays, a small spec, and the shipped digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alnumpy.layers import CBAM_LAYOUTS, parameters
from alnumpy.networks import ALNet, Block, Spec

DATA = Path(__file__).parent / "data"
DIGITS = sorted((DATA / "digits").glob("*.png"))

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    settings.register_profile("alnumpy", deadline=None, max_examples=60, derandomize=True)
    settings.register_profile("few", deadline=None, max_examples=8, derandomize=True)
    settings.load_profile("alnumpy")
except ImportError:  # a device without the test extra runs what needs neither torch nor hypothesis

    class Missing:
        """Stands in for Hypothesis and everything in it; tests that use it are skipped."""

        def __getattr__(self, name: str) -> Missing:
            return self

        def __call__(self, *arguments: object, **options: object) -> Missing:
            return self

    def given(*arguments: object, **options: object) -> pytest.MarkDecorator:
        return pytest.mark.skip(reason="could not import 'hypothesis'")

    st = Missing()


def random_params(spec: Spec, seed: int = 0, most: float | None = None) -> dict[str, np.ndarray]:
    """Arrays for a spec, with statistics far from 0 and 1, and gains from 1 to ``most``.

    By default the gains balance two faults: below 1 the attentions of ALNet shrink the signal until embeddings hardly
    depend on the picture, and a test proves little; above 2 the network is chaotic and float32 rounding grows beyond
    1e-5 anywhere. Fifty layers with residuals are chaotic from 1.2 on.
    """
    most = most or (1.8 if isinstance(spec, ALNet) else 1.15)
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in parameters(spec.layers()).items():
        if name.endswith("running_var"):
            array = rng.uniform(0.5, 2, shape)
        elif name.endswith("bn.weight"):
            array = rng.uniform(1, most, shape)
        elif len(shape) == 1:
            array = rng.normal(0, 0.3, shape)
        else:
            array = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        params[name] = array.astype(np.float32)
    return params


@pytest.fixture(params=["", *CBAM_LAYOUTS])
def small_spec(request: pytest.FixtureRequest) -> Spec:
    """A spec of every operator and each CBAM layout that computes in a millisecond."""
    blocks = (Block(1, 4, 1), Block(3, 6, 2), Block(2, 8, 1))
    return ALNet("small", 4, True, blocks, embedding=24, groups=2, cbam=request.param, reduction=4)


# What the tests of galleries use; see galleries.py


@pytest.fixture
def embedder():
    """A small network that counts what it embeds."""
    from galleries import Counting, small_weights

    Counting.embedded = 0
    return Counting(small_weights(), backend="numpy", threads=2)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them below, and a file that pretends to be one."""
    from galleries import noise

    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "below/c.png")):
        noise(root / name, seed)
    (root / "broken.png").write_text("hello")
    return root


@pytest.fixture
def path(tmp_path):
    """Where a test's gallery lies."""
    return tmp_path / "gallery.db"
