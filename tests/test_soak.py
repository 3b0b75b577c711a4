"""The soak test passes, and notices planted faults."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tools/dev/soak.py needs Linux")


def test_ten_seconds(tmp_path):
    """Runs in a process of its own, so that no other test affects its memory."""
    command = [sys.executable, soak.__file__, "--minutes", str(1 / 6)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    summary = json.loads(result.stdout)
    assert summary["violations"] == []
    assert summary["seconds"] >= 10
    counts = summary["counts"]
    assert counts["searches"] >= 4 * counts["rounds"] > 0
    assert counts["embeddings"] > 20 * counts["rounds"]
    assert counts["distances"] > counts["searches"]
    assert counts["searches beside the writer"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """A soak with quick rounds that have no fault of their own."""
    for fault in ("kill", "terminate", "fill_disk", "write_twice", "ask_command_line"):
        monkeypatch.setattr(soak.Soak, fault, lambda self: None)
    return soak.Soak(tmp_path, 0)


def test_growth_is_noticed(quiet, monkeypatch):
    kept = []
    stop = threading.Event()
    indexed = soak.Soak.index

    def leak(self):
        indexed(self)
        kept.append(mmap.mmap(-1, 2_000_000))  # outside the heap, where earlier tests may have left room
        kept[-1].write(bytes([1]) * 2_000_000)
        kept.append(open(os.devnull))  # noqa: SIM115
        kept.append(threading.Thread(target=stop.wait))
        kept[-1].start()

    monkeypatch.setattr(soak.Soak, "index", leak)
    try:
        violations = quiet.run(rounds=9)["violations"]
    finally:
        stop.set()
        for memory, file, thread in zip(kept[::3], kept[1::3], kept[2::3], strict=True):
            memory.close()
            file.close()
            thread.join()
    assert [violation.split(" have ")[0].split(" has ")[0] for violation in violations] == [
        "round 9: memory", "round 9: file handles", "round 9: threads"
    ]  # fmt: skip


def further(match):
    return match._replace(distance=match.distance + 1e-3 * (match.distance > 0))


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        (lambda matches: [*matches[:-1], further(matches[-1])], r": .*/pictures/.* at [\d.]+, not \d"),
        (lambda matches: matches[1:], "the number of results"),
        (lambda matches: matches[::-1], "the order of the results"),
        (lambda matches: [m._replace(same=not m.same) for m in matches], "is the query"),
        (lambda matches: [matches[0]._replace(path="/gone.png"), *matches[1:]], "/gone.png at 0.0, not None"),
    ],
    ids=["distance", "missing", "order", "same", "gone"],
)
def test_a_wrong_answer_is_noticed(quiet, monkeypatch, wrong, noticed):
    search = soak.Gallery.search
    monkeypatch.setattr(
        soak.Gallery, "search", lambda self, query, k: [wrong(matches) for matches in search(self, query, k)]
    )
    violations = quiet.run(rounds=1)["violations"]
    assert any(re.search(noticed, violation) for violation in violations)
