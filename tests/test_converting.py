"""Which network a checkpoint holds, and what a checkpoint does not tell: detected, assumed by convention, checked."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import random_params
from test_naming import MEGVII_V1, MEGVII_V2, lukemelas, parts, timm, torchvision

import alnumpy
from alnumpy import convert as conversion
from alnumpy import reference, weights
from alnumpy.cli import main
from alnumpy.convert import Module, detect, group_modules
from alnumpy.layers import parameters
from alnumpy.networks import SPECS

LITE0 = replace(SPECS["efficientnet-lite0"])


def write_safetensors(path, arrays):
    """The container, its tensors sorted by name."""
    header, data = {}, b""
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], "<f4")
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def foreign(spec, scheme, head="classifier.0"):
    """Random arrays of a network under a project's names, and of a linear head."""
    ours = random_params(spec)
    modules = group_modules(ours)
    arrays = {}
    for name, module in zip(scheme(spec), modules, strict=True):
        arrays |= {f"{name}.{field}": array for field, array in module.arrays.items()}
    arrays |= {f"{head}.weight": np.zeros((7, spec.embedding)), f"{head}.bias": np.zeros(7)}
    return ours, arrays


def run(*arguments):
    return main(["convert", *map(str, arguments)])


def head(outputs, inputs):
    return Module("head", "conv", {"weight": np.zeros((outputs, inputs, 1, 1)), "bias": np.zeros(outputs)})


@pytest.mark.parametrize("name", SPECS)
def test_every_preset_is_recognised_by_its_shapes(name):
    shapes = parameters(SPECS[name].layers())
    modules = group_modules({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    found = detect([*modules[::-1], head(10, SPECS[name].embedding)])
    assert sorted(parameters(found.layers()).values()) == sorted(shapes.values())


def test_an_unknown_network_is_not_recognised():
    modules = group_modules({name: np.zeros(shape) for name, shape in parameters(SPECS["alnet"].layers()).items()})
    assert detect(modules[:-1]) is None
    assert detect([*modules, head(10, 1280), head(10, 1280), head(10, 1280)]) is None
    assert detect([]) is None


def test_fields_that_timms_names_do_not_show_are_listed(tmp_path, capsys):
    ours, arrays = foreign(LITE0, timm)
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    assert run(path, "-o", tmp_path / "w.h5") == 0
    out, err = capsys.readouterr()
    assert "removed the classifier: classifier.0 (7, 1280, 1, 1) with bias" in out
    network = ("--bn-eps 1e-05", "--set padding=symmetric", "--set activation=relu or")
    pictures = ("--size N", "--mean R", "--std R", "--channels BGR", "--interpolation bicubic or", "--share 0.875")
    for option in network + pictures:
        assert option in err
    assert len(err.splitlines()) == 9
    found = weights.read(tmp_path / "w.h5")
    assert found.spec == LITE0
    for name, array in ours.items():
        np.testing.assert_array_equal(found.parameters[name], array)


def test_given_fields_are_not_assumed(tmp_path, capsys):
    _, arrays = foreign(LITE0, timm)
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    given = "--bn-eps 1e-5 --set padding=symmetric --set activation=relu"
    given += " --size 96 --mean .5 .5 .5 --std .5 .5 .5 --share .9 --channels RGB --interpolation opencv-bilinear"
    assert run(path, "-o", tmp_path / "w.h5", *given.split()) == 0
    assert capsys.readouterr().err == ""
    found = weights.read(tmp_path / "w.h5")
    assert (found.spec.padding, found.spec.bn_eps, found.spec.activation) == ("symmetric", 1e-5, "relu")
    assert {block.activation for block in found.spec.blocks} == {"relu"}
    assert (found.preprocessing.size, found.preprocessing.share) == (96, 0.9)


@pytest.mark.parametrize(
    ("spec", "scheme", "project", "expected"),
    [
        (SPECS["efficientnet-b0"], lukemelas, "lukemelas", {"padding": "same", "bn_eps": 1e-3}),
        (replace(SPECS["shufflenet-v1"], shuffle="inverse"), MEGVII_V1, "megvii", {"shuffle": "inverse"}),
        (replace(SPECS["shufflenet-v2"], split="even-odd"), MEGVII_V2, "megvii", {"split": "even-odd"}),
    ],
    ids=["lukemelas", "megvii v1", "megvii v2"],
)
def test_habits_of_projects(tmp_path, capsys, spec, scheme, project, expected):
    ours, arrays = foreign(spec, scheme)
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    assert run(path, "-o", tmp_path / "w.h5") == 0
    assert f"have the names of {project}" in capsys.readouterr().err
    found = weights.read(tmp_path / "w.h5")
    assert {field: getattr(found.spec, field) for field in expected} == expected
    for name, array in ours.items():
        np.testing.assert_array_equal(found.parameters[name], array)
    if project == "megvii":
        assert (found.preprocessing.channels, found.preprocessing.std[0]) == ("BGR", pytest.approx(1 / 255))


def test_mobilenet_v3_with_and_without_its_dense_layer(tmp_path, capsys):
    spec = replace(SPECS["mobilenet-v3-small"], hidden=1024)
    _, arrays = foreign(spec, torchvision, "classifier.3")
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    assert run(path, "-o", tmp_path / "w.h5") == 0
    assert weights.read(tmp_path / "w.h5").spec.hidden == 1024
    assert run(path, "-o", tmp_path / "w.h5", "--spec", "mobilenet-v3-small", "--set", "hidden=0") == 0
    assert weights.read(tmp_path / "w.h5").spec.embedding == 576
    assert capsys.readouterr().out.count("removed the classifier") == 3


def test_a_published_file_is_known_by_its_content(tmp_path, capsys, monkeypatch):
    import hashlib

    _, arrays = foreign(LITE0, lukemelas)
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(conversion.PUBLISHED, digest[:8], conversion.PUBLISHED["57934424"])
    assert run(path, "-o", tmp_path / "w.h5") == 0
    assert capsys.readouterr().err == ""
    found = weights.read(tmp_path / "w.h5")
    assert (found.spec, found.preprocessing.size, found.preprocessing.interpolation) == (LITE0, 224, "bicubic")
    assert found.preprocessing.mean[0] == pytest.approx(127 / 255)
    assert found.card["licence"] == "Apache-2.0"


class TestAgainst:
    """The output of the user's own model decides."""

    @pytest.fixture
    def checkpoint(self, tmp_path):
        self.ours, arrays = foreign(LITE0, timm)
        self.x = np.random.default_rng(0).normal(size=(2, 3, 32, 24)).astype(np.float32)
        return write_safetensors(tmp_path / "c.safetensors", arrays)

    def save(self, path, **changes):
        embedding = reference.forward(replace(LITE0, **changes), self.ours, self.x)
        np.savez(path, input=self.x, embedding=embedding)
        return path

    def test_equal(self, tmp_path, checkpoint, capsys):
        against = self.save(tmp_path / "a.npz")
        assert run(checkpoint, "-o", tmp_path / "w.h5", "--against", against) == 0
        assert f"beside {against}: relative error 0" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("changes", "options"),
        [
            ({"padding": "symmetric"}, ["--set padding=symmetric"]),
            ({"padding": "symmetric", "bn_eps": 1e-5}, ["--set padding=symmetric", "--bn-eps 1e-05"]),
        ],
    )
    def test_the_alternative_that_fits_is_named(self, tmp_path, checkpoint, capsys, changes, options):
        against = self.save(tmp_path / "a.npz", **changes)
        assert run(checkpoint, "-o", tmp_path / "w.h5", "--against", against) == 1
        err = capsys.readouterr().err
        fit = err[err.index("they fit with") :]
        assert all(option in fit for option in options)
        assert not (tmp_path / "w.h5").exists()
        words = fit.removeprefix("they fit with ").split()
        assert run(checkpoint, "-o", tmp_path / "w.h5", "--against", against, *words) == 0

    def test_no_alternative_fits(self, tmp_path, checkpoint, capsys):
        np.savez(tmp_path / "a.npz", input=self.x, embedding=np.ones((2, 1280)))
        assert run(checkpoint, "-o", tmp_path / "w.h5", "--against", tmp_path / "a.npz") == 1
        assert "is the input preprocessed" in capsys.readouterr().err
        assert not (tmp_path / "w.h5").exists()

    def test_files_without_the_arrays_are_refused(self, tmp_path, checkpoint, capsys):
        (tmp_path / "text.npz").write_text("text")
        np.savez(tmp_path / "one.npz", input=self.x)
        np.savez(tmp_path / "shape.npz", input=self.x, embedding=np.ones((2, 7)))
        np.savez(tmp_path / "objects.npz", input=self.x, embedding=np.array([{}, {}]))
        for name in ("text", "one", "shape", "objects", "missing"):
            assert run(checkpoint, "-o", tmp_path / "w.h5", "--against", tmp_path / f"{name}.npz") == 1
            err = capsys.readouterr().err
            assert f"{name}.npz: " in err
            assert "Traceback" not in err


def test_wrong_arguments(tmp_path, capsys):
    _, arrays = foreign(LITE0, timm)
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    for given, code, message in (
        (["--mean", "127", "127", "127"], 1, "pixels are in 0..1 here; divide the numbers for 0..255 by 255"),
        (["--set", "paddings=same"], 2, "no such field or value"),
        (["--set", "padding=other"], 1, "padding must be one of"),
        (["--set", "split=halves"], 1, "has no field split"),
        (["--cbam", "max-mean"], 1, "no"),
        (["--spec", "efficientnet-lite1"], 1, "this is not the network efficientnet-lite1"),
    ):
        assert run(path, "-o", tmp_path / "w.h5", *given) == code
        assert message in capsys.readouterr().err
        assert not (tmp_path / "w.h5").exists()


def test_missing_and_found_stand_side_by_side(tmp_path, capsys):
    _, arrays = foreign(LITE0, timm)
    arrays["conv_stem.weight"] = np.zeros((32, 3, 5, 5))
    path = write_safetensors(tmp_path / "c.safetensors", arrays)
    assert run(path, "-o", tmp_path / "w.h5", "--spec", "efficientnet-lite0") == 1
    lines = capsys.readouterr().err.splitlines()
    at = lines.index("  expected stem.conv (32, 3, 3, 3), not found")
    assert lines[at + 1] == "  found conv_stem (32, 3, 5, 5), not expected"


def test_the_kept_share_of_the_short_side():
    from PIL import Image

    from alnumpy.images import Preprocessing, preprocess

    how = Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), share=0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 200, 3), dtype=np.uint8)
    wanted = pixels[32:96, 68:132].astype(np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(preprocess(Image.fromarray(pixels), how), wanted)


def test_parts_are_those_of_the_network():
    assert len(list(parts(LITE0))) == len(group_modules(random_params(LITE0)))
    assert alnumpy.SPECS["efficientnet-lite0"] == LITE0


@pytest.mark.parametrize(("name", "source"), [("alnet-photo", "alnet-photo"), ("alnet-mnist", None)])
def test_weights_become_int8(tmp_path, capsys, name, source):
    """The file is named by name or path; everything but the arrays stays as it was."""
    given = weights.locate(name)
    before = weights.read(given)
    assert run(source or given, "-o", tmp_path / "w.h5", "--dtype", "int8") == 0
    out, err = capsys.readouterr()
    assert "loss of int8: 1 - cosine of the self-test's embeddings = " in out
    assert err == ""
    assert (tmp_path / "w.h5").stat().st_size < 1e6
    after = weights.read(tmp_path / "w.h5")
    assert (before.dtype, after.dtype) == ("float32", "int8")
    for field in ("spec", "preprocessing", "source", "source_sha256", "card", "normalize"):
        assert getattr(before, field) == getattr(after, field)
    exact, coarse = (alnumpy.Embedder(w, backend="numpy").forward(after.self_test_input)[0] for w in (before, after))
    assert 0 < 1 - exact @ coarse / (np.linalg.norm(exact) * np.linalg.norm(coarse)) < 1e-3
    assert run(tmp_path / "w.h5", "-o", tmp_path / "again.h5", "--dtype", "int8") == 0
    np.testing.assert_equal(weights.read(tmp_path / "again.h5").parameters, after.parameters)


def test_weights_get_another_size_card_and_comparison(tmp_path, capsys):
    assert run("alnet-mnist", "-o", tmp_path / "w.h5", "--size", 32, "--card", "data=none", "--normalize") == 0
    before, after = weights.read(weights.locate("alnet-mnist")), weights.read(tmp_path / "w.h5")
    assert after.preprocessing == replace(before.preprocessing, size=32)
    assert after.card == {**before.card, "data": "none"}
    assert after.normalize
    np.testing.assert_equal(after.parameters, before.parameters)
    assert run(tmp_path / "w.h5", "-o", tmp_path / "v.h5", "--no-normalize") == 0
    assert not weights.read(tmp_path / "v.h5").normalize


def test_another_hdf5_file_is_refused(tmp_path, capsys):
    import h5py

    with h5py.File(tmp_path / "keras.h5", "w") as file:
        file.create_group("model_weights")
    assert run(tmp_path / "keras.h5", "-o", tmp_path / "w.h5") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alnumpy: {tmp_path / 'keras.h5'}: attribute format is missing")
    assert line.endswith("of HDF5 files only alnumpy's weights can be converted")
    assert not (tmp_path / "w.h5").exists()
