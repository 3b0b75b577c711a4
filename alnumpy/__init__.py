"""Image embeddings and offline image retrieval with ALNet, on computers too small for PyTorch.

import alnumpy
embedder = alnumpy.load()
vectors = embedder.embed(["a.jpg", "b.jpg"])  # float32 (2, 1280)
"""

TYPE_CHECKING = False  # stands in for typing's, whose import would take longer than the rest of this file

__version__ = "0.1.0"
__all__ = [
    "SPECS",
    "AlnumpyError",
    "Embedded",
    "Embedder",
    "Gallery",
    "GalleryError",
    "ImageError",
    "Match",
    "MissingExtraError",
    "Picture",
    "Report",
    "Spec",
    "SpecError",
    "WeightsError",
    "load",
]

if TYPE_CHECKING:
    from .embedder import Embedded, Embedder, load
    from .errors import AlnumpyError, GalleryError, ImageError, MissingExtraError, SpecError, WeightsError
    from .gallery import Gallery, Match, Picture, Report
    from .networks import SPECS, Spec
else:

    def __getattr__(name: str) -> object:
        """Public names are imported when they are first used: a program can begin before NumPy has been imported."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in ("Gallery", "Match", "Picture", "Report"):  # importing gallery takes time
            from . import gallery as home
        else:
            from . import embedder, errors, networks

            home = next(module for module in (embedder, errors, networks) if hasattr(module, name))
        globals()[name] = getattr(home, name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
