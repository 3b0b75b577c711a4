"""What several commands use: kinds of arguments, messages, lists of paths, progress, output."""

from __future__ import annotations

import argparse
import codecs
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import IO, TYPE_CHECKING, NamedTuple

from .. import images
from ..embedder import BACKENDS, Embedder, load
from ..errors import WeightsError, printable
from ..files import data_folder, replacing

if TYPE_CHECKING:
    from ..settings import Settings


DEFAULT, BETTER = "alnet-photo", "efficientnet-lite0"  # names of weights


class Command(NamedTuple):
    """A command of the program; its help and example, arguments and code stand together in one file."""

    name: str
    takes: str  # required arguments, as in the usage line
    help: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]  # adds the arguments
    run: Callable[[argparse.Namespace], int]  # returns the exit code


class UsageError(Exception):
    """The command line asks for something impossible: exit code 2."""


def positive_int(text: str) -> int:
    """An argument that must be a whole number from 1 to a thousand million."""
    if not text.isdecimal() or not 1 <= int(text[:20]) <= 1_000_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def side(text: str) -> int:
    """An argument that is the side of the network's input in pixels."""
    if (value := positive_int(text)) > images.MAX_SIZE:
        raise argparse.ArgumentTypeError(f"must be at most {images.MAX_SIZE}, not {value}")
    return value


def height_and_width(text: str) -> tuple[int, int]:
    """An argument that is a height and a width, for example 128 or 37x53."""
    height, cross, width = text.partition("x")
    return side(height), side(width if cross else height)


def distance(text: str) -> float:
    """An argument that is a distance."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def date(text: str) -> str:
    """An argument that is a date, or the beginning of one."""
    from ..filters import is_date

    if not is_date(text):
        raise argparse.ArgumentTypeError(f"must be a date such as 2024, 2024-05 or 2024-05-31, not {text!r}")
    return text


def region(text: str) -> tuple[int, int, int, int]:
    """An argument that is a part of a picture: left, top, width and height in pixels."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(n.isdecimal() and len(n) < 10 for n in numbers) or "0" in (numbers[2], numbers[3]):
        raise argparse.ArgumentTypeError(f"must be X,Y,WIDTH,HEIGHT in pixels, not {text!r}")
    x, y, width, height = map(int, numbers)
    return x, y, width, height


def add_backend(command: argparse.ArgumentParser) -> None:
    """The arguments of commands that run the network."""
    command.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the network: compiled (packaged kernels), numba (kernels that Numba compiles here) or numpy; "
        "auto takes compiled if that runs here, else numba if there are enough pictures (default: %(default)s)",
    )
    command.add_argument(
        "--threads",
        type=positive_int,
        help="threads for decoding and computing (default: ALNUMPY_THREADS, or all CPUs)",
    )


def add_max_pixels(command: argparse.ArgumentParser) -> None:
    """The argument of commands that decode pictures."""
    command.add_argument(
        "--max-pixels",
        type=positive_int,
        default=images.MAX_PIXELS,
        help="refuse larger pictures, but decode larger JPEGs at reduced size (default: %(default)s)",
    )


def add_gallery(command: argparse.ArgumentParser) -> None:
    """The argument of commands that work on a gallery."""
    command.add_argument(
        "--db", default=default_gallery(), metavar="FILE", help="the gallery (default: $ALNUMPY_DB, or the user's own)"
    )


def default_gallery() -> str:
    """The gallery when none is named: $ALNUMPY_DB, or a file below the user's data folder."""
    if named := os.environ.get("ALNUMPY_DB"):
        return named
    return os.fspath(data_folder() / "gallery.db")


def command_for(db: str, *words: str) -> str:
    """A command for a gallery, to be copied into a shell."""
    option = [] if db == default_gallery() else ["--db", db]
    return shlex.join(["alnumpy", *words, *option])


def name_network(db: str) -> None:
    """One line on stderr about a new gallery for which no network was chosen."""
    better = command_for(db, "index", "--weights", BETTER, "--rebuild")
    warn(f"{db}: a new gallery with {DEFAULT}, the fastest network; {BETTER} finds more in photos: {better}")


def warn(message: object) -> None:
    """One line on stderr."""
    print(f"alnumpy: {printable(message)}", file=sys.stderr)


def tell_distances(meaning: str) -> None:
    """On a terminal, the meaning of the distances that are printed next; nothing if it is not known."""
    if meaning and sys.stderr.isatty():
        warn(f"distances: {meaning}")


def warn_of(fault: str, paths: Sequence[str]) -> bool:
    """One line about all pictures that have a fault, and whether there is one."""
    if paths:
        warn(f"{paths[0]}: {fault}{f'; and {len(paths) - 1} more' if len(paths) > 1 else ''}")
    return bool(paths)


def read_list(data: bytes) -> list[str]:
    """Paths, each followed by a NUL as ``find -print0`` writes them, or one per line.

    Windows ends lines with CR LF and may begin a file with a mark: both belong to a name only if such a file exists.
    """
    if b"\0" in data:
        return [os.fsdecode(name) for name in data.split(b"\0") if name]
    names = data.split(b"\n")
    if names[0].startswith(codecs.BOM_UTF8) and not os.path.lexists(names[0]):
        names[0] = names[0].removeprefix(codecs.BOM_UTF8)
    names = [n.removesuffix(b"\r") if n.endswith(b"\r") and not os.path.lexists(n) else n for n in names]
    return [os.fsdecode(name) for name in names if name]


def collect(arguments: Iterable[str], recursive: bool, hint: str = "") -> tuple[list[str], int]:
    """The paths that the arguments stand for, and how many arguments failed (each was reported).

    ``hint``: what to do if only the folders below a folder can have pictures.
    """
    paths: list[str] = []
    failed = 0
    for argument in arguments:
        if argument == "-":
            try:
                paths += read_list(sys.stdin.buffer.read())
            except OSError as error:
                warn(f"stdin: {error.strerror}")
                failed += 1
        elif os.path.isdir(argument):
            try:
                found = images.find(argument, recursive)
            except OSError as error:
                warn(f"{error.filename}: {error.strerror}")
                failed += 1
                continue
            if not found:
                warn(f"{argument}: no pictures in this folder{'' if recursive else f' itself{hint}'}")
                failed += 1
            paths += found
        else:
            paths.append(argument)
    return paths, failed


@contextmanager
def progress_line() -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many of how many pictures are done, as a bar, and wipes it at the end.

    It writes to stderr if that is a terminal and the work takes more than a second.
    """
    start = shown = time.monotonic()
    wipe = False

    def show(done: int, total: int) -> None:
        nonlocal shown, wipe
        now = time.monotonic()
        if sys.stderr.isatty() and now - start > 1 and (now - shown > 0.1 or done == total):
            rate = done / (now - start)
            left = (total - done) / rate
            time_left = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            bar = "#" * (20 * done // total)
            line = f"\r\033[K[{bar:.<20}] {done}/{total} pictures, {rate:.1f}/s, {time_left} left"
            print(line, end="", file=sys.stderr, flush=True)
            shown, wipe = now, True

    try:
        yield show
    finally:
        if wipe:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def output(path: str | None) -> Iterator[IO[bytes]]:
    """stdout, or a file that appears under its name only when it is complete."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(path) as file:
        yield file


def same_file(path: str, other: str) -> bool:
    """Whether two paths lead to one existing file."""
    return os.path.exists(path) and os.path.samefile(path, other)


def gallery_embedder(args: argparse.Namespace, recorded: Settings | None, size: int | None = None) -> Embedder:
    """The embedder that a gallery was made with, changed by the arguments."""
    if recorded is None:
        return load(args.weights, size, backend=args.backend, threads=args.threads)
    size = size or recorded.size
    if args.weights is not None:
        return load(args.weights, size, backend=args.backend, threads=args.threads)
    from ..settings import find_weights

    try:
        return Embedder(find_weights(recorded, args.backend), size, backend=args.backend, threads=args.threads)
    except WeightsError as error:
        raise WeightsError(f"{args.db}: {error}") from None
