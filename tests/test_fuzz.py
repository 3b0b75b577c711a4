"""A short run of each fuzzer; and whether a fuzzer notices planted faults."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz
from alnumpy import formats
from alnumpy.embedder import available

ROOT = Path(__file__).parents[1]

if sys.platform != "linux":
    pytest.skip("the fuzzer reads /proc", allow_module_level=True)

# Readers that fail at every third input. The first byte of an input is its number.
PLANTED = """
import os, signal, sys, time
import numpy as np
import fuzz

def strike(path):
    {fault}

def read(path):
    data = path.read_bytes()
    if data and data[0] % 3 == 0:
        strike(path)
    if data and data[0] % 3 == 1:
        raise fuzz.AlnumpyError("documented")
    return [np.zeros(3)]

def seeds(folder):
    (folder / "a.bin").write_bytes(b"2" + bytes(50))

fuzz.HANG, fuzz.GROWTH = 2.0, 50_000_000
fuzz.make = lambda target, corpus, seed, number: (".bin", bytes([number]))
fuzz.TARGETS["image"] = fuzz.TARGETS["image"]._replace(seeds=seeds, read=read)
sys.exit(fuzz.main(["image", "--inputs", "9", "--save", sys.argv[1]]))
"""


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tools" / "dev", check=False)


@pytest.mark.parametrize(
    "target", ["weights", "prepacked", "checkpoint", "image", "heic", "avif", "profile", "gallery", "serve"]
)
def test_a_short_run_finds_nothing(tmp_path, target):
    if target == "serve":
        pytest.importorskip("flask")
    if target == "prepacked" and not available("compiled"):
        pytest.skip("no compiled kernels run here")
    if target.upper() in formats.SOMETIMES and not formats.readable(target.upper()):
        pytest.skip(f"{target.upper()} is not read here")
    done = run("fuzz.py", target, "--inputs", 300, "--seed", 1, "--save", tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"{target}: 300 inputs of seed 1, " in done.stdout
    assert " 0 accepted" not in done.stdout  # otherwise nothing would pass the first check


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process ended with code -11"),
        ("sys.exit(0)", "the process ended with code 0"),
        ("time.sleep(1000)", "no answer within 2 seconds"),
        ("np.ones(7_000_000)", "memory grew by 5"),
        ("{}['x']", "KeyError: 'x'"),
        ("np.empty(10**13)", "MemoryError: Unable to allocate"),
        ("raise RecursionError('deep') from fuzz.AlnumpyError('documented')", "RecursionError: deep"),
    ],
)
def test_a_planted_fault_is_found_and_its_input_kept(tmp_path, fault, message):
    done = run("-c", PLANTED.format(fault=fault), tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert [message in line for line in lines] == [True, True, True, False], done.stdout
    assert "9 inputs of seed 0, 3 accepted, 3 findings" in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"image-0-{number}.bin" for number in (0, 3, 6)]
    assert (tmp_path / "image-0-6.bin").read_bytes() == bytes([6])


def test_a_result_that_is_not_finite_is_found(tmp_path):
    code = PLANTED.format(fault="pass").replace("np.zeros(3)", "np.array([1, np.nan])")
    done = run("-c", code, tmp_path)
    assert (done.returncode, done.stdout.count("a result that is not finite")) == (1, 6)


def test_inputs_are_the_same_each_time_and_differ_from_each_other(tmp_path):
    """Both runs begin with the same good files: older HDF5 leaves bytes of a file unset."""
    missing = [
        name for name in fuzz.TARGETS if name.upper() in formats.SOMETIMES and not formats.readable(name.upper())
    ]
    corpora = {name: fuzz.good_files(fuzz.TARGETS[name], name) for name in fuzz.TARGETS if name not in missing}
    (tmp_path / "corpora").write_bytes(pickle.dumps(corpora))
    code = """
import hashlib, pathlib, pickle, sys, fuzz
for name, corpus in pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()).items():
    made = [fuzz.make(fuzz.TARGETS[name], corpus, seed, number) for seed in (0, 1) for number in range(50)]
    print(len(set(made)) > 95, hashlib.sha256(repr(made).encode()).hexdigest())
"""
    first, second = (run("-c", code, tmp_path / "corpora") for _ in range(2))
    assert (first.stdout, first.stderr, first.stdout.count("True")) == (second.stdout, "", len(corpora))
