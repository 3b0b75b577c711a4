"""Reads what a picture's file holds besides pixels, and keeps it from the decoder.

Decoders refuse a healthy picture because of a broken comment, profile or EXIF entry beside it. So each container is
read first: ``read`` returns the parts that the decoder needs, and what alnumpy wants to know about the rest. The
decoder then sees ``Parts`` instead of the file.

Sources: ITU-T T.81 (JPEG), the PNG specification (third edition), TIFF 6.0 and EXIF 2.32, RFC 9649 (WebP).
"""

from __future__ import annotations

import bisect
import io
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from .errors import ImageError

MAX_SCANS = 30  # scans of a JPEG; each costs a pass over all pixels, and encoders write up to twenty
MAX_SEGMENTS = 100_000  # segments of a JPEG before its pixels; files of cameras have up to a few hundred
MAX_PAGES = 1_000  # pages of a TIFF
MAX_BOXES = 1_000  # outermost boxes of a HEIC; cameras write three
MAX_INFLATED = 1 << 20  # bytes inflated from a compressed text or profile; Pillow's own limit
END_OF_IMAGE = b"\xff\xd9"

Part = bytes | tuple[int, int]  # bytes as they are, or the offset and length of a range of the file


@dataclass
class Container:
    """What the container says about a picture, before anything is decoded."""

    parts: list[Part] | None = None  # what the decoder needs; None stands for the whole file
    size: tuple[int, int] | None = None  # width and height as stored, if the container says it
    orientation: int = 0  # as in EXIF, 1 to 8; 0 where neither EXIF nor XMP says it
    orientations: dict[int, int] = field(default_factory=dict)  # for a TIFF, by the offsets of its pages' directories
    whole: bool = True  # whether no frame or page behind the first is known to be missing or damaged
    info: dict[str, Any] = field(default_factory=dict)  # facts that the decoder does not report: a PNG's sBIT
    buffered: int = 0  # bytes that the decoder holds besides the pixels, such as a progressive JPEG's coefficients
    tails: tuple[bytes, ...] = ()  # for a JPEG without an end marker: see ``_jpeg``
    name: str = ""  # the kind of JPEG, if few decoders read it


class Parts(io.RawIOBase):
    """Parts of a file, and bytes in between, as one file to read."""

    def __init__(self, file: IO[bytes], parts: Sequence[Part]):
        self._file = file
        self._parts = [part for part in parts if (len(part) if isinstance(part, bytes) else part[1])]
        self._ends: list[int] = []
        for part in self._parts:
            length = len(part) if isinstance(part, bytes) else part[1]
            self._ends.append(length + (self._ends[-1] if self._ends else 0))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1] if self._ends else 0}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self._ends, self._at)
        if number == len(self._parts):
            return 0
        part, end = self._parts[number], self._ends[number]
        count = min(len(buffer), end - self._at)
        if isinstance(part, bytes):
            start = len(part) - (end - self._at)
            data = part[start : start + count]
        else:
            data = _at(self._file, part[0] + part[1] - (end - self._at), count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read(file: IO[bytes], format: str) -> Container:
    """The container of a picture in one of Pillow's formats; ``file`` begins with the picture.

    Raises ImageError for files that no decoder should be asked to read: scans without end, Apple's variant of PNG.
    """
    reader = READERS.get(format)
    return reader(file) if reader else Container()


def _at(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(min(offset, sys.maxsize))  # 32-bit Pythons refuse larger offsets
    return file.read(min(length, sys.maxsize))


def _length(file: IO[bytes]) -> int:
    return file.seek(0, io.SEEK_END)


# Orientation


def orientation_of(exif: bytes = b"", xmp: bytes = b"") -> int:
    """The orientation, 1 to 8, from EXIF, or else from XMP; 0 if neither has it."""
    while exif.startswith(b"Exif\0\0"):  # some phones write it twice
        exif = exif[6:]
    first = next(_directories(io.BytesIO(exif)), None)
    value = first.orientation() if first else 0
    if not 1 <= value <= 8:
        found = re.search(rb"""tiff:Orientation(?:=["']|>)\s*([1-8])\b""", xmp)
        value = int(found[1]) if found else 0
    return value


# JPEG

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # within a scan 00 is stuffing, D0 to D7 are restarts
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_LONG = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, *range(0xE0, 0xF0), 0xFE}  # segments with a length
_KEPT = {  # application segments that decoding depends on: marker and beginning
    0xE0: (b"JFIF\0",), 0xEE: (b"Adobe",), 0xE2: (b"ICC_PROFILE\0",),
}  # fmt: skip
_RARE = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic coding",
         0xCA: "arithmetic coding", 0xCB: "lossless, arithmetic coding", 0xF7: "JPEG-LS"}  # fmt: skip


def _find(file: IO[bytes], pattern: re.Pattern[bytes], at: int, step: int) -> tuple[int, int] | None:
    """The offset of the next marker from ``at`` on, and its second byte."""
    while block := _at(file, at, step):
        if found := pattern.search(block):
            return at + found.start(), found[0][1]
        at += max(1, len(block) - 1)  # the last byte may be a marker's first
        step = min(2 * step, 1 << 18)
    return None


def _jpeg(file: IO[bytes]) -> Container:
    """Tables, frame and scans of the first picture in the file, up to its end marker.

    Some cameras, and transfers that were cut off, leave out the end marker. Whether pixels are missing then shows only
    in decoding, since the decoder fills them in from whatever follows. So there are two ``tails`` to decode with: no
    pixel was missing if both give the same pixels.
    """
    picture = Container()
    parts: list[Part] = [b"\xff\xd8"]
    exif: list[bytes] = []
    xmp = b""
    picture.parts = parts
    components: dict[int, tuple[int, int]] = {}  # sampling factors by identifier
    frame, at = 0, 2
    for _ in range(MAX_SEGMENTS):
        found = _find(file, _MARKER, at, 64)
        if found is None:  # a header without a scan
            parts.append((at, max(0, _length(file) - at)))
            return picture
        at, marker = found
        if marker == 0xDA:
            break
        if marker not in _LONG:
            if marker == 0xF7:
                raise ImageError("a JPEG-LS picture, which is not supported; save it as JPEG or PNG")
            parts.append((at, 2))
            at += 2
            continue
        length = int.from_bytes(_at(file, at + 2, 2), "big")
        if marker in _FRAMES:
            content = _at(file, at + 4, length - 2) if length > 2 else b""
            if len(content) >= 6:
                frame = marker
                _check_precision(content[0], marker)
                height, width = struct.unpack(">HH", content[1:5])
                picture.size = width, height
                components = {
                    content[i]: (content[i + 1] >> 4, content[i + 1] & 15) for i in range(6, len(content) - 2, 3)
                }
        if marker < 0xE0:
            parts.append((at, 2 + length))
        else:
            start = _at(file, at + 4, max(0, min(length - 2, 29)))
            if start.startswith(_KEPT.get(marker, ())):
                parts.append((at, 2 + length))
            elif marker == 0xE1 and start.startswith(b"Exif\0\0"):
                block = _at(file, at + 4, length - 2)
                exif.append(block[6:] if exif else block)  # data longer than a segment continues in the next
            elif marker == 0xE1 and start == b"http://ns.adobe.com/xap/1.0/\0":
                xmp = _at(file, at + 33, length - 31)
        at += 2 + max(2, length)
    else:
        raise ImageError(f"a JPEG of more than {MAX_SEGMENTS} segments; save it again")
    picture.orientation = orientation_of(b"".join(exif), xmp)
    picture.name = _RARE.get(frame, "")
    _scans(file, at, picture, components, progressive=frame in (0xC2, 0xC6, 0xCA, 0xCE))
    return picture


def _check_precision(bits: int, marker: int) -> None:
    if bits != 8:
        kind = "lossless JPEG" if marker == 0xC3 else "JPEG"
        raise ImageError(f"a {kind} of {bits} bits per sample, but only 8 are supported; save it as PNG")


def _scans(
    file: IO[bytes], at: int, picture: Container, components: dict[int, tuple[int, int]], progressive: bool
) -> None:
    """Follows the scans from the first one at ``at`` to the end marker; adds them to the parts."""
    assert picture.parts is not None
    start, scans, ended = at, 0, False
    missing = {(component, k) for component in components for k in range(64)}  # coefficients not yet known to the bit
    while found := _find(file, _SCAN_MARKER, at, 1 << 18):
        at, marker = found
        if marker == 0xD9:
            ended = True
            at += 2
            break
        if marker not in _LONG:
            at += 2
            continue
        length = int.from_bytes(_at(file, at + 2, 2), "big")
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageError(f"a JPEG of more than {MAX_SCANS} scans, too many to decode; save it again")
            header = _at(file, at + 4, length - 2) if length > 5 else b""
            if len(header) >= 4 and len(header) == 4 + 2 * header[0]:
                first, last, bits = header[-3:] if progressive else (0, 63, 0)
                if bits & 15 == 0:
                    missing -= {(c, k) for c in header[1:-3:2] for k in range(first, last + 1)}
                if (progressive or header[0] < len(components)) and picture.size and not picture.buffered:
                    most = max(1, *(v * h for v, h in components.values()))
                    share = sum(v * h for v, h in components.values()) / most
                    picture.buffered = int(2 * share * picture.size[0] * picture.size[1])  # as 16-bit numbers
        at += 2 + max(2, length)
    if ended:
        picture.parts.append((start, at - start))
        return
    end = _length(file)
    while end > start and not (block := _at(file, max(start, end - 65536), min(65536, end - start))).strip(b"\0"):
        end -= len(block)
    tail = _at(file, max(start, end - 65536), min(65536, end - start))
    end -= len(tail) - len(tail.rstrip(b"\0"))
    picture.parts.append((start, end - start))
    if tail.rstrip(b"\0").endswith(b"\xff"):
        picture.parts.append(b"\0")  # completes a last byte that needs stuffing
    if not missing:
        picture.tails = END_OF_IMAGE, b"\x55\xaa\x33" * 64 + END_OF_IMAGE


# PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT"}
_PNG_CHECKED = {b"tRNS", b"iCCP", b"sBIT"}  # kept if their checksum is right
_PNG_FRAMES = {b"acTL", b"fcTL", b"fdAT"}  # chunks of an animation


def _png(file: IO[bytes]) -> Container:
    """Keeps the chunks that pixels are made from; searches the texts for the orientation."""
    picture = Container()
    parts: list[Part] = [_PNG]
    still: list[Part] = [_PNG]  # the same chunks without the animation
    animated = True  # stays true unless the animation is damaged
    frames = ended = False
    at, exif, raw, xmp = 8, b"", b"", b""
    size = _length(file)
    while len(head := _at(file, at, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        whole = at + 12 + length <= size
        if kind == b"CgBI":
            raise ImageError(
                "Apple's variant of PNG (CgBI), used in iPhone apps, which only Apple's programs read; "
                "save it again as an ordinary PNG there"
            )
        if kind == b"IEND":
            ended = True
            break
        if kind == b"IHDR" and picture.size is None:
            data = _at(file, at + 8, 8)
            picture.size = struct.unpack(">II", data) if len(data) == 8 else None
        if kind in _PNG_KEPT:
            _join(parts, (at, min(12 + length, size - at)))
            _join(still, (at, min(12 + length, size - at)))
        elif kind in _PNG_FRAMES:
            frames = True
            animated = animated and whole and (kind == b"fdAT" or _checked(file, at, length))
            _join(parts, (at, min(12 + length, size - at)))
        elif kind in _PNG_CHECKED:
            if whole and length <= 4 * MAX_INFLATED and _checked(file, at, length):
                data = _at(file, at + 8, length)
                if kind == b"sBIT":
                    picture.info["sBIT"] = data
                elif kind == b"tRNS" or _inflated(data.partition(b"\0")[2][1:]):
                    _join(parts, (at, 12 + length))
                    _join(still, (at, 12 + length))
        elif kind == b"eXIf":
            exif = exif or _at(file, at + 8, min(length, MAX_INFLATED))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _text(kind, _at(file, at + 8, min(length, 4 * MAX_INFLATED)))
            if keyword == b"XML:com.adobe.xmp":
                xmp = text
            elif keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
                raw = raw or _raw_profile(text)
        at += 12 + length
    picture.parts = parts if animated else still
    picture.whole = animated and (ended or not frames)
    if at <= size:  # otherwise the file ends within a chunk, which this one must not continue
        picture.parts.append(struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND")))
    picture.orientation = orientation_of(exif) or orientation_of(raw, xmp)
    return picture


def _join(parts: list[Part], part: tuple[int, int]) -> None:
    """Appends a range, or extends the last one if it follows that directly."""
    last = parts[-1]
    if isinstance(last, tuple) and sum(last) == part[0]:
        parts[-1] = last[0], last[1] + part[1]
    else:
        parts.append(part)


def _checked(file: IO[bytes], at: int, length: int) -> bool:
    """Whether the checksum of the chunk at ``at`` is right."""
    data = _at(file, at + 4, length + 8)
    return len(data) == length + 8 and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "big")


def _inflated(data: bytes) -> bytes:
    """Inflates zlib's data; empty if it is damaged or has more than MAX_INFLATED bytes."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, MAX_INFLATED)
    except zlib.error:
        return b""
    return text if inflate.eof else b""


def _text(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Keyword and text of a textual chunk."""
    keyword, _, text = data.partition(b"\0")
    if kind == b"zTXt":
        text = _inflated(text[1:])
    if kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
        text = _inflated(text) if packed else text
    return keyword, text


def _raw_profile(text: bytes) -> bytes:
    """The EXIF data that ImageMagick wrote as hexadecimal digits: a name, a length, then the digits."""
    try:
        return bytes.fromhex(text.split(maxsplit=2)[2].decode("ascii"))
    except (IndexError, ValueError):
        return b""


# WebP

_WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}


def _webp(file: IO[bytes]) -> Container:
    """The chunks that pixels are made from, under a RIFF header of their length."""
    picture = Container(parts=[])
    parts: list[Part] = []
    size = _length(file)
    at, exif, xmp, total = 12, b"", b"", 4
    if int.from_bytes(_at(file, 4, 4), "little") + 8 > size + 1:  # the padding byte at the end may be missing
        raise ImageError("the file is truncated: it ends within its last part")
    while len(head := _at(file, at, 8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        if kind in _WEBP_KEPT:
            part = at, min(8 + length + length % 2, size - at)
            if 8 + length > part[1]:
                raise ImageError("the file is truncated: it ends before its pixels do")
            if kind == b"VP8X" and length >= 10:
                content = bytearray(_at(file, *part))
                content[8] &= ~0b1100  # the flags that announce EXIF and XMP
                parts.append(bytes(content))
            else:
                parts.append(part)
            if part[1] < 8 + length + length % 2:
                parts.append(b"\0")  # the padding is missing
            total += 8 + length + length % 2
            picture.size = picture.size or _webp_size(kind, _at(file, at + 8, 10))
        elif kind == b"EXIF":
            exif = _at(file, at + 8, min(length, MAX_INFLATED))
        elif kind == b"XMP ":
            xmp = _at(file, at + 8, min(length, MAX_INFLATED))
        at += 8 + length + length % 2
    picture.parts = [b"RIFF" + struct.pack("<I", total) + b"WEBP", *parts]
    picture.orientation = orientation_of(exif, xmp)
    picture.buffered = 2 * total  # the decoder reads the whole file and copies it
    return picture


def _webp_size(kind: bytes, data: bytes) -> tuple[int, int] | None:
    """Width and height from the first chunk."""
    if len(data) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


# TIFF

_TIFF_KEPT = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322, 323, 324),
    *(325, 330, 332, 334, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532, 34675, 50674),
}  # the tags that decoding needs; it does not need XMP, EXIF, resolution, descriptions and the rest
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class _Entry(NamedTuple):
    raw: bytes
    tag: int
    type: int
    values: int  # their number
    field: bytes  # the value, or its offset


class _Directory(NamedTuple):
    offset: int
    length: int  # in bytes
    order: str
    big: bool  # BigTIFF
    entries: list[_Entry]
    following: int
    whole: bool  # whether all of it is in the file

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def pack(self, number: int, length: int) -> bytes:
        return number.to_bytes(length, "little" if self.order == "<" else "big")

    def orientation(self) -> int:
        """1 to 8; 0 if it is missing or has another value."""
        for entry in self.entries:
            if entry.tag == 274 and entry.type in (1, 3, 4) and entry.values == 1:
                value = self.number(entry.field[: _TIFF_SIZES[entry.type]])
                return value if 1 <= value <= 8 else 0
        return 0

    def reaches(self, size: int) -> bool:
        """Whether a file of that size holds the whole directory and all values that decoding needs."""
        kept = (entry for entry in self.entries if entry.tag in _TIFF_KEPT)
        return self.whole and all(self._lies_within(entry, size) for entry in kept)

    def below(self, file: IO[bytes]) -> list[int]:
        """Offsets of the directories below this one (SubIFDs)."""
        for entry in self.entries:
            length = _TIFF_SIZES.get(entry.type, 0)
            if entry.tag == 330 and length:
                size = length * min(entry.values, MAX_PAGES)
                data = entry.field if size <= len(entry.field) else _at(file, self.number(entry.field), size)
                return [self.number(data[i : i + length]) for i in range(0, min(size, len(data)), length)]
        return []

    def cleaned(self, size: int) -> bytes:
        """The directory without entries that decoding does not need or that point outside the file; never longer."""
        kept = b"".join(
            entry.raw for entry in self.entries if entry.tag in _TIFF_KEPT and self._lies_within(entry, size)
        )
        count, pointer = (8, 8) if self.big else (2, 4)
        number = len(kept) // len(self.entries[0].raw)
        return (self.pack(number, count) + kept + self.pack(self.following, pointer))[: self.length]

    def _lies_within(self, entry: _Entry, size: int) -> bool:
        """Whether the values of an entry are of a known type and lie within a file of that size."""
        length = _TIFF_SIZES.get(entry.type, size + 1) * entry.values
        return length <= len(entry.field) or self.number(entry.field) + length <= size


def _directories(file: IO[bytes]) -> Iterator[_Directory]:
    """The directories of a TIFF, one per page, each once."""
    head = _at(file, 0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return
    big = head[2:4] in (b"+\0", b"\0+")
    offset = (
        struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0] if len(head) >= 16 or not big else 0
    )
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_PAGES:
        seen.add(offset)
        directory = _directory_at(file, offset, order, big)
        yield directory
        offset = directory.following


def _all_directories(file: IO[bytes]) -> Iterator[_Directory]:
    """The directories of the pages, and the directories below the first page (SubIFDs)."""
    below: list[int] = []
    for number, directory in enumerate(_directories(file)):
        if number == 0:
            below = directory.below(file)
        yield directory
    for offset in below:
        yield _directory_at(file, offset, directory.order, directory.big)


def _directory_at(file: IO[bytes], offset: int, order: str, big: bool) -> _Directory:
    counted, each, pointer = (8, 20, 8) if big else (2, 12, 4)
    byteorder = "little" if order == "<" else "big"
    head = _at(file, offset, counted)
    count = min(int.from_bytes(head, byteorder), 65535)  # type: ignore[arg-type]
    data = _at(file, offset + counted, count * each + pointer)
    entries = []
    for i in range(0, min(count * each, len(data) - each + 1), each):
        raw = data[i : i + each]
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), raw)
        entries.append(_Entry(raw, tag, kind, number, raw[-pointer:]))
    following = int.from_bytes(data[count * each :], byteorder) if len(data) == count * each + pointer else 0  # type: ignore[arg-type]
    length = counted + len(entries) * each + (pointer if len(data) == count * each + pointer else 0)
    whole = bool(entries) and len(data) == count * each + pointer
    return _Directory(offset, length, order, big, entries, following, whole)


def _tiff(file: IO[bytes]) -> Container:
    """The whole file, with directories that lack the entries that decoding does not need."""
    picture = Container()
    size = _length(file)
    patches: dict[int, bytes] = {}
    for number, directory in enumerate(_all_directories(file)):
        picture.orientations[directory.offset] = directory.orientation()
        picture.whole = picture.whole and directory.reaches(size)
        if number == 0:
            texts = (entry for entry in directory.entries if entry.tag == 700 and entry.type in (1, 2, 7))
            xmp = next((_at(file, directory.number(e.field), min(e.values, MAX_INFLATED)) for e in texts), b"")
            picture.orientation = directory.orientation() or orientation_of(xmp=xmp)
        if directory.entries:
            patches[directory.offset] = directory.cleaned(size)
    parts: list[Part] = []
    at = 0
    for offset, patch in sorted(patches.items()):
        if offset >= at:
            parts += [(at, offset - at), patch]
            at = offset + len(patch)
    picture.parts = [*parts, (at, max(0, size - at))]
    return picture


# HEIC

_DESCRIBES = b"cdsc"  # the type of reference by which an item, such as EXIF, belongs to a picture


def _heif(file: IO[bytes]) -> Container:
    """The whole file, without the references that say which picture its metadata belongs to.

    The decoder turns the picture upright by itself. pi-heif 1.4 crashes if the type of an item is not text.
    """
    picture = Container()
    parts: list[Part] = []
    at, size = 0, _length(file)
    while len(head := _at(file, at, 16)) >= 8:
        length, kind = struct.unpack_from(">I4s", head)
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        length = size - at if length == 0 else min(max(8, length), size - at)
        parts.append((at, length) if kind == b"mdat" else _at(file, at, length).replace(_DESCRIBES, b"none"))
        at += length
        if len(parts) > MAX_BOXES:
            raise ImageError(f"a HEIC of more than {MAX_BOXES} parts; save it again")
    picture.parts = parts
    return picture


READERS: dict[str, Callable[[IO[bytes]], Container]] = {
    "JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff, "HEIF": _heif
}  # fmt: skip
