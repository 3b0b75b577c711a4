"""The weights file: HDF5, written whole or not at all, and trusted only as far as it was checked.

Layout, format version 1:

    /                      attributes ``format`` ("alnumpy weights"), ``version`` (1), ``metadata`` (JSON), ``checksum``
    /parameters/NAME       one array for each name of ``layers.parameters``, float32 or float16
    /self_test/input       float32 (1, 3, S, S): a preprocessed picture
    /self_test/embedding   float32 (1, spec.embedding): what torch computed for it, or alnumpy where no torch was

Metadata holds the spec, the preprocessing, the source checkpoint's name and SHA-256, what computed the self-test, and
the model card's fields. The checksum is the CRC-32 of the metadata, then of all arrays in the order of the spec, then
of the self-test's; it tells damage, not malice, and a file made before there was one is read without. All arrays are
stored contiguous and unfiltered, so a file can be at most twice as large in memory (float16 as float32) as on disk.
"""

from __future__ import annotations

import dataclasses
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
from .files import replacing
from .images import Preprocessing
from .layers import parameters
from .networks import Spec

if TYPE_CHECKING:
    import h5py

FORMAT = "alnumpy weights"
VERSION = 1
DEFAULT = "alnet-photo.h5"
MAX_METADATA = 60_000  # bytes; an HDF5 attribute holds 64 KiB
MAX_BYTES = 256_000_000  # of parameters: three hundred ALNets
METADATA_FIELDS = {"spec", "preprocessing", "source", "source_sha256", "self_test_by", "card"}
DTYPES = (np.dtype("<f4"), np.dtype("<f2"))


@dataclass(frozen=True)
class Weights:
    """A network with its arrays, all float32 in memory, and what is needed to use and to check them."""

    spec: Spec
    preprocessing: Preprocessing
    parameters: Mapping[str, np.ndarray]
    self_test_input: np.ndarray
    self_test_embedding: np.ndarray
    self_test_by: str  # "torch 2.13.0", or "alnumpy" where no torch was there
    source: str = ""
    source_sha256: str = ""
    card: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"  # of the parameters in the file


def default_path() -> Path:
    """The weights that ship with alnumpy: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    shipped = package / "pretrained" / DEFAULT
    return shipped if shipped.exists() else package.parent / "weights" / DEFAULT


def self_test_size(preprocessing: Preprocessing) -> int:
    """Side of the self-test's input in pixels: the network's own, but small enough to keep the file small."""
    return min(preprocessing.size, 64)


def self_test_picture(size: int) -> np.ndarray:
    """Input for a self-test, float32 (1, 3, size, size): waves of three frequencies, one a channel."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(2 * np.pi * (f * x + (4 - f) * y * y) + f) for f in (1, 2, 3)]
    return np.stack(waves)[None].astype(np.float32)


def write(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes a weights file, whole or not at all (see ``files.replacing``).

    Parameters are stored as ``weights.dtype``. Raises OSError where the folder cannot be written to, WeightsError where
    the arrays do not fit the spec or are not finite.
    """
    import h5py

    metadata = json.dumps(
        {
            "spec": weights.spec.to_dict(),
            "preprocessing": dataclasses.asdict(weights.preprocessing),
            "source": weights.source,
            "source_sha256": weights.source_sha256,
            "self_test_by": weights.self_test_by,
            "card": dict(weights.card),
        }
    ).encode()
    if len(metadata) > MAX_METADATA:
        raise WeightsError(f"{path}: {len(metadata)} bytes of metadata, at most {MAX_METADATA} fit; shorten the card")
    shapes = parameters(weights.spec.layers())
    if {name: array.shape for name, array in weights.parameters.items()} != shapes:
        raise WeightsError(f"{path}: the arrays do not fit the spec")
    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(weights.parameters[name], weights.dtype) for name in shapes}
    self_test = {
        "input": np.ascontiguousarray(weights.self_test_input, "<f4"),
        "embedding": np.ascontiguousarray(weights.self_test_embedding, "<f4"),
    }
    try:
        _check_values(arrays, self_test)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error} as {weights.dtype}; nothing was written") from None

    with replacing(path) as target, h5py.File(target, "w") as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = np.int64(VERSION)
        file.attrs["metadata"] = np.bytes_(metadata)
        file.attrs["checksum"] = np.int64(_checksum(metadata, arrays, self_test))
        group = file.create_group("parameters")
        for name, array in arrays.items():
            group.create_dataset(name, data=array)
        group = file.create_group("self_test")
        for name, array in self_test.items():
            group.create_dataset(name, data=array)


def read(path: str | os.PathLike[str]) -> Weights:
    """Reads and checks a weights file. Raises WeightsError, which names the file and the item at fault."""
    import h5py

    name = os.fspath(path)
    if not os.path.isfile(name):  # also keeps HDF5 from waiting on a FIFO
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
        raise WeightsError("not an alnumpy weights file; make one with tools/convert_weights.py")
    version = _attribute(file, "version", 8)
    if version != VERSION:
        raise WeightsError(f"format version {version}, but this alnumpy reads {VERSION}; update alnumpy")
    text = _attribute(file, "metadata", MAX_METADATA)
    with _damage("metadata"):
        metadata = json.loads(text)
    if not isinstance(metadata, dict) or set(metadata) != METADATA_FIELDS:
        raise WeightsError(f"metadata must have the fields {', '.join(sorted(METADATA_FIELDS))}")
    texts = {key: metadata[key] for key in ("source", "source_sha256", "self_test_by")}
    card = metadata["card"]
    if not isinstance(card, dict) or not all(isinstance(t, str) for t in (*texts.values(), *card.values())):
        raise WeightsError("metadata: the card and the source must be texts")
    spec = Spec.from_dict(metadata["spec"])
    if not isinstance(metadata["preprocessing"], dict):
        raise WeightsError("metadata: preprocessing must be a table of fields")
    preprocessing = Preprocessing.from_dict(metadata["preprocessing"])

    shapes = parameters(spec.layers())
    needed = 2 * sum(prod(shape) for shape in shapes.values())
    if needed > min(MAX_BYTES, file_size):
        raise WeightsError(f"the spec asks for at least {needed} bytes of parameters, the file has {file_size}")
    arrays = _read_group(file, "parameters", shapes, DTYPES)
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) != 1:
        raise WeightsError("parameters: float32 and float16 are mixed")
    size = self_test_size(preprocessing)
    self_test = _read_group(
        file, "self_test", {"input": (1, 3, size, size), "embedding": (1, spec.embedding)}, DTYPES[:1]
    )
    _check_values(arrays, self_test)
    if "checksum" in file.attrs and _attribute(file, "checksum", 8) != _checksum(text, arrays, self_test):
        raise WeightsError("the checksum does not match: the file is damaged; get it again, or convert it again")
    return Weights(
        spec=spec,
        preprocessing=preprocessing,
        parameters={name: np.asarray(array, np.float32) for name, array in arrays.items()},
        self_test_input=self_test["input"],
        self_test_embedding=self_test["embedding"],
        card=card,
        dtype=dtypes.pop().name,
        **texts,
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
    file: h5py.File, group_name: str, shapes: Mapping[str, tuple[int, ...]], dtypes: tuple[np.dtype, ...]
) -> dict[str, np.ndarray]:
    """All arrays of a group, checked to be exactly the expected ones before any is read.

    By h5py's low-level interface, which for a hundred and fifty small arrays is several times faster.
    """
    from h5py import h5d, h5g, h5s

    group = _open(file.id, group_name, group_name, h5g.open)
    if group.get_num_objs() > len(shapes) + 16:
        raise WeightsError(f"{group_name} holds {group.get_num_objs()} items, the spec knows {len(shapes)}")
    if unknown := {os.fsdecode(name) for name in group} - set(shapes):
        raise WeightsError(f"{group_name} holds items that the spec does not know: {sorted(unknown)[:3]}")
    datasets = {}
    for name, shape in shapes.items():
        item = f"{group_name}/{name}"
        dataset = datasets[name] = _open(group, name, item, h5d.open)
        if dataset.shape != shape or dataset.dtype not in dtypes:
            wanted = " or ".join(dtype.name for dtype in dtypes)
            raise WeightsError(f"{item} must be {wanted} {shape}, not {dataset.dtype} {dataset.shape}")
        layout = dataset.get_create_plist()
        if layout.get_layout() != h5d.CONTIGUOUS or layout.get_nfilters() or layout.get_external_count():
            raise WeightsError(f"{item} must be stored contiguous in this file, without filters")
        if dataset.get_storage_size() != prod(shape) * dataset.dtype.itemsize:
            raise WeightsError(f"{item} is not stored whole")
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


def _check_values(arrays: Mapping[str, np.ndarray], self_test: Mapping[str, np.ndarray]) -> None:
    """What a network can compute with, and a self-test that can fail; the same for reading and for writing."""
    named = {f"parameters/{k}": a for k, a in arrays.items()} | {f"self_test/{k}": a for k, a in self_test.items()}
    for name, array in named.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{name} has values that are not finite")
        if name.endswith("running_var") and array.min() < 0:
            raise WeightsError(f"{name} has a variance below 0")
    if not self_test["embedding"].any():
        raise WeightsError("self_test/embedding is zero: these weights compute nothing")
