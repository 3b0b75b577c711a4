"""The gallery: which pictures there are, and their embeddings, in one SQLite file that is searched exactly.

The table ``meta`` says which model, preprocessing and number format the file is bound to; ``contents`` holds an
embedding for each distinct content of a file; ``pictures`` holds the files. So a renamed or copied file is recognised
by its content and costs no second embedding.

Several processes may read while one writes. A batch is one transaction: a stop at any moment loses at most the batch in
flight.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import filters, groups, images, likeness, moving, packed, pairs, reduction, scan, sketch
from .database import Database
from .embedder import Embedder
from .errors import GalleryError, ImageError
from .groups import Member
from .images import ImageSource
from .ingest import (
    LEFT_OUT,
    MISSING,
    Encoder,
    Ingest,
    Progress,
    Report,
    hash_file,
    now,
    read_rules,
    regular,
)
from .packed import DTYPES
from .pairs import duplicates
from .reader import Reader, open_reader
from .scan import Found, Paths
from .settings import Settings
from .snapshot import Match, Snapshot, name_of

__all__ = ["Gallery", "Match", "Picture", "Report"]

PART = 256  # pictures that an iteration reads at a time

Array = np.ndarray
Queries = Array | ImageSource | Sequence[ImageSource]


class Picture(NamedTuple):
    """A row of the database: one file."""

    path: str
    size: int  # bytes, -1 where it could not be read
    mtime_ns: int
    hash: str | None  # SHA-256 in hexadecimal; may be that of an earlier content where there is an error
    width: int | None  # pixels, upright
    height: int | None
    embedding: Array | None  # float32 (dimension,)
    added: str  # UTC, ISO 8601
    error: str | None  # why it has no embedding
    vanished: bool  # whether it was missing when its folder was last indexed
    left_out: bool = False  # whether a rule left it out then


class Gallery:
    """Pictures and their embeddings in one file. A context manager, for any number of threads.

    Searches from all threads, and from all galleries of one file in a process, share what they have read of it. One
    thread at a time changes a gallery; the others wait for it, or search on.

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
        *,
        dtype: str | None = None,
        fast_decode: bool | None = None,
        flip: bool | None = None,
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
        self.embedder = embedder
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.path = os.path.realpath(path)
        self._reader: Reader | None = None
        self._writer: Database | None = None
        self._encoder: Encoder | None = None
        self._writing = RLock()  # held by the thread that changes the gallery
        try:
            if mode == "a":
                self._writer = Database(path, True)
            self._reader = open_reader(self.path)
            self.settings = self._bind(weights, {"dtype": dtype, "fast_decode": fast_decode, "flip": flip})
            if embedder is not None:
                whitening = reduction.read_whitening(self._open.db, self.settings, embedder.spec.embedding)
                self._encoder = Encoder(embedder, self.settings, whitening, max_pixels)
            if self._writer is not None:
                self._writer.start_log()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing else can be done with the gallery, and what other threads do with it ends."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        if self._writer is not None:
            self._writer.close()

    def __repr__(self) -> str:
        mode = "closed" if self._reader is None else "to read" if self._writer is None else "to write"
        return f"<Gallery {self.path!r}, {self.settings.network}, {self.dimension} {self.dtype}, {mode}>"

    @property
    def dtype(self) -> str:
        """The number format of the embeddings."""
        return self.settings.dtype

    @property
    def dimension(self) -> int:
        """The length of an embedding."""
        return self.settings.dimension

    def _bind(self, weights: str, choices: dict[str, Any]) -> Settings:
        """The settings that are recorded, or those to record in a new file; checked against what was asked for."""
        recorded = self._open.db.meta().get("settings")
        try:
            settings = None if recorded is None else Settings.from_json(recorded)
        except ValueError:
            raise GalleryError(f"{self.path}: its settings are damaged; move it away and index again") from None
        # Without pictures nothing depends on the settings yet, as after a first run with a mistyped folder.
        self.bound = settings is not None and (settings.reduced or len(self) > 0)
        if not self.bound and self._writer is not None and self.embedder is not None:
            settings = Settings.of(self.embedder, weights=weights, **choices)
            self._writer.set_meta("settings", settings.to_json())
            return settings
        if settings is None:
            raise GalleryError(f"{self.path}: an empty gallery; fill it with: alnumpy index FOLDER --db FILE")
        if different := settings.differences(settings.asked(self.embedder, **choices)):
            raise GalleryError(
                f"{self.path}: made with {different}. Embeddings of different models or settings cannot be compared: "
                "use the same ones, or index into another file"
            )
        return settings

    # Filling

    def index(
        self,
        folders: Paths | None = None,
        *,
        prune: bool = False,
        retry: bool = False,
        rehash: bool = False,
        exclude: Iterable[str] = (),
        include: Iterable[str] = (),
        hidden: bool | None = None,
        progress: Progress | None = None,
        ready: Callable[[str], bool] | None = None,
    ) -> Report:
        """Brings the gallery up to date with folders, all below them included, and with single files.

        None stands for the folders that were indexed before, and all files of the gallery.

        A file whose size and times are as recorded is not read; one whose content is known is not embedded again.
        ``rehash`` reads all. Pictures that are missing are marked as vanished and found no more; ``prune`` removes
        them, marked earlier or now, but none that may only be out of reach: what keeps them is reported as failed
        (``alnumpy.scan`` has the rules).

        A file without an embedding is recorded with the reason, and tried again when it, alnumpy, what decodes or the
        limit of pixels changes, and with ``retry``; one whose bytes could not even be read is tried each time, and
        keeps the embedding that it had.

        Hidden files, thumbnails and bins are left out (``alnumpy.scan.HIDDEN``), unless ``hidden``; so is what a
        pattern of ``exclude`` fits, such as "*.tmp" or, below the folders, "2019/drafts". ``include`` takes back
        patterns. The gallery keeps these rules. What they leave out is found no more, but keeps its embedding.

        A new or changed file for which ``ready(path)`` is false is left for a later call, as one that is being written.
        ``progress(done, total)`` is called after each batch, with numbers of files. Raises GalleryError where the
        database cannot be written; what was stored by then stays, and the next call goes on from there.
        """
        before = now()
        with self._ingest(progress) as ingest:
            rules = ingest.rules(exclude, include, hidden)
            found = scan.find(self.folders if folders is None else folders, rules, ingest.kinds())
            if folders is None:
                found.roots = (*found.roots, "")  # every file of the gallery
            report = ingest.update(found, prune=prune, retry=retry, rehash=rehash, ready=ready)
            with ingest.db.transaction():
                moving.remember(ingest.db, filter(None, found.roots))
            if report.recognised:
                report.moved = moving.moved(ingest.db, before)
        return report

    def add(self, files: Paths, *, progress: Progress | None = None) -> Report:
        """Adds files, or all below folders. Like ``index``, but nothing is marked as vanished."""
        with self._ingest(progress) as ingest:
            found = scan.find(files, ingest.rules((), (), None), ingest.kinds())
            return ingest.update(replace(found, roots=()))

    def update(
        self, *, prune: bool = False, retry: bool = False, rehash: bool = False, progress: Progress | None = None
    ) -> Report:
        """Looks again at every file of the gallery. Like ``index``, but new files are not looked for."""
        with self._ingest(progress) as ingest:
            return ingest.update(Found(roots=("",)), prune=prune, retry=retry, rehash=rehash)

    def move(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> int:
        """Rewrites the paths of a picture, or of all below a folder, without reading a file. Returns how many.

        Where both paths of a picture have been indexed, the old one is forgotten. Raises GalleryError for a folder
        that is moved into itself.
        """
        source, target = os.path.abspath(old), os.path.abspath(new)
        if os.path.join(target, "").startswith(os.path.join(source, "")):
            raise GalleryError(f"{source}: cannot be moved to {target}, which is the same or below it")
        with self._changing() as db, db.transaction():
            return moving.move(db, moving.as_recorded(db, source), target)

    @contextmanager
    def _ingest(self, progress: Progress | None) -> Iterator[Ingest]:
        if self._encoder is None:
            raise ValueError("to index, open the gallery with an embedder")
        with self._changing() as db:
            yield Ingest(db, self._encoder, self.batch_size, progress)

    def remove(self, paths: Paths) -> int:
        """Removes files, or all below folders, from the gallery (never from the disk). Returns how many they were."""
        removed = 0
        with self._changing() as db, db.transaction():
            for named in map(os.path.abspath, scan.several(paths)):
                path = moving.as_recorded(db, named)
                removed += db.run(f"DELETE FROM pictures WHERE {moving.BELOW}", moving.below(path))
                moving.forget(db, path)
                db.run(f"DELETE FROM disks WHERE {moving.BELOW}", moving.below(path))
            db.drop_unused_contents()
        return removed

    @contextmanager
    def _changing(self) -> Iterator[Database]:
        """The file to write to, which one thread at a time may."""
        if self._writer is None:
            raise GalleryError(f"{self.path}: opened to read; open it with mode 'a' to change it")
        with self._writing:
            yield self._writer
            with self._writer.transaction():
                sketch.renew(self._writer, self.settings)

    # Reading

    def __iter__(self) -> Iterator[Picture]:
        """All pictures by path, the vanished and the unreadable included.

        They are read in parts, so that a slow loop keeps no writer waiting; what is written meanwhile shows or not.
        """
        return self.pictures()

    def pictures(self, paths: Paths = (), *, embeddings: bool = True) -> Iterator[Picture]:
        """Like an iteration, but only those that are named or lie below folders, or all; without embeddings, faster."""
        db = self._open.db
        wanted = [moving.as_recorded(db, os.path.abspath(path)) for path in scan.several(paths)]
        condition = f" AND ({' OR '.join([moving.BELOW] * len(wanted))})" if wanted else ""
        values = [value for path in wanted for value in moving.below(path)]
        last: Any = -math.inf  # less than every path, for SQLite
        length = packed.row_length(self.dimension, self.dtype) if embeddings else -1
        sql = (
            "SELECT path, size, mtime_ns, pictures.hash, width, height, "
            "CASE WHEN length(embedding) = ? THEN embedding END, added, error, vanished "
            "FROM pictures LEFT JOIN contents ON contents.hash = pictures.hash AND error IS NULL "
            f"WHERE path > ?{condition} ORDER BY path LIMIT ?"
        )
        while part := self._open.db.rows(sql, [length, last, *values, PART]):
            if _order(part[-1][0]) <= _order(last):  # or a damaged index would lead in circles
                raise GalleryError(f"{self.path}: damaged; restore it, or move it away and index again")
            for last, size, mtime_ns, hash, width, height, blob, added, error, vanished in part:
                embedding = None
                if isinstance(blob, bytes):
                    row = np.frombuffer(blob, np.uint8)[None]
                    if np.isfinite(packed.squared_norms(row, self.dtype)[0]):
                        embedding = packed.decode(row, self.dtype)[0]
                digest = hash.hex() if isinstance(hash, bytes) else None
                state = vanished == MISSING, vanished == LEFT_OUT
                yield Picture(name_of(last), size, mtime_ns, digest, width, height, embedding, added, error, *state)

    def __len__(self) -> int:
        """The number of pictures, as an iteration gives them."""
        count: int = self._open.db.one("SELECT COUNT(*) FROM pictures")
        return count

    def __contains__(self, path: object) -> bool:
        """Whether a file is recorded, under this path or the one that its links lead to."""
        if not isinstance(path, (str, os.PathLike)):
            return False
        db = self._open.db
        paths = [os.fsencode(moving.as_recorded(db, real(path))) for real in (os.path.abspath, os.path.realpath)]
        return bool(db.rows("SELECT 1 FROM pictures WHERE path IN (?, ?)", paths))

    @property
    def folders(self) -> list[str]:
        """The folders that were indexed, as absolute paths."""
        return moving.folders(self._open.db)

    def stats(self) -> dict[str, Any]:
        """Numbers of pictures and contents, the size of the file in bytes, and the settings."""
        db = self._open.db
        (counts,) = db.rows(
            "SELECT COUNT(*) FILTER (WHERE error IS NULL AND vanished = 0), "
            "COUNT(*) FILTER (WHERE error IS NOT NULL AND vanished = 0), COUNT(*) FILTER (WHERE vanished = 1), "
            "COUNT(*) FILTER (WHERE vanished = 2), (SELECT COUNT(*) FROM contents) FROM pictures"
        )
        kinds = dict(db.rows("SELECT kind, COUNT(*) FROM kinds GROUP BY kind")) if db.version > 4 else {}
        rules = read_rules(db)
        size = db.one("PRAGMA page_count") * db.one("PRAGMA page_size")
        names = ("pictures", "unreadable", "vanished", "left_out", "contents")
        found = dict(zip(names, counts, strict=True)) | {"passed_over": scan.passed_over(kinds), "bytes": size}
        return found | asdict(self.settings) | asdict(rules)

    def search(
        self,
        queries: Queries,
        k: int = 10,
        *,
        folders: Paths = (),
        since: str = "",
        until: str = "",
        max_distance: float | None = None,
        skip_same: bool = False,
        mean: bool = False,
        unlike: Queries = (),
    ) -> list[list[Match]]:
        """The k nearest pictures to each query by exact L2 distance, nearest first, ties by path.

        ``queries``: embeddings as the gallery's are, float (Q, dimension) or (dimension,); or one picture or a list, as
        ``Embedder.embed`` takes them. A file whose content is in the gallery is not embedded again, and finds itself at
        distance 0.

        Of all pictures those are ranked that lie below ``folders``, were taken from ``since`` to ``until`` ("2024",
        "2024-05", "2024-05-31T12:30:00": by EXIF, or else when the file was changed), are no farther than
        ``max_distance``, are not the query itself (``skip_same``), and are not nearer to one of ``unlike`` than to the
        query. ``mean``: one ranking by the mean of all queries.

        Of links to one file the first by path is a result; a file that is missing now is one only where no identical
        file is there. Rows that are damaged are left out and listed in ``damaged``. Raises ImageError for a picture
        that cannot be read, ValueError for embeddings of another shape, or whose distances would not be finite, and for
        what is not a date.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if bad := [date for date in (since, until) if date and not filters.is_date(date)]:
            raise ValueError(f"not a date such as 2024, 2024-05 or 2024-05-31: {bad[0]!r}")
        vectors, hashes = self._vectors(queries)
        others, _ = self._vectors(unlike)
        own: list[set[bytes]] = [{hash} - {None} for hash in hashes]  # type: ignore[misc]
        if mean and len(vectors):
            vectors, own = vectors.mean(0, keepdims=True), [set().union(*own)]
        chosen = filters.Filter([os.path.abspath(path) for path in scan.several(folders)], since, until)

        def ranked(some: slice, k: int) -> list[list[Match]]:
            if mean or len(others) or chosen != filters.Filter():
                results = []
                for vector, same in zip(vectors[some], own[some], strict=True):
                    only = replace(chosen, without=same if skip_same else ())
                    results += filters.search(self._open.db, self.settings, vector[None], k, only, [same], others)
                return results
            copies = 0
            if skip_same:
                sql = "SELECT COUNT(*) FROM pictures WHERE hash = ?"
                counts = (count for hash in hashes[some] for (count,) in self._open.db.rows(sql, [hash]))
                copies = max(counts, default=0)
            with self._open.snapshot(self.settings) as snapshot:
                found = snapshot.search(vectors[some], k + copies, hashes[some])
            return [[match for match in matches if not match.same][:k] for matches in found] if skip_same else found

        results = ranked(slice(None), k)
        for i, matches in enumerate(results):
            wanted = k
            while len(matches) == wanted and len(self._shown(matches)) < k:  # there are more
                wanted *= 2
                (matches,) = ranked(slice(i, i + 1), wanted)
            results[i] = self._shown(matches)[:k]
        if max_distance is not None:
            results = [[match for match in matches if match.distance <= max_distance] for matches in results]
        return results

    def embed(self, queries: Queries) -> Array:
        """The embeddings float32 (Q, dimension) of pictures as the gallery's settings make them. Raises ImageError."""
        return self._vectors(queries)[0]

    def _vectors(self, queries: Queries) -> tuple[Array, list[bytes | None]]:
        """The embeddings (Q, dimension) of queries, and the contents of those that are files."""
        if isinstance(queries, np.ndarray) and queries.dtype != np.uint8:
            with np.errstate(over="ignore", invalid="ignore"):
                vectors = np.atleast_2d(queries).astype(np.float32)
            if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not _rankable(vectors).all():
                raise ValueError(f"queries must be finite embeddings (Q, {self.dimension}), not {queries.shape}")
            hashes: list[bytes | None] = [None] * len(vectors)
        else:
            single = isinstance(queries, (str, os.PathLike, np.ndarray, Image.Image))
            sources: Any = [queries] if single else queries
            found = [self._find_or_embed(source) for source in sources]
            vectors = np.array([vector for vector, _ in found], np.float32).reshape(-1, self.dimension)
            hashes = [hash for _, hash in found]
        return vectors, hashes

    def _shown(self, matches: Sequence[Match]) -> list[Match]:
        """Without further links to one file, and without files that are missing where an identical one is there."""
        shown = []
        files: set[tuple[int, int]] = set()
        for match in matches:
            try:
                status = os.stat(match.path)
            except (FileNotFoundError, NotADirectoryError):
                if self._has_identical(match.path):
                    continue
            except (OSError, ValueError):  # nobody knows
                pass
            else:
                if (file := (status.st_dev, status.st_ino)) in files and status.st_ino:
                    continue
                files.add(file)
            shown.append(match)
        return shown

    def _has_identical(self, path: str) -> bool:
        """Whether a file of the same content as a missing one had is there."""
        sql = "SELECT path FROM pictures WHERE hash = (SELECT hash FROM pictures WHERE path = ?) AND vanished = 0"
        return any(os.path.exists(name) for (name,) in self._open.db.rows(sql, [os.fsencode(path)]))

    def duplicates(self, threshold: float) -> list[list[Match]]:
        """Groups of pictures, each within an L2 distance of ``threshold`` of some other of its group, sorted by path.

        The distances are those to the first of the group. Time grows with the square of the number of pictures.
        """
        with closing(Database(self.path, False)) as db, db.reading():  # beside which others search on
            groups = duplicates(Snapshot(db, self.settings), threshold)
        return [shown for group in groups if len(shown := self._shown(group)) > 1]

    def groups(self, like: str | float = "near", *, keep: str = "pixels", reference: Paths = ()) -> list[list[Member]]:
        """Groups of pictures that look alike: each a picture and all within a distance of it, the one to keep first.

        ``like``: "exact" (identical files), "near" (what programs make of a picture), "similar" (what people make of
        it), or a distance. First in a group are pictures below ``reference`` folders, and then those with most pixels,
        most bytes, or the oldest; ``keep`` ("pixels", "bytes", "oldest" or "newest") says which counts first. Pictures
        in a trash folder come last. With ``reference``, only groups with a picture there.

        Raises GalleryError where no distance has been measured for the gallery's network and settings.
        """
        distance = likeness.threshold(self.settings, like) if isinstance(like, str) else like
        with closing(Database(self.path, False)) as db, db.reading():  # beside which others search on
            near = {} if distance is None else pairs.near(Snapshot(db, self.settings), distance)
            return groups.duplicates(db, near, keep, [os.fspath(path) for path in scan.several(reference)])

    @property
    def damaged(self) -> list[tuple[str, str]]:
        """Rows that cannot be ranked: path and reason."""
        with self._open.snapshot(self.settings) as snapshot:
            return list(snapshot.damaged)

    @property
    def _open(self) -> Reader:
        if (reader := self._reader) is None:
            raise ValueError("the gallery is closed")
        return reader

    @property
    def space(self) -> list[Any]:
        """What two galleries have in common whose embeddings can be compared."""
        whitening = self._open.db.rows("SELECT mean, projection FROM whitening") if self.settings.reduced else []
        return [self.settings.identity, self.settings.flip, self.settings.reduced, self.dimension, *whitening]

    def _find_or_embed(self, source: ImageSource) -> tuple[Array, bytes | None]:
        """The embedding (dimension,) of a picture, as it is stored where its content is, and a file's content."""
        hash = None
        if isinstance(source, (str, os.PathLike)):
            with suppress(OSError, ValueError):  # decoding names what is wrong with the file
                regular(source)
                hash = hash_file(source)
            if hash is not None:
                with self._open.snapshot(self.settings) as snapshot:
                    stored = snapshot.embedding(hash)
                if stored is not None:
                    return stored, hash
        if self._encoder is None:
            raise ValueError("to search by picture, open the gallery with an embedder")
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "picture"
        x, _ = self._encoder.decode(source)
        vectors = self._encoder.embed(x[None], 1)
        if not _rankable(vectors)[0]:
            raise ImageError(f"{name}: its embedding is not finite")
        return vectors[0], hash

    # Reducing

    def reduce(self, path: str | os.PathLike[str], dimensions: int) -> float:
        """Writes a new, smaller gallery, its embeddings PCA-whitened to fewer dimensions and divided by their L2 norm.

        What was learned travels in the file, so that pictures are indexed into it and searched for as in any other. It
        holds the pictures that can be found now; those that are missing or could not be read are left to its ``index``.
        Returns the share of the variance of the embeddings that is kept.

        Raises GalleryError, and writes nothing, where ``path`` exists, where this gallery is reduced already, and where
        its embeddings vary along fewer axes than ``dimensions``: they do so where there are no more of them than that.
        """
        return reduction.reduce(self._open.db, self.settings, path, dimensions)


def _order(path: Any) -> tuple[int, Any]:
    """What sorts paths as SQLite does, even those of a damaged database: numbers, texts, blobs."""
    return (2 if isinstance(path, bytes) else 1 if isinstance(path, str) else 0), path


def _rankable(vectors: Array) -> Array:
    """Which of embeddings float32 (N, D) are finite, as are their distances: bool (N,)."""
    return np.isfinite(packed.squared_norms(packed.encode(vectors, "float32"), "float32"))
