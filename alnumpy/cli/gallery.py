"""The commands that fill and maintain a gallery: index, list, move, remove, reduce, merge, export and so on."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from .. import formats, results, scan, weights
from ..errors import GalleryError, printable
from ..places import Places
from .common import (
    Command,
    UsageError,
    add_backend,
    add_gallery,
    add_max_pixels,
    command_for,
    default_gallery,
    gallery_embedder,
    name_network,
    positive_int,
    progress_line,
    same_file,
    side,
    warn,
    warn_of,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ..ingest import Report


def index_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy index``."""
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="picture, or folder with everything below it; links to folders are not followed (default: those that were "
        "indexed before)",
    )
    add_gallery(parser)
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove missing pictures instead of marking them, except those of an empty folder (an unmounted disk)",
    )
    parser.add_argument("--retry", action="store_true", help="try files again that could not be read before")
    parser.add_argument("--rehash", action="store_true", help="read all files again, even those that look unchanged")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders with such names (*.tmp), or paths below FOLDER (2019/drafts); repeatable, "
        "kept in the gallery",
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="take back an earlier --exclude PATTERN"
    )
    parser.add_argument(
        "--hidden",
        action=argparse.BooleanOptionalAction,
        help="include hidden files, thumbnails and bins, which are otherwise left out; kept in the gallery",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        help="number format for a new gallery: float16 takes half the disk space, int8 a third (default: float32)",
    )
    parser.add_argument(
        "--fast-decode",
        action=argparse.BooleanOptionalAction,
        help="for a new gallery: decode JPEGs at reduced size, several times as fast and a little less exact, or whole "
        "(default: at reduced size)",
    )
    parser.add_argument(
        "--relative",
        action=argparse.BooleanOptionalAction,
        help="keep paths relative to the gallery's folder, below which all pictures must lie, so that a disk and the "
        "gallery on it can travel together; kept in the gallery",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights file, or a name of alnumpy models (default: the gallery's, or alnet-photo)",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="make the gallery anew, with other --weights or options of a new gallery; until that is done the old one "
        "is searched, and a run that was stopped continues when it is started again",
    )
    parser.add_argument("--size", type=side, help="side of the network's input in pixels (default: the gallery's)")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="for a new gallery: divide each embedding by its L2 norm, or not (by default as the weights say)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        default=None,
        help="for a new gallery: average the embeddings of each picture and its mirror image, in twice the time",
    )
    parser.add_argument("--batch-size", type=positive_int, default=32, help="pictures per batch (default: %(default)s)")
    add_max_pixels(parser)
    add_backend(parser)
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="read and embed on the workers of this Dask scheduler, such as tcp://HOST:8786, which must see the same "
        "paths and have the same alnumpy, Pillow and weights (needs the extra dask)",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=positive_int,
        const=60,
        metavar="SECONDS",
        help="look again every SECONDS (default: 60) until stopped, and print one line per change",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print on stderr which backend ran and where the time went"
    )


def run_index(args: argparse.Namespace) -> int:
    """``alnumpy index``."""
    from ..gallery import Gallery, Report

    if args.watch and args.verbose:
        raise UsageError("--verbose reports on one run and cannot be combined with --watch")
    if args.watch and args.scheduler is not None:
        raise UsageError("--scheduler is for one run and cannot be combined with --watch")
    if args.rebuild:
        return run_rebuild(args)
    if args.relative:
        places = Places.beside(args.db)
        for folder in args.folders:
            places.check(places.whole(folder))
    recorded = None
    if os.path.lexists(args.db):
        try:
            with Gallery(args.db) as made:
                recorded = made.settings if made.bound else None
                folders = args.folders or made.folders
        except GalleryError:
            if not args.folders:
                raise
            folders = args.folders  # any fault of the file shows when it is opened to write
        if not folders and recorded is not None:
            warn(f"{args.db}: no folder is recorded; to find new pictures, name it once: alnumpy index FOLDER")
    elif not args.folders:
        raise UsageError(f"{args.db}: no such gallery; make one with: alnumpy index FOLDER")
    elif not (found := scan.find(args.folders, scan.Rules(tuple(args.exclude), bool(args.hidden)))).paths and (
        found.failed or found.refused or not args.watch
    ):
        bare = [(os.path.dirname(root), scan.WITHOUT_PICTURES) for root in found.roots]
        return print_report(
            Report(failed=[*found.failed, *found.refused.items(), *bare], passed_over=found.passed_over()), args
        )  # a mistyped folder, or a file that is not a picture, leaves no gallery behind
    elif args.db == default_gallery():
        os.makedirs(os.path.dirname(args.db) or ".", mode=0o700, exist_ok=True)
    embedder = gallery_embedder(args, recorded, args.size)
    new = recorded is None and args.weights is None

    def open_gallery() -> Gallery:
        nonlocal new
        gallery = Gallery(
            args.db,
            embedder,
            "a",
            dtype=args.dtype,
            fast_decode=args.fast_decode,
            flip=args.flip,
            relative=args.relative,
            normalize=args.normalize,
            weights=os.path.abspath(weights.locate(args.weights)),
            batch_size=args.batch_size,
            max_pixels=args.max_pixels,
        )
        if new:
            name_network(args.db)
            new = False
        return gallery

    if args.watch:
        from .watch import watch

        if args.exclude or args.include or args.hidden is not None:
            with open_gallery() as gallery:  # records these rules
                gallery.index([], exclude=args.exclude, include=args.include, hidden=args.hidden)
        return watch(open_gallery, args.folders, args.watch, prune=args.prune, retry=args.retry, rehash=args.rehash)
    with executor_of(args) as executor, open_gallery() as gallery, progress_line() as show:
        report = gallery.index(
            args.folders or None,
            prune=args.prune,
            retry=args.retry,
            rehash=args.rehash,
            exclude=args.exclude,
            include=args.include,
            hidden=args.hidden,
            progress=show,
            executor=executor,
        )
    return print_report(report, args)


def executor_of(args: argparse.Namespace) -> AbstractContextManager[Executor | None]:
    """Where files are read and embedded; None for this process."""
    if args.scheduler is None:
        return nullcontext()
    from .scheduler import workers

    return workers(args.scheduler)


def run_rebuild(args: argparse.Namespace) -> int:
    """``alnumpy index --rebuild``."""
    from ..gallery import Gallery
    from ..rebuilding import rebuild

    kept = args.folders or args.exclude or args.include or args.hidden is not None or args.relative is not None
    if kept or args.retry or args.rehash or args.watch:
        raise UsageError("--rebuild reads all pictures and keeps folders and rules: give neither with it, nor --watch")
    with Gallery(args.db) as made:
        old = made.settings
    embedder = gallery_embedder(args, old if args.weights is None else None, args.size)
    with executor_of(args) as executor, progress_line() as show:
        report = rebuild(
            args.db,
            embedder,
            dtype=args.dtype,
            fast_decode=args.fast_decode,
            flip=args.flip,
            normalize=args.normalize,
            weights=old.weights if args.weights is None else os.path.abspath(weights.locate(args.weights)),
            batch_size=args.batch_size,
            max_pixels=args.max_pixels,
            prune=args.prune,
            progress=show,
            executor=executor,
        )
    if report is None:
        warn(f"{args.db}: made with these weights and settings already")
        return 0
    return print_report(report, args)


def print_report(report: Report, args: argparse.Namespace) -> int:
    """Prints the outcome of indexing. Returns the exit code."""
    for path, reason in report.failed:
        warn(f"{path}: {reason}")
    print(
        f"{report.embedded} embedded, {report.recognised} recognised, {report.unchanged} unchanged, "
        f"{report.vanished} vanished, {report.pruned} removed, {len(report.failed)} failed"
    )
    for old, new, count in report.moved:
        what = "its only picture is" if count == 1 else f"all its {count} pictures are"
        command = command_for(args.db, "move", old, new)
        warn(f"{old}: missing, and {what} below {new} now; to forget the old paths: {command}")
    if report.left_out:
        what = "1 picture" if report.left_out == 1 else f"{report.left_out} pictures"
        warn(
            f"{what} of the gallery left out now, by rules; the embeddings are kept. To find them again: --hidden "
            "(hidden files, thumbnails and bins), or --include PATTERN (what --exclude named)"
        )
    if passed_over := formats.passed_over(report.passed_over):
        warn(f"passed over: {passed_over}")
    if args.verbose:
        warn(
            f"backend {report.backend}, {report.seconds:.2f} s: network {report.network_seconds:.2f} s, waiting for "
            f"pictures {report.waited_seconds:.2f} s; decoding {report.decode_seconds:.2f} s of CPU, all threads"
        )
    return 1 if report.failed else 0


INDEX = Command(
    "index",
    "[FOLDER ...]",
    "keep a gallery up to date: a file with the embeddings of the pictures in folders",
    "alnumpy index ~/Pictures\n  alnumpy index --watch\n  alnumpy index --weights efficientnet-lite0 --rebuild",
    index_arguments,
    run_index,
)


def stats_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy stats``."""
    add_gallery(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_stats(args: argparse.Namespace) -> int:
    """``alnumpy stats``."""
    from ..gallery import Gallery

    with Gallery(args.db) as gallery:
        stats, folders = gallery.stats(), gallery.folders
        unreadable = [
            p for p in gallery.pictures(embeddings=False) if p.error is not None and not (p.vanished or p.left_out)
        ]
    if args.json:
        print(results.stats_json(stats, folders, unreadable))
        return 0
    shown = {"passed_over": formats.passed_over(stats["passed_over"]), "exclude": ", ".join(stats["exclude"])}
    for key, value in (stats | shown).items():
        print(f"{key}: {printable(value)}".rstrip())
    for folder in folders:
        print(f"folder: {printable(folder)}")
    for picture in unreadable:
        print(f"unreadable: {printable(picture.path)}: {printable(picture.error)}")
    return 0


STATS = Command(
    "stats",
    "",
    "print what a gallery holds, how it was made, and what could not be read",
    "alnumpy stats",
    stats_arguments,
    run_stats,
)


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy list``."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="only this picture, or pictures below this folder")
    add_gallery(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: a list of pictures")
    form.add_argument("--csv", action="store_true", help="print CSV: " + ", ".join(results.PICTURE_COLUMNS))
    form.add_argument("-0", dest="null", action="store_true", help="print only paths, each followed by a NUL")


def run_list(args: argparse.Namespace) -> int:
    """``alnumpy list``."""
    from ..gallery import Gallery

    with Gallery(args.db) as gallery:
        pictures = gallery.pictures(args.paths, embeddings=False)
        if args.json:
            sys.stdout.writelines(results.pictures_json(pictures))
        elif args.csv:
            sys.stdout.buffer.writelines(results.pictures_csv(pictures))
        elif args.null:
            sys.stdout.buffer.writelines(results.null_paths(p.path for p in pictures))
        else:
            for line in results.pictures_text(pictures):
                print(line)
        failed = False
        for path in args.paths:
            if next(gallery.pictures([path], embeddings=False), None) is None:
                warn(f"{path}: not in the gallery, nor anything below it")
                failed = True
    return 1 if failed else 0


LIST = Command(
    "list",
    "[PATH ...]",
    "print the pictures of a gallery by path, and mark those that are missing or unreadable",
    "alnumpy list ~/Pictures/2024",
    list_arguments,
    run_list,
)


def move_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy move``."""
    parser.add_argument("old", metavar="OLD", help="the path of a folder or picture as recorded in the gallery")
    parser.add_argument("new", metavar="NEW", help="its path now")
    add_gallery(parser)


def run_move(args: argparse.Namespace) -> int:
    """``alnumpy move``."""
    from ..gallery import Gallery

    if not os.path.lexists(args.new):
        warn(f"{args.new}: No such file or folder; move the files first, then tell the gallery")
        return 1
    with Gallery(args.db):  # it must exist: opening it to write would make it
        pass
    with Gallery(args.db, mode="a") as gallery:
        moved = gallery.move(args.old, args.new)
    print(f"{moved} moved")
    if not moved:
        warn(f"{args.old}: not in the gallery, nor anything below it")
    return 0 if moved else 1


MOVE = Command(
    "move",
    "OLD NEW",
    "tell a gallery that a folder or picture was moved or renamed, without reading a file; no file is moved",
    "alnumpy move ~/Pictures /media/disk/Pictures",
    move_arguments,
    run_move,
)


def remove_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy remove``."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="picture, or folder with everything below it; even if it no longer exists",
    )
    add_gallery(parser)


def run_remove(args: argparse.Namespace) -> int:
    """``alnumpy remove``."""
    from ..gallery import Gallery

    with Gallery(args.db):  # it must exist: opening it to write would make it
        pass
    with Gallery(args.db, mode="a") as gallery:
        removed = [gallery.remove(path) for path in args.paths]
    for path, number in zip(args.paths, removed, strict=True):
        if not number:
            warn(f"{path}: not in the gallery, nor anything below it")
    print(f"{sum(removed)} removed")
    return 0 if all(removed) else 1


REMOVE = Command(
    "remove",
    "PATH ...",
    "remove pictures from a gallery; no file is ever deleted",
    "alnumpy remove ~/Pictures/old",
    remove_arguments,
    run_remove,
)


def reduce_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy reduce``."""
    add_gallery(parser)
    parser.add_argument(
        "--dimensions", type=positive_int, required=True, metavar="N", help="dimensions to keep, for example 128"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the new gallery, which is updated and searched like any other"
    )


def run_reduce(args: argparse.Namespace) -> int:
    """``alnumpy reduce``."""
    from ..gallery import Gallery

    with Gallery(args.db) as gallery:
        kept = gallery.reduce(args.out, args.dimensions)
        before = gallery.dimension
    with Gallery(args.out) as small:
        pictures = small.stats()["pictures"]
    print(f"{pictures} pictures, {before} dimensions to {args.dimensions}, which hold {kept:.1%} of the variance")
    return 0


def merge_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy merge``."""
    parser.add_argument("galleries", nargs="+", metavar="GALLERY", help="galleries made with the same settings")
    parser.add_argument("--out", required=True, metavar="FILE", help="the new gallery")


def run_merge(args: argparse.Namespace) -> int:
    """``alnumpy merge``."""
    from ..copying import merge

    if len(args.galleries) < 2:
        raise UsageError("merge takes two galleries or more")
    pictures = merge(args.galleries, args.out)
    print(f"{pictures} pictures of {len(args.galleries)} galleries")
    return 0


REDUCE = Command(
    "reduce",
    "--dimensions N --out FILE",
    "write a smaller gallery of the same pictures, with PCA-whitened embeddings of norm 1",
    "alnumpy reduce --dimensions 128 --out small.db",
    reduce_arguments,
    run_reduce,
)

MERGE = Command(
    "merge",
    "GALLERY GALLERY ... --out FILE",
    "write one gallery of all pictures of several that were made apart with the same settings",
    "alnumpy merge laptop.db archive.db --out all.db",
    merge_arguments,
    run_merge,
)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy export``."""
    add_gallery(parser)
    parser.add_argument(
        "--format", choices=("parquet", "npz", "jsonl", "csv"), required=True, help="parquet needs the extra parquet"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write, whole or not at all")


def run_export(args: argparse.Namespace) -> int:
    """``alnumpy export``."""
    from ..exporting import export

    if os.path.exists(args.db) and same_file(args.output, args.db):
        raise UsageError(f"{args.output} is the gallery itself")
    pictures, damaged = export(args.db, args.output, args.format)
    print(f"{pictures} pictures")
    return int(warn_of("left out: its row is damaged; index its folder with --rehash", damaged))


EXPORT = Command(
    "export",
    "--format FORMAT --output FILE",
    "write paths, dates, sizes and embeddings of a gallery as a file for other programs",
    "alnumpy export --format parquet --output pictures.parquet",
    export_arguments,
    run_export,
)
