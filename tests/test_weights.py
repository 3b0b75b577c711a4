"""The weights file: what is written is read again, and a changed file is refused."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import random_params

from alnumpy import Embedder, WeightsError, load, weights
from alnumpy.images import Preprocessing
from alnumpy.layers import parameters
from alnumpy.networks import ALNet, Block
from fuzz import memory

SPEC = ALNet("tiny", 4, True, (Block(2, 8, 2),), embedding=6, groups=2, cbam="max-mean-bias-bn", reduction=2)
HOW = Preprocessing(9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation="bicubic", channels="BGR")


def make(spec=SPEC, how=HOW, dtype="float32"):
    size = weights.self_test_size(how)
    params = random_params(spec)
    x = weights.self_test_picture(size)
    blank = np.zeros((1, spec.embedding), np.float32)
    draft = weights.Weights(spec, how, params, x, blank, "alnumpy", "a.pt", "0" * 64, {"data": "none"}, dtype)
    return replace(draft, self_test_embedding=Embedder(draft).forward(x))


@pytest.fixture
def path(tmp_path):
    weights.write(tmp_path / "w.h5", make())
    return tmp_path / "w.h5"


def test_round_trip(path):
    written, found = make(), weights.read(path)
    assert (found.spec, found.preprocessing, found.card) == (SPEC, HOW, {"data": "none"})
    assert (found.source, found.source_sha256, found.self_test_by) == ("a.pt", "0" * 64, "alnumpy")
    assert found.dtype == "float32"
    assert list(found.parameters) == list(written.parameters)
    for name, array in written.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)
    np.testing.assert_array_equal(found.self_test_input, written.self_test_input)
    assert Embedder(found).self_test().relative_error == 0


def test_float16_halves_the_parameters(path, tmp_path):
    weights.write(tmp_path / "half.h5", make(dtype="float16"))
    found = weights.read(tmp_path / "half.h5")
    assert found.dtype == "float16"
    for name, array in make().parameters.items():
        assert found.parameters[name].dtype == np.float32
        np.testing.assert_array_equal(found.parameters[name], array.astype(np.float16).astype(np.float32))


def test_float16_that_would_overflow_is_refused(tmp_path):
    big = make(dtype="float16")
    big = replace(big, parameters=dict(big.parameters) | {"last.conv.weight": np.full((6, 8, 1, 1), 1e6, np.float32)})
    with pytest.raises(WeightsError, match=r"last.conv.weight has values that are not finite as float16"):
        weights.write(tmp_path / "w.h5", big)
    assert os.listdir(tmp_path) == []


def test_int8_keeps_each_output_to_its_own_scale(tmp_path):
    good = make()
    weights.write(tmp_path / "w.h5", replace(good, dtype="int8", normalize=True))
    found = weights.read(tmp_path / "w.h5")
    assert (found.dtype, found.normalize) == ("int8", True)
    for name, array in good.parameters.items():
        restored = found.parameters[name]
        assert restored.dtype == np.float32
        if array.ndim == 1:
            np.testing.assert_array_equal(restored, array)
        else:
            rows, others = array.reshape(len(array), -1), restored.reshape(len(array), -1)
            largest = np.abs(rows).max(1, keepdims=True)
            assert (np.abs(rows - others) <= 0.501 * largest / 127).all()
            np.testing.assert_allclose(np.abs(others).max(1), largest[:, 0], rtol=1e-6)
    for name, array in weights.rounded(good.parameters, "int8").items():
        np.testing.assert_array_equal(array, found.parameters[name])
    with h5py.File(tmp_path / "w.h5") as file:
        assert file["parameters/stem.conv.weight"].dtype == np.int8
        assert file["scales/stem.conv.weight"].shape == (4,)


def test_outputs_of_zeros_have_a_scale():
    codes, scales = weights.quantize(np.zeros((2, 3, 1, 1), np.float32))
    np.testing.assert_array_equal(weights.dequantize(codes, scales), np.zeros((2, 3, 1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__delitem__("scales"), "scales is missing"),
        (lambda file: file.__delitem__("scales/stem.conv.weight"), "scales/stem.conv.weight is missing"),
        (lambda file: file["scales/stem.conv.weight"].write_direct(np.full(4, -1, "<f4")), "a scale below 0"),
        (lambda file: file["scales/stem.conv.weight"].write_direct(np.full(4, np.nan, "<f4")), "not finite"),
        (
            lambda file: file["scales/stem.conv.weight"].write_direct(np.full(4, 2, "<f4")),
            "the checksum does not match",
        ),
        (
            lambda file: file.create_dataset("scales/other", data=np.ones(4, "<f4")),
            "holds 15 items, 1 more than the spec knows",
        ),
        (lambda file: file.attrs.__setitem__("version", np.int64(1)), "must be float32 or float16"),
    ],
)
def test_damaged_scales_are_named(tmp_path, change, message):
    weights.write(tmp_path / "w.h5", replace(make(), dtype="int8"))
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        change(file)
    with pytest.raises(WeightsError, match=message):
        weights.read(tmp_path / "w.h5")


def test_names_of_weights(tmp_path, monkeypatch):
    assert weights.locate() == weights.locate("alnet-photo") == weights.default_path()
    for file in ("alnet-photo.h5", "folder/alnet-photo", "./alnet-photo", Path("alnet-photo")):
        assert weights.locate(file) == Path(file)
    with pytest.raises(
        WeightsError, match=r"mine: no weights have this name; there are alnet-mnist, alnet-photo.*\./mine"
    ):
        weights.locate("mine")
    own, data = tmp_path / "own", tmp_path / "data"
    monkeypatch.setenv("ALNUMPY_WEIGHTS", str(own))
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    for folder, name in ((own, "mine"), (weights.folders()[-1], "mine"), (weights.folders()[-1], "alnet-photo")):
        folder.mkdir(parents=True, exist_ok=True)
        weights.write(folder / f"{name}.h5", make())
    assert weights.locate("mine") == own / "mine.h5"  # the first folder counts
    assert weights.locate("alnet-photo") == weights.default_path()
    assert load("mine").spec == SPEC


def test_arrays_that_do_not_fit_the_spec_are_not_written(tmp_path):
    wrong = replace(make(), spec=replace(SPEC, cbam=""))
    with pytest.raises(WeightsError, match="do not fit the spec"):
        weights.write(tmp_path / "w.h5", wrong)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        weights.write(path, make())
    assert os.listdir(path.parent) == ["w.h5"]
    assert path.read_bytes() == before


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        weights.write(tmp_path / "w.h5", make())
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "w.h5").st_mode) == 0o640


def replace_dataset(name, **options):
    def change(file):
        array = file[name][()]
        del file[name]
        file.create_dataset(name, **({"data": array} | options))

    return change


def set_attribute(name, value):
    def change(file):
        file.attrs[name] = value

    return change


def change_metadata(old, new):
    def change(file):
        file.attrs["metadata"] = np.bytes_(file.attrs["metadata"].replace(old, new))

    return change


def set_value(name, value):
    def change(file):
        file[name][(0,) * file[name].ndim] = value

    return change


def link(name, target):
    def change(file):
        del file[name]
        file[name] = target

    return change


def virtual(file, source="other.h5"):
    name = "parameters/stem.conv.bias"
    del file[name]
    layout = h5py.VirtualLayout(shape=(4,), dtype="<f4")
    layout[:] = h5py.VirtualSource(source, "x", shape=(4,))
    file.create_virtual_dataset(name, layout)


def unknown_filter(file):
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((4,))
    creation.set_filter(32_111, h5py.h5z.FLAG_OPTIONAL)
    group = file["parameters"].id
    array = file[BIAS][()]
    del file[BIAS]
    h5py.h5d.create(group, b"stem.conv.bias", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), creation).write(
        h5py.h5s.ALL, h5py.h5s.ALL, array
    )


BIAS = "parameters/stem.conv.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__delitem__(BIAS), f"{BIAS} is missing"),
        (lambda f: f.__delitem__("parameters"), "parameters is missing"),
        (lambda f: f.create_dataset("parameters/extra", data=[1.0]), "1 more than the spec knows"),
        (
            replace_dataset(BIAS, data=np.zeros(5, "<f4")),
            rf"{BIAS} must be float32 or float16 \(4,\), not float32 \(5,\)",
        ),
        (replace_dataset(BIAS, data=np.zeros(4, "<f8")), f"{BIAS} must be .* not float64"),
        (replace_dataset(BIAS, data=np.zeros(4, ">f4")), f"{BIAS} must be"),
        (replace_dataset(BIAS, data=np.zeros(4, "<f2")), "float32 and float16 are mixed"),
        (replace_dataset(BIAS, compression="gzip"), f"{BIAS} must be stored contiguous"),
        (replace_dataset(BIAS, chunks=(2,)), f"{BIAS} must be stored contiguous"),
        (replace_dataset(BIAS, external=[("other.bin", 0, 16)]), f"{BIAS} must be stored contiguous"),
        (unknown_filter, f"{BIAS} must be stored contiguous"),
        (lambda f: replace_dataset(BIAS, data=[f.ref] * 4, dtype=h5py.ref_dtype)(f), f"{BIAS} must be .* not object"),
        (replace_dataset(BIAS, data=None, shape=(4,), dtype="<f4"), f"{BIAS} is not stored whole"),
        (virtual, f"{BIAS} must be stored contiguous"),
        (link(BIAS, h5py.SoftLink("/parameters/block1.project.bn.bias")), f"{BIAS} is a link"),
        (link(BIAS, h5py.ExternalLink("other.h5", "x")), f"{BIAS} is a link"),
        (link("parameters", h5py.SoftLink("/self_test")), "parameters is a link"),
        (link("self_test", h5py.ExternalLink("other.h5", "/self_test")), "self_test is a link"),
        (link("self_test/embedding", h5py.SoftLink("/self_test/input")), "self_test/embedding is a link"),
        (lambda f: (f.__delitem__(BIAS), f.create_group(BIAS)), f"{BIAS} is not of the right kind"),
        (set_value(BIAS, np.nan), f"{BIAS} has values that are not finite"),
        (set_value("self_test/input", np.inf), "self_test/input has values that are not finite"),
        (set_value("parameters/stem.bn.running_var", -1), "a variance below 0"),
        (set_attribute("format", np.bytes_("other")), "not an alnumpy weights file"),
        (lambda f: f.attrs.__delitem__("format"), "attribute format is missing"),
        (set_attribute("version", np.int64(3)), "format version 3, but this alnumpy reads up to 2; update alnumpy"),
        (set_attribute("metadata", "text of variable length"), "attribute metadata must be"),
        (set_attribute("metadata", np.bytes_("x" * 60_001)), "attribute metadata must be .* at most 60000 bytes"),
        (set_attribute("version", np.ones(1, int)), "attribute version must be a number"),
        (set_attribute("metadata", np.bytes_("{")), "metadata is damaged"),
        (set_attribute("metadata", np.bytes_("[" * 50_000)), "metadata is damaged"),
        (set_attribute("metadata", np.bytes_("[]")), "metadata must have the fields"),
        (change_metadata(b'"stem": 4', b'"stem": 4000'), "the spec asks for at least"),
        (change_metadata(b'"stem": 4', b'"stem": 99999'), "stem must be"),
        (change_metadata(b'"size": 9', b'"size": -9'), "size must be"),
        (change_metadata(b'"data": "none"', b'"data": 3'), "must be texts"),
        (change_metadata(b'"self_test_size": 9', b'"self_test_size": 8'), r"input must be float32 \(1, 3, 8, 8\)"),
        (change_metadata(b'"self_test_size": 9', b'"self_test_size": 65'), "self_test_size must be from 1 to 64"),
        (change_metadata(b'"self_test_size": 9', b'"self_test_size": 0'), "self_test_size must be"),
        (change_metadata(b'"self_test_size": 9', b'"self_test_size": true'), "self_test_size must be"),
        (change_metadata(b'"self_test_size": 9', b'"self_test_size": "9"'), "self_test_size must be"),
        (change_metadata(b'"cbam": "max', b'"cbam": "min'), "cbam must be"),
        (change_metadata(b'"size": 9, "mean": [0.1', b'"size": 9, "mean": [0.4'), "the checksum does not match"),
        (set_value(BIAS, 0.125), "the checksum does not match: the file is damaged; get it again"),
        (set_value("self_test/embedding", 0.125), "the checksum does not match"),
    ],
)
def test_every_change_is_named(path, change, message, monkeypatch):
    monkeypatch.chdir(path.parent)  # the external storage of one change is there
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.read(path)
    assert str(path) in str(caught.value)


def test_truncated_files_are_refused(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 997):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"w\.h5"):
            weights.read(path)


def plain(found):
    """Everything that a file holds, for comparisons."""
    arrays = {**found.parameters, "input": found.self_test_input, "embedding": found.self_test_embedding}
    others = replace(found, parameters={}, self_test_input=None, self_test_embedding=None)
    return others, {name: array.tobytes() for name, array in arrays.items()}


def test_flipped_bits_are_refused_or_change_nothing(path):
    whole, good = path.read_bytes(), plain(weights.read(path))
    refused = 0
    for position in range(0, len(whole), 211):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert plain(weights.read(path)) == good
        except WeightsError:
            refused += 1
    assert refused > len(whole) / 211 / 4


def test_older_files_without_a_checksum_are_read(path):
    good = plain(weights.read(path))
    with h5py.File(path, "r+") as file:
        del file.attrs["checksum"]
    assert plain(weights.read(path)) == good


def external_storage(file):
    array = file[BIAS][()]
    array.tofile("marker")
    replace_dataset(BIAS, data=None, shape=(4,), dtype="<f4", external=[("marker", 0, 16)])(file)


def external_link(file):
    with h5py.File("marker", "w") as marker:
        marker["x"] = file[BIAS][()]
    link(BIAS, h5py.ExternalLink("marker", "x"))(file)


def external_group(file):
    with h5py.File("marker", "w") as marker:
        file.copy("self_test", marker)
    link("self_test", h5py.ExternalLink("marker", "/self_test"))(file)


def virtual_data_set(file):
    with h5py.File("marker", "w") as marker:
        marker["x"] = file[BIAS][()]
    virtual(file, "marker")


@pytest.mark.parametrize("change", [external_storage, external_link, external_group, virtual_data_set])
def test_no_other_file_is_read(path, change, monkeypatch):
    """The marker holds valid data; the file system records when it was last read."""
    monkeypatch.chdir(path.parent)
    with h5py.File(path, "r+") as file:
        change(file)
    os.utime("marker", (0, 1))
    with pytest.raises(WeightsError):
        weights.read(path)
    assert os.stat("marker").st_atime == 0
    with h5py.File(path, locking=False) as file:  # HDF5 does this by itself
        file[BIAS][()], file["self_test/input"][()]
    if os.stat("marker").st_atime == 0:
        pytest.skip("this file system does not keep the time of reading")


def huge_spec(file):
    """The spec asks for a quarter of a gigabyte, which gzip compresses to almost nothing."""
    change_metadata(b'"embedding": 6', b'"embedding": 8192')(file)
    for name, shape in parameters(replace(SPEC, embedding=8192).layers()).items():
        if file["parameters"][name].shape != shape:
            replace_dataset(f"parameters/{name}", data=None, shape=shape, dtype="<f4", compression="gzip")(file)


def huge_array(file):
    replace_dataset(BIAS, data=None, shape=(10**9,), dtype="<f4", compression="gzip")(file)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux, which tells the peak of memory")
@pytest.mark.parametrize(
    ("change", "message"),
    [(huge_spec, "the spec asks for at least"), (huge_array, f"{BIAS} must be float32 or float16")],
)
def test_a_bomb_takes_no_memory(path, change, message):
    with h5py.File(path, "r+") as file:
        change(file)
    assert path.stat().st_size < 100_000
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmHWM")
    with pytest.raises(WeightsError, match=message):
        weights.read(path)
    assert memory("VmHWM") - before < 1_000_000


def test_a_fifo_or_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo.h5")  # opening it would wait for ever
    for path in (tmp_path / "fifo.h5", tmp_path):
        with pytest.raises(WeightsError, match="no such file"):
            weights.read(path)


def test_read_only_files_are_read(path):
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert weights.read(path).spec == SPEC
    finally:
        path.parent.chmod(0o700)


def test_metadata_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="bytes of metadata, at most 60000"):
        weights.write(tmp_path / "w.h5", replace(make(), card={"a": "b" * 60_000}))


@pytest.mark.parametrize("content", [b"", b"not hdf5", None])
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "w.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.h5"):
        weights.read(path)


def test_the_default_weights_ship_and_verify():
    assert Embedder(weights.read(weights.default_path())).self_test().relative_error <= 1e-5
