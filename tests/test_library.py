"""Kernels that were compiled ahead of time: which library is chosen, and whether it computes what the sources say."""

from __future__ import annotations

import configparser
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import random_params

import alnumpy
from alnumpy import kernels, reference
from alnumpy.kernels import library
from alnumpy.kernels.abi import NUMBER
from alnumpy.kernels.library import FOLDER, Machine, choose
from alnumpy.lower import lower
from alnumpy.networks import SPECS

CHOICE, LEVEL = kernels.packaged()
here = pytest.mark.skipif(CHOICE.path is None, reason=f"no packaged kernels run here: {CHOICE.reason}")
FMA = {"aarch64", "riscv64", "x86-64-v3", "x86-64-v4"}  # ARMv7's vectors flush denormals, and SSE2 has no FMA

MACHINES = [  # system, processor, bits, what it has, library
    ("linux", "x86_64", 64, "", "linux-x86_64.so"),
    ("linux", "aarch64", 64, "", "linux-aarch64.so"),
    ("linux", "armv7l", 32, "neon", "linux-armv7.so"),
    ("linux", "armv8l", 32, "neon", "linux-armv7.so"),
    ("linux", "aarch64", 32, "neon", "linux-armv7.so"),  # 32-bit Raspberry Pi OS with a 64-bit kernel
    ("linux", "riscv64", 64, "", "linux-riscv64.so"),
    ("linux", "riscv64", 64, "vector", "linux-riscv64-v.so"),
    ("win32", "amd64", 64, "", "windows-x86_64.dll"),
    ("linux", "armv7l", 32, "", None),
    ("linux", "armv6l", 32, "", None),  # Raspberry Pi 1 and Zero
    ("linux", "i686", 32, "", None),
    ("linux", "x86_64", 32, "", None),
    ("linux", "s390x", 64, "", None),
    ("win32", "arm64", 64, "", None),
    ("win32", "x86", 32, "", None),
    ("darwin", "arm64", 64, "", None),  # not used until somebody has run it
    ("darwin", "x86_64", 64, "", None),
    ("freebsd14", "amd64", 64, "", None),
]


@pytest.mark.parametrize(("system", "name", "bits", "features", "wanted"), MACHINES)
def test_choice(monkeypatch, system, name, bits, features, wanted):
    monkeypatch.delenv("ALNUMPY_LIBRARY", raising=False)
    choice = choose(Machine(system, name, bits, lambda feature: feature in features))
    assert (choice.path and choice.path.name) == wanted
    assert choice.reason
    monkeypatch.setenv("ALNUMPY_LIBRARY", "/mine.so")
    assert str(choose(Machine(system, name, bits, lambda feature: False)).path) == "/mine.so"


def test_the_libraries_are_those_of_the_manifest_and_of_these_sources():
    """If this fails, run ``python tools/dev/build_kernels.py`` (extra ``build``)."""
    manifest = library.manifest()
    assert manifest["abi"] == NUMBER
    assert manifest["sources"] == library.sources_digest()
    assert {path.name for path in FOLDER.iterdir()} == {*manifest["sha256"], library.MANIFEST}
    assert {name: library.sha256(FOLDER / name) for name in manifest["sha256"]} == manifest["sha256"]


def test_the_builders_versions_are_pinned():
    config = configparser.RawConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    pinned = config["options.extras_require"]["build"].split()
    assert {f"{name}=={version}" for name, version in library.manifest()["made_by"].items()} == set(pinned)


def levels():
    """The runners of the library for this computer, by level, if this CPU can run them."""
    found = {}
    if CHOICE.path is not None:
        loaded = ctypes.CDLL(str(CHOICE.path))
        loaded.alnumpy_level.restype = ctypes.c_int64
        for number in range(loaded.alnumpy_level() + 1):
            run = getattr(loaded, f"alnumpy_run_{number}")
            run.restype, run.argtypes = None, [ctypes.c_int64] * library.ARGUMENTS
            found[library.LEVELS[number] if LEVEL else CHOICE.path.stem.split("-")[1]] = run
    return found


@here
@pytest.mark.parametrize(
    "name", ["alnet", "lnet", "mobilenet-v1", "efficientnet-lite0", "shufflenet-v2", "mobilenet-v3"]
)
def test_every_level_agrees_with_the_reference(monkeypatch, name):
    spec = next(spec for key, spec in SPECS.items() if key.startswith(name))
    params = random_params(spec)
    program = lower(spec, params)
    for shape in ((2, 3, 33, 40), (1, 3, 64, 64)):
        x = np.random.default_rng(shape[2]).normal(size=shape).astype(np.float32)
        wanted = reference.forward(spec, params, x)
        bits = set()
        for level, run in levels().items():
            monkeypatch.setitem(kernels._runners, "compiled", run)
            y = kernels.run(program, x, backend="compiled")
            assert np.linalg.norm(y - wanted) <= 1e-5 * np.linalg.norm(wanted), level
            if level in FMA:
                bits.add(y.tobytes())
        assert len(bits) <= 1  # one result on all CPUs


@here
def test_the_library_has_the_bits_of_numba():
    pytest.importorskip("numba")
    params = random_params(SPECS["alnet"])
    program = lower(SPECS["alnet"], params)
    x = np.random.default_rng(0).normal(size=(3, 3, 37, 53)).astype(np.float32)
    ours, theirs = (kernels.run(program, x, threads, backend) for threads, backend in ((2, "compiled"), (1, "numba")))
    np.testing.assert_array_equal(ours, theirs)


@here
def test_a_program_with_nan_gives_nan():
    params = random_params(SPECS["alnet"])
    y = kernels.run(lower(SPECS["alnet"], params), np.full((1, 3, 32, 32), np.nan, np.float32), backend="compiled")
    assert np.isnan(y).all()


@here
def test_a_library_of_another_version_is_not_run(monkeypatch):
    monkeypatch.setattr(library, "NUMBER", NUMBER + 1)
    with pytest.raises(OSError, match="another version"):
        library.load(CHOICE.path)


def embed(**environment):
    code = (
        "import sys, alnumpy; from alnumpy import kernels; sys.modules['numba'] = None; "
        "from alnumpy import embedder; embedder.find_spec = lambda name: None; "
        "e = alnumpy.load(); import numpy as np; e.forward(np.zeros((1, 3, 32, 32), np.float32)); "
        "print(e.backend_used, kernels.packaged()[0].reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout


def test_numpy_computes_if_the_library_cannot_be_loaded(tmp_path):
    (tmp_path / "text.so").write_text("not a library")
    assert embed(ALNUMPY_LIBRARY=str(tmp_path / "text.so")).startswith(f"numpy {tmp_path / 'text.so'}")
    assert embed(ALNUMPY_LIBRARY=str(tmp_path / "none.so")).startswith(f"numpy {tmp_path / 'none.so'}")
    if sys.platform == "linux":
        assert "not a library of alnumpy's kernels" in embed(ALNUMPY_LIBRARY="libc.so.6")


@here
@pytest.mark.skipif(not LEVEL, reason="a library of one level")
def test_a_level_can_be_chosen():
    assert embed(ALNUMPY_TARGET="x86-64").startswith("compiled")
    assert "no kernels for ALNUMPY_TARGET=x86-64-v9" in embed(ALNUMPY_TARGET="x86-64-v9")


def test_the_library_is_taken_without_numba_from_the_first_picture_on():
    assert embed().split()[0] == ("numpy" if CHOICE.path is None else "compiled")
    assert alnumpy.load().backend == "auto"
