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
from typing import TYPE_CHECKING, Any

import numpy as np

from . import copying, groups, images, likeness, listing, moving, pairs, scan, sketch
from .database import Database
from .embedder import Embedder
from .errors import GalleryError
from .filters import Filter
from .groups import Member
from .ingest import Ingest, Progress, Report
from .listing import Picture
from .packed import DTYPES
from .places import Places
from .reader import Reader, open_reader
from .scan import Found, Paths
from .search import Asked, Queries, Ranking, ask, search
from .settings import bind, check_unchanged
from .snapshot import Match, Snapshot
from .worker import Encoder

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Gallery", "Match", "Picture", "Report"]

Array = np.ndarray


class Gallery:
    """Pictures and their embeddings in one file. A context manager, for any number of threads.

    Searches from all threads, and from all galleries of one file in a process, share what they have read. One thread at
    a time changes a gallery; the others wait for it, or go on searching. ``len(gallery)``, ``path in gallery`` and a
    loop over a gallery, which gives a ``Picture`` for each file by path, show its content.

    Parameters:
        path: the file.
        embedder: needed to index and to search by picture; it must be the one that the gallery was made with, except
            for its ``normalize``.
        mode: "r" reads and searches, even on read-only media; "a" also writes, and makes the file if it is missing. One
            process at a time can have a gallery open in mode "a", and any number in mode "r".
        dtype: "float32", "float16" or "int8", the number format of the embeddings. This and the next three are chosen
            when the gallery is made, and may be None later; until it has pictures, each opening in mode "a" makes it
            anew.
        fast_decode: whether large JPEGs are decoded at reduced size (by default they are).
        flip: whether embeddings are averaged with the mirrored picture's.
        normalize: whether embeddings are divided by their L2 norms; by default as the embedder or its weights say.
        relative: whether paths are kept relative to the gallery's folder, so that it can be moved together with the
            pictures, all of which must lie below it; this can be changed at any time.
        weights: the name of the embedder's weights file, recorded for later openings.
        batch_size: pictures that are embedded and stored together.
        max_pixels: as in ``Embedder.embed``.

    Raises:
        GalleryError: if the file is missing, foreign, damaged, of a newer version, in use, or bound to another model or
            other settings.
        ValueError: for an unknown mode or dtype, or a batch size below 1.

    Example:
        >>> with alnumpy.Gallery("library.db", embedder, "a") as library:
        ...     report = library.index("pictures")
        ...     found = library.search("photo.jpg", k=2)[0]
        >>> report.embedded, report.recognised, len(found)
        (2, 1, 2)
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
                whitening = copying.read_whitening(self._open.db, self.settings, embedder.spec.embedding)
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
        """Closes the file. The gallery cannot be used afterwards, and calls in other threads end with an error.

        Example:
            >>> library = alnumpy.Gallery("gallery.db")
            >>> library.close()
        """
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
        executor: Executor | None = None,
    ) -> Report:
        """Brings the gallery up to date with folders, including everything below them, and with single files.

        A file whose size and times are as recorded is not read; a file whose content is known is not embedded again.
        Missing pictures are marked and no longer found. A file that cannot be embedded is recorded with the reason, and
        tried again when it, alnumpy, a decoder or the limit of pixels changes; a file that cannot even be read is tried
        each time, and keeps its embedding. Hidden files, thumbnails and bins are left out (``alnumpy.scan.HIDDEN``).

        Parameters:
            folders: a path or several; None stands for the folders that were indexed before, and all files of the
                gallery.
            prune: remove missing pictures, whether marked earlier or now, except those that may only be out of reach,
                which are reported as failed (``alnumpy.scan`` has the rules).
            retry: try files again that failed before.
            rehash: read all files again.
            exclude: patterns of files and folders to leave out, such as "*.tmp" or, below the folders, "2019/drafts".
                They are kept in the gallery. A picture that is left out is no longer found, but keeps its embedding.
            include: earlier patterns of ``exclude`` to take back.
            hidden: whether to include hidden files, thumbnails and bins; kept in the gallery.
            progress: is called after each batch as ``progress(done, total)``, with numbers of files.
            ready: a new or changed file for which ``ready(path)`` is false is left for a later call.
            executor: where files are read and embedded instead of in this process, a batch per task: any
                ``concurrent.futures.Executor`` whose workers see the same paths, and have the same alnumpy, Pillow and
                weights file.

        Returns:
            A ``Report``.

        Raises:
            GalleryError: if the database cannot be written, or an executor fails or has a worker with something else;
                batches stored by then stay, and the next call continues.
            ValueError: without an embedder.

        Example:
            >>> gallery.index("pictures", exclude=["*.tmp"]).unchanged
            3
        """
        with self._ingest(progress, executor) as ingest:
            rules = ingest.rules(exclude, include, hidden)
            return ingest.index(folders, rules, prune=prune, retry=retry, rehash=rehash, ready=ready)

    def add(self, files: Paths, *, progress: Progress | None = None) -> Report:
        """Adds files, or everything below folders. Like ``index``, but no picture is marked as missing.

        Parameters:
            files: a path or several.
            progress: as in ``index``.

        Returns:
            A ``Report``.

        Raises:
            GalleryError: if the database cannot be written.
            ValueError: without an embedder.

        Example:
            >>> gallery.add("photo.jpg").embedded
            1
        """
        with self._ingest(progress) as ingest:
            found = ingest.find(files, ingest.rules((), (), None))
            return ingest.update(replace(found, roots=()))

    def update(
        self, *, prune: bool = False, retry: bool = False, rehash: bool = False, progress: Progress | None = None
    ) -> Report:
        """Looks again at every file of the gallery. Like ``index``, but does not look for new files.

        Parameters:
            prune, retry, rehash, progress: as in ``index``.

        Returns:
            A ``Report``.

        Raises:
            GalleryError: if the database cannot be written.
            ValueError: without an embedder.

        Example:
            >>> gallery.update(rehash=True).recognised
            3
        """
        with self._ingest(progress) as ingest:
            return ingest.update(Found(roots=("",)), prune=prune, retry=retry, rehash=rehash)

    def move(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> int:
        """Rewrites the paths of a picture, or of everything below a folder, without reading a file.

        Parameters:
            old: the recorded path.
            new: the present path. If both paths of a picture have been indexed, the old one is removed.

        Returns:
            The number of pictures.

        Raises:
            GalleryError: for a folder that is moved into itself, or out of the folder of a gallery with relative paths.

        Example:
            >>> gallery.move("pictures", "moved")
            3
        """
        with self._changing() as db, db.transaction():
            return moving.move(db, old, new)

    def remove(self, paths: Paths) -> int:
        """Removes files, or everything below folders, from the gallery; never from the disk.

        Parameters:
            paths: a path or several.

        Returns:
            The number of pictures.

        Raises:
            GalleryError: if the database cannot be written.

        Example:
            >>> gallery.remove("pictures/copy.png")
            1
        """
        with self._changing() as db, db.transaction():
            removed = sum(moving.remove(db, path) for path in scan.several(paths))
            db.drop_unused_contents()
        return removed

    @contextmanager
    def _ingest(self, progress: Progress | None, executor: Executor | None = None) -> Iterator[Ingest]:
        if self._encoder is None:
            raise ValueError("to index, open the gallery with an embedder")
        with self._changing() as db:
            yield Ingest(db, self._encoder, self.batch_size, progress, executor)

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
        """All pictures by path, including missing and unreadable ones.

        They are read in parts, so that a slow loop keeps no writer waiting; changes meanwhile may or may not show.
        """
        return self.pictures()

    def pictures(self, paths: Paths = (), *, embeddings: bool = True) -> Iterator[Picture]:
        """The pictures of the gallery by path, including missing and unreadable ones.

        They are read in parts, so that a slow loop keeps no writer waiting; changes meanwhile may or may not show.

        Parameters:
            paths: only these files, and files below these folders; none for all.
            embeddings: whether to read embeddings; faster without.

        Returns:
            An iterator of ``Picture``.

        Raises:
            GalleryError: if the database is damaged.

        Example:
            >>> [os.path.basename(picture.path) for picture in gallery.pictures("pictures", embeddings=False)]
            ['a.png', 'b.png', 'copy.png']
        """
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
        """Describes the gallery.

        Returns:
            Numbers of pictures and contents, the size of the file in bytes, the settings and the rules, by name.

        Raises:
            GalleryError: if the database is damaged.

        Example:
            >>> stats = gallery.stats()
            >>> stats["pictures"], stats["contents"]
            (3, 2)
        """
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
        """The nearest pictures to each query by exact L2 distance, nearest first, ties by path.

        A file whose content is in the gallery is not embedded again, and finds itself at distance 0. Of several links
        to one file the first by path is a result; a missing file is a result only if there is no identical one. Damaged
        rows are left out and listed in ``damaged``.

        Parameters:
            queries: one picture or a list, as in ``Embedder.embed``; or embeddings of the gallery, float (Q, dimension)
                or (dimension,).
            k: results per query.
            folders: only pictures below these folders.
            since, until: only pictures taken in this time ("2024", "2024-05", "2024-05-31T12:30:00"; by EXIF, or else
                when the file was changed).
            max_distance: only pictures at most this far.
            skip_same: leave out the query itself and files identical to it.
            mean: one ranking by the mean of all queries.
            unlike: leave out pictures that are nearer to one of these than to the query.

        Returns:
            A list with the results of each query, a list of ``Match``.

        Raises:
            ImageError: for a picture that cannot be read.
            ValueError: for embeddings of another shape or without finite distances, for an impossible date, and for
                pictures without an embedder.

        Example:
            >>> for match in gallery.search("pictures/a.png", k=2)[0]:
            ...     print(f"{match.distance:.1f} {os.path.basename(match.path)} {match.same}")
            0.0 a.png True
            0.0 copy.png True
        """
        reader = self._open
        below = tuple(moving.as_recorded(reader.db, path) for path in scan.several(folders))
        asked, others, chosen = self._ask(queries), self._ask(unlike).vectors, Filter(below, since, until)
        how = Ranking(max_distance, skip_same, mean)
        return search(reader, self.settings, asked, k, chosen, others, how)

    def embed(self, queries: Queries) -> Array:
        """Embeds pictures by the gallery's settings.

        Parameters:
            queries: as in ``search``.

        Returns:
            Embeddings, float32 (Q, dimension).

        Raises:
            ImageError: for a picture that cannot be read.
            ValueError: without an embedder.

        Example:
            >>> gallery.embed(["photo.jpg", "pictures/b.png"]).shape
            (2, 1280)
        """
        return self._ask(queries).vectors

    def _ask(self, queries: Queries) -> Asked:
        return ask(self._open, self.settings, self._encoder, queries)

    def groups(self, like: str | float = "near", *, keep: str = "pixels", reference: Paths = ()) -> list[list[Member]]:
        """Groups of pictures that look alike: each a picture and all pictures within a distance of it.

        Parameters:
            like: "exact" (identical files), "near" (also copies made by programs), "similar" (also copies made by
                people), or a distance.
            keep: "pixels", "bytes", "oldest" or "newest": which picture comes first in its group; the other criteria
                break ties. Pictures in a trash folder come last.
            reference: folders whose pictures come before all others; with them, only groups with such a picture.

        Returns:
            A list of groups, each a list of ``Member``, the picture to keep first. Of several links to one file the
            first counts, and missing files are left out if an identical file exists.

        Raises:
            GalleryError: if no distance has been measured for the gallery's network and settings, or if more than ten
                million pairs of pictures are within the distance.

        Example:
            >>> [[os.path.basename(member.path) for member in group] for group in gallery.groups("exact")]
            [['a.png', 'copy.png']]
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
        """Writes a smaller gallery, with embeddings PCA-whitened to fewer dimensions and divided by their L2 norms.

        The projection is stored in the new file, so that pictures are indexed into it and searched for like in any
        other. It holds the pictures that can be found now; its own ``index`` adds missing and unreadable ones later.

        Parameters:
            path: the new file.
            dimensions: the length of the new embeddings.

        Returns:
            The share of the variance of the embeddings that is kept.

        Raises:
            GalleryError: and writes nothing, if ``path`` exists, if this gallery is reduced already, or if its
                embeddings vary along fewer axes than ``dimensions``, of which there are always fewer than embeddings.

        Example:
            >>> round(gallery.reduce("small.db", 1), 3)
            1.0
        """
        return copying.reduce(self._open.db, self.settings, path, dimensions)
