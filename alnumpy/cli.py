"""The command line: parses arguments, prints, and chooses the exit code. All work is done by the library."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from math import isfinite
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from . import __version__, images, spec, weights
from .embedder import BACKENDS, Embedded, Embedder, load
from .errors import AlnumpyError, GalleryError, ImageError, MissingExtraError, printable
from .files import replacing
from .spec import SPECS, Spec

if TYPE_CHECKING:
    from .evaluation import Evaluation, LandmarkScores
    from .gallery import Match

SELF_TEST_TOLERANCE = 1e-5  # relative error of the embedding; float32 on any device stays a hundred times below it

EXAMPLES = {
    "embed": "alnumpy embed photo.jpg\n  alnumpy embed --recursive ~/Pictures --format npy --output embeddings.npy",
    "index": "alnumpy index ~/Pictures --db gallery.db",
    "search": "alnumpy search photo.jpg --db gallery.db -k 10 --html results.html",
    "duplicates": "alnumpy duplicates --db gallery.db --threshold 0.5",
    "stats": "alnumpy stats --db gallery.db",
    "remove": "alnumpy remove ~/Pictures/old --db gallery.db",
    "reduce": "alnumpy reduce --db gallery.db --dimensions 128 --out small.db",
    "eval": "alnumpy eval --db gallery.db --labels labels.csv",
    "info": "alnumpy info --size 160",
    "verify": "alnumpy verify weights/alnet-photo.h5",
    "warmup": "alnumpy warmup",
}


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
    """An argument that is a height and a width, as 128 or 37x53."""
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


def add_backend(command: argparse.ArgumentParser) -> None:
    """The arguments of commands that run the network."""
    command.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="default: %(default)s, numba where it repays its start",
    )
    command.add_argument(
        "--threads", type=positive_int, help="of the numba backend (default: ALNUMPY_THREADS, or all CPUs)"
    )


def add_max_pixels(command: argparse.ArgumentParser) -> None:
    """The argument of commands that decode pictures."""
    command.add_argument(
        "--max-pixels",
        type=positive_int,
        default=images.MAX_PIXELS,
        help="refuse larger pictures, to bound the memory (default: %(default)s)",
    )


def add_gallery(command: argparse.ArgumentParser) -> None:
    """The argument of commands that work on a gallery."""
    command.add_argument("--db", required=True, metavar="FILE", help="the gallery")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as an argument parser."""
    parser = argparse.ArgumentParser(
        prog="alnumpy", description="Image embeddings with ALNet, offline and without torch."
    )
    parser.add_argument("--version", action="version", version=f"alnumpy {__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback with errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    embed = command("embed", run_embed, "print the embedding of each picture")
    embed.add_argument(
        "paths", nargs="+", metavar="PATH", help="picture, folder of pictures, or - for a list of paths on stdin"
    )
    embed.add_argument(
        "--recursive", action="store_true", help="take the folders below a folder too, but no links to folders"
    )
    embed.add_argument("--weights", metavar="FILE", help="weights file (default: the one that ships with alnumpy)")
    embed.add_argument("--format", choices=FORMATS, default="jsonl", help="default: %(default)s")
    embed.add_argument("--output", metavar="FILE", help="write there instead of to stdout; npy needs it")
    embed.add_argument("--normalize", action="store_true", help="divide each embedding by its L2 norm")
    embed.add_argument("--size", type=side, help="side of the network's input in pixels (default: the weights file's)")
    embed.add_argument("--batch-size", type=positive_int, default=32, help="pictures at once (default: %(default)s)")
    add_max_pixels(embed)
    add_backend(embed)
    embed.add_argument("--verbose", action="store_true", help="tell on stderr which backend ran, and how long")

    index = command(
        "index", run_index, "keep a gallery up to date: a file with the embeddings of the pictures in folders"
    )
    index.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="folder, with all below it but links to folders, or picture"
    )
    add_gallery(index)
    index.add_argument(
        "--prune",
        action="store_true",
        help="remove pictures that are gone instead of marking them, but none of an empty folder: its disk may be away",
    )
    index.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        help="of the embeddings of a new gallery: float16 takes a half, int8 a third of the space (default: float32)",
    )
    index.add_argument(
        "--fast-decode",
        action="store_true",
        default=None,
        help="of a new gallery: decode JPEGs at reduced size, several times as fast and a little different",
    )
    index.add_argument("--weights", metavar="FILE", help="weights file (default: the gallery's, or alnumpy's own)")
    index.add_argument("--size", type=side, help="side of the network's input in pixels (default: the gallery's)")
    index.add_argument(
        "--normalize",
        action="store_true",
        default=None,
        help="of a new gallery: divide each embedding by its L2 norm",
    )
    index.add_argument(
        "--flip",
        action="store_true",
        default=None,
        help="of a new gallery: average each embedding with the mirrored picture's, in twice the time of the network",
    )
    index.add_argument("--batch-size", type=positive_int, default=32, help="pictures at once (default: %(default)s)")
    add_max_pixels(index)
    add_backend(index)
    index.add_argument("--verbose", action="store_true", help="tell on stderr which backend ran, and where time went")

    search = command(
        "search", run_search, 'find the pictures of a gallery that look most like others; "same" marks equal files'
    )
    search.add_argument(
        "queries", nargs="+", metavar="QUERY", help="picture, folder of pictures, or - for a list of paths on stdin"
    )
    add_gallery(search)
    search.add_argument("-k", type=positive_int, default=10, help="how many for each query (default: %(default)s)")
    form = search.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: a list of queries with their results")
    form.add_argument("--csv", action="store_true", help="print CSV: query, rank, distance, path, same")
    search.add_argument("--montage", metavar="FILE", help="write a PNG of queries and results, too")
    search.add_argument("--html", metavar="FILE", help="write a page of queries and results that opens anywhere, too")
    search.add_argument("--weights", metavar="FILE", help="weights file (default: the gallery's)")
    add_max_pixels(search)
    add_backend(search)

    duplicates = command("duplicates", run_duplicates, "print groups of pictures of a gallery that look alike")
    add_gallery(duplicates)
    duplicates.add_argument(
        "--threshold", type=distance, required=True, metavar="D", help="L2 distance up to which two pictures look alike"
    )
    duplicates.add_argument("--json", action="store_true", help="print JSON: a list of groups")

    reduce = command(
        "reduce", run_reduce, "write a smaller gallery of the same pictures: PCA-whitened embeddings of norm 1"
    )
    add_gallery(reduce)
    reduce.add_argument(
        "--dimensions", type=positive_int, required=True, metavar="N", help="of the embeddings, as 128 or 256"
    )
    reduce.add_argument("--out", required=True, metavar="FILE", help="the new gallery, to be indexed into and searched")

    remove = command("remove", run_remove, "take pictures out of a gallery, never off the disk")
    remove.add_argument(
        "paths", nargs="+", metavar="PATH", help="picture, or folder with all below it; need not exist any more"
    )
    add_gallery(remove)

    stats = command("stats", run_stats, "print what a gallery holds, how it was made, and what could not be read")
    add_gallery(stats)

    evaluate = command("eval", run_eval, "measure how well a gallery finds the pictures that belong together")
    add_gallery(evaluate)
    relevant = evaluate.add_mutually_exclusive_group()
    relevant.add_argument(
        "--labels",
        metavar="FILE",
        help="CSV with the header path,label, paths relative to it (default: the names of the pictures' folders)",
    )
    relevant.add_argument(
        "--groundtruth", metavar="FOLDER", help="ground-truth files of Oxford5k or Paris6k: measure by their rule"
    )
    evaluate.add_argument(
        "--queries", metavar="FILE", help="another gallery, whose pictures are the queries (default: each picture)"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    info = command("info", run_info, "print the layer table: shapes, parameters and FLOPs")
    info.add_argument(
        "weights", nargs="?", metavar="WEIGHTS", help="weights file (default: the one that ships with alnumpy)"
    )
    info.add_argument("--spec", choices=SPECS, help="a named network instead of a weights file")
    info.add_argument(
        "--size", type=height_and_width, metavar="N|HxW", help="input size (default: the weights file's, or 32)"
    )

    verify = command("verify", run_verify, "check that this device computes what was recorded in a weights file")
    verify.add_argument(
        "weights", nargs="?", metavar="WEIGHTS", help="weights file (default: the one that ships with alnumpy)"
    )
    add_backend(verify)

    command("warmup", run_warmup, "compile the Numba kernels ahead of time and tell where they are kept")
    return parser


def warn(message: object) -> None:
    """One line on stderr."""
    print(f"alnumpy: {printable(message)}", file=sys.stderr)


def collect(arguments: Iterable[str], recursive: bool, hint: str = "") -> tuple[list[str], int]:
    """The paths that the arguments stand for, and how many arguments failed (each was reported).

    ``hint``: what to do where only the folders below a folder can have pictures.
    """
    paths: list[str] = []
    failed = 0
    for argument in arguments:
        if argument == "-":
            try:
                paths += [os.fsdecode(line) for line in sys.stdin.buffer.read().split(b"\n") if line]
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

    It shows that on stderr where that is a terminal and the work takes more than a second.
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


def progress(results: Iterable[Embedded], total: int) -> Iterator[Embedded]:
    """Passes results through and shows the progress."""
    with progress_line() as show:
        for done, result in enumerate(results, 1):
            yield result
            show(done, total)


@contextmanager
def output(path: str | None) -> Iterator[IO[bytes]]:
    """stdout, or a file that appears under its name only when it is complete."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(path) as file:
        yield file


def shortest(embedding: np.ndarray) -> list[float]:
    """Python floats that print with the fewest digits that give back the same float32."""
    return [float(str(value)) for value in embedding]


def write_jsonl(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """One JSON object a line: path and embedding."""
    for row in rows:
        assert row.embedding is not None
        file.write(json.dumps({"path": row.path, "embedding": shortest(row.embedding)}).encode() + b"\n")


def write_json(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """One JSON array, an object a line."""
    before = b"[\n"
    for row in rows:
        assert row.embedding is not None
        file.write(before + json.dumps({"path": row.path, "embedding": shortest(row.embedding)}).encode())
        before = b",\n"
    file.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def write_csv(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """A line a picture: path, then the components; no header."""
    for row in rows:
        assert row.embedding is not None
        file.write(csv_line([row.path, *shortest(row.embedding)]))


def csv_line(values: Sequence[object]) -> bytes:
    """A line of CSV. The writer ends it with CR LF itself, since it then quotes either of them in a name."""
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return os.fsencode(line.getvalue().removesuffix("\r\n") + "\n")


def write_npy(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """A float32 array (N, D), (0, 0) where nothing could be embedded; JSON lines on stdout tell each row's path."""
    kept: list[np.ndarray] = []
    names = []
    for row in rows:
        assert row.embedding is not None
        kept.append(row.embedding)
        names.append(row.path)
    np.save(file, np.stack(kept) if kept else np.empty((0, 0), np.float32))
    for i, name in enumerate(names):
        print(json.dumps({"row": i, "path": name}))


FORMATS = {"json": write_json, "jsonl": write_jsonl, "csv": write_csv, "npy": write_npy}


def run_embed(args: argparse.Namespace) -> int:
    """``alnumpy embed``."""
    if args.format == "npy" and args.output is None:
        raise UsageError("--format npy needs --output FILE")
    embedder = load(args.weights, args.size, args.normalize, args.backend, args.threads)
    paths, failed = collect(args.paths, args.recursive, "; --recursive takes the folders below it too")
    if args.output and os.path.isfile(args.output) and any(same_file(path, args.output) for path in paths):
        raise UsageError(f"{args.output} is one of the pictures to embed")

    def good() -> Iterator[Embedded]:
        nonlocal failed
        for result in progress(embedder.embed_files(paths, args.batch_size, args.max_pixels), len(paths)):
            if result.error is None:
                yield result
            else:
                warn(result.error)
                failed += 1

    start = time.perf_counter()
    with output(args.output) as file:
        FORMATS[args.format](file, good())
    if args.verbose:
        warn(f"backend {embedder.backend_used}, {len(paths)} pictures in {time.perf_counter() - start:.2f} s")
    return 1 if failed else 0


def same_file(path: str, other: str) -> bool:
    """Whether two paths lead to one existing file."""
    return os.path.exists(path) and os.path.samefile(path, other)


def run_index(args: argparse.Namespace) -> int:
    """``alnumpy index``."""
    from .gallery import Gallery

    try:
        with Gallery(args.db) as made:
            recorded = made.settings if made.bound else {}
    except GalleryError:
        recorded = {}  # a new one; what else may be wrong with it shows when it is opened to write
    embedder = gallery_embedder(args, recorded, args.size, args.normalize)
    recorded_weights = os.path.abspath(args.weights or weights.default_path())
    choices = (args.dtype, args.fast_decode, recorded_weights, args.batch_size, args.max_pixels, args.flip)
    with Gallery(args.db, embedder, "a", *choices) as gallery, progress_line() as show:
        report = gallery.index(args.folders, args.prune, show)
    for path, reason in report.failed:
        warn(f"{path}: {reason}")
    print(
        f"{report.embedded} embedded, {report.recognised} recognised, {report.unchanged} unchanged, "
        f"{report.vanished} vanished, {report.pruned} removed, {len(report.failed)} failed"
    )
    if args.verbose:
        warn(
            f"backend {report.backend}, {report.seconds:.2f} s: network {report.network_seconds:.2f} s, waiting for "
            f"pictures {report.waited_seconds:.2f} s; decoding {report.decode_seconds:.2f} s of CPU, all threads"
        )
    return 1 if report.failed else 0


def gallery_embedder(
    args: argparse.Namespace, recorded: Mapping[str, Any], size: int | None = None, normalize: bool | None = None
) -> Embedder:
    """The embedder that a gallery was made with, as far as the arguments do not say otherwise."""
    path = args.weights
    if path is None and os.path.isfile(recorded.get("weights", "")):
        path = recorded["weights"]
    normalize = recorded.get("normalize", False) if normalize is None else normalize
    return load(path, size or recorded.get("size"), normalize, args.backend, args.threads)


def run_search(args: argparse.Namespace) -> int:
    """``alnumpy search``."""
    from .gallery import Gallery

    paths, failed = collect(args.queries, recursive=False)
    written = [path for path in (args.montage, args.html) if path]
    if len({os.path.realpath(path) for path in written}) < len(written):
        raise UsageError(f"--montage and --html both name {args.html}")
    with Gallery(args.db) as made:
        recorded = made.settings
        for target in filter(os.path.isfile, written):
            if made.holds(target) or any(same_file(path, target) for path in [args.db, *paths]):
                raise UsageError(f"{target} is the gallery, one of its pictures, or one of the queries")
    found: list[tuple[str, list[Match]]] = []
    with Gallery(args.db, gallery_embedder(args, recorded), max_pixels=args.max_pixels) as gallery:
        for path in paths:
            try:
                found += [(path, matches) for matches in gallery.search([path], args.k)]
            except ImageError as error:
                warn(error)
                failed += 1
        damaged = gallery.damaged
    for path, reason in damaged:
        warn(f"{path}: damaged in the gallery: {reason}; not ranked; to mend it, remove the picture and index it again")
    if any(not matches for _, matches in found):
        warn(f"{args.db}: holds no picture that can be found; fill it with: alnumpy index FOLDER --db FILE")
        failed += 1
    if found and args.montage:
        from .montage import write_montage

        with replacing(args.montage) as file:
            try:
                write_montage(file, found, args.max_pixels)
            except ValueError as error:
                raise UsageError(f"{args.montage}: {error}") from None
    if found and args.html:
        from .montage import write_html

        with replacing(args.html) as file:
            write_html(file, found, args.max_pixels)
    # After the files, which a reader who had enough (| head -1) does not end.
    (print_json if args.json else print_csv if args.csv else print_matches)(found)
    return 1 if failed or damaged else 0


def print_matches(found: Sequence[tuple[str, Sequence[Match]]]) -> None:
    """Distance and path, one a line, and "same" behind equal files; several queries each with a heading."""
    for i, (query, matches) in enumerate(found):
        if len(found) > 1:
            print(f"{chr(10) if i else ''}{printable(query)}:")
        for match in matches:
            print(f"{match.distance:.4f}\t{printable(match.path)}{chr(9) + 'same' if match.same else ''}")


def print_json(found: Sequence[tuple[str, Sequence[Match]]]) -> None:
    """A list of queries with their results."""
    print(
        json.dumps(
            [
                {"query": query, "results": [{"rank": i, **as_json(m)} for i, m in enumerate(matches, 1)]}
                for query, matches in found
            ],
            indent=1,
        )
    )


def print_csv(found: Sequence[tuple[str, Sequence[Match]]]) -> None:
    """A line a result, with a header."""
    lines = [csv_line(["query", "rank", "distance", "path", "same"])]
    for query, matches in found:
        for i, match in enumerate(matches, 1):
            distance = as_json(match)["distance"]
            lines.append(csv_line([query, i, distance, match.path, "yes" if match.same else ""]))
    sys.stdout.buffer.writelines(lines)


def as_json(match: Match) -> dict[str, Any]:
    """A result as plain types; the distance has as many digits as a float32 holds."""
    return {"distance": float(f"{match.distance:.7g}"), "path": match.path, "same": match.same}


def run_duplicates(args: argparse.Namespace) -> int:
    """``alnumpy duplicates``."""
    from .gallery import Gallery

    with Gallery(args.db) as gallery:
        groups = gallery.duplicates(args.threshold)
        damaged = gallery.damaged
    for path, reason in damaged:
        warn(f"{path}: damaged in the gallery: {reason}; left out")
    if args.json:
        print(json.dumps([[as_json(match) for match in group] for group in groups], indent=1))
    else:
        print_groups(groups)
    return 1 if damaged else 0


def print_groups(groups: Sequence[Sequence[Match]]) -> None:
    """Distance to the first of the group and path, one a line; "same" behind equal files; an empty line between."""
    for i, group in enumerate(groups):
        if i:
            print()
        for j, match in enumerate(group):
            print(f"{match.distance:.4f}\t{printable(match.path)}{chr(9) + 'same' if match.same and j else ''}")


def run_remove(args: argparse.Namespace) -> int:
    """``alnumpy remove``."""
    from .gallery import Gallery

    with Gallery(args.db):  # which must exist: to open it to write would make it
        pass
    with Gallery(args.db, mode="a") as gallery:
        removed = [gallery.remove(path) for path in args.paths]
    for path, number in zip(args.paths, removed, strict=True):
        if not number:
            warn(f"{path}: not in the gallery, nor anything below it")
    print(f"{sum(removed)} removed")
    return 0 if all(removed) else 1


def run_reduce(args: argparse.Namespace) -> int:
    """``alnumpy reduce``."""
    from .gallery import Gallery

    with Gallery(args.db) as gallery:
        kept = gallery.reduce(args.out, args.dimensions)
        before = gallery.dimension
    with Gallery(args.out) as small:
        pictures = small.stats()["pictures"]
    print(f"{pictures} pictures, {before} dimensions to {args.dimensions}, which hold {kept:.1%} of the variance")
    return 0


def run_stats(args: argparse.Namespace) -> int:
    """``alnumpy stats``."""
    from .gallery import Gallery

    with Gallery(args.db) as gallery:
        for key, value in gallery.stats().items():
            print(f"{key}: {printable(value)}")
        for picture in gallery:
            if picture.error is not None and not picture.vanished:
                print(f"unreadable: {printable(picture.path)}: {printable(picture.error)}")
    return 0


def run_eval(args: argparse.Namespace) -> int:
    """``alnumpy eval``."""
    from . import evaluation
    from .gallery import Gallery

    if args.groundtruth:
        if args.queries:
            raise UsageError("--groundtruth names the queries itself: leave out --queries")
        truth = evaluation.read_ground_truth(args.groundtruth)
        with Gallery(args.db) as gallery:
            official = evaluation.evaluate_gallery_landmarks(gallery, truth)
        print_landmarks(official, args.json)
        missing = warn_of("not in the gallery, counted as never found", official.missing)
        return int(warn_of("damaged in the gallery, left out", official.damaged) or missing)
    labels = evaluation.read_labels(args.labels) if args.labels else None
    with ExitStack() as opened:
        gallery = opened.enter_context(Gallery(args.db))
        queries = opened.enter_context(Gallery(args.queries)) if args.queries else None
        result = evaluation.evaluate_gallery(gallery, labels, queries)
    print_evaluation(result, args.labels or "the names of their folders", args.json)
    warn_of(f"not in {args.labels}, left out", result.unlabelled)
    unknown = warn_of("labelled, but not in the gallery", result.unknown)
    return int(warn_of("damaged in the gallery, left out", result.damaged) or unknown)


def warn_of(fault: str, paths: Sequence[str]) -> bool:
    """One line about all pictures that have a fault, and whether there is one."""
    if paths:
        warn(f"{paths[0]}: {fault}{f'; and {len(paths) - 1} more' if len(paths) > 1 else ''}")
    return bool(paths)


def print_evaluation(result: Evaluation, labels: str, as_json: bool) -> None:
    """The measures by labels, and what they were measured on."""
    scores = result.scores
    if as_json:
        print(json.dumps(result._asdict() | {"scores": scores._asdict()}, indent=1))
        return
    alone = f"; {scores.without_relevant} more have nothing to find" if scores.without_relevant else ""
    print(f"data base: {result.pictures} pictures with {result.labels} labels: {printable(labels)}")
    print(f"queries: {scores.queries}{alone}; {result.excluded} are in the data base, left out of their own ranking")
    print("ties: by path")
    for name, value in (
        ("full mAP", scores.full_map),
        ("AP@5, divided by the hits among 5", scores.ap5_hits),
        ("AP@5, divided by min(5, relevant)", scores.ap5),
        ("precision@1", scores.precision1),
        ("precision@5", scores.precision5),
    ):
        print(f"{name:34}{value:.4f}")


def print_landmarks(result: LandmarkScores, as_json: bool) -> None:
    """The official measure of Oxford5k and Paris6k, and what it was measured on."""
    if as_json:
        print(json.dumps(result._asdict(), indent=1))
        return
    print(f"data base: {result.pictures} pictures")
    print(f"queries: {len(result.each)}, whole pictures (no boxes), not left out of their own ranking")
    print("ties: by path")
    print(f"{'mAP, junk ignored, trapezoid rule':34}{result.mean:.4f}")
    for name, value in result.each.items():
        print(f"{printable(name):34}{value:.4f}")


def run_info(args: argparse.Namespace) -> int:
    """``alnumpy info``."""
    if args.spec and args.weights:
        raise UsageError("give a weights file or --spec, not both")
    size = args.size
    if args.spec:
        network, title = SPECS[args.spec], args.spec
        parameters: Mapping[str, np.ndarray] = {k: np.zeros(v) for k, v in spec.parameters(network).items()}
        size = size or (32, 32)
    else:
        path = args.weights or weights.default_path()
        loaded = weights.read(path)
        parameters = loaded.parameters
        network, title = loaded.spec, f"{loaded.spec.name}, {printable(path)}, {loaded.dtype}"
        size = size or (loaded.preprocessing.size, loaded.preprocessing.size)
    print(f"{title}: input 3x{size[0]}x{size[1]}")
    print(layer_table(network, size))
    from . import program

    arena = program.compile_program(network, parameters).arena_bytes(size)
    print(f"activations: {arena:,} bytes a thread (numba backend)")
    if not args.spec:
        for field, value in (("source", loaded.source), ("sha256", loaded.source_sha256), *loaded.card.items()):
            print(f"{printable(field)}: {printable(value)}")
    return 0


def layer_table(network: Spec, size: tuple[int, int]) -> str:
    """Layers of a network for an input of (H, W) as aligned text, with the totals below."""
    input_size = size
    rows = [("layer", "operator", "output", "params", "FLOPs", "FLOPs eq. (5)")]
    for layer in spec.layers(network):
        counts = spec.count_params(layer)
        flops, eq5 = spec.layer_flops(layer, size), spec.layer_flops_eq5(layer, size)
        size = spec.output_size(layer, size)
        if isinstance(layer, spec.Conv):
            kind = "depthwise" if layer.groups == layer.cin else "conv"
            text = f"{kind} {layer.kernel}x{layer.kernel} /{layer.stride} g{layer.groups} bn {layer.activation}"
            channels = layer.cout
        elif isinstance(layer, spec.Shuffle):
            text, channels = f"channel shuffle g{layer.groups}", layer.channels
        else:
            text, channels = f"cbam {network.cbam} hidden {layer.hidden}", layer.channels
        shape = f"{channels}x{size[0]}x{size[1]}"
        rows.append((layer.name, text.strip(), shape, f"{sum(counts.values()):,}", f"{flops:,}", f"{eq5:,}"))
    pool_flops = (size[0] * size[1] + 1) * network.embedding
    rows.append(("pool", "adaptive average 1x1", f"{network.embedding}", "0", f"{pool_flops:,}", "0"))
    authors, eq5 = spec.total_flops(network, input_size)
    rows.append(("total", "", "", f"{spec.total_params(network):,}", f"{authors:,}", f"{eq5:,}"))
    return format_rows(rows)


def format_rows(rows: Sequence[tuple[str, ...]]) -> str:
    """Text columns, the first three aligned left and the numbers right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def run_verify(args: argparse.Namespace) -> int:
    """``alnumpy verify``."""
    path = args.weights or weights.default_path()
    embedder = load(path, backend=args.backend, threads=args.threads)
    result = embedder.self_test()
    good = result.relative_error <= SELF_TEST_TOLERANCE  # false for NaN
    print(
        f"{'ok' if good else 'FAILED'}: {printable(path)}: relative error {result.relative_error:.2e} "
        f"(at most {SELF_TEST_TOLERANCE:.0e}), largest {result.largest_error:.2e}, "
        f"recorded by {printable(embedder.weights.self_test_by)}"
    )
    return 0 if good else 1


def run_warmup(args: argparse.Namespace) -> int:
    """``alnumpy warmup``."""
    if find_spec("numba") is None:
        raise MissingExtraError("warmup compiles Numba kernels and needs Numba: pip install 'alnumpy[numba]'")
    from . import kernels

    folder, seconds = kernels.warmup()
    if folder is None:
        return 1  # the kernels have warned why nothing could be kept
    print(f"kernels ready in {seconds:.1f} s, kept in {folder}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 all well, 1 some input failed, 2 wrong usage.

    Raises what is no fault of the input, and with --debug all errors.
    """
    if sys.stderr is None:  # closed by the caller, as are the two below
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        warn("stdout is closed: there is nowhere to write the results to")
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every locale has all letters
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of a damaged picture is whether it can be decoded
    warnings.filterwarnings("default", "alnumpy: ")  # our own are for users to read, also under python -W error
    warnings.showwarning = lambda message, *_: warn(str(message).removeprefix("alnumpy: "))
    debug = False
    try:
        try:
            args = build_parser().parse_args(argv)
            debug = args.debug
            return args.run(args)
        finally:
            flush()
    except BrokenPipeError:  # the reader had enough (| head -1)
        return 1
    except UsageError as error:
        warn(error)
        return 2
    except (AlnumpyError, OSError, MemoryError) as error:
        if debug:
            raise
        warn(explain(error))
        return 1


def flush() -> None:
    """Writes out what stdout has gathered. Raises OSError where that is impossible, and lets go of it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "stdout") from None


def explain(error: BaseException) -> str:
    """An error as one line that names the file."""
    if isinstance(error, MemoryError):
        return "out of memory; a smaller --size, --batch-size or --max-pixels needs less"
    if isinstance(error, OSError) and error.strerror:
        unnamed = "the current folder" if isinstance(error, FileNotFoundError) else "stdout"
        return f"{unnamed if error.filename is None else error.filename}: {error.strerror}"
    return str(error)
