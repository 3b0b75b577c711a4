"""What runs beside the gallery's writer, in a thread, another process or on another machine.

``read_file`` reads, hashes and decodes a file. ``work`` does that for some files and embeds them: it is the task that
``run`` gives to the workers of a ``concurrent.futures.Executor``. Plain values travel one way, and ``Read`` the other.
"""

from __future__ import annotations

import copy
import hashlib
import os
import stat
import time
from collections import deque
from collections.abc import Container, Generator, Iterable
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import dates, formats, images, postprocess
from .embedder import Embedder
from .errors import AlnumpyError, GalleryError, ImageError, WeightsError
from .files import data_folder
from .scan import RealDisk, Stamp
from .settings import Settings, find_weights

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

UNREAD = Stamp(-1, -1)  # for a file that could not be read; no file has this stamp
# A task, for Python's own eval: with a function of alnumpy's, a Dask scheduler or worker without alnumpy, or with an
# older one, would fail before the task runs, and the writer would wait for ever.
CALL = "__import__('alnumpy.worker', fromlist=['work']).work(*given, files)"
KILLED = "KilledWorker"  # Dask's error for a task on which several workers have died
LOST = ("CommClosedError", "TimeoutError")  # Dask's, and asyncio's before Python 3.11
DIED = "the workers that read it died, perhaps for lack of memory"

Array = np.ndarray
Files = list[tuple[str, list[bytes]]]  # paths, each with the hashes of known contents that have the file's size


class Encoder:
    """From a picture to an embedding, by a gallery's settings."""

    def __init__(self, embedder: Embedder, settings: Settings, whitening: tuple[Array, Array] | None, max_pixels: int):
        self.network = copy.copy(embedder)
        self.network.normalize = False  # normalising comes after averaging with the mirrored picture
        self.settings = settings
        self.whitening = whitening  # the mean (D,) and the projection (D, dimension) of a reduced gallery
        self.max_pixels = max_pixels

    def decode(self, source: images.ImageSource) -> tuple[Array, tuple[int, int]]:
        """The network's input (3, S, S) for a picture, and its width and height. Raises ImageError."""
        how = self.network.preprocessing
        return images.load(source, how, self.max_pixels, how.draft if self.settings.fast_decode else 0)

    def embed(self, x: Array, total: int, network: Embedder | None = None) -> Array:
        """Embeddings (N, D) of inputs (N, 3, S, S), where ``total`` are expected, before ``reduce``."""
        network = network or self.network

        def forward(x: Array) -> Array:
            return network._forward(x, 2 * total if self.settings.flip else total)

        with np.errstate(over="ignore", invalid="ignore"):  # embeddings that are not finite are refused later
            vectors = postprocess.average_mirrored(forward, x) if self.settings.flip else forward(x)
            if self.settings.normalize:
                vectors = postprocess.l2_normalize(vectors)
        return vectors

    def reduce(self, vectors: Array) -> Array:
        """Embeddings (N, D) as the gallery has them, (N, dimension): whitened, if it is reduced."""
        if self.whitening is None:
            return vectors
        with np.errstate(over="ignore", invalid="ignore"):
            return postprocess.whiten(vectors, *self.whitening)


class Read(NamedTuple):
    """A file that was read: its input for the network, then its embedding, or the reason why it has none."""

    path: str
    stamp: Stamp = UNREAD
    hash: bytes | None = None
    width: int = 0
    height: int = 0
    taken: str = ""  # the date in its EXIF data
    x: Array | None = None  # float32 (3, S, S); also None if the content is known
    error: str | None = None
    seconds: float = 0.0  # CPU time for reading and decoding
    vector: bytes | None = None  # the embedding before ``Encoder.reduce``, float32 (D,), little-endian
    network_seconds: float = 0.0


def read_file(path: str, known: Container[bytes], encoder: Encoder) -> Read:
    """A file's content, decoded if its hash is not among those known. What fails is told in the result."""
    start = time.thread_time()
    read = Read(path)
    try:
        stamp = Stamp.of(regular(path))
        hash = hash_file(path)
        read = read._replace(stamp=stamp)
        if hash not in known:
            x, (width, height) = encoder.decode(path)
            read = read._replace(width=width, height=height, taken=dates.taken(path), x=x)
        if RealDisk().stamp(path) != stamp:
            raise OSError("it was written to while it was read")
        read = read._replace(hash=hash)
    except ImageError as error:
        if error.transient:  # the picture may be intact: try it again
            read = Read(path)
        read = read._replace(error=_text(error, path))
    except MemoryError:  # the picture may be intact
        read = Read(path, error="not enough memory to read it; a smaller --batch-size needs less")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        read = Read(path, error=_text(getattr(error, "strerror", None) or error, path))
    return read._replace(seconds=time.thread_time() - start)


def work(versions: str, settings: str, backend: str, max_pixels: int, files: Files) -> list[Read] | str:
    """The task of a worker: reads and embeds files, one at a time, in one thread.

    Returns the reason as text if this worker is not fit for it. ``versions``: ``formats.decoders()`` of the writer;
    ``settings``: the gallery's, as its file has them.
    """
    import socket

    here = f"the worker on {socket.gethostname()}"
    if (own := formats.decoders()) != versions:
        return f"{here} has {own}, but this process {versions}: install the same packages on both"
    try:
        encoder = _encoder(settings, backend, max_pixels)
    except WeightsError as error:
        return f"{here} {error}"
    except AlnumpyError as error:
        return f"{here} cannot run the backend {backend} ({error}); choose another one with --backend"
    reads = []
    done: set[bytes] = set()
    for path, known in files:
        read = read_file(path, done.union(known), encoder)
        if read.x is not None and read.hash is not None:
            done.add(read.hash)
            start = time.perf_counter()
            vector = encoder.embed(read.x[None], 1)[0].astype("<f4").tobytes()
            read = read._replace(x=None, vector=vector, network_seconds=time.perf_counter() - start)
        reads.append(read)
    return reads


_loading = Lock()  # held by the thread that loads weights


def _encoder(settings: str, backend: str, max_pixels: int) -> Encoder:
    """The encoder of this process for a gallery. Raises AlnumpyError if it cannot compute the same embeddings."""
    with _loading:
        return _load(settings, backend, max_pixels)


@lru_cache(maxsize=2)
def _load(settings: str, backend: str, max_pixels: int) -> Encoder:
    made = Settings.from_json(settings)
    try:
        weights = find_weights(made, backend)
    except WeightsError:
        named = f"{made.network}, {made.weights}" if made.weights else made.network
        raise WeightsError(
            f"does not have the weights that the gallery was made with ({named}), or has others under that name: "
            f"copy their file there, to the same path or into {data_folder() / 'weights'}"
        ) from None
    embedder = Embedder(weights, made.size, backend=backend, threads=1)
    if embedder.backend != backend:
        raise AlnumpyError(f"it would take {embedder.backend}")
    embedder._prepare()
    return Encoder(embedder, made, None, max_pixels)


def run(
    executor: Executor, given: tuple[str, str, str, int], parts: Iterable[Files], ahead: int
) -> Generator[list[Read], None, None]:
    """What workers return for each part of the files, in order; at most ``ahead`` parts are given out at a time.

    ``given``: the arguments of ``work`` before the files. A slow part keeps no worker waiting before all others that
    are given out are done. A part on which workers die is given out once more, file by file, and a file on which they
    die again has that as its error. Raises GalleryError if a worker is not fit for the task, and if the executor fails.
    """
    more = iter(parts)
    waiting: deque[tuple[Files, Future[list[Read] | str]]] = deque()
    try:
        while True:
            next_parts = list(islice(more, ahead - len(waiting)))
            try:
                for part in next_parts:
                    waiting.append((part, executor.submit(eval, CALL, {"given": given, "files": part})))
                if not waiting:
                    return
                part, future = waiting.popleft()
                reads = future.result()
            except Exception as error:
                if type(error).__name__ != KILLED:
                    raise GalleryError(_what_failed(error)) from error
                if len(part) > 1:
                    reads = [read for each in run(executor, given, ([file] for file in part), 1) for read in each]
                else:
                    reads = [Read(part[0][0], error=DIED)]
            if isinstance(reads, str):
                raise GalleryError(reads)
            yield reads
    finally:
        with suppress(Exception):  # the first error is the one to report
            for _, future in waiting:
                future.cancel()


def _what_failed(error: Exception) -> str:
    """The failure of an executor as text."""
    from concurrent.futures import BrokenExecutor, CancelledError

    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, (ImportError, AttributeError)) and "alnumpy" in text:
        return f"a worker has no alnumpy, or another version ({what}): install that of this process on all"
    if isinstance(error, CancelledError):
        return "the connection to the workers was lost, or their work was cancelled"
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in LOST:
        return f"the connection to the workers was lost ({what})"
    if isinstance(error, BrokenExecutor):
        return f"a worker died ({what})"
    return f"the workers failed ({what})"


def regular(path: str | os.PathLike[str]) -> os.stat_result:
    """A regular file's size and times. Raises OSError, also for what is not one: a FIFO would wait for ever."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    return found


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def _text(error: object, path: str) -> str:
    """An error as text that can be stored, without the path that it may begin with."""
    return str(error).removeprefix(f"{path}: ").encode("utf-8", "backslashreplace").decode()
