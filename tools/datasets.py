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
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from alnumpy import images
from alnumpy.errors import AlnumpyError, ImageError
from alnumpy.evaluation import LandmarkQuery, parse_ground_truth

MNIST_FILES = {"train": "train", "test": "t10k"}
SUN397_LISTS = {"train": "Training", "test": "Testing"}
MAX_BYTES = 4 * images.MAX_PIXELS  # bytes of one file in a zip: the largest picture that is read, not compressed
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "validation"}
NAMED = 5  # most bad pictures that an error names

Reader = Callable[[], bytes]
Box = tuple[float, float, float, float]


class LeftOut(UserWarning):
    """Pictures that cannot be read are left out."""


class Landmarks(NamedTuple):
    """Oxford5k or Paris6k: the database, and the queries, which are boxes in some of its pictures."""

    names: list[str]  # names of the readable pictures, without folder and suffix
    images: np.ndarray  # uint8 RGB (N, size, size, 3)
    queries: list[LandmarkQuery]
    query_images: np.ndarray  # uint8 RGB (Q, size, size, 3): the boxes
    unreadable: dict[str, str]  # the other pictures, and the reasons


def _read_idx(folder: Path, name: str, ndim: int) -> np.ndarray:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            break
    else:
        raise FileNotFoundError(f"{folder}: neither {name} nor {name}.gz is there; the four MNIST idx files are needed")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged, or cut short ({error})") from None
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
    if labels.max(initial=0) > 9:
        raise ValueError(f"{folder}: {split} labels up to {labels.max()}, but digits end at 9")
    return images, labels


def files(source: str | Path) -> dict[str, Reader]:
    """The files in a folder or a zip: path within it, with "/", to a function that reads its bytes.

    If train/ and everything else lies in one folder, paths begin below that. The files that macOS adds are left out.
    Nothing is extracted; symbolic links to folders are not followed. Raises OSError for a folder that cannot be listed,
    or ValueError for a path that is neither a folder nor a zip; the readers raise OSError or ValueError.
    """
    found = {
        name.removeprefix("./").lstrip("/"): read
        for name, read in _all_files(Path(source)).items()
        if not images.is_companion(name)  # in a zip they lie below __MACOSX/
    }
    tops = {name.split("/")[0] for name in found}
    if len(tops) == 1 and any(name.split("/")[1] == "train" for name in found if "/" in name):
        found = {name.split("/", 1)[1]: read for name, read in found.items()}
    return found


def _all_files(root: Path) -> dict[str, Reader]:
    def fail(error: OSError) -> None:
        raise error

    if root.is_dir():
        paths = [Path(folder, name) for folder, _, names in os.walk(root, onerror=fail) for name in names]
        return {path.relative_to(root).as_posix(): partial(_read_file, path) for path in paths}
    try:
        archive = zipfile.ZipFile(root)  # stays open as long as its readers are in use
    except zipfile.BadZipFile as error:
        raise ValueError(f"{root}: neither a folder nor a zip ({error})") from None

    def reader(member: zipfile.ZipInfo) -> Reader:
        def read() -> bytes:
            if member.file_size > MAX_BYTES:  # zipfile never reads more than this size
                raise ValueError(f"{member.file_size} bytes, more than the limit of {MAX_BYTES}")
            try:
                return archive.read(member)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise ValueError(f"damaged or encrypted in the zip ({error})") from None

        return read

    return {member.filename: reader(member) for member in archive.infolist() if not member.is_dir()}


def _read_file(path: Path) -> bytes:
    if not path.is_file():  # opening a FIFO would wait for ever
        raise OSError("not a regular file")
    return path.read_bytes()


def natural(name: str) -> tuple[str, str]:
    """A key that sorts numbers in names by their value: a2 before a10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name), name


def decode(data: bytes, size: int, box: Box | None = None) -> np.ndarray:
    """The centre square of a picture file's bytes, scaled as on the device: uint8 RGB (size, size, 3).

    ``box``: the part of the picture to take (left, top, right, bottom), in pixels. Raises ImageError, OSError or
    ValueError.
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=images.FORMATS)
    except UnidentifiedImageError:  # its message has an address in memory
        raise ImageError(f"not a picture that can be read ({', '.join(images.FORMATS)})") from None
    with opened as image:
        if image.width * image.height > images.MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} pixels, more than the limit of {images.MAX_PIXELS}")
        rgb = images.read(image)
    left, top, right, bottom = within(box, rgb) if box else (0, 0, *rgb.size)
    side = min(right - left, bottom - top)
    left, top = (left + right - side) / 2, (top + bottom - side) / 2
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side)))


def within(box: Box, image: Image.Image) -> Box:
    """The part of a box that lies within a picture."""
    left, top, right, bottom = box
    return max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)


def load_pictures(
    found: dict[str, Reader],
    names: Sequence[str],
    size: int,
    threads: int = 0,
    boxes: Sequence[Box] | None = None,
) -> tuple[np.ndarray, dict[str, str]]:
    """The named pictures of ``files``, or boxes of them, decoded by ``threads`` threads (0: one for each CPU).

    Returns uint8 (N, size, size, 3), with black for unreadable pictures, and the reasons for these.
    """
    pixels = np.zeros((len(names), size, size, 3), np.uint8)
    failed: dict[str, str] = {}

    def load(i: int) -> None:
        try:
            pixels[i] = decode(found[names[i]](), size, boxes[i] if boxes else None)
        except Exception as error:  # decoders meet damaged files with almost any exception
            failed[names[i]] = str(error)

    with warnings.catch_warnings(), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's warnings about damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for _ in tqdm(pool.map(load, range(len(names))), "decoding", len(names), unit=" pictures", disable=None):
            pass
    return pixels, failed


def load_readable(
    source: str | Path, found: dict[str, Reader], names: Sequence[str], size: int, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``load_pictures`` without those that cannot be read: a warning names them.

    Returns the pictures and the indices of their names. Raises ValueError if no picture can be read.
    """
    pixels, failed = load_pictures(found, names, size, threads)
    good = np.array([i for i, name in enumerate(names) if name not in failed], np.int64)
    first = "; ".join(f"{name}: {failed[name]}" for name in sorted(failed, key=natural)[:NAMED])
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    if failed and not len(good):
        raise ValueError(f"{source}: no picture can be read: {first}{more}")
    if failed:
        counted = f"{len(failed)} of {len(names)} pictures cannot be read and are left out"
        warnings.warn(f"{source}: {counted}: {first}{more}", LeftOut, stacklevel=3)
        pixels = pixels[good]
    return pixels, good


def class_folders(source: str | Path, split: str) -> tuple[dict[str, Reader], np.ndarray, list[str]]:
    """Pictures in class folders below the folder ``split`` of a folder or a zip ("" for the top).

    Returns their readers by name, labels int64 (N,) and the sorted class names, which the labels index. A class is the
    path of its folder below the split's, for example "object/cat" if folders are nested. Pictures are ordered by class
    and then by name, numbers in names by value.

    Raises FileNotFoundError, or ValueError if there is no picture, if one is in no class folder, or if ``split`` is ""
    but there are splits.
    """
    found = files(source)
    below = f"{split}/" if split else ""
    classes = {
        name: str(PurePosixPath(name[len(below) :]).parent)
        for name in found
        if name.startswith(below) and images.is_picture(name)
    }
    if not classes:
        tops = sorted({name.split("/")[0] for name in found if "/" in name})[:20]
        raise ValueError(f"{source}: no pictures below {split or 'it'}; its folders: {', '.join(tops) or 'none'}")
    if "." in classes.values():
        name = min(name for name, folder in classes.items() if folder == ".")
        raise ValueError(f"{source}: {name} is in no class folder")
    for name in () if split else classes:  # otherwise one class would count as two
        if not SPLIT_NAMES.isdisjoint(part.lower() for part in name.split("/")[:-2]):
            raise ValueError(f"{source}: {name} seems to be of a split; train/, and test/ or val/, belong at the top")
    class_names = sorted(set(classes.values()))
    index = {name: i for i, name in enumerate(class_names)}
    names = sorted(classes, key=lambda name: (index[classes[name]], natural(name)))
    labels = np.array([index[classes[name]] for name in names], np.int64)
    return {name: found[name] for name in names}, labels, class_names


def load_class_folders(
    source: str | Path, split: str, size: int, threads: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The pictures of ``class_folders`` as uint8 RGB (N, size, size, 3), labels and class names.

    The short side becomes ``size`` pixels, the centre is cropped. Pictures that cannot be read are left out with a
    warning. Raises the errors of ``class_folders``, and ValueError if no picture can be read.
    """
    pictures, labels, class_names = class_folders(source, split)
    pixels, good = load_readable(source, pictures, list(pictures), size, threads)
    return pixels, labels[good], class_names


def load_folder(source: str | Path, size: int, threads: int = 0) -> np.ndarray:
    """All pictures of a folder or a zip at any depth, ordered by name, without labels: uint8 RGB (N, size, size, 3).

    Pictures that cannot be read are left out with a warning. Raises FileNotFoundError, or ValueError if no picture
    can be read.
    """
    found = files(source)
    names = sorted((name for name in found if images.is_picture(name)), key=natural)
    if not names:
        raise ValueError(f"{source}: no pictures")
    return load_readable(source, found, names, size, threads)[0]


def svhn(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The cropped digits of SVHN from their .mat files: images uint8 RGB (N, 32, 32, 3), labels int64 (N,).

    ``split`` is "train", "test" or "extra". The digit 0, which the file labels 10, is labelled 0. Needs SciPy. Raises
    FileNotFoundError, or ValueError for a damaged file.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    path = Path(folder) / f"{split}_32x32.mat"
    with open(path, "rb") as file:
        try:
            content = loadmat(file, variable_names=["X", "y"])
            pixels, labels = content["X"], content["y"]
        except Exception as error:  # loadmat meets damaged files with almost any exception
            raise ValueError(f"{path}: not a MATLAB 5 file with X and y, or cut short ({error!r})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: X must be uint8 (32, 32, 3, N), not {pixels.dtype} {pixels.shape}")
    if labels.shape != (pixels.shape[3], 1) or not np.isin(labels, np.arange(1, 11)).all():
        raise ValueError(f"{path}: y must be ({pixels.shape[3]}, 1) labels from 1 to 10")
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), labels[:, 0].astype(np.int64) % 10


def sun397(
    source: str | Path, lists: str | Path, split: str, size: int, partition: int = 1, threads: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One split of an official partition of SUN397, returned as by ``load_class_folders``.

    ``source``: folder or zip of the pictures, a/abbey/sun_*.jpg and so on. ``lists``: folder or zip that holds
    ClassName.txt and the lists Training_01.txt and Testing_01.txt to Training_10.txt and Testing_10.txt. ``split`` is
    "train" or "test", ``partition`` 1 to 10. The classes are in the order of ClassName.txt, named as "abbey" or
    "apartment_building/outdoor". Pictures that cannot be read are left out with a warning. Raises FileNotFoundError, or
    ValueError, which names the picture or the list.
    """
    texts = {PurePosixPath(name).name: read for name, read in files(lists).items()}
    list_name = f"{SUN397_LISTS[split]}_{partition:02}.txt"
    for name in ("ClassName.txt", list_name):
        if name not in texts:
            raise FileNotFoundError(f"{lists}: {name} is not there; the partition lists of SUN397 are needed")
    folders = texts["ClassName.txt"]().decode().split()
    names = texts[list_name]().decode().split()
    index = {folder: i for i, folder in enumerate(folders)}
    found = {f"/{name}": read for name, read in files(source).items()}
    for name in names:
        if str(PurePosixPath(name).parent) not in index:
            raise ValueError(f"{lists}: {list_name}: {name} is in no folder of ClassName.txt")
        if name not in found:
            raise ValueError(f"{source}: {name[1:]} of {list_name} is not there")
    labels = np.array([index[str(PurePosixPath(name).parent)] for name in names], np.int64)
    pixels, good = load_readable(source, found, names, size, threads)
    return pixels, labels[good], [folder.split("/", 2)[2] for folder in folders]


def landmark_files(source: str | Path) -> tuple[dict[str, str], dict[str, Reader], list[LandmarkQuery]]:
    """Oxford5k or Paris6k in a folder or a zip that holds, at any depth, the pictures and the ground-truth files.

    Returns the path of each picture by its name in the ground truth, the readers by path, and the queries. Raises
    FileNotFoundError, or ValueError for damaged ground truth, for two pictures of the same name, or for a query whose
    picture is missing.
    """
    found = files(source)
    texts = {PurePosixPath(name).name: name for name in found if name.lower().endswith(".txt")}
    try:
        queries = parse_ground_truth({name: found[path]().decode("utf-8", "replace") for name, path in texts.items()})
    except AlnumpyError as error:
        raise ValueError(f"{source}: {error}") from None
    pictures: dict[str, str] = {}
    for path in sorted(found, key=natural):
        name = PurePosixPath(path).stem
        if images.is_picture(path) and pictures.setdefault(name, path) != path:
            raise ValueError(f"{source}: {pictures[name]} and {path} have the same name")
    for query in queries:
        if query.picture not in pictures:
            raise ValueError(f"{source}: {query.picture}, the picture of the query {query.name}: it is not there")
    return pictures, found, queries


def landmarks(source: str | Path, size: int, threads: int = 0) -> Landmarks:
    """The pictures and the queries of ``landmark_files``, decoded.

    Pictures that cannot be read, such as the twenty of Paris6k that are damaged in the original, are left out and
    reported. Raises the errors of ``landmark_files``, and ValueError for a query whose picture cannot be read.
    """
    pictures, found, queries = landmark_files(source)
    names = list(pictures)
    pixels, failed = load_pictures(found, list(pictures.values()), size, threads)
    for query in queries:
        if reason := failed.get(pictures[query.picture]):
            raise ValueError(f"{source}: {query.picture}, the picture of the query {query.name}: {reason}")
    paths = [pictures[query.picture] for query in queries]
    query_pixels, bad_boxes = load_pictures(found, paths, size, threads, [query.box for query in queries])
    if bad_boxes:
        name, reason = min(bad_boxes.items())
        raise ValueError(f"{source}: {name}: the query's box cannot be taken: {reason}")
    good = [i for i, name in enumerate(names) if pictures[name] not in failed]
    unreadable = {name: failed[path] for name, path in pictures.items() if path in failed}
    return Landmarks([names[i] for i in good], pixels[good], queries, query_pixels, unreadable)


def landmark_classes(
    source: str | Path, split: str, size: int, threads: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Oxford5k or Paris6k as data to train a classifier on, returned as by ``load_class_folders``.

    The paper's code reads labels from the pictures' names: a class is a name without its number. Every fifth picture by
    name is the "test" split, the others are "train". Pictures that cannot be read are left out with a warning. Raises
    FileNotFoundError, or ValueError if there is no picture.
    """
    found = files(source)
    pictures = sorted((name for name in found if images.is_picture(name)), key=natural)
    if not pictures:
        raise ValueError(f"{source}: no pictures")
    labels = [re.sub(r"_?\d+$", "", PurePosixPath(name).stem) for name in pictures]
    class_names = sorted(set(labels))
    chosen = [i for i in range(len(pictures)) if (i % 5 == 4) == (split == "test")]
    pixels, good = load_readable(source, found, [pictures[i] for i in chosen], size, threads)
    index = np.array([class_names.index(labels[chosen[row]]) for row in good], np.int64)
    return pixels, index, class_names
