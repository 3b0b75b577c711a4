"""Image embeddings and offline image retrieval with ALNet, on computers too small for PyTorch.

import alnumpy
embedder = alnumpy.load()
vectors = embedder.embed(["a.jpg", "b.jpg"])  # float32 (2, 1280)
"""

from .embedder import Embedded, Embedder, load
from .errors import AlnumpyError, GalleryError, ImageError, MissingExtraError, SpecError, WeightsError
from .spec import SPECS, Spec

__version__ = "0.1.0"
__all__ = [
    "SPECS",
    "AlnumpyError",
    "Embedded",
    "Embedder",
    "GalleryError",
    "ImageError",
    "MissingExtraError",
    "Spec",
    "SpecError",
    "WeightsError",
    "load",
]
