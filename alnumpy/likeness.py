"""Which distances mean that pictures are nearly the same, or similar: measured for the networks that ship."""

from __future__ import annotations

import os

from .errors import GalleryError
from .settings import Settings

LEVELS = ("exact", "near", "similar")
# Weights, side of the network's input, whether normalised and whether flipped: the distances that contain 95% of the
# copies made by programs (near: other formats, smaller, a little brighter) and by people (similar: cropped by a tenth,
# turned by 2 degrees, a fifth brighter). Printed by tools/dev/measure_copies.py; docs/DUPLICATES.md has more.
DISTANCES: dict[tuple[str, int, bool, bool], tuple[float, float]] = {
    ("alnet-photo", 64, False, False): (0.77, 1.7),
    ("alnet-photo", 64, True, False): (0.28, 0.59),
    ("alnet-photo", 64, False, True): (0.63, 1.6),
    ("alnet-photo", 64, True, True): (0.23, 0.55),
    ("efficientnet-lite0", 128, False, False): (12.0, 19.0),
    ("efficientnet-lite0", 128, True, False): (0.38, 0.56),
    ("efficientnet-lite0", 128, False, True): (11.0, 18.0),
    ("efficientnet-lite0", 128, True, True): (0.35, 0.52),
}


def measured(settings: Settings) -> tuple[float, float] | None:
    """The distances of "near" and "similar" pictures in a gallery; None if its network has not been measured."""
    name, _ = os.path.splitext(os.path.basename(settings.weights))
    return None if settings.reduced else DISTANCES.get((name, settings.size, settings.normalize, settings.flip))


def threshold(settings: Settings, like: str) -> float | None:
    """The distance of a level; None for identical files. Raises GalleryError if the network was not measured."""
    if like not in LEVELS:
        raise ValueError(f"like must be one of {', '.join(LEVELS)}, or a distance, not {like!r}")
    if like == "exact":
        return None
    if (distances := measured(settings)) is None:
        kind = "a reduced gallery" if settings.reduced else f"{settings.weights or settings.network} at {settings.size}"
        raise GalleryError(
            f"the distance for {like} has not been measured for {kind}: take --like exact, or --threshold with a "
            "distance such as alnumpy search prints between pictures that you find alike"
        )
    return distances[LEVELS.index(like) - 1]


def explain(settings: Settings, to: str = "query") -> str:
    """What distances to a picture mean, in one line; empty if the gallery's network has not been measured."""
    if (distances := measured(settings)) is None:
        return ""
    near, similar = distances
    return f"up to {near:g} a picture is nearly the same as the {to}, up to {similar:g} likely a version of it"
