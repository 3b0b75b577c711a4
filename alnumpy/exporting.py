"""A gallery as a file for other programs: Parquet, NumPy's npz, JSON lines or CSV, one row per picture."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from typing import IO, Any, NamedTuple

import numpy as np

from . import packed
from .database import Database
from .errors import GalleryError, MissingExtraError
from .files import replacing
from .filters import TAKEN
from .places import Places
from .results import csv_line, in_base64, named, shortest
from .settings import Settings, bind

Array = np.ndarray

PART = 1024  # rows that are in memory at a time


class Row(NamedTuple):
    """A picture that can be found, as it is exported."""

    path: str
    hash: str  # SHA-256 in hexadecimal
    size: int  # in bytes
    date: str  # when it was taken according to EXIF, or else when the file was changed: ISO 8601, local time
    width: int  # pixels, upright
    height: int
    vector: Array  # float32 (dimension,)


class Rows:
    """The pictures of a gallery that can be found, by path; each iteration reads them anew, a part at a time."""

    def __init__(self, db: Database, settings: Settings):
        self.db = db
        self.settings = settings
        self.count = 0  # the rows of the latest iteration
        self.damaged: list[str] = []  # the paths that it left out

    def __iter__(self) -> Iterator[Row]:
        self.count, self.damaged = 0, []
        places, dtype = Places.of(self.db), self.settings.dtype
        length = packed.row_length(self.settings.dimension, dtype)
        when = TAKEN.format(taken="contents.taken" if self.db.has_column("contents", "taken") else "NULL")
        sql = (
            f"SELECT path, pictures.hash, size, {when}, width, height, embedding FROM pictures "
            "LEFT JOIN contents ON contents.hash = pictures.hash WHERE path > ? AND typeof(path) = 'blob' "
            "AND error IS NULL AND vanished = 0 ORDER BY path LIMIT ?"
        )
        last = b""
        while part := self.db.rows(sql, [last, PART]):
            if part[-1][0] <= last:  # otherwise a damaged index would lead in circles
                raise GalleryError(f"{self.db.path}: damaged; restore it, or move it away and index again")
            for last, hash, size, date, width, height, blob in part:
                path = places.path(last)
                if isinstance(hash, bytes) and isinstance(blob, bytes) and len(blob) == length:
                    stored = np.frombuffer(blob, np.uint8)[None]
                    numbers = all(isinstance(number, int) for number in (size, width, height))
                    if numbers and np.isfinite(packed.squared_norms(stored, dtype)[0]):
                        date = date if isinstance(date, str) else ""
                        self.count += 1
                        yield Row(path, hash.hex(), size, date, width, height, packed.decode(stored, dtype)[0])
                        continue
                self.damaged.append(path)


def export(gallery: str | os.PathLike[str], path: str | os.PathLike[str], format: str) -> tuple[int, list[str]]:
    """Writes the pictures of a gallery that can be found, by path, as a file for other programs.

    Each row has path, hash, size, date, width, height and vector, float32 whatever the gallery's dtype. A name that is
    not UTF-8 has U+FFFD in ``path``; ``path_base64`` has all its bytes.

    Parameters:
        gallery: the gallery's file; it is not changed.
        path: the file to write, which appears whole or not at all.
        format: "parquet", "npz", "jsonl" or "csv".

    Returns:
        The number of rows, and the paths of pictures that are left out because their rows are damaged.

    Raises:
        GalleryError: if the gallery is missing, damaged or empty.
        MissingExtraError: for "parquet" without the extra of that name.
        OSError: if the file cannot be written.

    Example:
        >>> from alnumpy.exporting import export
        >>> export("pictures.db", "pictures.npz", "npz")
        (3, [])
        >>> sorted(np.load("pictures.npz", allow_pickle=False))
        ['date', 'hash', 'height', 'path', 'path_base64', 'size', 'vector', 'width']
    """
    write = WRITERS[format]
    if format == "parquet":
        _pyarrow()
    with closing(Database(gallery, False)) as db, db.reading():
        rows = Rows(db, bind(db, None, "", {})[0])
        with replacing(path) as file:
            write(file, rows)
        return rows.count, rows.damaged


def write_jsonl(file: IO[bytes], rows: Rows) -> None:
    """One JSON object per line."""
    for row in rows:
        fields = row._asdict() | named("path", row.path) | {"vector": shortest(row.vector)}
        file.write(json.dumps(fields).encode() + b"\n")


def write_csv(file: IO[bytes], rows: Rows) -> None:
    """One line per picture, with a header; the vector in one column, as a JSON list."""
    file.write(csv_line([*Row._fields, "path_base64"]))
    for row in rows:
        file.write(csv_line([*row[:-1], json.dumps(shortest(row.vector)), in_base64(row.path)]))


def write_npz(file: IO[bytes], rows: Rows) -> None:
    """An array per field, rows first. Read twice: an array's head says how many rows follow and how long texts are."""
    widths = dict.fromkeys(("path", "hash", "date", "path_base64"), 1)
    for row in rows:
        fields = _fields(row)
        widths = {name: max(width, len(fields[name])) for name, width in widths.items()}
    count = rows.count
    dtypes = {name: f"<U{width}" for name, width in widths.items()} | dict.fromkeys(("size", "width", "height"), "<i8")
    with ExitStack() as stack, zipfile.ZipFile(file, "w") as archive:
        beside = os.path.dirname(os.path.realpath(file.name)) if os.path.isfile(file.name) else None  # or a pipe
        spools = {name: stack.enter_context(tempfile.TemporaryFile(dir=beside)) for name in dtypes}
        with archive.open("vector.npy", "w", force_zip64=True) as member:
            _write_head(member, "<f4", (count, rows.settings.dimension))
            for part in _parts(rows):
                member.write(np.stack([row.vector for row in part]).astype("<f4").tobytes())
                columns = [_fields(row) for row in part]
                for name, dtype in dtypes.items():
                    spools[name].write(np.array([fields[name] for fields in columns], dtype).tobytes())
        for name, spool in spools.items():
            spool.seek(0)
            how = zipfile.ZipInfo(f"{name}.npy")
            how.compress_type = zipfile.ZIP_DEFLATED  # texts of NumPy are as long as the longest
            with archive.open(how, "w", force_zip64=True) as member:
                _write_head(member, dtypes[name], (count,))
                shutil.copyfileobj(spool, member)


def write_parquet(file: IO[bytes], rows: Rows) -> None:
    """Parquet, with the vector as a list of fixed size."""
    pa, parquet = _pyarrow()
    texts, numbers = ("path", "hash", "date", "path_base64"), ("size", "width", "height")
    types = dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.int64())
    types["vector"] = pa.list_(pa.float32(), rows.settings.dimension)
    schema = pa.schema([(name, types[name]) for name in (*Row._fields, "path_base64")])
    few = rows.settings.dtype != "float32"  # few distinct numbers in a vector, for which a dictionary pays
    with parquet.ParquetWriter(file, schema, use_dictionary=few) as writer:
        for part in _parts(rows):
            columns = [_fields(row) for row in part]
            arrays = {name: pa.array([fields[name] for fields in columns], types[name]) for name in texts + numbers}
            flat = pa.array(np.concatenate([row.vector for row in part]))
            arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, rows.settings.dimension)
            writer.write_table(pa.table(arrays).select(schema.names).cast(schema))


WRITERS: dict[str, Callable[[IO[bytes], Rows], None]] = {
    "parquet": write_parquet,
    "npz": write_npz,
    "jsonl": write_jsonl,
    "csv": write_csv,
}


def _parts(rows: Rows) -> Iterator[list[Row]]:
    several = iter(rows)
    while part := list(islice(several, PART)):
        yield part


def _fields(row: Row) -> dict[str, Any]:
    """A row's fields but the vector, with ``path_base64``, which is empty for a name that is UTF-8."""
    fields = {"path_base64": ""} | row._asdict() | named("path", row.path)
    del fields["vector"]
    return fields


def _write_head(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    """The first bytes of a .npy file."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'alnumpy[parquet]'") from None
    return pyarrow, parquet
