"""``alnumpy eval``."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .. import results
from ..errors import printable
from .common import Command, UsageError, add_gallery, progress_line, warn, warn_of

if TYPE_CHECKING:
    from ..evaluation import Evaluation, LandmarkScores


def eval_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy eval``."""
    add_gallery(parser)
    relevant = parser.add_mutually_exclusive_group()
    relevant.add_argument(
        "--labels",
        metavar="FILE",
        help="CSV with the header path,label, paths relative to it (default: the names of the pictures' folders)",
    )
    relevant.add_argument(
        "--groundtruth", metavar="FOLDER", help="ground-truth files of Oxford5k or Paris6k: measure by their rule"
    )
    parser.add_argument(
        "--queries", metavar="FILE", help="another gallery, whose pictures are the queries (default: each picture)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_eval(args: argparse.Namespace) -> int:
    """``alnumpy eval``."""
    from .. import evaluation
    from ..gallery import Gallery

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
        show = opened.enter_context(progress_line())
        result = evaluation.evaluate_gallery(gallery, labels, queries, progress=show)
    print_evaluation(result, args.labels or "the names of their folders", args.json)
    if result.labels == 1:
        warn("all pictures have one label, so every result is right: these measures say nothing")
    warn_of(f"not in {args.labels}, left out", result.unlabelled)
    unknown = warn_of("labelled, but not in the gallery", result.unknown)
    return int(warn_of("damaged in the gallery, left out", result.damaged) or unknown)


def print_evaluation(result: Evaluation, labels: str, as_json: bool) -> None:
    """The measures by labels, and what they were measured on."""
    scores = result.scores
    if as_json:
        print(results.measures_json(result._asdict() | {"scores": scores._asdict()}))
        return
    alone = f"; {scores.without_relevant} more have nothing to find" if scores.without_relevant else ""
    print(f"gallery: {result.pictures} pictures with {result.labels} labels: {printable(labels)}")
    print(f"queries: {scores.queries}{alone}; {result.excluded} are in the gallery, left out of their own ranking")
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
        print(results.measures_json(result._asdict()))
        return
    print(f"gallery: {result.pictures} pictures")
    print(f"queries: {len(result.each)}, whole pictures (no boxes), not left out of their own ranking")
    print("ties: by path")
    print(f"{'mAP, junk ignored, trapezoid rule':34}{result.mean:.4f}")
    for name, value in result.each.items():
        print(f"{printable(name):34}{value:.4f}")


EVAL = Command(
    "eval",
    "",
    "measure how well a gallery finds the pictures that belong together",
    "alnumpy eval --labels labels.csv",
    eval_arguments,
    run_eval,
)
