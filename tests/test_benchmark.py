"""The benchmark: every runtime checked before it is timed, none silently dropped, the arithmetic, a run that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import random_params

import benchmark
from alnumpy import reference, weights
from alnumpy.lower import lower
from alnumpy.networks import SPECS, ALNet, Spec
from benchmark import Network

BENCHMARK = Path(benchmark.__file__)


def picture(size: int = 11, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size + 2), np.float32)


@pytest.fixture
def network(small_spec: Spec) -> Network:
    return Network(small_spec, random_params(small_spec))


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_model_is_the_network(network, batch):
    pytest.importorskip("onnx")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    x = picture(batch=batch)
    (y,) = evaluator(benchmark.onnx_model(network, x.shape)).run(None, {"x": x})
    benchmark.check(y, reference.forward(network.spec, network.params, x))


@pytest.mark.parametrize("name", SPECS)
def test_every_preset_is_exported(name):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    network = Network(SPECS[name], random_params(SPECS[name]))
    x = picture(32)
    session = runtime.InferenceSession(benchmark.onnx_model(network, x.shape), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    benchmark.check(y, reference.forward(network.spec, network.params, x))


@pytest.mark.parametrize("name", SPECS)
def test_every_preset_is_profiled(name):
    network = Network(SPECS[name], random_params(SPECS[name]))
    records = benchmark.profile_numpy(network, 8, 1)
    assert [record["operator"] for record in records] == [layer.name for layer in SPECS[name].layers()]
    assert sum(record["share"] for record in records) == pytest.approx(1)


@pytest.mark.parametrize(
    ("runtime", "packages"),
    [
        ("torch eager", ["torch"]),
        ("TorchScript", ["torch"]),
        ("ONNX Runtime", ["onnx", "onnxruntime"]),
        ("OpenVINO", ["onnx", "openvino"]),
        ("OpenVINO async", ["onnx", "openvino"]),
        ("ncnn", ["onnx", "ncnn", "pnnx"]),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the runtimes use deprecated parts of each other
def test_runtime_computes_the_network(network, runtime, packages):
    for package in packages:
        pytest.importorskip(package)
    x = picture(batch=3)
    run = benchmark.RUNTIMES[runtime](network, x, 1)
    expected = reference.forward(network.spec, network.params, x)
    benchmark.check(run(), expected)
    benchmark.check(run(), expected)  # a second time: no run may spoil its input


def test_wrong_and_missing_runtimes_are_reported_and_not_timed(monkeypatch):
    def missing(*_):
        import no_such_runtime  # noqa: F401

    def crash(*_):
        raise RuntimeError("out of luck\nand a long trace")

    runtimes = {
        "torch eager": lambda *_: lambda: np.ones((1, 4)),
        "close": lambda *_: lambda: np.ones((1, 4)) + 0.9e-4,
        "wrong": lambda *_: lambda: np.ones((1, 4)) + 1.1e-4,
        "NaN": lambda *_: lambda: np.full((1, 4), np.nan),
        "shape": lambda *_: lambda: np.ones((4, 1)),
        "missing": missing,
        "crash": crash,
    }
    monkeypatch.setattr(benchmark, "RUNTIMES", runtimes)
    good, failed = benchmark.set_up(runtimes, Network(SPECS["alnet"], {}), picture(), 1)
    assert set(good) == {"torch eager", "close"}
    assert failed == {
        "wrong": "ValueError: wrong output, relative error 1.1e-04",
        "NaN": "ValueError: wrong output, relative error nan",
        "shape": "ValueError: output of shape (4, 1) instead of (1, 4)",
        "missing": "no_such_runtime is not installed",
        "crash": "RuntimeError: out of luck",
    }


def test_interleave_times_every_runtime_in_every_round():
    calls = []

    def sleep(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    samples = benchmark.interleave({"a": lambda: sleep("a", 0.011), "b": lambda: sleep("b", 0.03)}, 3)
    assert len(samples["a"].wall) >= 3
    assert len(samples["b"].wall) == 3
    assert min(samples["a"].wall) >= 0.011
    assert sum(samples["b"].cpu) < 0.5 * sum(samples["b"].wall)  # a sleeping runtime uses no CPU
    assert calls.count("a") > len(samples["a"].wall)  # the other calls were for warming up


def test_ratios_are_to_the_best_peer():
    times = {"alnumpy compiled": 2.0, "alnumpy numpy": 9.0, "torch eager": 8.0, "OpenVINO": 5.0}
    records = [{"runtime": n, "size": 32, "batch": 1, "threads": 1, "median_ms": ms} for n, ms in times.items()]
    records.append({"runtime": "ncnn", "size": 32, "batch": 1, "threads": 1, "failed": "ncnn is not installed"})
    assert benchmark.ratios(records, "compiled") == {(32, 1, 1): (2.5, "OpenVINO")}
    assert benchmark.ratios(records, "other") == {}
    assert benchmark.ratios(records[:2], "compiled") == {}


def test_network_flops():
    """Twice the multiply-adds of ALNet's convolutions at 32x32, by hand: stem, last, and one block among them."""
    spec = SPECS["alnet"]
    assert benchmark.network_flops(ALNet(blocks=()), 32) == 2 * (32 * 32 * 32 * 27 + 1280 * 32 * 32 * 32)
    block = 32 * 32 * (32 * 4 + 32 * 9 + 16 * 4)
    with_block = benchmark.network_flops(ALNet(blocks=spec.blocks[:1]), 32)
    assert with_block == 2 * (32 * 32 * 32 * 27 + block + 1280 * 32 * 32 * 16)
    assert benchmark.network_flops(spec, 128) == 16 * benchmark.network_flops(spec, 32) == 2 * 71_335_936


def test_node_bytes():
    """The picture and the first map; an expansion, its weights and batch norm; a depthwise convolution."""
    spec = SPECS["mobilenet-v2"]
    moved = benchmark.node_bytes(spec, 32, lower(spec, random_params(spec)).nodes)
    assert moved["stem"] == 4 * (3 * 32 * 32 + 32 * 16 * 16 + 32 * 27 + 4 * 32)
    assert moved["block2.expand"] == 4 * (16 * 16 * 16 + 96 * 16 * 16 + 96 * 16 + 4 * 96)
    assert moved["block2.depthwise"] == 4 * (96 * 16 * 16 + 96 * 8 * 8 + 96 * 9 + 4 * 96)


def test_roofline():
    ceiling = {"gflops": 100.0, "cache_gbytes": 50.0}
    bound_by_work = {"median_ms": 2.0, "gflops": 80.0, "bytes": 10_000_000}
    assert benchmark.roofline(bound_by_work, ceiling) == "80%"
    assert benchmark.roofline(bound_by_work | {"bytes": 90_000_000}, ceiling) == "90%"
    assert benchmark.roofline({"median_ms": 2.0, "gflops": None, "bytes": None}, ceiling) == ""


def test_process_is_measured_by_itself():
    """A large parent must not count as the child's memory, and a failing child must tell why."""
    ballast = np.ones(40_000_000 // 4, np.float32)
    seconds, peak, output = benchmark.run_process(
        [sys.executable, "-c", "import time; time.sleep(0.2); print('hello')"]
    )
    assert ballast.sum() > 0
    assert seconds >= 0.2
    assert 3 < peak < 30
    assert output == b"hello\n"
    with pytest.raises(RuntimeError, match=r"^no luck$"):
        benchmark.run_process([sys.executable, "-c", "import sys; print('x'); sys.exit('so\\nno luck')"])


def test_installed_sizes():
    records = {record["runtime"]: record for record in benchmark.measure_installed()}
    assert set(records) == set(benchmark.INSTALLS)
    parts = records["alnumpy"]["parts_mb"]
    assert {"alnumpy", "numpy", "pillow", "h5py"} <= set(parts)
    assert parts["alnumpy"] > weights.default_path().stat().st_size / 1e6
    for record in records.values():
        assert record.get("mb", 0) > 10 or "is not installed" in record["failed"]


def test_ceiling_is_plausible():
    ceiling = benchmark.measure_ceiling(1, 0.05)
    assert 0.5 < ceiling["sgemm"] < 10_000
    assert 0.1 < ceiling["copy_gbytes"] < 10_000
    assert 0.1 < ceiling["cache_gbytes"] < 10_000
    assert 0.5 < ceiling["gflops"] < 10_000
    cores = os.cpu_count() or 1  # BLAS may use all of them here; how much slower it is depends on its kernels
    assert ceiling["gflops"] * cores > 0.1 * ceiling["sgemm"]


def quick(*arguments: str) -> str:
    command = [sys.executable, BENCHMARK, "--quick", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quick_run_names_every_runtime(tmp_path):
    pytest.importorskip("torch")
    output = quick("--only", "latency", "profile", "--json", str(tmp_path / "b.json"))
    written = json.loads((tmp_path / "b.json").read_text())
    timed = {record["runtime"] for record in written["latency"] if record.get("median_ms", 0) > 0}
    failed = {record["runtime"]: record["failed"] for record in written["latency"] if "failed" in record}
    assert timed >= {"alnumpy numpy", "torch eager", "TorchScript"}
    assert timed | set(failed) | {"torch.compile", "OpenVINO async"} == set(benchmark.RUNTIMES)
    assert all(name in output for name in [*timed, *failed, "torch.compile"])
    assert all(f"{name}: not measured: {why}" in output for name, why in failed.items())
    assert "geometric mean" in output
    assert "fraction of the ceiling" in output
    profiled = {record["backend"] for record in written["profile"] if "operator" in record}
    assert "numpy" in profiled
    if "alnumpy compiled" in timed:
        assert "compiled" in profiled, written["profile"]
    shares = [record["share"] for record in written["profile"] if record.get("backend") == "numpy"]
    assert sum(shares) == pytest.approx(1)


def test_quick_cold_start_checks_what_the_processes_print(tmp_path):
    pytest.importorskip("torch")
    output = quick("--only", "cold", "--json", str(tmp_path / "b.json"))
    records = {record["runtime"]: record for record in json.loads((tmp_path / "b.json").read_text())["cold"]}
    least = records["Python, NumPy, Pillow only"]
    for runtime in ("alnumpy numpy", "TorchScript"):
        assert records[runtime]["peak_mb"] > least["peak_mb"]
    assert "not installed" in records["ONNX Runtime"].get("failed", "not installed")
    assert all(name in output for name in records)


def test_plot(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    times = {"median_ms": 2.0, "p10_ms": 1.5, "p90_ms": 3.0}
    records = [{"runtime": name, "size": s, **times} for name in ("alnumpy compiled", "ncnn") for s in (28, 128)]
    records.append({"runtime": "OpenVINO", "size": 28, "failed": "openvino is not installed"})
    benchmark.plot(str(tmp_path / "b.png"), records, {"threads": 1, "gflops": 100.0}, SPECS["alnet"])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
