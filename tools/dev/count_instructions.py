#!/usr/bin/env python3
"""Count the instructions that one picture takes on other CPUs, emulated: NumPy's and the packaged kernels'.

    python tools/dev/count_instructions.py --roots FOLDER > table.md

FOLDER holds the roots that .ci/foreign made: a Debian for each CPU. Needs cc and qemu's user mode with plugins
(Debian's qemu-user), but neither an ARM nor a RISC-V: a change that is bad for a Raspberry Pi shows without one. Counts
are not times: NumPy's are with Debian's default BLAS, which OpenBLAS surpasses; waiting for memory is not counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).with_suffix(".c")
PICTURES = {"ALNet at 48": ("alnet-photo", 48), "EfficientNet-Lite0 at 128": ("efficientnet-lite0", 128)}
EMBED = """
import sys, numpy as np, alnumpy
name, size, backend, count = sys.argv[1:]
embedder = alnumpy.load(name, backend=backend, threads=1)
x = np.full((1, 3, int(size), int(size)), 0.3, np.float32)
for _ in range(int(count)):
    embedder.forward(x)
"""


class Cpu(NamedTuple):
    """How a CPU is emulated."""

    root: str  # the folder of its Debian
    qemu: str  # the emulator's name
    model: str
    library: str


CPUS = {  # by the printed name
    "aarch64 (Cortex-A72)": Cpu("arm64", "aarch64", "cortex-a72", "linux-aarch64.so"),
    "armv7 (Cortex-A15)": Cpu("armhf", "arm", "cortex-a15", "linux-armv7.so"),
    "riscv64": Cpu("riscv64", "riscv64", "rv64", "linux-riscv64.so"),
    "riscv64 with V": Cpu("riscv64", "riscv64", "rv64,v=true,vext_spec=v1.0,vlen=128", "linux-riscv64-v.so"),
}


def count(plugin: Path, roots: Path, cpu: Cpu, picture: tuple[str, int], backend: str) -> float:
    """Instructions per picture: those of three more pictures, divided by three."""
    root = roots / cpu.root

    def run(pictures: int) -> int:
        environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        environment["ALNUMPY_CACHE_DIR"] = "/dev/null"  # nothing is kept, so that all runs begin alike
        environment["ALNUMPY_LIBRARY"] = str(ROOT / "alnumpy" / "kernels" / "lib" / cpu.library)
        settings = [word for pair in environment.items() for word in ("-E", "=".join(pair))]
        program = [root / "usr/bin/python3", "-c", EMBED, picture[0], str(picture[1]), backend, str(pictures)]
        emulator = [f"qemu-{cpu.qemu}", "-L", root, "-cpu", cpu.model, "-plugin", plugin]
        done = subprocess.run(
            list(map(str, [*emulator, *settings, *program])), capture_output=True, text=True, check=True
        )
        return int(done.stderr.split("instructions ")[1].split()[0])

    return (run(4) - run(1)) / 3


def main() -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roots", type=Path, required=True, help="folder with the roots of .ci/foreign")
    args = parser.parse_args()
    print("| CPU | network | NumPy | compiled | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "count.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", plugin, PLUGIN], check=True)
        for name, cpu in CPUS.items():
            for network, picture in PICTURES.items():
                ours, theirs = (count(plugin, args.roots, cpu, picture, backend) for backend in ("compiled", "numpy"))
                print(f"| {name} | {network} | {theirs / 1e6:,.0f} M | {ours / 1e6:,.1f} M | {theirs / ours:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
