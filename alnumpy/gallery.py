"""The gallery: pictures and their embeddings in one SQLite file that is searched exactly.

The table ``meta`` says which model, preprocessing and number format the file is bound to; ``contents`` holds an
embedding for each distinct content of a file; ``pictures`` holds the files. So a renamed or copied file is recognised
by its content and not embedded again.

Several processes may read while one writes. A batch is one transaction: a stop at any moment loses at most the batch
in progress.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np

from . import groups, images, likeness, listing, moving, pairs, reduction, scan, sketch
from .database import Database
from .embedder import Embedder
from .errors import GalleryError
from .filters import Filter
from .groups import Member
from .ingest import Encoder, Ingest, Progress, Report
from .listing import Picture
from .packed import DTYPES
from .places import Places
from .reader import Reader, open_reader
from .scan import Found, Paths
from .search import Asked, Queries, Ranking, ask, search
from .settings import bind, check_unchanged
from .snapshot import Match, Snapshot

__all__ = ["Gallery", "Match", "Picture", "Report"]

Array = np.ndarray


class Gallery:
    """Pictures and their embeddings in one file. A context manager, for any number of threads.

    Searches from all threads, and from all galleries of one file in a process, share what they have read of it. One
    thread at a time changes a gallery; the others wait for it, or search on.

    ``mode``: "r" reads and searches, also on read-only media; "a" writes too, and makes the file where there is none;
    one process at a time can have a gallery open in mode "a", and any number in mode "r". ``embedder`` must be the one
    that the gallery was made with, but for its ``normalize``; it is needed to index and to search by picture.

    ``dtype`` ("float32", "float16" or "int8"), ``fast_decode`` (JPEG decoded at reduced size, unless False), ``flip``
    (embeddings averaged with the mirrored picture's) and then ``normalize`` (divided by their L2 norms; by default as
    the embedder or its weights say) are chosen when the gallery is made, and may be None later; as long as it has no
    pictures, each opening in mode "a" makes it anew. ``weights``: the name of the embedder's weights file, for whoever
    opens the gallery later. ``relative``: whether paths are kept relative to the gallery's folder, so that it can be
    moved together with the pictures, all of which must lie below it; this can be changed at any time.

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
        normalize: bool | None = None,
        relative: bool | None = None,
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
            choices = {"dtype": dtype, "fast_decode": fast_decode, "flip": flip, "normalize": normalize}
            self.settings, self.bound = bind(self._writer or self._open.db, embedder, weights, choices)
            if relative is None and not self.bound:
                relative = False
            if relative is not None and relative != bool(Places.of(self._open.db).folder):
                with self._changing() as db, db.transaction():
                    moving.respell(db, relative)
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
        with self._ingest(progress) as ingest:
            rules = ingest.rules(exclude, include, hidden)
            return ingest.index(folders, rules, prune=prune, retry=retry, rehash=rehash, ready=ready)

    def add(self, files: Paths, *, progress: Progress | None = None) -> Report:
        """Adds files, or all below folders. Like ``index``, but nothing is marked as vanished."""
        with self._ingest(progress) as ingest:
            found = ingest.find(files, ingest.rules((), (), None))
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
        with self._changing() as db, db.transaction():
            return moving.move(db, old, new)

    def remove(self, paths: Paths) -> int:
        """Removes files, or all below folders, from the gallery (never from the disk). Returns how many they were."""
        with self._changing() as db, db.transaction():
            removed = sum(moving.remove(db, path) for path in scan.several(paths))
            db.drop_unused_contents()
        return removed

    @contextmanager
    def _ingest(self, progress: Progress | None) -> Iterator[Ingest]:
        if self._encoder is None:
            raise ValueError("to index, open the gallery with an embedder")
        with self._changing() as db:
            yield Ingest(db, self._encoder, self.batch_size, progress)

    @contextmanager
    def _changing(self) -> Iterator[Database]:
        """The file to write to, for one thread at a time."""
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
        return listing.pictures(lambda: self._open.db, self.settings, paths, embeddings)

    def __len__(self) -> int:
        """The number of pictures, as an iteration gives them."""
        count: int = self._open.db.one("SELECT COUNT(*) FROM pictures")
        return count

    def __contains__(self, path: object) -> bool:
        """Whether a file is recorded, under this path or the one that its links lead to."""
        return isinstance(path, (str, os.PathLike)) and listing.contains(self._open.db, path)

    @property
    def folders(self) -> list[str]:
        """The folders that were indexed, as absolute paths."""
        return moving.folders(self._open.db)

    def stats(self) -> dict[str, Any]:
        """Numbers of pictures and contents, the size of the file in bytes, and the settings."""
        return listing.stats(self._open.db, self.settings)

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
        reader = self._open
        below = tuple(moving.as_recorded(reader.db, path) for path in scan.several(folders))
        asked, others, chosen = self._ask(queries), self._ask(unlike).vectors, Filter(below, since, until)
        how = Ranking(max_distance, skip_same, mean)
        return search(reader, self.settings, asked, k, chosen, others, how)

    def embed(self, queries: Queries) -> Array:
        """The embeddings float32 (Q, dimension) of pictures as the gallery's settings make them. Raises ImageError."""
        return self._ask(queries).vectors

    def _ask(self, queries: Queries) -> Asked:
        return ask(self._open, self.settings, self._encoder, queries)

    def groups(self, like: str | float = "near", *, keep: str = "pixels", reference: Paths = ()) -> list[list[Member]]:
        """Groups of pictures that look alike: each a picture and all within a distance of it, the one to keep first.

        ``like``: "exact" (identical files), "near" (what programs make of a picture), "similar" (what people make of
        it), or a distance. First in a group are pictures below ``reference`` folders, and then those with most pixels,
        most bytes, or the oldest; ``keep`` ("pixels", "bytes", "oldest" or "newest") says which counts first. Pictures
        in a trash folder come last. With ``reference``, only groups with a picture there. Of links to one file the
        first counts, and of identical files only those that are there.

        Raises GalleryError where no distance has been measured for the gallery's network and settings, and where more
        than ten million pairs of pictures are within the distance.
        """
        distance = likeness.threshold(self.settings, like) if isinstance(like, str) else like
        with closing(Database(self.path, False)) as db, db.reading():  # others can search meanwhile
            check_unchanged(db, self.settings)
            near = pairs.near(Snapshot(db, self.settings), distance) if distance is not None else lambda _: []
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
        """What two galleries must have in common for their embeddings to be compared."""
        whitening = self._open.db.rows("SELECT mean, projection FROM whitening") if self.settings.reduced else []
        return [self.settings.identity, self.settings.flip, self.settings.reduced, self.dimension, *whitening]

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
