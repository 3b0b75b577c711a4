"""The weights file: HDF5, written whole or not at all, and trusted only as far as it was checked.

Layout, format version 1, or 2 where there are scales:

    /                      attributes ``format`` ("alnumpy weights"), ``version``, ``metadata`` (JSON), ``checksum``
    /parameters/NAME       one array for each name of ``layers.parameters``, float32 or float16; in version 2 float32,
                           but int8 where it has more than one axis
    /scales/NAME           float32 (outputs,): what an int8 array is to be multiplied by, for each of its outputs
    /self_test/input       float32 (1, 3, S, S): a preprocessed picture
    /self_test/embedding   float32 (1, spec.embedding): its embedding, computed by torch, or by alnumpy without torch

Metadata holds the spec, the preprocessing, the source checkpoint's name and SHA-256, the program that computed the
self-test, ``self_test_size`` S, the model card's fields, and ``normalize`` if embeddings are to be compared by their
directions only. The checksum is the CRC-32 of the metadata, then of all arrays in the order of the spec, then of the
scales, then of the self-test's; it detects damage, not malice, and older files without one are read. All arrays are
stored contiguous and unfiltered, so the arrays take at most four times the file's size in memory (int8 read as
float32).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import SpecError, WeightsError
from .files import data_folder, replacing
from .images import Preprocessing
from .layers import parameters
from .networks import Spec

if TYPE_CHECKING:
    import h5py

FORMAT = "alnumpy weights"
VERSION = 1
SCALED_VERSION = 2  # the version of a file with scales
DEFAULT = "alnet-photo.h5"
MAX_METADATA = 60_000  # bytes; an HDF5 attribute holds 64 KiB
MAX_BYTES = 256_000_000  # bytes of parameters: three hundred ALNets
METADATA_FIELDS = {"spec", "preprocessing", "source", "source_sha256", "self_test_by", "card"}
OPTIONAL_FIELDS = {"normalize", "self_test_size"}
LARGEST_SELF_TEST = 64  # pixels
DTYPES = ("float32", "float16", "int8")
FLOAT32, FLOAT16, INT8 = np.dtype("<f4"), np.dtype("<f2"), np.dtype("i1")
LARGEST_CODE = 127


@dataclass(frozen=True)
class Weights:
    """A network with its arrays, all float32 in memory, and everything needed to use and to check them."""

    spec: Spec
    preprocessing: Preprocessing
    parameters: Mapping[str, np.ndarray]  # not to be changed in place: kernels compute with a packed copy
    self_test_input: np.ndarray
    self_test_embedding: np.ndarray
    self_test_by: str  # "torch 2.13.0", or "alnumpy" if torch was not installed
    source: str = ""
    source_sha256: str = ""
    card: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"  # number format of the parameters in the file: one of DTYPES
    normalize: bool = False  # whether to divide embeddings by their L2 norms before they are compared


def default_path() -> Path:
    """The weights that ship with alnumpy: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    shipped = package / "pretrained" / DEFAULT
    return shipped if shipped.exists() else package.parent / "weights" / DEFAULT


def folders() -> list[Path]:
    """Where weights are found by name: those that ship with alnumpy, $ALNUMPY_WEIGHTS, the user's data folder."""
    own = os.environ.get("ALNUMPY_WEIGHTS")
    return [default_path().parent, *([Path(own)] if own else []), data_folder() / "weights"]


def available() -> dict[str, Path]:
    """The weights files that have a name, by name."""
    files = [path for folder in folders() for path in sorted(folder.glob("*.h5"))]
    named = {path.stem: path for path in reversed(files)}  # the first folder comes first
    return dict(sorted(named.items()))


def locate(weights: str | os.PathLike[str] | None = None) -> Path:
    """The file that ``weights`` means: a file's path, a name, or None for the default ones that ship with alnumpy.

    A name is a text without a separator or a suffix. Raises WeightsError for an unknown name.
    """
    if weights is None:
        return default_path()
    text = os.fspath(weights)
    if not isinstance(weights, str) or not text or os.path.basename(text) != text or os.path.splitext(text)[1]:
        return Path(text)
    named = available()
    if text not in named:
        known = ", ".join(sorted(named))
        raise WeightsError(f"{text}: no weights have this name; there are {known}. For a file in this folder: ./{text}")
    return named[text]


def self_test_size(preprocessing: Preprocessing) -> int:
    """Side in pixels of a new self-test's input: the network's own, but small enough to keep the file small."""
    return min(preprocessing.size, 48)


def self_test_picture(size: int) -> np.ndarray:
    """Input for a self-test, float32 (1, 3, size, size): waves of three frequencies, one per channel."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(2 * np.pi * (f * x + (4 - f) * y * y) + f) for f in (1, 2, 3)]
    return np.stack(waves)[None].astype(np.float32)


def quantize(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (outputs, ...) as int8 of the same shape, and for each output what to multiply them by, float32.

    The largest magnitude of each output becomes 127.
    """
    rows = array.reshape(len(array), -1)
    scales = (np.abs(rows).max(1) / LARGEST_CODE).astype(FLOAT32)
    codes = np.rint(rows / np.where(scales > 0, scales, 1)[:, None]).clip(-LARGEST_CODE, LARGEST_CODE)
    return codes.astype(INT8).reshape(array.shape), scales


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The inverse of ``quantize``, but for rounding: float32."""
    values: np.ndarray = codes.astype(np.float32) * scales.reshape(-1, *[1] * (codes.ndim - 1))
    return values


def _stored(arrays: Mapping[str, np.ndarray], dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters as they are stored in a file of ``dtype``, and their scales."""
    if dtype != "int8":
        with np.errstate(over="ignore"):
            return {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}, {}
    pairs = {name: quantize(np.asarray(array, np.float32)) for name, array in arrays.items() if array.ndim > 1}
    stored = {name: pairs[name][0] if name in pairs else np.ascontiguousarray(a, FLOAT32) for name, a in arrays.items()}
    return stored, {name: scales for name, (_, scales) in pairs.items()}


def _restored(arrays: Mapping[str, np.ndarray], scales: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of ``_stored``, but for rounding: float32."""
    return {
        name: dequantize(array, scales[name]) if name in scales else np.asarray(array, np.float32)
        for name, array in arrays.items()
    }


def rounded(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Parameters float32 as they come back from a file of ``dtype``."""
    return _restored(*_stored(arrays, dtype))


def describe(weights: Weights) -> dict[str, Any]:
    """The metadata of weights: all but their arrays and the number format."""
    return {
        "spec": weights.spec.to_dict(),
        "preprocessing": weights.preprocessing.to_dict(),
        "source": weights.source,
        "source_sha256": weights.source_sha256,
        "self_test_by": weights.self_test_by,
        "self_test_size": weights.self_test_input.shape[-1],
        "card": dict(weights.card),
    } | ({"normalize": True} if weights.normalize else {})


def described(metadata: Any) -> tuple[dict[str, Any], int]:
    """The fields of ``Weights`` that metadata holds, and the side of the self-test's input.

    Raises WeightsError or SpecError for anything that ``describe`` would not write.
    """
    if not isinstance(metadata, dict) or set(metadata) - OPTIONAL_FIELDS != METADATA_FIELDS:
        raise WeightsError(f"metadata must have the fields {', '.join(sorted(METADATA_FIELDS))}")
    texts = {key: metadata[key] for key in ("source", "source_sha256", "self_test_by")}
    card = metadata["card"]
    if not isinstance(card, dict) or not all(isinstance(t, str) for t in (*texts.values(), *card.values())):
        raise WeightsError("metadata: the card and the source must be texts")
    normalize = metadata.get("normalize", False)
    if not isinstance(normalize, bool):
        raise WeightsError("metadata: normalize must be true or false")
    spec = Spec.from_dict(metadata["spec"])
    if not isinstance(metadata["preprocessing"], dict):
        raise WeightsError("metadata: preprocessing must be a table of fields")
    preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
    size = metadata.get("self_test_size", min(preprocessing.size, LARGEST_SELF_TEST))  # the first files have no field
    if type(size) is not int or not 1 <= size <= LARGEST_SELF_TEST:
        raise WeightsError(f"metadata: self_test_size must be from 1 to {LARGEST_SELF_TEST}, not {size!r}")
    fields = {"spec": spec, "preprocessing": preprocessing, "card": card, "normalize": normalize}
    return fields | texts, size


def identity_text(preprocessing: Preprocessing, normalize: bool, decode: str) -> str:
    """What an embedding depends on besides the network, as JSON."""
    return json.dumps([preprocessing.to_dict(), normalize, decode], sort_keys=True)


def identity(spec: Spec, parameters: Mapping[str, np.ndarray], text: str) -> str:
    """The digest of ``Embedder.identity``; ``text`` is what ``identity_text`` returns."""
    import hashlib

    digest = hashlib.sha256(f"[{json.dumps(spec.to_dict(), sort_keys=True)}, {text[1:]}".encode())
    for name, array in sorted(parameters.items()):
        digest.update(name.encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


def write(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes a weights file, whole or not at all (see ``files.replacing``).

    Parameters are stored as ``weights.dtype``. Raises OSError if the folder cannot be written to, WeightsError if
    the arrays do not fit the spec or are not finite.
    """
    import h5py

    metadata = json.dumps(describe(weights)).encode()
    if len(metadata) > MAX_METADATA:
        raise WeightsError(f"{path}: {len(metadata)} bytes of metadata, at most {MAX_METADATA} fit; shorten the card")
    shapes = parameters(weights.spec.layers())
    if {name: array.shape for name, array in weights.parameters.items()} != shapes:
        raise WeightsError(f"{path}: the arrays do not fit the spec")
    arrays, scales = _stored({name: weights.parameters[name] for name in shapes}, weights.dtype)
    self_test = {
        "input": np.ascontiguousarray(weights.self_test_input, "<f4"),
        "embedding": np.ascontiguousarray(weights.self_test_embedding, "<f4"),
    }
    try:
        _check_values(arrays, scales, self_test)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error} as {weights.dtype}; nothing was written") from None

    # The format of HDF5 1.8 is read by every HDF5 in use and takes less room for many small arrays.
    with replacing(path) as target, h5py.File(target, "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = np.int64(SCALED_VERSION if scales else VERSION)
        file.attrs["metadata"] = np.bytes_(metadata)
        file.attrs["checksum"] = np.int64(_checksum(metadata, arrays, scales, self_test))
        for group_name, members in (("parameters", arrays), ("scales", scales), ("self_test", self_test)):
            if members:
                group = file.create_group(group_name)
                for name, array in members.items():
                    group.create_dataset(name, data=array)


def read(path: str | os.PathLike[str]) -> Weights:
    """Reads and checks a weights file. Raises WeightsError, which names the file and the item at fault."""
    import h5py

    name = os.fspath(path)
    if not os.path.isfile(name):  # HDF5 would wait for a FIFO as well
        raise WeightsError(f"{name}: no such file")
    try:
        with h5py.File(name, "r", locking=False) as file:  # no locking: read-only media have none
            return _read(file, os.path.getsize(name))
    except (WeightsError, SpecError) as error:
        raise WeightsError(f"{name}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # HDF5 meets damage with OSError, KeyError, RuntimeError, ValueError and others
        raise WeightsError(f"{name}: not an HDF5 file, or damaged ({error})") from None


def _read(file: h5py.File, file_size: int) -> Weights:
    if _attribute(file, "format", 64) != FORMAT.encode():
        raise WeightsError("not an alnumpy weights file; make one with alnumpy convert")
    version = _attribute(file, "version", 8)
    if version not in (VERSION, SCALED_VERSION):
        raise WeightsError(f"format version {version}, but this alnumpy reads up to {SCALED_VERSION}; update alnumpy")
    scaled = version == SCALED_VERSION
    text = _attribute(file, "metadata", MAX_METADATA)
    with _damage("metadata"):
        metadata = json.loads(text)
    fields, size = described(metadata)
    spec = fields["spec"]
    shapes = parameters(spec.layers())
    needed = (1 if scaled else 2) * sum(prod(shape) for shape in shapes.values())
    if needed > min(MAX_BYTES, file_size):
        raise WeightsError(f"the spec asks for at least {needed} bytes of parameters, the file has {file_size}")
    kinds = {
        name: (INT8 if len(shape) > 1 else FLOAT32,) if scaled else (FLOAT32, FLOAT16) for name, shape in shapes.items()
    }
    arrays = _read_group(file, "parameters", shapes, kinds)
    lengths = {name: shape[:1] for name, shape in shapes.items() if len(shape) > 1 and scaled}
    scales = _read_group(file, "scales", lengths, dict.fromkeys(lengths, (FLOAT32,))) if scaled else {}
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) != 1 and not scaled:
        raise WeightsError("parameters: float32 and float16 are mixed")
    test_shapes = {"input": (1, 3, size, size), "embedding": (1, spec.embedding)}
    self_test = _read_group(file, "self_test", test_shapes, dict.fromkeys(test_shapes, (FLOAT32,)))
    _check_values(arrays, scales, self_test)
    if "checksum" in file.attrs and _attribute(file, "checksum", 8) != _checksum(text, arrays, scales, self_test):
        raise WeightsError("the checksum does not match: the file is damaged; get it again, or convert it again")
    return Weights(
        parameters=_restored(arrays, scales),
        self_test_input=self_test["input"],
        self_test_embedding=self_test["embedding"],
        dtype="int8" if scaled else dtypes.pop().name,
        **fields,
    )


def _checksum(metadata: bytes, *groups: Mapping[str, np.ndarray]) -> int:
    checksum = zlib.crc32(metadata)
    for array in (array for group in groups for array in group.values()):
        checksum = zlib.crc32(array.data, checksum)
    return checksum


@contextmanager
def _damage(item: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{item} is damaged: {error}") from None


def _attribute(file: h5py.File, name: str, most: int) -> Any:
    """A scalar attribute of a fixed-length type. Variable-length ones are refused: their size is unknown until read."""
    import h5py

    if name not in file.attrs:
        raise WeightsError(f"attribute {name} is missing; this is not an alnumpy weights file")
    attribute = h5py.h5a.open(file.id, name.encode())
    if attribute.shape != () or attribute.dtype.kind not in "Si" or attribute.get_storage_size() > most:
        raise WeightsError(f"attribute {name} must be a number or a text of fixed length, at most {most} bytes")
    return file.attrs[name]


def _read_group(
    file: h5py.File,
    group_name: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, tuple[np.dtype, ...]],
) -> dict[str, np.ndarray]:
    """All arrays of a group, checked to be exactly the expected ones before any is read.

    Uses h5py's low-level interface, which is several times faster for a hundred and fifty small arrays. Never lists
    names: before version 2, HDF5 frees memory twice when it lists a damaged group.
    """
    from h5py import h5d, h5g, h5s

    group = _open(file.id, group_name, group_name, h5g.open)
    datasets = {}
    for name, shape in shapes.items():
        item = f"{group_name}/{name}"
        dataset = datasets[name] = _open(group, name, item, h5d.open)
        if dataset.shape != shape or dataset.dtype not in dtypes[name]:
            wanted = " or ".join(dtype.name for dtype in dtypes[name])
            raise WeightsError(f"{item} must be {wanted} {shape}, not {dataset.dtype} {dataset.shape}")
        layout = dataset.get_create_plist()
        if layout.get_layout() != h5d.CONTIGUOUS or layout.get_nfilters() or layout.get_external_count():
            raise WeightsError(f"{item} must be stored contiguous in this file, without filters")
        if dataset.get_storage_size() != prod(shape) * dataset.dtype.itemsize:
            raise WeightsError(f"{item} is not stored whole")
    if (count := group.get_num_objs()) > len(shapes):
        raise WeightsError(f"{group_name} holds {count} items, {count - len(shapes)} more than the spec knows")
    arrays = {name: np.empty(shapes[name], dataset.dtype) for name, dataset in datasets.items()}
    for name, dataset in datasets.items():
        dataset.read(h5s.ALL, h5s.ALL, arrays[name])
    return arrays


def _open(parent: Any, name: str, item: str, opener: Any) -> Any:
    """A member of a group, refusing links that lead elsewhere: soft and external ones."""
    from h5py import h5l

    if not parent.links.exists(name.encode()):
        raise WeightsError(f"{item} is missing")
    if parent.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise WeightsError(f"{item} is a link, which is not allowed")
    try:
        return opener(parent, name.encode())
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{item} is not of the right kind: {error}") from None


def _check_values(
    arrays: Mapping[str, np.ndarray], scales: Mapping[str, np.ndarray], self_test: Mapping[str, np.ndarray]
) -> None:
    """Checks that a network can compute with the values and that the self-test can fail, in reading and in writing."""
    groups = {"parameters": arrays, "scales": scales, "self_test": self_test}
    named = {f"{group}/{k}": a for group, members in groups.items() for k, a in members.items()}
    for name, array in named.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{name} has values that are not finite")
        if name.endswith("running_var") and array.min() < 0:
            raise WeightsError(f"{name} has a variance below 0")
        if name.startswith("scales/") and array.min() < 0:
            raise WeightsError(f"{name} has a scale below 0")
    if not self_test["embedding"].any():
        raise WeightsError("self_test/embedding is zero: these weights compute nothing")
