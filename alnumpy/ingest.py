"""How pictures get into a gallery: read ahead in threads, hashed, decoded, embedded, and stored a batch at a time."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import compress, islice
from typing import TYPE_CHECKING

import numpy as np

from . import dates, formats, moving, packed, scan, sketch, worker
from .database import Database
from .embedder import BACKENDS, Embedder, available, read_ahead
from .errors import GalleryError
from .places import Places
from .scan import Found, Kind, Paths, Plan, RealDisk, Recorded, Rules, Stamp, Volume, plan
from .worker import Encoder, Read, read_file

if TYPE_CHECKING:
    from concurrent.futures import Executor

DATED = 1000  # pictures whose dates are recorded in one transaction
MISSING, LEFT_OUT = 1, 2  # states of a picture that is not found any more; all others have 0
AHEAD = 8192  # files that an executor has at a time; with 1280 components their embeddings take 42 MB
ALIKE = 1000  # known contents of the size of a file, which its worker is told; of more it is told none
NOT_FINITE = "its embedding is not finite in the gallery's number format"

Array = np.ndarray
Progress = Callable[[int, int], None]


@dataclass
class Report:
    """The result of indexing: how many files had which outcome.

    Parameters:
        embedded: new contents.
        recognised: new or touched files whose content was known already.
        unchanged: files that were not read.
        vanished: files newly found to be missing.
        pruned: missing files that were removed from the gallery.
        left_out: pictures of the gallery that a rule leaves out now, but did not before.
        passed_over: numbers of files that are not read, by kind.
        failed: path and reason, including files that failed earlier and have not changed.
        moved: missing folders whose files were all recognised elsewhere: the folder, its new path, the number of files.
        backend: the backend that embedded: "compiled", "numba", "numpy" or "none".
        seconds: for all of it.
        decode_seconds: CPU time for reading and decoding, all threads together.
        network_seconds: time in the network, all workers of an executor together.
        waited_seconds: time that the network waited for pictures, or the writer for workers.

    Example:
        >>> report = gallery.index("pictures")
        >>> report.embedded, report.unchanged, report.failed
        (0, 3, [])
    """

    embedded: int = 0  # new contents
    recognised: int = 0  # new or touched files whose content was known already
    unchanged: int = 0  # not read
    vanished: int = 0  # newly found to be missing
    pruned: int = 0
    left_out: int = 0  # pictures of the gallery that a rule leaves out now, but did not before
    passed_over: dict[str, int] = field(default_factory=dict)  # by kind, files that are not read
    # Path and reason, including files that failed earlier and have not changed.
    failed: list[tuple[str, str]] = field(default_factory=list)
    # Missing folders whose files were all recognised elsewhere: the folder, where they are now, and their number.
    moved: list[tuple[str, str, int]] = field(default_factory=list)
    backend: str = "none"  # the backend that embedded: "compiled", "numba", "numpy" or "none"
    seconds: float = 0.0
    decode_seconds: float = 0.0  # CPU time for reading and decoding, all threads together
    network_seconds: float = 0.0
    waited_seconds: float = 0.0  # time that the network waited for pictures, or the writer for workers


class Ingest:
    """Brings a gallery's file up to date with what was found."""

    def __init__(
        self,
        db: Database,
        encoder: Encoder,
        batch_size: int,
        progress: Progress | None,
        executor: Executor | None = None,
    ):
        self.db = db
        self.encoder = encoder
        self.batch_size = batch_size
        self.progress = progress
        self.executor = executor  # where files are read and embedded; None for here
        self.places = Places.of(db)
        # The decoders and their limit: they may succeed where others have failed.
        self.tried = f"{formats.decoders()}, at most {encoder.max_pixels} pixels"

    def rules(self, exclude: Iterable[str], include: Iterable[str], hidden: bool | None) -> Rules:
        """The gallery's rules of what to leave out, changed and recorded."""
        rules = read_rules(self.db)
        added, taken_back = ([some] if isinstance(some, str) else some for some in (exclude, include))
        patterns = [*dict.fromkeys([*rules.exclude, *added])]
        for pattern in taken_back:
            if pattern not in patterns:
                raise GalleryError(f"{pattern}: not among the patterns to leave out: {', '.join(patterns) or 'none'}")
            patterns.remove(pattern)
        changed = Rules(tuple(patterns), rules.hidden if hidden is None else hidden)
        if changed != rules:
            with self.db.transaction():
                self.db.set_meta("rules", json.dumps(asdict(changed)))
        return changed

    def kinds(self) -> dict[str, Kind]:
        """What is remembered about files whose names do not show their kind."""
        rows = self.db.rows("SELECT path, size, mtime_ns, kind FROM kinds WHERE typeof(path) = 'blob'")
        return {self.places.path(path): Kind(*kind) for path, *kind in rows}

    def index(
        self,
        folders: Paths | None,
        rules: Rules,
        *,
        prune: bool,
        retry: bool,
        rehash: bool,
        ready: Callable[[str], bool] | None,
    ) -> Report:
        """The work of ``Gallery.index``."""
        before = now()
        found = self.find(moving.folders(self.db) if folders is None else folders, rules)
        if folders is None:
            found.roots = (*found.roots, "")  # every file of the gallery
        report = self.update(found, prune=prune, retry=retry, rehash=rehash, ready=ready)
        with self.db.transaction():
            moving.remember(self.db, filter(None, found.roots))
        if report.recognised:
            report.moved = moving.moved(self.db, before)
        return report

    def find(self, folders: Paths, rules: Rules) -> Found:
        """What lies in folders. Raises GalleryError for those that the gallery cannot have."""
        whole = [self.places.whole(folder) for folder in scan.several(folders)]
        for folder in whole:
            self.places.check(folder)
        return scan.find(whole, rules, self.kinds())

    def update(
        self,
        found: Found,
        *,
        prune: bool = False,
        retry: bool = False,
        rehash: bool = False,
        ready: Callable[[str], bool] | None = None,
    ) -> Report:
        """Embeds what is new or changed among what was found and recorded; marks what is missing.

        ``retry``: failed files are tried again; ``rehash``: all files are read; ``ready``: whether a file may be read.
        """
        start = time.perf_counter()
        rows = self.db.rows("SELECT path, mount, name FROM disks WHERE typeof(path) = 'blob'")
        volumes = {self.places.path(path): Volume(self.places.mount(mount), name) for path, mount, name in rows}
        named: list[str] = []
        with suppress(GalleryError):  # a damaged list; the end of this run repairs it
            named = [os.path.join(folder, "") for folder in moving.folders(self.db)]
        decided = plan(found, self._recorded(retry), volumes, RealDisk(), named=named, prune=prune, rehash=rehash)
        if ready is not None:
            decided.read = [path for path in decided.read if ready(path)]
        report = Report(unchanged=len(decided.keep), passed_over=found.passed_over(), failed=decided.failed)
        with self.db.transaction():
            respelled = [(self.places.stored(new), self.places.stored(old)) for old, new in decided.respelled.items()]
            self.db.run_each("UPDATE pictures SET path = ?, vanished = 0 WHERE path = ?", respelled)
        self._fill(decided.read, report)
        self._date(decided.keep)
        with self.db.transaction():
            self._mark(decided, report)
            self._remember(decided, found, volumes)
            self.db.drop_unused_contents()
            self.db.run("DELETE FROM meta WHERE key = 'unfinished'")
        report.failed.sort()
        report.seconds = time.perf_counter() - start
        return report

    def _recorded(self, retry: bool) -> dict[str, Recorded]:
        """The gallery's record of each file."""
        rows = self.db.rows(
            "SELECT path, size, mtime_ns, ctime_ns, error, tried, vanished, contents.hash IS NOT NULL "
            "FROM pictures LEFT JOIN contents ON contents.hash = pictures.hash WHERE typeof(path) = 'blob'"
        )
        return {
            self.places.path(path): Recorded(
                Stamp(size, mtime_ns, ctime_ns),
                error,
                missing=state == MISSING,
                left_out=state == LEFT_OUT,
                again=not embedded if error is None else retry or tried != self.tried,
            )
            for path, size, mtime_ns, ctime_ns, error, tried, state, embedded in rows
        }

    def _mark(self, decided: Plan, report: Report) -> None:
        """Records the outcome for files that were not read."""
        self.db.run_each("UPDATE pictures SET vanished = 0 WHERE path = ?", self._rows(decided.back))
        mark = "UPDATE pictures SET vanished = ? WHERE path = ? AND vanished != ?"
        for state, paths in ((MISSING, decided.missing), (LEFT_OUT, decided.left_out)):
            marked = self.db.run_each(mark, [(state, path, state) for (path,) in self._rows(paths)])
            if state == MISSING:
                report.vanished = marked
            else:
                report.left_out = marked
        report.pruned = self.db.run_each("DELETE FROM pictures WHERE path = ?", self._rows(decided.prune))
        stamps = [(stamp.ctime_ns, self.places.stored(path)) for path, stamp in decided.stamps.items()]
        self.db.run_each("UPDATE pictures SET ctime_ns = ? WHERE path = ?", stamps)

    def _remember(self, decided: Plan, found: Found, volumes: Mapping[str, Volume]) -> None:
        """Records the disks of folders, and the kinds of files whose names do not show it."""
        renamed = [(*self._disk(new), *self._disk(old)) for old, new in decided.renamed.items()]
        self.db.run_each("UPDATE disks SET mount = ?, name = ? WHERE mount = ? AND name = ?", renamed)
        changed = [(self.places.stored(f), *self._disk(v)) for f, v in decided.volumes.items() if volumes.get(f) != v]
        self.db.run_each("INSERT OR REPLACE INTO disks VALUES (?, ?, ?)", changed)
        known = self.kinds()
        gone = [path for path in known if path not in found.kinds and path.startswith(tuple(filter(None, found.roots)))]
        self.db.run_each("DELETE FROM kinds WHERE path = ?", self._rows(gone))
        fresh = [(self.places.stored(path), *kind) for path, kind in found.kinds.items() if known.get(path) != kind]
        self.db.run_each("INSERT OR REPLACE INTO kinds VALUES (?, ?, ?, ?)", fresh)

    def _disk(self, volume: Volume) -> tuple[bytes, str]:
        """A disk as the values of a statement."""
        return self.places.stored_mount(volume.mount), volume.name

    def _rows(self, paths: Sequence[str]) -> list[list[bytes]]:
        """Paths as the values of as many statements."""
        return [[self.places.stored(path)] for path in paths]

    def _fill(self, todo: list[str], report: Report) -> None:
        """Reads, embeds and stores files, a batch at a time."""
        if not todo:
            return
        network = self._network()
        known = {hash for (hash,) in self.db.rows("SELECT hash FROM contents")}
        embed = self._embed_here if self.executor is None else partial(self._embed_there, self.executor)
        done = 0
        with closing(embed(todo, known, network, report)) as batches:
            for batch in batches:
                report.decode_seconds += sum(read.seconds for read in batch)
                fresh = {read.hash: read for read in batch if read.vector is not None and read.hash not in known}
                blobs: list[bytes] = []
                if fresh:
                    report.backend = network.backend
                    vectors = np.frombuffer(b"".join(read.vector or b"" for read in fresh.values()), "<f4")
                    vectors = self.encoder.reduce(vectors.reshape(len(fresh), -1))
                    rows = packed.encode(vectors, self.encoder.settings.dtype)
                    good = np.isfinite(packed.squared_norms(rows, self.encoder.settings.dtype))
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
                if self.progress is not None:
                    self.progress(done, len(todo))

    def _embed_here(
        self, todo: list[str], known: set[bytes], network: Embedder, report: Report
    ) -> Generator[list[Read], None, None]:
        """Batches of files that threads have read; this thread embeds those whose content is not known."""
        threads = network.threads
        with closing(
            read_ahead(lambda path: read_file(path, known, self.encoder), todo, threads, self.batch_size + threads)
        ) as reads:
            while True:
                start = time.perf_counter()
                batch = list(islice(reads, self.batch_size))
                report.waited_seconds += time.perf_counter() - start
                if not batch:
                    return
                fresh = {r.hash: r.x for r in batch if r.x is not None and r.hash not in known}
                vectors: dict[bytes | None, bytes] = {}
                if fresh:
                    start = time.perf_counter()
                    embedded = self.encoder.embed(np.stack(list(fresh.values())), len(todo), network)
                    report.network_seconds += time.perf_counter() - start
                    network.backend = network.backend_used  # "auto" has decided
                    vectors = {h: v.tobytes() for h, v in zip(fresh, embedded.astype("<f4", copy=False), strict=True)}
                yield [r._replace(x=None, vector=vectors.get(r.hash)) for r in batch]

    def _embed_there(
        self, executor: Executor, todo: list[str], known: set[bytes], network: Embedder, report: Report
    ) -> Generator[list[Read], None, None]:
        """Batches of files that the workers of an executor have read and embedded, all with one backend."""
        settings, side, disk = self.encoder.settings, network.preprocessing.size, RealDisk()
        network._expect(2 * len(todo) if settings.flip else len(todo), (side, side))
        network.backend = network._choose()
        sizes: dict[int, set[bytes]] = {}  # the hashes of known contents, by the size of their files
        joined = "SELECT size, pictures.hash FROM pictures JOIN contents ON contents.hash = pictures.hash"
        with self.db.cursor(joined) as rows:
            for size, hash in rows:
                sizes.setdefault(size, set()).add(hash)

        def told(path: str) -> tuple[str, list[bytes]]:
            stamp = disk.stamp(path)
            alike = sizes.get(stamp.size, ()) if stamp else ()
            return path, list(alike) if len(alike) <= ALIKE else []

        count = self.batch_size
        parts = ([told(path) for path in todo[start : start + count]] for start in range(0, len(todo), count))
        given = formats.decoders(), settings.to_json(), network.backend, self.encoder.max_pixels
        try:
            with closing(worker.run(executor, given, parts, max(1, AHEAD // count))) as batches:
                while True:
                    start = time.perf_counter()
                    batch = next(batches, None)
                    report.waited_seconds += time.perf_counter() - start
                    if batch is None:
                        return
                    report.network_seconds += sum(read.network_seconds for read in batch)
                    yield batch
                    for read in batch:
                        if read.hash in known:
                            sizes.setdefault(read.stamp.size, set()).add(read.hash)
        except GalleryError as error:
            raise GalleryError(
                f"{self.db.path}: {error}. What was stored stays; run again to go on"
            ) from error.__cause__

    def _network(self) -> Embedder:
        """The network; a run keeps one backend to its end, even if it is stopped and continued."""
        network = copy.copy(self.encoder.network)
        unfinished = self.db.meta().get("unfinished", "")
        if network.backend == "auto" and unfinished in BACKENDS and available(unfinished):
            network.backend = unfinished
        return network

    def _date(self, paths: Sequence[str]) -> None:
        """Records the dates of pictures that an earlier version has embedded."""
        undated = dict(
            self.db.rows(
                "SELECT path, pictures.hash FROM pictures JOIN contents ON contents.hash = pictures.hash "
                "WHERE taken IS NULL AND error IS NULL"
            )
        )
        todo = [path for path in paths if self.places.stored(path) in undated] if undated else []
        for start in range(0, len(todo), DATED):
            part = [(dates.taken(path), undated[self.places.stored(path)]) for path in todo[start : start + DATED]]
            with self.db.transaction():
                self.db.run_each("UPDATE contents SET taken = ? WHERE hash = ?", part)

    def _store(self, batch: list[Read], fresh: list[Read], blobs: list[bytes], backend: str) -> None:
        """Stores a batch of files, and the embeddings of those among them whose content is new."""
        time_now = now()
        contents = [(r.hash, r.width, r.height, blob, r.taken) for r, blob in zip(fresh, blobs, strict=True)]
        with self.db.transaction():
            if fresh:
                self.db.set_meta("unfinished", backend)
            self.db.run_each("INSERT INTO contents VALUES (?, ?, ?, ?, ?)", contents)
            self.db.run_each(
                "INSERT INTO pictures (path, size, mtime_ns, ctime_ns, hash, error, tried, added, vanished) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (path) DO UPDATE SET size = excluded.size, "
                "mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, error = excluded.error, "
                "tried = excluded.tried, vanished = 0, "
                "hash = CASE WHEN excluded.size < 0 THEN pictures.hash ELSE excluded.hash END",
                [
                    (self.places.stored(r.path), *r.stamp, r.hash, r.error, r.error and self.tried, time_now)
                    for r in batch
                ],
            )
            sketch.renew(self.db, self.encoder.settings)


def now() -> str:
    """The time in UTC, ISO 8601, as the gallery records when a picture was added."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_rules(db: Database) -> Rules:
    """The rules that a gallery records of what to leave out. Raises GalleryError where they are damaged."""
    recorded = db.meta().get("rules")
    if recorded is None:
        return Rules()
    try:
        rules = Rules(**json.loads(recorded))
        if type(rules.hidden) is bool and all(type(pattern) is str for pattern in rules.exclude):
            return replace(rules, exclude=tuple(rules.exclude))
    except (TypeError, ValueError, RecursionError):
        pass
    raise GalleryError(f"{db.path}: its rules of what to leave out are damaged; move it away and index again")
