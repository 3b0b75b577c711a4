"""Training and test data in their published formats, as uint8 NumPy arrays."""

from __future__ import annotations

import gzip
import io
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from alnumpy import images
from alnumpy.errors import ImageError

MNIST_FILES = {"train": "train", "test": "t10k"}
MAX_BYTES = 4 * images.MAX_PIXELS  # of one file in a zip: the largest picture that is read, not compressed at all
NAMED = 5  # of many bad pictures, how many an error names

Reader = Callable[[], bytes]


def _read_idx(folder: Path, name: str, ndim: int) -> np.ndarray:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            break
    else:
        raise FileNotFoundError(f"{folder}: neither {name} nor {name}.gz is there; the four MNIST idx files are needed")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">u4", ndim, 4) if len(data) >= 4 + 4 * ndim else ()
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) != 4 + 4 * ndim + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path}: not an idx file of {ndim}-dimensional bytes, or cut short")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape([int(side) for side in shape])


def mnist(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """MNIST from its four idx files, gzipped or not: images (N, 28, 28) and labels (N,), both uint8.

    ``split`` is "train" or "test". Raises FileNotFoundError for a missing file, ValueError for a damaged one.
    """
    prefix = MNIST_FILES[split]
    images = _read_idx(Path(folder), f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(Path(folder), f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    return images, labels


def files(source: str | Path) -> dict[str, Reader]:
    """The files in a folder or a zip: path within it, with "/", to a function that reads its bytes.

    Nothing is extracted; symbolic links to folders are not followed. Raises FileNotFoundError, or ValueError for what
    is neither a folder nor a zip; the readers raise OSError or ValueError.
    """
    root = Path(source)
    if root.is_dir():
        paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
        return {path.relative_to(root).as_posix(): path.read_bytes for path in paths if path.is_file()}
    try:
        archive = zipfile.ZipFile(root)  # stays open as long as its readers are in use
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source}: neither a folder nor a zip ({error})") from None

    def reader(member: zipfile.ZipInfo) -> Reader:
        def read() -> bytes:
            if member.file_size > MAX_BYTES:  # zipfile reads no more than this size, whatever the data would give
                raise ValueError(f"{member.file_size} bytes, more than the limit of {MAX_BYTES}")
            try:
                return archive.read(member)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise ValueError(f"damaged or encrypted in the zip ({error})") from None

        return read

    return {member.filename: reader(member) for member in archive.infolist() if not member.is_dir()}


def natural(name: str) -> tuple[str, str]:
    """A key that sorts numbers in names by their value: a2 before a10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name), name


def decode(data: bytes, size: int) -> np.ndarray:
    """The centre square of a picture file's bytes, scaled as on the device: uint8 RGB (size, size, 3).

    Raises ImageError, OSError or ValueError.
    """
    with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
        if image.width * image.height > images.MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} pixels, more than the limit of {images.MAX_PIXELS}")
        rgb = images.read(image)
    side = min(rgb.size)
    left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side)))


def load_pictures(found: dict[str, Reader], names: Sequence[str], size: int, threads: int = 0) -> np.ndarray:
    """Named ones of ``files``, decoded by ``threads`` threads (0: one for each CPU): uint8 (N, size, size, 3).

    Raises ValueError, which names them, where pictures cannot be read.
    """
    pixels = np.empty((len(names), size, size, 3), np.uint8)

    def load(i: int) -> str | None:
        try:
            pixels[i] = decode(found[names[i]](), size)
        except Exception as error:  # decoders meet damaged files with almost any exception
            return f"{names[i]}: {error}"
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        done = tqdm(pool.map(load, range(len(names))), "decoding", len(names), unit=" pictures", disable=None)
        failed = [fault for fault in done if fault]
    if failed:
        more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise ValueError(f"{len(failed)} of {len(names)} pictures cannot be read: {'; '.join(failed[:NAMED])}{more}")
    return pixels


def load_class_folders(
    source: str | Path, split: str, size: int, threads: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures in class folders below the folder ``split`` of a folder or a zip ("" for the top).

    Returns images uint8 RGB (N, size, size, 3), labels int64 (N,) and the sorted class names, which the labels index. A
    class is the path of its folder below the split's, as "object/cat" where folders are nested. Pictures are ordered by
    class and then by name, numbers in names by value. The short side becomes ``size`` pixels, the centre is cropped.

    Raises FileNotFoundError, or ValueError where there is no picture, one is in no class folder, or one is unreadable.
    """
    found = files(source)
    below = f"{split}/" if split else ""
    classes = {
        name: str(PurePosixPath(name[len(below) :]).parent)
        for name in found
        if name.startswith(below) and name.lower().endswith(images.SUFFIXES)
    }
    if not classes:
        tops = sorted({name.split("/")[0] for name in found if "/" in name})[:20]
        raise ValueError(f"{source}: no pictures below {split or 'it'}; its folders: {', '.join(tops) or 'none'}")
    if "." in classes.values():
        name = min(name for name, folder in classes.items() if folder == ".")
        raise ValueError(f"{source}: {name} is in no class folder")
    class_names = sorted(set(classes.values()))
    index = {name: i for i, name in enumerate(class_names)}
    names = sorted(classes, key=lambda name: (index[classes[name]], natural(name)))
    labels = np.array([index[classes[name]] for name in names], np.int64)
    try:
        return load_pictures(found, names, size, threads), labels, class_names
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
