"""From a picture to the network's input: decode, orient, convert to RGB, crop, resize, normalise."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from . import formats
from .errors import ImageError, SpecError
from .pixels import to_rgb

FORMATS = tuple(formats.KINDS[kind].format for kind in formats.PICTURES)  # those that every Pillow reads
MAX_SIZE = 4096  # side of the network's input
MAX_PIXELS = 30_000_000  # 18 bytes each at the worst moment (WebP with alpha): a device with 1 GB can bear it
MAX_SCANS = 30  # of a JPEG, each of which costs a pass over all pixels; encoders write up to twenty

_open_lock = Lock()  # warnings.catch_warnings, which Image.open needs, changes what all threads share

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray

Decoded = TypeVar("Decoded")

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input; stored in every weights file. Raises SpecError for absurd fields.

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

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise SpecError(f"preprocessing: size must be a whole number from 1 to {MAX_SIZE}, not {self.size!r}")
        for field in ("mean", "std"):
            values = getattr(self, field)
            numbers = isinstance(values, Sequence) and len(values) == 3 and all(type(v) in (int, float) for v in values)
            least = -1000 if field == "mean" else 1e-4  # pixels are in 0..1: anything else is a mistake
            if not numbers or not all(least <= v <= 1000 for v in values):
                raise SpecError(f"preprocessing: {field} must be three numbers from {least:g} to 1000, not {values!r}")
            object.__setattr__(self, field, tuple(float(v) for v in values))
        for field, allowed in (
            ("resize", ("short-side",)),
            ("interpolation", tuple(INTERPOLATIONS)),
            ("crop", ("center",)),
            ("channels", ("RGB", "BGR")),
        ):
            if getattr(self, field) not in allowed:
                raise SpecError(f"preprocessing: {field} must be one of {', '.join(allowed)}")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """From plain JSON types, the inverse of ``dataclasses.asdict``. Raises SpecError."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise SpecError(f"preprocessing: {error}") from None


def read(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as an upright 8-bit RGB image.

    ``source`` is a path, a PIL image or a uint8 array (H, W, 3). EXIF orientation is applied, transparency is laid over
    white, of an animation the first frame is taken. Raises ImageError, which names the file, for anything else.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ImageError(f"an array picture must be uint8 (height, width, 3), not {source.dtype} {source.shape}")
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, Image.Image):
        if 0 in source.size:
            raise ImageError(f"a picture without pixels: {source.width}x{source.height}")
        return _guarded("picture", lambda: to_rgb(ImageOps.exif_transpose(source)))
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(f"a picture must be a path, a PIL image or an array, not {type(source).__name__}")
    return read_file(source, max_pixels)[0]


def read_file(
    source: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, draft: int = 0
) -> tuple[Image.Image, tuple[int, int]]:
    """``read`` of a file, and the width and height of the whole picture, upright.

    With ``draft`` above 0 a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its short side keeps that many
    pixels. That is several times as fast, and the pixels differ a little.
    """
    path = os.fspath(source)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
            raise ImageError(f"{path}: not a regular file")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return _guarded(path, lambda: _read_file(path, max_pixels, draft))


def _guarded(name: str, decode: Callable[[], Decoded]) -> Decoded:
    try:
        return decode()
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture that can be read ({', '.join(formats.readable_kinds())})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: far too many pixels; make it smaller first") from None
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from None
    except Exception as error:  # decoders meet damaged files with almost any exception: all mean the same to the caller
        raise ImageError(f"{name}: damaged picture ({type(error).__name__}: {error})") from None


def _read_file(path: str, max_pixels: int, draft: int) -> tuple[Image.Image, tuple[int, int]]:
    kind = formats.kind_of(_head(path), path)
    if kind is None:
        raise Image.UnidentifiedImageError
    if not formats.readable(kind):
        raise ImageError(formats.refusal(kind))
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is what counts
        if kind == "HEIC":
            _register_heif()
        try:
            image = Image.open(path, formats=[formats.KINDS[kind].format])
        except Image.UnidentifiedImageError:  # whatever was raised where the file was opened
            raise ImageError(f"damaged {kind}: what comes before the pixels cannot be read") from None
    with image:
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"{image.width}x{image.height} pixels, more than the limit of {max_pixels}: make it smaller, or raise "
                "the limit (max_pixels, --max-pixels) where memory allows"
            )
        width, height = image.size
        if image.format in ("JPEG", "MPO"):
            _limit_scans(image)
        if draft:
            image.draft(None, (draft, draft))  # of other formats nothing happens
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # which turn it on its side
            width, height = height, width
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image), (width, height)


@cache
def _register_heif() -> None:
    """Makes Pillow read HEIC: of each file the primary picture alone, without its thumbnails, depth and gain maps."""
    package = import_module(formats.heif_package() or "")
    package.options.AUX_IMAGES = False
    package.register_heif_opener(thumbnails=False, depth_images=False)


def _limit_scans(image: Any) -> None:
    """Makes the loading of a JPEG fail that has thousands of scans, of a few bytes each, to keep the decoder busy."""
    read, start, scans = image.load_read, image.fp.tell(), 1  # Pillow has stopped within the first scan

    def counted(size: int) -> bytes:
        nonlocal scans
        before = max(0, start - image.fp.tell())  # a thumbnail in the header has scans of its own
        data: bytes = read(size)
        scans += data.count(b"\xff\xda", before)  # which pixels never look like
        if scans > MAX_SCANS:
            raise ImageError(f"a JPEG of more than {MAX_SCANS} scans, which take for ever to decode; save it again")
        return data

    image.load_read = counted


def preprocess(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """An RGB image as the network's input: float32 (3, size, size), normalised.

    Cropping the centre square before resizing gives the same picture as resizing the short side before cropping,
    without the huge intermediate picture that a 1x20000 strip would need.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.resize((how.size, how.size), INTERPOLATIONS[how.interpolation], box))  # (s, s, 3) uint8
    if how.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    x = pixels.astype(np.float32) / 255
    x = (x - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))  # (3, s, s)


def is_companion(name: str) -> bool:
    """Whether a file is by its name what macOS leaves beside another: ._photo.jpg beside photo.jpg."""
    return os.path.basename(name).startswith("._")


def is_picture(name: str) -> bool:
    """Whether a file is by its name a picture that can be read."""
    kind = formats.by_name(name)
    return kind is not None and formats.readable(kind) and not is_companion(name)


def _head(path: str) -> bytes:
    """The first bytes of a file, which tell its kind. Raises OSError."""

    def at_once(name: str, flags: int) -> int:  # opening a pipe would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=at_once) as file:
        return file.read(formats.HEAD) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""  # no pipe, no device


def kind_of_file(path: str) -> str | None:
    """The kind of a file, a key of ``formats.KINDS`` or None: by its name, or else its first bytes. Raises OSError."""
    if is_companion(path):
        return "companion"
    return formats.by_name(path) or formats.kind_of(_head(path), path)


def find(folder: str | os.PathLike[str], recursive: bool = False) -> list[str]:
    """Paths of the pictures in a folder, by their names or first bytes, sorted; links to folders are not followed.

    Raises OSError where the folder, or with ``recursive`` a folder below it, cannot be listed.
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
