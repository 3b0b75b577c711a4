"""docs/ADDING_A_NETWORK.md: its code runs as written, and its network works everywhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import random_params

from alnumpy import cli, networks, reference, weights
from alnumpy.cli import weights as commands
from alnumpy.embedder import Embedder
from alnumpy.images import Preprocessing
from alnumpy.networks import Spec

PAGE = Path(__file__).parents[1] / "docs" / "ADDING_A_NETWORK.md"


@pytest.fixture
def resnet(monkeypatch):
    """The network of the page, added to networks.py during a test."""
    for table in ("FAMILIES", "SPECS"):
        monkeypatch.setattr(networks, table, dict(getattr(networks, table)))
    monkeypatch.setattr(commands, "SPECS", networks.SPECS)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), {"__name__": "example"})
    return networks.SPECS["resnet-18"]


def test_a_weights_file_keeps_the_network(resnet, tmp_path):
    assert Spec.from_dict(json.loads(json.dumps(resnet.to_dict()))) == resnet
    how, params = Preprocessing(32, (0.5,) * 3, (0.5,) * 3), random_params(resnet)
    x = weights.self_test_picture(32)
    embedding = reference.forward(resnet, params, x)
    weights.write(tmp_path / "w.h5", weights.Weights(resnet, how, params, x, embedding, "alnumpy"))
    embedder = Embedder(weights.read(tmp_path / "w.h5"))
    assert embedder.spec == resnet
    assert embedder.self_test().relative_error == 0
    assert embedder.embed(np.zeros((40, 30, 3), np.uint8)).shape == (1, 512)
    assert embedder.backend_used == "numpy"


def test_info_prints_it(resnet, capsys):
    assert cli.main(["info", "--spec", "resnet-18", "--size", "224"]) == 0
    assert re.search(r"^stage4.block1.shortcut +conv 1x1 /2 g1 bn +512x7x7 ", capsys.readouterr().out, re.M)


def test_torch_computes_the_same(resnet):
    torch = pytest.importorskip("torch")
    from torch_network import from_arrays

    params = random_params(resnet)
    x = np.random.default_rng(0).normal(size=(2, 3, 33, 47)).astype(np.float32)
    with torch.inference_mode():
        theirs = from_arrays(resnet, params)(torch.from_numpy(x)).numpy()
    ours = reference.forward(resnet, params, x)
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
