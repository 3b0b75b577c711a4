"""What the tests of galleries share: pictures of noise, a small network, and what a gallery's file holds."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
from conftest import random_params
from PIL import Image

from alnumpy import Embedder, weights
from alnumpy.images import Preprocessing
from alnumpy.networks import ALNet, Block

SMALL = ALNet("small", 4, True, (Block(1, 4, 1), Block(3, 6, 2)), embedding=24, groups=2, cbam="mean-max", reduction=4)


def small_weights(seed=0):
    blank = np.ones((1, 24), np.float32)
    how = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return weights.Weights(SMALL, how, random_params(SMALL, seed), np.zeros((1, 3, 8, 8), np.float32), blank, "alnumpy")


class Counting(Embedder):
    """An embedder that counts what it embeds."""

    embedded = 0

    def _forward(self, x, pictures):
        Counting.embedded += len(x)
        return super()._forward(x, pictures)


def noise(path, seed, size=(12, 9), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def dump(path):
    """What a gallery holds, without the dates: it must not depend on how often the run was stopped."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        pictures = "SELECT path, size, mtime_ns, hash, error, vanished FROM pictures ORDER BY path"
        contents = "SELECT * FROM contents ORDER BY hash"
        return [db.execute(sql).fetchall() for sql in (pictures, contents, "SELECT * FROM meta ORDER BY key")]


def change(path, sql, *values):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql, values)


def counts(report):
    """Numbers of files by what became of them, by the report's names; zeros are left out."""
    named = {name: getattr(report, name) for name in ("embedded", "recognised", "unchanged", "vanished", "pruned")}
    return {name: number for name, number in named.items() if number}


def names(matches):
    return [os.path.basename(match.path) for match in matches]


def kill_a_writer(path):
    """Opens a transaction whose changes have begun to reach the file; only the journal beside it can undo them."""
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('PRAGMA cache_size = 1'); db.execute('BEGIN'); "
        "db.executemany('INSERT INTO meta VALUES (?, ?)', ((str(i), 'x' * 3000) for i in range(50))); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
