"""The commands that fill and look after a gallery: index, stats, remove, reduce."""

from __future__ import annotations

import argparse
import os

from .. import weights
from ..errors import GalleryError, printable
from .common import (
    Command,
    add_backend,
    add_gallery,
    add_max_pixels,
    gallery_embedder,
    positive_int,
    progress_line,
    side,
    warn,
)


def index_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy index``."""
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="picture, or folder with everything below it; links to folders are not followed",
    )
    add_gallery(parser)
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove missing pictures instead of marking them, but none of an empty folder (an unmounted disk)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8"),
        help="number format for a new gallery: float16 takes half the disk space, int8 a third (default: float32)",
    )
    parser.add_argument(
        "--fast-decode",
        action="store_true",
        default=None,
        help="for a new gallery: decode JPEGs at reduced size, which is several times as fast and a little less exact",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights file (default: the gallery's, or alnumpy's own)")
    parser.add_argument("--size", type=side, help="side of the network's input in pixels (default: the gallery's)")
    parser.add_argument(
        "--normalize",
        action="store_true",
        default=None,
        help="for a new gallery: divide each embedding by its L2 norm",
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
        "--verbose", action="store_true", help="say on stderr which backend ran and where the time went"
    )


def run_index(args: argparse.Namespace) -> int:
    """``alnumpy index``."""
    from ..gallery import Gallery

    try:
        with Gallery(args.db) as made:
            recorded = made.settings if made.bound else None
    except GalleryError:
        recorded = None  # a new one; what else may be wrong with it shows when it is opened to write
    embedder = gallery_embedder(args, recorded, args.size, args.normalize)
    recorded_weights = os.path.abspath(args.weights or weights.default_path())
    opened = Gallery(
        args.db,
        embedder,
        "a",
        dtype=args.dtype,
        fast_decode=args.fast_decode,
        flip=args.flip,
        weights=recorded_weights,
        batch_size=args.batch_size,
        max_pixels=args.max_pixels,
    )
    with opened as gallery, progress_line() as show:
        report = gallery.index(args.folders, prune=args.prune, progress=show)
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


INDEX = Command(
    "index",
    "FOLDER ... --db FILE",
    "keep a gallery up to date: a file with the embeddings of the pictures in folders",
    "alnumpy index ~/Pictures --db gallery.db",
    index_arguments,
    run_index,
)


def stats_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy stats``."""
    add_gallery(parser)


def run_stats(args: argparse.Namespace) -> int:
    """``alnumpy stats``."""
    from ..gallery import Gallery

    with Gallery(args.db) as gallery:
        for key, value in gallery.stats().items():
            print(f"{key}: {printable(value)}")
        for picture in gallery:
            if picture.error is not None and not picture.vanished:
                print(f"unreadable: {printable(picture.path)}: {printable(picture.error)}")
    return 0


STATS = Command(
    "stats",
    "--db FILE",
    "print what a gallery holds, how it was made, and what could not be read",
    "alnumpy stats --db gallery.db",
    stats_arguments,
    run_stats,
)


def remove_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy remove``."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="picture, or folder with everything below it; need not exist any longer",
    )
    add_gallery(parser)


def run_remove(args: argparse.Namespace) -> int:
    """``alnumpy remove``."""
    from ..gallery import Gallery

    with Gallery(args.db):  # which must exist: to open it to write would make it
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
    "PATH ... --db FILE",
    "remove pictures from a gallery; no file is ever deleted",
    "alnumpy remove ~/Pictures/old --db gallery.db",
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


REDUCE = Command(
    "reduce",
    "--db FILE --dimensions N --out FILE",
    "write a smaller gallery of the same pictures: PCA-whitened embeddings of norm 1",
    "alnumpy reduce --db gallery.db --dimensions 128 --out small.db",
    reduce_arguments,
    run_reduce,
)
