"""Measures a gallery of a million rows: its size, and time and memory of a search and of an export.

    python tools/dev/benchmark_scale.py gallery.db --rows 1000000 --dtype int8

The rows are mixtures of two embeddings of a real gallery each, with noise, and so are the queries, which are no rows.
Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from alnumpy import packed, sketch
from alnumpy.database import Database
from alnumpy.gallery import Gallery
from alnumpy.settings import Settings

PART = 4096
QUERIES = 22  # the first fills the caches
SEARCH = """
import sys, time, numpy as np
from alnumpy.gallery import Gallery
queries = np.load(sys.argv[2])
with Gallery(sys.argv[1]) as gallery:
    times = []
    for query in queries:
        start = time.perf_counter()
        found = gallery.search(query, 10)[0]
        times.append(time.perf_counter() - start)
        distances = [match.distance for match in found]
        assert len(found) == 10 and distances == sorted(distances) and distances[0] > 1e-3
print(f"first search {times[0]:.2f} s, then {np.median(times[1:]) * 1e3:.0f} ms", end=", ")
"""
EXPORT = """
import sys, time
from alnumpy.exporting import export
start = time.perf_counter()
rows, _ = export(*sys.argv[1:])
print(f"{rows} rows in {time.perf_counter() - start:.0f} s", end=", ")
"""
MEMORY = """
print("peak", *(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")), "MB")
"""


def mixtures(real: np.ndarray, rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Embeddings float32, a part at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        first, second = real[rng.integers(0, len(real), (2, count))]
        share = rng.random((count, 1), np.float32)
        part = share * first + (1 - share) * second
        part += rng.standard_normal(part.shape, np.float32) * (0.2 * np.abs(part).mean())
        yield part / np.linalg.norm(part, axis=1, keepdims=True)


def make(path: Path, settings: Settings, real: np.ndarray, rows: int) -> None:
    """A gallery of mixtures, without pictures."""
    db = Database(path, True)
    i = 0
    with db.transaction():
        db.set_meta("settings", settings.to_json())
        for part in mixtures(real, rows):
            hashes = [hashlib.sha256(b"%d" % (i + j)).digest() for j in range(len(part))]
            stored = [row.tobytes() for row in packed.encode(part, settings.dtype)]
            db.run_each(
                "INSERT INTO contents (hash, width, height, embedding) VALUES (?, 1, 1, ?)",
                zip(hashes, stored, strict=True),
            )
            db.run_each(
                "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, 1, 1, ?, '', 0)",
                [(b"/home/pictures/%09d.jpg" % (i + j), hash) for j, hash in enumerate(hashes)],
            )
            i += len(part)
    with db.transaction():
        sketch.renew(db, settings)
    db.close()


def main() -> None:
    """Prints each measurement as a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gallery", help="a gallery of real pictures")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dtype", choices=packed.DTYPES, default="float32")
    parser.add_argument("--formats", nargs="*", default=["npz", "parquet"])
    parser.add_argument("--keep", metavar="FILE", help="keep the gallery that is made there")
    args = parser.parse_args()
    if args.keep and os.path.lexists(args.keep):
        parser.error(f"{args.keep}: exists already")
    with Gallery(args.gallery) as gallery:
        real = np.array([picture.embedding for picture in gallery if picture.embedding is not None])
        settings = replace(gallery.settings, dtype=args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path, queries = Path(args.keep or Path(folder, "gallery.db")), Path(folder, "queries.npy")
        np.save(queries, next(mixtures(real, QUERIES, seed=1)))
        start = time.perf_counter()
        make(path, settings, real, args.rows)
        size = os.path.getsize(path)
        seconds = time.perf_counter() - start
        print(f"{args.rows} x {real.shape[1]} {args.dtype}: {size / 1e6:.0f} MB, made in {seconds:.0f} s", flush=True)
        print("search: ", end="", flush=True)
        subprocess.run([sys.executable, "-c", SEARCH + MEMORY, path, queries], check=True)
        for format in args.formats:
            print(f"{format}: ", end="", flush=True)
            output = Path(folder, f"out.{format}")
            subprocess.run([sys.executable, "-c", EXPORT + MEMORY, path, output, format], check=True)
            print(f"{format}: {output.stat().st_size / 1e6:.0f} MB", flush=True)
            output.unlink()


if __name__ == "__main__":
    main()
