"""What runs beside the gallery's writer: a file is read, hashed, decoded and embedded."""

from __future__ import annotations

import copy
import hashlib
import os
import stat
import time
from collections.abc import Container
from typing import NamedTuple

import numpy as np

from . import dates, images, postprocess
from .embedder import Embedder
from .errors import ImageError
from .scan import RealDisk, Stamp
from .settings import Settings

UNREAD = Stamp(-1, -1)  # for a file that could not be read; no file has this stamp

Array = np.ndarray


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
        """Embeddings (N, dimension) of inputs (N, 3, S, S), where ``total`` are expected."""
        network = network or self.network

        def forward(x: Array) -> Array:
            return network._forward(x, 2 * total if self.settings.flip else total)

        with np.errstate(over="ignore", invalid="ignore"):  # embeddings that are not finite are refused later
            vectors = postprocess.average_mirrored(forward, x) if self.settings.flip else forward(x)
            if self.settings.normalize:
                vectors = postprocess.l2_normalize(vectors)
            if self.whitening is not None:
                vectors = postprocess.whiten(vectors, *self.whitening)
        return vectors


class Read(NamedTuple):
    """A file that a thread has read: its input for the network, or the reason why it has none."""

    path: str
    stamp: Stamp = UNREAD
    hash: bytes | None = None
    width: int = 0
    height: int = 0
    taken: str = ""  # the date in its EXIF data
    x: Array | None = None  # float32 (3, S, S); also None if the content is known
    error: str | None = None
    seconds: float = 0.0  # CPU time


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
