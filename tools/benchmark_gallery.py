#!/usr/bin/env python3
"""What a gallery costs: search beside faiss, memory and recall of its number formats, and where indexing spends time.

    python tools/benchmark_gallery.py FOLDER_OF_PICTURES --json gallery.json

search: a gallery's search and faiss's IndexFlatL2 over the same vectors, in turn, with the same threads; medians. Both
must find the same. recall: share of the ten nearest pictures by float32 that a smaller format finds, too, for the
pictures of FOLDER as queries of the others. indexing: photographs of 12 megapixels, drawn here. Needs faiss:
pip install 'alnumpy[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
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


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, run in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in times.items()}


def benchmark_search(count: int, dimension: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of queries at once."""
    import faiss
    import numpy as np

    from alnumpy import packed

    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(0)
    vectors = np.maximum(rng.standard_normal((count, dimension), np.float32), 0)  # about half zeros, as embeddings are
    queries = np.maximum(rng.standard_normal((100, dimension), np.float32), 0)
    index = faiss.IndexFlatL2(dimension)
    index.add(vectors)
    stored = {}
    for dtype in packed.DTYPES:
        rows = packed.encode(vectors, dtype)
        stored[dtype] = packed.Packed(rows, packed.squared_norms(rows, dtype), dtype)
    found = np.array([indices for indices, _ in stored["float32"].nearest(queries, K)])
    if not (found == index.search(queries, K)[1]).all():
        sys.exit("faiss and alnumpy do not find the same")
    table = []
    for at_once in (1, 100):
        some = queries[:at_once]
        runs: dict[str, Callable[[], object]] = {"faiss": lambda some=some: index.search(some, K)}  # type: ignore[misc]
        for dtype, part in stored.items():
            runs[dtype] = lambda some=some, part=part: list(part.nearest(some, K))  # type: ignore[misc]
        row: dict[str, Any] = {"queries": at_once}
        table.append(row | {f"{name} ms": round(ms, 2) for name, ms in medians(runs, rounds).items()})
    table.append({"queries": "MB"} | {f"{dtype} ms": round(part.rows.nbytes / 1e6) for dtype, part in stored.items()})
    return table


def benchmark_recall(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """A row for each number format, on the embeddings of real pictures."""
    import numpy as np

    import alnumpy
    from alnumpy import packed
    from alnumpy.gallery import Gallery

    with Gallery(scratch / "real.db", alnumpy.load(), "a") as gallery:
        gallery.index(folder)
        vectors = np.array([picture.embedding for picture in gallery if picture.embedding is not None])
    if len(vectors) <= K:
        sys.exit(f"{folder}: recall@{K} needs more than {K} pictures, not {len(vectors)}")
    queries = np.arange(len(vectors))[:: -(-len(vectors) // 1000)]  # a thousand at most
    exact: list[set[int]] = []
    table = []
    for dtype in packed.DTYPES:
        rows = packed.encode(vectors, dtype)
        stored = packed.Packed(rows, packed.squared_norms(rows, dtype), dtype)
        found = zip(queries, stored.nearest(vectors[queries], K + 1), strict=True)
        nearest = [set(indices[indices != i][:K]) for i, (indices, _) in found]
        exact = exact or nearest
        recall = np.mean([len(a & b) / K for a, b in zip(exact, nearest, strict=True)])
        row = {"dtype": dtype, "pictures": len(vectors), "bytes each": rows.shape[1]}
        table.append(row | {f"recall@{K}": round(float(recall), 4)})
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
    """Milliseconds a photograph: the steps one by one in one thread, and a whole run of ``Gallery.index``."""
    import alnumpy
    from alnumpy import images
    from alnumpy.gallery import Gallery
    from alnumpy.ingest import DRAFT

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
                image, _ = images.read_file(path, draft=DRAFT * size if fast else 0)
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
    parser.add_argument("pictures", type=Path, metavar="FOLDER", help="real pictures, for recall")
    parser.add_argument("--threads", type=int, default=1, help="of every part (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100_000, help="vectors to search (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=8, help="photographs to index (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160, help="of the network's input (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there, too")
    args = parser.parse_args()
    if not args.pictures.is_dir():
        parser.error(f"{args.pictures} is no folder")
    for variable in THREAD_VARIABLES:  # before NumPy is imported
        os.environ[variable] = str(args.threads)
    os.environ["ALNUMPY_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as name:
        tables = {
            "search": benchmark_search(args.count, 1280, args.threads, args.rounds),
            "recall": benchmark_recall(args.pictures, Path(name)),
            "indexing": benchmark_indexing(Path(name), args.photos, args.size, max(1, args.rounds // 3)),
        }
    for title, table in tables.items():
        show(title, table)
    if args.json:
        args.json.write_text(json.dumps(vars(args) | tables, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
