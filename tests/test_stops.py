"""A run is stopped at any moment, and another one continues."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from galleries import change, counts, dump, kill_a_writer, noise, small_weights

from alnumpy import Embedder, ingest, weights
from alnumpy.gallery import Gallery


def test_an_interrupted_run_loses_only_the_batch_in_progress(tmp_path, path, embedder):
    for i in range(20):
        noise(tmp_path / f"{i:02}.png", i)

    def stop(done, total):
        assert total == 20
        if done == 8:
            raise KeyboardInterrupt

    with Gallery(path, embedder, "a", batch_size=4) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.index(tmp_path, progress=stop)
        assert opened.stats()["pictures"] == 8
        assert counts(opened.index(tmp_path)) == {"embedded": 12, "unchanged": 8}
    with Gallery(tmp_path / "undisturbed.db", embedder, "a") as opened:
        opened.index(tmp_path)
    assert dump(path) == dump(tmp_path / "undisturbed.db")


INDEX = """
import sys
import alnumpy
from alnumpy.gallery import Gallery
embedder = alnumpy.load(sys.argv[1], backend="numpy", threads=2)
with Gallery(sys.argv[2], embedder, "a", batch_size=2) as opened:
    opened.index(sys.argv[3], progress=lambda done, total: print(done, flush=True))
"""


def test_killed_at_random_moments_it_ends_like_an_undisturbed_run(tmp_path, path):
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(100):
        noise(root / f"{i:02}.png", i % 90)  # ten copies
    (root / "50.png").write_text("broken")
    weights.write(tmp_path / "w.h5", small_weights())

    def start(db):
        command = [sys.executable, "-c", INDEX, tmp_path / "w.h5", db, root]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "undisturbed.db") as undisturbed:
        assert undisturbed.stdout.read().splitlines() == [str(done) for done in range(2, 101, 2)]
    rng = random.Random(0)
    stored = stopped = 0
    for _ in range(6):
        with start(path) as process:
            for _ in range(rng.randrange(1, 10)):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
        stopped += process.returncode == -signal.SIGKILL
        with Gallery(path) as reader:
            before, stored = stored, reader.stats()["pictures"]
            assert before <= stored <= 99
            assert len(reader.search(root / "00.png", 200)[0]) == stored
        assert dump(path)
    assert stopped  # otherwise this machine is too fast for the test
    with start(path) as process:
        process.stdout.read()
    assert process.returncode == 0
    assert dump(path) == dump(tmp_path / "undisturbed.db")
    assert [name for name in os.listdir(tmp_path) if name.startswith("gallery.db-")] == ["gallery.db-lock"]


def test_a_reader_repairs_what_a_killed_writer_left(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
    before = dump(path)
    kill_a_writer(path)
    assert os.path.getsize(f"{path}-journal")
    with Gallery(path, embedder) as reader:
        assert len(reader.search(folder / "b.png", 1)[0]) == 1
    assert dump(path) == before


def test_a_continued_run_keeps_its_backend(tmp_path, path, monkeypatch):
    monkeypatch.setattr(Embedder, "_run_compiled", Embedder._run_numpy)
    monkeypatch.setattr(Embedder, "_faster", lambda self: "")  # "auto" takes NumPy
    monkeypatch.setattr(ingest, "available", lambda backend: True)
    for i in range(3):
        noise(tmp_path / f"{i}.png", i)
    embedder = Embedder(small_weights(), threads=1)
    with Gallery(path, embedder, "a", batch_size=2) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.index(tmp_path, progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert dict(dump(path)[2])["unfinished"] == "numpy"
        change(path, "UPDATE meta SET value = 'numba' WHERE key = 'unfinished'")
        assert opened.index(tmp_path).backend == "numba"
        assert "unfinished" not in dict(dump(path)[2])
        noise(tmp_path / "3.png", 3)
        assert opened.index(tmp_path).backend == "numpy"
