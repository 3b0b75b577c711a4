"""Number formats of embeddings."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing

import numpy as np
import pytest

from alnumpy import packed
from alnumpy.database import Database
from alnumpy.packed import decode, encode, row_length, squared_norms


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0), ("float16", 2**-11), ("int8", 0.5 / 127)])
def test_number_formats(dtype, bound):
    vectors = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32)
    vectors[3] = 0
    vectors[4] *= 1000
    rows = encode(vectors, dtype)
    assert (rows.dtype, rows.shape) == (np.uint8, (50, row_length(24, dtype)))
    back = decode(rows, dtype)
    assert back.dtype == np.float32
    error = np.abs(back - vectors)
    largest = np.abs(vectors) if dtype == "float16" else np.abs(vectors).max(1, keepdims=True)
    assert (error <= bound * largest * 1.0001 + 1e-7 * (dtype == "float16")).all()
    tiny = np.array([[2.6e-43, -2.6e-43]], np.float32)
    assert (np.sign(decode(encode(tiny, dtype), dtype)) * np.sign(tiny) >= 0).all()
    for bad in (np.nan, np.inf, -np.inf, -1e30):  # the last one's square is not finite
        vectors[5, 7] = bad
        assert list(np.flatnonzero(~np.isfinite(squared_norms(encode(vectors, dtype), dtype)))) == [5]


def test_number_formats_save_space(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(600, 1280)).astype(np.float32)
    sizes = {}
    for dtype in packed.DTYPES:
        with closing(Database(tmp_path / dtype, writable=True)) as db, db.transaction():
            for i, row in enumerate(encode(vectors, dtype)):
                digest = hashlib.sha256(row).digest()
                db.run(
                    "INSERT INTO contents (hash, width, height, embedding) VALUES (?, 640, 480, ?)",
                    [digest, row.tobytes()],
                )
                db.run(
                    "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, 1, 1, ?, '', 0)",
                    [b"/home/pictures/%09d.jpg" % i, digest],
                )
        sizes[dtype] = os.path.getsize(tmp_path / dtype)
    assert sizes["float32"] < 1.2 * vectors.nbytes
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < 0.36 * sizes["float32"]


@pytest.mark.parametrize("flushes", [True, False])
def test_every_float16_is_converted_as_numpy_does(monkeypatch, flushes):
    """The conversion is the same on CPUs that take the smallest float32 for 0."""
    if flushes:
        monkeypatch.setattr(packed, "_flushes", lambda: True)
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    np.testing.assert_array_equal(decode(every[None].view(np.uint8), "float16")[0], every.astype(np.float32))
