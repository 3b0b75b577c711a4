"""Reads the tensors of a PyTorch checkpoint without torch, and without executing anything from the file.

Four containers: what ``torch.save`` writes since PyTorch 1.6 (a zip archive with a pickle) and what it wrote before
(five pickles in a row, then the storages), a TorchScript archive (a zip archive with the pickle of a module), and
safetensors. Pickles are read by an unpickler that knows a fixed table of names; every other name is refused. The
tensors come back in the file's order, under the file's names.
"""

from __future__ import annotations

import io
import json
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np

from .errors import AlnumpyError

MAX_PICKLE = 1 << 20  # bytes; ALNet's is 40 kB
MAX_DEPTH = 64  # dictionaries and modules nested in each other
MAX_NESTED = 4  # dictionaries around a state dict
MAX_NAME = 1000  # characters of one tensor's name
MAX_INDEX = 1 << 40  # for sizes, offsets and strides, so that their products are exact
MAX_TENSORS = 1 << 28  # bytes of all storages together, and of the file
MAX_ENTRIES = 10_000  # entries of an archive; tensors
LEGACY_NUMBER = 0x1950A86A20F9469CFC6C  # the first object in a file of PyTorch before 1.6
LEGACY_VERSION = 1001  # and the second
ADVICE = "save it again with torch.save(model.state_dict(), PATH)"
STATE_DICTS = ("state_dict", "model_state_dict", "model", "net")  # names that training scripts give a network's tensors

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
    """A checkpoint is damaged, of an unknown format, or asks for code to be executed."""


@dataclass
class Checkpoint:
    """Tensors by name in the file's order, and the entries beside them that alnumpy's own training writes."""

    tensors: dict[str, np.ndarray]
    ordered: bool = True  # false where the file does not keep the order in which the modules were made
    extras: dict[str, Any] = field(default_factory=dict)
    chosen: str = ""  # the dictionary that was taken, if the file has several
    others: tuple[str, ...] = ()  # the dictionaries that were not taken


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a .pt, .pth, TorchScript or safetensors file. Raises CheckpointError or OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
        raise CheckpointError("not a regular file")
    if found.st_size > MAX_TENSORS:
        raise CheckpointError(f"{found.st_size} bytes, more than the {MAX_TENSORS} that are read; {ADVICE}")
    with open(path, "rb") as file:
        head = file.read(16)
        if head[:1] == b"\x80":  # checked first: zip archives are recognised by their end, which may be anything here
            file.seek(0)
            return _read_legacy(file, found.st_size)
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
    raise CheckpointError(_unknown(path))


def _unknown(path: Path) -> str:
    """What a file that is not a checkpoint seems to be, and what to do."""
    if path.suffix == ".onnx":
        return (
            f"an ONNX model, which keeps no modules; convert the PyTorch checkpoint that it was exported from: {ADVICE}"
        )
    if path.suffix in (".pb", ".tflite"):
        return "a TensorFlow graph, which cannot be converted; look for a PyTorch checkpoint of the same network"
    if path.suffix in (".npy", ".bin", ".ckpt"):
        return f"not a file of torch.save; of the PyTorch model, {ADVICE}"
    return "neither a PyTorch checkpoint nor a .safetensors file"


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
            if not all(map(_is_count, (*shape, begin, end))) or start + end > len(data):
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
    whole: int  # elements in the file
    start: int  # the first element of the part that is used
    size: int  # elements of that part


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for an object of another class: its fields become plain attributes, and nothing in it is ever called."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INDEX


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise CheckpointError("a tensor without a storage")
    counts = all(map(_is_count, (offset, *shape, *stride)))
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
    memo: dict[int, Any]

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

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.names = _names()
        self.kinds: dict[str, str] = {}  # element types of the storages named so far, by key

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
        if isinstance(pid, tuple) and pid[:1] == ("module",):
            raise CheckpointError(f"the file holds a whole module, whose code would have to be run; {ADVICE}")
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise CheckpointError("an unknown persistent id")
        _, kind, key, _, whole, *view = pid
        if type(kind) is not str or kind not in STORAGES or type(key) is not str or not _is_count(whole):
            raise CheckpointError(f"an unknown storage: {kind!r}")
        if self.kinds.setdefault(key, kind) != kind:
            raise CheckpointError(f"storage {key} is of two types")
        if view in ([], [None]):
            return _Storage(kind, key, whole, 0, whole)
        if not (isinstance(view[0], tuple) and len(view[0]) == 3 and all(map(_is_count, view[0][1:]))):
            raise CheckpointError("an unknown view of a storage")
        _, start, size = view[0]
        return _Storage(kind, key, whole, start, size)


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> Checkpoint:
    infos = archive.infolist()
    names = {info.filename for info in infos}
    if len(infos) > MAX_ENTRIES or len(names) != len(infos):
        raise CheckpointError("the archive has duplicate names, or absurdly many")
    roots = [name[: -len("data.pkl")] for name in names if name.endswith("data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(_unknown_archive(names))
    root = roots[0]

    def read(name: str, most: int) -> bytes:
        if name not in names:
            raise CheckpointError(f"the archive has no entry {name}")
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # ensures that no entry is larger in memory than in the file
            raise CheckpointError(f"entry {name} is compressed, which PyTorch never does")
        if not 0 <= info.file_size <= min(most, file_size):
            raise CheckpointError(f"entry {name} has an absurd size of {info.file_size} bytes")
        return archive.read(info)

    if root + "byteorder" in names and read(root + "byteorder", 16) != b"little":
        raise CheckpointError("written on a big-endian machine, which is not supported")
    loaded = _load(_Unpickler(io.BytesIO(read(root + "data.pkl", MAX_PICKLE))))
    return _collect(loaded, lambda storage, most: read(f"{root}data/{storage.key}", most))


def _unknown_archive(names: set[str]) -> str:
    """What a zip archive without data.pkl seems to be, and what to do."""
    if any(name.endswith("archive_format") or name == "serialized_exported_program.json" for name in names):
        return (
            f"a program of torch.export, whose tensors lost their modules; of the model that it was made from, {ADVICE}"
        )
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy arrays (.npz), which --against takes; of the PyTorch model, {ADVICE}"
    if "model.weights.h5" in names:
        return "a model of Keras, which cannot be converted; look for a PyTorch checkpoint of the same network"
    return "the archive holds no data.pkl: not written by torch.save or torch.jit.save"


def _load(unpickler: _Unpickler) -> Any:
    """The next pickle of its file."""
    unpickler.memo.clear()  # it numbers the objects of one pickle
    try:
        return unpickler.load()
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can raise anything from the table's entries; nothing else was called
        raise CheckpointError(f"the pickle is damaged ({type(error).__name__}: {error})") from None


class _Limited:
    """A file of which at most MAX_PICKLE bytes can be read, so that a pickle cannot declare the whole file one text."""

    def __init__(self, file: IO[bytes]):
        self.file, self.left = file, MAX_PICKLE

    def read(self, size: int) -> bytes:
        return self._count(self.file.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        return self._count(self.file.readline(self.left + 1))

    def _count(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise CheckpointError(f"its pickles are larger than {MAX_PICKLE} bytes")
        return data


def _read_legacy(file: IO[bytes], file_size: int) -> Checkpoint:
    """The tensors of a file that torch.save wrote before PyTorch 1.6.

    Five pickles: a number, the protocol's version, the machine's sizes, the object, the storages' keys. Then for each
    key, in this order, the count of elements (8 bytes) and the elements.
    """
    limited: Any = _Limited(file)
    unpickler = _Unpickler(limited)
    if _load(unpickler) != LEGACY_NUMBER:
        raise CheckpointError(f"a plain pickle, not a file of torch.save; {ADVICE}")
    version, system = _load(unpickler), _load(unpickler)
    if version != LEGACY_VERSION or not isinstance(system, dict):
        raise CheckpointError("begins like a checkpoint of PyTorch before 1.6, but does not continue like one")
    if system.get("little_endian") is not True:
        raise CheckpointError("written on a big-endian machine, which is not supported")
    loaded, keys = _load(unpickler), _load(unpickler)
    if not isinstance(keys, list) or len(keys) > MAX_ENTRIES or not all(type(key) is str for key in keys):
        raise CheckpointError("its list of storages is damaged")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        count = file.read(8)
        kind = unpickler.kinds.get(key)
        if len(count) < 8 or kind is None or key in places:
            raise CheckpointError(f"storage {key[:MAX_NAME]} is cut off, or belongs to no tensor")
        start, length = file.tell(), struct.unpack("<q", count)[0] * _itemsize(kind)
        if not 0 <= length <= file_size - start:
            raise CheckpointError(
                f"storage {key[:MAX_NAME]} is cut off: {length} bytes, only {file_size - start} are there"
            )
        places[key] = start, length
        file.seek(start + length)

    def read(storage: _Storage, most: int) -> bytes:
        if storage.key not in places:
            raise CheckpointError(f"storage {storage.key[:MAX_NAME]} is missing")
        start, length = places[storage.key]
        if length > most:
            raise CheckpointError(f"more than {MAX_TENSORS} bytes of tensors")
        file.seek(start)
        return file.read(length)

    return _collect(loaded, read)


def _collect(loaded: Any, read: Callable[[_Storage, int], bytes]) -> Checkpoint:
    """The tensors in the object of a pickle; ``read(storage, most)`` returns a storage's bytes, at most ``most``."""
    if not isinstance(loaded, (dict, _Inert)):
        raise CheckpointError(f"the file holds a {type(loaded).__name__}, not a state dict; {ADVICE}")
    found = Checkpoint({})
    loaded = _descend(loaded, found)

    storages: dict[str, bytes] = {}
    left = MAX_TENSORS
    for name, tensor in _flatten(loaded):
        key = tensor.storage.key
        if key not in storages:
            storages[key] = read(tensor.storage, left)
            left -= len(storages[key])
        left -= 8 * prod(tensor.shape)
        if left < 0:
            raise CheckpointError(f"{name}: more than {MAX_TENSORS} bytes of tensors")
        found.tensors[name] = _materialise(name, tensor, storages[key])
    return found


def _descend(loaded: Any, found: Checkpoint) -> Any:
    """The network's tensors in what a training script saved; ``found`` gets the entries beside them.

    They are the dictionary with a usual name, or else the only one with tensors that are not an average of earlier
    ones (ema).
    """
    for _ in range(MAX_NESTED):
        members = loaded if isinstance(loaded, dict) else {}
        inner = [k for k, v in members.items() if type(k) is str and len(k) <= MAX_NAME and isinstance(v, dict)]
        distinct = {id(members[key]): members[key] for key in inner}  # many names can lead to one large dictionary
        holding = {identity for identity, value in distinct.items() if _has_tensors(value)}
        states = [key for key in inner if id(members[key]) in holding]
        plain = [key for key in states or inner if "ema" not in key.lower()] or states or inner
        usual = [key for key in STATE_DICTS if key in plain]
        if not usual and (len(plain) != 1 or _has_tensors(members)):
            found.others = found.others or tuple(plain)
            break
        key = (usual or plain)[0]
        found.extras = {k: v for k, v in members.items() if k in ("spec", "preprocessing", "epoch", "accuracy")}
        found.chosen, found.others = key, tuple(other for other in states if other != key)
        loaded = members[key]
    return loaded


def _has_tensors(members: dict) -> bool:
    return any(isinstance(value, _Tensor) for value in members.values())


def _flatten(loaded: Any) -> list[tuple[str, _Tensor]]:
    """Tensors of a state dict or a TorchScript module tree, by dotted names. Not recursive: the file sets the depth."""
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
    storage, itemsize = tensor.storage, _itemsize(tensor.storage.kind)
    if storage.whole * itemsize != len(data) or storage.start + storage.size > storage.whole:
        raise CheckpointError(f"{name}: the storage has {len(data)} bytes, not {storage.whole} elements")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    if prod(tensor.shape) and last >= storage.size:
        raise CheckpointError(f"{name}: offset and stride point outside the storage")
    flat = _as_numpy(data, STORAGES[storage.kind])[storage.start + tensor.offset :]
    strides = [stride * flat.itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False).copy()


def _itemsize(kind: str) -> int:
    """Bytes of an element in the file."""
    return 2 if STORAGES[kind] == "bfloat16" else np.dtype(STORAGES[kind]).itemsize
