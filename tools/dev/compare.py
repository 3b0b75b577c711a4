#!/usr/bin/env python3
"""Compare the speed of several commits of alnumpy side by side, in one run.

    python tools/dev/compare.py HEAD~1 HEAD
    python tools/dev/compare.py HEAD . --sizes 28 160             # a dot is the working tree

Each revision runs in a process of its own, with its own kernels; the processes take turns, round by round, so
that a disturbance of the machine affects all of them alike. Prints the median over the rounds of one picture's time,
and how many times faster that is than the revision before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "alnet-mnist.h5"  # a file that even early revisions read

# Reads one side length per line and answers with the seconds of one picture, the shortest of some repetitions.
WORKER = """
import sys, time, numpy, alnumpy
embedder = alnumpy.load(sys.argv[2], backend=sys.argv[1], threads=1)
for line in sys.stdin:
    x = numpy.random.default_rng(0).normal(size=(1, 3, int(line), int(line))).astype(numpy.float32)
    embedder.forward(x)
    least, end = float("inf"), time.perf_counter() + 0.1
    while time.perf_counter() < end:
        start = time.perf_counter()
        embedder.forward(x)
        least = min(least, time.perf_counter() - start)
    print(least, flush=True)
"""


def unpack(revision: str, folder: Path) -> Path:
    """The tree of a commit in a new folder; "." is the working tree. Raises CalledProcessError for unknown ones."""
    if revision == ".":
        return ROOT
    archive = subprocess.run(
        ["git", "archive", revision, "alnumpy"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def start(tree: Path, cache: Path, backend: str) -> subprocess.Popen[str]:
    """A worker that runs the alnumpy of ``tree``."""
    environment = os.environ | {"PYTHONPATH": str(tree), "ALNUMPY_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, backend, str(WEIGHTS)]
    return subprocess.Popen(
        command, env=environment, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(worker: subprocess.Popen[str], size: int) -> float:
    """Seconds of one picture. Raises EOFError if the worker died."""
    assert worker.stdin
    assert worker.stdout
    print(size, file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise EOFError
    return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="+", help="commits in git's notation, or . for the working tree")
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 128], help="default: 28 128")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--backend", choices=("numba", "numpy"), default="numba", help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        workers = []
        try:
            for i, revision in enumerate(args.revisions):
                tree = Path(scratch, f"tree{i}")
                workers.append(start(unpack(revision, tree), Path(scratch, f"cache{i}"), args.backend))
                ask(workers[-1], min(args.sizes))  # compiles, one revision at a time
            times = {
                size: [[ask(worker, size) for worker in workers] for _ in range(args.rounds)] for size in args.sizes
            }
        except (subprocess.CalledProcessError, EOFError):
            sys.exit(f"compare.py: {revision}: not a commit, or its alnumpy does not run")
        finally:
            for worker in workers:
                worker.communicate()  # closes its input, and waits
    print(f"{'':12}" + "".join(f"{f'{size} px, ms':>12}{'faster':>8}" for size in args.sizes))
    for i, revision in enumerate(args.revisions):
        cells = ""
        for size in args.sizes:
            ratio = median(row[i - 1] / row[i] for row in times[size]) if i else 1
            cells += f"{1000 * median(row[i] for row in times[size]):12.3f}{ratio:8.2f}"
        print(f"{revision:12}{cells}")


if __name__ == "__main__":
    main()
