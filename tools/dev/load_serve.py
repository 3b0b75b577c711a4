#!/usr/bin/env python3
"""Measures ``alnumpy serve`` under load: many clients at once beside a running index, in a gallery of many pictures.

    python tools/dev/load_serve.py --clients 50 --minutes 5 --pictures 100000

Makes a gallery of that many pictures, most of them embeddings without a file, and starts the server on it, which looks
for new pictures every second in a folder that keeps getting some. The clients, all on this computer, search by pictures
and by results, and fetch thumbnails, pages of the gallery and its state. Then comes Ctrl-C, in the midst of it. Prints
the latencies by kind of request, the memory at the start and at its peak, how long the start and the end took, and each
unexpected answer. Exit code 1 if there was any. Runs on Linux, which tells a process's memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import screenshots
from benchmark_gallery import make_gallery

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds for an answer
KINDS = {
    "upload": 4,
    "like": 3,
    "thumbnail": 6,
    "large": 1,
    "page": 1,
    "state": 1,
}  # relative frequency of each request


class Clients:
    """Threads that ask without pause."""

    def __init__(self, port: int, uploads: list[bytes], ids: list[str]):
        self.port = port
        self.uploads = uploads
        self.ids = ids  # IDs of pictures that have a file
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.faults: Counter[str] = Counter()
        self.stopping = False
        self._lock = threading.Lock()

    def run(self, seed: int) -> None:
        """One client; its requests follow from its seed."""
        rng = random.Random(seed)
        while not self.stopping:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
            try:
                for _ in range(20):
                    self._ask(connection, rng)
            except (OSError, HTTPException, ValueError, AssertionError) as error:
                if not self.stopping:
                    with self._lock:
                        self.faults[f"{type(error).__name__}: {error}"] += 1
            finally:
                connection.close()

    def _ask(self, connection: HTTPConnection, rng: random.Random) -> None:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        id = rng.choice(self.ids)
        method, address, body = {
            "upload": ("POST", "/search?k=60", rng.choice(self.uploads)),
            "like": ("GET", f"/search?like={id}&k=60", None),
            "thumbnail": ("GET", f"/thumbnails/{id}", None),
            "large": ("GET", f"/pictures/{id}", None),
            "page": ("GET", f"/pictures?skip={rng.randrange(100)}", None),
            "state": ("GET", "/state", None),
        }[kind]
        start = time.monotonic()
        connection.request(method, address, body)
        response = connection.getresponse()
        answer = response.read()
        seconds = time.monotonic() - start
        assert response.status == 200, f"{kind}: status {response.status}: {answer[:200]!r}"
        if kind in ("upload", "like"):
            assert len(json.loads(answer)[0]["results"]) == 60, f"{kind}: fewer results"
        with self._lock:
            self.seconds[kind].append(seconds)


def ask(port: int, address: str) -> Any:
    """The answer to one request beside the clients."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        connection.request("GET", address)
        return json.loads(connection.getresponse().read())


def memory(pid: int, field: str) -> float:
    """A field of a process's memory in MB: VmRSS now, VmHWM at its peak."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1000


def photograph(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG of smooth colours that takes as long to decode as one of a phone."""
    small = Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    return data.getvalue()


def feed(folder: Path, stopped: Callable[[], bool]) -> None:
    """Gives an index work: two new pictures per second, which were last written to long ago."""
    rng = np.random.default_rng(1)
    number = 0
    while not stopped():
        path = folder / f"new-{number}.jpg"
        path.write_bytes(photograph(rng, 1500))
        os.utime(path, (1e9 + number,) * 2)
        number += 1
        time.sleep(0.5)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=5, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=2000, help="pictures in the gallery (default: %(default)s)")
    parser.add_argument("--side", type=int, default=3000, help="height in pixels of uploads (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        return load(Path(name), args)


def load(folder: Path, args: argparse.Namespace) -> int:
    """One run, in a folder of its own."""
    rng = np.random.default_rng(0)
    environment = os.environ | {"ALNUMPY_CACHE_DIR": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data")}
    command = [sys.executable, "-m", "alnumpy"]
    db = ["--db", str(folder / "gallery.db")]
    make_gallery(folder / "gallery.db", rng.normal(0, 0.2, (args.pictures, 1280)).astype(np.float32), "float32")
    screenshots.photographs(folder / "pictures")
    subprocess.run(
        [*command, "index", str(folder / "pictures"), *db],
        cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip

    start = time.monotonic()
    options = ["--port", "0", "--index", str(folder / "pictures"), "--watch", "1"]
    command += ["serve", *db, *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            return ask_all(process, start, folder, args)
        finally:
            process.kill()


def ask_all(process: subprocess.Popen[str], start: float, folder: Path, args: argparse.Namespace) -> int:
    """Asks a server that was started at a moment."""
    assert process.stdout is not None
    port = int(process.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
    ids = [row["id"] for row in ask(port, "/pictures") if "/IMG_" in row["path"]]
    started = time.monotonic() - start
    at_start = memory(process.pid, "VmRSS")
    rng = np.random.default_rng(2)
    clients = Clients(port, [photograph(rng, args.side) for _ in range(8)], ids)
    threads = [threading.Thread(target=clients.run, args=(seed,), daemon=True) for seed in range(args.clients)]
    threads.append(threading.Thread(target=feed, args=(folder / "pictures", lambda: clients.stopping), daemon=True))
    for thread in threads:
        thread.start()
    peaks = []
    for _ in range(3):
        time.sleep(args.minutes * 20)
        peaks.append(memory(process.pid, "VmHWM"))
    state = ask(port, "/state")
    clients.stopping = True
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(TIMEOUT)
    ended = time.monotonic() - start
    for thread in threads:
        thread.join(TIMEOUT)

    print(
        f"gallery: {args.pictures:,} pictures, {state['pictures']:,} in the end; looks of the index: "
        f"{state['indexing']['looks']}"
    )
    print(f"start to the first answer: {started:.2f} s; Ctrl-C to the end: {ended:.2f} s, exit code {code}")
    print(f"memory: {at_start:.0f} MB at the start; peak after each third: {', '.join(f'{p:.0f}' for p in peaks)} MB")
    print(f"{args.clients} clients, {args.minutes:g} minutes; uploads of {len(clients.uploads[0]) / 1e6:.1f} MB")
    print("| asked for | answers | median ms | 95% ms | 99% ms | longest ms |\n|---|---|---|---|---|---|")
    for kind, seconds in sorted(clients.seconds.items()):
        row = [1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.95, 0.99, 1)]
        print(f"| {kind} | {len(seconds):,} | {' | '.join(f'{value:.0f}' for value in row)} |")
    for fault, number in clients.faults.most_common():
        print(f"FAULT, {number} times: {fault}")
    return 1 if clients.faults or code != 130 or not all(clients.seconds[kind] for kind in KINDS) else 0


if __name__ == "__main__":
    sys.exit(main())
