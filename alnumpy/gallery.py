"""The local data base: which pictures there are, and their embeddings, in one SQLite file that is searched exactly.

The table ``meta`` says which model, preprocessing and number format the file is bound to; ``contents`` holds an
embedding for each distinct content of a file; ``pictures`` holds the files. So a renamed or copied file is recognised
by its content and costs no second embedding.

Several processes may read while one writes. A batch is one transaction: a stop at any moment loses at most the batch in
flight.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from importlib.util import find_spec
from itertools import compress, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import images, retrieval
from .embedder import Embedder
from .errors import GalleryError, ImageError
from .images import ImageSource

APPLICATION_ID = 0x616C6E70  # "alnp": marks the file as ours in SQLite's header
# Script i leads from version i to version i + 1, which SQLite keeps as user_version. A published script never changes.
# contents: a row for each distinct content of a file, with its SHA-256, its size in pixels when upright, and encode().
# pictures: a row for each file. The path is absolute and in the file system's bytes, since names need not be text; size
# and mtime_ns are -1 where it could not be read; hash is its content's, or NULL where error tells why there is none.
MIGRATIONS = (
    f"""
    PRAGMA application_id = {APPLICATION_ID};
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE contents (
        hash BLOB NOT NULL UNIQUE,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        embedding BLOB NOT NULL
    );
    CREATE TABLE pictures (
        path BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        hash BLOB,
        error TEXT,
        added TEXT NOT NULL,
        vanished INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX pictures_by_hash ON pictures (hash);
    """,
)
DTYPES = ("float32", "float16", "int8")
MAX_DIMENSION = 65536
BLOCK = 256  # rows converted to float32 at once: 1.3 MB, which stays in the cache
DRAFT = 2  # fast decoding keeps at least this many pixels for each of the network's
WAIT = 30.0  # seconds that one waits for another process's transaction

Array = np.ndarray
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Progress = Callable[[int, int], None]


class Picture(NamedTuple):
    """A row of the data base: one file."""

    path: str
    size: int  # bytes, -1 where it could not be read
    mtime_ns: int
    hash: str | None  # SHA-256 in hexadecimal
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
    same: bool  # whether its file is the query's, byte for byte


class Report(NamedTuple):
    """What became of the files that were indexed."""

    embedded: int  # new contents
    recognised: int  # new or touched files whose content was known already
    unchanged: int  # not read
    vanished: int  # newly found to be gone
    pruned: int
    failed: list[tuple[str, str]]  # path and reason, those included that failed earlier and have not changed
    backend: str  # what embedded: "numba", "numpy" or "none"
    seconds: float
    decode_seconds: float  # of the CPU, reading and decoding, all threads together
    network_seconds: float
    waited_seconds: float  # that the network waited for pictures


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


class _Vectors(NamedTuple):
    """All that can be found, in the order of the paths' bytes."""

    paths: list[str]
    hashes: list[bytes]
    rows: Array  # uint8 (N, row_length): embeddings as they are stored, which int8 makes a quarter as large
    norms: Array  # float32 (N,), squared


def row_length(dimension: int, dtype: str) -> int:
    """Bytes of a stored embedding."""
    return {"float32": 4 * dimension, "float16": 2 * dimension, "int8": 4 + dimension}[dtype]


def encode(vectors: Array, dtype: str) -> Array:
    """Embeddings float32 (N, D) as they are stored, uint8 (N, row_length), little-endian.

    "int8": a float32 scale, then the components divided by it and rounded; the largest becomes 127.
    """
    if dtype != "int8":
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and is refused as such
            stored = np.ascontiguousarray(vectors, {"float32": "<f4", "float16": "<f2"}[dtype])
        return stored.view(np.uint8)
    scale = np.abs(vectors).max(1, keepdims=True).astype("<f4") / np.float32(127)
    with np.errstate(invalid="ignore"):  # not finite: the scale says so
        codes = np.rint(vectors / np.where(scale > 0, scale, 1)).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], 1)


def decode(rows: Array, dtype: str) -> Array:
    """The inverse of ``encode`` for finite rows: uint8 (N, row_length) -> float32 (N, D). For "float32" a view."""
    if dtype == "float32":
        return rows.view("<f4").astype(np.float32, copy=False)
    if dtype == "int8":
        vectors = rows[:, 4:].view(np.int8).astype(np.float32)
        vectors *= rows[:, :4].copy().view("<f4")
        return vectors
    # float16: NumPy's own conversion is slow, most of all for zeros, which embeddings are full of. So move sign,
    # exponent and fraction to their places in a float32, and make up for the different bias of the exponent.
    bits = rows.view("<i2").astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)
    vectors = bits.view(np.float32)
    vectors *= np.float32(2.0**112)
    return vectors


def finite(rows: Array, dtype: str) -> Array:
    """Which stored embeddings (N, row_length) are finite: bool (N,)."""
    if dtype == "float32":
        return np.isfinite(rows.view("<f4")).all(1)
    if dtype == "int8":
        return np.isfinite(rows[:, :4].copy().view("<f4")[:, 0])
    return ((rows.view("<u2") & 0x7C00) != 0x7C00).all(1)


def settings_of(embedder: Embedder, fast_decode: bool, weights: str = "") -> dict[str, Any]:
    """What a data base is bound to, in readable form and as a digest of all that an embedding depends on."""
    preprocessing = dataclasses.asdict(embedder.preprocessing)
    decode_mode = "fast" if fast_decode else "full"
    digest = hashlib.sha256(
        json.dumps([embedder.spec.to_dict(), preprocessing, embedder.normalize, decode_mode], sort_keys=True).encode()
    )
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


def migrate(connection: sqlite3.Connection, scripts: Sequence[str] = MIGRATIONS) -> None:
    """Runs the scripts that a data base of an older version lacks, each with its version in one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(scripts[version:], version + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")
        except BaseException:
            _roll_back(connection)
            raise


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Everything that the data base defines: a file of strangers could bring triggers and views."""
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # a full disk has rolled back already
        connection.execute("ROLLBACK")


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Raises GalleryError, which names the data base and the remedy, for whatever SQLite raises."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite's message may quote what is damaged
        text = str(error)
        if "locked" in text:
            text = "another program is writing to it; try again when that has ended"
        elif "full" in text:
            text = f"{text}; make room and run again: what was stored before is safe"
        elif not isinstance(error, sqlite3.OperationalError):
            text = f"damaged, or not a data base ({text}); restore it, or move it away and index again"
        raise GalleryError(f"{path}: {text}") from None


class Gallery:
    """Pictures and their embeddings in one file. A context manager; to be used by the thread that opened it.

    ``mode``: "r" reads and searches, also on read-only media; "a" writes too, and makes the file where there is none;
    one process at a time can have a gallery open in mode "a", and any number in mode "r". ``embedder`` must be the one
    that the gallery was made with; it is needed to index and to search by picture. ``dtype`` ("float32", "float16" or
    "int8") and ``fast_decode`` (JPEG decoded at reduced size) are chosen when the gallery is made, and may be None
    later. ``weights``: the name of the embedder's weights file, for whoever opens the gallery later.

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
    ):
        if mode not in ("r", "a"):
            raise ValueError(f"mode must be 'r' or 'a', not {mode!r}")
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.path = os.path.abspath(path)
        self.embedder = embedder
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.damaged: list[tuple[str, str]] = []  # rows that cannot be ranked, path and reason; known after a search
        self._writable = mode == "a"
        self._lock: sqlite3.Connection | None = None
        self._connection: sqlite3.Connection | None = None
        self._logged = False  # whether the file is in the mode with a log beside it
        self._vectors: _Vectors | None = None
        self._version = -1  # of the data when the vectors were read
        try:
            with _naming(self.path):
                self._open()
                self.settings = self._bind(dtype, fast_decode, weights)
                if self._writable:
                    self._db.execute("PRAGMA synchronous = FULL")  # a finished batch outlives a power cut
                    with suppress(sqlite3.OperationalError):  # a log lets readers read on; some file systems cannot
                        self._logged = self._one("PRAGMA journal_mode = WAL") == "wal"
        except BaseException:
            self.close()
            raise
        self.dtype: str = self.settings["dtype"]
        self.dimension: int = self.settings["dimension"]
        self.fast_decode = self.settings["decode"] == "fast"

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing else can be done with the gallery."""
        self._vectors = None
        if self._connection is not None:
            if self._logged:  # back to one plain file, which read-only media can hold; readers can prevent it
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA busy_timeout = 1000")
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                    self._connection.execute("PRAGMA journal_mode = DELETE").fetchall()
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            with suppress(OSError):
                os.unlink(self.path + "-lock")
            self._lock.close()
            self._lock = None

    # Opening

    def _open(self) -> None:
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise GalleryError(f"{self.path}: not a file")
        if not self._writable:
            self._open_to_read()
        else:
            self._take_lock()
            self._connect("rwc")
        version, application = (self._one(f"PRAGMA {name}") for name in ("user_version", "application_id"))
        schema = _schema(self._db)
        if self._writable and (version, application, schema) == (0, 0, set()):
            migrate(self._db)  # a new file
            version, application, schema = len(MIGRATIONS), APPLICATION_ID, _schema(self._db)
        if application != APPLICATION_ID:
            raise GalleryError(f"{self.path}: not an alnumpy gallery; make one with: alnumpy index FOLDER --db FILE")
        if version > len(MIGRATIONS):
            raise GalleryError(f"{self.path}: version {version}, this alnumpy reads {len(MIGRATIONS)}; update alnumpy")
        if version < len(MIGRATIONS):
            if not self._writable:
                raise GalleryError(f"{self.path}: version {version} is old; alnumpy index brings it up to date")
            migrate(self._db)
            schema = _schema(self._db)
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
            migrate(fresh)
            expected = _schema(fresh)
        if schema != expected:
            raise GalleryError(f"{self.path}: its tables are not those of an alnumpy gallery")

    def _connect(self, options: str) -> None:
        uri = f"{Path(self.path).as_uri()}?mode={options}"
        self._connection = sqlite3.connect(uri, uri=True, timeout=WAIT, isolation_level=None)
        self._db.execute("PRAGMA trusted_schema = OFF")
        self._db.execute("SELECT * FROM sqlite_master LIMIT 1").fetchall()  # the file is opened only here

    def _open_to_read(self) -> None:
        if not os.path.exists(self.path):
            raise GalleryError(f"{self.path}: no such gallery; make one with: alnumpy index FOLDER --db FILE")
        try:
            self._connect("ro")
        except sqlite3.OperationalError:
            # A writer that was killed leaves the file in a mode that needs two more files beside it, which a read-only
            # folder cannot get. Where no unfinished log is left, the file itself is whole.
            log = self.path + "-wal"
            if os.access(os.path.dirname(self.path), os.W_OK) or (os.path.exists(log) and os.path.getsize(log)):
                raise
            self._db.close()
            self._connect("ro&immutable=1")

    def _take_lock(self) -> None:
        """Keeps a second writer out. The lock is SQLite's on a file of its own: it ends with the process, always."""
        lock = None
        try:
            lock = sqlite3.connect(self.path + "-lock", timeout=0, isolation_level=None)
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if lock is not None:
                lock.close()
            if "locked" in str(error):
                raise GalleryError(
                    f"{self.path}: another alnumpy is writing to it; try again when that has ended"
                ) from None
            raise GalleryError(f"{self.path}: cannot be written to ({error})") from None
        self._lock = lock

    def _bind(self, dtype: str | None, fast_decode: bool | None, weights: str) -> dict[str, Any]:
        """The settings that are recorded, or those to record in a new file; checked against what was asked for."""
        recorded = dict(self._db.execute("SELECT key, value FROM meta WHERE key = 'settings'"))
        if not recorded:
            if not self._writable or self.embedder is None:
                raise GalleryError(f"{self.path}: an empty gallery; fill it with: alnumpy index FOLDER --db FILE")
            settings = settings_of(self.embedder, bool(fast_decode), weights) | {"dtype": dtype or "float32"}
            self._db.execute("INSERT INTO meta VALUES ('settings', ?)", [json.dumps(settings)])
            return settings
        settings = _check_settings(recorded["settings"], self.path)
        asked: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        if fast_decode is not None:
            asked["decode"] = "fast" if fast_decode else "full"
        if self.embedder is not None:
            asked = settings_of(self.embedder, settings["decode"] == "fast") | asked
            del asked["weights"]  # the same file may lie elsewhere
        different = [key for key in asked if asked[key] != settings[key]]
        if different:
            named = [f"{key} {settings[key]}, not {asked[key]}" for key in different if key != "identity"]
            made = "; ".join(named) or f"other weights, {settings['weights']}"
            raise GalleryError(
                f"{self.path}: made with {made}. Embeddings of different models or settings cannot be compared: use "
                "the same ones, or index into another file"
            )
        return settings

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("the gallery is closed")
        return self._connection

    def _one(self, sql: str, *values: Any) -> Any:
        return self._db.execute(sql, values).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if not self._writable:
            raise GalleryError(f"{self.path}: opened to read; open it with mode 'a' to change it")
        self._vectors = None
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            _roll_back(self._db)
            raise

    # Filling

    def index(
        self,
        folders: Paths,
        prune: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Brings the gallery up to date with folders, all below them included, and with single files.

        A file whose size and modification time are as recorded is not read; one whose content is known is not embedded
        again. Pictures that are gone from the folders are marked as vanished and found no more; ``prune`` removes them,
        marked earlier or now. A file without an embedding is recorded with the reason, and tried again when it or the
        limit of pixels changes; one whose bytes could not even be read is tried each time.

        ``progress(done, total)`` is called after each batch, with numbers of files. Raises GalleryError where the data
        base cannot be written; what was stored by then stays, and the next call goes on from there.
        """
        paths, roots, unlisted, failed = _find(folders)
        with _naming(self.path):
            gone = [path for root in roots for path in self._below(root) if path not in paths]
            gone = [path for path in gone if not path.startswith(tuple(unlisted))]
            return self._update(paths, gone, failed, prune, progress)

    def add(self, files: Paths, progress: Progress | None = None) -> Report:
        """Adds files, or all below folders. Like ``index``, but nothing is marked as vanished."""
        paths, _, _, failed = _find(files)
        with _naming(self.path):
            return self._update(paths, [], failed, False, progress)

    def update(self, prune: bool = False, progress: Progress | None = None) -> Report:
        """Looks again at every file of the gallery. Like ``index``, but new files are not looked for."""
        with _naming(self.path):
            stored = self._below("")
            gone = [path for path in stored if not os.path.lexists(path)]
            return self._update(set(stored) - set(gone), gone, [], prune, progress)

    def remove(self, paths: Paths) -> int:
        """Removes files, or all below folders, from the gallery (never from the disk). Returns how many they were."""
        removed = 0
        with _naming(self.path), self._transaction():
            for path in map(os.path.abspath, _several(paths)):
                removed += sum(map(self._delete, [path, *self._below(os.path.join(path, ""))]))
            self._drop_unused()
        return removed

    def _update(
        self, paths: set[str], gone: list[str], failed: list[tuple[str, str]], prune: bool, progress: Progress | None
    ) -> Report:
        """Embeds those of ``paths`` that are new or changed, then marks or removes those that are ``gone``."""
        if self.embedder is None:
            raise ValueError("to index, open the gallery with an embedder")
        start = time.perf_counter()
        with self._transaction():
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
        todo: list[str] = []
        back: list[str] = []  # unchanged, but marked as vanished
        for path in sorted(paths):
            unchanged, error, vanished = self._recorded(path)
            if not unchanged or (error and meta.get("max_pixels") != str(self.max_pixels)):
                todo.append(path)
                continue
            if error:
                failed.append((path, error))
            if vanished:
                back.append(path)

        embedder = copy.copy(self.embedder)  # whose backend is settled once, also for a run that continues this one
        unfinished = meta.get("unfinished")
        if embedder.backend == "auto" and (unfinished == "numpy" or (unfinished == "numba" and find_spec("numba"))):
            embedder.backend = unfinished
        known = {hash for (hash,) in self._db.execute("SELECT hash FROM contents")} if todo else set()
        done = embedded = recognised = 0
        decode_seconds = network_seconds = waited_seconds = 0.0
        with closing(self._read_ahead(todo, known)) as reads:
            while done < len(todo):
                clock = time.perf_counter()
                batch = list(islice(reads, self.batch_size))
                waited_seconds += time.perf_counter() - clock
                decode_seconds += sum(read.seconds for read in batch)
                fresh = {read.hash: read.x for read in batch if read.x is not None and read.hash not in known}
                clock = time.perf_counter()
                rows = dict(zip(fresh, self._embed(embedder, list(fresh.values()), len(todo)), strict=True))
                network_seconds += time.perf_counter() - clock
                batch = [_refuse(read) if rows.get(read.hash, b"") is None else read for read in batch]
                with self._transaction():
                    if rows:
                        self._set("unfinished", embedder.backend)
                    for read in batch:
                        self._store(read, rows.get(read.hash))
                new = {hash for hash, row in rows.items() if row is not None}
                bad = [(read.path, read.error) for read in batch if read.error is not None]
                known |= new
                failed += bad
                embedded += len(new)
                recognised += len(batch) - len(bad) - len(new)
                done += len(batch)
                if progress is not None:
                    progress(done, len(todo))

        with self._transaction():
            for path in back:
                self._db.execute("UPDATE pictures SET vanished = 0 WHERE path = ?", [os.fsencode(path)])
            mark = "UPDATE pictures SET vanished = 1 WHERE path = ? AND vanished = 0"
            marked = sum(self._db.execute(mark, [os.fsencode(path)]).rowcount for path in gone)
            pruned = sum(map(self._delete, gone)) if prune else 0
            self._drop_unused()
            self._set("max_pixels", str(self.max_pixels))
            self._db.execute("DELETE FROM meta WHERE key = 'unfinished'")
        return Report(
            embedded=embedded,
            recognised=recognised,
            unchanged=len(paths) - len(todo),
            vanished=marked,
            pruned=pruned,
            failed=sorted(failed),
            backend=embedder.backend_used if embedded else "none",
            seconds=time.perf_counter() - start,
            decode_seconds=decode_seconds,
            network_seconds=network_seconds,
            waited_seconds=waited_seconds,
        )

    def _recorded(self, path: str) -> tuple[bool, str | None, bool]:
        """Whether a file is as it was when it was recorded, the error then, and whether it is marked as vanished."""
        row = self._db.execute(
            "SELECT size, mtime_ns, error, vanished FROM pictures WHERE path = ?", [os.fsencode(path)]
        ).fetchone()
        try:
            now = os.stat(path)
        except (OSError, ValueError):
            return False, None, False
        return row is not None and row[:2] == (now.st_size, now.st_mtime_ns), row and row[2], bool(row and row[3])

    def _read_ahead(self, paths: Sequence[str], known: set[bytes]) -> Generator[_Read]:
        """Reads files in threads, in order and at most a batch ahead: decoding goes on while the network runs."""
        assert self.embedder is not None
        waiting: deque[Future[_Read]] = deque()
        with ThreadPoolExecutor(self.embedder.threads) as pool:
            try:
                for path in paths:
                    if len(waiting) >= self.batch_size + self.embedder.threads:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(self._read, path, known))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, path: str, known: set[bytes]) -> _Read:
        """Runs in a thread: a file's content, decoded where it is not known."""
        start = time.thread_time()
        width = height = 0
        x = None
        try:
            before = _regular(path)
            hash = _hash(path)
            read = _Read(path, before.st_size, before.st_mtime_ns)
            if hash not in known:
                x, (width, height) = self._decode(path)
            after = os.stat(path)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                return _Read(path, error="it was written to while it was read")
            read = read._replace(hash=hash, width=width, height=height, x=x)
        except ImageError as error:
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

    def _embed(self, embedder: Embedder, inputs: list[Array], total: int) -> list[bytes | None]:
        """Embeddings as they are stored; None for one that the number format cannot hold."""
        if not inputs:
            return []
        vectors = embedder._forward(np.stack(inputs), total)
        embedder.backend = embedder.backend_used  # "auto" has decided
        rows = encode(vectors, self.dtype)
        return [row.tobytes() if good else None for row, good in zip(rows, finite(rows, self.dtype), strict=True)]

    def _store(self, read: _Read, row: bytes | None) -> None:
        if row is not None:
            self._db.execute(
                "INSERT OR IGNORE INTO contents VALUES (?, ?, ?, ?)", [read.hash, read.width, read.height, row]
            )
        self._db.execute(
            "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (path) DO UPDATE SET size = excluded.size, "
            "mtime_ns = excluded.mtime_ns, hash = excluded.hash, error = excluded.error, vanished = 0",
            [
                os.fsencode(read.path),
                read.size,
                read.mtime_ns,
                read.hash,
                read.error,
                datetime.now(timezone.utc).isoformat(timespec="seconds"),
            ],
        )

    def _set(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])

    def _below(self, root: str) -> list[str]:
        """Stored paths that start with ``root``, a folder's path with a separator at its end; all for ""."""
        low = os.fsencode(root)
        high = low[:-1] + bytes([low[-1] + 1]) if low else b"\xff"
        rows = self._db.execute("SELECT path FROM pictures WHERE path > ? AND path < ? ORDER BY path", [low, high])
        return [os.fsdecode(path) for (path,) in rows]

    def _delete(self, path: str) -> int:
        return self._db.execute("DELETE FROM pictures WHERE path = ?", [os.fsencode(path)]).rowcount

    def _drop_unused(self) -> None:
        self._db.execute(
            "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.hash = contents.hash)"
        )

    # Reading

    def __iter__(self) -> Iterator[Picture]:
        """All pictures by path, the vanished and the unreadable included."""
        with _naming(self.path):
            rows = self._db.execute(
                "SELECT path, size, mtime_ns, pictures.hash, width, height, embedding, added, error, vanished "
                "FROM pictures LEFT JOIN contents ON contents.hash = pictures.hash ORDER BY path"
            )
            for path, size, mtime_ns, hash, width, height, row, added, error, vanished in rows:
                embedding = None
                if isinstance(row, bytes) and len(row) == self._row_length:
                    embedding = decode(np.frombuffer(row, np.uint8)[None], self.dtype)[0]
                digest = hash.hex() if isinstance(hash, bytes) else None
                yield Picture(
                    _name(path), size, mtime_ns, digest, width, height, embedding, added, error, bool(vanished)
                )

    def stats(self) -> dict[str, Any]:
        """Numbers of pictures and contents, the size of the file in bytes, and the settings."""
        with _naming(self.path):
            return {
                "pictures": self._one("SELECT COUNT(*) FROM pictures WHERE error IS NULL AND vanished = 0"),
                "unreadable": self._one("SELECT COUNT(*) FROM pictures WHERE error IS NOT NULL AND vanished = 0"),
                "vanished": self._one("SELECT COUNT(*) FROM pictures WHERE vanished"),
                "contents": self._one("SELECT COUNT(*) FROM contents"),
                "bytes": self._one("PRAGMA page_count") * self._one("PRAGMA page_size"),
                **self.settings,
            }

    def search(self, queries: Array | ImageSource | Sequence[ImageSource], k: int = 10) -> list[list[Match]]:
        """The k nearest pictures to each query by exact L2 distance, nearest first, ties by path.

        ``queries``: embeddings, float (Q, dimension) or (dimension,); or one picture or a list, as ``Embedder.embed``
        takes them. A file whose content is in the gallery is not embedded again, and finds itself at distance 0.

        Rows that are damaged are left out and listed in ``damaged``. Raises ImageError for a picture that cannot be
        read, ValueError for embeddings of another shape or not finite.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        with _naming(self.path):
            stored = self._load()
        vectors, hashes = self._query(queries, stored)
        matches = []
        step = max(1, retrieval.BLOCK // max(1, len(stored.paths)))
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            for query, hash, distances in zip(
                vectors[part], hashes[part], self._squared_distances(vectors[part], stored), strict=True
            ):
                # What rounding could place among the first k is compared again, exactly.
                kth = np.partition(distances, k - 1)[k - 1] if k < len(distances) else np.inf
                slack = retrieval.ROUNDING * (stored.norms.max(initial=0) + query @ query)
                near = np.flatnonzero(distances <= kth + slack)
                indices, exact = retrieval.search(query[None], decode(stored.rows[near], self.dtype), k)
                matches.append(
                    [
                        Match(stored.paths[i], float(d), stored.hashes[i] == hash)
                        for i, d in zip(near[indices[0]], exact[0], strict=True)
                    ]
                )
        return matches

    def _squared_distances(self, queries: Array, stored: _Vectors) -> Array:
        """Of (Q, D) to all pictures: float32 (Q, N). Embeddings are converted to float32 a block at a time."""
        distances = np.empty((len(queries), len(stored.paths)), np.float32)
        for start in range(0, len(stored.paths), BLOCK):
            part = slice(start, start + BLOCK)
            block = decode(stored.rows[part], self.dtype)
            distances[:, part] = retrieval.squared_distances(queries, block, stored.norms[part])
        return distances

    def duplicates(self, threshold: float) -> list[list[Match]]:
        """Groups of pictures, each within an L2 distance of ``threshold`` of some other of its group, sorted by path.

        The distances are those to the first of the group. Time grows with the square of the number of pictures.
        """
        with _naming(self.path):
            stored = self._load()
        count = len(stored.paths)
        group = np.arange(count)  # the first picture of each one's group
        for start in range(0, count, BLOCK):
            ours = decode(stored.rows[start : start + BLOCK], self.dtype)
            for other in range(start, count, BLOCK):
                theirs = decode(stored.rows[other : other + BLOCK], self.dtype)
                norms = stored.norms[other : other + BLOCK]
                near = retrieval.squared_distances(ours, theirs, norms)
                near -= retrieval.ROUNDING * (norms + norms.max())
                for i in np.flatnonzero((near <= threshold**2).sum(1) > (start == other)):
                    j = np.flatnonzero(near[i] <= threshold**2)
                    j = j[group[other + j] != group[start + i]]
                    exact = np.linalg.norm(theirs[j] - ours[i], axis=1)
                    for joined in np.unique(group[other + j[exact <= threshold]]):
                        pair = joined, group[start + i]
                        group[group == max(pair)] = min(pair)
        groups = []
        first, sizes = np.unique(group, return_counts=True)
        for leader in first[sizes > 1]:
            members = np.flatnonzero(group == leader)
            vectors = decode(stored.rows[members], self.dtype)
            distances = np.linalg.norm(vectors - vectors[0], axis=1)
            groups.append(
                [
                    Match(stored.paths[i], float(d), stored.hashes[i] == stored.hashes[leader])
                    for i, d in zip(members, distances, strict=True)
                ]
            )
        return groups

    @property
    def _row_length(self) -> int:
        return row_length(self.dimension, self.dtype)

    def _load(self) -> _Vectors:
        """All that can be found, read once and again when another process has written."""
        version = self._one("PRAGMA data_version")
        if self._vectors is not None and version == self._version:
            return self._vectors
        self._vectors, self._version = None, version
        self.damaged = []
        paths: list[str] = []
        hashes: list[bytes] = []
        rows = bytearray()
        for path, hash, row in self._db.execute(
            "SELECT path, pictures.hash, CASE WHEN length(embedding) = ? THEN embedding END FROM pictures "
            "LEFT JOIN contents ON contents.hash = pictures.hash WHERE error IS NULL AND vanished = 0 ORDER BY path",
            [self._row_length],
        ):
            if not isinstance(path, bytes) or not isinstance(row, bytes):
                self.damaged.append((_name(path), f"its embedding is not of {self.dimension} {self.dtype}"))
                continue
            paths.append(os.fsdecode(path))
            hashes.append(hash)
            rows += row
        array = np.frombuffer(rows, np.uint8).reshape(-1, self._row_length)
        norms = np.empty(len(paths), np.float32)
        good = np.empty(len(paths), bool)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(paths), BLOCK):
                part = slice(start, start + BLOCK)
                block = decode(array[part], self.dtype)
                norms[part] = np.einsum("nd,nd->n", block, block)
                good[part] = finite(array[part], self.dtype) & np.isfinite(norms[part])
        if not good.all():
            self.damaged += [(paths[i], "its embedding is not finite") for i in np.flatnonzero(~good)]
            paths, hashes = list(compress(paths, good)), list(compress(hashes, good))
            array, norms = array[good], norms[good]
        self._vectors = _Vectors(paths, hashes, array, norms)
        return self._vectors

    def _query(self, queries: Any, stored: _Vectors) -> tuple[Array, list[bytes | None]]:
        """Embeddings float32 (Q, dimension) of what ``search`` takes, and the contents of those that are files."""
        if isinstance(queries, np.ndarray) and queries.dtype != np.uint8:
            vectors = np.atleast_2d(queries).astype(np.float32)
            if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not np.isfinite(vectors).all():
                raise ValueError(f"queries must be finite embeddings (Q, {self.dimension}), not {queries.shape}")
            return vectors, [None] * len(vectors)
        single = isinstance(queries, (str, os.PathLike, np.ndarray)) or hasattr(queries, "convert")
        vectors = np.empty((1 if single else len(queries), self.dimension), np.float32)
        hashes: list[bytes | None] = []
        for i, source in enumerate([queries] if single else queries):
            hashes.append(None)
            if isinstance(source, (str, os.PathLike)):
                with suppress(OSError, ValueError):  # decoding names what is wrong with the file
                    _regular(source)
                    hashes[i] = _hash(source)
                with suppress(ValueError):
                    at = stored.hashes.index(hashes[i] or b"")
                    vectors[i] = decode(stored.rows[at : at + 1], self.dtype)[0]
                    continue
            vectors[i] = self._embed_one(source)
        return vectors, hashes

    def _embed_one(self, source: ImageSource) -> Array:
        """The embedding (dimension,) of a picture that is not in the gallery, decoded as the gallery's were."""
        if self.embedder is None:
            raise ValueError("to search by picture, open the gallery with an embedder")
        if not isinstance(source, (str, os.PathLike)):
            return self.embedder.embed(source)[0]
        vector = self.embedder.forward(self._decode(os.fspath(source))[0][None])[0]
        if not np.isfinite(vector).all():
            raise ImageError(f"{os.fspath(source)}: its embedding is not finite")
        return vector


def _find(folders: Paths) -> tuple[set[str], list[str], list[str], list[tuple[str, str]]]:
    """Pictures below folders and single files; the folders; what could not be listed; and what failed, with why.

    Paths are absolute, those of folders end with a separator.
    """
    paths: set[str] = set()
    roots: list[str] = []
    unlisted: list[str] = []
    failed: list[tuple[str, str]] = []

    def fail(error: OSError) -> None:
        failed.append((error.filename, error.strerror or "cannot be listed"))
        unlisted.append(os.path.join(error.filename, ""))

    for folder in map(os.path.abspath, _several(folders)):
        if os.path.isdir(folder):
            roots.append(os.path.join(folder, ""))
            for parent, _, names in os.walk(folder, onerror=fail):
                paths.update(os.path.join(parent, n) for n in names if n.lower().endswith(images.SUFFIXES))
        elif os.path.lexists(folder):
            paths.add(folder)
        else:  # perhaps a disk that is not mounted: nothing can be said about what is below
            failed.append((folder, "No such file or folder"))
    return paths, roots, unlisted, failed


def _several(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


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


def _refuse(read: _Read) -> _Read:
    """A file whose embedding is not finite."""
    return read._replace(hash=None, error="its embedding is not finite in the gallery's number format")


def _check_settings(text: str, path: str) -> dict[str, Any]:
    """The settings that a data base records. Raises GalleryError where they cannot be so."""
    kinds = {
        "network": str, "weights": str, "dimension": int, "size": int, "normalize": bool, "decode": str,
        "identity": str, "dtype": str,
    }  # fmt: skip
    try:
        settings = json.loads(text)
        good = {key: type(value) for key, value in settings.items()} == kinds
    except (ValueError, TypeError, AttributeError, RecursionError):
        good = False
    if not good or settings["dtype"] not in DTYPES or not 1 <= settings["dimension"] <= MAX_DIMENSION:
        raise GalleryError(f"{path}: its settings are damaged; move it away and index again")
    return settings
