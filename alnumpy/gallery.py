"""The local data base: which pictures there are, and their embeddings, in one SQLite file that is searched exactly.

The table ``meta`` says which model, preprocessing and number format the file is bound to; ``contents`` holds an
embedding for each distinct content of a file; ``pictures`` holds the files. So a renamed or copied file is recognised
by its content and costs no second embedding.

Several processes may read while one writes. A batch is one transaction: a stop at any moment loses at most the batch in
flight.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.util import find_spec
from itertools import compress, islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import images, packed, postprocess
from .database import Database
from .embedder import Embedder
from .errors import GalleryError, ImageError
from .images import ImageSource
from .packed import DTYPES, Packed

SETTINGS = {
    "network": str, "weights": str, "dimension": int, "size": int, "normalize": bool, "decode": str, "identity": str,
    "dtype": str, "flip": bool, "reduced": bool,
}  # fmt: skip
MAX_DIMENSION = 65536
PART = 256  # pictures that an iteration reads at a time
DRAFT = 2  # fast decoding keeps at least this many pixels for each of the network's
EMPTIED = "no pictures there now; is its disk mounted? If they are gone for good: alnumpy remove FOLDER --db FILE"
NOT_FINITE = "its embedding is not finite in the gallery's number format"

Array = np.ndarray
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Progress = Callable[[int, int], None]


class Picture(NamedTuple):
    """A row of the data base: one file."""

    path: str
    size: int  # bytes, -1 where it could not be read
    mtime_ns: int
    hash: str | None  # SHA-256 in hexadecimal; may be that of an earlier content where there is an error
    width: int | None  # pixels, upright
    height: int | None
    embedding: Array | None  # float32 (dimension,)
    added: str  # UTC, ISO 8601
    error: str | None  # why it has no embedding
    vanished: bool  # whether it was gone when its folder was last indexed


class Match(NamedTuple):
    """A result: a picture and its L2 distance."""

    path: str
    distance: float
    same: bool  # whether its file has the query's content, byte for byte: the query itself, or a copy


@dataclass
class Report:
    """What became of the files that were indexed."""

    embedded: int = 0  # new contents
    recognised: int = 0  # new or touched files whose content was known already
    unchanged: int = 0  # not read
    vanished: int = 0  # newly found to be gone
    pruned: int = 0
    # Path and reason, those included that failed earlier and have not changed.
    failed: list[tuple[str, str]] = field(default_factory=list)
    backend: str = "none"  # what embedded: "numba", "numpy" or "none"
    seconds: float = 0.0
    decode_seconds: float = 0.0  # of the CPU, reading and decoding, all threads together
    network_seconds: float = 0.0
    waited_seconds: float = 0.0  # that the network waited for pictures


class _Read(NamedTuple):
    """A file that a thread has read: its input for the network, or the reason why it has none."""

    path: str
    size: int = -1
    mtime_ns: int = -1
    hash: bytes | None = None
    width: int = 0
    height: int = 0
    x: Array | None = None  # float32 (3, S, S); None also where the content is known
    error: str | None = None
    seconds: float = 0.0  # of the CPU


class _Stored(NamedTuple):
    """All that can be found, in the order of the paths' bytes."""

    paths: list[str]
    hashes: list[bytes]
    embeddings: Packed


class Gallery:
    """Pictures and their embeddings in one file. A context manager; to be used by the thread that opened it.

    ``mode``: "r" reads and searches, also on read-only media; "a" writes too, and makes the file where there is none;
    one process at a time can have a gallery open in mode "a", and any number in mode "r". ``embedder`` must be the one
    that the gallery was made with; it is needed to index and to search by picture. ``dtype`` ("float32", "float16" or
    "int8"), ``fast_decode`` (JPEG decoded at reduced size) and ``flip`` (embeddings averaged with the mirrored
    picture's, before the embedder's ``normalize``) are chosen when the gallery is made, and may be None later; as long
    as it has no pictures, each opening in mode "a" makes it anew. ``weights``: the name of the embedder's weights file,
    for whoever opens the gallery later.

    Raises GalleryError where the file is missing, foreign, damaged, of a newer version, in use, or bound to another
    model or other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        embedder: Embedder | None = None,
        mode: str = "r",
        dtype: str | None = None,
        fast_decode: bool | None = None,
        weights: str = "",
        batch_size: int = 32,
        max_pixels: int = images.MAX_PIXELS,
        flip: bool | None = None,
    ):
        if mode not in ("r", "a"):
            raise ValueError(f"mode must be 'r' or 'a', not {mode!r}")
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.embedder = embedder
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.damaged: list[tuple[str, str]] = []  # rows that cannot be ranked, path and reason; known after a search
        self._db = Database(path, mode == "a")
        self.path = self._db.path
        try:
            self.settings = self._bind(dtype, fast_decode, flip, weights)
            self._whitening = self._read_whitening()
            if self._db.writable:
                self._db.start_log()
        except BaseException:
            self.close()
            raise
        self.dtype: str = self.settings["dtype"]
        self.dimension: int = self.settings["dimension"]
        self.fast_decode = self.settings["decode"] == "fast"
        self._row_length = packed.row_length(self.dimension, self.dtype)
        self._stored: _Stored | None = None
        self._version = -1  # of the data when they were read
        self._network = copy.copy(embedder)
        if self._network is not None:
            self._network.normalize = False  # which comes after the average of flips

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing else can be done with the gallery."""
        self._stored = None
        self._db.close()

    def _bind(self, dtype: str | None, fast_decode: bool | None, flip: bool | None, weights: str) -> dict[str, Any]:
        """The settings that are recorded, or those to record in a new file; checked against what was asked for."""
        recorded = [value for (value,) in self._db.rows("SELECT value FROM meta WHERE key = 'settings'")]
        settings = _check_settings(recorded[0], self.path) if recorded else {}
        # Else nothing depends on the settings yet, as after a first run with a mistyped folder.
        self.bound = bool(recorded) and (
            settings["reduced"] or bool([*self._db.rows("SELECT 1 FROM pictures LIMIT 1")])
        )
        if not self.bound and self._db.writable and self.embedder is not None:
            settings = settings_of(self.embedder, bool(fast_decode), weights)
            settings |= {"dtype": dtype or "float32", "flip": bool(flip), "reduced": False}
            self._set("settings", json.dumps(settings))
            return settings
        if not recorded:
            raise GalleryError(f"{self.path}: an empty gallery; fill it with: alnumpy index FOLDER --db FILE")
        asked: dict[str, Any] = {}
        if self.embedder is not None:
            asked = settings_of(self.embedder, settings["decode"] == "fast")
            del asked["weights"]  # the same file may lie elsewhere
            if settings["reduced"]:
                del asked["dimension"]
        decode_mode = None if fast_decode is None else "fast" if fast_decode else "full"
        chosen = {"dtype": dtype, "decode": decode_mode, "flip": flip}
        asked |= {key: value for key, value in chosen.items() if value is not None}
        different = [key for key in asked if asked[key] != settings[key]]
        if different:
            named = [f"{key} {settings[key]}, not {asked[key]}" for key in different if key != "identity"]
            made = "; ".join(named) or f"other weights, {settings['weights']}"
            raise GalleryError(
                f"{self.path}: made with {made}. Embeddings of different models or settings cannot be compared: use "
                "the same ones, or index into another file"
            )
        return settings

    def _read_whitening(self) -> tuple[Array, Array] | None:
        """The mean (D,) and the projection (D, dimension) of a reduced gallery, which new embeddings need."""
        if self.embedder is None or not self.settings["reduced"]:
            return None
        shape = self.embedder.spec.embedding, self.settings["dimension"]
        lengths = 4 * shape[0], 4 * shape[0] * shape[1]
        sql = "SELECT mean, projection FROM whitening WHERE length(mean) = ? AND length(projection) = ?"
        for row in self._db.rows(sql, lengths):
            if all(isinstance(blob, bytes) for blob in row):
                mean, projection = (np.frombuffer(blob, "<f4") for blob in row)
                if np.isfinite(mean).all() and np.isfinite(projection).all():
                    return mean, projection.reshape(shape)
        raise GalleryError(f"{self.path}: its whitening is damaged; reduce the whole gallery again")

    # Filling

    def index(self, folders: Paths, prune: bool = False, progress: Progress | None = None) -> Report:
        """Brings the gallery up to date with folders, all below them included, and with single files.

        A file whose size and modification time are as recorded is not read; one whose content is known is not embedded
        again. Pictures that are gone from the folders are marked as vanished and found no more; ``prune`` removes them,
        marked earlier or now, unless their folder is empty, as that of an unmounted disk: such folders are reported as
        failed. A file without an embedding is recorded with the reason, and tried again when it or the limit of pixels
        changes; one whose bytes could not even be read is tried each time, and keeps the embedding that it had.

        ``progress(done, total)`` is called after each batch, with numbers of files. Raises GalleryError where the data
        base cannot be written; what was stored by then stays, and the next call goes on from there.
        """
        paths, roots, failed = _find(folders)
        return self._update(paths, roots, failed, prune, progress)

    def add(self, files: Paths, progress: Progress | None = None) -> Report:
        """Adds files, or all below folders. Like ``index``, but nothing is marked as vanished."""
        paths, _, failed = _find(files)
        return self._update(paths, (), failed, False, progress)

    def update(self, prune: bool = False, progress: Progress | None = None) -> Report:
        """Looks again at every file of the gallery. Like ``index``, but new files are not looked for."""
        return self._update(set(), ("",), [], prune, progress)

    def remove(self, paths: Paths) -> int:
        """Removes files, or all below folders, from the gallery (never from the disk). Returns how many they were."""
        self._stored = None
        removed = 0
        with self._db.transaction():
            for path in map(os.path.abspath, _several(paths)):
                below = os.fsencode(os.path.join(path, ""))
                sql = "DELETE FROM pictures WHERE path = ? OR substr(path, 1, ?) = ?"
                removed += self._db.run(sql, [os.fsencode(path), len(below), below])
            self._drop_unused()
        return removed

    def _update(
        self,
        paths: set[str],
        roots: tuple[str, ...],
        failed: list[tuple[str, str]],
        prune: bool,
        progress: Progress | None,
    ) -> Report:
        """Embeds those of ``paths``, and of what is stored below ``roots``, that are new or changed; marks the gone."""
        if self._network is None:
            raise ValueError("to index, open the gallery with an embedder")
        start = time.perf_counter()
        report = Report(failed=failed)
        self._stored = None
        limit = str(self.max_pixels)
        with self._db.transaction():
            meta = dict(self._db.rows("SELECT key, value FROM meta"))
            if meta.get("max_pixels") != limit:  # all that failed is to be tried again, here or when its turn comes
                self._db.run("UPDATE pictures SET size = -1, mtime_ns = -1 WHERE error IS NOT NULL")
                self._set("max_pixels", limit)
            recorded = self._recorded()
        gone = []
        for path in recorded:
            if path.startswith(roots) and path not in paths:
                lost = _is_gone(path)
                if lost:
                    gone.append(path)
                elif lost is False:  # found by another way: named by itself, or below a link to a folder
                    paths.add(path)
        known = [*paths, *(os.path.join(name, "") for name, _ in failed)]  # what cannot be listed may hold pictures
        bare = [root for root in roots if root and not any(path.startswith(root) for path in known)]
        reasons = {os.path.dirname(root): "no pictures in this folder or below it" for root in bare}
        prunable = []
        find_emptied = cache(_emptied)  # many may be gone from one folder
        for path in gone:
            emptied = next((os.path.dirname(root) for root in bare if path.startswith(root)), None)
            emptied = emptied or find_emptied(os.path.dirname(path))
            if emptied is None:
                prunable.append([os.fsencode(path)])
            elif prune or not recorded[path][2]:  # else it was told before
                reasons[emptied] = EMPTIED
        failed += reasons.items()
        todo: list[str] = []
        back: list[list[bytes]] = []  # unchanged, but marked as vanished
        for path in sorted(paths):
            then, error, vanished = recorded.get(path, (None, None, 0))
            if then is None or then != _size_and_time(path):
                todo.append(path)
                continue
            report.unchanged += 1
            if error:
                failed.append((path, error))
            if vanished:
                back.append([os.fsencode(path)])

        network = copy.copy(self._network)  # whose backend is settled once, also for a run that continues this one
        unfinished = meta.get("unfinished")
        if network.backend == "auto" and (unfinished == "numpy" or (unfinished == "numba" and find_spec("numba"))):
            network.backend = unfinished
        self._fill(network, todo, report, progress)
        with self._db.transaction():
            self._db.run_each("UPDATE pictures SET vanished = 0 WHERE path = ?", back)
            mark = "UPDATE pictures SET vanished = 1 WHERE path = ? AND vanished = 0"
            report.vanished = self._db.run_each(mark, [[os.fsencode(path)] for path in gone])
            if prune:
                report.pruned = self._db.run_each("DELETE FROM pictures WHERE path = ?", prunable)
            self._drop_unused()
            self._db.run("DELETE FROM meta WHERE key = 'unfinished'")
        failed.sort()
        report.seconds = time.perf_counter() - start
        return report

    def _recorded(self) -> dict[str, tuple[tuple[int, int] | None, str | None, int]]:
        """For each file its size and time when it was recorded, the error then, and whether it is marked as vanished.

        None for size and time where the data base lacks its content, so that it must be read again.
        """
        rows = self._db.rows(
            "SELECT path, size, mtime_ns, error, vanished, error IS NOT NULL OR contents.hash IS NOT NULL "
            "FROM pictures LEFT JOIN contents ON contents.hash = pictures.hash WHERE typeof(path) = 'blob'"
        )
        return {
            os.fsdecode(path): ((size, mtime_ns) if whole else None, error, vanished)
            for path, size, mtime_ns, error, vanished, whole in rows
        }

    def _fill(self, network: Embedder, todo: list[str], report: Report, progress: Progress | None) -> None:
        """Reads, embeds and stores files, a batch at a time."""
        known = {hash for (hash,) in self._db.rows("SELECT hash FROM contents")} if todo else set()
        done = 0
        with closing(self._read_ahead(todo, known)) as reads:
            while done < len(todo):
                start = time.perf_counter()
                batch = list(islice(reads, self.batch_size))
                report.waited_seconds += time.perf_counter() - start
                report.decode_seconds += sum(read.seconds for read in batch)
                fresh = {read.hash: read for read in batch if read.x is not None and read.hash not in known}
                blobs: list[bytes] = []
                if fresh:
                    start = time.perf_counter()
                    x = np.stack([read.x for read in fresh.values() if read.x is not None])
                    vectors = self._embed(network, x, len(todo))
                    report.network_seconds += time.perf_counter() - start
                    report.backend = network.backend = network.backend_used  # "auto" has decided
                    rows = packed.encode(vectors, self.dtype)
                    good = np.isfinite(packed.squared_norms(rows, self.dtype))
                    blobs = [row.tobytes() for row in rows[good]]
                    bad = set(compress(fresh, ~good))
                    batch = [r._replace(hash=None, error=NOT_FINITE) if r.hash in bad else r for r in batch]
                    fresh = {hash: read for hash, read in fresh.items() if hash not in bad}
                self._store(batch, list(fresh.values()), blobs, network.backend)
                errors = [(read.path, read.error) for read in batch if read.error is not None]
                known |= fresh.keys()
                report.failed += errors
                report.embedded += len(fresh)
                report.recognised += len(batch) - len(errors) - len(fresh)
                done += len(batch)
                if progress is not None:
                    progress(done, len(todo))

    def _store(self, batch: list[_Read], fresh: list[_Read], blobs: list[bytes], backend: str) -> None:
        """Stores a batch of files, and the embeddings of those among them whose content is new."""
        self._stored = None
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        contents = [(r.hash, r.width, r.height, blob) for r, blob in zip(fresh, blobs, strict=True)]
        with self._db.transaction():
            if fresh:
                self._set("unfinished", backend)
            self._db.run_each("INSERT INTO contents VALUES (?, ?, ?, ?)", contents)
            self._db.run_each(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (path) DO UPDATE SET "
                "size = excluded.size, mtime_ns = excluded.mtime_ns, error = excluded.error, vanished = 0, "
                "hash = CASE WHEN excluded.size < 0 THEN pictures.hash ELSE excluded.hash END",
                [(os.fsencode(r.path), r.size, r.mtime_ns, r.hash, r.error, now) for r in batch],
            )

    def _read_ahead(self, paths: Sequence[str], known: set[bytes]) -> Generator[_Read]:
        """Reads files in threads, in order and at most a batch ahead: decoding goes on while the network runs."""
        assert self.embedder is not None
        waiting: deque[Future[_Read]] = deque()
        with ThreadPoolExecutor(self.embedder.threads) as pool:
            try:
                for path in paths:
                    waiting.append(pool.submit(self._read, path, known))
                    if len(waiting) > self.batch_size + self.embedder.threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, path: str, known: set[bytes]) -> _Read:
        """Runs in a thread: a file's content, decoded where it is not known."""
        start = time.thread_time()
        read = _Read(path)
        try:
            size, mtime_ns = _stamp(_regular(path))
            hash = _hash(path)
            read = read._replace(size=size, mtime_ns=mtime_ns)
            if hash not in known:
                x, (width, height) = self._decode(path)
                read = read._replace(width=width, height=height, x=x)
            if _size_and_time(path) != (size, mtime_ns):
                raise OSError("it was written to while it was read")
            read = read._replace(hash=hash)
        except ImageError as error:
            if isinstance(error.__context__, MemoryError):  # which says nothing about the picture: to be tried again
                read = _Read(path)
            read = read._replace(error=_text(error, path))
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            read = _Read(path, error=_text(getattr(error, "strerror", None) or error, path))
        return read._replace(seconds=time.thread_time() - start)

    def _decode(self, path: str) -> tuple[Array, tuple[int, int]]:
        """The network's input (3, S, S) for a file, and the picture's width and height."""
        assert self.embedder is not None
        how = self.embedder.preprocessing
        image, size = images.read_file(path, self.max_pixels, DRAFT * how.size if self.fast_decode else 0)
        return images.preprocess(image, how), size

    def _embed(self, network: Embedder, x: Array, total: int) -> Array:
        """Embeddings (N, dimension) as the settings say, of inputs (N, 3, S, S); ``total`` are expected."""

        def forward(x: Array) -> Array:
            return network._forward(x, 2 * total if self.settings["flip"] else total)

        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            vectors = postprocess.average_mirrored(forward, x) if self.settings["flip"] else forward(x)
            if self.settings["normalize"]:
                vectors = postprocess.l2_normalize(vectors)
            if self._whitening is not None:
                vectors = postprocess.whiten(vectors, *self._whitening)
        return vectors

    def _set(self, key: str, value: str) -> None:
        self._db.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])

    def _drop_unused(self) -> None:
        self._db.run(
            "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.hash = contents.hash)"
        )

    # Reading

    def __iter__(self) -> Iterator[Picture]:
        """All pictures by path, the vanished and the unreadable included.

        They are read in parts, so that a slow loop keeps no writer waiting; what is written meanwhile shows or not.
        """
        last: Any = -math.inf  # less than every path, for SQLite
        sql = (
            "SELECT path, size, mtime_ns, pictures.hash, width, height, "
            "CASE WHEN length(embedding) = ? THEN embedding END, added, error, vanished "
            "FROM pictures LEFT JOIN contents ON contents.hash = pictures.hash AND error IS NULL "
            "WHERE path > ? ORDER BY path LIMIT ?"
        )
        while part := list(self._db.rows(sql, [self._row_length, last, PART])):
            for last, size, mtime_ns, hash, width, height, blob, added, error, vanished in part:
                embedding = None
                if isinstance(blob, bytes):
                    row = np.frombuffer(blob, np.uint8)[None]
                    if np.isfinite(packed.squared_norms(row, self.dtype)[0]):
                        embedding = packed.decode(row, self.dtype)[0]
                digest = hash.hex() if isinstance(hash, bytes) else None
                yield Picture(
                    _name(last), size, mtime_ns, digest, width, height, embedding, added, error, bool(vanished)
                )

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file is recorded, under this path or the one that its links lead to."""
        sql = "SELECT 1 FROM pictures WHERE path IN (?, ?)"
        return bool([*self._db.rows(sql, [os.fsencode(os.path.abspath(path)), os.fsencode(os.path.realpath(path))])])

    def stats(self) -> dict[str, Any]:
        """Numbers of pictures and contents, the size of the file in bytes, and the settings."""
        (counts,) = self._db.rows(
            "SELECT COUNT(*) FILTER (WHERE error IS NULL AND vanished = 0), "
            "COUNT(*) FILTER (WHERE error IS NOT NULL AND vanished = 0), COUNT(*) FILTER (WHERE vanished), "
            "(SELECT COUNT(*) FROM contents) FROM pictures"
        )
        size = self._db.one("PRAGMA page_count") * self._db.one("PRAGMA page_size")
        names = ("pictures", "unreadable", "vanished", "contents")
        return dict(zip(names, counts, strict=True)) | {"bytes": size} | self.settings

    def search(self, queries: Array | ImageSource | Sequence[ImageSource], k: int = 10) -> list[list[Match]]:
        """The k nearest pictures to each query by exact L2 distance, nearest first, ties by path.

        ``queries``: embeddings as the gallery's are, float (Q, dimension) or (dimension,); or one picture or a list, as
        ``Embedder.embed`` takes them. A file whose content is in the gallery is not embedded again, and finds itself at
        distance 0.

        Rows that are damaged are left out and listed in ``damaged``. Raises ImageError for a picture that cannot be
        read, ValueError for embeddings of another shape, or whose distances would not be finite.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        stored = self._load()
        if isinstance(queries, np.ndarray) and queries.dtype != np.uint8:
            with np.errstate(over="ignore", invalid="ignore"):
                vectors = np.atleast_2d(queries).astype(np.float32)
            if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not _rankable(vectors).all():
                raise ValueError(f"queries must be finite embeddings (Q, {self.dimension}), not {queries.shape}")
            hashes: list[bytes | None] = [None] * len(vectors)
        else:
            single = isinstance(queries, (str, os.PathLike, np.ndarray, Image.Image))
            sources: Any = [queries] if single else queries
            found = [self._find_or_embed(source, stored) for source in sources]
            vectors = np.array([vector for vector, _ in found], np.float32).reshape(-1, self.dimension)
            hashes = [hash for _, hash in found]
        nearest = stored.embeddings.nearest(vectors, k)
        return [_matches(stored, *pair, hash) for pair, hash in zip(nearest, hashes, strict=True)]

    def duplicates(self, threshold: float) -> list[list[Match]]:
        """Groups of pictures, each within an L2 distance of ``threshold`` of some other of its group, sorted by path.

        The distances are those to the first of the group. Time grows with the square of the number of pictures.
        """
        stored = self._load()
        groups = []
        for members in stored.embeddings.groups(threshold):
            (first,) = stored.embeddings[members[:1]]
            distances = stored.embeddings.distances(first, members)
            groups.append(_matches(stored, members, distances, stored.hashes[members[0]]))
        return groups

    def _load(self) -> _Stored:
        """All that can be found, read once and again when another process has written."""
        version = self._db.one("PRAGMA data_version")
        if self._stored is not None and version == self._version:
            return self._stored
        self._stored = None  # to have the room
        self._version = version
        self.damaged = []
        paths: list[str] = []
        hashes: list[bytes] = []
        blobs = bytearray()
        for path, hash, blob in self._db.rows(
            "SELECT path, pictures.hash, CASE WHEN length(embedding) = ? THEN embedding END FROM pictures "
            "LEFT JOIN contents ON contents.hash = pictures.hash WHERE error IS NULL AND vanished = 0 ORDER BY path",
            [self._row_length],
        ):
            if not isinstance(path, bytes) or not isinstance(blob, bytes):
                self.damaged.append((_name(path), f"its embedding is not of {self.dimension} {self.dtype}"))
                continue
            paths.append(os.fsdecode(path))
            hashes.append(hash)
            blobs += blob
        rows = np.frombuffer(blobs, np.uint8).reshape(-1, self._row_length)
        norms = packed.squared_norms(rows, self.dtype)
        good = np.isfinite(norms)
        if not good.all():
            self.damaged += [(path, "its embedding is not finite") for path in compress(paths, ~good)]
            paths, hashes = list(compress(paths, good)), list(compress(hashes, good))
            rows, norms = rows[good], norms[good]
        self._stored = _Stored(paths, hashes, Packed(rows, norms, self.dtype))
        return self._stored

    def _find_or_embed(self, source: ImageSource, stored: _Stored) -> tuple[Array, bytes | None]:
        """The embedding (dimension,) of a picture, as it is stored where its content is, and a file's content."""
        hash = None
        if isinstance(source, (str, os.PathLike)):
            with suppress(OSError, ValueError):  # decoding names what is wrong with the file
                _regular(source)
                hash = _hash(source)
            if hash in stored.hashes:
                at = stored.hashes.index(hash)
                return stored.embeddings[at : at + 1][0], hash
        if self._network is None:
            raise ValueError("to search by picture, open the gallery with an embedder")
        if isinstance(source, (str, os.PathLike)):
            name = os.fspath(source)
            x, _ = self._decode(name)
        else:
            name = "picture"
            x = images.preprocess(images.read(source), self._network.preprocessing)
        vectors = self._embed(self._network, x[None], 1)
        if not _rankable(vectors)[0]:
            raise ImageError(f"{name}: its embedding is not finite")
        return vectors[0], hash

    # Reducing

    def reduce(self, path: str | os.PathLike[str], dimensions: int) -> float:
        """Writes a new, smaller gallery, its embeddings PCA-whitened to fewer dimensions and divided by their L2 norm.

        What was learned travels in the file, so that pictures are indexed into it and searched for as in any other. It
        holds the pictures that can be found now; those that vanished or could not be read are left to its ``index``.
        Returns the share of the variance of the embeddings that is kept.

        Raises GalleryError, and writes nothing, where ``path`` exists, where this gallery is reduced already, and where
        its embeddings vary along fewer axes than ``dimensions``: they do so where there are no more of them than that.
        """
        target = os.path.abspath(path)
        for name in (target, target + "-wal", target + "-journal"):  # what SQLite would apply to the new file
            if os.path.lexists(name):
                raise GalleryError(f"{name}: exists already; choose another name, or remove it first")
        if self.settings["reduced"]:
            raise GalleryError(f"{self.path}: reduced already; reduce the gallery that it was made from")
        try:
            whitening = postprocess.learn_whitening(self._blocks(), dimensions)
        except ValueError as error:
            raise GalleryError(f"{self.path}: {error}; index more pictures, or take fewer dimensions") from None
        try:
            with tempfile.TemporaryDirectory(dir=os.path.dirname(target), prefix=".alnumpy-") as folder:
                whole = os.path.join(folder, os.path.basename(target))
                with closing(Database(whole, True)) as db, db.transaction():
                    self._copy_reduced(db, whitening)
                os.rename(whole, target)
        except OSError as error:
            raise GalleryError(f"{target}: cannot be written ({error.strerror})") from None
        return whitening.kept

    def _blocks(self) -> Iterator[Array]:
        """All embeddings float32 (n, dimension), that of each content once, a block at a time."""
        rows = self._db.rows(
            "SELECT embedding FROM contents WHERE typeof(embedding) = 'blob' AND length(embedding) = ?",
            [self._row_length],
        )
        while blobs := [blob for (blob,) in islice(rows, packed.BLOCK)]:
            block = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), -1)
            yield packed.decode(block[np.isfinite(packed.squared_norms(block, self.dtype))], self.dtype)

    def _copy_reduced(self, db: Database, whitening: postprocess.Whitening) -> None:
        """Fills a new data base with all that can be found here."""
        mean, projection, _ = whitening
        settings = self.settings | {"dimension": projection.shape[1], "reduced": True}
        db.run("INSERT INTO meta VALUES ('settings', ?)", [json.dumps(settings)])
        blobs = [array.astype("<f4").tobytes() for array in (mean, projection)]
        db.run("INSERT INTO whitening VALUES (?, ?)", blobs)
        for picture in self:
            if picture.embedding is not None and picture.hash is not None and not picture.vanished:
                vectors = postprocess.whiten(picture.embedding[None], mean, projection)
                hash, blob = bytes.fromhex(picture.hash), packed.encode(vectors, self.dtype).tobytes()
                content = hash, picture.width, picture.height, blob
                db.run("INSERT OR IGNORE INTO contents VALUES (?, ?, ?, ?)", content)
                row = os.fsencode(picture.path), picture.size, picture.mtime_ns, hash, None, picture.added, 0
                db.run("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def settings_of(embedder: Embedder, fast_decode: bool, weights: str = "") -> dict[str, Any]:
    """What a data base is bound to, in readable form and as a digest of all that an embedding depends on."""
    decode_mode = "fast" if fast_decode else "full"
    parts = [embedder.spec.to_dict(), asdict(embedder.preprocessing), embedder.normalize, decode_mode]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, array in sorted(embedder.weights.parameters.items()):
        digest.update(name.encode())
        digest.update(array.astype("<f4").tobytes())
    return {
        "network": embedder.spec.name,
        "weights": weights,
        "dimension": embedder.spec.embedding,
        "size": embedder.preprocessing.size,
        "normalize": embedder.normalize,
        "decode": decode_mode,
        "identity": digest.hexdigest(),
    }


def _check_settings(text: str, path: str) -> dict[str, Any]:
    """The settings that a data base records. Raises GalleryError where they cannot be so."""
    try:
        settings = {"flip": False, "reduced": False} | json.loads(text)  # which version 1 did not have
        good = {key: type(value) for key, value in settings.items()} == SETTINGS
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good or settings["dtype"] not in DTYPES or not 1 <= settings["dimension"] <= MAX_DIMENSION:
        raise GalleryError(f"{path}: its settings are damaged; move it away and index again")
    return settings


def _rankable(vectors: Array) -> Array:
    """Which of embeddings float32 (N, D) are finite, as are their distances: bool (N,)."""
    return np.isfinite(packed.squared_norms(packed.encode(vectors, "float32"), "float32"))


def _matches(stored: _Stored, indices: Array, distances: Array, hash: bytes | None) -> list[Match]:
    return [
        Match(stored.paths[i], float(distance), stored.hashes[i] == hash)
        for i, distance in zip(indices, distances, strict=True)
    ]


def _find(folders: Paths) -> tuple[set[str], tuple[str, ...], list[tuple[str, str]]]:
    """Pictures below folders and single files; the folders, with a separator at their end; what failed, with why.

    Paths are absolute.
    """
    paths: set[str] = set()
    roots: list[str] = []
    failed: list[tuple[str, str]] = []

    def fail(error: OSError) -> None:
        failed.append((error.filename, error.strerror or "cannot be listed"))

    for folder in map(os.path.abspath, _several(folders)):
        if os.path.isdir(folder):
            roots.append(os.path.join(folder, ""))
            for parent, _, names in os.walk(folder, onerror=fail):
                paths.update(os.path.join(parent, n) for n in names if images.is_picture(n))
        elif os.path.exists(folder) or (os.path.islink(folder) and images.is_picture(folder)):
            paths.add(folder)
        else:  # perhaps a disk that is not mounted: nothing can be said about what is below
            reason = "No such file or folder; if it is gone for good: alnumpy remove PATH --db FILE"
            failed.append((folder, reason))
    return paths, tuple(roots), failed


def _several(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if "" in several:  # as of a variable that is not set; it would mean the current folder
        raise GalleryError("a path is empty; the current folder is: .")
    return several


def _is_gone(path: str) -> bool | None:
    """Whether there is no such file; None where the system does not tell, as of a folder that may not be entered.

    A folder in the place of a picture is none.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return None
    return os.path.isdir(path)


def _emptied(folder: str) -> str | None:
    """The folder, or the one above it, that all is gone from, as a disk leaves it that is not mounted, or None."""
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        if os.path.islink(folder):  # to what is not there now
            return folder
        folder = os.path.dirname(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        return folder if next(entries, None) is None else None
    return None


def _size_and_time(path: str) -> tuple[int, int] | None:
    """A file's size and modification time; None where it cannot be reached."""
    with suppress(OSError, ValueError):
        return _stamp(os.stat(path))
    return None


def _stamp(found: os.stat_result) -> tuple[int, int]:
    """A file's size, and its modification time in nanoseconds as far as SQLite can hold it: from 1677 to 2262."""
    return found.st_size, min(max(found.st_mtime_ns, -(2**63)), 2**63 - 1)


def _name(path: object) -> str:
    """A stored path, also where the data base is damaged."""
    return os.fsdecode(path) if isinstance(path, bytes) else repr(path)


def _regular(path: str | os.PathLike[str]) -> os.stat_result:
    """A regular file's size and times. Raises OSError, also for what is no regular file: a FIFO would wait for ever."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    return found


def _hash(path: str | os.PathLike[str]) -> bytes:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def _text(error: object, path: str) -> str:
    """An error as text that can be stored, without the path that it may begin with."""
    return str(error).removeprefix(f"{path}: ").encode("utf-8", "backslashreplace").decode()
