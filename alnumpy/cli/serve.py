"""``alnumpy serve``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .. import weights
from ..errors import GalleryError, MissingExtraError
from ..files import cache_folder, data_folder
from .common import (
    Command,
    UsageError,
    add_backend,
    add_gallery,
    add_max_pixels,
    default_gallery,
    gallery_embedder,
    name_network,
    positive_int,
    warn,
)

if TYPE_CHECKING:
    from ..gallery import Gallery


HALVES = " ▀▄█"  # two squares, one above the other: none, the upper, the lower or both light


def port(text: str) -> int:
    """An argument that is a port; 0 stands for any free port."""
    if not text.isdecimal() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, not {text!r}")
    return int(text)


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy serve``."""
    add_gallery(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0 stands for all of this computer's. Other computers need the token "
        "that is printed as a link (default: %(default)s, which only this computer reaches)",
    )
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="FOLDER",
        help="also bring the gallery up to date with this folder, at low priority; can be given several times",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=positive_int,
        const=60,
        metavar="SECONDS",
        help="look for changes every SECONDS (default: 60), in the --index folders or those indexed before",
    )
    parser.add_argument(
        "--thumbnails",
        type=positive_int,
        default=500,
        metavar="MB",
        help="keep thumbnails on disk up to this size (default: %(default)s)",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights file (default: the gallery's, or alnumpy's own)")
    add_max_pixels(parser)
    add_backend(parser)


def run_serve(args: argparse.Namespace) -> int:
    """``alnumpy serve``."""
    missing = [name for name in ("flask", "waitress", "segno") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"serve needs {', '.join(missing)}: pip install 'alnumpy[serve]'")
    if absent := [folder for folder in args.index if not os.path.isdir(folder)]:
        raise UsageError(f"--index: {absent[0]}: no such folder")
    from ..gallery import Gallery
    from ..serve import app, catalog, indexing, server, thumbnails, walls

    wanted = bool(args.index or args.watch)
    recorded = None
    if os.path.lexists(args.db) or not args.index:
        try:
            with Gallery(args.db) as made:
                recorded = made.settings if made.bound else None
        except GalleryError:
            if not args.index:
                raise
    elif args.db == default_gallery():
        os.makedirs(os.path.dirname(args.db) or ".", mode=0o700, exist_ok=True)
    embedder = gallery_embedder(args, recorded)

    def open_to_index() -> Gallery:
        found = os.path.abspath(weights.locate(args.weights))
        return Gallery(args.db, embedder, "a", weights=found, max_pixels=args.max_pixels)

    if recorded is None and args.index:
        open_to_index().close()  # makes the gallery if it is missing
        if args.weights is None:
            name_network(args.db)
    gallery = Gallery(args.db, embedder, max_pixels=args.max_pixels)
    token = "" if walls.is_local(args.host) else walls.read_token(data_folder())
    kept = cache_folder()
    cache = thumbnails.Cache(kept and kept / thumbnails.CACHE_FILE, args.thumbnails * 1_000_000)

    def surprised(error: Exception) -> None:
        if args.debug:
            traceback.print_exception(error)
        else:
            warn(f"{type(error).__name__}: {error}; alnumpy --debug serve shows where")

    service = app.Service(
        gallery,
        catalog.Catalog(gallery.path),
        thumbnails.Thumbnails(cache, args.max_pixels),
        walls.Walls(args.host, token, f"alnumpy-{args.port}"),
        indexing.Indexing(open_to_index, args.index, args.watch, warn, surprised) if wanted else None,
        surprised,
    )
    server.quiet(warn)
    listening = server.Server(app.create_app(service), service.walls, args.port)
    link = listening.address() + (f"?token={token}" if token else "")
    if token:
        warn("anyone with the link sees the pictures; it is not encrypted, so use it only in a network that you trust")
        print(code(link))
    print(link, flush=True)
    if service.indexing is not None:
        service.indexing.start()
    listening.run()  # until Ctrl-C, which does not wait: the next index finds what is not stored yet
    return 0


def code(text: str) -> str:
    """A QR code as text, for terminals with a dark background."""
    import segno

    rows = [[not dark for dark in row] for row in segno.make(text, error="L", micro=False).matrix_iter(border=2)]
    try:
        HALVES.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "\n".join("".join("##" if light else "  " for light in row) for row in rows)
    rows += [[False] * len(rows[0])] * (len(rows) % 2)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join("".join(HALVES[upper + 2 * lower] for upper, lower in zip(*pair, strict=True)) for pair in pairs)


SERVE = Command(
    "serve",
    "",
    "open a page for searching photos, and answer programs over HTTP, until Ctrl-C",
    "alnumpy serve --index ~/Pictures",
    serve_arguments,
    run_serve,
)
