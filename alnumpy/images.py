"""From a picture to the network's input: decode, orient, convert to RGB, crop, resize, normalise."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image

from . import decode, formats
from .decode import MAX_PIXELS as MAX_PIXELS
from .errors import ImageError, SpecError
from .pixels import has_profile, to_srgb

FORMATS = tuple(formats.KINDS[kind].format for kind in formats.PICTURES)  # those that every Pillow reads
DRAFT = 2  # fast decoding keeps at least this many pixels per pixel of the network's input, along a side
REDUCED = 8  # pixels per pixel of the network's input that are kept for converting colours
MAX_SIZE = 4096  # largest side of the network's input

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray

SOURCES = "a path, the bytes of a file, a binary file object, a PIL image or a uint8 array"

Result = TypeVar("Result")

# Ways to resize: a filter that widens as pictures shrink, or interpolation of the four nearest pixels, like OpenCV's.
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "opencv-bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input; stored in every weights file. Raises SpecError for impossible fields.

    The centre square (``crop`` "center") is resized so that the short side becomes ``size`` pixels (``resize``
    "short-side"), which keeps the proportions; pixels in 0..1 are then normalised as (pixel - mean) / std.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "short-side"
    interpolation: str = "bilinear"
    crop: str = "center"
    channels: str = "RGB"  # or "BGR", for checkpoints trained on pictures read by OpenCV
    share: float = 1.0  # part of the short side that is kept, in the middle: 0.875 for networks tested at 224 of 256

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise SpecError(f"preprocessing: size must be a whole number from 1 to {MAX_SIZE}, not {self.size!r}")
        for field in ("mean", "std"):
            values = getattr(self, field)
            numbers = isinstance(values, Sequence) and len(values) == 3 and all(type(v) in (int, float) for v in values)
            least = -1000 if field == "mean" else 1e-4  # pixels are in 0..1, so anything else is a mistake
            if not numbers or not all(least <= v <= 1000 for v in values):
                raise SpecError(f"preprocessing: {field} must be three numbers from {least:g} to 1000, not {values!r}")
            object.__setattr__(self, field, tuple(float(v) for v in values))
        if type(self.share) not in (int, float) or not 0.01 <= self.share <= 1:
            raise SpecError(f"preprocessing: share must be a number from 0.01 to 1, not {self.share!r}")
        object.__setattr__(self, "share", float(self.share))
        for field, allowed in (
            ("resize", ("short-side",)),
            ("interpolation", tuple(INTERPOLATIONS)),
            ("crop", ("center",)),
            ("channels", ("RGB", "BGR")),
        ):
            if getattr(self, field) not in allowed:
                raise SpecError(f"preprocessing: {field} must be one of {', '.join(allowed)}")

    @property
    def draft(self) -> int:
        """The least length of the short side, in pixels, of a JPEG that is decoded fast, at 1/2, 1/4 or 1/8."""
        return math.ceil(DRAFT * self.size / self.share)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types. A share of 1 is left out, since older files have no share."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if (key, value) != ("share", 1.0)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``. Raises SpecError."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise SpecError(f"preprocessing: {error}") from None


def read(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as an upright 8-bit RGB image.

    ``source``: a path, the bytes of a file, a binary file object that can be read, a PIL image, or a uint8 array (H, W)
    or (H, W, 1) of grey, (H, W, 3) RGB or (H, W, 4) RGBA. EXIF orientation is applied, transparency is laid over white,
    and the first frame of an animation is taken. A JPEG of more than ``max_pixels`` is decoded at 1/2, 1/4 or 1/8 of
    its size.

    Raises ImageError, which names the file, for what cannot be decoded or has more pixels, ImageMemoryError if there
    is too little memory, and TypeError for any other type.
    """
    return _run(source, max_pixels, 0, to_srgb)[0]


def is_source(item: object) -> bool:
    """Whether an object is of a type that can be one picture."""
    types = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(item, types) or callable(getattr(item, "read", None))


def read_file(
    source: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, draft: int = 0
) -> tuple[Image.Image, tuple[int, int]]:
    """``read`` of a file, and the width and height of the whole picture, upright.

    With ``draft`` above 0 a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its short side keeps that many
    pixels. That is several times as fast, and the pixels differ a little.
    """
    return _run(os.fspath(source), max_pixels, draft, to_srgb)


def read_part(
    source: ImageSource, region: tuple[int, int, int, int], max_pixels: int = MAX_PIXELS, name: str = "picture"
) -> Image.Image:
    """``read`` of a part of a picture: left, top, width and height in pixels of the whole, upright picture.

    Raises ImageError, which begins with ``name``, also if no part of the picture lies in the region.
    """
    image, whole = _run(source, max_pixels, 0, to_srgb)
    x, y, width, height = region
    if x >= whole[0] or y >= whole[1]:
        raise ImageError(f"{name}: {whole[0]}x{whole[1]} pixels, no part of it lies in the region")
    left, top, right, bottom = x, y, min(x + width, whole[0]), min(y + height, whole[1])
    scale = image.width / whole[0], image.height / whole[1]  # a very large picture may have been decoded smaller
    box = round(left * scale[0]), round(top * scale[1]), round(right * scale[0]), round(bottom * scale[1])
    return image.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))


def load(
    source: ImageSource, how: Preprocessing, max_pixels: int = MAX_PIXELS, draft: int = 0
) -> tuple[np.ndarray, tuple[int, int]]:
    """The network's input for a picture, float32 (3, size, size), and width and height of the whole upright picture.

    The sources and errors of ``read``, and the ``draft`` of ``read_file``. The memory for the picture counts against
    the process's budget (``memory``) until the input is made, so that many threads may call this at once.
    """
    return _run(source, max_pixels, draft, lambda image: preprocess(image, how))


def _run(
    source: ImageSource, max_pixels: int, draft: int, finish: Callable[[Image.Image], Result]
) -> tuple[Result, tuple[int, int]]:
    """The result of ``finish`` for the upright pixels, in mode RGB or L, and width and height of the whole picture."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return decode.decode(os.fsdecode(path), os.fsdecode(path), max_pixels, draft, finish)
    if isinstance(source, Image.Image):
        return decode.decode_image(source, "picture", max_pixels, draft, finish)
    if isinstance(source, np.ndarray):
        return decode.decode_image(_from_array(source), "picture", max_pixels, draft, finish)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode.decode(io.BytesIO(source), "picture", max_pixels, draft, finish)
    if callable(getattr(source, "read", None)):
        return decode.decode(_from_start(source), _name_of(source), max_pixels, draft, finish)
    raise TypeError(f"a picture must be {SOURCES}, not {type(source).__name__}")


def _from_array(pixels: np.ndarray) -> Image.Image:
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or bands not in (1, 3, 4) or 0 in pixels.shape:
        raise ImageError(
            "an array picture must be uint8 (height, width), (height, width, 1), (height, width, 3) or "
            f"(height, width, 4), not {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and bands == 1 else pixels))


def _from_start(file: IO[bytes]) -> IO[bytes]:
    """A file object whose picture begins at position 0, made from one whose picture begins at its current position."""
    if file.seekable() and file.tell() == 0:
        data = file.read(0)
    else:
        data = file.read()
        file = io.BytesIO(data) if isinstance(data, bytes) else file
    if not isinstance(data, bytes):
        raise TypeError("a picture's file must be open in binary mode")
    return file


def _name_of(file: IO[bytes]) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else "picture"


def preprocess(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """An image of mode RGB or L as the network's input: float32 (3, size, size), normalised.

    Cropping the centre square before resizing gives the same picture as resizing the short side before cropping,
    without the huge intermediate picture that a 1x20000 strip would need.
    """
    side: float = how.share * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if has_profile(image):  # converting fewer pixels is faster, but rounding would show in the smallest picture
        factor = max(1, int(side) // (REDUCED * how.size))
        image = to_srgb(image.reduce(factor))
        left, top, side = left / factor, top / factor, side / factor
    box = (left, top, min(left + side, image.width), min(top + side, image.height))  # rounding could exceed the picture
    filter, shape = INTERPOLATIONS[how.interpolation], (how.size, how.size)
    if how.interpolation == "opencv-bilinear":
        small = image.transform(shape, Image.Transform.EXTENT, box, filter)
    else:
        small = image.resize(shape, filter, box)
    pixels = np.asarray(small.convert("RGB"))  # (s, s, 3) uint8
    if how.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    x = pixels.astype(np.float32) / 255
    x = (x - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))  # (3, s, s)


def is_companion(name: str) -> bool:
    """Whether the name is that of a macOS companion file, such as ._photo.jpg beside photo.jpg."""
    return os.path.basename(name).startswith("._")


def is_picture(name: str) -> bool:
    """Whether the name is that of a picture that can be read."""
    kind = formats.by_name(name)
    return kind is not None and formats.readable(kind) and not is_companion(name)


def _head(path: str) -> bytes:
    """The first bytes of a file, which tell its kind. Raises OSError."""

    def at_once(name: str, flags: int) -> int:  # without waiting for a pipe's writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=at_once) as file:
        return file.read(formats.HEAD) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""  # not of a pipe


def kind_of_file(path: str) -> str | None:
    """The kind of a file, a key of ``formats.KINDS`` or None: by its name, or else its first bytes. Raises OSError."""
    if is_companion(path):
        return "companion"
    return formats.by_name(path) or formats.kind_of(_head(path), path)


def fault(path: str) -> str:
    """Why a file is not a picture that can be read here, by its first bytes; "" if it may be one. Raises OSError."""
    return formats.fault(_head(path), path)


def find(folder: str | os.PathLike[str], recursive: bool = False) -> list[str]:
    """Paths of the pictures in a folder, by their names or first bytes, sorted; links to folders are not followed.

    Raises OSError if the folder, or with ``recursive`` a folder below it, cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    paths: list[str] = []
    for root, folders, names in os.walk(folder, onerror=fail):
        if not recursive:
            folders.clear()
        paths += [path for name in names if _is_readable(path := os.path.join(root, name))]
    return sorted(paths)


def _is_readable(path: str) -> bool:
    try:
        kind = kind_of_file(path)
    except OSError:  # it cannot be opened, and its name is not that of a picture
        return False
    return kind is not None and formats.readable(kind)
