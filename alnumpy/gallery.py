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
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import images, packed, postprocess, scan
from .database import Database
from .embedder import Embedder
from .errors import GalleryError, ImageError
from .images import ImageSource
from .ingest import Encoder, Ingest, Progress, Report, hash_file, regular
from .packed import DTYPES
from .scan import Found, Paths
from .settings import Settings
from .snapshot import Match, Snapshot, name_of

__all__ = ["Gallery", "Match", "Picture", "Report"]

PART = 256  # pictures that an iteration reads at a time

Array = np.ndarray


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
        self.damaged: list[tuple[str, str]] = []  # rows that cannot be ranked, path and reason; known after a search
        self._db = Database(path, mode == "a")
        self.path = self._db.path
        try:
            self.settings = self._bind(weights, {"dtype": dtype, "fast_decode": fast_decode, "flip": flip})
            whitening = self._read_whitening()
            if self._db.writable:
                self._db.start_log()
        except BaseException:
            self.close()
            raise
        self._encoder = Encoder(embedder, self.settings, whitening, max_pixels) if embedder is not None else None
        self._row_length = packed.row_length(self.settings.dimension, self.settings.dtype)
        self._snapshot: Snapshot | None = None
        self._version = -1  # of the data when they were read

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing else can be done with the gallery."""
        self._snapshot = None
        self._db.close()

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
        recorded = self._db.meta().get("settings")
        try:
            settings = None if recorded is None else Settings.from_json(recorded)
        except ValueError:
            raise GalleryError(f"{self.path}: its settings are damaged; move it away and index again") from None
        # Without pictures nothing depends on the settings yet, as after a first run with a mistyped folder.
        self.bound = settings is not None and (
            settings.reduced or bool([*self._db.rows("SELECT 1 FROM pictures LIMIT 1")])
        )
        if not self.bound and self._db.writable and self.embedder is not None:
            settings = Settings.of(self.embedder, weights=weights, **choices)
            self._db.set_meta("settings", settings.to_json())
            return settings
        if settings is None:
            raise GalleryError(f"{self.path}: an empty gallery; fill it with: alnumpy index FOLDER --db FILE")
        if different := settings.differences(settings.asked(self.embedder, **choices)):
            raise GalleryError(
                f"{self.path}: made with {different}. Embeddings of different models or settings cannot be compared: "
                "use the same ones, or index into another file"
            )
        return settings

    def _read_whitening(self) -> tuple[Array, Array] | None:
        """The mean (D,) and the projection (D, dimension) of a reduced gallery, which new embeddings need."""
        if self.embedder is None or not self.settings.reduced:
            return None
        shape = self.embedder.spec.embedding, self.settings.dimension
        lengths = 4 * shape[0], 4 * shape[0] * shape[1]
        sql = "SELECT mean, projection FROM whitening WHERE length(mean) = ? AND length(projection) = ?"
        for row in self._db.rows(sql, lengths):
            if all(isinstance(blob, bytes) for blob in row):
                mean, projection = (np.frombuffer(blob, "<f4") for blob in row)
                if np.isfinite(mean).all() and np.isfinite(projection).all():
                    return mean, projection.reshape(shape)
        raise GalleryError(f"{self.path}: its whitening is damaged; reduce the whole gallery again")

    # Filling

    def index(self, folders: Paths, *, prune: bool = False, progress: Progress | None = None) -> Report:
        """Brings the gallery up to date with folders, all below them included, and with single files.

        A file whose size and modification time are as recorded is not read; one whose content is known is not embedded
        again. Pictures that are gone from the folders are marked as vanished and found no more; ``prune`` removes them,
        marked earlier or now, unless their folder is empty, as that of an unmounted disk: such folders are reported as
        failed. A file without an embedding is recorded with the reason, and tried again when it or the limit of pixels
        changes; one whose bytes could not even be read is tried each time, and keeps the embedding that it had.

        ``progress(done, total)`` is called after each batch, with numbers of files. Raises GalleryError where the
        database cannot be written; what was stored by then stays, and the next call goes on from there.
        """
        return self._update(scan.find(folders), prune, progress)

    def add(self, files: Paths, *, progress: Progress | None = None) -> Report:
        """Adds files, or all below folders. Like ``index``, but nothing is marked as vanished."""
        return self._update(replace(scan.find(files), roots=()), False, progress)

    def update(self, *, prune: bool = False, progress: Progress | None = None) -> Report:
        """Looks again at every file of the gallery. Like ``index``, but new files are not looked for."""
        return self._update(Found(roots=("",)), prune, progress)

    def _update(self, found: Found, prune: bool, progress: Progress | None) -> Report:
        if self._encoder is None:
            raise ValueError("to index, open the gallery with an embedder")
        self._snapshot = None
        return Ingest(self._db, self._encoder, self.batch_size, progress).update(found, prune)

    def remove(self, paths: Paths) -> int:
        """Removes files, or all below folders, from the gallery (never from the disk). Returns how many they were."""
        self._snapshot = None
        removed = 0
        with self._db.transaction():
            for path in map(os.path.abspath, scan.several(paths)):
                below = os.fsencode(os.path.join(path, ""))
                sql = "DELETE FROM pictures WHERE path = ? OR substr(path, 1, ?) = ?"
                removed += self._db.run(sql, [os.fsencode(path), len(below), below])
            self._db.drop_unused_contents()
        return removed

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
                    name_of(last), size, mtime_ns, digest, width, height, embedding, added, error, bool(vanished)
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
        return dict(zip(names, counts, strict=True)) | {"bytes": size} | asdict(self.settings)

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
        snapshot = self._load()
        if isinstance(queries, np.ndarray) and queries.dtype != np.uint8:
            with np.errstate(over="ignore", invalid="ignore"):
                vectors = np.atleast_2d(queries).astype(np.float32)
            if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not _rankable(vectors).all():
                raise ValueError(f"queries must be finite embeddings (Q, {self.dimension}), not {queries.shape}")
            hashes: list[bytes | None] = [None] * len(vectors)
        else:
            single = isinstance(queries, (str, os.PathLike, np.ndarray, Image.Image))
            sources: Any = [queries] if single else queries
            found = [self._find_or_embed(source, snapshot) for source in sources]
            vectors = np.array([vector for vector, _ in found], np.float32).reshape(-1, self.dimension)
            hashes = [hash for _, hash in found]
        return snapshot.search(vectors, k, hashes)

    def duplicates(self, threshold: float) -> list[list[Match]]:
        """Groups of pictures, each within an L2 distance of ``threshold`` of some other of its group, sorted by path.

        The distances are those to the first of the group. Time grows with the square of the number of pictures.
        """
        return self._load().duplicates(threshold)

    def _load(self) -> Snapshot:
        """All that can be found, read once and again when another process has written."""
        version = self._db.one("PRAGMA data_version")
        if self._snapshot is None or version != self._version:
            self._snapshot = None  # to have the room
            self._version = version
            self._snapshot = Snapshot.read(self._db, self.settings)
            self.damaged = list(self._snapshot.damaged)
        return self._snapshot

    def _find_or_embed(self, source: ImageSource, snapshot: Snapshot) -> tuple[Array, bytes | None]:
        """The embedding (dimension,) of a picture, as it is stored where its content is, and a file's content."""
        hash = None
        if isinstance(source, (str, os.PathLike)):
            with suppress(OSError, ValueError):  # decoding names what is wrong with the file
                regular(source)
                hash = hash_file(source)
            if hash is not None and (stored := snapshot.embedding(hash)) is not None:
                return stored, hash
        if self._encoder is None:
            raise ValueError("to search by picture, open the gallery with an embedder")
        if isinstance(source, (str, os.PathLike)):
            name = os.fspath(source)
            x, _ = self._encoder.decode(name)
        else:
            name = "picture"
            x = images.preprocess(images.read(source), self._encoder.network.preprocessing)
        vectors = self._encoder.embed(x[None], 1)
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
        if self.settings.reduced:
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
        """Fills a new database with all that can be found here."""
        mean, projection, _ = whitening
        db.set_meta("settings", replace(self.settings, dimension=projection.shape[1], reduced=True).to_json())
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


def _rankable(vectors: Array) -> Array:
    """Which of embeddings float32 (N, D) are finite, as are their distances: bool (N,)."""
    return np.isfinite(packed.squared_norms(packed.encode(vectors, "float32"), "float32"))
