"""``alnumpy search``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from PIL import Image

from .. import images, results
from ..errors import ImageError, printable
from ..files import replacing
from .common import (
    Command,
    UsageError,
    add_backend,
    add_gallery,
    add_max_pixels,
    collect,
    date,
    distance,
    gallery_embedder,
    positive_int,
    region,
    same_file,
    tell_distances,
    warn,
)

if TYPE_CHECKING:
    from ..gallery import Match


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy search``."""
    parser.add_argument(
        "queries", nargs="+", metavar="QUERY", help="picture, folder of pictures, or - for a list of paths on stdin"
    )
    add_gallery(parser)
    parser.add_argument("-k", type=positive_int, default=10, help="pictures per query (default: %(default)s)")
    parser.add_argument("--recursive", action="store_true", help="include the folders below a folder of queries")
    parser.add_argument("--mean", action="store_true", help="one ranking by the mean of all queries")
    parser.add_argument(
        "--not",
        dest="unlike",
        action="append",
        default=[],
        metavar="PICTURE",
        help="leave out pictures that look more like this one than like the query; can be given several times",
    )
    parser.add_argument(
        "--region",
        type=region,
        metavar="X,Y,W,H",
        help="search for this part of each query, in pixels",
    )
    parser.add_argument(
        "--in",
        dest="folders",
        action="append",
        default=[],
        metavar="FOLDER",
        help="only pictures below this folder; can be given several times",
    )
    parser.add_argument(
        "--since",
        type=date,
        metavar="DATE",
        help="only pictures from this date on, by EXIF or else by the file's time: 2024, 2024-05, 2024-05-31",
    )
    parser.add_argument(
        "--until",
        type=date,
        metavar="DATE",
        help="only pictures until this date, including the whole year, month or day",
    )
    parser.add_argument("--max-distance", type=distance, metavar="D", help="only pictures within this distance")
    parser.add_argument("--skip-same", action="store_true", help="leave out the query itself and files identical to it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: a list of queries with their results")
    form.add_argument(
        "--csv", action="store_true", help="print CSV: query, rank, distance, path, same, missing, path_base64"
    )
    form.add_argument("-0", dest="null", action="store_true", help="print only paths, each followed by a NUL")
    parser.add_argument("--montage", metavar="FILE", help="also write a PNG of queries and results")
    parser.add_argument("--html", metavar="FILE", help="also write a page of queries and results that opens anywhere")
    parser.add_argument("--weights", metavar="FILE", help="weights file (default: the gallery's)")
    add_max_pixels(parser)
    add_backend(parser)


def run_search(args: argparse.Namespace) -> int:
    """``alnumpy search``."""
    from .. import likeness
    from ..gallery import Gallery

    paths, failed = collect(args.queries, args.recursive)
    written = [path for path in (args.montage, args.html) if path]
    if len({os.path.realpath(path) for path in written}) < len(written):
        raise UsageError(f"--montage and --html both name {args.html}")
    with Gallery(args.db) as made:
        recorded = made.settings
        for target in filter(os.path.isfile, written):
            if target in made or any(same_file(path, target) for path in [args.db, *paths]):
                raise UsageError(f"{target} is the gallery, one of its pictures, or one of the queries")
    found: list[tuple[str, list[Match]]] = []
    with Gallery(args.db, gallery_embedder(args, recorded), max_pixels=args.max_pixels) as gallery:
        for folder in args.folders:
            if next(gallery.pictures([folder], embeddings=False), None) is None:
                warn(f"{folder}: not in the gallery, nor anything below it")
                failed += 1
        options = {
            "folders": args.folders,
            "since": args.since or "",
            "until": args.until or "",
            "max_distance": args.max_distance,
            "skip_same": args.skip_same,
            "unlike": gallery.embed(args.unlike),
        }
        for group in [paths] if args.mean and paths else [[path] for path in paths]:
            try:
                sources = [part_of(path, args) for path in group]
                found += [(group[0], matches) for matches in gallery.search(sources, args.k, mean=args.mean, **options)]
            except ImageError as error:
                warn(error)
                failed += 1
        damaged = gallery.damaged
        filled = gallery.stats()["pictures"] > 0
    for path, reason in damaged:
        warn(f"{path}: damaged in the gallery: {reason}; not ranked; to mend it, remove the picture and index it again")
    if filled and any(not matches for _, matches in found):
        warn("no picture meets the conditions of --in, --since, --until, --max-distance, --skip-same and --not")
    elif found and not filled:
        warn(f"{args.db}: has no pictures to find; fill it with: alnumpy index FOLDER --db FILE")
        failed += 1
    missing = {m.path for _, matches in found for m in matches if not os.path.lexists(m.path)}
    if missing:
        more = f", and {len(missing) - 1} more results" if len(missing) > 1 else ""
        remedy = "is its disk mounted? If so, alnumpy index finds moved pictures, alnumpy remove PATH forgets it"
        warn(f"{min(missing)}: missing{more}; {remedy}")
    if found and args.montage:
        from ..montage import write_montage

        with replacing(args.montage) as file:
            try:
                write_montage(file, found, args.max_pixels)
            except ValueError as error:
                raise UsageError(f"{args.montage}: {error}") from None
    if found and args.html:
        from ..montage import write_html

        with replacing(args.html) as file:
            write_html(file, found, args.max_pixels, page=args.html, meaning=likeness.explain(recorded))
    # Print after writing the files, so that a reader who stops reading (| head -1) does not prevent them.
    if args.json:
        print(results.search_json(found, missing))
    elif args.csv:
        sys.stdout.buffer.writelines(results.search_csv(found, missing))
    elif args.null:
        sys.stdout.buffer.writelines(results.null_paths(match.path for _, matches in found for match in matches))
    else:
        tell_distances(likeness.explain(recorded))
        for query, matches in found:
            if len(found) > 1:
                sys.stdout.flush()
                print(f"{printable(query)}:", file=sys.stderr, flush=True)
            for match in matches:
                print(results.match_text(match, "same" * match.same, "missing" * (match.path in missing)))
    return 1 if failed or damaged else 0


def part_of(path: str, args: argparse.Namespace) -> str | Image.Image:
    """A query's path, or the part of the picture given by --region. Raises ImageError."""
    return path if args.region is None else images.read_part(path, args.region, args.max_pixels, path)


SEARCH = Command(
    "search",
    "QUERY ...",
    'find the pictures of a gallery that look most like others; "same" marks files identical to the query',
    "alnumpy search photo.jpg -k 10 --html results.html",
    search_arguments,
    run_search,
)
