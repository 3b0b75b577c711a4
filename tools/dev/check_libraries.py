#!/usr/bin/env python3
"""Run the packaged kernels where there is no Python: the Windows library in Wine, Linux's with musl instead of glibc.

    python tools/dev/check_libraries.py

Every library must give exactly the same bits as this computer's own at the same level. Needs an x86-64 Linux, the extra
``build`` (for its C compiler), and Debian's packages wine and musl; missing ones are named and left out. Exit code 1
for wrong bits, 3 if nothing could be run.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from alnumpy import kernels
from alnumpy.kernels import library
from alnumpy.kernels.abi import NUMBER
from alnumpy.lower import Program, lower
from alnumpy.weights import locate
from alnumpy.weights import read as read_weights
from build_kernels import zig

SOURCE = Path(__file__).with_name("run_library.c")
MUSL = "/lib/ld-musl-x86_64.so.1"
SYSTEMS = {  # printed name: the library, the compiler's name of the system, the program that runs its programs
    "Windows, in Wine": ("windows-x86_64.dll", "x86_64-windows-gnu", shutil.which("wine")),
    "Linux with musl": ("linux-x86_64.so", "x86_64-linux-musl -dynamic", MUSL if os.path.exists(MUSL) else None),
}
NETWORKS = (("alnet-photo", 48), ("alnet-photo", 37), ("efficientnet-lite0", 64))


def write_program(path: Path, name: str, size: int) -> tuple[np.ndarray, Program]:
    """A file for run_library.c, the pictures in it, and the program."""
    weights = read_weights(locate(name))
    program = lower(weights.spec, weights.parameters)
    x = np.random.default_rng(size).standard_normal((3, 3, size, size), np.float32)
    layout = program.layout((size, size))
    counts = [len(x), x[0].size, program.channels, program.weights.size, layout.arena_size, program.tables.size]
    with path.open("wb") as file:
        for array in (np.array([*counts, layout.steps.size]), x, program.weights, program.tables, layout.steps):
            file.write(array.tobytes())
    return x, program


def main() -> int:
    """Returns the exit code."""
    own = ctypes.CDLL(str(library.FOLDER / "linux-x86_64.so"))
    own.alnumpy_level.restype = ctypes.c_int64
    wrong = ran = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for system, (name, target, starter) in SYSTEMS.items():
            if starter is None:
                print(f"{system}: SKIPPED, as it is not installed")
                continue
            program_file = folder / f"run-{name}.exe"
            zig(f"cc -O1 -g0 -target {target} -o", program_file, [SOURCE], folder)
            for level in range(own.alnumpy_level() + 1):
                run = getattr(own, f"alnumpy_run_{level}")
                run.restype, run.argtypes = None, [ctypes.c_int64] * library.ARGUMENTS
                kernels._runners["compiled"] = run
                for weights, size in NETWORKS:
                    x, program = write_program(folder / "program", weights, size)
                    files = [library.FOLDER / name, folder / "program", folder / "y"]
                    command = list(map(str, [starter, program_file, files[0], level, *files[1:]]))
                    environment = os.environ | {"WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all"}
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                    y = np.fromfile(files[2], np.float32) if done.returncode == 0 else np.zeros(0)
                    same = np.array_equal(y, kernels.run(program, x, backend="compiled").ravel())
                    same = same and f"abi {NUMBER} level {own.alnumpy_level()}" in done.stdout
                    what = "equal bits" if same else f"WRONG BITS {done.stdout}{done.stderr}"
                    print(f"{system}, {library.LEVELS[level]}, {weights} at {size}: {what}")
                    wrong, ran = wrong + (not same), ran + 1
    return 1 if wrong else 0 if ran else 3


if __name__ == "__main__":
    sys.exit(main())
