"""Measures indexing with workers: what one and two add, and how many pictures the one writer takes.

    python tools/dev/benchmark_workers.py [--pictures 400] [--rows 100000]

The pictures are JPEGs of 12 megapixels that differ in content but not in pixels. The workers are Dask's, processes of
one thread on this machine. The writer alone is measured with an executor that has random embeddings of 1280 components
ready at once, so that nothing but storing takes time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import alnumpy
from alnumpy.cli.scheduler import workers
from alnumpy.gallery import Gallery
from alnumpy.ingest import Ingest
from alnumpy.scan import Found, Stamp
from alnumpy.worker import Read
from benchmark_memory import encoded, photo, variant

ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # for NumPy, as Dask's own nanny sets them


class Ready(Executor):
    """An executor whose tasks are done at once: every path has an embedding of its own."""

    def __init__(self) -> None:
        bank = np.maximum(np.random.default_rng(0).normal(0, 1, (4096, 1280)), 0).astype("<f4")
        self.bank = [row.tobytes() for row in bank]

    def submit(self, function: Any, /, *values: Any, **named: Any) -> Future[Any]:
        """The files' results: an embedding of the bank each, and a hash of the path."""
        reads = []
        for path, _ in values[1]["files"]:
            hash = hashlib.sha256(path.encode()).digest()
            vector = self.bank[int.from_bytes(hash[:2], "big") % len(self.bank)]
            reads.append(Read(path, Stamp(1, 1, 1), hash, 4032, 3024, vector=vector))
        future: Future[Any] = Future()
        future.set_result(reads)
        return future


def writer(folder: Path, rows: int, dtype: str) -> None:
    """Prints how many pictures per second one process stores, at the beginning and at the end."""
    times = [time.perf_counter()]

    def note(done: int, total: int) -> None:
        if done >= len(times) * rows // 10:
            times.append(time.perf_counter())

    with Gallery(folder / f"{dtype}.db", alnumpy.load(), "a", dtype=dtype) as gallery:
        assert gallery._encoder is not None
        assert gallery._writer is not None
        ingest = Ingest(gallery._writer, gallery._encoder, gallery.batch_size, note, Ready())
        times[0] = time.perf_counter()
        ingest.update(Found({f"/archive/{i // 1000:04}/{i:07}.jpg" for i in range(rows)}))
    first, last = (rows / 10 / (times[i + 1] - times[i]) for i in (0, len(times) - 2))
    print(f"writer alone, {rows} rows of {dtype}: {first:.0f}/s at first, {last:.0f}/s at last", flush=True)


@contextmanager
def dask(folder: Path, count: int) -> Iterator[Executor]:
    """The workers of a scheduler, all on this machine."""
    from distributed import Client

    file = folder / f"scheduler-{count}.json"
    start = [sys.executable, "-m"]
    options: dict[str, Any] = {"cwd": folder, "env": os.environ | ALONE, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        command = [*start, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        scheduler = stack.enter_context(subprocess.Popen([*command, "--scheduler-file", file], **options))
        stack.callback(scheduler.kill)
        while not file.exists() or not file.read_text().endswith("\n}"):
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        command = [*start, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        for _ in range(count):
            worker = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(worker.kill)
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
        yield stack.enter_context(workers(address))


@contextmanager
def pool(count: int) -> Iterator[Executor]:
    """A pool of processes."""
    os.environ |= ALONE
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as made:
        yield made


def index(folder: Path, name: str, executor: Executor | None, threads: int = 1) -> None:
    """Prints pictures per second from the third batch on, so without the time to load what workers need."""
    times: list[tuple[int, float]] = []
    with Gallery(folder / f"{name}.db", alnumpy.load(threads=threads), "a", batch_size=8) as gallery:
        gallery.index(
            folder / "pictures", executor=executor, progress=lambda done, _: times.append((done, time.perf_counter()))
        )
    (before, start), (after, end) = times[2], times[-1]
    print(f"{name}; {(after - before) / (end - start):.1f} pictures/s", flush=True)


def main() -> None:
    """Prints a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        picture = encoded(photo(4032, 3024), "JPEG", quality=90)
        for number in range(args.pictures):
            (folder / "pictures" / f"{number:04}.jpg").write_bytes(variant(picture, number))
        for threads in (1, 2):
            index(folder, f"threads of one process: {threads}", None, threads)
        for count in (1, 2):
            with dask(folder, count) as executor:
                index(folder, f"workers of Dask: {count}", executor)
        with pool(2) as executor:
            index(folder, "processes of a pool: 2", executor)
        for dtype in ("float32", "int8"):
            writer(folder, args.rows, dtype)


if __name__ == "__main__":
    main()
