"""Reads the tensors of a PyTorch checkpoint without torch, and without executing anything that the file says.

Three containers: what ``torch.save`` writes since PyTorch 1.6 (a zip archive with a pickle), a TorchScript archive (the
same with the pickle of a module), and safetensors. The pickle is read by an unpickler that knows a fixed table of
names; every other name is refused. The tensors come back in the file's order, under the file's names.
"""

from __future__ import annotations

import io
import json
import pickle
import stat
import zipfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from alnumpy.errors import AlnumpyError

MAX_PICKLE = 1 << 20  # bytes; ALNet's is 40 kB
MAX_DEPTH = 64  # of dictionaries and modules in each other
MAX_NAME = 1000  # characters of one tensor's name
MAX_INDEX = 1 << 40  # for sizes, offsets and strides, so that their products are exact
MAX_TENSORS = 1 << 28  # bytes of all storages together, and of the file
MAX_ENTRIES = 10_000  # of an archive, and tensors
ADVICE = "save it again with torch.save(model.state_dict(), PATH)"

# Storage types of torch, by the name in the pickle: element type in NumPy. bfloat16 is the high half of a float32.
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


class CheckpointError(AlnumpyError):
    """A checkpoint is damaged, of an unknown format, or asks for something that is never done."""


@dataclass
class Checkpoint:
    """Tensors by name in the file's order, and the entries beside them that alnumpy's own training writes."""

    tensors: dict[str, np.ndarray]
    ordered: bool = True  # false where the file does not keep the order in which the modules were made
    extras: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a .pt, .pth, TorchScript or safetensors file. Raises CheckpointError or OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
        raise CheckpointError("not a regular file")
    if found.st_size > MAX_TENSORS:
        raise CheckpointError(f"{found.st_size} bytes, more than the {MAX_TENSORS} that are read; {ADVICE}")
    with open(path, "rb") as file:
        head = file.read(16)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_archive(archive, found.st_size)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # zipfile meets damage with BadZipFile, OSError, RuntimeError, struct.error and others
        raise CheckpointError(f"damaged archive ({type(error).__name__}: {error})") from None
    if path.suffix == ".safetensors":
        return Checkpoint(_read_safetensors(path), ordered=False)
    if head[:1] == b"\x80":
        raise CheckpointError(f"written by PyTorch before 1.6 or by plain pickle; {ADVICE} in a newer PyTorch")
    raise CheckpointError("neither a PyTorch zip archive nor a .safetensors file")


# Element types of safetensors, by their name in the header.
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
SAFETENSORS |= {"I8": "<i1", "U8": "<u1", "BOOL": "?"}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The container of the safetensors project: header length (8 bytes), header (JSON), then the tensors' bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        if start > min(len(data), MAX_PICKLE):
            raise ValueError(f"a header of {start - 8} bytes")
        tensors = {}
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            kind, shape, (begin, end) = SAFETENSORS[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if not all(type(v) is int and 0 <= v <= MAX_INDEX for v in (*shape, begin, end)) or start + end > len(data):
                raise ValueError(f"{name} points outside the file")
            tensors[name] = _as_numpy(data[start + begin : start + end], kind).reshape(shape)
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"damaged safetensors file ({type(error).__name__}: {error})") from None


def _as_numpy(data: bytes, kind: str) -> np.ndarray:
    """Bytes as a flat array; bfloat16, which NumPy lacks, as float32."""
    if kind != "bfloat16":
        return np.frombuffer(data, kind)
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for an object of another class: its fields are kept as plain attributes, nothing of it is ever called."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise CheckpointError("a tensor without a storage")
    counts = all(type(v) is int and 0 <= v <= MAX_INDEX for v in (offset, *shape, *stride))
    if not counts or len(shape) != len(stride) or len(shape) > 8:
        raise CheckpointError("a tensor whose offset, shape or stride are not counts")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


class _Dict(dict):
    """A dictionary whose attributes cannot be set: a state dict's pickle gives it some (_metadata)."""

    def __init__(self) -> None:  # items come one by one, through the unpickler's own check
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _names() -> dict[tuple[str, str], Any]:
    """What a pickle may name. Made anew for each file, since a pickle can set attributes on what it is handed."""
    return {
        ("collections", "OrderedDict"): lambda: _Dict(),
        ("torch", "Size"): lambda sizes=(): tuple(sizes),
        ("torch", "device"): lambda *_: _Inert(),
        ("torch._utils", "_rebuild_tensor"): lambda *a: _rebuild_tensor(*a),
        ("torch._utils", "_rebuild_tensor_v2"): lambda *a: _rebuild_tensor(*a),
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        ("torch.jit._pickle", "build_intlist"): lambda value: value,
        ("argparse", "Namespace"): type(
            "Namespace", (_Inert,), {}
        ),  # what training scripts save along, and NumPy numbers
        ("numpy", "dtype"): lambda *_: _Inert(),
        ("numpy.core.multiarray", "scalar"): lambda *_: _Inert(),
        ("numpy._core.multiarray", "scalar"): lambda *_: _Inert(),
        ("_codecs", "encode"): lambda *_: _Inert(),
        **{("torch", name): name for name in STORAGES},
    }


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C overflows its stack on a tuple of tuples that is a dictionary key, and its
    memo grows with the largest index that a file names."""

    stack: list[Any]

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def _check_keys(self, keys: list[Any]) -> None:
        if not all(type(key) in (str, int) for key in keys):
            raise CheckpointError("the pickle has a dictionary with keys other than names and numbers")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.names = _names()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.names:
            return self.names[module, name]
        if module == "__torch__" or module.startswith("__torch__."):  # TorchScript: the module tree
            return type("Module", (_Inert,), {})
        raise CheckpointError(
            f"the pickle names {module}.{name}, which no tensor needs; nothing was executed. If the file holds a whole "
            f"module, or other objects beside the tensors, {ADVICE}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise CheckpointError("an unknown persistent id")
        _, kind, key, _, size = pid
        if kind not in STORAGES or type(key) is not str or type(size) is not int or size < 0:
            raise CheckpointError(f"an unknown storage: {kind!r}")
        return _Storage(kind, key, size)


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> Checkpoint:
    infos = archive.infolist()
    names = {info.filename for info in infos}
    if len(infos) > MAX_ENTRIES or len(names) != len(infos):
        raise CheckpointError("the archive has duplicate names, or absurdly many")
    roots = [name[: -len("data.pkl")] for name in names if name.endswith("data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError("the archive holds no data.pkl: not written by torch.save or torch.jit.save")
    root = roots[0]

    def read(name: str, most: int) -> bytes:
        if name not in names:
            raise CheckpointError(f"the archive has no entry {name}")
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # so no entry is larger in memory than the file
            raise CheckpointError(f"entry {name} is compressed, which PyTorch never does")
        if not 0 <= info.file_size <= min(most, file_size):
            raise CheckpointError(f"entry {name} has an absurd size of {info.file_size} bytes")
        return archive.read(info)

    if root + "byteorder" in names and read(root + "byteorder", 16) != b"little":
        raise CheckpointError("written on a big-endian machine, which is not supported")
    data = read(root + "data.pkl", MAX_PICKLE)
    try:
        loaded = _Unpickler(data).load()
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can raise anything from the table's entries; nothing else was called
        raise CheckpointError(f"the pickle is damaged ({type(error).__name__}: {error})") from None

    extras: dict[str, Any] = {}
    if isinstance(loaded, dict):
        for key in ("state_dict", "model_state_dict", "model", "net"):
            if isinstance(loaded.get(key), dict):
                extras = {k: v for k, v in loaded.items() if k in ("spec", "preprocessing", "epoch", "accuracy")}
                loaded = loaded[key]
                break
    elif not isinstance(loaded, _Inert):
        raise CheckpointError(f"the file holds a {type(loaded).__name__}, not a state dict; {ADVICE}")

    storages: dict[str, bytes] = {}
    tensors: dict[str, np.ndarray] = {}
    left = MAX_TENSORS
    for name, tensor in _flatten(loaded):
        key = tensor.storage.key
        if key not in storages:
            storages[key] = read(f"{root}data/{key}", left)
            left -= len(storages[key])
        left -= 8 * prod(tensor.shape)
        if left < 0:
            raise CheckpointError(f"{name}: more than {MAX_TENSORS} bytes of tensors")
        tensors[name] = _materialise(name, tensor, storages[key])
    return Checkpoint(tensors, extras=extras)


def _flatten(loaded: Any) -> list[tuple[str, _Tensor]]:
    """Tensors of a state dict or a TorchScript module tree, by dotted names. No recursion: depth is the file's."""
    result: list[tuple[str, _Tensor]] = []
    tensors: set[_Tensor] = set()  # a module can be reached by two names; the first one counts
    seen: set[int] = set()
    pending: list[tuple[str, Any, int]] = [("", loaded, 0)]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, _Tensor):
            if value.shape and value in tensors:
                continue
            tensors.add(value)
            result.append((name, value))
            if len(result) > MAX_ENTRIES:
                raise CheckpointError(f"more than {MAX_ENTRIES} tensors")
        elif isinstance(value, (dict, _Inert)) and id(value) not in seen:
            seen.add(id(value))
            members = value if isinstance(value, dict) else vars(value)
            prefix = f"{name}." if name else ""
            if depth > MAX_DEPTH or any(len(prefix) + len(str(key)) > MAX_NAME for key in members):
                raise CheckpointError("the file nests its objects absurdly deep, or has absurdly long names")
            pending += [(f"{prefix}{key}", member, depth + 1) for key, member in reversed(list(members.items()))]
    return result


def _materialise(name: str, tensor: _Tensor, data: bytes) -> np.ndarray:
    """The tensor as an array of its own; every index is checked to lie inside the storage."""
    kind = STORAGES[tensor.storage.kind]
    itemsize = 2 if kind == "bfloat16" else np.dtype(kind).itemsize
    if tensor.storage.size * itemsize != len(data):
        raise CheckpointError(f"{name}: the storage has {len(data)} bytes, not {tensor.storage.size} elements")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    if prod(tensor.shape) and last >= tensor.storage.size:
        raise CheckpointError(f"{name}: offset and stride point outside the storage")
    flat = _as_numpy(data, kind)[tensor.offset :]
    strides = [stride * flat.itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False).copy()
