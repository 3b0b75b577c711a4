"""From the bytes of a picture to upright pixels: the decoder, its memory, and the meaning of its failures."""

from __future__ import annotations

import io
import os
import re
import stat
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import IO, Any, TypeVar

from PIL import Image

from . import containers, formats, memory, pixels
from .errors import ImageError, ImageMemoryError

MAX_PIXELS = 30_000_000  # 18 bytes each at the peak (WebP with alpha), which a device with 1 GB has
BUFFERED = 24  # further bytes that a decoder may hold per pixel of MAX_PIXELS: a progressive JPEG of 200 megapixels
SCALES = (1, 2, 4, 8)  # factors by which a JPEG can be decoded smaller
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # the operation that turns a picture upright, by EXIF orientation

PLUGINS = {"JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "BMP": "Bmp", "GIF": "Gif", "TIFF": "Tiff", "AVIF": "Avif"}
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # bytes per pixel; others take 4
DECODER_BYTES = {"WEBP": 12, "GIF": 12, "TIFF": 4, "AVIF": 8, "HEIF": 8}  # a decoder's own bytes per pixel

# Messages of decoders, and what they mean. A message that fits none is shown as it is.
REASONS = [
    (r"truncated|not enough|unexpected end|[Ee]nd of file|EOF", "the file is truncated: it ends before its pixels do"),
    (
        r"^-\d+$|decoder error|decoding error|broken data stream|could not create decoder|failed to decode"
        r"|buffer overrun|unrecognized data stream|decompress|incorrect",
        "damaged: its pixels cannot be decoded",
    ),
    (r"[Uu]nsupported (?!operand)|unknown pixel mode|unknown data organization|unknown raw mode|cannot load this image",
     "its kind of pixels is not supported; save it as PNG"),
]  # fmt: skip

Result = TypeVar("Result")
Size = tuple[int, int]


def decode(
    source: str | IO[bytes], name: str, max_pixels: int, draft: int, finish: Callable[[Image.Image], Result]
) -> tuple[Result, Size]:
    """The result of ``finish`` for the upright picture, in mode RGB or L, and width and height of the whole picture.

    The memory for the picture counts against the process's budget from the first pixel until ``finish`` returns.
    With ``draft`` above 0 a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its short side keeps that many
    pixels; one of more than ``max_pixels`` is decoded at the largest of these scales that fits. If memory runs out,
    the picture is tried again when no other is being decoded.

    Raises ImageError, which begins with ``name``, if it cannot be decoded, and ImageMemoryError, a kind of it, if there
    is too little memory.
    """
    try:
        with _opened(source) as file:
            return _decode(file, name, max_pixels, draft, finish)
    except OSError as error:  # from the file system, not from a decoder
        failure = ImageError(f"{name}: {error.strerror or error}")
        failure.transient = error.errno is not None
        raise failure from None


def decode_image(
    image: Image.Image, name: str, max_pixels: int, draft: int, finish: Callable[[Image.Image], Result]
) -> tuple[Result, Size]:
    """``decode`` for a PIL image. If Pillow has opened it and not yet decoded it, the file is checked first."""
    if 0 in image.size:
        raise ImageError(f"{name}: a picture without pixels: {image.width}x{image.height}")
    file = _undecoded(image)
    if file is not None:
        if image.width * image.height > max_pixels:
            return decode(file, name, max_pixels, draft, finish)
        at = file.tell()
        try:
            containers.read(file, "JPEG" if image.format == "MPO" else image.format or "")  # refuses too many scans
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        file.seek(at)
    attempt = _Attempt(io.BytesIO(), name, max_pixels, draft)
    try:
        attempt.check(*image.size)
        attempt.need = 16 * image.width * image.height
        with memory.hold(attempt.need):
            orientation = orientation_of(image)
            plain = pixels.flatten(image) if file is None else pixels.decode(image)
            if orientation in TRANSPOSE:
                plain = plain.transpose(TRANSPOSE[orientation])
            return finish(plain), plain.size
    except Exception as error:
        raise attempt.judge(error, True) from None


def _undecoded(image: Any) -> IO[bytes] | None:
    """The file of an image that Pillow has opened, but neither decoded nor set to another frame or scale."""
    loaded = image._im is not None if hasattr(image, "_im") else image.im is not None
    file = getattr(image, "fp", None)
    if loaded or file is None or file.closed or image.tell() or getattr(image, "decoderconfig", ()):
        return None
    known = {"MPO", *(kind.format for kind in formats.KINDS.values())}
    return file if image.format in known else None


@contextmanager
def _opened(source: str | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(source, str):
        yield source
        return

    def at_once(path: str, flags: int) -> int:  # a pipe put there meanwhile would wait for a writer
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    if "\0" in source:  # Python's own message depends on its version
        raise OSError("a null byte in its name")
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError("not a regular file")
    with open(source, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        yield file


def _decode(
    file: IO[bytes], name: str, max_pixels: int, draft: int, finish: Callable[[Image.Image], Result]
) -> tuple[Result, Size]:
    attempt = _Attempt(file, name, max_pixels, draft)
    for alone in (False, True):
        try:
            return attempt.run(finish, alone)
        except Exception as error:
            failure = attempt.judge(error, alone)
            traceback.clear_frames(error.__traceback__)  # they would hold pixels as long as someone keeps the error
            if alone or not isinstance(failure, ImageMemoryError):
                try:
                    raise failure from (None if failure is error else error)
                finally:
                    del failure  # otherwise this frame and its traceback would refer to each other
    raise AssertionError("a picture is tried at most twice")


class _Attempt:
    """The decoding of one picture, once or again."""

    def __init__(self, file: IO[bytes], name: str, max_pixels: int, draft: int):
        self.file = file
        self.name = name
        self.max_pixels = max_pixels
        self.draft = draft
        self.need = 0  # bytes, as far as known

    def run(self, finish: Callable[[Image.Image], Result], alone: bool) -> tuple[Result, Size]:
        """One attempt; ``alone``: while no other picture is being decoded."""
        self.file.seek(0)
        head = self.file.read(formats.HEAD)
        if fault := formats.fault(head, self.name):
            raise ImageError(fault)
        self.kind = formats.kind_of(head, self.name) or ""
        self.format = formats.KINDS[self.kind].format
        self.container = containers.read(self.file, self.format)
        if self.container.size and self.format != "JPEG":
            self.check(*self.container.size)
        image = None if self.format == "WEBP" else self._open(b"")  # WebP's decoder takes all its memory at once
        self.need = self._estimate(image)
        with memory.hold(memory.ALONE if alone else self.need):
            for tail in self.container.tails[1:]:
                whole = _checksum(self._pixels(self._open(tail))[0])
            plain, size = self._pixels(image if image and not self.container.tails else self._open(self._tail()))
            del image
            if self.container.tails and _checksum(plain) != whole:
                raise ImageError("the file is truncated: it ends before its pixels do")
            if self.container.orientation in TRANSPOSE:
                plain = plain.transpose(TRANSPOSE[self.container.orientation])
            return finish(plain), size[::-1] if self.container.orientation >= 5 else size

    def _tail(self) -> bytes:
        return self.container.tails[0] if self.container.tails else b""

    def _open(self, tail: bytes) -> Image.Image:
        """The picture as Pillow opens it, at the scale at which it is to be decoded."""
        parts = self.container.parts or [(0, self.file.seek(0, io.SEEK_END))]
        image = open_plugin(io.BufferedReader(containers.Parts(self.file, [*parts, tail])), self.format)
        if self.format == "TIFF":
            place = pixels.choose_page(image, self.container.whole)
            self.container.orientation = self.container.orientations.get(place) or self.container.orientation
        self._size = image.size
        if self.format == "JPEG":
            self._scale(image)
        else:
            self.check(*image.size)
        if self.container.parts is None and not self.container.orientation:
            self.container.orientation = orientation_of(image)
        image.info.update(self.container.info)
        return image

    def check(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ImageError(
                f"{width}x{height} pixels, more than the limit of {self.max_pixels}: make it smaller, or raise "
                "the limit (max_pixels, --max-pixels) where memory allows"
            )

    def _scale(self, image: Image.Image) -> None:
        """Sets a JPEG to be decoded smaller, for speed or because it is too large."""
        width, height = image.size
        allowed = (1,) if self.container.name.startswith(("lossless", "hierarchical")) else SCALES
        fast = min(width // self.draft, height // self.draft) if self.draft else 1
        fitting = [s for s in allowed if -(-width // s) * -(-height // s) <= self.max_pixels]
        if not fitting or self.container.buffered > BUFFERED * max(self.max_pixels, MAX_PIXELS):
            self.check(width, height)
            raise ImageError(f"a progressive JPEG of {width}x{height} pixels; save it as a baseline JPEG, or smaller")
        scale = max([fitting[0], *(s for s in allowed if s <= fast)])
        if scale > 1:
            image.draft(None, (max(1, width // scale), max(1, height // scale)))

    def _estimate(self, image: Image.Image | None) -> int:
        """Bytes that the picture takes at the peak, between the decoder's memory and the upright pixels."""
        width, height = image.size if image else self.container.size or (0, 0)
        mode = image.mode if image else "RGBA"
        decoded = MODE_BYTES.get(mode, 4)
        converted = 0 if mode in ("RGB", "L") and image and "transparency" not in image.info else 9
        turned = decoded + converted if self.container.orientation in TRANSPOSE else 0
        besides = DECODER_BYTES.get(self.format, 0)
        if mode.startswith("I") or (image and ";16" in pixels.rawmode_of(image)):
            converted += 16  # NumPy's copies
        read = self.file.seek(0, io.SEEK_END) if self.format in ("TIFF", "AVIF", "HEIF") else 0  # read whole
        return width * height * (decoded + max(converted, turned, besides)) + self.container.buffered + read

    def _pixels(self, image: Image.Image) -> tuple[Image.Image, Size]:
        """The pixels as decoded, in mode RGB or L, and the size of the whole picture."""
        size = self._size
        plain = pixels.decode(image, lambda: self._open(b""), self.container.whole)
        if plain.im.size != plain.size:  # Pillow before 10 leaves some damaged files so
            raise ImageError("damaged picture (fewer pixels than its header says)")
        vars(image).pop("_decoder", None)  # a WebP's decoder holds two more copies of the pixels
        return plain, size

    def judge(self, error: Exception, alone: bool) -> ImageError:
        """The error that an exception means for the picture. Raises it again if it is a fault of this program."""
        short = isinstance(error, MemoryError)
        if isinstance(error, ImageError):
            error.args = (f"{self.name}: {error}",)
            return error
        if isinstance(error, OSError) and error.errno is not None:
            failure = ImageError(f"{self.name}: {error.strerror or error}")
            failure.transient = True
            return failure
        if not short and not _raised_by_decoder(error):
            raise error
        # A decoder without memory reports it in its own words, as if the file were damaged.
        needed = self.need * 3 // 2 if alone else 2 * self.need + memory.held()
        if short or (self.need and not memory.obtainable(needed)):
            return ImageMemoryError(
                f"{self.name}: out of memory: decoding it takes about {max(1, round(self.need / 1e6))} MB; "
                "try again when more is free, or make it smaller"
            )
        return ImageError(f"{self.name}: {self._reason(error)}")

    def _reason(self, error: Exception) -> str:
        text = str(error)
        if isinstance(error, Image.DecompressionBombError):
            return "far too many pixels; make it smaller first"
        if name := self.container.name:
            return f"a JPEG of a kind that is not supported ({name}); save it as an ordinary JPEG or PNG"
        for pattern, reason in REASONS:
            if re.search(pattern, text):
                return reason
        if isinstance(error, SyntaxError):
            return f"damaged {self.kind}: the header before its pixels cannot be read"
        return f"damaged picture ({type(error).__name__}: {text})"


def open_plugin(file: IO[bytes], format: str) -> Any:
    """A picture as Pillow opens it, by the one plugin that reads its format, without Pillow's own limit on pixels."""
    if format in PLUGINS:
        import_module(f"PIL.{PLUGINS[format]}ImagePlugin")
    else:
        _register_heif()
    if format == "TIFF":
        _silence_libtiff()
    factory, _ = Image.OPEN[format]
    return factory(file, "")


@cache
def _register_heif() -> None:
    """Makes Pillow read HEIC: only the primary picture of each file, without thumbnails, depth and gain maps."""
    package = import_module(formats.heif_package() or "")
    package.options.AUX_IMAGES = False
    package.register_heif_opener(thumbnails=False, depth_images=False)


@cache
def _silence_libtiff() -> None:
    """Silences libtiff's warnings, which it writes to the terminal by default, without a file's name.

    It has one handler for the whole process. If a warning matters, decoding fails as well.
    """
    import logging  # not at the top: every start would wait for it

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise the plugin's own warnings go to stderr
    try:
        import ctypes

        library = ctypes.CDLL(Image.core.__file__)  # leads to the libtiff that Pillow is linked to
        for handler in (library.TIFFSetWarningHandler, library.TIFFSetErrorHandler):
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
    except (ImportError, OSError, AttributeError):  # linked statically, or no ctypes
        pass


def orientation_of(image: Image.Image) -> int:
    """The orientation that Pillow has found, 1 to 8, or 0.

    The decoder of HEIC turns pictures itself. In AVIF only the container's own transformation counts, which Pillow
    gives as EXIF.
    """
    if image.format == "HEIF":
        return 0
    if image.format == "AVIF":
        return containers.orientation_of(exif=image.info.get("exif", b""))
    try:
        value = image.getexif().get(274)
    except Exception:  # broken EXIF data beside intact pixels
        value = 0
    if isinstance(value, int) and 1 <= value <= 8:
        return value
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return containers.orientation_of(xmp=xmp.encode() if isinstance(xmp, str) else bytes(xmp))


def _raised_by_decoder(error: BaseException) -> bool:
    """Whether an exception was raised in a decoder's code rather than in this program's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.split(".")[0] in ("PIL", "pi_heif", "pillow_heif")


def _checksum(image: Image.Image) -> int:
    """A checksum of all pixels, computed without copying them."""
    total = 0
    for top in range(0, image.height, 256):
        total = zlib.crc32(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes(), total)
    return total
