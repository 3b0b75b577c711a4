#!/usr/bin/env python3
"""Measures a gallery: search beside faiss, memory and recall of its number formats, and where indexing spends time.

    python tools/dev/benchmark_gallery.py FOLDER_OF_PICTURES --json gallery.json

search: a gallery's search and faiss's IndexFlatL2 over the same vectors, in turn, with the same threads; medians. Both
must find the same. Then the whole process of `alnumpy search photo.jpg`: its time, its peak memory, the file's size.
duplicates: all groups within some distances. recall: share of the ten nearest pictures by float32 that a smaller format
also finds, for the pictures of FOLDER as queries of the others. indexing: photographs of 12 megapixels, drawn here.
Needs faiss: pip install 'alnumpy[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
K = 10
# The peak that Linux reports to a parent begins with the parent's own memory, so the process reports its own.
ALONE = """
import sys
from alnumpy.cli import main
code = main(sys.argv[1:])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median milliseconds of each, run in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in times.items()}


def embeddings_of(folder: Path, scratch: Path) -> Any:
    """The embeddings of real pictures, float32 (n, 1280)."""
    import numpy as np

    import alnumpy
    from alnumpy.gallery import Gallery

    with Gallery(scratch / "real.db", alnumpy.load(), "a") as gallery:
        gallery.index(folder)
        vectors = np.array([picture.embedding for picture in gallery if picture.embedding is not None])
    if len(vectors) <= K:
        sys.exit(f"{folder}: recall@{K} needs more than {K} pictures, not {len(vectors)}")
    return vectors


def make_gallery(path: Path, vectors: Any, dtype: str) -> None:
    """A gallery of embeddings, without pictures."""
    import hashlib
    from dataclasses import replace

    import alnumpy
    from alnumpy import packed, sketch
    from alnumpy.database import Database
    from alnumpy.settings import Settings

    db = Database(path, True)
    settings = replace(Settings.of(alnumpy.load(), dtype=dtype), dimension=vectors.shape[1])
    with db.transaction():
        db.set_meta("settings", settings.to_json())
        for start in range(0, len(vectors), 1024):
            for i, row in enumerate(packed.encode(vectors[start : start + 1024], dtype), start):
                hash = hashlib.sha256(b"%d" % i).digest()
                content = [hash, row.tobytes()]
                db.run("INSERT INTO contents (hash, width, height, embedding) VALUES (?, 1, 1, ?)", content)
                values = [b"/home/pictures/%09d.jpg" % i, hash]
                sql = "INSERT INTO pictures (path, size, mtime_ns, hash, added, vanished) VALUES (?, 1, 1, ?, '', 0)"
                db.run(sql, values)
    with db.transaction():
        sketch.renew(db, settings)
    db.close()


def benchmark_search(
    real: Any, photo: Path, scratch: Path, count: int, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each number of queries at once, and one for the whole process of one search.

    The gallery: mixtures of two real embeddings each, with noise, which vary along as many axes as real ones do.
    """
    import faiss
    import numpy as np

    from alnumpy import packed
    from alnumpy.gallery import Gallery

    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(0)
    queries, real = real[:100], real[100:]
    vectors = np.empty((count, real.shape[1]), np.float32)
    for start in range(0, count, 1000):
        part = vectors[start : start + 1000]
        share = rng.random((len(part), 1), np.float32)
        one, other = (real[rng.integers(0, len(real), len(part))] for _ in range(2))
        part[:] = share * one + (1 - share) * other
        part += rng.standard_normal(part.shape, np.float32) * real.std(0) * np.float32(0.5)
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    for dtype in packed.DTYPES:
        make_gallery(scratch / f"{dtype}.db", vectors, dtype)
    del vectors
    galleries = {dtype: Gallery(scratch / f"{dtype}.db") for dtype in packed.DTYPES}
    found = [[int(match.path[-13:-4]) for match in matches] for matches in galleries["float32"].search(queries, K)]
    if not (found == index.search(queries, K)[1]).all():
        sys.exit("faiss and alnumpy do not find the same")
    table = []
    for at_once in (1, 100):
        some = queries[:at_once]
        runs: dict[str, Callable[[], object]] = {"faiss": lambda some=some: index.search(some, K)}  # type: ignore[misc]
        for dtype, gallery in galleries.items():
            runs[dtype] = lambda some=some, gallery=gallery: gallery.search(some, K)  # type: ignore[misc]
        row: dict[str, Any] = {"queries": at_once}
        table.append(row | {f"{name} ms": round(ms, 2) for name, ms in medians(runs, rounds).items()})
    for name in ("a process, ms", "its memory, MB", "file, MB"):
        table.append({"queries": name})
    for dtype, gallery in galleries.items():
        gallery.close()
        command = ["search", str(photo), "--db", gallery.path]
        times, memory = zip(*(run_alone(command) for _ in range(rounds)), strict=True)
        values = (median(times) * 1e3, median(memory), os.path.getsize(gallery.path) / 1e6)
        for row, value in zip(table[-3:], values, strict=True):
            row[f"{dtype} ms"] = round(value)
    return table


def run_alone(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process that runs an alnumpy command, the start of Python included."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", ALONE, *command], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stderr.split()[-1]) / 1e3


def benchmark_recall(vectors: Any, scratch: Path) -> list[dict[str, Any]]:
    """A row for each number format, on the embeddings of real pictures."""
    import numpy as np

    from alnumpy import packed
    from alnumpy.gallery import Gallery

    queries = np.arange(len(vectors))[:: -(-len(vectors) // 1000)]  # a thousand at most
    exact: list[set[int]] = []
    table = []
    for dtype in packed.DTYPES:
        make_gallery(scratch / f"recall-{dtype}.db", vectors, dtype)
        with Gallery(scratch / f"recall-{dtype}.db") as gallery:
            results = gallery.search(vectors[queries], K + 1)
        nearest = []
        for i, matches in zip(queries, results, strict=True):
            indices = [int(match.path[-13:-4]) for match in matches]
            nearest.append(set([j for j in indices if j != i][:K]))
        exact = exact or nearest
        recall = np.mean([len(a & b) / K for a, b in zip(exact, nearest, strict=True)])
        row = {"dtype": dtype, "pictures": len(vectors), "bytes each": packed.row_length(vectors.shape[1], dtype)}
        table.append(row | {f"recall@{K}": round(float(recall), 4)})
    return table


def benchmark_duplicates(scratch: Path, thresholds: list[float]) -> list[dict[str, Any]]:
    """Seconds for all pairs within some distances, in the gallery of ``benchmark_search``."""
    from alnumpy.gallery import Gallery

    table = []
    with Gallery(scratch / "float32.db") as gallery:
        for threshold in thresholds:
            start = time.perf_counter()
            groups = gallery.groups(threshold)
            row = {"distance": threshold, "pictures": sum(map(len, groups))}
            table.append(row | {"seconds": round(time.perf_counter() - start, 1)})
    return table


def draw_photographs(folder: Path, count: int) -> None:
    """JPEGs of 4000x3000: smooth colours, edges and sensor noise, which compress like photographs."""
    import numpy as np
    from PIL import Image

    for i in range(count):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels[rng.integers(0, 3000) :, rng.integers(0, 4000) :] //= 2
        pixels += rng.integers(-6, 7, (3000, 4000, 1), dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def benchmark_indexing(scratch: Path, count: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per photograph: the steps one by one in one thread, and a whole run of ``Gallery.index``."""
    import alnumpy
    from alnumpy import images
    from alnumpy.gallery import Gallery

    photos = scratch / "photos"
    photos.mkdir()
    draw_photographs(photos, count)
    paths = sorted(photos.iterdir())
    megabytes = sum(path.stat().st_size for path in paths) / 1e6 / count
    embedder = alnumpy.load(size=size)
    table = []
    for fast in (False, True):
        times = defaultdict(list)
        for number in range(rounds):
            for path in paths:
                start = time.perf_counter()
                image, _ = images.read_file(path, draft=embedder.preprocessing.draft if fast else 0)
                decoded = time.perf_counter()
                x = images.preprocess(image, embedder.preprocessing)
                resized = time.perf_counter()
                embedder.forward(x[None])
                times["decode"].append(decoded - start)
                times["resize"].append(resized - decoded)
                times["embed"].append(time.perf_counter() - resized)
            with Gallery(scratch / f"{fast}{number}.db", embedder, "a", fast_decode=fast) as gallery:
                times["index"].append(gallery.index(photos).seconds / count)
        row: dict[str, Any] = {"fast decode": fast, "size": size, "MB each": round(megabytes, 1)}
        table.append(row | {f"{step} ms": round(median(values) * 1e3, 1) for step, values in times.items()})
    return table


def show(title: str, table: list[dict[str, Any]]) -> None:
    """A table as aligned text."""
    print(f"\n{title}")
    columns = list(table[0])
    for cells in (columns, *([str(row.get(column, "")) for column in columns] for row in table)):
        print("".join(cell.rjust(14) for cell in cells))


def main() -> None:
    """Runs all parts, prints tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="FOLDER", help="folder of real pictures, for recall")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every part (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100_000, help="vectors to search (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=8, help="photographs to index (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=160, help="side of the network's input in pixels (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables to this file")
    args = parser.parse_args()
    if not args.pictures.is_dir():
        parser.error(f"{args.pictures} is not a folder")
    for variable in THREAD_VARIABLES:  # before NumPy is imported
        os.environ[variable] = str(args.threads)
    os.environ["ALNUMPY_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as name:
        real = embeddings_of(args.pictures, Path(name))
        photo = next(path for path in sorted(args.pictures.rglob("*.jpg")) if path.is_file())
        tables = {
            "search": benchmark_search(real, photo, Path(name), args.count, args.threads, args.rounds),
            "duplicates": benchmark_duplicates(Path(name), [0.25, 0.5, 0.75]),
            "recall": benchmark_recall(real, Path(name)),
            "indexing": benchmark_indexing(Path(name), args.photos, args.size, max(1, args.rounds // 3)),
        }
    for title, table in tables.items():
        show(title, table)
    if args.json:
        args.json.write_text(json.dumps(vars(args) | tables, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
