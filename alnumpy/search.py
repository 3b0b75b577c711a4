"""Search in a gallery: from pictures, or embeddings, to the pictures that are nearest to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from . import filters, images, listing, packed
from .errors import ImageError
from .filters import Filter
from .images import ImageSource
from .reader import Reader
from .settings import Settings
from .snapshot import Match
from .worker import Encoder, hash_file, regular

Array = np.ndarray
Queries = Array | ImageSource | Iterable[ImageSource]


class Asked(NamedTuple):
    """Queries: what is looked for."""

    vectors: Array  # float32 (Q, dimension)
    contents: list[bytes | None]  # the content hashes of queries that are files


class Ranking(NamedTuple):
    """How results are ranked and cut."""

    max_distance: float | None = None
    skip_same: bool = False  # whether files with the query's content are left out
    mean: bool = False  # whether all queries make one ranking


def ask(reader: Reader, settings: Settings, encoder: Encoder | None, queries: Queries) -> Asked:
    """The embeddings of queries: given, stored, or computed now. Raises ImageError, ValueError."""
    if isinstance(queries, np.ndarray) and queries.dtype != np.uint8:
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = np.atleast_2d(queries).astype(np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != settings.dimension or not _rankable(vectors).all():
            raise ValueError(f"queries must be finite embeddings (Q, {settings.dimension}), not {queries.shape}")
        return Asked(vectors, [None] * len(vectors))
    sources: Any = [queries] if images.is_source(queries) else queries
    found = [_find_or_embed(reader, settings, encoder, source) for source in sources]
    vectors = np.array([vector for vector, _ in found], np.float32).reshape(-1, settings.dimension)
    return Asked(vectors, [content for _, content in found])


def _find_or_embed(
    reader: Reader, settings: Settings, encoder: Encoder | None, source: ImageSource
) -> tuple[Array, bytes | None]:
    """The embedding (dimension,) of a picture, stored if its content is in the gallery; and the content of a file."""
    content = None
    with suppress(OSError, ValueError):  # decoding names what is wrong with the file
        if isinstance(source, (str, os.PathLike)):
            regular(source)
            content = hash_file(source)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            content = hashlib.sha256(source).digest()
    if content is not None:
        with reader.snapshot(settings) as snapshot:
            stored = snapshot.embedding(content)
        if stored is not None:
            return stored, content
    if encoder is None:
        raise ValueError("to search by picture, open the gallery with an embedder")
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "picture"
    x, _ = encoder.decode(source)
    vectors = encoder.reduce(encoder.embed(x[None], 1))
    if not _rankable(vectors)[0]:
        raise ImageError(f"{name}: its embedding is not finite")
    return vectors[0], content


def _rankable(vectors: Array) -> Array:
    """Which of embeddings float32 (N, D) are finite and have finite distances: bool (N,)."""
    return np.isfinite(packed.squared_norms(packed.encode(vectors, "float32"), "float32"))


def search(
    reader: Reader,
    settings: Settings,
    asked: Asked,
    k: int,
    chosen: Filter,
    unlike: Array,
    how: Ranking,
) -> list[list[Match]]:
    """The results of ``Gallery.search``; ``unlike`` (M, dimension)."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    vectors = asked.vectors
    own = [{content} if content else set[bytes]() for content in asked.contents]
    if how.mean and len(vectors):
        vectors, own = vectors.mean(0, keepdims=True), [set().union(*own)]

    def ranked(some: slice, k: int) -> list[list[Match]]:
        if how.mean or len(unlike) or chosen != Filter():
            with reader.snapshot(settings):
                return filters.search(reader.db, settings, vectors[some], k, chosen, own[some], unlike, how.skip_same)
        contents = asked.contents[some]
        copies = 0
        if how.skip_same:
            sql = "SELECT COUNT(*) FROM pictures WHERE hash = ?"
            copies = max((count for content in contents for (count,) in reader.db.rows(sql, [content])), default=0)
        with reader.snapshot(settings) as snapshot:
            found = snapshot.search(vectors[some], k + copies, contents)
        return [[match for match in matches if not match.same][:k] for matches in found] if how.skip_same else found

    results = ranked(slice(None), k)
    for i, matches in enumerate(results):
        shown, wanted = listing.shown(reader.db, matches), k
        while len(matches) == wanted and len(shown) < k:  # there may be more
            wanted *= 2
            (matches,) = ranked(slice(i, i + 1), wanted)
            shown = listing.shown(reader.db, matches)
        results[i] = shown[:k]
    if how.max_distance is not None:
        results = [[match for match in matches if match.distance <= how.max_distance] for matches in results]
    return results
