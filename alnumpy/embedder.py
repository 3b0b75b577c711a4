"""The object that users hold: pictures in, embeddings out."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from . import counts, images, reference, weights
from .errors import AlnumpyError, ImageError, MissingExtraError, UnsupportedError
from .images import ImageSource
from .networks import Spec
from .weights import Weights, locate

if TYPE_CHECKING:
    from .lower import Program

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("auto", "compiled", "numba", "numpy")
NOT_FINITE = "the embedding is not finite, so the weights are at fault: run alnumpy verify, or convert them again"

# Costs that "auto" compares if no packaged library runs: rough values from one laptop, the same on every device, so
# that the choice can be reproduced.
NUMPY_SECONDS = (0.004, 3.5e-10)  # per picture: a fixed part, and per multiply-add of the network
LOAD_SECONDS = 0.1  # time to load kernels that Numba has compiled
COMPILE_SECONDS = 12.0  # time to compile them


def available(backend: str) -> bool:
    """Whether a backend can run here."""
    if backend == "compiled":
        from . import kernels

        return kernels.packaged()[0].path is not None
    return backend != "numba" or find_spec("numba") is not None


@lru_cache(maxsize=64)
def _multiply_adds(spec: Spec, size: tuple[int, int]) -> int:
    """Multiply-adds for one picture of (H, W)."""
    return counts.total(spec.layers(), size).multiply_adds


class Embedded(NamedTuple):
    """The result for one file.

    Parameters:
        path: the file's path, as it was given.
        embedding: float32 (spec.embedding,), or None if the file could not be embedded.
        error: the reason why there is no embedding, or None.

    Example:
        >>> for path, embedding, error in embedder.embed_files(["pictures/a.png", "missing.png"]):
        ...     print(path, error or embedding.shape)
        pictures/a.png (1280,)
        missing.png missing.png: No such file or directory
    """

    path: str
    embedding: NDArray[np.float32] | None
    error: ImageError | None


class SelfTest(NamedTuple):
    """How far this device's embedding is from the one recorded in the weights file. NaN if either is not finite."""

    relative_error: float  # norm of the difference over the norm of the recorded embedding
    largest_error: float  # largest absolute difference of a component


_shared: WeakValueDictionary[bytes, Weights] = WeakValueDictionary()  # weights of pickled embedders, by digest


def _share(weights: Weights) -> Weights:
    """Equal weights that this process has already, or else these."""
    import hashlib  # not at the top: it loads OpenSSL, which would slow every start

    digest = hashlib.sha256(repr((weights.spec, weights.preprocessing, weights.source_sha256)).encode())
    for name, array in sorted(weights.parameters.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return _shared.setdefault(digest.digest(), weights)


class Embedder:
    """Embeds pictures with one network and its preprocessing. Make one with ``alnumpy.load``.

    It can be copied, and pickled for worker processes; equal embedders share their weights within a process.

    Parameters:
        weights: the network and its arrays, as ``alnumpy.weights.read`` returns them.
        size, normalize, backend, threads: as in ``alnumpy.load``.

    Raises:
        ValueError: for an unknown backend or less than one thread.
        SpecError: for an impossible size.
        MissingExtraError: if the backend is not available here.

    Example:
        >>> embedder = alnumpy.load()
        >>> embedder.spec.name, embedder.spec.embedding, embedder.preprocessing.size
        ('alnet', 1280, 64)
    """

    def __init__(
        self,
        weights: Weights,
        size: int | None = None,
        normalize: bool = False,
        backend: str = "auto",
        threads: int | None = None,
    ):
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        if backend == "compiled" and not available("compiled"):
            if find_spec("numba") is None:
                from . import kernels

                raise MissingExtraError(
                    f"no compiled kernels run here ({kernels.packaged()[0].reason}); Numba can compile them: "
                    "pip install 'alnumpy[numba]'"
                )
            backend = "numba"
        if not available(backend):
            raise MissingExtraError("the backend numba needs Numba: pip install 'alnumpy[numba]'")
        self.weights = weights
        self.spec = weights.spec
        self.preprocessing = weights.preprocessing
        if size is not None:
            self.preprocessing = dataclasses.replace(self.preprocessing, size=size)
        self.normalize = normalize
        self.backend = backend
        self.threads = available_threads() if threads is None else threads
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.backend_used = "none"  # the backend of the last batch: "compiled", "numba" or "numpy"
        self._identities: dict[str, str] = {}
        self._numpy_seconds = 0.0  # time that NumPy would take for all pictures so far, and for those known to come
        self._program: Program | None = None

    def __copy__(self) -> Embedder:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __getstate__(self) -> dict[str, Any]:
        self.weights = _share(self.weights)  # equal weights, which unpickled embedders of this process share
        return self.__dict__ | {"_program": None}  # quick to make again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"weights": _share(state["weights"])})

    def identity(self, normalize: bool, decode: str) -> str:
        """A digest of everything that the embeddings of a gallery depend on.

        Parameters:
            normalize: whether the gallery's embeddings are divided by their L2 norms.
            decode: "full", or "fast" for JPEGs decoded at reduced size.

        Returns:
            SHA-256 in hexadecimal. Embedders with equal digests give equal embeddings, up to rounding.

        Example:
            >>> embedder.identity(True, "full") == alnumpy.load().identity(True, "full")
            True
        """
        text = weights.identity_text(self.preprocessing, normalize, decode)
        if text not in self._identities:
            kept = getattr(self.weights.parameters, "identities", {})
            self._identities[text] = kept.get(text) or weights.identity(self.spec, self.weights.parameters, text)
        return self._identities[text]

    def forward(self, x: np.ndarray) -> NDArray[np.float32]:
        """Embeds preprocessed pictures. The same picture has the same bits in any batch and with any number of threads.

        Parameters:
            x: float32 (N, 3, H, W) of any size.

        Returns:
            Embeddings, float32 (N, spec.embedding); backends differ by rounding.

        Raises:
            ValueError: for another shape.

        Example:
            >>> embedder.forward(np.zeros((2, 3, 48, 48), np.float32)).shape
            (2, 1280)
        """
        return self._forward(x, len(x))

    def _forward(self, x: np.ndarray, pictures: int) -> np.ndarray:
        """``forward``, for which "auto" counts ``pictures`` new pictures."""
        x = np.ascontiguousarray(x, np.float32)
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:]:
            raise ValueError(f"forward takes pictures of shape (N, 3, H, W), not {x.shape}")
        self._expect(pictures, (x.shape[2], x.shape[3]))
        self.backend_used = self._choose()
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite show in the embedding
            y = self._run_numpy(x) if self.backend_used == "numpy" else self._run_compiled(x)
            if self.normalize:
                y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return y

    def _expect(self, pictures: int, size: tuple[int, int]) -> None:
        """Counts pictures of (H, W) that are here or come, for "auto"."""
        if self.backend == "auto":
            fixed, per_product = NUMPY_SECONDS
            self._numpy_seconds += pictures * (fixed + per_product * _multiply_adds(self.spec, size))

    def _choose(self) -> str:
        """The backend; "auto" takes the packaged library, or else Numba once the pictures make up for loading it."""
        if self.backend == "auto" and (faster := self._faster()):
            try:
                self._lower()
                self.backend = faster  # settled
            except UnsupportedError:
                self.backend = "numpy"
        return "numpy" if self.backend == "auto" else self.backend

    def _faster(self) -> str:
        """The backend that would be faster than NumPy for the pictures so far; "" if none."""
        if available("compiled"):
            return "compiled"
        if self._numpy_seconds < LOAD_SECONDS or not available("numba"):
            return ""
        from .kernels import cache

        return "numba" if cache.is_cached() or self._numpy_seconds >= COMPILE_SECONDS else ""

    def _lower(self) -> Program:
        """The network as a program for the compiled kernels. Raises UnsupportedError if they cannot."""
        from .lower import lower

        if self._program is None:
            parameters = self.weights.parameters
            self._program = getattr(parameters, "program", None) or lower(self.spec, parameters)
        return self._program

    def _prepare(self) -> None:
        """Packs the weights and plans the steps, if compiled kernels will run, so that this need not be waited for."""
        if self._choose() != "numpy":
            self._lower().layout((self.preprocessing.size, self.preprocessing.size))

    def _run_numpy(self, x: np.ndarray) -> np.ndarray:
        y = np.empty((len(x), self.spec.embedding), np.float32)
        for i in range(len(x)):
            y[i] = reference.forward(self.spec, self.weights.parameters, x[i : i + 1])[0]
        return y

    def _run_compiled(self, x: np.ndarray) -> np.ndarray:
        from . import kernels

        return kernels.run(self._lower(), x, self.threads, self.backend_used)

    def self_test(self) -> SelfTest:
        """Embeds the input recorded in the weights file and compares the result with the embedding recorded there.

        Returns:
            The relative and the largest absolute error.

        Raises:
            MissingExtraError: if the backend is not available here.

        Example:
            >>> embedder.self_test().relative_error < 1e-5
            True
        """
        recorded = self.weights.self_test_embedding
        difference = Embedder(self.weights, backend=self.backend).forward(self.weights.self_test_input) - recorded
        return SelfTest(float(np.linalg.norm(difference) / np.linalg.norm(recorded)), float(np.abs(difference).max()))

    def embed(
        self,
        pictures: ImageSource | Iterable[ImageSource],
        max_pixels: int = images.MAX_PIXELS,
        *,
        fast_decode: bool = False,
    ) -> NDArray[np.float32]:
        """Embeds one picture, or an iterable of pictures.

        Parameters:
            pictures: a path, the bytes of a file, a binary file object, a PIL image, or a uint8 array: grey (H, W) or
                (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); or an iterable of these.
            max_pixels: larger pictures are refused, but larger JPEGs are decoded at 1/2, 1/4 or 1/8 of their size.
            fast_decode: decode all JPEGs at such a size, as long as their short side keeps twice as many pixels as the
                network's input: several times as fast, and a little less exact.

        Returns:
            Embeddings, float32 (N, spec.embedding).

        Raises:
            ImageError: for a picture that cannot be read, or whose embedding is not finite.
            ImageMemoryError: if there is too little memory.
            TypeError: for anything that is not a picture.

        Example:
            >>> embedder.embed("photo.jpg").shape
            (1, 1280)
            >>> embedder.embed(["photo.jpg", np.zeros((90, 60, 3), np.uint8)]).shape
            (2, 1280)
        """
        sources = [pictures] if images.is_source(pictures) else pictures
        if not isinstance(sources, Iterable):
            raise TypeError(f"embed takes {images.SOURCES}, or an iterable of those, not {type(pictures).__name__}")
        draft = self.preprocessing.draft if fast_decode else 0
        inputs = [images.load(source, self.preprocessing, max_pixels, draft)[0] for source in sources]  # type: ignore[arg-type]
        size = self.preprocessing.size
        y = self.forward(np.stack(inputs) if inputs else np.empty((0, 3, size, size), np.float32))
        if not np.isfinite(y).all():
            raise ImageError(NOT_FINITE)
        return y

    def embed_files(
        self,
        paths: Iterable[str | os.PathLike[str]],
        batch_size: int = 32,
        max_pixels: int = images.MAX_PIXELS,
        *,
        fast_decode: bool = False,
    ) -> Iterator[Embedded]:
        """Embeds files in batches, in constant memory; ``threads`` threads decode at most a batch ahead.

        Parameters:
            paths: any iterable of paths.
            batch_size: pictures that the network takes at once.
            max_pixels, fast_decode: as in ``embed``.

        Returns:
            An iterator with an ``Embedded`` for each path, in order. A file that cannot be read has its error there,
            and the others are still embedded.

        Raises:
            ValueError: for a batch size below 1.
            TypeError: for a single path.

        Example:
            >>> [result.embedding.shape for result in embedder.embed_files(["pictures/a.png", "pictures/b.png"])]
            [(1280,), (1280,)]
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError("embed_files takes an iterable of paths, not one path")
        draft = self.preprocessing.draft if fast_decode else 0
        return self._embed_files(paths, batch_size, max_pixels, draft)

    def _embed_files(
        self, paths: Iterable[str | os.PathLike[str]], batch_size: int, max_pixels: int, draft: int
    ) -> Iterator[Embedded]:
        def read(path: str | os.PathLike[str]) -> tuple[str, np.ndarray | ImageError]:
            try:
                return os.fspath(path), images.load(path, self.preprocessing, max_pixels, draft)[0]
            except ImageError as error:
                return os.fspath(path), error

        expected = length_hint(paths)  # 0 if it is not known: then "auto" counts batch by batch
        known = expected > 0
        with closing(read_ahead(read, paths, self.threads, batch_size + self.threads, self._prepare)) as reads:
            while batch := list(islice(reads, batch_size)):
                inputs = [x for _, x in batch if isinstance(x, np.ndarray)]
                embeddings = iter(self._forward(np.stack(inputs), expected if known else len(inputs)) if inputs else ())
                expected = 0 if inputs else expected
                for path, x in batch:
                    if isinstance(x, ImageError):
                        yield Embedded(path, None, x)
                    elif np.isfinite(embedding := next(embeddings)).all():
                        yield Embedded(path, embedding, None)
                    else:
                        yield Embedded(path, None, ImageError(f"{path}: {NOT_FINITE}"))


def read_ahead(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    meanwhile: Callable[[], object] = lambda: None,
) -> Generator[Result, None, None]:
    """The results of ``read`` for each item, in order; threads compute them while the caller works on earlier ones.

    ``meanwhile`` is called once, before the first result is waited for.
    """
    more = iter(items)
    first = list(islice(more, ahead))
    if len(first) < 2:  # importing the pool would take longer than reading a picture
        meanwhile()
        yield from map(read, first)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            waiting.extend(pool.submit(read, item) for item in first)
            meanwhile()
            for item in more:
                waiting.append(pool.submit(read, item))
                yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def available_threads() -> int:
    """ALNUMPY_THREADS if it is set, else the number of CPUs that this process may use. Raises AlnumpyError."""
    text = os.environ.get("ALNUMPY_THREADS", "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise AlnumpyError(f"the environment variable ALNUMPY_THREADS must be a whole number above 0, not {text!r}")
    if text:
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_weights(path: str | os.PathLike[str], backend: str = "auto") -> Weights:
    """A weights file, from what the cache folder keeps of it if packaged kernels will run. Raises WeightsError."""
    if backend in ("auto", "compiled") and available("compiled"):
        from . import prepacked

        return prepacked.read(path)
    return weights.read(path)


def load(
    weights: str | os.PathLike[str] | None = None,
    size: int | None = None,
    normalize: bool = False,
    backend: str = "auto",
    threads: int | None = None,
) -> Embedder:
    """Loads a weights file, or the default one that ships with alnumpy.

    Parameters:
        weights: a path, a name that ``alnumpy models`` lists, or None for the default weights. The file should stay: of
            weights that are kept packed in the cache folder, the arrays are read when something needs them.
        size: side of the network's input in pixels, instead of the weights file's.
        normalize: whether to divide embeddings by their L2 norms.
        backend: "compiled" (packaged kernels), "numba" (kernels that Numba compiles here), "numpy", or "auto": compiled
            if that runs here, else numba if there are enough pictures, else numpy.
        threads: for decoding and computing; by default ALNUMPY_THREADS, or all CPUs.

    Returns:
        An ``Embedder``.

    Raises:
        WeightsError: if the file is missing, damaged or of another format.
        SpecError: for an impossible size.
        MissingExtraError: if the backend is not available here.

    Example:
        >>> alnumpy.load("alnet-mnist", normalize=True).embed("pictures/a.png").shape
        (1, 1280)
    """
    return Embedder(read_weights(locate(weights), backend), size, normalize, backend, threads)
