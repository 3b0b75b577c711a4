"""Weights as the compiled kernels take them, kept in the cache folder: a start needs neither HDF5 nor packing.

The cache folder has a file for each of the weights files that were loaded last, made on first use and made anew when
the weights file or alnumpy changes. It holds metadata, the self-test, the packed weights and the digests by which
galleries know them, no more: tables and offsets are always computed. What is damaged, foreign or does not fit counts as
absent, so that the folder can be removed at any time.

Layout: ``HEAD`` (magic, length of the header, CRC-32 of all that follows), the header (JSON), zeros up to a cache line,
then float32, little-endian: the packed weights, the self-test's input and embedding.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, arena, layers, lower, networks, weights
from .arena import aligned_zeros, round_up
from .errors import SpecError, UnsupportedError, WeightsError
from .files import cache_folder, replacing
from .kernels import abi
from .lower import Program
from .weights import Weights

HEAD = struct.Struct("<8sII")
MAGIC = b"alnpack1"
CACHE_LINE = 64  # bytes
LARGEST = 4 * weights.MAX_BYTES  # no packed weights are larger
KEPT = 16  # files that are kept; of more, those that were made first are removed
CODE = (abi, arena, layers, lower, networks, weights)  # the modules that decide on what is kept

Array = np.ndarray


class Parameters(Mapping[str, Array]):
    """The arrays of a weights file, which is read when the first of them is asked for; most uses need only the program.

    Reading raises WeightsError if the file has changed since.
    """

    def __init__(self, origin: list[Any], program: Program, identities: Mapping[str, str]) -> None:
        self.path, self.origin, self.program = str(origin[0]), origin, program
        self.identities = identities  # digests of ``weights.identity`` by its text

    @cached_property
    def arrays(self) -> Mapping[str, Array]:
        found = weights.read(self.path).parameters
        if origin(self.path) != self.origin:
            raise WeightsError(f"{self.path}: changed while it was in use; start again")
        return found

    def __reduce__(self) -> tuple[Any, ...]:  # whoever unpickles it may not have the file
        return dict, (dict(self),)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def read(path: str | os.PathLike[str]) -> Weights:
    """What ``weights.read`` returns, from the cache folder if it is there; otherwise it is put there.

    Raises WeightsError as that does.
    """
    name, folder = os.fspath(path), cache_folder()
    try:
        wanted = origin(name)
    except (OSError, ValueError):  # no such weights file, or no code to compare with: modules may lie in an archive
        folder = None
    if folder is None:
        return weights.read(path)
    # Each machine that shares the folder has a file of its own, since it may number files in another way.
    kept = folder / f"{Path(name).stem}-{zlib.crc32(json.dumps(wanted).encode()):08x}.packed"
    found = read_kept(kept, wanted)
    if found is None:
        found = weights.read(path)
        # Nothing is kept of a network without kernels, and nothing where the folder cannot be written to.
        with suppress(UnsupportedError, OSError):
            parameters = Parameters(wanted, lower.lower(found.spec, found.parameters), {})
            parameters.arrays = found.parameters  # not to be read again
            found = replace(found, parameters=parameters)
            if origin(name) == wanted:
                write(kept, wanted, found, parameters.program.weights)
                _tidy(folder)
    return found


def origin(path: str) -> list[Any]:
    """What kept weights depend on: the weights file, as the system describes it, and alnumpy. Raises OSError."""
    of = os.stat(path)
    code = [[status.st_size, status.st_mtime_ns] for status in (os.stat(str(module.__file__)) for module in CODE)]
    return [os.path.realpath(path), of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_ino, __version__, code]


def write(kept: Path, wanted: list[Any], found: Weights, packed: Array) -> None:
    """Keeps weights. Raises OSError."""
    texts = [weights.identity_text(found.preprocessing, *choice) for choice in product((False, True), ("full", "fast"))]
    about = {
        "origin": wanted,
        "dtype": found.dtype,
        "metadata": weights.describe(found),
        "identities": {text: weights.identity(found.spec, found.parameters, text) for text in texts},
    }
    header = json.dumps(about).encode()
    padding = bytes(-(HEAD.size + len(header)) % CACHE_LINE)
    arrays = packed, found.self_test_input, found.self_test_embedding
    body = b"".join([header, padding, *(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)])
    for folder in (kept.parent.parent, kept.parent):  # ~/.cache and ~/.cache/alnumpy, but no home where there is none
        folder.mkdir(mode=0o700, exist_ok=True)
    with replacing(kept, 0o600) as file:
        file.write(HEAD.pack(MAGIC, len(header), zlib.crc32(body)))
        file.write(body)


def _tidy(folder: Path) -> None:
    """Removes files beyond ``KEPT``. Raises OSError."""
    files = sorted(folder.glob("*.packed"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)


def read_kept(kept: Path, wanted: list[Any]) -> Weights | None:
    """The weights that a file keeps; None if there is no such file, or not of these weights."""
    try:
        with open(kept, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                return None
            room = aligned_zeros(size // 4)
            content = room.view(np.uint8).data
            file.readinto(content)
        magic, length, checksum = HEAD.unpack_from(content)
        if magic != MAGIC or zlib.crc32(content[HEAD.size :]) != checksum:
            return None
        header = json.loads(bytes(content[HEAD.size : HEAD.size + length]))
        if header["origin"] != wanted:
            return None
        fields, side = weights.described(header["metadata"])
        shapes = {"input": (1, 3, side, side), "embedding": (1, fields["spec"].embedding)}
        rest = room[round_up(HEAD.size + length, CACHE_LINE) // 4 :]
        for name, shape in reversed(shapes.items()):
            rest, last = np.split(rest, [max(0, len(rest) - prod(shape))])
            fields[f"self_test_{name}"] = last.reshape(shape)
        identities = {str(text): str(digest) for text, digest in header["identities"].items()}
        parameters = Parameters(wanted, lower.lower(fields["spec"], {}, rest), identities)
        return Weights(parameters=parameters, dtype=str(header["dtype"]), **fields)
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error,
        SpecError, UnsupportedError, WeightsError,
    ):  # fmt: skip
        return None
