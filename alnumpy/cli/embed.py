"""``alnumpy embed``."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator

from .. import results
from ..embedder import Embedded, load
from .common import (
    Command,
    UsageError,
    add_backend,
    add_max_pixels,
    collect,
    output,
    positive_int,
    progress_line,
    same_file,
    side,
    warn,
)


def embed_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy embed``."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="picture, folder of pictures, or - for a list of paths on stdin"
    )
    parser.add_argument(
        "--recursive", action="store_true", help="include the folders below a folder, but no links to folders"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="weights file, or a name of alnumpy models (default: alnet-photo)"
    )
    parser.add_argument(
        "--format", choices=results.EMBEDDING_WRITERS, default="jsonl", help="what to write (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="write there instead of to stdout; required for npy")
    parser.add_argument(
        "--fast-decode",
        action="store_true",
        help="decode JPEGs at reduced size, which is several times as fast and a little less exact",
    )
    parser.add_argument("--normalize", action="store_true", help="divide each embedding by its L2 norm")
    parser.add_argument("--size", type=side, help="side of the network's input in pixels (default: the weights file's)")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="pictures per batch (default: %(default)s)")
    add_max_pixels(parser)
    add_backend(parser)
    parser.add_argument("--verbose", action="store_true", help="print on stderr which backend ran and how long it took")


def run_embed(args: argparse.Namespace) -> int:
    """``alnumpy embed``."""
    if args.format == "npy" and args.output is None:
        raise UsageError("--format npy needs --output FILE")
    embedder = load(args.weights, args.size, args.normalize, args.backend, args.threads)
    paths, failed = collect(args.paths, args.recursive, "; --recursive takes the folders below it too")
    if args.output and os.path.isfile(args.output) and any(same_file(path, args.output) for path in paths):
        raise UsageError(f"{args.output} is one of the pictures to embed")

    rows = embedder.embed_files(paths, args.batch_size, args.max_pixels, fast_decode=args.fast_decode)
    embedded: list[str] = []  # the rows of an npy file

    def good() -> Iterator[Embedded]:
        nonlocal failed
        for result in progress(rows, len(paths)):
            if result.error is None:
                if args.format == "npy":
                    embedded.append(result.path)
                yield result
            else:
                warn(result.error)
                failed += 1

    start = time.perf_counter()
    with output(args.output) as file:
        results.EMBEDDING_WRITERS[args.format](file, good())
    if args.format == "npy":
        for i, path in enumerate(embedded):
            print(json.dumps({"row": i} | results.named("path", path)))
    if args.verbose:
        warn(f"backend {embedder.backend_used}, {len(paths)} pictures in {time.perf_counter() - start:.2f} s")
    return 1 if failed else 0


def progress(rows: Iterable[Embedded], total: int) -> Iterator[Embedded]:
    """Passes rows through and shows the progress."""
    with progress_line() as show:
        for done, row in enumerate(rows, 1):
            yield row
            show(done, total)


EMBED = Command(
    "embed",
    "PATH ...",
    "print the embedding of each picture",
    "alnumpy embed photo.jpg\n  alnumpy embed --recursive ~/Pictures --format npy --output embeddings.npy",
    embed_arguments,
    run_embed,
)
