"""The object that users hold: pictures in, embeddings out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from . import images, reference
from .errors import ImageError
from .images import ImageSource
from .weights import Weights, default_path
from .weights import read as read_weights


class Embedded(NamedTuple):
    """What became of one file: its embedding, float32 (spec.embedding,), or the error that kept it from having one."""

    path: str
    embedding: np.ndarray | None
    error: ImageError | None


class SelfTest(NamedTuple):
    """How far this device's embedding is from the one recorded in the weights file. NaN where either is not finite."""

    relative_error: float  # norm of the difference over the norm of the recorded embedding
    largest_error: float  # largest absolute difference of a component


class Embedder:
    """Embeds pictures with one network and its preprocessing. Make one with ``alnumpy.load``."""

    def __init__(self, weights: Weights, size: int | None = None, normalize: bool = False):
        self.weights = weights
        self.spec = weights.spec
        self.preprocessing = weights.preprocessing
        if size is not None:
            self.preprocessing = dataclasses.replace(self.preprocessing, size=size)
        self.normalize = normalize

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Embeddings of preprocessed pictures: float32 (N, 3, H, W) of any size -> float32 (N, spec.embedding).

        Each picture is computed by itself, so that its embedding has the same bits in any batch. Raises ValueError for
        another shape.
        """
        x = np.ascontiguousarray(x, np.float32)
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:]:
            raise ValueError(f"forward takes pictures of shape (N, 3, H, W), not {x.shape}")
        y = np.empty((len(x), self.spec.embedding), np.float32)
        for i in range(len(x)):
            y[i] = reference.forward(self.spec, self.weights.parameters, x[i : i + 1])[0]
        if self.normalize:
            y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return y

    def self_test(self) -> SelfTest:
        """Computes the weights file's recorded input and compares with the embedding recorded there."""
        recorded = self.weights.self_test_embedding
        difference = Embedder(self.weights).forward(self.weights.self_test_input) - recorded
        return SelfTest(float(np.linalg.norm(difference) / np.linalg.norm(recorded)), float(np.abs(difference).max()))

    def embed(self, pictures: ImageSource | Sequence[ImageSource]) -> np.ndarray:
        """Embeddings of one picture or of a list: paths, PIL images or uint8 arrays (H, W, 3) -> (N, spec.embedding).

        Raises ImageError for a picture that cannot be read.
        """
        single = isinstance(pictures, (str, os.PathLike, np.ndarray)) or hasattr(pictures, "convert")
        sources: Sequence[ImageSource] = [pictures] if single else pictures  # type: ignore[list-item, assignment]
        x = np.empty((len(sources), 3, self.preprocessing.size, self.preprocessing.size), np.float32)
        for i, source in enumerate(sources):
            x[i] = images.preprocess(images.read(source), self.preprocessing)
        return self.forward(x)

    def embed_files(
        self, paths: Iterable[str | os.PathLike[str]], batch_size: int = 32, max_pixels: int = images.MAX_PIXELS
    ) -> Iterator[Embedded]:
        """Embeds files in batches and yields an ``Embedded`` for each path, in order, in constant memory.

        A file that cannot be read is yielded with its error; the others go on.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        remaining = iter(paths)
        while batch := [os.fspath(path) for path in islice(remaining, batch_size)]:
            inputs: list[np.ndarray] = []
            errors: dict[int, ImageError] = {}
            for i, path in enumerate(batch):
                try:
                    inputs.append(images.preprocess(images.read(path, max_pixels), self.preprocessing))
                except ImageError as error:
                    errors[i] = error
            embeddings = iter(self.forward(np.stack(inputs)) if inputs else ())
            for i, path in enumerate(batch):
                yield Embedded(path, None, errors[i]) if i in errors else Embedded(path, next(embeddings), None)


def load(weights: str | os.PathLike[str] | None = None, size: int | None = None, normalize: bool = False) -> Embedder:
    """Loads a weights file, or the default one that ships with alnumpy.

    ``size``: side of the network's input in pixels instead of the weights file's. ``normalize``: divide embeddings by
    their L2 norm. Raises WeightsError where the file is missing, damaged or of another format, SpecError for an absurd
    size.
    """
    return Embedder(read_weights(default_path() if weights is None else weights), size, normalize)
