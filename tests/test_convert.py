"""Checkpoints of all kinds become weights files that compute what torch computes; hostile ones are refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import random_params

import alnumpy
from alnumpy import SPECS, weights
from alnumpy.images import Preprocessing
from alnumpy.layers import CBAM_LAYOUTS

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from alnumpy.checkpoint import CheckpointError, read_checkpoint  # noqa: E402
from convert_weights import main  # noqa: E402
from fuzz import memory  # noqa: E402
from torch_network import Network, from_arrays, to_arrays  # noqa: E402

TOOL = Path(__file__).parents[1] / "tools" / "convert_weights.py"


def convert(checkpoint, output, *arguments):
    """Runs the converter: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(checkpoint), "-o", str(output), *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def trained(spec=SPECS["alnet"], classes=7, seed=0):
    torch.manual_seed(seed)
    return from_arrays(spec, random_params(spec, seed), classes)


def embedding_of(model, x):
    """What the torch module computes before its classifier."""
    with torch.inference_mode():
        head, model.head = model.head, nn.Identity()
        y = model(torch.from_numpy(x)).numpy()
        model.head = head
    return y


def assert_computes_like(path, expected, x):
    ours = alnumpy.load(path).forward(x)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


X = np.random.default_rng(8).normal(size=(2, 3, 33, 29)).astype(np.float32)


@pytest.mark.parametrize(
    "wrap",
    ["state dict", "training", "model_state_dict", "model", "net", "ema", "nested", "DataParallel", "parameters"],
)
def test_containers_of_a_state_dict(tmp_path, wrap):
    model = trained()
    state = model.state_dict()
    if wrap == "training":
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        options = {"args": Namespace(lr=0.1), "best": np.float64(0.9), "device": torch.device("cpu")}
        state = {"state_dict": state, "epoch": 3, "optimizer": optimizer.state_dict(), **options}
    if wrap in ("model_state_dict", "model", "net", "ema"):
        state = {"epoch": 3, wrap: state}
    if wrap == "nested":
        state = {
            "checkpoint": {"args": {"lr": 0.1}, "model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
        }
    if wrap == "DataParallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrap == "parameters":
        state = {name: nn.Parameter(t, t.is_floating_point() and False) for name, t in state.items()}
    torch.save(state, tmp_path / "c.pth")
    code, out, err = convert(tmp_path / "c.pth", tmp_path / "w.h5", "--size", "28")
    assert code == 0, err
    assert "removed the classifier: " in out
    assert f"self-test by torch {torch.__version__}" in out
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)
    assert weights.read(tmp_path / "w.h5").preprocessing.size == 28


def test_tensors_beside_the_network_are_named(tmp_path):
    """An average is not taken if the network itself is there; of several networks, none is chosen."""
    model, other = trained(), trained(seed=1)
    random, averaged = other.state_dict(), model.state_dict()
    for names in (("state_dict", "state_dict_ema"), ("params", "params_ema")):
        torch.save({names[1]: averaged, names[0]: random, "epoch": 3}, tmp_path / "c.pt")
        code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
        assert code == 0
        line = f"{names[0]} was taken from the file; to convert {names[1]}, save that alone with torch.save"
        assert line in err
        assert_computes_like(tmp_path / "w.h5", embedding_of(other, X), X)
    parts = {"backbone": random, "neck": {"proj.weight": torch.zeros(3, 3)}}
    torch.save(parts, tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "none.h5")
    assert code == 1
    assert (
        "the file holds several dictionaries (backbone, neck); save the network's alone with torch.save; this is" in err
    )
    torch.save({f"{p}.{k}": t.clone() for p in ("model", "model_ema") for k, t in random.items()}, tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "none.h5")
    assert code == 1
    assert "the file holds one network twice (model, model_ema); save one alone with torch.save; this is not" in err
    assert not (tmp_path / "none.h5").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(tmp_path, how):
    model = trained()
    with torch.inference_mode():
        traced = torch.jit.trace(model, torch.from_numpy(X)) if how == "trace" else torch.jit.script(Plain(model))
    traced.save(tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 0, err
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


class Plain(nn.Module):
    """A scriptable module that holds ALNet's state under its own names; its forward pass does not matter."""

    def __init__(self, model):
        super().__init__()
        self.body = nn.ModuleList(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)))

    def forward(self, x):
        return x


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    for prefix, dtype in (("", torch.float32), ("model._orig_mod.", torch.bfloat16)):
        model = trained().to(dtype)
        # The container sorts the names: "last" comes before "stem".
        save_file({prefix + name: tensor for name, tensor in model.state_dict().items()}, tmp_path / "c.safetensors")
        assert convert(tmp_path / "c.safetensors", tmp_path / "w.h5")[0] == 0
        assert_computes_like(tmp_path / "w.h5", embedding_of(model.float(), X), X)


@pytest.mark.parametrize("layout", CBAM_LAYOUTS)
def test_foreign_safetensors_are_put_in_order_by_their_numbers(tmp_path, layout):
    from safetensors.torch import save_file

    model = ForeignALNet(layout, True)
    randomise(model)
    save_file(model.state_dict(), tmp_path / "c.safetensors")
    assert list(read_checkpoint(tmp_path / "c.safetensors").tensors) != list(model.state_dict())
    code, _, err = convert(tmp_path / "c.safetensors", tmp_path / "w.h5", "--cbam", layout)
    assert code == 0, err
    assert "matched by structure" not in err
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


def test_safetensors_whose_order_is_lost(tmp_path):
    from safetensors.torch import save_file

    model = trained()
    modules = dict.fromkeys(name.rpartition(".")[0] for name in model.state_dict())
    digests = {name: digest(name) for name in modules}
    state = {".".join((digests[m], f)): t for n, t in model.state_dict().items() for m, _, f in [n.rpartition(".")]}
    save_file(state, tmp_path / "c.safetensors")
    code, _, err = convert(tmp_path / "c.safetensors", tmp_path / "w.h5")
    assert code == 1
    assert "order in the network is lost" in err
    assert "--names" in err
    assert not (tmp_path / "w.h5").exists()
    lines = [f"{name} {digest}" for name, digest in digests.items() if name != "head"]
    (tmp_path / "names.txt").write_text("# alnumpy's name, the file's\n" + "\n".join(lines))
    code, _, err = convert(tmp_path / "c.safetensors", tmp_path / "w.h5", "--names", tmp_path / "names.txt")
    assert code == 0, err
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)
    for text, message in (("stem.conv", "line 1 of the names"), ("stem.conv other", "no module other")):
        (tmp_path / "names.txt").write_text(text)
        code, _, err = convert(tmp_path / "c.safetensors", tmp_path / "none.h5", "--names", tmp_path / "names.txt")
        assert code == 1
        assert message in err


def digest(name):
    """A name that tells nothing."""
    return hashlib.sha256(name.encode()).hexdigest() + "x"


def test_modules_out_of_network_order(tmp_path):
    model = trained()
    first = [name for name in model.state_dict() if name.startswith("stem")]
    rest = [name for name in model.state_dict() if name not in first]
    for told in (True, False):  # whether the names tell
        names = {name: f"{'one' if name in first else 'two'}.{name}" for name in first + rest}
        if not told:
            names = {name: ".".join((digest(name.rpartition(".")[0]), name.rpartition(".")[2])) for name in names}
        for order, right in ((first + rest, True), (rest + first, told)):
            torch.save({names[name]: model.state_dict()[name] for name in order}, tmp_path / "c.pt")
            code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
            assert code == 0, err
            assert ("does not list its modules in network order" in err) == (not right)
            if right:
                assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_element_types(tmp_path, dtype):
    model = trained().to(dtype)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 0, err
    assert_computes_like(tmp_path / "w.h5", embedding_of(model.float(), X), X)


def test_tensors_that_are_views(tmp_path):
    state = trained().state_dict()
    base = torch.randn(400, 900)
    state["last.conv.weight"] = nn.functional.pad(state["last.conv.weight"], (0, 0, 0, 0, 0, 0, 0, 0)).transpose(2, 3)
    state["extra.weight"] = base[10:, ::2]
    torch.save(state, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt").tensors
    assert list(found) == list(state)
    np.testing.assert_array_equal(found["extra.weight"], base[10:, ::2].numpy())


# Someone else's ALNet: other names, and the same operators written in other ways.
class ForeignCBAM(nn.Module):
    def __init__(self, channels, layout):
        super().__init__()
        self.layout, hidden = layout, max(1, channels // 16)
        if "bias" in layout:
            self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        else:
            fc1, fc2 = nn.Conv2d(channels, hidden, 1, bias=False), nn.Conv2d(hidden, channels, 1, bias=False)
            self.mlp = nn.Sequential(fc1, nn.ReLU(), fc2)
        convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.compress = nn.Sequential(convolution, nn.BatchNorm2d(1)) if "bn" in layout else convolution

    def forward(self, x):
        n, c = x.shape[:2]
        pooled = [self.mlp(F.adaptive_avg_pool2d(x, 1)), self.mlp(F.adaptive_max_pool2d(x, 1))]
        x = x * torch.sigmoid(sum(p.reshape(n, c, 1, 1) for p in pooled))
        maps = [x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]]
        return x * torch.sigmoid(
            self.compress(torch.cat(maps if self.layout.startswith("mean-max") else maps[::-1], 1))
        )


class ForeignBlock(nn.Module):
    def __init__(self, cin, c, t, s, layout):
        super().__init__()
        # All convolutions first, then all batch norms: only modules of one shape are in the network's order.
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(cin, cin * t, 1, groups=8, bias=False),
                nn.Conv2d(cin * t, cin * t, 3, s, 1, groups=cin * t, bias=False),
                nn.Conv2d(cin * t, c, 1, groups=8, bias=False),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(cin * t), nn.BatchNorm2d(cin * t), nn.BatchNorm2d(c)])
        self.att = ForeignCBAM(c, layout)

    def forward(self, x):
        x = torch.channel_shuffle(F.relu6(self.norms[0](self.convs[0](x))), 8)
        x = F.relu6(self.norms[1](self.convs[1](x)))
        return self.att(self.norms[2](self.convs[2](x)))


class ForeignALNet(nn.Module):
    def __init__(self, layout, stem_bias):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=stem_bias), nn.BatchNorm2d(32), nn.ReLU())
        self.first_att = ForeignCBAM(32, layout)
        cin, blocks = 32, []
        for t, c, s in SPECS["alnet"].blocks:
            blocks.append(ForeignBlock(cin, c, t, s, layout))
            cin = c
        self.stages = nn.Sequential(*blocks)
        self.final = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
        self.final_att = ForeignCBAM(1280, layout)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 397))

    def forward(self, x):
        x = self.stages(self.first_att(self.first(x)))
        return self.head(F.adaptive_avg_pool2d(self.final_att(self.final(x)), 1).flatten(1))


def randomise(model):
    """Statistics and gains far from 0 and 1."""
    torch.manual_seed(1)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for array in (module.weight.data, module.running_var):
                array.uniform_(0.5, 1.5)
            for array in (module.bias.data, module.running_mean):
                array.normal_(0, 0.3)


@pytest.mark.parametrize("stem_bias", [True, False])
@pytest.mark.parametrize("layout", ["mean-max", "max-mean", "max-mean-bias-bn"])
def test_a_foreign_module_in_each_layout(tmp_path, layout, stem_bias):
    torch.manual_seed(1)
    model = ForeignALNet(layout, stem_bias)
    randomise(model)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    arguments = ["--cbam", "max-mean"] if layout == "max-mean" else []
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5", *arguments)
    assert code == 0, err
    assert ("--cbam max-mean" in err) == (layout == "mean-max")  # the order was assumed, and the converter says so
    found = weights.read(tmp_path / "w.h5")
    assert (found.spec.cbam, found.spec.stem_bias) == (layout, stem_bias)
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


def test_a_wrong_concat_order_is_visible_in_the_embedding(tmp_path):
    model = trained()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    convert(tmp_path / "c.pt", tmp_path / "w.h5", "--cbam", "max-mean")
    expected = embedding_of(model, X)
    assert np.linalg.norm(alnumpy.load(tmp_path / "w.h5").forward(X) - expected) > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", SPECS)
def test_own_checkpoints_know_their_spec(tmp_path, name):
    spec = SPECS[name]
    model = trained(spec)
    how = {"size": 28, "mean": [0.1] * 3, "std": [0.3] * 3}
    torch.save({"state_dict": model.state_dict(), "spec": spec.to_dict(), "preprocessing": how}, tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert (code, err) == (0, "")
    found = weights.read(tmp_path / "w.h5")
    assert (found.spec, found.preprocessing.mean) == (spec, (0.1, 0.1, 0.1))
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


def test_back_to_torch_for_fine_tuning(tmp_path):
    model = trained()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    convert(tmp_path / "c.pt", tmp_path / "w.h5")
    found = weights.read(tmp_path / "w.h5")
    again = from_arrays(found.spec, dict(found.parameters), classes=3)
    for name, array in to_arrays(model).items():
        np.testing.assert_array_equal(array, to_arrays(again)[name])
    again.train()(torch.from_numpy(X)).sum().backward()
    assert again.stem.conv.weight.grad.abs().sum() > 0


def test_without_torch(tmp_path):
    model = trained()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    hidden = (
        "import sys, runpy; sys.modules['torch'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], {}, '__main__')"
    )
    command = [sys.executable, "-c", hidden, TOOL, tmp_path / "c.pt", "-o", tmp_path / "w.h5"]
    env = os.environ | {"PYTHONPATH": str(TOOL.parent)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert "self-test by alnumpy" in result.stdout
    assert "torch is not installed" in result.stderr
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


def test_options_are_recorded_in_the_file(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "c.pt")
    arguments = "--size 40 --mean 0.1 0.2 0.3 --std 0.4 0.5 0.6 --interpolation bicubic --channels BGR --bn-eps 0.001"
    arguments += " --share 0.9"
    code, _, err = convert(
        tmp_path / "c.pt", tmp_path / "w.h5", *arguments.split(), "--card", "data=none", "--spec", "lnet-cbam"
    )
    assert code == 0
    assert "eps" not in err
    found = weights.read(tmp_path / "w.h5")
    assert found.preprocessing == Preprocessing(
        40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "short-side", "bicubic", "center", "BGR", 0.9
    )
    assert (found.spec, found.card) == (replace(SPECS["lnet-cbam"], bn_eps=0.001), {"data": "none"})
    assert found.source_sha256 == hashlib.sha256((tmp_path / "c.pt").read_bytes()).hexdigest()


def test_assumptions_are_reported(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 0
    for assumed in ("--cbam max-mean", "shuffles channels", "--bn-eps", "128 pixels are assumed", "ImageNet's mean"):
        assert assumed in err
    how = weights.read(tmp_path / "w.h5").preprocessing
    assert (how.size, how.mean, how.std) == (128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_command_line_overrules_the_record(tmp_path):
    torch.save({"state_dict": trained().state_dict(), "spec": SPECS["alnet"].to_dict()}, tmp_path / "c.pt")
    assert convert(tmp_path / "c.pt", tmp_path / "w.h5", "--cbam", "max-mean")[0] == 0
    assert weights.read(tmp_path / "w.h5").spec.cbam == "max-mean"


def test_layouts_that_do_not_fit_are_refused(tmp_path):
    torch.save(trained(SPECS["lnet"]).state_dict(), tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5", "--spec", "lnet", "--cbam", "max-mean")
    assert code == 1
    assert "has no CBAM" in err


def test_an_ambiguous_module_is_refused(tmp_path):
    state = {f"net.{name}": tensor for name, tensor in trained().state_dict().items()}
    state = {"auxiliary.weight": torch.zeros(80, 1280)} | state
    torch.save(state, tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 1
    assert "(80, 1280, 1, 1), not expected" in err


def test_integer_weights_are_refused(tmp_path):
    state = trained().state_dict()
    state["stem.conv.weight"] = state["stem.conv.weight"].long()
    torch.save(state, tmp_path / "c.pt")
    assert convert(tmp_path / "c.pt", tmp_path / "w.h5")[0] == 1


@pytest.mark.parametrize("name", ["stem.bn.running_var", "last.bn"])
def test_networks_that_compute_nothing_are_refused_before_writing(tmp_path, name):
    state = trained().state_dict()
    for key in state:
        if key.startswith(name) and state[key].ndim:
            state[key] = -torch.ones_like(state[key]) if "var" in name else torch.zeros_like(state[key])
    torch.save(state, tmp_path / "c.pt")
    (tmp_path / "w.h5").write_text("old")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 1
    assert ("variance below 0" if "var" in name else "these weights compute nothing") in err
    assert (tmp_path / "w.h5").read_text() == "old"


def test_the_checkpoint_is_not_replaced(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "c.pt")
    before = (tmp_path / "c.pt").read_bytes()
    assert convert(tmp_path / "c.pt", tmp_path / "c.pt")[0] == 1
    assert (tmp_path / "c.pt").read_bytes() == before


def test_a_module_under_two_names_counts_once(tmp_path):
    model = trained()
    state = {}
    for name, tensor in model.state_dict().items():
        state[f"a.{name}"] = tensor
    state |= {f"features.{name}": tensor for name, tensor in model.state_dict().items() if "block3" in name}
    torch.save(state, tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 0, err
    assert_computes_like(tmp_path / "w.h5", embedding_of(model, X), X)


def test_float16_prints_its_loss(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "c.pt")
    convert(tmp_path / "c.pt", tmp_path / "single.h5")
    code, out, _ = convert(tmp_path / "c.pt", tmp_path / "half.h5", "--dtype", "float16")
    assert code == 0
    loss = float(out.split("embeddings = ")[1])
    assert 0 < loss < 1e-3
    a, b = (
        alnumpy.load(tmp_path / name).forward(weights.self_test_picture(64))[0] for name in ("single.h5", "half.h5")
    )
    assert loss == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=2e-6)
    ratio = (tmp_path / "half.h5").stat().st_size / (tmp_path / "single.h5").stat().st_size
    assert 0.5 <= ratio < 0.54


def test_unmatched_modules_are_named_with_both_shapes(tmp_path):
    state = trained().state_dict()
    state["block3.depthwise.conv.weight"] = torch.zeros(144, 1, 5, 5)
    torch.save(state, tmp_path / "c.pt")
    code, out, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert (code, out) == (1, "")
    assert "expected block3.depthwise.conv (144, 1, 3, 3), not found" in err
    assert "found block3.depthwise.conv (144, 1, 5, 5), not expected" in err
    assert not (tmp_path / "w.h5").exists()


def test_another_network_is_refused(tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 1
    assert "this is not the network alnet" in err
    assert "and " in err  # a long list is cut, and says so
    assert os.listdir(tmp_path) == ["c.pt"]


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = trained().state_dict()
    state["stem.conv.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "c.pt")
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 1
    assert "stem.conv.weight has values that are not finite" in err
    assert os.listdir(tmp_path) == ["c.pt"]


class Evil:
    def __init__(self, function, *arguments):
        self.reduction = function, arguments

    def __reduce__(self):
        return self.reduction


def archive(path, data, **entries):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for name, content in entries.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)


@pytest.mark.parametrize(
    "function", [os.system, eval, exec, open, getattr, __import__, subprocess.check_output, pickle.loads], ids=str
)
def test_hostile_pickles_execute_nothing(tmp_path, function):
    canary = tmp_path / "canary"
    archive(tmp_path / "c.pt", pickle.dumps({"w": Evil(function, f"open({str(canary)!r}, 'w')")}))
    with pytest.raises(CheckpointError, match=r"names \w+\.\w+, which no tensor needs; nothing was executed"):
        read_checkpoint(tmp_path / "c.pt")
    assert not canary.exists()
    code, _, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert code == 1
    assert "nothing was executed" in err
    assert sorted(os.listdir(tmp_path)) == ["c.pt"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # getattr(__import__("os"), "system")("..."), one reduce inside another
        (pickle.dumps(Evil(getattr, Evil(__import__, "os"), "system")), "names builtins.getattr"),
        (pickle.dumps({"w": (1, [Evil(print, Evil(eval, "1"))])}), "names builtins.print"),
        (b"cos\nsystem\n(S'touch canary'\ntR.", "names os.system"),
        (b"(S'touch canary'\nios\nsystem\n.", "names os.system"),  # INST
        (b"(cos\nsystem\nS'touch canary'\no.", "names os.system"),  # OBJ
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.", "names os.system"),  # STACK_GLOBAL
        (b"\x80\x04cos\nsystem\n\x8c\x0ctouch canary\x85}\x92.", "names os.system"),  # NEWOBJ_EX
        (b"\x80\x02\x82\x01.", "damaged"),  # EXT1, the copyreg registry
        (b"\x80\x05\x97.", "damaged"),  # NEXT_BUFFER
        (b"Pstorage\n.", "unknown persistent id"),
        (b"(I1\nI2\ntQ.", "unknown persistent id"),
        (b"ctorch\nFloatStorage\n(S'touch canary'\ntR.", "damaged"),  # calls a text
        (b"ctorch\nSize.__class__.__base__\n.", "names torch.Size.__class__"),
        (b"cargparse\nNamespace.__init__\n.", "names argparse.Namespace.__init__"),
        (b"ccollections\nOrderedDict.fromkeys\n.", "names collections.OrderedDict.fromkeys"),
        (b"c__main__\nEvil\n.", "names __main__.Evil"),
        (b"(" * 100_000 + b".", "damaged"),  # marks
        (b"]" * 100_000 + b"a" * 99_999 + b".", "holds a list"),  # nested lists
        (b"N" * 900_000 + b".", "holds a NoneType"),
        (b"R.", "damaged"),  # an empty stack
        (b"\x80\x02}q\x01" + b"h\x01h\x01\x86" * 9 + b".", "holds a tuple"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),  # a text of 2^63 bytes
        (b"\x8b\xff\xff\xff\x7f.", "damaged"),  # a number of 2 GB
        (b"L" + b"9" * 900_000 + b"L\n.", "damaged"),  # a number that takes minutes to convert
        (b"\x80\xff.", "damaged"),
    ],
)
def test_opcodes_of_all_kinds_execute_nothing(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "c.pt", data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "c.pt")
    code, out, err = convert(tmp_path / "c.pt", tmp_path / "w.h5")
    assert (code, out) == (1, "")
    assert err.startswith(f"convert_weights.py: {tmp_path / 'c.pt'}: ")
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_whole_module_is_refused_with_advice(tmp_path):
    torch.save(trained(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"torch.save\(model.state_dict\(\), PATH\)"):
        read_checkpoint(tmp_path / "c.pt")


def tensor_pickle(size=4, offset=0, shape=(4,), stride=(1,), kind="FloatStorage"):
    """A data.pkl with one tensor, its numbers as given."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", Global(kind), "0", "cpu", size) if isinstance(value, Storage) else None

        def save(self, value, save_persistent_id=True):
            if isinstance(value, Global):
                self.write(b"ctorch\n" + value.encode() + b"\n")
            elif isinstance(value, Rebuild):
                self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")
            else:
                super().save(value, save_persistent_id)

    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.write(b"\x80\x02}X\x01\x00\x00\x00w")
    pickler.save(Rebuild("x"))
    pickler.save((Storage(), offset, shape, stride, False, None))
    pickler.write(b"Rs.")
    return file.getvalue()


class Global(str):
    pass


class Rebuild(str):
    pass


DATA = np.arange(4, dtype="<f4").tobytes()


def test_the_hand_made_pickle_is_read(tmp_path):
    archive(tmp_path / "c.pt", tensor_pickle(shape=(2, 2), stride=(1, 2)), data__0=DATA)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "c.pt").tensors["w"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("numbers", "data", "message"),
    [
        ({"offset": 1}, DATA, "point outside the storage"),
        ({"stride": (2,)}, DATA, "point outside the storage"),
        ({"shape": (2,), "stride": (10**11,)}, DATA, "point outside the storage"),
        ({"shape": (1,), "stride": (10**30,)}, DATA, "not counts"),
        ({"shape": (0, 10**30), "stride": (1, 1)}, DATA, "not counts"),
        ({"shape": (10**9,), "stride": (0,)}, DATA, "more than 268435456 bytes of tensors"),
        ({"shape": (5,)}, DATA, "point outside the storage"),
        ({"offset": -1}, DATA, "not counts"),
        ({"stride": (-1,)}, DATA, "not counts"),
        ({"stride": (1, 1)}, DATA, "not counts"),
        ({"size": 5}, DATA, "has 16 bytes, not 5 elements"),
        ({"size": -1}, DATA, "unknown storage"),
        ({"kind": "QInt8Storage"}, DATA, "which no tensor needs"),
        ({}, DATA[:-1], "has 15 bytes"),
        ({}, None, "no entry archive/data/0"),
    ],
)
def test_tensors_that_point_outside_are_refused(tmp_path, numbers, data, message):
    entries = {} if data is None else {"data__0": data}
    archive(tmp_path / "c.pt", tensor_pickle(**numbers), **entries)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "holds a list"),  # a memo index of 2^31 must not take memory
        (b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s.", "keys other than"),  # hashing it would overflow the stack
        (b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 40 + b"h\x00K\x01s.", "keys other than"),  # this would never end
        (b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 100 + b"}" + b"s" * 100 + b".", "absurdly deep"),
        (b"\x80\x02}X\xd0\x07\x00\x00" + b"a" * 2000 + b"}s.", "absurdly long names"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", None),  # a dictionary that holds itself
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\x00\x00\x00getK\x01sb.", None),  # its attributes stay its own
        (b"\x80\x02}0.", "damaged"),
        (b"\x80\x02Qh\x00.", "damaged"),
        (pickle.dumps([1, 2]), "holds a list, not a state dict"),
        (pickle.dumps({}), None),
    ],
)
def test_damaged_pickles_are_refused(tmp_path, data, message):
    archive(tmp_path / "c.pt", data)
    if message is None:
        assert read_checkpoint(tmp_path / "c.pt").tensors == {}
        return
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "c.pt")


def test_archives_with_tricks_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}) + b" " * 10_000_000)
    with pytest.raises(CheckpointError, match="is compressed"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(CheckpointError, match="duplicate names"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"no data.pkl"):
        read_checkpoint(path)
    archive(path, pickle.dumps({}), byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_checkpoint(path)


def test_many_names_of_one_dictionary_take_no_time(tmp_path, monkeypatch):
    """A large file is read once."""
    from alnumpy import checkpoint

    looked_at = []
    has_tensors = checkpoint._has_tensors
    monkeypatch.setattr(checkpoint, "_has_tensors", lambda members: looked_at.append(members) or has_tensors(members))
    inner = {str(i): i for i in range(100)}
    torch.save({f"name{i}": inner for i in range(100)}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt").tensors == {}
    assert 1 <= len(looked_at) <= 5


def test_names_in_an_archive_are_not_used_as_paths(tmp_path):
    """Entries are found by name and never written to disk."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "c.pt"
    (folder / "0").write_bytes(DATA)
    for key in ("../0", "/0", f"{folder}/0", "..\\0", "../../etc/passwd"):
        archive(
            path, tensor_pickle().replace(b"X\x01\x00\x00\x000", b"X" + len(key).to_bytes(4, "little") + key.encode())
        )
        with pytest.raises(CheckpointError, match="the archive has no entry archive/data/"):
            read_checkpoint(path)
    for root in ("..", "/", "/tmp/x", "../../a"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{root}/data.pkl", tensor_pickle())
            file.writestr(f"{root}/data/0", DATA)
        if root == "..":  # a folder name without special meaning
            np.testing.assert_array_equal(read_checkpoint(path).tensors["w"], [0, 1, 2, 3])
        else:
            with pytest.raises(CheckpointError, match=r"holds no data.pkl"):
                read_checkpoint(path)
    assert sorted(os.listdir(folder)) == ["0", "c.pt"]
    assert os.listdir(tmp_path) == ["folder"]


def test_overlapping_entries_are_refused(tmp_path):
    """Two entries of the table at the end point at the same bytes, as in a bomb of overlapping files."""
    path = tmp_path / "c.pt"
    archive(path, tensor_pickle(), data__0=DATA, data__1=DATA)
    content = bytearray(path.read_bytes())
    zero, one = (content.rindex(f"archive/data/{i}".encode()) for i in (0, 1))
    offset = zero - 4  # the last field of the local header, before the name
    content[offset:zero] = content[one - 4 : one]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged archive .*differ|damaged archive .*verlap"):
        read_checkpoint(path)


@pytest.mark.parametrize("where", [1, 2**31, 2**32 - 1])
def test_a_table_that_points_outside_the_archive_is_refused(tmp_path, where):
    path = tmp_path / "c.pt"
    archive(path, tensor_pickle(), data__0=DATA)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    content[end + 16 : end + 20] = where.to_bytes(4, "little")  # where the table begins
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged archive"):
        read_checkpoint(path)
    content[end:end] = b"PK\6\7" + (1).to_bytes(4, "little") + bytes(8) + (9).to_bytes(4, "little")  # nine disks
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged archive"):
        read_checkpoint(path)


def test_numbers_and_sizes_have_limits(tmp_path):
    scalar = tensor_pickle(size=1, shape=(), stride=())
    start, end = scalar.index(b"ctorch._utils"), scalar.rindex(b"s.")
    many = b"\x80\x02}" + scalar[start:end] + b"q\x050("  # the tensor is memo 5
    many += b"".join(b"J" + i.to_bytes(4, "little") + b"h\x05" for i in range(10_001)) + b"u."
    archive(tmp_path / "c.pt", many, data__0=DATA[:4])
    with pytest.raises(CheckpointError, match="more than 10000 tensors"):
        read_checkpoint(tmp_path / "c.pt")
    for name in ("huge.pt", "huge.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(10**13)  # a sparse file
        with pytest.raises(CheckpointError, match="10000000000000 bytes, more than the 268435456 that are read"):
            read_checkpoint(tmp_path / name)


def test_a_fifo_or_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "c.pt")  # opening it would wait for ever
    for path, message in ((tmp_path / "c.pt", "not a regular file"), (tmp_path, "not a regular file")):
        code, out, err = convert(path, tmp_path / "w.h5")
        assert (code, out, err) == (1, "", f"convert_weights.py: {path}: {message}\n")
    code, _, err = convert(tmp_path / "missing.pt", tmp_path / "w.h5")
    assert (code, err) == (1, f"convert_weights.py: {tmp_path}/missing.pt: No such file or directory\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_a_deflated_bomb_takes_no_memory(tmp_path, name):
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w") as file:
        for entry, content in (
            ("data.pkl", tensor_pickle(size=25_000_000, shape=(25_000_000,))),
            ("data/0", bytes(10)),
        ):
            bomb = entry == name
            file.writestr(f"archive/{entry}", bytes(10**8) if bomb else content, zipfile.ZIP_DEFLATED if bomb else None)
    assert path.stat().st_size < 200_000
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmHWM")
    with pytest.raises(CheckpointError, match="is compressed"):
        read_checkpoint(path)
    assert memory("VmHWM") - before < 2_000_000


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(CheckpointError, match=r"a plain pickle"):
        read_checkpoint(tmp_path / "plain.pt")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(CheckpointError, match=r"an ONNX model.* torch.save"):
        read_checkpoint(tmp_path / "net.onnx")
    np.savez(tmp_path / "arrays.npz", weight=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"NumPy arrays.* --against .* torch.save"):
        read_checkpoint(tmp_path / "arrays.npz")
    for name, entry, message in (
        ("net.pt2", "net/archive_format", r"torch.export.* torch.save"),
        ("old.pt2", "serialized_exported_program.json", r"torch.export.* torch.save"),
        ("net.keras", "model.weights.h5", "Keras"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(entry, b"pt2")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=r"not a file of torch.save"):
        read_checkpoint(tmp_path / "pytorch_model.bin")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="neither"):
        read_checkpoint(tmp_path / "text.pt")
    for header in (b"{", b"[]", b"[" * 9000, b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
                   b'{"a": {"dtype": "F3", "shape": [0], "data_offsets": [0, 0]}}',
                   b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}'):  # fmt: skip
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(CheckpointError, match="damaged safetensors"):
            read_checkpoint(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        read_checkpoint(tmp_path / "a.safetensors")
    code, _, err = convert(tmp_path / "nowhere.pt", tmp_path / "w.h5")
    assert code == 1
    assert "nowhere.pt: No such file" in err


def test_truncated_checkpoints_are_refused(tmp_path):
    torch.save(trained(replace(SPECS["lnet"])).state_dict(), tmp_path / "c.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    for length in np.linspace(1, len(whole) - 1, 40).astype(int):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "cut.pt")


def test_names_of_the_torch_module_are_the_layers():
    for spec in SPECS.values():
        assert list(to_arrays(Network(spec))) == list(random_params(spec))
