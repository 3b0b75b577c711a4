"""What a gallery is bound to: the model, the preprocessing and the number format of its embeddings."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .database import Database
from .embedder import Embedder, read_weights
from .errors import GalleryError, SpecError, WeightsError
from .files import data_folder
from .packed import DTYPES
from .weights import Weights, available

MAX_DIMENSION = 65536


@dataclass(frozen=True)
class Settings:
    """The settings of a gallery, recorded in its file as JSON; only embeddings with equal settings can be compared."""

    network: str
    weights: str  # the name of the weights file, for later openings of the gallery
    dimension: int
    size: int  # side of the network's input in pixels
    normalize: bool
    decode: str  # "full", or "fast": JPEG decoded at reduced size
    identity: str  # digest of everything that an embedding depends on
    dtype: str
    flip: bool = False  # version 1 of the file has neither this nor the next
    reduced: bool = False

    @property
    def fast_decode(self) -> bool:
        """Whether JPEGs are decoded at reduced size."""
        return self.decode == "fast"

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        *,
        dtype: str | None = None,
        fast_decode: bool | None = None,
        flip: bool | None = None,
        normalize: bool | None = None,
        weights: str = "",
    ) -> Settings:
        """The settings of a new gallery; ``normalize`` None takes that of the embedder or its weights."""
        decode = "full" if fast_decode is False else "fast"
        if normalize is None:
            normalize = embedder.normalize or embedder.weights.normalize
        return cls(
            network=embedder.spec.name,
            weights=weights,
            dimension=embedder.spec.embedding,
            size=embedder.preprocessing.size,
            normalize=normalize,
            decode=decode,
            identity=embedder.identity(normalize, decode),
            dtype=dtype or "float32",
            flip=bool(flip),
        )

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings that ``to_json`` or an earlier version wrote. Raises ValueError for anything else."""
        try:
            settings = cls(**json.loads(text))
        except (TypeError, RecursionError):
            raise ValueError("not the settings of a gallery") from None
        types = {key: type(value).__name__ for key, value in asdict(settings).items()}
        if types != {field.name: field.type for field in fields(cls)}:
            raise ValueError("settings of the wrong types")
        if settings.dtype not in DTYPES or not 1 <= settings.dimension <= MAX_DIMENSION:
            raise ValueError("settings out of range")
        return settings

    def to_json(self) -> str:
        """The settings as the file records them."""
        return json.dumps(asdict(self))

    def asked(
        self,
        embedder: Embedder | None,
        *,
        dtype: str | None = None,
        fast_decode: bool | None = None,
        flip: bool | None = None,
        normalize: bool | None = None,
    ) -> Settings:
        """The settings that an embedder and choices ask for; None keeps the recorded value, even of ``normalize``."""
        fast_decode = self.fast_decode if fast_decode is None else fast_decode
        dtype, flip = dtype or self.dtype, self.flip if flip is None else flip
        normalize = self.normalize if normalize is None else normalize
        if embedder is None:
            return replace(self, dtype=dtype, decode="fast" if fast_decode else "full", flip=flip, normalize=normalize)
        # The same weights file may be elsewhere now.
        choices: dict[str, Any] = {"fast_decode": fast_decode, "flip": flip, "normalize": normalize}
        asked = Settings.of(embedder, dtype=dtype, weights=self.weights, **choices)
        return replace(asked, dimension=self.dimension, reduced=True) if self.reduced else asked

    def differences(self, asked: Settings) -> str:
        """Differences between these settings and those asked for, as text; empty if there are none."""
        recorded, wanted = asdict(self), asdict(asked)
        different = [key for key in recorded if recorded[key] != wanted[key]]
        named = [f"{key} {recorded[key]}, not {wanted[key]}" for key in different if key != "identity"]
        return "; ".join(named) or (f"other weights, {self.weights}" if different else "")


def find_weights(settings: Settings, backend: str = "auto") -> Weights:
    """The weights that a gallery was made with: from the recorded file, or else from any file that has a name.

    ``backend`` is that of the embedder to come. Raises WeightsError if they cannot be found.
    """
    for path in (settings.weights, *map(str, available().values())):
        with suppress(WeightsError, SpecError):  # the file is damaged, or was replaced by another
            found = read_weights(path, backend)
            if settings.asked(Embedder(found, settings.size)).identity == settings.identity:
                return found
    recorded = f" ({settings.weights})" if settings.weights else ""
    raise WeightsError(
        f"the {settings.network} weights that the gallery was made with{recorded} are neither there nor among those "
        "that alnumpy models lists: name their file with --weights, or put it into the user's data folder, "
        f"{data_folder() / 'weights'}"
    )


def check_unchanged(db: Database, settings: Settings) -> None:
    """Raises GalleryError if a gallery was made anew since its settings were read."""
    with suppress(ValueError):
        if Settings.from_json(db.meta().get("settings", "")) == settings:
            return
    raise GalleryError(f"{db.path}: made anew meanwhile, with other weights or settings; open it again")


def bind(db: Database, embedder: Embedder | None, weights: str, choices: dict[str, Any]) -> tuple[Settings, bool]:
    """The settings that a gallery's file records, or that are recorded now, and whether its pictures bind it to them.

    ``choices``: the arguments of ``Settings.of``. Raises GalleryError if the gallery was made with something else, if
    its settings are damaged, and if there are none to read.
    """
    recorded = db.meta().get("settings")
    try:
        settings = None if recorded is None else Settings.from_json(recorded)
    except ValueError:
        raise GalleryError(f"{db.path}: its settings are damaged; move it away and index again") from None
    # A gallery without pictures is not bound to its settings: the first run may have named a wrong folder.
    bound = settings is not None and (settings.reduced or bool(db.rows("SELECT 1 FROM pictures LIMIT 1")))
    if not bound and db.writable and embedder is not None:
        settings = Settings.of(embedder, weights=weights, **choices)
        db.set_meta("settings", settings.to_json())
    elif settings is None:
        raise GalleryError(f"{db.path}: an empty gallery; fill it with: alnumpy index FOLDER --db FILE")
    elif different := settings.differences(settings.asked(embedder, **choices)):
        raise GalleryError(
            f"{db.path}: made with {different}. Embeddings of different models or settings cannot be compared: "
            "use the same ones, or index into another file"
        )
    return settings, bound
