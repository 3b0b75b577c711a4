#!/usr/bin/env python3
"""Regenerate the figures of docs/RESULTS.md: docs/results.json, and the tables between the page's markers.

    python tools/reproduce.py networks MNIST mnist/             # trains the paper's six networks: hours on a CPU
    python tools/reproduce.py networks MNIST mnist/ --measure-only   # the weights that ship, in a minute
    python tools/reproduce.py ablations MNIST mnist/            # trains ALNet and three without its parts: hours, too
    python tools/reproduce.py photos --classes sun397-15.zip --landmarks paris-279.zip
    python tools/reproduce.py kinds objects64.zip --split train --only 'object/*2'   # classes left out
    python tools/reproduce.py formats alnet-photo sun397-15.zip # what float16 and int8 cost
    python tools/reproduce.py decoding --classes sun397-15.zip --landmarks paris-279.zip   # whole, and fast
    python tools/reproduce.py sizes                             # sizes of saved models
    python tools/reproduce.py tables                            # the counts, and all tables again

Needs the extras: pip install 'alnumpy[train,numba]'.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import alnumpy
import train
from alnumpy import images, postprocess, weights
from alnumpy.counts import alblock_ratios, bottleneck_cost, costs, total
from alnumpy.decode import SCALES
from alnumpy.errors import AlnumpyError, ImageError
from alnumpy.evaluation import (
    LandmarkQuery,
    evaluate_gallery,
    evaluate_gallery_landmarks,
    evaluate_landmarks,
    parse_ground_truth,
)
from alnumpy.gallery import Gallery
from alnumpy.networks import SPECS, ALNet, Spec
from alnumpy.retrieval import Scores, evaluate
from baselines import BASELINES
from datasets import Box, Reader, class_folders, files, landmark_files, landmarks, load_class_folders, within
from torch_network import Network

TOOLS = Path(__file__).resolve().parent
DOCS = TOOLS.parent / "docs"
BATCH = 100
PHOTO_SIZES = {"alnet-photo": (48, 64, 128, 160), "efficientnet-lite0": (96, 128, 160, 192, 224)}  # sides of the input
BASELINE_SIZE = 128
WHITENED = (256, 128)  # numbers of dimensions

Take = Callable[[], images.ImageSource]  # returns one picture

# The paper's tables 2 to 6: FLOPs, parameters and bytes of the saved model in millions, "mAP@1", "mAP@5".
PAPER = {
    "MNIST": {
        "MobileNets": (44.04, 3.22, 13.1, 86.40, 98.51),
        "ShuffleNet": (26.04, 0.93, 4.7, 27.03, 98.51),
        "ShuffleNetV2": (39.29, 1.27, 5.5, 84.81, 99.23),
        "MobileNetV2": (6.10, 2.24, 9.3, 83.91, 99.14),
        "EfficientNet": (1.09, 4.02, 16.7, 21.67, 93.64),
        "ALNet": (4.56, 0.78, 3.4, 96.61, 99.80),
    },
    "SVHN": {
        "MobileNets": (48.24, 3.22, 13.1, 73.77, 97.98),
        "ShuffleNet": (46.28, 0.93, 5.1, 71.94, 97.77),
        "ShuffleNetV2": (47.25, 1.27, 5.5, 84.66, 98.37),
        "MobileNetV2": (6.69, 2.24, 9.3, 78.60, 97.91),
        "EfficientNet": (1.27, 4.02, 16.7, 75.74, 97.96),
        "ALNet": (6.64, 0.86, 3.4, 82.66, 98.46),
    },
    "SUN397": {
        "MobileNets": (772.27, 3.62, 13.1, 37.12, 94.20),
        "ShuffleNet": (740.88, 1.30, 18.2, 32.07, 94.98),
        "ShuffleNetV2": (1123.0, 1.70, 5.6, 35.34, 95.13),
        "MobileNetV2": (131.15, 2.74, 9.4, 33.60, 95.29),
        "EfficientNet": (11.24, 4.52, 16.7, 35.92, 94.92),
        "ALNet": (212.79, 0.77, 3.4, 33.67, 95.76),
    },
    "Oxbuild5k": {
        "MobileNets": (1205.0, 3.23, 13.1, 19.38, 92.51),
        "ShuffleNet": (1156.0, 0.93, 26.1, 19.23, 92.96),
        "ShuffleNetV2": (2049.0, 1.32, 5.7, 18.38, 92.43),
        "MobileNetV2": (224.39, 2.32, 9.6, 18.03, 93.09),
        "EfficientNet": (15.65, 4.03, 16.7, 19.56, 89.65),
        "ALNet": (404.31, 0.77, 3.4, 19.91, 93.58),
    },
    "Paris6k": {
        "MobileNets": (1205.0, 3.23, 13.1, 24.41, 94.25),
        "ShuffleNet": (1156.0, 0.93, 26.1, 22.82, 92.95),
        "ShuffleNetV2": (2049.0, 1.32, 5.7, 23.14, 93.45),
        "MobileNetV2": (224.37, 2.31, 9.6, 22.57, 92.60),
        "EfficientNet": (15.64, 4.02, 16.7, 23.60, 92.10),
        "ALNet": (404.31, 0.77, 3.4, 24.87, 91.58),
    },
}
LANDMARKS = "--size 80 160 --epochs 40 20 --crop 0.5 --flip"
RECIPES = {  # options of tools/train.py
    "MNIST": "--size 28 --epochs 16 --shift 2 --rotate 10 --stretch 0.1",
    "SVHN": "--size 32 --epochs 12 --shift 2",
    "SUN397": "--size 64 128 --epochs 20 10 --crop 0.5 --flip",
    "Oxbuild5k": LANDMARKS,
    "Paris6k": LANDMARKS,
}
# Recipes for the six networks of tables 2 to 6: one for all of them, and the paper's once for ALNet.
SIX = "--size 28 --epochs {epochs} --shift 2 --rotate 10 --stretch 0.1"
EPOCHS = 6
TIMED = 40  # runs of which the fastest counts
DATA_SIZES = {"MNIST": 28, "SVHN": 32, "SUN397": 128, "Oxbuild5k": 160, "Paris6k": 160}
CLASSES = {"MNIST": 10, "SVHN": 10, "SUN397": 397, "Oxbuild5k": 17, "Paris6k": 12}
NETWORKS = {
    "MobileNets": "mobilenet-v1-paper",
    "ShuffleNet": "shufflenet-v1-paper",
    "ShuffleNetV2": "shufflenet-v2-paper",
    "MobileNetV2": "mobilenet-v2",
    "EfficientNet": "efficientnet-b0",
    "ALNet": "alnet",
}
ABLATIONS = {  # table 7, "mAP@1" on the five data sets
    "mobilenet-v2": ("MobileNetV2", 83.91, 78.60, 33.60, 18.03, 22.57),
    "lnet": ("LNet", 81.28, 49.47, 30.29, 18.77, 18.94),
    "lnet-cs": ("LNet+CS", 92.76, 74.70, 31.29, 18.79, 20.75),
    "lnet-cbam": ("LNet+CBAM", 86.41, 61.59, 29.90, 19.44, 22.69),
    "alnet": ("ALNet", 96.61, 82.66, 33.67, 19.91, 24.87),
}


PAPERS_RECIPE = "ALNet, the paper's recipe"  # a row beside the six
SHIPPED = {"MNIST": "alnet-mnist"}  # the weights that ship, by data set

Vectors = list[np.ndarray]  # vectors of the pictures of classes, of the queries of landmarks, of the landmarks


class Places(NamedTuple):
    """Landmarks: the names of the readable ones, and the queries."""

    names: list[str]
    queries: list[LandmarkQuery]


# --- measuring ------------------------------------------------------------------------------------------------------


def embed(embedder: alnumpy.Embedder, pictures: Sequence[Take]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Embeddings made as in a gallery, before they are normalised.

    Returns the indices of the readable pictures, their embeddings, and the means of those with their mirror images'.
    """

    def load(take: Take) -> np.ndarray | None:
        try:
            return images.load(take(), embedder.preprocessing)[0]
        except ImageError:
            return None

    good: list[int] = []
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with ThreadPoolExecutor(embedder.threads) as pool:
        for start in range(0, len(pictures), BATCH):
            found = list(pool.map(load, pictures[start : start + BATCH]))
            good += [start + i for i, x in enumerate(found) if x is not None]
            batch = np.stack([x for x in found if x is not None])
            plain = embedder.forward(batch)
            parts.append((plain, (plain + embedder.forward(batch[..., ::-1])) / 2))
    plain, flipped = map(np.concatenate, zip(*parts, strict=True))
    return good, plain, flipped


def boxed(read: Reader, box: Box) -> Take:
    """A function that returns a box of a picture."""

    def take() -> images.ImageSource:
        image = images.read(read())
        left, top, right, bottom = (round(side) for side in within(box, image))
        return image.crop((left, top, right, bottom))

    return take


def against_the_rest(vectors: np.ndarray, labels: np.ndarray) -> Scores:
    """Each vector a query against all others."""
    return evaluate(vectors, labels, vectors, labels, np.arange(len(labels)))


def fingerprint(path: Path) -> str:
    """SHA-256 of the parameters in a weights file; without the self-test, whose last bits depend on the machine."""
    parameters = weights.read(path).parameters
    return hashlib.sha256(b"".join(parameters[name].tobytes() for name in sorted(parameters))).hexdigest()


def trained(options: str, source: Path, out: Path, speed: list[str]) -> Path:
    """Trains a network by ``tools/train.py``, or continues where it was stopped. Returns its weights file."""
    resume = ["--resume"] if (out / "last.pt").exists() else []
    command = [str(TOOLS / "train.py"), str(source), *options.split(), "--out", str(out), *resume, *speed]
    subprocess.run([sys.executable, *command], check=True)
    file = out / "weights.h5"
    convert = [str(TOOLS / "convert_weights.py"), str(out / "best.pt"), "-o", str(file)]
    subprocess.run([sys.executable, *convert], check=True)
    return file


def retrieved(file: Path, size: int, pictures: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Each test picture against the rest, by the embeddings of a weights file as they are, and normalised."""
    vectors = alnumpy.load(file, size).embed(list(pictures))  # the best epoch may have had another size
    scores, normalised = (against_the_rest(v, labels) for v in (vectors, postprocess.l2_normalize(vectors)))
    return {**scores._asdict(), "full_map_l2": normalised.full_map, "weights": fingerprint(file)}


def milliseconds(file: Path, size: int) -> float:
    """The shortest time for one picture in one thread."""
    embedder, taken = alnumpy.load(file, size, threads=1), []
    picture = np.zeros((1, 3, size, size), np.float32)
    for _ in range(TIMED):
        begin = time.perf_counter()
        embedder.forward(picture)
        taken.append(time.perf_counter() - begin)
    return 1000 * min(taken)


def measure_ablations(data: str, source: Path, runs: Path, speed: list[str]) -> dict[str, Any]:
    """Trains ALNet, MobileNetV2 and the ablations by one recipe and measures each on the test pictures."""
    pictures, labels, _ = train.load(source, "test", DATA_SIZES[data])
    rows = {}
    recipe = f"--recipe modern --seed 0 {RECIPES[data]}"
    for spec in ABLATIONS:
        out = runs / data / spec
        file = trained(f"--spec {spec} {recipe}", source, out, speed)
        accuracy = torch.load(out / "best.pt", weights_only=True, map_location="cpu")["accuracy"]
        rows[spec] = {"accuracy": accuracy, **retrieved(file, DATA_SIZES[data], pictures, labels)}
    return {"recipe": recipe, "pictures": len(labels), "networks": rows}


def measure_six(
    data: str, source: Path, runs: Path, speed: list[str], epochs: int, only: Sequence[str], found: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Trains the six networks of a data set as the paper had them, by one recipe, and ALNet by the paper's.

    Yields all results after each. Results ``found`` before by the same recipes are kept.
    """
    size = DATA_SIZES[data]
    pictures, labels, _ = train.load(source, "test", size)
    options = SIX.format(epochs=epochs)
    recipes = {"modern": f"--recipe modern {options}", "paper": f"--recipe paper --size {size} --epochs {epochs}"}
    same = found.get("recipes") == recipes
    rows = dict(found["networks"]) if same else {}
    for name in [*NETWORKS, PAPERS_RECIPE]:
        if name in rows or (only and name not in only):
            continue
        system, recipe = (name, "modern") if name in NETWORKS else ("ALNet", "paper")
        spec, _ = counted(system, data)
        out = runs / data / f"six-{recipe}-{NETWORKS[system]}"
        begin = time.monotonic()
        given = f"--spec {NETWORKS[system]} --stem {spec.layers()[0].channels} --seed 0 {recipes[recipe]}"
        file = trained(given, source, out, speed)
        minutes = (time.monotonic() - begin) / 60
        accuracy = torch.load(out / "best.pt", weights_only=True, map_location="cpu")["accuracy"]
        rows[name] = {"accuracy": accuracy, **retrieved(file, size, pictures, labels), "minutes": minutes}
        rows[name] |= {"milliseconds": milliseconds(file, size)}
        print(f"{name}: {rows[name]}", flush=True)
        yield {"recipes": recipes, "epochs": epochs, "pictures": len(labels), "networks": rows}


def measure_shipped(data: str, source: Path) -> None:
    """Prints accuracy and cost of the weights that ship, without training."""
    file = weights.locate(SHIPPED[data])
    size, spec = weights.read(file).preprocessing.size, weights.read(file).spec
    pictures, labels, _ = train.load(source, "test", size)
    scores = retrieved(file, size, pictures, labels)
    flops, parameters = counts(spec, size)
    for key in ("full_map", "full_map_l2", "ap5_hits", "ap5", "precision1"):
        print(f"{key} {percent(scores[key])}")
    print(f"MFLOPs {flops}\nM parameters {parameters}\nMB {file.stat().st_size / 1e6:.2f}")
    print(f"milliseconds {milliseconds(file, size):.2f}")


def measure_kinds(file: Path, sizes: Sequence[int], source: Path, split: str, only: str) -> dict[str, Any]:
    """Retrieval among the pictures of some classes, by directions."""
    found, labels, names = class_folders(source, split)
    chosen = np.array([fnmatchcase(names[label], only) for label in labels])
    pictures = [read for read, stays in zip(found.values(), chosen, strict=True) if stays]
    rows = []
    for size in sizes:
        good, vectors, _ = embed(alnumpy.load(file, size), pictures)
        scores = against_the_rest(postprocess.l2_normalize(vectors), labels[chosen][good])
        rows.append({"size": size, "pictures": len(good), **scores._asdict()})
        print(f"{file.stem} at {size}: P@1 {scores.precision1:.3f} mAP {scores.full_map:.3f}")
    return {"weights": fingerprint(file), "data": source.name.removesuffix(".zip"), "only": only, "rows": rows}


def both(name: str, vectors: Vectors, labels: np.ndarray, places: Places, **row: Any) -> tuple[dict, dict]:
    """One way of describing pictures, measured on classes and on landmarks."""
    of_classes, of_queries, of_places = vectors
    scores = against_the_rest(of_classes, labels)
    official = evaluate_landmarks(of_queries, places.queries, of_places, places.names)
    print(f"{row} {name}: P@1 {scores.precision1:.3f} mAP {scores.full_map:.3f} official {official.mean:.3f}")
    row |= {"way": name}
    return row | scores._asdict(), row | {"official_map": official.mean, "pictures": official.pictures}


def whitened(mean: np.ndarray, projection: np.ndarray, plain: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """One of the ways below."""
    return postprocess.whiten(flipped, mean, projection)


def measure_baselines(classes: Path, landmark_data: Path) -> dict[str, Any]:
    """Measures the ways that need no network."""
    pixels, labels, _ = load_class_folders(classes, "test", BASELINE_SIZE)
    found = landmarks(landmark_data, BASELINE_SIZE)
    places = Places(found.names, found.queries)
    rows = [
        both(name, [describe(x) for x in (pixels, found.query_images, found.images)], labels, places)
        for name, describe in BASELINES.items()
    ]
    return {"classes": [row for row, _ in rows], "landmarks": [row for _, row in rows]}


def measure_photos(file: Path, sizes: Sequence[int], classes: Path, landmark_data: Path) -> dict[str, Any]:
    """Retrieval by one network at several input sizes, on pictures that it was not trained on."""
    tested, labels, _ = class_folders(classes, "test")
    learnt_from, _, _ = class_folders(classes, "train")
    paths, found, queries = landmark_files(landmark_data)
    rows = []
    for size in sizes or [weights.read(file).preprocessing.size]:
        embedder = alnumpy.load(file, size)
        good, *of_classes = embed(embedder, list(tested.values()))
        if len(good) < len(tested):
            raise ValueError(f"{classes}: {len(tested) - len(good)} pictures cannot be read")
        _, *of_queries = embed(embedder, [boxed(found[paths[query.picture]], query.box) for query in queries])
        good, *of_places = embed(embedder, [found[path] for path in paths.values()])
        places = Places([name for i, name in enumerate(paths) if i in set(good)], queries)
        _, _, flipped = embed(embedder, list(learnt_from.values()))
        ways: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            "raw": lambda plain, flipped: plain,
            "L2-normalised": lambda plain, flipped: postprocess.l2_normalize(plain),
            "flips averaged, L2-normalised": lambda plain, flipped: postprocess.l2_normalize(flipped),
        }
        for dimensions in WHITENED:
            mean, projection, _ = postprocess.learn_whitening([flipped], dimensions)
            ways[f"flips averaged, whitened to {dimensions}"] = partial(whitened, mean, projection)
        for name, way in ways.items():
            vectors = [way(*pair) for pair in (of_classes, of_queries, of_places)]
            rows.append(both(name, vectors, labels, places, size=size))
    return {
        "weights": fingerprint(file),
        "classes": [row for row, _ in rows],
        "landmarks": [row for _, row in rows],
    }


def measure_formats(file: Path, source: Path) -> dict[str, Any]:
    """The loss by number formats of weights files: retrieval in MNIST or class folders, at the weights' own size."""
    found = weights.read(file)
    if any(source.glob("*-images-idx3-ubyte*")):
        digits, labels, _ = train.load(source, "test", found.preprocessing.size)
        pictures: list[Take] = [partial(np.asarray, digit) for digit in digits]
    else:
        tested, labels, _ = class_folders(source, "test")
        pictures = list(tested.values())
    rows = {}
    for dtype in weights.DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            stored = Path(folder, "w.h5")
            weights.write(stored, replace(found, dtype=dtype))
            _, vectors, _ = embed(alnumpy.load(stored), pictures)
            size = stored.stat().st_size
        vectors = postprocess.l2_normalize(vectors) if found.normalize else vectors
        rows[dtype] = {"bytes": size, **against_the_rest(vectors, labels)._asdict()}
        print(f"{file.name} {dtype}: {size} bytes, mAP {rows[dtype]['full_map']:.4f}")
    return {"weights": fingerprint(file), "data": source.name.removesuffix(".zip"), "formats": rows}


def measure_decoding(
    names: Sequence[str], classes: Path, landmark_data: Path, enlarged: list[int]
) -> list[dict[str, Any]]:
    """Retrieval in galleries with JPEGs decoded whole, and fast: pictures at their own size, and enlarged.

    Each picture is enlarged by the factor, and saved as a JPEG of quality 90.
    """
    tests = {name: read for name, read in files(classes).items() if name.startswith("test/")}
    rows = []
    for source, kind in ((tests, "classes"), (files(landmark_data), "landmarks")):
        for factor in enlarged:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch, "pictures")
                sides = [enlarge(source[name], folder / name, factor) for name in source if images.is_picture(name)]
                texts = {Path(name).name: source[name]().decode() for name in source if name.endswith(".txt")}
                for name in names:
                    found = {}
                    for fast in (False, True):
                        embedder = alnumpy.load(name)
                        path = Path(scratch, f"{name}-{fast}.db")
                        with Gallery(path, embedder, "a", fast_decode=fast, max_pixels=images.MAX_PIXELS) as gallery:
                            gallery.index(folder)
                            if kind == "classes":
                                found[fast] = evaluate_gallery(gallery).scores.full_map
                            else:
                                found[fast] = evaluate_gallery_landmarks(gallery, parse_ground_truth(texts)).mean
                    row = {
                        "pictures": len(sides),
                        "measure": kind,
                        "network": name,
                        "size": embedder.preprocessing.size,
                    }
                    row |= {"side": int(np.median(sides)), "whole": found[False], "fast": found[True]}
                    rows.append(row | {"scale": decoded_at(int(np.median(sides)), embedder)})
                    print(rows[-1])
    return rows


def enlarge(read: Reader, path: Path, factor: int) -> int:
    """Writes a picture file, enlarged where the factor is above 1. Returns its short side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = read()
    with Image.open(io.BytesIO(data)) as image:
        if factor == 1:
            path.write_bytes(data)
            return min(image.size)
        large = image.convert("RGB").resize([side * factor for side in image.size], Image.Resampling.BICUBIC)
    large.save(path.with_suffix(".jpg"), quality=90)
    return min(large.size)


def decoded_at(side: int, embedder: alnumpy.Embedder) -> int:
    """The factor by which fast decoding divides the size of a JPEG with this short side."""
    return max(scale for scale in SCALES if scale <= max(1, side // embedder.preprocessing.draft))


# --- the page -------------------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def counted(system: str, data: str) -> tuple[Spec, int]:
    """The network of a row of the paper's tables 2 to 6, and the side of the picture for which it was counted.

    Found by trying: the stem of three of them is as wide as the picture, and on MNIST three were counted at 24 pixels.
    """
    side, spec = DATA_SIZES[data], SPECS[NETWORKS[system]]
    if data == "MNIST" and system in ("ShuffleNet", "EfficientNet", "ALNet"):
        side = 24
    stem = 24 if data == "MNIST" and system == "MobileNetV2" else side
    if system in ("ShuffleNetV2", "MobileNetV2", "ALNet"):
        spec = Spec.from_dict(spec.to_dict() | {"stem": stem})
    return spec, side


def recount(system: str, data: str) -> tuple[float, float]:
    """FLOPs and parameters of a row of the paper's tables 2 to 6 by the authors' rules, in millions."""
    spec, side = counted(system, data)
    layers, classes = spec.layers(), CLASSES[data]
    each = costs(layers, (side, side))
    flops, parameters = sum(cost.flops for cost in each), sum(cost.parameters for cost in each)
    if system == "EfficientNet":  # its convolutions were a subclass of Conv2d, which the authors' counter did not know
        flops -= sum(cost.multiply_adds for cost in each if "conv.weight" in cost.layer.shapes())
    if system == "ShuffleNetV2" and data != "MNIST":  # its pool was a function, which the counter did not see
        flops -= each[-1].flops
    if system != "ALNet":  # ALNet is counted without a classifier
        flops += classes * (2 * spec.embedding - 1)
    if system != "ALNet" or classes == 10:
        parameters += classes * (spec.embedding + 1)
    return flops / 1e6, parameters / 1e6


def measure_sizes() -> dict[str, Any]:
    """Bytes of each row's network without its classifier, traced and saved as TorchScript, in millions.

    Tracing the authors' ShuffleNet kept every shuffled map as a constant; they are added.
    """
    rows: dict[str, dict[str, float]] = {}
    for data in PAPER:
        rows[data] = {}
        for system in NETWORKS:
            spec, side = counted(system, data)
            file = io.BytesIO()
            with torch.inference_mode():
                torch.jit.save(torch.jit.trace(Network(spec).eval(), torch.zeros(1, 3, side, side)), file)
            constants = 0
            if system == "ShuffleNet":
                shuffles = [cost for cost in costs(spec.layers(), (side, side)) if cost.layer.name.endswith("shuffle")]
                constants = sum(4 * cost.layer.channels * cost.size[0] * cost.size[1] for cost in shuffles)
            rows[data][system] = (len(file.getvalue()) + constants) / 1e6
    return {"torch": torch.__version__, "megabytes": rows}


def verdict(system: str, data: str) -> str:
    """How the paper's FLOPs and parameters come about."""
    wrong = []
    for what, ours, theirs in zip(("FLOPs", "parameters"), recount(system, data), PAPER[data][system], strict=False):
        if abs(ours - theirs) > (0.5 if theirs >= 1000 else 0.0055):  # half of what was printed last, and a little
            wrong.append(what)
    if wrong:
        return f"not matched: {', '.join(wrong)}"
    artefacts = {"EfficientNet": "an artefact: FLOPs", "ShuffleNet": "explained; size an artefact"}
    return artefacts.get(system, "explained")


def recounts(results: dict[str, Any]) -> str:
    """FLOPs, parameters and model sizes of the paper's tables 2 to 6, and counted again."""
    header = ["", "", "stem", "pixels", "MFLOPs", "counted", "M parameters", "counted", "MB", "measured"]
    rows, sizes = [], results.get("sizes", {}).get("megabytes")
    for data, systems in PAPER.items():
        for system, (flops, parameters, size, *_) in systems.items():
            spec, side = counted(system, data)
            own = recount(system, data)
            measured = f"{sizes[data][system]:.2f}" if sizes else "not run"
            paper = cells(flops, parameters, 0, 0, 0)
            row = [data, system, str(spec.layers()[0].channels), str(side), paper[0], f"{own[0]:.3f}"]
            rows.append([*row, paper[1], f"{own[1]:.3f}", f"{size}", measured, verdict(system, data)])
    return table([*header, "verdict"], rows)


def with_head(spec: Spec, classes: int) -> int:
    """Parameters with a linear classifier."""
    return total(spec.layers()).parameters + (spec.embedding + 1) * classes


def counts(spec: Spec, size: int) -> tuple[str, str]:
    """FLOPs the authors' way and parameters with a classifier of ten, in millions."""
    cost = total(spec.layers(), (size, size))
    return f"{cost.flops / 1e6:.2f}", f"{with_head(spec, 10) / 1e6:.2f}"


def blocks(size: int) -> Iterator[list[str]]:
    """Table 1 for the seven blocks of ALNet at an input of ``size``: MobileNetV2's bottleneck, the ALBlock, ratios."""
    spec = ALNet()
    cin = spec.stem
    for i, (t, c, s) in enumerate(spec.blocks, 1):
        after = (size - 1) // s + 1
        areas = (size, size), (after, after)
        plain, grouped = (bottleneck_cost(cin, c, t, *areas, groups) for groups in (1, spec.groups))
        ratios = alblock_ratios(cin, c, *areas, spec.groups)
        yield [
            str(i),
            *(
                f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
                for pair in zip(plain, grouped, ratios, strict=True)
                for value in pair
            ),
        ]
        cin, size = c, after


def cells(flops: float, parameters: float, _: float, map1: float, map5: float) -> list[str]:
    """A row of the paper as it is printed there, but for the model's size."""
    return [f"{flops:.1f}" if flops >= 1000 else f"{flops:.2f}", f"{parameters:.2f}", f"{map1:.2f}", f"{map5:.2f}"]


def side_by_side(results: dict[str, Any], data: str) -> str:
    """One of the paper's tables 2 to 6: what is printed there, and what was counted and measured here."""
    six = results.get(data, {}).get("six", {}).get("networks", {})
    sizes = results.get("sizes", {}).get("megabytes", {}).get(data, {})
    header = ["", "MFLOPs", "ours", "M parameters", "ours", "MB", "ours", '"mAP@1"', "ours", '"mAP@5"', "ours"]
    rows = []
    for name, numbers in PAPER[data].items():
        paper, own = cells(*numbers), six.get(name)
        flops, parameters = recount(name, data)
        megabytes = f"{sizes[name]:.2f}" if name in sizes else "not run"
        row = [name, paper[0], f"{flops:.2f}", paper[1], f"{parameters:.2f}", f"{numbers[2]}", megabytes]
        rows.append([*row, paper[2], *measured(own, "full_map"), paper[3], *measured(own, "ap5_hits")])
    for text, found in (
        (PAPERS_RECIPE, six.get(PAPERS_RECIPE)),
        ("ALNet, as alnumpy has it", results.get(data, {}).get("networks", {}).get("alnet")),
    ):
        spec = counted("ALNet", data)[0] if text == PAPERS_RECIPE else SPECS["alnet"]
        flops_, parameters_ = counts(spec, DATA_SIZES[data])
        rows.append([text, "", flops_, "", parameters_, "", "", "", *measured(found, "full_map"), ""])
        rows[-1] += measured(found, "ap5_hits")
    return table(header, rows)


def measured(row: dict[str, Any] | None, *keys: str) -> list[str]:
    """Some of the shares that were measured, in percent."""
    return [percent(row[key]) if row else "not run" for key in keys]


def draw(results: dict[str, Any], data: str, path: Path) -> None:
    """The six networks as in the paper's figure 3: accuracy and cost, theirs and ours.

    The accuracies are in the paper's figure only, so that its "mAP@1" stands for them.
    """
    from matplotlib.figure import Figure

    six, sizes = results[data]["six"]["networks"], results.get("sizes", {}).get("megabytes", {}).get(data, {})
    panels: list[tuple[str, list[float], list[float]]] = [
        ('"mAP@1" (paper), accuracy (ours), %', [], []),
        ("FLOPs, million", [], []),
        ("parameters, million", [], []),
        ("model size, MB", [], []),
    ]
    for name, (flops, parameters, size, map1, _) in PAPER[data].items():
        own = six[name]["accuracy"] if name in six else 0.0
        ours = [own, *recount(name, data), sizes.get(name, 0.0)]
        for panel, theirs, mine in zip(panels, (map1, flops, parameters, size), ours, strict=True):
            panel[1].append(theirs)
            panel[2].append(mine)
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, theirs_, mine_) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        at = np.arange(len(theirs_))
        axes.bar(at - 0.2, theirs_, 0.4, label="paper", color="tab:gray")
        axes.bar(at + 0.2, mine_, 0.4, label="alnumpy", color="tab:blue")
        axes.set_xticks(at, list(PAPER[data]), rotation=20)
        axes.set_title(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page's tables by the names of their markers."""
    pages = {data.lower(): side_by_side(results, data) for data in PAPER}
    pages["counts"] = recounts(results)
    pages["blocks"] = table(["block", "parameters", "ALBlock", "R1", "FLOPs", "ALBlock", "R2"], list(blocks(32)))
    rows, details = [], []
    for spec, (name, *paper) in ABLATIONS.items():
        row = [name, f"{with_head(SPECS[spec], 10) / 1e6:.2f}"]
        for data, value in zip(PAPER, paper, strict=True):
            own = results.get(data, {}).get("networks", {}).get(spec)
            from_six = results.get(data, {}).get("six", {}).get("networks", {}).get(name)
            row += [f"{value:.2f}", *measured(own or from_six, "full_map")]
            if own:
                keys = ("full_map", "full_map_l2", "ap5_hits", "ap5", "precision1")
                details.append([data, name, f"{own['accuracy']:.2f}", *(percent(own[key]) for key in keys)])
        rows.append(row)
    pages["ablations"] = table(["", "M parameters", *(column for data in PAPER for column in (data, "ours"))], rows)
    header = ["", "", "accuracy", "full mAP", "full mAP, L2", "AP@5 of hits", "AP@5", "P@1"]
    recipes = [
        f"\n\n{data}, {results[data]['pictures']:,} test pictures: `tools/train.py {results[data]['recipe']}`."
        for data in PAPER
        if "recipe" in results.get(data, {})
    ]
    pages["networks"] = table(header, details) + "".join(recipes)
    pages["six"] = table(
        ["", "", "accuracy", "full mAP", "full mAP, L2", "AP@5 of hits", "AP@5", "P@1", "ms", "minutes of training"],
        [
            [
                *(data, name, f"{own['accuracy']:.2f}"),
                *measured(own, "full_map", "full_map_l2", "ap5_hits", "ap5", "precision1"),
                *(f"{own['milliseconds']:.2f}", f"{own['minutes']:.0f}"),
            ]
            for data in PAPER
            for name, own in results.get(data, {}).get("six", {}).get("networks", {}).items()
        ],
    ) + "".join(
        f"\n\n{data}, {six['pictures']:,} test pictures: `tools/train.py {six['recipes']['modern']}`, and the paper's "
        f"recipe: `{six['recipes']['paper']}`."
        for data in PAPER
        if (six := results.get(data, {}).get("six"))
    )
    pages["kinds"] = table(
        ["", "pictures of", "pixels", "P@1", "P@5", "full mAP"],
        [
            [
                *(name, f"{part['data']}, {part['only']}", str(row["size"])),
                *(f"{row[key]:.3f}" for key in ("precision1", "precision5", "full_map")),
            ]
            for name, part in results.get("kinds", {}).items()
            for row in part["rows"]
        ],
    )
    photos = results.get("photos", {})
    parts = {"": photos["baselines"], **photos["networks"]} if photos else {}
    pages["classes"] = table(
        ["", "pixels", "", "P@1", "P@5", "full mAP", "AP@5 of hits", "AP@5"],
        [
            [
                *(name, str(row.get("size", BASELINE_SIZE)), row["way"]),
                *(f"{row[key]:.3f}" for key in ("precision1", "precision5", "full_map", "ap5_hits", "ap5")),
            ]
            for name, part in parts.items()
            for row in part["classes"]
        ],
    )
    pages["landmarks"] = table(
        ["", "pixels", "", "official mAP"],
        [
            [name, str(row.get("size", BASELINE_SIZE)), row["way"], f"{row['official_map']:.3f}"]
            for name, part in parts.items()
            for row in part["landmarks"]
        ],
    )
    pages["formats"] = table(
        ["", "pictures", "stored as", "MB", "P@1", "full mAP", "lost, in points"],
        [
            [
                *(name, part["data"], dtype, f"{row['bytes'] / 1e6:.2f}"),
                *(f"{row[key]:.4f}" for key in ("precision1", "full_map")),
                f"{100 * (part['formats']['float32']['full_map'] - row['full_map']):.2f}",
            ]
            for name, part in results.get("formats", {}).items()
            for dtype, row in part["formats"].items()
        ],
    )
    pages["decoding"] = table(
        ["", "pixels", "short side of the pictures", "decoded at", "whole", "fast", "points"],
        [
            [
                f"{row['network']}, {'full mAP' if row['measure'] == 'classes' else 'official mAP'}",
                str(row["size"]),
                str(row["side"]),
                f"1/{row['scale']}" if row["scale"] > 1 else "1",
                f"{row['whole']:.4f}",
                f"{row['fast']:.4f}",
                f"{100 * (row['fast'] - row['whole']):+.2f}",
            ]
            for row in results.get("decoding", [])
        ],
    )
    return pages


def fill(page: str, contents: dict[str, str]) -> str:
    """The page with each table between its markers replaced. Raises ValueError where the markers are others."""
    names = re.findall(r"<!-- table: (\S+) -->", page)
    if sorted(names) != sorted(contents):
        raise ValueError(f"the page has tables {sorted(names)}, not {sorted(contents)}")
    for name, content in contents.items():
        begin = page.index(f"<!-- table: {name} -->\n") + len(f"<!-- table: {name} -->\n")
        page = page[:begin] + content + "\n" + page[page.index("<!-- end -->", begin) :]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of RESULTS.md and results.json (default: docs)")
    parts = parser.add_subparsers(dest="part", required=True)
    for name, choices, about in (
        ("networks", ["MNIST"], "train the paper's six networks on a data set, and measure each"),
        ("ablations", list(RECIPES), "train ALNet and its ablations on a data set, and measure each"),
    ):
        part = parts.add_parser(name, help=about)
        part.add_argument("data", choices=choices, help="the data set, which selects the recipe")
        part.add_argument("source", type=Path, help="the data, in a form that tools/train.py reads")
        threads = torch.get_num_threads()
        part.add_argument("--threads", type=int, default=threads, help="CPU threads (default: %(default)s)")
        part.add_argument("--compile", action="store_true", help="torch.compile, like train.py --compile")
        runs = Path("runs/reproduce")
        part.add_argument(
            "--runs", type=Path, default=runs, help="folder to train in; continues a run that was stopped"
        )
        if name == "networks":
            only = "measure the weights that ship, without training"
            part.add_argument("--measure-only", action="store_true", help=only)
            part.add_argument(
                "--epochs", type=int, default=EPOCHS, help="epochs of each network (default: %(default)s)"
            )
            part.add_argument(
                "--only", nargs="+", default=[], metavar="NETWORK", help="only these networks, by their rows"
            )
    part = parts.add_parser("kinds", help="measure networks on some classes, by directions")
    part.add_argument("data", type=Path, help="folder or zip with class folders")
    part.add_argument("--split", default="train", help="its folder (default: %(default)s)")
    part.add_argument("--only", default="*", metavar="PATTERN", help="classes (default: all)")
    part.add_argument(
        "--weights", nargs="+", default=["alnet-photo"], help="names or files of weights (default: alnet-photo)"
    )
    part.add_argument("--sizes", type=int, nargs="+", default=[48, 64], help="sides of the input (default: 48 64)")
    part = parts.add_parser("photos", help="measure networks on pictures they were not trained on")
    part.add_argument("--classes", type=Path, required=True, help="folder or zip with train/ and test/ class folders")
    part.add_argument("--landmarks", type=Path, required=True, help="folder or zip of pictures and ground truth")
    part.add_argument(
        "--weights",
        nargs="+",
        default=list(PHOTO_SIZES),
        help="names or files of weights (default: alnet-photo and Lite0)",
    )
    part.add_argument("--sizes", type=int, nargs="+", help="sides of the input (default: useful ones for each network)")
    part = parts.add_parser("formats", help="measure the loss by float16 and int8")
    part.add_argument("weights", help="name or file of float32 weights")
    part.add_argument("data", type=Path, help="folder of MNIST, or folder or zip with class folders below test/")
    part = parts.add_parser("decoding", help="measure the loss by fast decoding")
    part.add_argument("--classes", type=Path, required=True, help="folder or zip with test/ class folders")
    part.add_argument("--landmarks", type=Path, required=True, help="folder or zip of pictures and ground truth")
    part.add_argument(
        "--weights", nargs="+", default=list(PHOTO_SIZES), help="names (default: of those for photographs)"
    )
    part.add_argument(
        "--enlarged", type=int, nargs="+", default=(1, 4, 8), help="factors of enlarging (default: 1 4 8)"
    )
    parts.add_parser("sizes", help="measure the sizes of saved models")
    parts.add_parser("tables", help="write the tables of the page from what was measured")
    args = parser.parse_args()

    stored = args.docs / "results.json"
    page = args.docs / "RESULTS.md"
    try:
        results = json.loads(stored.read_text()) if stored.exists() else {}
        fill(page.read_text(), tables(results))  # fails early if the page does not fit
        if args.part == "networks" and args.measure_only:
            measure_shipped(args.data, args.source)
            return
        if args.part in ("networks", "ablations"):
            speed = ["--threads", str(args.threads)] + ["--compile"] * args.compile
            own = results.setdefault(args.data, {})
        if args.part == "networks":
            before = own.get("six", {})
            found = measure_six(args.data, args.source, args.runs, speed, args.epochs, args.only, before)
            for own["six"] in found:
                stored.write_text(json.dumps(results, indent=1) + "\n")
            draw(results, args.data, args.docs / f"networks-{args.data.lower()}.png")
        if args.part == "ablations":
            own |= measure_ablations(args.data, args.source, args.runs, speed)
        if args.part == "kinds":
            for named in args.weights:
                file = weights.locate(named)
                row = measure_kinds(file, args.sizes, args.data, args.split, args.only)
                results.setdefault("kinds", {})[file.stem] = row
        if args.part == "sizes":
            results["sizes"] = measure_sizes()
        if args.part == "decoding":
            rows = measure_decoding(args.weights, args.classes, args.landmarks, args.enlarged)
            fresh = {(row["measure"], row["side"], row["network"]): row for row in rows}
            kept = results.get("decoding", [])
            kept = [fresh.pop((row["measure"], row["side"], row["network"]), row) for row in kept]
            results["decoding"] = [*kept, *fresh.values()]
        if args.part == "photos":
            networks = results.get("photos", {}).get("networks", {})
            for named in args.weights:
                file = weights.locate(named)
                sizes = args.sizes or PHOTO_SIZES.get(file.stem, ())
                networks[file.stem] = measure_photos(file, sizes, args.classes, args.landmarks)
            baselines = measure_baselines(args.classes, args.landmarks)
            results["photos"] = {"baselines": baselines, "networks": networks}
        if args.part == "formats":
            file = weights.locate(args.weights)
            results.setdefault("formats", {})[file.stem] = measure_formats(file, args.data)
        stored.write_text(json.dumps(results, indent=1) + "\n")
        page.write_text(fill(page.read_text(), tables(results)))
    except (OSError, ValueError, AlnumpyError, subprocess.CalledProcessError) as error:
        sys.exit(f"reproduce.py: {error}")


if __name__ == "__main__":
    main()
