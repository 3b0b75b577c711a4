"""How well a gallery finds what belongs together: by labels, or by the ground truth of Oxford5k and Paris6k."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import images
from .errors import AlnumpyError, GalleryError
from .gallery import Gallery
from .retrieval import Scores, evaluate, official_average_precision, rankings
from .scan import respelled

Array = np.ndarray


class Evaluation(NamedTuple):
    """What ``evaluate_gallery`` measured, and on what. Equal distances are ranked by path."""

    scores: Scores
    pictures: int  # all labelled pictures of the gallery
    labels: int  # distinct labels of these pictures
    excluded: int  # queries that are in the gallery themselves, and were left out of their own ranking
    unlabelled: list[str]  # pictures left out because the labels do not name them
    unknown: list[str]  # paths in the labels that no picture has
    damaged: list[str]  # pictures left out because their embedding is missing or not finite


class LandmarkQuery(NamedTuple):
    """A query of the Oxford and Paris benchmarks. Pictures are named without folder and suffix."""

    name: str  # for example "all_souls_1"
    picture: str
    box: tuple[float, float, float, float]  # left, top, right, bottom of the landmark in the picture, in pixels
    positive: list[str]  # the pictures listed as good or ok
    junk: list[str]


class LandmarkScores(NamedTuple):
    """Average precision by the official rule. Equal distances are ranked by position in the database."""

    mean: float
    each: dict[str, float]  # average precision by the name of the query
    pictures: int  # the size of the database
    in_database: int  # queries whose picture is also in the database: the rule leaves it in
    missing: list[str]  # positive pictures that are not in the database; they count as never found
    damaged: Sequence[str] = ()  # pictures left out because their embedding is missing or not finite


def read_labels(path: str | os.PathLike[str]) -> dict[str, str]:
    """Labels by absolute path from a CSV file with the header ``path,label``; paths are relative to the file's folder.

    Raises OSError, or AlnumpyError, which names the line.
    """
    folder = os.path.dirname(os.path.abspath(path))
    labels: dict[str, str] = {}
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file, strict=True)
        try:
            if next(rows, None) != ["path", "label"]:
                raise AlnumpyError(f"{path}: the first line must be path,label")
            for row in rows:
                if not row:  # an empty line
                    continue
                if len(row) != 2:
                    raise AlnumpyError(f"{path}: line {rows.line_num}: {len(row)} fields instead of a path and a label")
                if not row[1]:
                    raise AlnumpyError(f"{path}: line {rows.line_num}: {row[0]} has an empty label; leave the line out")
                name = os.path.abspath(os.path.join(folder, row[0]))
                if labels.setdefault(name, row[1]) != row[1]:
                    raise AlnumpyError(f"{path}: line {rows.line_num}: {row[0]} has another label in a line above")
        except csv.Error as error:
            raise AlnumpyError(f"{path}: line {rows.line_num}: not CSV ({error})") from None
    return labels


def evaluate_gallery(
    gallery: Gallery,
    labels: Mapping[str, str] | None = None,
    queries: Gallery | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores of a gallery in which pictures with equal labels are relevant to each other.

    ``labels``: by absolute path, or None for the names of the pictures' folders. ``queries``: a gallery made by the
    same model whose pictures are the queries; None makes each picture of ``gallery`` a query against the rest. A
    picture is left out of its own ranking. ``progress(done, total)`` is called with numbers of queries.

    Raises GalleryError for galleries of two models, AlnumpyError if no picture is relevant to any query.
    """
    if queries is not None and queries.space != gallery.space:
        raise GalleryError(f"{queries.path}: made by another model or with other settings than {gallery.path}")
    paths, vectors, damaged = _read(gallery)
    all_paths = set(paths)
    if labels is not None:  # their letters may be composed otherwise than in the names of the files
        spelled = respelled(all_paths - labels.keys(), labels.keys() - all_paths)
        reached = {path: os.path.realpath(path) for path in labels.keys() - all_paths}  # paths that links lead to
        spelled |= {path: real for path, real in reached.items() if real in all_paths}
        labels = {spelled.get(path, path): label for path, label in labels.items()}
    paths, vectors, unlabelled = _labelled(paths, vectors, labels)
    query_paths, query_vectors = paths, vectors
    if queries is not None:
        query_paths, query_vectors, query_damaged = _read(queries)
        all_paths.update(query_paths)
        query_paths, query_vectors, query_unlabelled = _labelled(query_paths, query_vectors, labels)
        damaged += query_damaged
        unlabelled += query_unlabelled
    unknown = sorted(set(labels) - all_paths - set(damaged)) if labels is not None else []

    numbers: dict[str, int] = {}  # numbers of the labels
    y, query_y = (
        np.array([numbers.setdefault(_label(path, labels), len(numbers)) for path in some], np.int64)
        for some in (paths, query_paths)
    )
    positions = {path: i for i, path in enumerate(paths)}
    itself = np.array([positions.get(path, -1) for path in query_paths], np.int64)
    scores = evaluate(query_vectors, query_y, vectors, y, itself, progress)
    if scores.queries == 0:
        raise AlnumpyError(
            f"{gallery.path}: nothing to measure: none of {len(query_paths)} labelled queries has the label of another "
            f"of {len(paths)} labelled pictures"
        )
    return Evaluation(scores, len(paths), len(np.unique(y)), int((itself >= 0).sum()), unlabelled, unknown, damaged)


def _label(path: str, labels: Mapping[str, str] | None) -> str:
    return os.path.basename(os.path.dirname(path)) if labels is None else labels[path]


def _labelled(paths: list[str], vectors: Array, labels: Mapping[str, str] | None) -> tuple[list[str], Array, list[str]]:
    """The paths and vectors that have a label, and the paths that have none."""
    if labels is None or all(path in labels for path in paths):
        return paths, vectors, []
    kept = [i for i, path in enumerate(paths) if path in labels]
    return [paths[i] for i in kept], vectors[kept], [path for path in paths if path not in labels]


def _read(gallery: Gallery) -> tuple[list[str], Array, list[str]]:
    """The pictures that can be found: paths and embeddings float32 (N, dimension); and paths of damaged ones."""
    paths: list[str] = []
    damaged: list[str] = []
    rows = bytearray()
    for picture in gallery:
        if picture.error is not None or picture.vanished or picture.left_out:
            continue
        if picture.embedding is None:
            damaged.append(picture.path)
        else:
            paths.append(picture.path)
            rows += picture.embedding.tobytes()
    return paths, np.frombuffer(rows, np.float32).reshape(len(paths), gallery.dimension), damaged


def read_ground_truth(folder: str | os.PathLike[str]) -> list[LandmarkQuery]:
    """The queries of a folder of ground-truth files. Raises OSError, or AlnumpyError, which names the file."""
    paths = [p for p in Path(folder).iterdir() if p.suffix == ".txt" and not images.is_companion(p.name)]
    texts = {p.name: p.read_text("utf-8", "replace") for p in paths}
    try:
        return parse_ground_truth(texts)
    except AlnumpyError as error:
        raise AlnumpyError(f"{folder}: {error}") from None


def parse_ground_truth(texts: Mapping[str, str]) -> list[LandmarkQuery]:
    """The queries, by name, of the benchmarks' files <name>_query.txt, <name>_good.txt, <name>_ok.txt, <name>_junk.txt.

    ``texts``: what the files hold, by their names. Raises AlnumpyError, which names the file.
    """
    names = sorted(name.removesuffix("_query.txt") for name in texts if name.endswith("_query.txt"))
    if not names:
        raise AlnumpyError("no ground truth: there is no file <name>_query.txt")
    queries = []
    for name in names:
        lists = []
        for kind in ("good", "ok", "junk"):
            if f"{name}_{kind}.txt" not in texts:
                raise AlnumpyError(f"{name}_{kind}.txt is missing")
            lists.append(texts[f"{name}_{kind}.txt"].split())
        good, ok, junk = lists
        positive = list(dict.fromkeys(good + ok))  # a picture counts once, as in the benchmark's own program
        if not positive:
            raise AlnumpyError(f"{name}_good.txt and {name}_ok.txt are empty: the query has no positive picture")
        try:
            picture, *numbers = texts[f"{name}_query.txt"].split()
            left, top, right, bottom = map(float, numbers)
        except ValueError:
            raise AlnumpyError(f"{name}_query.txt: not a picture's name and four numbers") from None
        if not (isfinite(left + top + right + bottom) and left < right and top < bottom):
            raise AlnumpyError(f"{name}_query.txt: the box is empty or not finite")
        # Oxford's files put a prefix before the picture's name here, and nowhere else.
        queries.append(LandmarkQuery(name, picture.removeprefix("oxc1_"), (left, top, right, bottom), positive, junk))
    return queries


def evaluate_landmarks(
    query_vectors: Array, queries: Sequence[LandmarkQuery], vectors: Array, names: Sequence[str]
) -> LandmarkScores:
    """The official measure for embeddings of queries (Q, D) and of a database (N, D) of pictures with these names."""
    positions = {name: i for i, name in enumerate(names)}
    each = {}
    for part, order in rankings(query_vectors, vectors):
        for query, ranked in zip(queries[part], order, strict=True):
            positive = np.array([positions.get(name, -1) for name in query.positive])
            junk = np.array([positions.get(name, -1) for name in query.junk])
            each[query.name] = official_average_precision(ranked, positive, junk)
    missing = sorted({name for query in queries for name in query.positive} - positions.keys())
    in_database = sum(query.picture in positions for query in queries)
    return LandmarkScores(float(np.mean(list(each.values()))), each, len(names), in_database, missing)


def evaluate_gallery_landmarks(gallery: Gallery, queries: Sequence[LandmarkQuery]) -> LandmarkScores:
    """The official measure for a gallery that holds the queries' pictures. Whole pictures are the queries, not boxes.

    Raises AlnumpyError if the gallery lacks the picture of a query, or has two that the ground truth cannot tell apart.
    """
    paths, vectors, damaged = _read(gallery)
    names = [Path(path).stem for path in paths]
    positions: dict[str, int] = {}
    wanted = {name for query in queries for name in (query.picture, *query.positive, *query.junk)}
    for i, name in enumerate(names):
        if name in wanted and positions.setdefault(name, i) != i:
            raise AlnumpyError(f"{gallery.path}: {paths[positions[name]]} and {paths[i]} have the same name")
    for query in queries:
        if query.picture not in positions:
            raise AlnumpyError(f"{gallery.path}: {query.picture}, the query {query.name}, is not in the gallery")
    chosen = vectors[[positions[query.picture] for query in queries]]
    return evaluate_landmarks(chosen, queries, vectors, names)._replace(damaged=damaged)
