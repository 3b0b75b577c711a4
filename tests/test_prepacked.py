"""Weights kept in the cache folder: the same results, and nothing but the weights file counts."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import struct
import sys
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import random_params
from galleries import small_weights

import alnumpy
from alnumpy import kernels, prepacked, weights
from alnumpy.embedder import Embedder
from alnumpy.errors import WeightsError
from alnumpy.lower import lower
from alnumpy.networks import SPECS

pytestmark = pytest.mark.skipif(kernels.packaged()[0].path is None, reason="no compiled kernels run here")
X = np.random.default_rng(0).standard_normal((3, 3, 40, 33)).astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALNUMPY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    weights.write(tmp_path / "small.h5", small_weights())
    return str(tmp_path / "small.h5")


def forget(monkeypatch):
    """From here on, reading a weights file is an error."""

    def refuse(path):
        raise AssertionError("the weights file was read")

    monkeypatch.setattr(weights, "read", refuse)


def test_the_second_load_reads_no_weights_file_and_computes_the_same(cache, file, monkeypatch):
    first = alnumpy.load(file)
    made = weights.read(file)
    forget(monkeypatch)
    second = alnumpy.load(file)
    expected = Embedder(made, backend="compiled").forward(X)
    for embedder in (first, second):
        np.testing.assert_array_equal(embedder.forward(X), expected)
    for field in fields(made):
        if field.name != "parameters":
            np.testing.assert_equal(getattr(second.weights, field.name), getattr(made, field.name))
    for normalize in (False, True):
        for decode in ("full", "fast"):
            assert second.identity(normalize, decode) == Embedder(made).identity(normalize, decode)


def test_arrays_are_read_when_they_are_needed(cache, file):
    alnumpy.load(file)
    kept, made = alnumpy.load(file, size=20), small_weights()
    assert "arrays" not in vars(kept.weights.parameters)
    assert kept.identity(True, "full") == Embedder(made, size=20).identity(True, "full")  # another size is not kept
    np.testing.assert_equal(dict(kept.weights.parameters), dict(made.parameters))
    np.testing.assert_array_equal(
        alnumpy.load(file, backend="numpy").forward(X), Embedder(made, backend="numpy").forward(X)
    )
    moved = pickle.loads(pickle.dumps(alnumpy.load(file)))
    shutil.move(file, file + ".moved")
    np.testing.assert_array_equal(moved.forward(X), kept.forward(X))
    np.testing.assert_equal(dict(moved.weights.parameters), dict(made.parameters))


def test_a_changed_weights_file_is_read_anew(cache, file):
    old = alnumpy.load(file)
    kept = alnumpy.load(file)
    weights.write(file, small_weights(1))
    new = alnumpy.load(file)
    np.testing.assert_array_equal(new.forward(X), Embedder(small_weights(1), backend="compiled").forward(X))
    assert not np.array_equal(new.forward(X), old.forward(X))
    with pytest.raises(WeightsError, match=r"small\.h5: changed while it was in use"):
        kept.identity(True, "other")


def test_other_code_or_another_version_packs_anew(cache, file, monkeypatch):
    alnumpy.load(file)
    with monkeypatch.context() as patched:
        forget(patched)
        for name, value in (("CODE", prepacked.CODE[1:]), ("__version__", "0")):
            with patched.context() as once:
                once.setattr(prepacked, name, value)
                with pytest.raises(AssertionError, match="was read"):
                    alnumpy.load(file)
        alnumpy.load(file)


@pytest.mark.parametrize("item", range(1, 6))
def test_everything_that_is_said_of_the_origin_counts(cache, file, item):
    alnumpy.load(file)
    (kept,) = cache.iterdir()
    wanted = prepacked.origin(file)
    assert prepacked.read_kept(kept, wanted)
    assert prepacked.read_kept(kept, [*wanted[:item], "other", *wanted[item + 1 :]]) is None


def test_the_origin_tells_files_apart(file, tmp_path):
    first = prepacked.origin(file)
    copy = shutil.copy2(file, tmp_path / "copy.h5")
    os.replace(copy, file)  # name, size and time are as before
    second = prepacked.origin(file)
    assert (first[:3], first != second) == (second[:3], True)


def test_weights_that_are_replaced_while_they_are_read_are_not_kept(cache, file, monkeypatch):
    real = weights.read

    def replacing(path):
        found = real(path)
        weights.write(file, small_weights(1))
        return found

    monkeypatch.setattr(weights, "read", replacing)
    alnumpy.load(file)
    assert not cache.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_kept_files_are_private(cache, file):
    alnumpy.load(file)
    (kept,) = cache.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, kept)] == [0o700, 0o600]


def test_weights_with_other_arrays_do_not_keep_the_packed_ones(cache, file):
    alnumpy.load(file)
    kept = alnumpy.load(file).weights
    changed = replace(kept, parameters={name: array * 2 for name, array in kept.parameters.items()})
    expected = replace(small_weights(), parameters={name: a * 2 for name, a in small_weights().parameters.items()})
    results = [Embedder(each, backend="compiled").forward(X) for each in (changed, expected)]
    np.testing.assert_array_equal(*results)


def test_damage_counts_as_absence(cache, file):
    expected = alnumpy.load(file).forward(X)
    (kept,) = cache.iterdir()
    whole, wanted = kept.read_bytes(), prepacked.origin(file)
    assert prepacked.read_kept(kept, wanted)
    (length,) = struct.unpack_from("<8xI", whole)

    def signed(body):
        return whole[:12] + struct.pack("<I", zlib.crc32(body)) + body

    header, rest = whole[16 : 16 + length], whole[16 + length :]
    damaged = [
        b"",
        whole[:10],
        whole[:-1],
        whole[:-400] + bytes(400),
        whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
        b"x" + whole[1:],
        signed(header + rest[:64]),  # too short for the self-test
        signed(header + rest[:-64]),
        signed(header + rest + bytes(64)),
        signed(b"[" * length + rest),
        signed(header.replace(b'"input"', b'"inputs"').replace(b'"spec"', b'"spek"') + rest),
        signed(header.replace(b"float32", b"\xff\xff\xff\xff\xff\xff\xff") + rest),
        struct.pack("<8sII", b"alnpack1", 1 << 31, zlib.crc32(whole[16:])) + whole[16:],
    ]
    for content in damaged:
        kept.write_bytes(content)
        assert prepacked.read_kept(kept, wanted) is None
        np.testing.assert_array_equal(alnumpy.load(file).forward(X), expected)


def test_a_kept_file_that_is_too_large_counts_as_absent(cache, file):
    expected = alnumpy.load(file).forward(X)
    (kept,) = cache.iterdir()
    os.truncate(kept, 1 << 40)  # a sparse file
    np.testing.assert_array_equal(alnumpy.load(file).forward(X), expected)


def test_an_impossible_path_is_named(cache):
    with pytest.raises(WeightsError, match="no such file"):
        alnumpy.load("a\0b.h5")


def test_without_a_folder_nothing_is_kept(tmp_path, file, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "no" / "such" / "place"):
        monkeypatch.setenv("ALNUMPY_CACHE_DIR", str(folder))
        alnumpy.load(file).forward(X)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "small.h5"]


def test_only_the_last_files_are_kept(cache, file, tmp_path, monkeypatch):
    monkeypatch.setattr(prepacked, "KEPT", 3)
    for i in range(5):
        alnumpy.load(shutil.copy(file, tmp_path / f"copy{i}.h5"))
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["copy2", "copy3", "copy4"]


def test_a_missing_weights_file_is_named(cache, tmp_path):
    with pytest.raises(WeightsError, match=r"nothing\.h5: no such file"):
        alnumpy.load(tmp_path / "nothing.h5")


@pytest.mark.parametrize("name", SPECS)
def test_every_network_has_the_same_program_without_its_arrays(name):
    spec = SPECS[name]
    made = lower(spec, random_params(spec))
    again = lower(spec, {}, made.weights)
    assert again.weights is made.weights
    np.testing.assert_array_equal(again.tables, made.tables)
    np.testing.assert_array_equal(again.layout((64, 48)).steps, made.layout((64, 48)).steps)
    with pytest.raises(ValueError, match=f"{len(made.weights) - 1} packed weights, but the network has"):
        lower(spec, {}, made.weights[:-1])
