"""What can be found in a gallery at one moment: exact search, and groups of duplicates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np

from . import packed
from .database import Database
from .packed import Packed
from .settings import Settings

Array = np.ndarray


class Match(NamedTuple):
    """A result: a picture and its L2 distance."""

    path: str
    distance: float
    same: bool  # whether its file has the query's content, byte for byte: the query itself, or a copy


@dataclass(frozen=True)
class Snapshot:
    """Pictures that can be found, in the order of their paths' bytes. Never changes: for any number of threads."""

    paths: Sequence[str]
    hashes: Sequence[bytes]
    embeddings: Packed
    damaged: Sequence[tuple[str, str]] = ()  # rows that cannot be ranked: path and reason

    @classmethod
    def read(cls, db: Database, settings: Settings) -> Snapshot:
        """What a gallery holds now. Raises GalleryError."""
        length = packed.row_length(settings.dimension, settings.dtype)
        paths: list[str] = []
        hashes: list[bytes] = []
        damaged: list[tuple[str, str]] = []
        blobs = bytearray()
        sql = (
            "SELECT path, pictures.hash, CASE WHEN length(embedding) = ? THEN embedding END FROM pictures "
            "LEFT JOIN contents ON contents.hash = pictures.hash WHERE error IS NULL AND vanished = 0 ORDER BY path"
        )
        with db.cursor(sql, [length]) as found:
            for path, hash, blob in found:
                if not isinstance(path, bytes) or not isinstance(blob, bytes):
                    damaged.append((name_of(path), f"its embedding is not of {settings.dimension} {settings.dtype}"))
                    continue
                paths.append(os.fsdecode(path))
                hashes.append(hash)
                blobs += blob
        rows = np.frombuffer(blobs, np.uint8).reshape(-1, length)
        norms = packed.squared_norms(rows, settings.dtype)
        good = np.isfinite(norms)
        if not good.all():
            damaged += [(path, "its embedding is not finite") for path in compress(paths, ~good)]
            paths, hashes = list(compress(paths, good)), list(compress(hashes, good))
            rows, norms = rows[good], norms[good]
        return cls(paths, hashes, Packed(rows, norms, settings.dtype), damaged)

    def search(self, queries: Array, k: int, hashes: Sequence[bytes | None]) -> list[list[Match]]:
        """The k nearest to each query of (Q, D), nearest first, ties by path; ``hashes``: the queries' contents."""
        nearest = self.embeddings.nearest(queries, k)
        return [self._matches(*pair, hash) for pair, hash in zip(nearest, hashes, strict=True)]

    def duplicates(self, threshold: float) -> list[list[Match]]:
        """Groups of those within a distance of some other of their group, with distances to the first of it."""
        groups = []
        for members in self.embeddings.groups(threshold):
            (first,) = self.embeddings[members[:1]]
            distances = self.embeddings.distances(first, members)
            groups.append(self._matches(members, distances, self.hashes[members[0]]))
        return groups

    def embedding(self, hash: bytes) -> Array | None:
        """The embedding, float32 (D,), of a file's content; None where no picture here has it."""
        if hash not in self.hashes:
            return None
        at = self.hashes.index(hash)
        vector: Array = self.embeddings[at : at + 1][0]
        return vector

    def _matches(self, indices: Array, distances: Array, hash: bytes | None) -> list[Match]:
        return [
            Match(self.paths[i], float(distance), self.hashes[i] == hash)
            for i, distance in zip(indices, distances, strict=True)
        ]


def name_of(path: object) -> str:
    """A stored path, also where the database is damaged."""
    return os.fsdecode(path) if isinstance(path, bytes) else repr(path)
