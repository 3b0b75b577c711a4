#!/usr/bin/env python3
"""Compare alnumpy with the runtimes that one would use instead: same weights, same input, side by side in one run.

    python tools/dev/benchmark.py --json benchmark.json --plot benchmark.png
    python tools/dev/benchmark.py --only latency --networks mobilenet-v2 efficientnet-lite0 --sizes 96 128

A network is a weights file, a name of weights (see alnumpy models), or a preset with random weights.
Parts, of which --only picks some:

    latency    one picture at a time, by size; the fraction of the machine's ceiling that alnumpy reaches
    batch      64 pictures at once, for each number of threads; pictures per second and scaling
    cold       one picture as a whole process: wall time and peak memory
    installed  bytes on disk of each runtime with its dependencies
    profile    time and GFLOP/s of each operator of alnumpy

The output of every runtime is compared with torch's before it is timed. A runtime that is missing or wrong is listed
with the reason. Needs the extra: pip install 'alnumpy[bench]'; of its runtimes only torch is required.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import numpy as np

import alnumpy
from alnumpy import reference, weights
from alnumpy.counts import costs
from alnumpy.errors import WeightsError
from alnumpy.images import Preprocessing
from alnumpy.layers import (
    BN,
    IMAGE,
    Add,
    Cbam,
    Concat,
    Conv,
    Layer,
    Mean,
    Pool,
    Shuffle,
    Slice,
    SqueezeExcite,
    evaluate,
    parameters,
)
from alnumpy.lower import Node
from alnumpy.networks import SPECS, Spec

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the folder of torch_network

PARTS = ("latency", "batch", "cold", "installed", "profile")
TOLERANCE = 1e-4  # relative error of a runtime's embeddings against torch's, norm over norm
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Run = Callable[[], np.ndarray]  # computes the embeddings of an input that was fixed when the runtime was set up
Record = dict[str, Any]


class Network(NamedTuple):
    """The network that all runtimes compute."""

    spec: Spec
    params: Mapping[str, np.ndarray]


def read_network(name: str) -> Network:
    """The network of a weights file, of weights by name, or a preset with random weights."""
    try:
        loaded = weights.read(weights.locate(name or None))
    except WeightsError:
        if name not in SPECS:
            raise
        return Network(SPECS[name], drawn(SPECS[name]))
    return Network(loaded.spec, loaded.parameters)


def drawn(spec: Spec) -> dict[str, np.ndarray]:
    """Random arrays for a network, whose activations neither vanish nor grow."""
    rng, params = np.random.default_rng(0), {}
    for name, shape in parameters(spec.layers()).items():
        if len(shape) > 1:
            array = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith(("running_var", "bn.weight")):
            array = rng.uniform(0.9, 1.1, shape)
        else:
            array = rng.normal(0, 0.1, shape)
        params[name] = array.astype(np.float32)
    return params


# --- the same network for other runtimes ----------------------------------------------------------------------------


def torch_model(network: Network, threads: int) -> Any:
    """The torch module, in the memory format that torch advises for convolutions on a CPU."""
    import torch

    from torch_network import from_arrays

    torch.set_num_threads(threads)
    model = from_arrays(network.spec, dict(network.params))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def frozen_model(network: Network, x: Any, threads: int) -> Any:
    """The torch module as TorchScript, traced for an input and with its weights frozen in. It can be saved."""
    import torch

    with torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(torch_model(network, threads), x))


def onnx_model(network: Network, shape: tuple[int, ...]) -> bytes:
    """The network as an ONNX file for inputs ``x`` of exactly ``shape``; runtimes fold the batch norms themselves."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []
    constants = [numpy_helper.from_array(array, name) for name, array in network.params.items()]

    def constant(values: Any, dtype: type) -> str:
        constants.append(numpy_helper.from_array(np.array(values, dtype), f"constant{len(constants)}"))
        return constants[-1].name

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{operator}{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def given(layer: Layer, *fields: str) -> list[str]:
        return [name for field in fields if (name := f"{layer.name}.{field}") in network.params]

    def batch_norm(x: str, layer: Conv | Cbam) -> str:
        return add("BatchNormalization", x, *given(layer, *(f"bn.{field}" for field in BN)), epsilon=layer.eps)

    def activated(activation: str, x: str) -> str:
        match activation:
            case "relu6":
                return add("Clip", x, *six)
            case "silu":
                return add("Mul", x, add("Sigmoid", x))
            case "hardsigmoid":
                return add("HardSigmoid", x, alpha=1 / 6, beta=0.5)
            case "":
                return x
            case _:
                return add({"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid"}[activation], x)

    def mlp(layer: Cbam | SqueezeExcite, activation: str, pool: str, x: str) -> str:
        hidden = add("Gemm", add("Flatten", add(pool, x)), *given(layer, "fc1.weight", "fc1.bias"), transB=1)
        return add("Gemm", activated(activation, hidden), *given(layer, "fc2.weight", "fc2.bias"), transB=1)

    def scaled(layer: Cbam | SqueezeExcite, x: str, factors: str) -> str:
        return add("Mul", x, add("Reshape", factors, constant((n, layer.channels, 1, 1), np.int64)))

    def cbam(x: str, layer: Cbam) -> str:
        channel = add("Add", *(mlp(layer, "relu", pool, x) for pool in ("GlobalAveragePool", "GlobalMaxPool")))
        x = scaled(layer, x, add("Sigmoid", channel))
        maps = [add(reduce, x, axes=[1]) for reduce in ("ReduceMean", "ReduceMax")]
        both = add("Concat", *(maps if layer.layout.mean_first else maps[::-1]), axis=1)
        spatial = add("Conv", both, f"{layer.name}.spatial.weight", pads=[3, 3, 3, 3])
        if layer.layout.spatial_bn:
            spatial = batch_norm(spatial, layer)
        return add("Mul", x, add("Sigmoid", spatial))

    def compute(layer: Layer, *inputs: str) -> str:
        size = sizes[layer.inputs[0]]
        sizes[layer.name] = layer.size(size)
        x = inputs[0]
        match layer:
            case Conv():
                rows, columns = layer.pads(size)
                pads = [rows[0], columns[0], rows[1], columns[1]]
                arrays = given(layer, "conv.weight", "conv.bias")
                x = add("Conv", x, *arrays, strides=[layer.stride] * 2, pads=pads, group=layer.groups)
                return activated(layer.activation, batch_norm(x, layer) if layer.batch_norm else x)
            case Shuffle():
                parted = (n, layer.groups, layer.channels // layer.groups, *size)
                x = add("Transpose", add("Reshape", x, constant(parted, np.int64)), perm=[0, 2, 1, 3, 4])
                return add("Reshape", x, constant((n, layer.channels, *size), np.int64))
            case Slice():
                part = layer.indices()
                return add("Slice", x, *(constant([i], np.int64) for i in (part.start, part.stop, 1, part.step)))
            case Add():
                return activated(layer.activation, add("Add", *inputs))
            case Concat():
                return activated(layer.activation, add("Concat", *inputs, axis=1))
            case Pool():
                window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
                if layer.kind == "max":
                    return add("MaxPool", x, **window)
                return add("AveragePool", x, count_include_pad=1, **window)
            case Mean():
                return add("GlobalAveragePool", x)
            case SqueezeExcite():
                return scaled(layer, x, activated(layer.gate, mlp(layer, layer.activation, "GlobalAveragePool", x)))
            case Cbam():
                return cbam(x, layer)
            case _:
                raise TypeError(f"{layer} is not a layer")

    n, sizes = shape[0], {IMAGE: (shape[2], shape[3])}
    six = [constant(limit, np.float32) for limit in (0, 6)]
    last = evaluate(network.spec.layers(), "x", compute)
    nodes.append(helper.make_node("Flatten", [last], ["y"]))
    ends = [("x", shape), ("y", (n, network.spec.embedding))]
    source, sink = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ends)
    graph = helper.make_graph(nodes, network.spec.name, [source], [sink], constants)
    # Opset 17 and its IR version, which any runtime of recent years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


# --- runtimes: each function sets one up for an input and a number of threads, as its documentation advises -----------


def alnumpy_run(backend: str, network: Network, x: np.ndarray, threads: int) -> Run:
    how = Preprocessing(x.shape[2], (0.5,) * 3, (0.5,) * 3)
    loaded = weights.Weights(network.spec, how, network.params, x[:1], x[:1, 0, 0], "")
    embedder = alnumpy.Embedder(loaded, backend=backend, threads=threads)
    return lambda: embedder.forward(x)


def level_run(level: str, network: Network, x: np.ndarray, threads: int) -> Run:
    """The packaged kernels as a lower CPU of the family would run them."""
    from alnumpy import kernels
    from alnumpy.kernels import library
    from alnumpy.lower import lower

    path = library.choose().path
    if path is None:
        raise ValueError(library.choose().reason)
    before = os.environ.get("ALNUMPY_TARGET")
    try:
        os.environ["ALNUMPY_TARGET"] = level
        kernels._runners[level] = library.load(path)[0]
    finally:
        os.environ.pop("ALNUMPY_TARGET")
        if before:
            os.environ["ALNUMPY_TARGET"] = before
    program = lower(network.spec, network.params)
    return lambda: kernels.run(program, x, threads, level)


def torch_run(prepare: Callable[..., Any], network: Network, x: np.ndarray, threads: int) -> Run:
    """``prepare``: (network, example input, threads) -> module."""
    import torch

    tensor = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    model = prepare(network, tensor, threads)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return model(tensor).numpy()

    return run


def torchscript_model(network: Network, x: Any, threads: int) -> Any:
    import torch

    return torch.jit.optimize_for_inference(frozen_model(network, x, threads))


def torch_compiled(network: Network, x: Any, threads: int) -> Any:
    """The torch module compiled for one shape with its weights frozen in."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.reset()  # compile every shape by itself; none counts as a recompilation
    return torch.compile(torch_model(network, threads), dynamic=False)


def onnxruntime_run(network: Network, x: np.ndarray, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()  # all graph optimisations are on by default
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(onnx_model(network, x.shape), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def openvino_model(hint: str, network: Network, shape: tuple[int, ...], threads: int) -> Any:
    import openvino

    core = openvino.Core()
    config = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(onnx_model(network, shape)), "CPU", config)


def openvino_run(network: Network, x: np.ndarray, threads: int) -> Run:
    request = openvino_model("LATENCY", network, x.shape, threads).create_infer_request()
    return lambda: request.infer(x, share_inputs=True, share_outputs=True)[0]


def openvino_async_run(network: Network, x: np.ndarray, threads: int) -> Run:
    """Pictures one by one through as many requests at once as OpenVINO finds best for throughput."""
    import openvino

    queue = openvino.AsyncInferQueue(openvino_model("THROUGHPUT", network, (1, *x.shape[1:]), threads))
    y = np.empty((len(x), network.spec.embedding), np.float32)
    queue.set_callback(lambda request, i: np.copyto(y[i], request.get_output_tensor().data[0]))

    def run() -> np.ndarray:
        for i in range(len(x)):
            queue.start_async(x[i : i + 1], i, share_inputs=True)
        queue.wait_all()
        return y

    return run


def ncnn_run(network: Network, x: np.ndarray, threads: int) -> Run:
    """ncnn has no batches: pictures run one after the other."""
    import ncnn
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_bf16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_storage = False
    net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "alnet.onnx").write_bytes(onnx_model(network, (1, *x.shape[1:])))
        convert = [pnnx.EXEC_PATH, "alnet.onnx", "fp16=0"]
        subprocess.run(convert, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if net.load_param(f"{folder}/alnet.ncnn.param") or net.load_model(f"{folder}/alnet.ncnn.bin"):
            raise ValueError("ncnn does not load what pnnx converted")
    inputs = [ncnn.Mat(picture).clone() for picture in x]  # a Mat does not keep its array alive

    def run() -> np.ndarray:
        y = np.empty((len(x), network.spec.embedding), np.float32)
        for i, picture in enumerate(inputs):
            extractor = net.create_extractor()
            extractor.input("in0", picture)
            y[i] = extractor.extract("out0")[1]
        return y

    return run


RUNTIMES: dict[str, Callable[[Network, np.ndarray, int], Run]] = {
    "alnumpy compiled": partial(alnumpy_run, "compiled"),
    "alnumpy x86-64-v3": partial(level_run, "x86-64-v3"),
    "alnumpy x86-64": partial(level_run, "x86-64"),
    "alnumpy numpy": partial(alnumpy_run, "numpy"),
    "torch eager": partial(torch_run, lambda network, _, threads: torch_model(network, threads)),
    "TorchScript": partial(torch_run, torchscript_model),
    "torch.compile": partial(torch_run, torch_compiled),
    "ONNX Runtime": onnxruntime_run,
    "OpenVINO": openvino_run,
    "OpenVINO async": openvino_async_run,
    "ncnn": ncnn_run,
}


def reason(error: Exception) -> str:
    """Why a runtime was not timed, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:150]


def check(y: np.ndarray, expected: np.ndarray) -> None:
    """Raises ValueError unless the embeddings are within TOLERANCE of the expected ones."""
    if y.shape != expected.shape:
        raise ValueError(f"output of shape {y.shape} instead of {expected.shape}")
    error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    if not error <= TOLERANCE:  # true for NaN as well
        raise ValueError(f"wrong output, relative error {error:.1e}")


def set_up(
    names: Iterable[str], network: Network, x: np.ndarray, threads: int
) -> tuple[dict[str, Run], dict[str, str]]:
    """(runtimes that give torch's embeddings for ``x``, why the others do not)."""
    expected = RUNTIMES["torch eager"](network, x, threads)()
    good: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            run = RUNTIMES[name](network, x, threads)
            check(run(), expected)
            good[name] = run
        except Exception as error:  # one runtime's failure must not stop the others
            failed[name] = reason(error)
    return good, failed


# --- measuring ------------------------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """Timed calls of one runtime, in seconds."""

    wall: list[float]
    cpu: list[float]  # CPU seconds of all threads together


def interleave(runs: Mapping[str, Run], rounds: int) -> dict[str, Samples]:
    """Times the runtimes in turn, in another order each round, so that a disturbance of the machine affects all.

    Before its turn is timed a runtime runs untimed for a while: to fill the caches, and until the threads of the one
    before it, which may spin in wait for more work, are asleep. Calls that take long make that unimportant.
    """
    samples = {name: Samples([], []) for name in runs}
    order, rng = list(runs), random.Random(0)
    for round in range(-1, rounds):  # round -1 is not kept: some runtimes optimise themselves during the first calls
        rng.shuffle(order)
        for name in order:
            run, wall = runs[name], samples[name].wall
            settled = time.perf_counter() + 0.005
            while time.perf_counter() < settled and not (wall and wall[-1] > 0.1):
                run()
            end = time.perf_counter() + 0.02
            while True:
                cpu, start = time.process_time(), time.perf_counter()
                run()
                stop = time.perf_counter()
                if round >= 0:
                    wall.append(stop - start)
                    samples[name].cpu.append(time.process_time() - cpu)
                if stop >= end:
                    break
    return samples


def spread(seconds: Sequence[float]) -> Record:
    """Median, 10% and 90% of the samples in ms."""
    p10, median, p90 = np.percentile(seconds, (10, 50, 90)) * 1e3
    return {"median_ms": median, "p10_ms": p10, "p90_ms": p90}


def measure(
    cases: Sequence[tuple[int, int]], names: Sequence[str], which: str, threads: int, rounds: int
) -> list[Record]:
    """A record for each (batch, size) of ``cases`` and runtime: times in ms, or ``failed`` with the reason."""
    network = read_network(which)
    records: list[Record] = []
    for batch, size in cases:
        x = np.random.default_rng(size).standard_normal((batch, 3, size, size), np.float32)
        good, failed = set_up(names, network, x, threads)
        samples = interleave(good, rounds)
        for name in names:
            record: Record = {"network": which, "runtime": name, "size": size, "batch": batch, "threads": threads}
            if name in failed:
                record["failed"] = failed[name]
            else:
                cores = sum(samples[name].cpu) / sum(samples[name].wall)
                record |= {**spread(samples[name].wall), "cores": cores}
            records.append(record)
    return records


def best_time(function: Callable[[], Any], seconds: float) -> float:
    """The shortest of the calls that fit into ``seconds``: for a ceiling, disturbances of the machine do not count."""
    best, end = math.inf, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        function()
        best = min(best, time.perf_counter() - start)
    return best


def fma_kernel() -> tuple[Callable[[int, int], None], int]:
    """(function of an address and a count, float32 operations it does for each count): independent chains of FMAs."""
    from numba import njit

    from alnumpy.kernels.simd import LANES, fma, load_tile, splat, store_tile

    chains = 12  # enough to hide the latency of FMA units, few enough for 16 registers

    @njit("void(int64, int64)", nogil=True)
    @no_type_check
    def kernel(address, count):
        tile = load_tile(address, 0, LANES, chains, 1, LANES)
        half, one = splat(0.5, LANES), splat(1.0, LANES)
        for _ in range(count):
            tile = fma(tile, half, one)
        store_tile(address, 0, LANES, tile, 1)

    return kernel, 2 * chains * LANES


def measure_ceiling(threads: int, seconds: float) -> Record:
    """The machine's ceiling with some threads: float32 GFLOP/s of FMA and of a matrix product, GB/s of copying."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    out = np.empty_like(a)
    result: Record = {"threads": threads, "sgemm": 2 * 1024**3 / best_time(lambda: np.matmul(a, a, out), seconds) / 1e9}
    result["gflops"] = result["sgemm"]
    with ThreadPoolExecutor(threads) as pool:
        try:
            kernel, flops = fma_kernel()
        except ImportError as error:
            result["failed"] = f"FMA rate not measured, {reason(error)}; the matrix product stands in for it"
        else:
            tiles, count = [np.ones(4096, np.float32) for _ in range(threads)], 1_000_000
            elapsed = best_time(lambda: list(pool.map(lambda tile: kernel(tile.ctypes.data, count), tiles)), seconds)
            result["gflops"] = threads * count * flops / elapsed / 1e9
        sources, targets = ([np.ones(2**25, np.float32) for _ in range(threads)] for _ in range(2))  # 128 MB each
        elapsed = best_time(lambda: list(pool.map(np.copyto, targets, sources)), seconds)
        result["copy_gbytes"] = threads * 2 * sources[0].nbytes / elapsed / 1e9
        small = 2**20  # floats: 4 MB, for the third level cache
        elapsed = best_time(lambda: np.copyto(targets[0][:small], sources[0][:small]), seconds)
        result["cache_gbytes"] = 8 * small / elapsed / 1e9
    return result


def conv_flops(spec: Spec, size: int) -> dict[str, int]:
    """Twice the multiply-adds of each convolution of the network for one picture; attention is not counted."""
    return {
        cost.layer.name: 2 * cost.multiply_adds
        for cost in costs(spec.layers(), (size, size))
        if "conv.weight" in cost.layer.shapes()
    }


def network_flops(spec: Spec, size: int) -> int:
    """The sum of ``conv_flops``."""
    return sum(conv_flops(spec, size).values())


def node_bytes(spec: Spec, size: int, nodes: Sequence[Node]) -> dict[str, int]:
    """By a node's label: bytes of the maps and weights that it must read and write at least once."""
    floats = {IMAGE: 3 * size**2}
    floats |= {
        cost.layer.name: cost.layer.channels * math.prod(cost.size) for cost in costs(spec.layers(), (size, size))
    }
    return {
        node.label: 4 * (
            sum(floats[name] for name in (*node.inputs, node.layers[-1].name))
            + sum(math.prod(shape) for layer in node.layers for shape in layer.shapes().values())
        )
        for node in nodes
        if node.layers and all(name in floats for name in node.inputs)
    }  # fmt: skip


def in_fresh_process(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new Python, since BLAS and OpenMP read their number of threads only at the start."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- cold start -----------------------------------------------------------------------------------------------------

# The shortest program with another runtime that embeds one picture.
READ_PICTURE = """
import json, sys
import numpy as np
from PIL import Image

model, picture, size, mean, std = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
image = Image.open(picture).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
x = (np.asarray(image, np.float32) / 255 - np.float32(mean)) / np.float32(std)
x = np.ascontiguousarray(x.transpose(2, 0, 1)[None])
"""
WITH_ONNXRUNTIME = """
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
y = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
"""
WITH_TORCH = """
import torch

torch.set_num_threads(1)
with torch.inference_mode():
    y = torch.jit.load(model)(torch.from_numpy(x)).numpy()
"""
WRITE_EMBEDDING = """
print(json.dumps({"path": picture, "embedding": y[0].tolist()}))
"""

# Starts a command and writes its seconds, peak memory and exit code as the last line of stderr. A process of its own,
# because the system counts the memory of the process that starts a child as the child's.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
seconds = time.perf_counter() - start
print("", json.dumps([seconds, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]), sep="\\n", file=sys.stderr)
"""


def run_process(command: Sequence[str]) -> tuple[float, float, bytes]:
    """(seconds, peak resident MB, stdout) of a process. Raises RuntimeError with its last message if it fails."""
    result = subprocess.run([sys.executable, "-IS", "-c", LAUNCHER, *command], capture_output=True, check=True)
    words, _, measured = result.stderr.decode(errors="replace").strip().rpartition("\n")
    seconds, peak, code = json.loads(measured)
    if code:
        raise RuntimeError(words.strip().rpartition("\n")[2] or f"exit code {code}")
    return seconds, peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024), result.stdout


def measure_cold(which: str, folder: str, rounds: int) -> list[Record]:
    """A record for each way to embed one picture as a process of its own: ms and peak memory, or ``failed``.

    The picture and the other runtimes' models are written to ``folder``.
    """
    import torch
    from PIL import Image

    from alnumpy.images import preprocess, read

    path = str(weights.locate(which))
    network, how = read_network(path), weights.read(path).preprocessing
    picture, torchscript, onnx = f"{folder}/picture.png", f"{folder}/alnet.pt", f"{folder}/alnet.onnx"
    y, x = np.mgrid[0:480, 0:480]
    waves = [127.5 + 127.5 * np.sin((f * x + y) / 40) for f in (1, 2, 3)]
    Image.fromarray(np.stack(waves, 2).astype(np.uint8)).save(picture)
    pixels = preprocess(read(picture), how)[None]
    expected = RUNTIMES["torch eager"](network, pixels, 1)()[0]

    embed = [sys.executable, "-m", "alnumpy", "embed", picture, "--weights", path, "--backend"]
    settings = [picture, *(json.dumps(value) for value in (how.size, how.mean, how.std))]
    scripts = {
        torchscript: READ_PICTURE + WITH_TORCH + WRITE_EMBEDDING,
        onnx: READ_PICTURE + WITH_ONNXRUNTIME + WRITE_EMBEDDING,
    }
    commands = {
        "alnumpy numpy": [*embed, "numpy"],
        "alnumpy compiled": [*embed, "compiled"],
        "alnumpy numba": [*embed, "numba"],
        "ONNX Runtime": [sys.executable, "-c", scripts[onnx], onnx, *settings],
        "TorchScript": [sys.executable, "-c", scripts[torchscript], torchscript, *settings],
    }
    failed: dict[str, str] = {}
    frozen_model(network, torch.from_numpy(pixels), 1).save(torchscript)
    try:
        Path(onnx).write_bytes(onnx_model(network, pixels.shape))
    except ImportError as error:
        failed["ONNX Runtime"] = reason(error)
    for name in [name for name in commands if name not in failed]:  # fills the caches of files and kernels as well
        try:
            check(np.array(json.loads(run_process(commands[name])[2])["embedding"]), expected)
        except Exception as error:
            failed[name] = reason(error)
    commands["Python, NumPy, Pillow only"] = [sys.executable, "-c", "import numpy, PIL.Image"]

    samples: dict[str, list[tuple[float, float, bytes]]] = {name: [] for name in commands if name not in failed}
    order, rng = list(samples), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            samples[name].append(run_process(commands[name]))
    records: list[Record] = [{"runtime": name, "failed": why} for name, why in failed.items()]
    for name, runs in samples.items():
        peak = float(np.median([peak for _, peak, _ in runs]))
        records.append({"runtime": name, **spread([seconds for seconds, _, _ in runs]), "peak_mb": peak})
    return records


# --- installed size -------------------------------------------------------------------------------------------------

# Packages that must be installed to embed a picture; dependencies are added.
INSTALLS = {
    "alnumpy": ("alnumpy",),
    "alnumpy[numba]": ("alnumpy", "numba"),
    "ONNX Runtime": ("onnxruntime", "numpy", "pillow"),
    "OpenVINO": ("openvino", "numpy", "pillow"),
    "ncnn": ("ncnn", "numpy", "pillow"),
    "torch": ("torch", "numpy", "pillow"),
}


def with_dependencies(names: Iterable[str]) -> set[str]:
    """Installed distributions and those that they require; extras are not followed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            for requirement in metadata.requires(name) or ():
                required = re.match(r"[\w.-]+", requirement)
                if required and "extra ==" not in requirement and any(metadata.distributions(name=required[0])):
                    waiting.append(required[0])
    return found


def distribution_bytes(name: str) -> int:
    """Bytes of an installed distribution's files, compiled bytecode left out."""
    if name == "alnumpy":  # in a checkout the distribution lists no files
        files = [*Path(alnumpy.__file__).parent.rglob("*"), weights.default_path()]
    else:
        files = [Path(str(file.locate())) for file in metadata.files(name) or ()]
    return sum(file.stat().st_size for file in set(files) if file.is_file() and file.suffix != ".pyc")


def measure_installed() -> list[Record]:
    """A record for each runtime: its bytes on disk, or ``failed``."""
    records: list[Record] = []
    for runtime, names in INSTALLS.items():
        try:
            parts = {name: distribution_bytes(name) / 1e6 for name in sorted(with_dependencies(names))}
            records.append({"runtime": runtime, "mb": sum(parts.values()), "parts_mb": parts})
        except metadata.PackageNotFoundError as error:
            records.append({"runtime": runtime, "failed": f"{error.name} is not installed"})
    return records


# --- profile --------------------------------------------------------------------------------------------------------


def profile_numpy(network: Network, size: int, rounds: int) -> list[Record]:
    """Time and work of each layer of ``reference.forward``."""
    times: dict[str, list[float]] = {layer.name: [] for layer in network.spec.layers()}

    def timed(layer: Layer, *inputs: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        y = reference.compute(layer, network.params, *inputs)
        times[layer.name].append(time.perf_counter() - start)
        return y

    for _ in range(rounds):
        x = np.random.default_rng(size).standard_normal((1, 3, size, size), np.float32)
        evaluate(network.spec.layers(), x, timed)
    flops = conv_flops(network.spec, size)
    work = [flops.get(name, 0) for name in times]
    return profile_records("numpy", size, list(times), np.array(list(times.values())).T, work)


def profile_compiled(network: Network, size: int, rounds: int) -> list[Record]:
    """Time and work of each step of the compiled program, run one by one. The cost of a call itself is subtracted."""
    from alnumpy import kernels
    from alnumpy.kernels.abi import Op
    from alnumpy.lower import lower

    program, run_program = lower(network.spec, network.params), kernels.loaded("compiled")
    layout = program.layout((size, size))
    arena, y = layout.new_arena(), np.empty(network.spec.embedding, np.float32)
    x = np.random.default_rng(size).standard_normal((3, size, size), np.float32)
    before = x.ctypes.data, x.size, 1, y.ctypes.data, y.size, program.weights.ctypes.data, program.tables.ctypes.data
    steps = [step.ctypes.data for step in layout.steps]
    calls = [*((step, 1) for step in steps), (steps[0], 0), (steps[0], len(steps))]  # each, none, all
    times = np.empty((rounds, len(calls)))
    for i in range(rounds):
        for j, (step, count) in enumerate(calls):
            start = time.perf_counter()
            run_program(*before, step, count, arena.ctypes.data)
            times[i, j] = time.perf_counter() - start
    nothing, everything = np.median(times[:, -2:], axis=0)
    times = np.maximum(times[:, :-2] - nothing, 0)

    labels, convolutions = layout.labels, conv_flops(network.spec, size)
    work = {node.label: sum(convolutions.get(layer.name, 0) for layer in node.layers) for node in program.nodes}
    names = [f"{label} {Op(op).name.lower()}".strip() for label, op in zip(labels, layout.steps[:, 0], strict=True)]
    # The last step of a node is the one that multiplies.
    flops = [work[label] if label != after else 0 for label, after in zip(labels, [*labels[1:], None], strict=True)]
    records = profile_records("compiled", size, names, times, flops)
    moved = node_bytes(network.spec, size, program.nodes)
    for record, label, multiplies in zip(records, labels, flops, strict=True):
        record["bytes"] = moved.get(label) if multiplies else None
    whole = {"median_ms": everything * 1e3, "share": None, "gflops": sum(flops) / everything / 1e9}
    return [*records, {"backend": "compiled", "size": size, "operator": "all in one call", **whole}]


def profile_records(backend: str, size: int, names: list[str], times: np.ndarray, flops: list[int]) -> list[Record]:
    """A record for each operator, from its times (rounds, operators) in seconds."""
    medians = np.median(times, axis=0)
    return [
        {
            "backend": backend,
            "size": size,
            "operator": name,
            "median_ms": seconds * 1e3,
            "share": seconds / medians.sum(),
            "gflops": work / max(seconds, 1e-9) / 1e9 if work else None,
        }
        for name, seconds, work in zip(names, medians, flops, strict=True)
    ]


def measure_profile(sizes: Sequence[int], which: str, rounds: int) -> list[Record]:
    """Records of both backends at each size; ``failed`` if one cannot be profiled."""
    network, records = read_network(which), list[Record]()
    for size in sizes:
        for backend, profile in (("numpy", profile_numpy), ("compiled", profile_compiled)):
            try:
                records += profile(network, size, 5 * rounds)
            except Exception as error:
                records.append({"backend": backend, "size": size, "failed": reason(error)})
    return [{"network": which, **record} for record in records]


# --- report ---------------------------------------------------------------------------------------------------------


def show(title: str, rows: Sequence[Sequence[str]], failed: Mapping[str, str] | None = None) -> None:
    """Prints a table, its first column aligned left, and below it what could not be measured."""
    print(f"\n{title}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        print("  ".join([first.ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]))
    for name, why in (failed or {}).items():
        print(f"{name}: not measured: {why}")


def failures(records: Iterable[Record]) -> dict[str, str]:
    """Runtimes that were not measured, with the reason."""
    return {record["runtime"]: record["failed"] for record in records if "failed" in record}


def grid(records: Iterable[Record], column: str, cell: Callable[[Record], str]) -> list[list[str]]:
    """Rows of cells, a row for each runtime and a column for each value of ``column``."""
    cells = {(record["runtime"], record[column]): cell(record) for record in records if "failed" not in record}
    columns = list(dict.fromkeys(value for _, value in cells))
    rows = [["", *map(str, columns)]]
    for runtime in dict.fromkeys(runtime for runtime, _ in cells):
        rows.append([runtime, *(cells.get((runtime, value), "-") for value in columns)])
    return rows


def ratios(records: Iterable[Record], backend: str) -> dict[tuple[int, int, int], tuple[float, str]]:
    """By (size, batch, threads): how many times faster ``alnumpy BACKEND`` is than the best peer, and which that is."""
    cases: dict[tuple[int, int, int], dict[str, float]] = {}
    for record in records:
        if "failed" not in record:
            case = record["size"], record["batch"], record["threads"]
            cases.setdefault(case, {})[record["runtime"]] = record["median_ms"]
    result = {}
    for case, times in cases.items():
        peers = [(ms, name) for name, ms in times.items() if not name.startswith("alnumpy")]
        if peers and f"alnumpy {backend}" in times:
            ms, name = min(peers)
            result[case] = ms / times[f"alnumpy {backend}"], name
    return result


def show_ratios(records: Sequence[Record]) -> None:
    """One line per backend: the ratios to the best peer and their geometric mean."""
    for backend in ("compiled", "numpy"):
        if found := ratios(records, backend):
            parts = []
            for (size, batch, threads), (ratio, peer) in found.items():
                case = f"{size}" if batch == 1 else f"{size} with {threads} thread{'s'[: threads > 1]}"
                parts.append(f"{ratio:.2f} at {case} ({peer})")
            mean = math.exp(sum(math.log(ratio) for ratio, _ in found.values()) / len(found))
            print(f"alnumpy {backend} over the best peer: {', '.join(parts)}; geometric mean {mean:.2f}")


def show_summary(records: Sequence[Record]) -> None:
    """How many times faster the compiled kernels are than the best peer, for several networks."""
    rows, every = [], []
    sizes = list(dict.fromkeys(record["size"] for record in records))
    for network in dict.fromkeys(record["network"] for record in records):
        found = ratios([record for record in records if record["network"] == network], "compiled")
        by_size = {size: f"{ratio:.2f} ({peer})" for (size, _, _), (ratio, peer) in found.items()}
        every += [ratio for ratio, _ in found.values()]
        rows.append([network, *(by_size.get(size, "-") for size in sizes)])
    show("alnumpy compiled over the best peer", [["", *map(str, sizes)], *rows])
    if every:
        mean = math.exp(sum(map(math.log, every)) / len(every))
        print(f"geometric mean {mean:.2f}, least {min(every):.2f}")


def show_cores(records: Sequence[Record]) -> None:
    """One line for each number of threads: whether the runtimes kept to it."""
    for threads in dict.fromkeys(record["threads"] for record in records):
        chosen = [(r["cores"], r["runtime"]) for r in records if "failed" not in r and r["threads"] == threads]
        (few, least), (many, most) = min(chosen), max(chosen)
        print(f"cores in use of {threads} allowed: {few:.2f} ({least}) to {many:.2f} ({most})")


def show_latency(network: str, records: Sequence[Record], ceiling: Record, spec: Spec) -> None:
    """Times by size, ratios, and the fraction of the ceiling."""
    threads = f"{ceiling['threads']} thread{'s'[: ceiling['threads'] > 1]}"
    cell = "{median_ms:.2f} [{p10_ms:.2f}-{p90_ms:.2f}]"
    rows = grid(records, "size", lambda r: cell.format(**r))
    show(
        f"{network}: latency of one picture by its side in pixels, ms: median [10%-90%], {threads}",
        rows,
        failures(records),
    )
    show_cores(records)
    show_ratios(records)
    print(
        f"ceiling of {threads}: {ceiling['gflops']:.0f} GFLOP/s of float32 FMA, {ceiling['sgemm']:.0f} of a "
        f"matrix product (1024x1024), {ceiling['copy_gbytes']:.1f} GB/s read and written by copying, "
        f"{ceiling['cache_gbytes']:.0f} in the cache"
    )
    if "failed" in ceiling:
        print(ceiling["failed"])

    def fraction(record: Record) -> str:
        return f"{network_flops(spec, record['size']) / (record['median_ms'] * 1e6) / ceiling['gflops']:.1%}"

    work = {r["size"]: f"{network_flops(spec, r['size']) / 1e6:.1f}" for r in records}
    rows = [["", *map(str, work)], ["convolutions, MFLOP", *work.values()], *grid(records, "size", fraction)[1:]]
    show("convolution FLOPs / time, as fraction of the ceiling", rows)


def show_batch(network: str, records: Sequence[Record], batch: int) -> None:
    """Pictures per second by size and threads, scaling and ratios."""

    def label(record: Record) -> str:
        return f"{record['size']}x{record['size']}, {record['threads']} thr."

    labelled = [record | {"case": label(record)} for record in sorted(records, key=lambda r: (r["size"], r["threads"]))]
    rows = grid(labelled, "case", lambda r: f"{1e3 * batch / r['median_ms']:.1f}")
    show(f"{network}: batches of {batch}, pictures per second, medians", rows, failures(records))
    few, most = min(r["threads"] for r in records), max(r["threads"] for r in records)
    if few != most:
        times = {(r["runtime"], r["size"], r["threads"]): r["median_ms"] for r in records if "failed" not in r}
        scaling = [
            {"runtime": name, "size": size, "scaling": ms / times[name, size, most]}
            for (name, size, threads), ms in times.items()
            if threads == few and (name, size, most) in times
        ]
        show(f"scaling, {most} threads over {few}", grid(scaling, "size", lambda r: f"{r['scaling']:.2f}"))
    show_cores(records)
    show_ratios(records)


def show_cold(records: Sequence[Record]) -> None:
    """Wall time and peak memory of whole processes."""
    cells = "{runtime}|{median_ms:.0f}|{p10_ms:.0f}-{p90_ms:.0f}|{peak_mb:.0f}"
    rows = [["", "ms", "10%-90%", "peak MB"]]
    rows += [cells.format(**record).split("|") for record in records if "failed" not in record]
    show("one picture as a whole process, 1 thread, files and kernels cached", rows, failures(records))


def show_installed(records: Sequence[Record]) -> None:
    """Bytes on disk."""
    rows = [["", "MB", "of which"]]
    for r in records:
        if "failed" not in r:
            parts = sorted(r["parts_mb"].items(), key=lambda part: -part[1])
            rows.append([r["runtime"], f"{r['mb']:.1f}", ", ".join(f"{name} {mb:.1f}" for name, mb in parts[:4])])
    show("installed size with dependencies, without bytecode", rows, failures(records))


def roofline(record: Record, ceiling: Record) -> str:
    """The least time that the core's rate and its cache's allow, over the time of an operator."""
    if not record["gflops"] or not record.get("bytes"):
        return ""
    work = record["gflops"] * record["median_ms"] / ceiling["gflops"]
    return f"{max(work, 1e-6 * record['bytes'] / ceiling['cache_gbytes']) / record['median_ms']:.0%}"


def show_profile(network: str, records: Sequence[Record], ceiling: Record) -> None:
    """Operators of each backend at each size."""
    for backend, size in dict.fromkeys((r["backend"], r["size"]) for r in records):
        chosen = [r for r in records if (r["backend"], r["size"]) == (backend, size)]
        if "failed" in chosen[0]:
            print(f"\nalnumpy {backend} at {size}x{size}: not measured: {chosen[0]['failed']}")
            continue
        rows = [["", "ms", "share", "GFLOP/s", "of the roofline"]]
        for r in chosen:
            rate = "" if r["gflops"] is None else f"{r['gflops']:.1f}"
            share = "" if r["share"] is None else f"{r['share']:.1%}"
            rows.append([r["operator"], f"{r['median_ms']:.3f}", share, rate, roofline(r, ceiling)])
        total = sum(r["median_ms"] for r in chosen if r["share"] is not None)
        show(f"{network}: operators of alnumpy {backend} at {size}x{size} one by one, {total:.2f} ms in all", rows)


def plot(file: str, records: Sequence[Record], ceiling: Record, spec: Spec) -> None:
    """Latency by size on logarithmic axes, and the time in which the ceiling would do the convolutions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    timed = [record for record in records if "failed" not in record]
    for runtime in dict.fromkeys(record["runtime"] for record in timed):
        own = [record for record in timed if record["runtime"] == runtime]
        sizes, medians = [r["size"] for r in own], [r["median_ms"] for r in own]
        ours = runtime.startswith("alnumpy")
        (line,) = axes.plot(sizes, medians, "o-" if ours else "s--", linewidth=2 if ours else 1, label=runtime)
        p10, p90 = [r["p10_ms"] for r in own], [r["p90_ms"] for r in own]
        axes.fill_between(sizes, p10, p90, color=line.get_color(), alpha=0.15)
    sizes = sorted({record["size"] for record in timed})
    least = [network_flops(spec, size) / ceiling["gflops"] / 1e6 for size in sizes]
    axes.plot(sizes, least, "k:", label=f"ceiling: convolutions at {ceiling['gflops']:.0f} GFLOP/s")
    axes.set(xscale="log", yscale="log", xlabel="side of the picture, pixels", ylabel="latency of one picture, ms")
    axes.set_xticks(sizes, map(str, sizes), minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(True, alpha=0.3)
    axes.set_title(f"{spec.name}, {ceiling['threads']} thread{'s'[: ceiling['threads'] > 1]}, {cpu_name()}")
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=150)


def cpu_name() -> str:
    """The CPU's name, if the system tells it."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Version of each package that takes part and is installed."""
    packages = ("alnumpy", "numpy", "numba", "llvmlite", "torch", "onnx", "onnxruntime", "openvino", "ncnn", "pnnx")
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in packages}
    return {"python": platform.python_version()} | {name: dist.version for name, dist in found.items() if dist}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", default=[weights.default_path().stem], help="weights or presets (default: %(default)s)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 32, 64, 128, 160], help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=30, help="rounds of the latency part; others take fewer (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="latency at the first, batches at each (default: 1 2)"
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", help="parts (default: all but profile)")
    parser.add_argument("--profile", action="store_true", help="add the profile of alnumpy's operators")
    parser.add_argument("--torch-compile", action="store_true", help="add torch.compile: minutes more for each input")
    parser.add_argument("--quick", action="store_true", help="few rounds, small input: checks the tool, not the speed")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--plot", metavar="FILE", help="write a plot of the latencies to this file; needs matplotlib")
    args = parser.parse_args()
    if any(not list(metadata.distributions(name=name)) for name in (["matplotlib"] if args.plot else []) + ["torch"]):
        sys.exit("benchmark.py needs torch, and matplotlib for --plot: pip install 'alnumpy[bench]'")
    parts = set(args.only or PARTS[:-1]) | ({"profile"} if args.profile else set())
    if args.plot and "latency" not in parts:
        parser.error("--plot shows the latencies, which --only leaves out")
    batch, batch_sizes, rounds, few = 64, [32, 128], args.rounds, max(2, args.rounds // 3)
    if args.quick:
        batch, batch_sizes, args.sizes, rounds, few = 4, [28], [28], 2, 1
    names = [name for name in RUNTIMES if args.torch_compile or name != "torch.compile"]
    specs, first = {name: read_network(name).spec for name in args.networks}, args.threads[0]

    result: dict[str, Any] = {
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "system": platform.platform()},
        "load_before": os.getloadavg()[0],
        "versions": versions(),
    }
    print(f"{cpu_name()}, {os.cpu_count()} CPUs, {platform.platform()}, load {result['load_before']:.2f}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    if not args.torch_compile:
        print("torch.compile: left out; --torch-compile adds it")
    if parts & {"latency", "profile"}:
        result["ceiling"] = in_fresh_process(first, measure_ceiling, first, 0.2 if args.quick else 2)
    if "latency" in parts:
        cases = [(1, size) for size in args.sizes]
        latency_names = [name for name in names if name != "OpenVINO async"]
        result["latency"], ceiling = [], result["ceiling"]
        for network, spec in specs.items():
            records = in_fresh_process(first, measure, cases, latency_names, network, first, rounds)
            result["latency"] += records
            show_latency(network, records, ceiling, spec)
        if len(specs) > 1:
            show_summary(result["latency"])
        if args.plot:
            own = [record for record in result["latency"] if record["network"] == args.networks[0]]
            plot(args.plot, own, ceiling, specs[args.networks[0]])
    if "batch" in parts:
        result["batch"] = []
        cases = [(batch, size) for size in batch_sizes]
        for network in specs:
            records = []
            for threads in args.threads:
                records += in_fresh_process(threads, measure, cases, names, network, threads, few)
            result["batch"] += records
            show_batch(network, records, batch)
    if "cold" in parts:
        with tempfile.TemporaryDirectory() as folder:
            result["cold"] = in_fresh_process(1, measure_cold, args.networks[0], folder, few)
        show_cold(result["cold"])
    if "installed" in parts:
        result["installed"] = measure_installed()
        show_installed(result["installed"])
    if "profile" in parts:
        result["profile"] = []
        for network in specs:
            records = in_fresh_process(1, measure_profile, args.sizes, network, rounds)
            result["profile"] += records
            show_profile(network, records, result["ceiling"])
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
