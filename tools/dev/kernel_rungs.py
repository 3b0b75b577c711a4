#!/usr/bin/env python3
"""Climb from a plain 1x1 convolution to alnumpy's kernel for it, and time each rung.

    python tools/dev/kernel_rungs.py                                       # a layer of MobileNetV1 at 224 pixels
    python tools/dev/kernel_rungs.py --pixels 3136 --inputs 24 --outputs 144

All rungs compute the same product, (pixels, inputs) times (inputs, outputs) plus a bias, and are compared with NumPy's
before they are timed, in turn, on one thread. docs/KERNELS.md explains what each rung changes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
from numba import njit

from alnumpy.arena import Packer
from alnumpy.kernels.abi import LINE, NONE, address
from alnumpy.kernels.dense import COLS, ROWS, dense
from alnumpy.kernels.simd import load_tile, outer, store_tile
from alnumpy.lower import CHUNK, TILE_PIXELS, pack_dense
from benchmark import interleave, spread

Run = Callable[[], np.ndarray]


@njit
def plain(x, w, bias, y):
    for p in range(x.shape[0]):
        for o in range(w.shape[0]):
            total = bias[o]
            for k in range(x.shape[1]):
                total += w[o, k] * x[p, k]
            y[p, o] = total


@njit
def outputs_innermost(x, w, bias, y):
    for p in range(x.shape[0]):
        y[p] = bias
        for k in range(x.shape[1]):
            for o in range(w.shape[1]):
                y[p, o] += x[p, k] * w[k, o]


# From here on memory is addressed as in the kernels: by addresses of float32 and indices.


def in_tiles(rows, cols):
    """A function that keeps the sums of ``rows`` pixels by ``cols`` vectors of outputs in registers."""

    @njit
    def tiles(x, w, bias, y, first, last, inputs, outputs):
        for p in range(first, last - rows + 1, rows):
            for o in range(0, outputs - cols * LINE + 1, cols * LINE):
                sums = load_tile(bias, o, 0, rows, cols, LINE)
                for k in range(inputs):
                    sums = outer(sums, x, p * inputs + k, inputs, w, k * outputs + o, rows, cols)
                store_tile(y, p * outputs + o, outputs, sums, cols)

    return tiles


vectors, tiles = in_tiles(1, 1), in_tiles(ROWS, COLS)


@njit
def in_registers(x, w, bias, y, pixels, inputs, outputs):
    vectors(x, w, bias, y, 0, pixels, inputs, outputs)


@njit
def tiled(x, w, bias, y, pixels, inputs, outputs):
    whole = pixels // ROWS * ROWS
    tiles(x, w, bias, y, 0, whole, inputs, outputs)
    vectors(x, w, bias, y, whole, pixels, inputs, outputs)


@njit
def packed(x, w, y, pixels, inputs, outputs, chunk):
    dense(x, w, 0, (y - x) // 4, NONE, 0, pixels, inputs, outputs, inputs, 1, 0, chunk, 0)


def rungs(pixels: int, inputs: int, outputs: int) -> dict[str, Run]:
    """The rungs by name; each returns its result, float32 (pixels, outputs)."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((pixels, inputs), np.float32), rng.standard_normal((inputs, outputs), np.float32)
    bias, y = rng.standard_normal(outputs, np.float32), np.empty((pixels, outputs), np.float32)
    by_output = np.ascontiguousarray(w.T)  # PyTorch's order of the weights of a convolution
    packer = Packer(np.float32)
    pack_dense(packer, outputs, inputs, lambda: (w.T, bias))
    panels, chunk = packer.whole(), max(1, CHUNK // inputs // TILE_PIXELS) * TILE_PIXELS

    def filled(function: Callable[..., None], *arguments: object) -> np.ndarray:
        function(*arguments)
        return y

    def kernel(function: Callable[..., None], *arrays: np.ndarray, more: tuple[int, ...] = ()) -> Run:
        return lambda: filled(function, *map(address, arrays), pixels, inputs, outputs, *more)

    return {
        "plain loops": lambda: filled(plain, x, by_output, bias, y),
        "outputs innermost": lambda: filled(outputs_innermost, x, w, bias, y),
        "sums in a register": kernel(in_registers, x, w, bias, y),
        f"tiles of {ROWS} pixels x {COLS * LINE} outputs": kernel(tiled, x, w, bias, y),
        "weights packed: alnumpy's kernel": kernel(packed, x, panels, y, more=(chunk,)),
        "NumPy's matrix product": lambda: x @ w + bias,
    }


def measure(pixels: int, inputs: int, outputs: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each rung, medians. Raises ValueError if a result differs from NumPy's."""
    runs = rungs(pixels, inputs, outputs)
    expected = runs["NumPy's matrix product"]()
    for name, run in runs.items():
        y = run().astype(np.float64)
        error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
        if not error < 1e-5:
            raise ValueError(f"{name}: relative error {error:.1e}")
    return {name: spread(samples.wall)["median_ms"] for name, samples in interleave(runs, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=196, help="default: 196")
    parser.add_argument("--inputs", type=int, default=512, help="default: 512")
    parser.add_argument("--outputs", type=int, default=512, help="a multiple of 32 (default: 512)")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    args = parser.parse_args()
    times = measure(args.pixels, args.inputs, args.outputs, args.rounds)
    work, before = 2e-6 * args.pixels * args.inputs * args.outputs, None
    print(f"{'':34}{'ms':>9}{'GFLOP/s':>9}{'faster':>8}")
    for name, ms in times.items():
        print(f"{name:34}{ms:9.3f}{work / ms:9.1f}{f'{before / ms:8.2f}' if before else ''}")
        before = ms


if __name__ == "__main__":
    main()
