"""``alnumpy duplicates``."""

from __future__ import annotations

import argparse
import os
import sys

from .. import results
from ..files import replacing
from .common import Command, UsageError, add_gallery, add_max_pixels, distance, same_file, tell_distances, warn


def duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy duplicates``."""
    add_gallery(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--like",
        choices=("exact", "near", "similar"),
        default="near",
        help="identical files; copies made by programs, in other formats and sizes; or copies made by people, "
        "cropped, turned or brightened a little (default: %(default)s)",
    )
    how.add_argument("--threshold", type=distance, metavar="D", help="pictures within this distance, instead of --like")
    parser.add_argument(
        "--keep",
        choices=("pixels", "bytes", "oldest", "newest"),
        default="pixels",
        help="which picture comes first in its group; then follow pixels, bytes and age (default: most pixels)",
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="FOLDER",
        help="only pictures that look like those below this folder, which come first; can be given several times",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: a list of groups")
    form.add_argument("--csv", action="store_true", help="print CSV: " + ", ".join(results.MEMBER_COLUMNS))
    form.add_argument(
        "-0",
        dest="null",
        action="store_true",
        help="print only paths, each followed by a NUL, without the first of each group and without --reference",
    )
    parser.add_argument("--html", metavar="FILE", help="also write a page that shows each group side by side")
    add_max_pixels(parser)


def run_duplicates(args: argparse.Namespace) -> int:
    """``alnumpy duplicates``."""
    from .. import likeness
    from ..gallery import Gallery

    with Gallery(args.db) as gallery:
        meaning = likeness.explain(gallery.settings, "first")
        if args.html and os.path.isfile(args.html) and (args.html in gallery or same_file(args.html, args.db)):
            raise UsageError(f"{args.html} is the gallery, or one of its pictures")
        like = args.like if args.threshold is None else args.threshold
        groups = gallery.groups(like, keep=args.keep, reference=args.reference)
        damaged = gallery.damaged
    for path, reason in damaged:
        warn(f"{path}: damaged in the gallery: {reason}; left out")
    if args.html:
        from ..montage import write_html

        with replacing(args.html) as file:
            found = [(group[0].path, group[1:]) for group in groups]
            write_html(file, found, args.max_pixels, page=args.html, title="Duplicates", first="first", meaning=meaning)
    # Print after writing the file, so that a reader who stops reading (| head -1) does not prevent it.
    if args.json:
        print(results.groups_json(groups))
    elif args.csv:
        sys.stdout.buffer.writelines(results.groups_csv(groups))
    elif args.null:
        others = (member.path for group in groups for member in group if not member.kept)
        sys.stdout.buffer.writelines(results.null_paths(others))
    else:
        tell_distances(meaning if groups else "")
        for line in results.groups_text(groups):
            print(line)
    return 1 if damaged else 0


DUPLICATES = Command(
    "duplicates",
    "",
    "print groups of pictures of a gallery that look alike, the one to keep first; nothing is ever deleted",
    "alnumpy duplicates --html duplicates.html\n  alnumpy duplicates --like exact -0 | xargs -0 ls -l",
    duplicates_arguments,
    run_duplicates,
)
