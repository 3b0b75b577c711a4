#!/usr/bin/env python3
"""Index, search and embed for a long time while things go wrong, and watch for wrong answers and for growth.

    python tools/dev/soak.py --minutes 30

A folder of made pictures changes all the time: pictures come, go, change, are renamed, copied and damaged, even while
they are indexed. In every round one thing goes wrong on purpose: an indexer is killed or terminated, meets a full disk,
or finds that another one is writing. A thread searches all the while. Then this process, which lives through all
rounds, indexes, and its answers are compared with distances that are computed from the files by the plain NumPy
network, one by one.

Prints one line per minute to stderr, and a summary as JSON to stdout. Exit code 1 if an answer was wrong or if memory,
file handles or threads have grown. Runs on Linux, which tells a process these numbers.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

import alnumpy
from alnumpy import images, reference
from alnumpy.embedder import available
from alnumpy.errors import GalleryError
from alnumpy.gallery import Gallery, Match

FEWEST, MOST = 30, 60  # numbers of pictures
TOLERANCE = 2e-5  # error of a distance, relative to the norms of both embeddings: twice that between backends
MEMORY_GROWTH = 4_000_000  # bytes between the middle and the last third of all rounds; allocators stay below
MOST_VIOLATIONS = 20  # then it ends

# The command line with a limit on the size of files, which has the effect of a full disk.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from alnumpy.__main__ import run
run()
"""


class Soak:
    """The folder of pictures, its expected state, and the findings."""

    def __init__(self, folder: Path, seed: int):
        self.random = random.Random(seed)
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        self.database = folder / "gallery.db"
        self.contents: dict[Path, bytes] = {}  # the contents on the disk
        self.broken: set[bytes] = set()  # contents that are not pictures
        self.embeddings: dict[bytes, np.ndarray] = {}  # by content, float32 (D,), of the plain network
        self.embedder = alnumpy.load(normalize=True, backend="compiled" if available("compiled") else "numpy")
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.samples: list[tuple[int, int, int]] = []  # after each round: bytes of memory, file handles, threads
        self.stop = threading.Event()

    def run(self, seconds: float = float("inf"), rounds: float = float("inf")) -> dict[str, Any]:
        """Rounds until one of the limits is reached, at least one; returns the summary."""
        start = shown = time.monotonic()
        for _ in range(FEWEST):
            self.add()
        self.index()
        reader = threading.Thread(target=self.read)
        reader.start()
        try:
            while not self.samples or (time.monotonic() - start < seconds and self.counts["rounds"] < rounds):
                self.round()
                if time.monotonic() - shown >= 60:
                    shown += 60
                    memory, handles, threads = self.samples[-1]
                    print(
                        f"{(shown - start) / 60:.0f} min: {self.counts['rounds']} rounds, {self.counts['searches']} "
                        f"searches compared, {memory / 1e6:.1f} MB, {handles} handles, {threads} threads, "
                        f"{len(self.violations)} violations",
                        file=sys.stderr,
                        flush=True,
                    )
                if len(self.violations) >= MOST_VIOLATIONS:
                    break
        finally:
            self.stop.set()
            reader.join()
        self.check_growth()
        return {
            "seconds": round(time.monotonic() - start, 1),
            "backend": self.embedder.backend,
            "counts": dict(sorted(self.counts.items())),
            "memory_mb": [round(memory / 1e6, 1) for memory, _, _ in thirds(self.samples)],
            "handles": [handles for _, handles, _ in thirds(self.samples)],
            "threads": [threads for _, _, threads in thirds(self.samples)],
            "violations": self.violations,
        }

    def round(self) -> None:
        """Changes and one fault, then indexing and all checks."""
        self.change()
        getattr(self, self.random.choice(["kill", "terminate", "fill_disk", "write_twice", "ask_command_line"]))()
        self.index()
        self.check_searches()
        self.check_embeddings()
        with closing(sqlite3.connect(self.database)) as connection:
            (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        self.expect(sound == "ok", f"the database is damaged: {sound}")
        self.counts["rounds"] += 1
        gc.collect()
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        self.samples.append((memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.violations.append(f"round {self.counts['rounds']}: {otherwise}")

    # The folder

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.contents[path] = content

    def add(self) -> None:
        """A new picture of blurred noise, now and then a damaged one."""
        number = self.counts["pictures made"]
        self.counts["pictures made"] += 1
        small = np.random.default_rng(self.random.getrandbits(64)).integers(0, 256, (5, 5, 3), np.uint8)
        side = self.random.randint(20, 80)  # less than twice what the network takes: decoded whole
        file = io.BytesIO()
        Image.fromarray(small).resize((side, side + number % 7)).save(file, self.random.choice(["PNG", "JPEG"]))
        content = file.getvalue()
        if self.random.random() < 0.2:
            content = self.random.choice([b"", b"no picture %d" % number, content[: len(content) // 2]])
            self.broken.add(content)
        self.write(self.pictures / f"{number}.png", content)

    def change(self) -> None:
        """A few pictures come, go, change, and are renamed or copied."""
        for _ in range(self.random.randint(1, 6)):
            path = self.random.choice(list(self.contents))
            what = self.random.choice(["add", "remove", "rewrite", "rename", "copy"])
            if what == "add" or len(self.contents) < FEWEST:
                self.add()
            elif what == "remove" or len(self.contents) > MOST:
                path.unlink()
                del self.contents[path]
            elif what == "rewrite":
                self.write(path, self.contents[self.random.choice(list(self.contents))])
            elif what == "rename":
                new = path.with_name(f"renamed-{self.counts['changes']}.jpg")
                path.rename(new)
                self.contents[new] = self.contents.pop(path)
            else:
                self.write(path.with_name(f"copy-{self.counts['changes']}.bmp"), self.contents[path])
            self.counts["changes"] += 1
        self.broken &= set(self.contents.values())

    def expected(self) -> dict[Path, np.ndarray]:
        """The embedding of every good picture, by the plain network and only from its bytes."""
        known, self.embeddings = self.embeddings, {}
        weights = self.embedder.weights
        for content in set(self.contents.values()) - self.broken:
            if content not in known:
                x = images.preprocess(Image.open(io.BytesIO(content)).convert("RGB"), weights.preprocessing)
                embedding = reference.forward(weights.spec, weights.parameters, x[None])[0]
                known[content] = embedding / np.linalg.norm(embedding)  # the default weights record this
            self.embeddings[content] = known[content]
        return {p: self.embeddings[content] for p, content in self.contents.items() if content not in self.broken}

    # What goes wrong

    def start(self, *arguments: str, limit: int | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "alnumpy"] if limit is None else [sys.executable, "-c", LIMITED, str(limit)]
        return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def start_index(self, limit: int | None = None) -> subprocess.Popen[bytes]:
        return self.start("index", str(self.pictures), "--db", str(self.database), limit=limit)

    def end_index(self, number: signal.Signals) -> None:
        """Sends a signal to an indexer at a random moment, while pictures change."""
        with self.start_index() as process:
            time.sleep(self.random.uniform(0, 0.3))
            self.change()
            time.sleep(self.random.uniform(0, 0.3))
            process.send_signal(number)
            _, err = process.communicate()
        self.expect(b"Traceback" not in err or b"alnumpy" not in err, f"a traceback: {err!r}")
        self.counts[f"indexers ended by {number.name}" if process.returncode not in (0, 1) else "indexers done"] += 1

    def kill(self) -> None:
        self.end_index(signal.SIGKILL)

    def terminate(self) -> None:
        self.end_index(signal.SIGTERM)

    def fill_disk(self) -> None:
        with self.start_index(limit=self.random.randrange(1, 60_000)) as process:
            out, err = process.communicate()
        self.expect(process.returncode in (0, 1) and b"Traceback" not in err, f"a full disk: {err!r}")
        self.expect(bool(out) or err.count(b"\n") > 0, "a full disk without a word")
        self.counts["full disks" if not out else "indexers done"] += 1

    def write_twice(self) -> None:
        with Gallery(self.database, self.embedder, "a"), self.start_index() as process:
            _, err = process.communicate()
        self.expect(process.returncode == 1 and b"another alnumpy" in err, f"two writers at once: {err!r}")
        self.counts["second writers refused"] += 1

    def ask_command_line(self) -> None:
        self.index()
        query = self.random.choice(list(self.expected()))
        with self.start("search", str(query), "--db", str(self.database), "-k", "7", "--json") as process:
            out, err = process.communicate()
        self.expect((process.returncode, err) == (0, b""), f"search on the command line: {err!r}")
        for answer in json.loads(out or "[]"):
            found = [Match(row["path"], row["distance"], row["same"]) for row in answer["results"]]
            self.check(query, found, 7)

    # What must hold all the same

    def index(self) -> None:
        """Indexes undisturbed: afterwards the gallery must have exactly the pictures of the folder."""
        with Gallery(self.database, self.embedder, "a") as gallery:
            report = gallery.index(self.pictures, prune=True)
            held = {picture.path for picture in gallery if picture.error is None}
        failed = {path for path, _ in report.failed}
        broken = {str(path) for path, content in self.contents.items() if content in self.broken}
        self.expect(failed == broken, f"failed: {failed ^ broken} wrongly, or wrongly not")
        self.expect(held == set(map(str, self.contents)) - broken, "the gallery does not hold what the folder holds")
        self.counts["pictures embedded"] += report.embedded

    def check_searches(self) -> None:
        with Gallery(self.database, self.embedder) as gallery:
            for query in self.random.sample(list(self.expected()), 4):
                k = self.random.choice([1, 5, 200])
                self.check(query, gallery.search(query, k)[0], k)
            self.expect(not gallery.damaged, f"damaged rows: {gallery.damaged}")

    def check(self, query: Path, found: list[Match], k: int) -> None:
        """Compares the answer to one query with all distances."""
        expected = self.expected()
        names = list(expected)
        vectors = np.array([expected[name] for name in names], np.float64)
        target = expected[query].astype(np.float64)
        distances = dict(zip(map(str, names), np.linalg.norm(vectors - target, axis=1), strict=True))
        slack = TOLERANCE * (np.linalg.norm(vectors, axis=1).max() + np.linalg.norm(target))
        self.counts["searches"] += 1
        self.counts["distances"] += len(found)
        self.expect(len({match.path for match in found}) == len(found) == min(k, len(names)), "the number of results")
        order = [(match.distance, os.fsencode(match.path)) for match in found]
        self.expect(order == sorted(order), f"the order of the results for {query}")
        for match in found:
            true = distances.pop(match.path, None)
            self.expect(
                true is not None and abs(match.distance - true) <= slack,
                f"{query}: {match.path} at {match.distance}, not {true}",
            )
            same = self.contents[query] == self.contents.get(Path(match.path))
            self.expect(match.same == same, f"{query}: {match.path} is the query: {match.same}")
        if found and distances:
            self.expect(min(distances.values()) >= found[-1].distance - slack, f"{query}: a nearer one was not found")

    def check_embeddings(self) -> None:
        """Embeds the whole folder, including the damaged pictures."""
        expected = self.expected()
        paths = self.random.sample(list(self.contents), len(self.contents))
        for path, result in zip(paths, self.embedder.embed_files(paths, self.random.randint(1, 40)), strict=True):
            if result.embedding is None or path not in expected:
                self.expect(result.error is not None and path not in expected, f"{path}: error {result.error}")
                continue
            error = np.linalg.norm(result.embedding - expected[path]) / np.linalg.norm(expected[path])
            self.expect(error <= TOLERANCE / 2, f"{path}: embedding wrong by {error:.1e}")
            self.counts["embeddings"] += 1

    def read(self) -> None:
        """Searches all the while with one open gallery, as a thread of its own."""
        queries = np.random.default_rng(0).uniform(0, 1, (100, self.embedder.spec.embedding)).astype(np.float32)
        try:
            with Gallery(self.database) as gallery:
                while not self.stop.wait(0.02):
                    query = queries[self.counts["searches beside the writer"] % len(queries)]
                    distances = [match.distance for match in gallery.search(query, 5)[0]]
                    good = len(distances) == 5 and distances == sorted(distances) and np.isfinite(distances).all()
                    self.expect(bool(good), f"beside the writer: distances {distances}")
                    self.counts["searches beside the writer"] += 1
        except GalleryError as error:
            self.expect(False, f"beside the writer: {error}")

    def check_growth(self) -> None:
        """Between the middle and the last third of all rounds; in the first, caches are filled."""
        _, (memory, handles, threads), (memory_now, handles_now, threads_now) = thirds(self.samples)
        self.expect(memory_now - memory <= MEMORY_GROWTH, f"memory has grown from {memory} to {memory_now} bytes")
        self.expect(handles_now <= handles, f"file handles have grown from {handles} to {handles_now}")
        self.expect(threads_now <= threads, f"threads have grown from {threads} to {threads_now}")


def thirds(samples: list[tuple[int, int, int]]) -> list[list[int]]:
    """The median of each number in the first, the middle and the last third."""
    cut = [round(len(samples) * i / 3) for i in range(4)]
    parts = [samples[a:b] or samples[-1:] for a, b in pairwise(cut)]
    return [[int(median(column)) for column in zip(*part, strict=True)] for part in parts]


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Index, search and embed for a long time while things go wrong.")
    parser.add_argument("--minutes", type=float, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures and faults (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        summary = Soak(Path(folder), args.seed).run(args.minutes * 60)
    print(json.dumps(summary, indent=1))
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
