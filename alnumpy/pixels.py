"""From a picture as its plugin opens it to 8-bit pixels that mean what the file's author saw.

Handles pages and frames; grey, palettes and transparency of any depth; 16 bits, whether all of them are used or not;
bands that are not alpha; colour profiles.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import IO, Any

import numpy as np
from PIL import Image

from .errors import ImageError

MAX_PAGES = 16  # pages of a TIFF that are looked at if its first one is a thumbnail
THUMBNAIL = 320  # pixels on the long side of a first page, at most, that may be an unmarked thumbnail of the next
MAX_FRAMES, MAX_FRAME_PIXELS = 64, 30_000_000  # frames decoded in search of one that shows something, and their pixels
SHOWS = 16  # least difference between the darkest and the lightest pixel, of 255, of a picture that shows something
MAX_PROFILE = 4 << 20  # bytes of a colour profile; those of printers have up to three million

_SUBFILE, _OLD_SUBFILE, _SUB_IFDS = 254, 255, 330  # tags of TIFF 6.0
_BITS, _PHOTOMETRIC, _LARGEST, _EXTRA_SAMPLES = 258, 262, 281, 338


# Pages


def choose_page(image: Any, whole: bool = True) -> int:
    """Sets a TIFF that begins with a thumbnail to the picture that the thumbnail is of; returns where that is stored.

    A page is a thumbnail if the file says so, or if it is small and the next page has the same proportions and is at
    least four times as large. Its picture is the largest of the following pages and the pages below it (SubIFDs) that
    is not a thumbnail itself. Any other TIFF stays at its first page, which is right for a document.

    Raises ImageError if only the thumbnail can be read from a file that is not ``whole`` and announces more.
    """
    first, size, start = image.tag_v2, image.size, image._frame_pos[0]
    marked = _is_reduced(first)
    if not marked and max(size) > THUMBNAIL:
        return start
    best, place = size[0] * size[1], start
    below = [n for n in _numbers(first.get(_SUB_IFDS)) if n > 0][:MAX_PAGES]
    for number, offset in enumerate([*_following(image), *below]):
        if not _turned_to(image, offset):
            continue
        (width, height), tags = image.size, image.tag_v2
        larger = width * height > best and not _is_reduced(tags)
        if not marked:
            larger = larger and number == 0 and min(width / size[0], height / size[1]) >= 4
            larger = larger and abs(width * size[1] / (height * size[0]) - 1) < 0.02
        if larger:
            best, place = width * height, offset
    others = marked or below or len(image._frame_pos) > 1  # whether the file announces others
    if place == start and others and not whole:
        raise ImageError("the file is truncated or damaged: nothing but a thumbnail is left")
    _turned_to(image, place)
    return place


def _is_reduced(tags: Any) -> bool:
    """Whether a page is a smaller version of another one, or a mask of it."""
    kinds = _numbers(tags.get(_SUBFILE)), _numbers(tags.get(_OLD_SUBFILE))
    return any(n & 5 for n in kinds[0]) or 2 in kinds[1]


def _following(image: Any) -> Iterator[int]:
    """Offsets of the pages after the first."""
    for number in range(1, MAX_PAGES):
        try:
            image.seek(number)
        except MemoryError:
            raise
        except Exception:  # there is none, or it is damaged
            if len(image._frame_pos) <= number:
                return
        yield image._frame_pos[number]


def _turned_to(image: Any, offset: int) -> bool:
    """Sets a TIFF to the page at an offset, as Pillow does for SubIFDs; False if it cannot be decoded."""
    kept = image._frame_pos
    image._frame_pos = [offset]
    try:
        image._seek(0)
        return True
    except MemoryError:
        raise
    except Exception:
        return False
    finally:
        image._frame_pos = kept


def _numbers(value: object) -> tuple[int, ...]:
    """A tag's value as whole numbers, whatever it is."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(v for v in values if isinstance(v, int))


# From file to pixels


def decode(image: Any, opened_again: Callable[[], Any] | None = None, whole: bool = True) -> Image.Image:
    """The pixels of a picture that Pillow has opened and not yet loaded, in mode RGB, or L if they are grey.

    For an animation they are those of the first frame that shows something. ``opened_again`` opens the same picture
    once more, for values that Pillow's modes cannot hold. The colours are those of the profile in
    ``info["icc_profile"]``: see ``to_srgb``.

    Raises ImageError if the brightness of the pixels is not defined, or if the first frame is empty and the file is not
    ``whole``; and whatever Pillow raises.
    """
    rawmode = rawmode_of(image)
    image.load()
    bits = {"L;2": 2, "L;4": 4}.get(rawmode, 8)
    if image.format == "PNG" and image.mode in ("L", "RGB") and "16" not in rawmode:
        _scale_transparency(image, bits)
    if opened_again and ";16" in rawmode and image.mode in ("RGB", "RGBA", "CMYK") and "a" not in rawmode:
        pixels = flatten(_sixteen_bits(image, rawmode, opened_again))
    else:
        pixels = flatten(image)
    if image.format in ("GIF", "WEBP", "PNG", "AVIF") and not _shows(pixels):
        pixels = pixels.copy()  # otherwise the next frame would be decoded into it
        return _frame_that_shows(image, whole) or pixels
    return pixels


def rawmode_of(image: Any) -> str:
    """Pillow's name for the way the file stores pixels."""
    arguments = image.tile[0][3] if image.tile else ""
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def _scale_transparency(image: Any, bits: int) -> None:
    """Scales the transparent colour of a PNG of less than 16 bits like the pixels; Pillow leaves it as stored."""
    value = image.info.get("transparency")
    most = (1 << bits) - 1  # the specification tells decoders to ignore the bits above
    if isinstance(value, int):
        image.info["transparency"] = (value & most) * 255 // most
    elif isinstance(value, tuple):
        image.info["transparency"] = tuple(v & most for v in value)


def _shows(pixels: Image.Image) -> bool:
    extrema: Any = pixels.getextrema()
    return any(high - low >= SHOWS for low, high in ([extrema] if pixels.mode == "L" else extrema))


def _frame_that_shows(image: Any, whole: bool) -> Image.Image | None:
    """The first frame of an animation after its first one that is not of one colour."""
    for number in range(1, min(MAX_FRAMES, MAX_FRAME_PIXELS // (image.width * image.height)) + 1):
        try:
            image.seek(number)
        except EOFError:  # there is none
            break
        image.load()
        pixels = flatten(image)
        if _shows(pixels):
            return pixels
    if not whole or (image.format == "GIF" and image.fp and not _ends(image.fp)):
        raise ImageError("the file is truncated or damaged: its first frame is empty, and others are missing")
    return None


def _ends(file: IO[bytes]) -> bool:
    """Whether a GIF that has been read up to here ends with its end mark rather than with the file."""
    file.seek(max(0, file.tell() - 1))
    return file.read(1) == b";"


# 16 bits


def _significant(largest: int, hint: int, most: int = 16) -> int:
    """How many low bits of 16-bit samples are used, from their largest value and the file's hint, or 0.

    Cameras, scanners and microscopes store 10 or 12 bits in 16-bit files, mostly without saying so. A hint is
    believed if no sample contradicts it: by the PNG specification the bits that sBIT names are the upper ones, and then
    some sample will. Without a hint the largest value decides, but only for 8, 10 and 12 bits. A picture of 16 bits
    whose lightest pixel has less than 1/16 of the full range looks black, and so would its embedding; brightened it is
    still a picture of the same thing. 13 to 15 bits are not guessed: night pictures have such largest values, and even
    if the bits are unused, the picture is only dark.
    """
    for bits in (hint, 8, 10, 12):
        if 8 <= bits < most and largest < 1 << bits:
            return bits
    return most


def _hint(image: Any) -> int:
    """Significant bits of a sample according to the file, or 0."""
    if chunk := image.info.get("sBIT"):
        return int(max(chunk[:3] if len(chunk) > 2 else chunk[:1]))
    largest = max(_numbers(getattr(image, "tag_v2", {}).get(_LARGEST)), default=0)
    return largest.bit_length() if largest & (largest + 1) == 0 else 0  # 2^n - 1; any other number is just a statistic


def _sixteen_bits(image: Any, rawmode: str, opened_again: Callable[[], Any]) -> Image.Image:
    """A colour picture of 16 bits by its significant bits; Pillow has loaded the upper 8 bits of each sample.

    The lower ones are needed if the upper ones are not used, or to find the transparent colour. A second decoding gets
    them, in which Pillow is told that the bytes are in the other order.
    """
    alpha = image.mode == "RGBA"
    extrema = image.getextrema()
    largest = max(high for _, high in extrema[: -1 if alpha else None])
    shift = _significant(largest << 8, _hint(image)) - 8
    clear = image.info.pop("transparency", None)
    if shift == 8 and clear is None:
        return image
    low = _lower_bits(opened_again(), rawmode)
    pixels, info = np.array(image), dict(image.info)
    if isinstance(clear, tuple) and len(clear) == pixels.shape[2]:
        hidden = np.all((pixels == [c >> 8 for c in clear]) & (low == [c & 255 for c in clear]), 2)
    if shift < 8:
        colours = slice(None, -1 if alpha and extrema[-1][1] >> shift else None)  # an alpha that uses all bits stays
        pixels[..., colours] = pixels[..., colours] << (8 - shift) | low[..., colours] >> shift
    if isinstance(clear, tuple):
        pixels[hidden] = 255
    result = Image.frombytes(image.mode, image.size, pixels.tobytes())
    result.info, result.format = info, image.format
    return result


def _lower_bits(image: Any, rawmode: str) -> np.ndarray:
    """The lower 8 bits of each sample of a picture that has not been loaded: uint8 (height, width, bands)."""
    if rawmode == "LA;16B":  # Pillow has no counterpart: read the four bytes as four samples
        other = "RGBA"
    else:
        other = rawmode[:-1] + {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}[rawmode[-1]]
    image.tile = [
        getattr(type(tile), "_make", tuple)([*tile[:3], other if isinstance(tile[3], str) else (other, *tile[3][1:])])
        for tile in image.tile
    ]
    image.load()
    pixels = np.asarray(image)
    return pixels[..., [1, 1, 1, 3]] if rawmode == "LA;16B" else pixels


def _sixteen_bit_grey(image: Any) -> np.ndarray:
    """Grey of 16 bits (Pillow opens some as 32) as uint8 by its significant bits, transparent pixels white."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or (largest := int(pixels.max())) > 65535:
        raise ImageError("32-bit pixels outside 0..65535 have no defined brightness; convert the picture to 8 bits")
    tags = getattr(image, "tag_v2", {})
    depth = min([16, *_numbers(tags.get(_BITS))[:1]])  # 12 if the samples are packed
    bits = _significant(largest, _hint(image), depth) if depth == 16 else depth
    grey = (pixels >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return grey


# Modes


def flatten(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as 8-bit RGB, or L if it is grey; transparency is laid over white.

    If its colours are those of a profile, that stays in ``info["icc_profile"]``. Raises ImageError if its brightness is
    not defined.
    """
    mode, before, profile = image.mode, image.info, image.info.get("icc_profile")
    if mode.startswith("I"):
        return _with_profile(Image.fromarray(_sixteen_bit_grey(image)), profile)
    if mode == "F":
        raise ImageError("floating-point pixels have no defined brightness; convert the picture to 8 bits")
    if mode == "LAB":
        return _from_lab(image)
    if mode == "CMYK":  # ideal inks, since the picture has no profile
        return _with_profile(to_srgb(image), None)
    if mode in ("La", "RGBa"):  # premultiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if _is_opaque(image):
        image = image.convert("RGB")
    if mode == "1":
        image = image.convert("L")
        image.info = before
    result = "L" if image.mode in ("L", "LA") else "RGB"
    if image.mode in ("PA", "LA", "RGBA") or "transparency" in image.info:
        rgba = image if image.mode in ("LA", "RGBA") else image.convert("LA" if result == "L" else "RGBA")
        white = Image.new(result, rgba.size, "white")
        white.paste(rgba.getchannel("L") if result == "L" else rgba, mask=rgba.getchannel("A"))
        return _with_profile(white, profile)
    return image if image.mode == result else image.convert(result)


def _is_opaque(image: Any) -> bool:
    """Whether a band that Pillow opens as alpha is not alpha.

    In a BMP of 32 bits a fourth byte that is always 0 is unused, as in Windows; the fourth band of a TIFF is alpha only
    if the file says so: it may be infrared.
    """
    if image.mode != "RGBA":
        return False
    if image.format == "TIFF":
        return _EXTRA_SAMPLES not in getattr(image, "tag_v2", {_EXTRA_SAMPLES: 0})
    return image.format in ("BMP", "DIB") and image.getextrema()[-1] == (0, 0)


def _with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    image.info = {"icc_profile": profile} if profile else {}
    return image


# Colours

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # colour spaces of profiles, and the modes of their pixels
_NO_CACHE: Any = 0x0040  # ImageCms.Flags.NOCACHE, by which several threads may use a transform at once
_SAME = 3  # the many profiles of sRGB differ at most by this, of 255


def has_profile(image: Image.Image) -> bool:
    """Whether the colours of a picture follow a readable profile that is not sRGB's."""
    return _transform_of(image) is not None


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture in mode RGB, L or CMYK as RGB in sRGB, by the profile in its ``info``. Broken profiles are ignored."""
    transform = _transform_of(image)
    if transform is not None:
        return _applied(transform, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _transform_of(image: Image.Image) -> Any:
    """The transform of a picture's colours to sRGB; None if they are sRGB already, as far as is known."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE:
        return None
    space = _SPACES.get(profile[16:20])
    fits = space == image.mode or (space == "RGB" and image.mode == "L")  # its tone curves are also for grey
    return _transform(profile, space) if space and fits else None


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> Any:
    """The transform of a profile's colours to sRGB; None if the profile is broken or much like sRGB's."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB", flags=_NO_CACHE)
        if mode in ("RGB", "L"):
            levels = np.linspace(0, 255, 9).round().astype(np.uint8)
            colours = np.stack(np.meshgrid(levels, levels, levels), 3).reshape(9, 81, 3)
            probe = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
            change = np.asarray(_applied(transform, probe)).astype(int) - np.asarray(probe.convert("RGB"))
            return transform if np.abs(change).max() > _SAME else None
        return transform
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):  # ImportError: Pillow without LittleCMS
        return None


def _applied(transform: Any, image: Image.Image) -> Image.Image:
    fitting = image if image.mode == transform.input_mode else image.convert(transform.input_mode)
    rgb: Image.Image = transform.apply(fitting)
    rgb.info.pop("icc_profile", None)  # the result's own profile
    return rgb


def _from_lab(image: Image.Image) -> Image.Image:
    transform = _transform(b"", "LAB")
    if transform is None:
        raise ImageError("L*a*b* needs a Pillow with LittleCMS; save the picture as RGB")
    return _applied(transform, image)
