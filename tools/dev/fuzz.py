#!/usr/bin/env python3
"""Feed damaged and hostile files to alnumpy's readers, and report what no file should be able to make them do.

    python tools/dev/fuzz.py weights --inputs 50000 --seed 0

Targets: weights, prepacked (weights in the cache folder), checkpoint, image, heic, avif, profile (of colours), gallery,
serve (HTTP requests). An input is a good file with a few random changes, some of them made inside its structure: in the
pickle of an archive, in the rows of a database, in the headers of a request, with checksums put right. A target, a seed
and a number always give the same input. Files in tests/data/fuzz/TARGET are among the good files.

Reported, with the input saved: a crash, a hang, growth of memory, an exception other than the documented ones, a result
that is not finite. Exit code 1 if there was any. Runs on Linux, which tells a process its peak memory.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import json
import multiprocessing
import os
import random
import resource
import socket
import sqlite3
import struct
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from PIL import Image, ImageCms

import colours
from alnumpy import images, prepacked, weights
from alnumpy.checkpoint import CheckpointError, read_checkpoint
from alnumpy.embedder import Embedder
from alnumpy.errors import AlnumpyError, WeightsError
from alnumpy.gallery import Gallery
from alnumpy.images import Preprocessing
from alnumpy.layers import parameters
from alnumpy.lower import lower
from alnumpy.networks import ALNet, Block

HANG = 5.0  # seconds
GROWTH = 800_000_000  # bytes: a progressive JPEG of 200 megapixels takes 24 for each of 30 million pixels
CHUNK = 2000  # inputs for each worker process
SCRATCH = (
    "/dev/shm" if os.path.isdir("/dev/shm") else None
)  # in memory, since databases are synced to disk again and again
CORPUS = Path(__file__).parents[2] / "tests" / "data" / "fuzz"
INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]

Change = Callable[[random.Random, bytes], bytes]


class Target(NamedTuple):
    """A reader, the errors that it documents, good files for it, and a way to change them inside their structure."""

    seeds: Callable[[Path], None]  # writes files into a folder
    read: Callable[[Path], list[np.ndarray]]  # returns arrays, which must be finite
    errors: tuple[type[Exception], ...]
    inside: Callable[[random.Random, bytes, Change], bytes]
    tokens: tuple[bytes, ...]  # bytes that have a meaning in the format


class Outcome(NamedTuple):
    """The outcome of one input."""

    fault: str | None
    accepted: bool = False
    seconds: float = 0.0
    growth: int = 0  # bytes, since the worker began


def change(rng: random.Random, data: bytes, tokens: tuple[bytes, ...], other: bytes) -> bytes:
    """``data`` with one to sixteen random changes; ``other`` is a file to take pieces from."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(result) + 1), rng.choice((1, 2, 4, 8, 64, 512))
        digits = [i for i in range(at, min(at + 2000, len(result))) if 48 <= result[i] < 58]
        match rng.randrange(9):
            case 0 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                result[at : at + length] = rng.randbytes(length)
            case 2:
                size = rng.choice((1, 2, 4, 8))
                number = (rng.choice(INTEGERS) + rng.choice((-1, 0, 0, 1))) % 256**size
                result[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 3 if digits:  # a digit of a number in text
                result[rng.choice(digits)] = rng.choice(b"0123456789-e.")
            case 4:
                start = rng.randrange(len(other) or 1)
                piece = other[start : start + length]
                result[at : at + len(piece)] = piece
            case 5:
                start = rng.randrange(len(result) or 1)
                result[at:at] = result[start : start + length]
            case 6:
                del result[at : at + length]
            case 7 if rng.random() < 0.3:
                del result[at:]
            case _:
                token = rng.choice(tokens)
                result[at : at + rng.choice((0, len(token)))] = token
    return bytes(result)


# Weights

SPEC = ALNet("tiny", 4, True, (Block(2, 8, 2),), embedding=6, groups=2, cbam="max-mean-bias-bn", reduction=2)


def tiny_weights() -> weights.Weights:
    """A network of nine hundred random weights that sees pictures of 8 x 8 pixels."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in parameters(SPEC.layers()).items()}
    for name, array in arrays.items():
        if name.endswith("running_var"):
            array[:] = 1
    how = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    blank = np.ones((1, SPEC.embedding), np.float32)
    return weights.Weights(SPEC, how, arrays, weights.self_test_picture(8), blank, "alnumpy")


def weights_seeds(folder: Path) -> None:
    good = tiny_weights()
    weights.write(folder / "float32.h5", good)
    weights.write(folder / "float16.h5", dataclasses.replace(good, dtype="float16"))
    item = "parameters/stem.conv.bias"
    for name, make in {
        "soft": lambda file: file.__setitem__(item, h5py.SoftLink("/parameters/last.bn.bias")),
        "external": lambda file: file.__setitem__(item, h5py.ExternalLink("other.h5", "x")),
        "chunked": lambda file: file.create_dataset(item, data=np.ones(4, "<f4"), chunks=(2,), compression="gzip"),
        "storage": lambda file: file.create_dataset(item, shape=(4,), dtype="<f4", external=[("input.h5", 0, 16)]),
        "reference": lambda file: file.create_dataset(item, data=[file.ref] * 4, dtype=h5py.ref_dtype),
    }.items():
        weights.write(folder / f"{name}.h5", good)
        with h5py.File(folder / f"{name}.h5", "r+") as file:
            del file[item]
            make(file)
    with h5py.File(folder / "float32.h5") as old, h5py.File(folder / "latest.h5", "w", libver="latest") as new:
        new.attrs.update({name: old.attrs[name] for name in old.attrs if name != "checksum"})
        for name in old:
            old.copy(name, new)


def read_weights(path: Path) -> list[np.ndarray]:
    found = weights.read(path)
    return [*found.parameters.values(), found.self_test_input, found.self_test_embedding]


ORIGIN = ["fuzzed"]


def prepacked_seeds(folder: Path) -> None:
    good = tiny_weights()
    prepacked.write(folder / "tiny.packed", ORIGIN, good, lower(good.spec, good.parameters).weights)


def signed(rng: random.Random, data: bytes, change: Change) -> bytes:
    """Kept weights whose checksum is right after the change."""
    data = change(rng, data)
    magic, length, _ = prepacked.HEAD.unpack_from(data.ljust(prepacked.HEAD.size))
    body = data[prepacked.HEAD.size :]
    return prepacked.HEAD.pack(magic, length, zlib.crc32(body)) + body


def read_prepacked(path: Path) -> list[np.ndarray]:
    found = prepacked.read_kept(path, ORIGIN)
    if found is None:
        raise WeightsError("of no use")
    Embedder(found, backend="compiled").forward(np.ones((1, 3, 8, 8), np.float32))  # any values, but in its own memory
    return []


# Checkpoints


def checkpoint_seeds(folder: Path) -> None:
    """Writes safetensors; the archives, which only torch can write, are files in the corpus."""
    header = b'{"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],'
    header += b'"data_offsets":[24,32]},"__metadata__":{"format":"pt"}}'
    (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(32)))


def read_checkpoint_file(path: Path) -> list[np.ndarray]:
    for name, array in read_checkpoint(path).tensors.items():
        name.encode("utf-8", "surrogatepass")
        array.sum()  # reads all of it
    return []  # the converter refuses values that are not finite


def inside_archive(rng: random.Random, data: bytes, change: Change) -> bytes:
    """An archive with one entry changed, mostly its pickle; rarely compressed, or with an entry twice."""
    if not data.startswith(b"PK"):
        return change(rng, data)
    result = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w", method) as new:
        infos = old.infolist()
        pickles = [info for info in infos if info.filename.endswith("data.pkl")]
        chosen = rng.choice(pickles if rng.random() < 0.8 else infos)
        for info in infos:
            content = old.read(info)
            new.writestr(info, change(rng, content) if info is chosen else content, method)  # with the date it had
    return result.getvalue()


# Images


def image_seeds(folder: Path) -> None:
    y, x = np.mgrid[0:24, 0:40]
    rgb = Image.fromarray(np.stack([x * 6, y * 10, x ^ y], 2).astype(np.uint8))
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    palette = rgb.quantize(16)
    deep = Image.fromarray((x * 1600).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    late = {"save_all": True, "append_images": [rgb, rgb.rotate(90)]}  # the first frame is empty
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {"exif": exif}),
        "alpha.png": (alpha, {}),
        "grey-alpha.png": (alpha.convert("LA"), {}),
        "palette.png": (palette, {"transparency": 3}),
        "deep.png": (deep, {}),
        "bits.png": (rgb.convert("1"), {}),
        "rgb.jpg": (rgb, {"exif": exif}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "lossy.webp": (rgb, {"exif": exif}),
        "lossless.webp": (alpha, {"lossless": True}),
        "animated.webp": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "animated.gif": (palette, {"save_all": True, "append_images": [palette.rotate(180)], "transparency": 2}),
        "interlaced.gif": (palette, {"interlace": True}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (palette, {}),
        "raw.tiff": (rgb, {"exif": exif}),
        "deep.tiff": (deep, {}),
        "lzw.tiff": (rgb, {"compression": "tiff_lzw"}),
        "deflate.tiff": (alpha, {"compression": "tiff_deflate"}),
        "jpeg.tiff": (rgb, {"compression": "jpeg"}),
        "fax.tiff": (rgb.convert("1"), {"compression": "group4"}),
        "pages.tiff": (rgb.resize((10, 6)), {"save_all": True, "append_images": [rgb, rgb.rotate(180)]}),
        "lab.tiff": (Image.merge("LAB", rgb.split()), {}),
        **{f"late.{suffix}": (Image.new("RGB", rgb.size), late) for suffix in ("gif", "png", "webp")},
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    (folder / "deep-colour.png").write_bytes(deep_png((x * 100).astype(np.uint16), b"sBIT\x0c\x0c\x0c"))


def deep_png(values: np.ndarray, chunk: bytes) -> bytes:
    """A PNG of 16 bits whose three colours are the same values, with one chunk more."""
    lines = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    head = b"IHDR" + struct.pack(">IIBBBBB", *values.shape[::-1], 16, 2, 0, 0, 0)
    parts = (head, chunk, b"IDAT" + zlib.compress(lines), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


def heic_seeds(folder: Path) -> None:
    for path in (CORPUS.parent / "heic").glob("*.heic"):
        (folder / path.name).write_bytes(path.read_bytes())


def avif_seeds(folder: Path) -> None:
    y, x = np.mgrid[0:24, 0:40]
    rgb = Image.fromarray(np.stack([x * 6, y * 10, x ^ y], 2).astype(np.uint8))
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.avif", exif=exif, icc_profile=colours.rgb_profile("Display P3"))
    alpha.save(folder / "alpha.avif")
    rgb.convert("L").save(folder / "grey.avif", quality=100)
    Image.new("RGB", rgb.size).save(folder / "late.avif", save_all=True, append_images=[rgb, rgb.rotate(90)])
    (folder / "late.avif").write_bytes(_without_times((folder / "late.avif").read_bytes()))


def _without_times(data: bytes) -> bytes:
    """The file of a sequence without the times of its making, in its headers of movie, track and media."""
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.find(name)
        while at >= 0:
            start, size = at + 8, 16 if data[at + 4] else 8  # two times, of 8 bytes in version 1
            data = data[:start] + bytes(size) + data[start + size :]
            at = data.find(name, at + 1)
    return data


def profile_seeds(folder: Path) -> None:
    y, x = np.mgrid[0:24, 0:40]
    rgb = Image.fromarray(np.stack([x * 6, y * 10, x ^ y], 2).astype(np.uint8))
    for name in ("sRGB", "Adobe RGB", "ProPhoto"):  # in a TIFF profiles lie uncompressed
        rgb.save(folder / f"{name}.tiff", icc_profile=colours.rgb_profile(name))
    rgb.save(folder / "p3.jpg", icc_profile=colours.rgb_profile("Display P3"))
    rgb.convert("L").save(folder / "grey.tiff", icc_profile=colours.grey_profile(1.8))
    rgb.convert("CMYK").save(folder / "inks.tiff", icc_profile=colours.ink_profile())
    rgb.convert("CMYK").save(folder / "inks.jpg", icc_profile=colours.ink_profile())
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    standard = standard[:24] + bytes(12) + standard[36:]  # without the time at which it was made
    rgb.save(folder / "standard.jpg", icc_profile=standard)


def inside_profile(rng: random.Random, data: bytes, change: Change) -> bytes:
    """A picture of which only the colour profile has changed, at the same length."""
    at = data.find(b"acsp") - 36
    if at < 0:
        return change(rng, data)
    length = int.from_bytes(data[at : at + 4], "big")
    profile = change(rng, data[at : at + length])[:length].ljust(length, b"\0")
    return data[:at] + profile + data[at + length :]


def read_image(path: Path) -> list[np.ndarray]:
    how = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return [images.load(path, how, draft=draft)[0] for draft in (0, 16)]


def inside_png(rng: random.Random, data: bytes, change: Change) -> bytes:
    """A PNG whose chunks have the right checksums after the change; other formats have none."""
    data = change(rng, data)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    result, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + struct.unpack_from(">I", data, at)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", result, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(result)


# Galleries


def tiny_embedder() -> Embedder:
    return Embedder(tiny_weights(), backend="numpy", threads=1)


def gallery_seeds(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name:
        for i in range(12):
            pixels = np.random.default_rng(i % 10).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(name, f"{i}.png"))
        Path(name, "broken.png").touch()
        for dtype in ("float32", "float16", "int8"):
            with Gallery(folder / f"{dtype}.db", tiny_embedder(), "a", dtype=dtype) as gallery:
                gallery.index(name)
        with Gallery(folder / "float32.db") as gallery:
            gallery.reduce(folder / "reduced.db", 3)
        for lock in folder.glob("*-lock"):
            lock.unlink()
        for path in folder.iterdir():
            with closing(sqlite3.connect(path, isolation_level=None)) as db:  # the same each time
                db.execute(
                    "UPDATE pictures SET path = CAST(replace(CAST(path AS TEXT), ?, '/pictures') AS BLOB), "
                    "mtime_ns = size, ctime_ns = size, added = '2026-01-01T00:00:00+00:00'",
                    [name],
                )
                db.execute("DELETE FROM disks")
                db.execute("DELETE FROM meta WHERE key = 'folders'")
                db.execute("VACUUM")


def read_gallery(path: Path) -> list[np.ndarray]:
    with Gallery(path) as gallery:
        found: list[list[Any]] = [*gallery.search(np.ones((2, gallery.dimension)), 3), *gallery.groups(1.0)]
        list(gallery)
        gallery.stats()
    with Gallery(path, tiny_embedder(), "a") as gallery:
        found += gallery.search(np.zeros((9, 9, 3), np.uint8))
        gallery.remove("/pictures/0.png")
        gallery.update(prune=True)
    return [np.array([match.distance for match in matches]) for matches in found]


def inside_database(rng: random.Random, data: bytes, change: Change) -> bytes:
    """A database with one value of one row replaced by something odd."""
    odd = (None, -1, 2**63 - 1, 1e308, "text", "", b"", b"\xff" * 96, b"\0" * 7)
    table = rng.choice(("meta", "contents", "pictures", "whitening"))
    with tempfile.NamedTemporaryFile(dir=SCRATCH) as file:
        file.write(data)
        file.flush()
        with closing(sqlite3.connect(file.name, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = OFF")
            rows = db.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in rows.description]
            found = rows.fetchall()
            if not found:
                return change(rng, data)
            row, column = rng.choice(found), rng.randrange(len(columns))
            value = old = row[column]
            if isinstance(old, bytes) and rng.random() < 0.6:
                value = change(rng, old)
            elif isinstance(old, str) and rng.random() < 0.6:
                value = change(rng, old.encode()).decode("latin-1")
            else:
                value = rng.choice(odd)
            with suppress(sqlite3.IntegrityError):
                db.execute(f"UPDATE {table} SET {columns[column]} = ? WHERE {columns[0]} = ?", [value, row[0]])
        return Path(file.name).read_bytes()


# Requests to alnumpy serve

SECRET = b"a line of a file that no request may show"
STATUSES = {200, 206, 303, 304, 400, 401, 403, 404, 405, 411, 413, 415, 421, 422, 431, 501, 503}


class Refused(Exception):
    """A request was refused with a status and a reason."""


def request(method: str, address: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {address} HTTP/1.1", "Host: localhost:8000", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def serve_seeds(folder: Path) -> None:
    """Good requests of every kind, with a small picture where one is sent."""
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(picture, "PNG")
    in_base64 = b'{"picture": "' + base64.b64encode(picture.getvalue()) + b'"}'
    origin = "Origin: http://localhost:8000"
    requests = [
        *(request("GET", address) for address in ("/", "/page.js", "/stats", "/state", "/folders", "/pictures?skip=3")),
        request(
            "GET", "/search?like=%ID&k=3&in=/pictures&since=2024-05&until=2025&max-distance=9&skip-same=1&not=%OTHER"
        ),
        request("GET", "/search?like=%ID&region=1,2,5,5", b"", origin, "Cookie: alnumpy=0123456789-0123456789"),
        request("GET", "/thumbnails/%ID", b"", "If-None-Match: x", "Range: bytes=0-9"),
        request("GET", "/pictures/%OTHER", b"", "Authorization: Bearer 0123456789-0123456789"),
        request("GET", "/duplicates?like=exact&skip=0&anew=0"),
        request("GET", "/duplicates?threshold=0.5", b"", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"),
        request("POST", "/search?k=2", picture.getvalue(), "Content-Type: image/png", origin),
        request("POST", "/search?region=2,2,5,5", in_base64, "Content-Type: application/json"),
        request("POST", "/embed", picture.getvalue(), "Content-Type: application/x-www-form-urlencoded"),
        request("POST", "/embed", picture.getvalue(), "Expect: 100-continue"),
        request("POST", "/embed", b"", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        request("HEAD", "/") + request("GET", "/state"),
    ]
    for number, data in enumerate(requests):
        (folder / f"{number:02}.http").write_bytes(data)


@cache
def serving(folder: Path) -> Any:
    """A server in a thread of this process, with a gallery of a few pictures beside a file that must never be shown."""
    from alnumpy.serve import app, catalog, server, thumbnails, walls

    (folder / "pictures").mkdir(parents=True)
    (folder / "secret.txt").write_bytes(SECRET)
    for i in range(12):
        pixels = np.random.default_rng(i % 10).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    with Gallery(folder / "gallery.db", tiny_embedder(), "a") as gallery:
        gallery.index(folder / "pictures")
    gallery = Gallery(folder / "gallery.db", tiny_embedder())
    cache = thumbnails.Cache(folder / "thumbnails.db", 1_000_000)
    faults: list[object] = []
    wall = walls.Walls("127.0.0.1", "0123456789-0123456789")
    pictures = catalog.Catalog(gallery.path)
    service = app.Service(gallery, pictures, thumbnails.Thumbnails(cache, 30_000_000), wall, None, faults.append)
    server.quiet(faults.append)
    listening = server.Server(app.create_app(service), wall, 0)
    threading.Thread(target=listening.run, daemon=True).start()
    ids = [picture.id.encode() for picture in pictures.newest((), "", "", 12)]
    return int(listening.effective_port), faults, ids


def read_request(path: Path) -> list[np.ndarray]:
    """Sends a request and checks the whole answer. Raises Refused if the request is refused properly."""
    port, faults, ids = serving(path.parent / "serving")
    data = path.read_bytes().replace(b"%ID", ids[0]).replace(b"%OTHER", ids[1])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=2 * HANG) as connection:
        with suppress(ConnectionError):  # the server may have closed the connection
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                answer += part
    if faults:
        raise AssertionError(f"told: {faults.pop()!r}")
    if SECRET in answer:
        raise AssertionError("a file was shown")
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        raise Refused("nothing, or not all, was asked")
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status not in STATUSES:
        raise AssertionError(f"status {status}")
    if b"nosniff" not in head or b"default-src 'none'" not in head:
        raise AssertionError(f"without its headers: {head!r}")
    if status >= 400:
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        if body and not body.startswith(b"HTTP/1."):  # this answers another request, after a HEAD request
            json.loads(body[:length])
        raise Refused(status)
    return []


TARGETS = {
    "serve": Target(
        serve_seeds,
        read_request,
        (Refused,),
        lambda rng, data, change: b"".join(
            part if rng.random() < 0.5 else change(rng, part) for part in data.partition(b"\r\n\r\n")
        ),
        (
            *(
                b"Host: evil.example\r\n",
                b"Host: [::1]\r\n",
                b"Origin: null\r\n",
                b"Content-Length: 9\r\n",
                b"\r\n\r\n",
            ),
            *(
                b"Transfer-Encoding: chunked\r\n",
                b"Content-Type: multipart/form-data; boundary=x\r\n",
                b"HTTP/1.0",
                b"\n",
            ),
            *(
                b"/../secret.txt",
                b"%2e%2e%2f",
                b"%00",
                b"%ff",
                b"//",
                b"?",
                b"&",
                b"like=%ID",
                b"region=0,0,1,1",
                b"k=500",
            ),
            *(
                b"in=/",
                b"since=2024-13",
                b"max-distance=1e999",
                b"not=%OTHER",
                b"token=0123456789-0123456789",
                b"\xd9\xa1",
            ),
            *(
                b"PUT",
                b"OPTIONS",
                b"CONNECT",
                b"DELETE",
                b"GET http://evil.example/ HTTP/1.1\r\n",
                b"[" * 4000,
                b"A" * 40_000,
            ),
        ),
    ),
    "weights": Target(
        weights_seeds,
        read_weights,
        (AlnumpyError,),
        lambda rng, data, change: change(rng, data),
        (
            b"\x89HDF\r\n\x1a\n",
            b"TREE",
            b"SNOD",
            b"HEAP",
            b"OHDR",
            b"\xff" * 8,
            bytes(8),
            b'"stem": 9',
            b"null",
            b"1e999",
        ),
    ),
    "prepacked": Target(
        prepacked_seeds,
        read_prepacked,
        (WeightsError,),
        signed,
        (*(b'"stem": 9', b"null", b"1e999", b"[[", b'"cbam": ""', b"true", b'"'), b"\xff" * 8, bytes(64)),
    ),
    "checkpoint": Target(
        checkpoint_seeds,
        read_checkpoint_file,
        (CheckpointError,),
        inside_archive,
        (
            *(bytes([code]) for code in b"().012FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x85\x8a\x92\x93\x94\x95"),
            *(b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n", b"c__torch__\nM\n"),
            *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b'"shape":[-1]', b'"F64"', b"1" * 4000),
        ),
    ),
    "image": Target(
        image_seeds,
        read_image,
        (AlnumpyError,),
        inside_png,
        (
            *(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fdAT", b"zTXt", b"iCCP"),
            *(b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xe1", b"Exif\0\0", b"II*\0", b"MM\0*"),
            *(b"VP8X", b"ANMF", b"ALPH", b"GIF89a", b"\x21\xf9", b"\x2c"),
            *(b"EXIF", b"XMP ", b"ICCP", b"sBIT", b"iTXt", b"CgBI", b"fcTL", b"\xff\xd9", b"\xff\xc2", b"\xff\xc3"),
            *(
                b"XML:com.adobe.xmp",
                b"http://ns.adobe.com/xap/1.0/\0",
                b'tiff:Orientation="6"',
                b"\x12\x01\x03\0\1\0\0\0",
            ),
        ),
    ),
    "heic": Target(
        heic_seeds,
        read_image,
        (AlnumpyError,),
        lambda rng, data, change: change(rng, data),
        (
            *(
                b"ftyp",
                b"meta",
                b"hdlr",
                b"pitm",
                b"iloc",
                b"iinf",
                b"infe",
                b"iref",
                b"iprp",
                b"ipco",
                b"ipma",
                b"ispe",
            ),
            *(
                b"hvcC",
                b"pixi",
                b"colr",
                b"irot",
                b"imir",
                b"clap",
                b"auxC",
                b"grid",
                b"idat",
                b"mdat",
                b"thmb",
                b"dimg",
            ),
            *(b"\0\0\0\1", b"\xff" * 4, b"heic", b"mif1", b"hvc1", b"Exif", b"prof", b"nclx"),
        ),
    ),
    "avif": Target(
        avif_seeds,
        read_image,
        (AlnumpyError,),
        lambda rng, data, change: change(rng, data),
        (
            *(
                b"ftyp",
                b"meta",
                b"pitm",
                b"iloc",
                b"iinf",
                b"infe",
                b"iref",
                b"iprp",
                b"ipco",
                b"ipma",
                b"ispe",
                b"av1C",
            ),
            *(
                b"pixi",
                b"colr",
                b"irot",
                b"imir",
                b"clap",
                b"auxC",
                b"mdat",
                b"moov",
                b"trak",
                b"stbl",
                b"stts",
                b"stsz",
            ),
            *(b"\x12\0", b"\x0a\x0b", b"\xff" * 4, b"avif", b"avis", b"Exif", b"prof", b"nclx"),
        ),
    ),
    "profile": Target(
        profile_seeds,
        read_image,
        (AlnumpyError,),
        inside_profile,
        (
            *(
                b"acsp",
                b"RGB ",
                b"GRAY",
                b"CMYK",
                b"Lab ",
                b"XYZ ",
                b"mntr",
                b"prtr",
                b"link",
                b"abst",
                b"nmcl",
                b"curv",
            ),
            *(
                b"para",
                b"mft1",
                b"mft2",
                b"mAB ",
                b"mBA ",
                b"mpet",
                b"A2B0",
                b"B2A0",
                b"rTRC",
                b"kTRC",
                b"rXYZ",
                b"wtpt",
            ),
            *(b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"chad", b"D2B0"),
        ),
    ),
    "gallery": Target(
        gallery_seeds,
        read_gallery,
        (AlnumpyError,),
        inside_database,
        (
            *(b"SQLite format 3\0", b"\x0d", b"\x05", b"\x0a", b"\x02", b"\x81\x80\0", b"\xff" * 9),
            *(b"CREATE TRIGGER", b"float32", b"int8", b"null", b"1e999", b"[" * 4000),
        ),
    ),
}


# Running


def good_files(target: Target, name: str) -> list[tuple[str, bytes]]:
    """The corpus, as suffix and content: files made by code, then files in the repository."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        target.seeds(Path(folder))
        paths = sorted(Path(folder).iterdir()) + sorted((CORPUS / name).glob("*"))
        return [(path.suffix, path.read_bytes()) for path in paths]


def make(target: Target, corpus: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """Input ``number`` of ``seed``: suffix and content."""
    rng = random.Random(f"{seed} {number}")
    (suffix, data), (_, other) = rng.choice(corpus), rng.choice(corpus)

    def changed(rng: random.Random, data: bytes) -> bytes:
        return change(rng, data, target.tokens, other)

    return suffix, target.inside(rng, data, changed) if rng.random() < 0.5 else changed(rng, data)


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM at its peak, VmSize of addresses."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def judge(target: Target, path: Path) -> tuple[str | None, bool]:
    """Reads one input: its fault, if it has one, and whether it was accepted."""
    try:
        arrays = target.read(path)
    except Exception as error:
        return None if isinstance(error, target.errors) else f"{type(error).__name__}: {error}", False
    finite = all(np.isfinite(array).all() for array in arrays)
    return None if finite else "a result that is not finite", True


def work(
    target: Target, corpus: list[tuple[str, bytes]], seed: int, numbers: range, folder: str, pipe: Connection
) -> None:
    """A worker process: sends an Outcome for each input."""
    os.dup2(os.memfd_create("stderr"), 2)  # C libraries would write there
    warnings.simplefilter("ignore")
    path = Path(folder, "input" + corpus[0][0])
    path.write_bytes(corpus[0][1])
    with suppress(*target.errors):
        target.read(path)  # imports what it needs
    base = memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 8 * GROWTH,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        for left in Path(folder).glob("input*"):
            left.unlink()
        suffix, data = make(target, corpus, seed, number)
        path = Path(folder, "input" + suffix)
        path.write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        start = time.monotonic()
        fault, accepted = judge(target, path)
        seconds = time.monotonic() - start
        if written := os.lseek(2, 0, os.SEEK_END):
            fault = fault or f"wrote to stderr: {os.pread(2, min(written, 200), 0)!r}"
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)
        growth = memory("VmHWM") - base
        if growth > GROWTH:
            fault = fault or f"memory grew by {growth} bytes"
        pipe.send(Outcome(fault, accepted and not fault, seconds, growth))


def outcomes(target: Target, corpus: list[tuple[str, bytes]], seed: int, numbers: range) -> Iterator[Outcome]:
    """The outcome of each input; a worker that crashes or hangs is replaced."""
    context = multiprocessing.get_context("fork")
    done = numbers.start
    while done < numbers.stop:
        with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
            ours, theirs = context.Pipe(duplex=False)
            todo = range(done, min(done + CHUNK, numbers.stop))
            worker = context.Process(target=work, args=(target, corpus, seed, todo, folder, theirs))
            worker.start()
            theirs.close()
            outcome = None
            while done < todo.stop and (outcome is None or outcome.fault is None):
                if not ours.poll(HANG + (outcome is None)):  # the first one includes the start
                    outcome = Outcome(f"no answer within {HANG:g} seconds")
                else:
                    try:
                        outcome = ours.recv()
                    except EOFError:
                        worker.join()
                        outcome = Outcome(f"the process ended with code {worker.exitcode}")
                done += 1
                yield outcome
            worker.kill()
            worker.join()
            ours.close()


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 nothing found, 1 something found, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=1000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random changes (default: %(default)s)")
    parser.add_argument(
        "--save", type=Path, default=Path("runs/fuzz"), help="folder for findings (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    target = TARGETS[args.target]
    corpus = good_files(target, args.target)
    start = time.monotonic()
    accepted = found = growth = 0
    longest = 0.0
    for number, outcome in enumerate(outcomes(target, corpus, args.seed, range(args.inputs))):
        accepted += outcome.accepted
        growth, longest = max(growth, outcome.growth), max(longest, outcome.seconds)
        if outcome.fault is not None:
            found += 1
            suffix, data = make(target, corpus, args.seed, number)
            args.save.mkdir(parents=True, exist_ok=True)
            path = args.save / f"{args.target}-{args.seed}-{number}{suffix}"
            path.write_bytes(data)
            print(f"{path}: {outcome.fault}", flush=True)
    seconds = time.monotonic() - start
    print(
        f"{args.target}: {args.inputs} inputs of seed {args.seed}, {accepted} accepted, {found} findings; "
        f"{args.inputs / seconds:.0f} inputs/s, longest {longest:.2f} s, memory grew by at most {growth / 1e6:.0f} MB"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
