"""Checkpoints as PyTorch wrote them before 1.6: read like torch does, but without executing anything in them."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from alnumpy.checkpoint import MAX_PICKLE, CheckpointError, read_checkpoint  # noqa: E402


def save(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def parts(path):
    """The five pickles of a file, and the rest after them."""
    data, pickles = path.read_bytes(), []
    file = io.BytesIO(data)

    class Skip(pickle.Unpickler):
        def persistent_load(self, pid):
            return pid

        def find_class(self, module, name):
            return lambda *_: {}

    for _ in range(5):
        start = file.tell()
        Skip(file).load()
        pickles.append(data[start : file.tell()])
    return pickles, data[file.tell() :]


def state():
    base = torch.arange(24.0)
    return {
        "a.weight": torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)),
        "transposed": base.reshape(4, 6).T,
        "part": base[5:9],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base + 1),
    }


def test_tensors_are_those_that_torch_reads(tmp_path):
    path = save(state(), tmp_path / "c.pt")
    found, wanted = read_checkpoint(path), torch.load(path)
    assert found.ordered
    assert list(found.tensors) == list(wanted)
    for name, tensor in wanted.items():
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(found.tensors[name], wide.detach().numpy(), strict=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickles(tmp_path, protocol):
    path = tmp_path / "c.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    np.testing.assert_array_equal(read_checkpoint(path).tensors["part"], [5, 6, 7, 8])


def test_an_optimizer_beside_the_network_is_ignored(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 3, "optimizer": optimizer.state_dict(), "state_dict": model.state_dict()}
    found = read_checkpoint(save(checkpoint, tmp_path / "c.pt"))
    assert {name: array.shape for name, array in found.tensors.items()} == {"weight": (2, 3), "bias": (2,)}
    np.testing.assert_array_equal(found.tensors["bias"], model.bias.detach().numpy())
    assert found.extras == {"epoch": 3}


def test_a_view_of_a_storage(tmp_path):
    """PyTorch 0.3 wrote storages that are parts of others; the sixth field of the persistent id tells."""
    pickles, _ = parts(save({"x": torch.arange(4.0)}, tmp_path / "c.pt"))
    key = pickle.loads(pickles[4])[0]
    kind = b"ctorch\nFloatStorage\n"

    def pid(view):
        text = b"X" + struct.pack("<I", len(key)) + key.encode()
        return b"(X\x07\0\0\0storage" + kind + text + b"X\x03\0\0\0cpuK\x04" + view + b"t"

    def tensor(view):
        head = b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n("
        return head + pid(view) + b"QK\x00(K\x02t(K\x01t\x89Nt" + b"Rs."

    data = b"".join(pickles[:3]) + tensor(b"(X\x01\0\0\0vK\x01K\x02t") + pickles[4]
    path = tmp_path / "view.pt"
    path.write_bytes(data + struct.pack("<q4f", 4, 0, 1, 2, 3))
    np.testing.assert_array_equal(read_checkpoint(path).tensors["x"], [1, 2])
    for outside in (b"(X\x01\0\0\0vK\x03K\x02t", b"(X\x01\0\0\0vJ\xff\xff\xff\xffK\x02t", b"K\x05"):
        path.write_bytes(data.replace(b"(X\x01\0\0\0vK\x01K\x02t", outside) + struct.pack("<q4f", 4, 0, 1, 2, 3))
        with pytest.raises(CheckpointError, match="storage"):
            read_checkpoint(path)


def test_truncated_files_are_refused(tmp_path):
    whole = save(state(), tmp_path / "c.pt").read_bytes()
    for length in np.linspace(1, len(whole) - 1, 60).astype(int):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, 1002, "does not continue like one"),
        (2, {"little_endian": False}, "big-endian"),
        (2, [], "does not continue like one"),
        (4, "0", "list of storages"),
        (4, ["0", 1], "list of storages"),
        (4, ["other"], "cut off, or belongs to no tensor"),
        (4, [], "is missing"),
    ],
)
def test_the_parts_around_the_object_are_checked(tmp_path, position, value, message):
    path = save({"x": torch.arange(4.0)}, tmp_path / "c.pt")
    pickles, rest = parts(path)
    pickles[position] = pickle.dumps(value, 2)
    path.write_bytes(b"".join(pickles) + rest)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("count", [-1, 3, 5, 2**40, 2**63 - 1])
def test_an_impossible_count_of_elements_is_refused(tmp_path, count):
    path = save({"x": torch.arange(4.0)}, tmp_path / "c.pt")
    pickles, rest = parts(path)
    path.write_bytes(b"".join(pickles) + struct.pack("<q", count) + rest[8:])
    with pytest.raises(CheckpointError, match=r"cut off|elements"):
        read_checkpoint(path)


class Execute:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("position", range(5))
def test_nothing_is_executed(tmp_path, position):
    path = save({"x": torch.arange(4.0)}, tmp_path / "c.pt")
    pickles, rest = parts(path)
    pickles[position] = pickle.dumps(Execute(tmp_path / "executed"), 2)
    path.write_bytes(b"".join(pickles) + rest)
    with pytest.raises(CheckpointError, match=r"the pickle names (posix|nt).system"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module_is_refused_with_advice(tmp_path):
    with pytest.raises(CheckpointError, match=r"a whole module.* torch.save\(model.state_dict\(\), PATH\)"):
        read_checkpoint(save(torch.nn.Linear(2, 2), tmp_path / "c.pt"))


def test_a_pickle_without_an_end_takes_no_memory(tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(b"\x80\x02X" + struct.pack("<I", 3 * MAX_PICKLE) + b"a" * (3 * MAX_PICKLE) + b".")
    with pytest.raises(CheckpointError, match="pickles are larger"):
        read_checkpoint(path)
    path.write_bytes(b"\x80\x02c" + b"a" * (3 * MAX_PICKLE))  # a name, which ends with its line
    with pytest.raises(CheckpointError, match="pickles are larger"):
        read_checkpoint(path)
