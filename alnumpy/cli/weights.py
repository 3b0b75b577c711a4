"""The commands about networks: info, verify, models, kernels."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from .. import counts, weights
from ..embedder import Embedder, load
from ..errors import MissingExtraError, UnsupportedError, WeightsError, printable
from ..layers import parameters as shapes_of
from ..networks import SPECS, Spec
from .common import Command, UsageError, add_backend, height_and_width, warn

SELF_TEST_TOLERANCE = 1e-5  # relative error of the embedding; float32 on any device stays a hundred times below it


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy info``."""
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="WEIGHTS",
        help="weights file, or a name of alnumpy models (default: alnet-photo)",
    )
    parser.add_argument("--spec", choices=SPECS, help="a named network instead of a weights file")
    parser.add_argument(
        "--size", type=height_and_width, metavar="N|HxW", help="input size (default: the weights file's, or 32)"
    )


def run_info(args: argparse.Namespace) -> int:
    """``alnumpy info``."""
    if args.spec and args.weights:
        raise UsageError("give a weights file or --spec, not both")
    size = args.size
    if args.spec:
        network, title = SPECS[args.spec], args.spec
        parameters: Mapping[str, np.ndarray] = {k: np.zeros(v) for k, v in shapes_of(network.layers()).items()}
        size = size or (32, 32)
    else:
        path = weights.locate(args.weights)
        loaded = weights.read(path)
        parameters = loaded.parameters
        network, title = loaded.spec, f"{loaded.spec.name}, {printable(path)}, {loaded.dtype}"
        size = size or (loaded.preprocessing.size, loaded.preprocessing.size)
    print(f"{title}: input 3x{size[0]}x{size[1]}")
    print(layer_table(network, size))
    from ..lower import lower

    try:
        arena = lower(network, parameters).arena_bytes(size)
        print(f"activations: {arena:,} bytes per thread (compiled kernels)")
    except UnsupportedError as error:
        print(f"activations: numpy backend only: {error}")
    if not args.spec:
        for field, value in (("source", loaded.source), ("sha256", loaded.source_sha256), *loaded.card.items()):
            print(f"{printable(field)}: {printable(value)}")
    return 0


def layer_table(network: Spec, size: tuple[int, int]) -> str:
    """Layers of a network for an input of (H, W) as aligned text, with the totals below."""
    rows: list[tuple[str, ...]] = [("layer", "operator", "output", "params", "FLOPs", "FLOPs eq. (5)", "multiply-adds")]
    for layer, (height, width), *numbers in counts.costs(network.layers(), size):
        rows.append((layer.name, str(layer), f"{layer.channels}x{height}x{width}", *(f"{n:,}" for n in numbers)))
    rows.append(("total", "", "", *(f"{n:,}" for n in counts.total(network.layers(), size))))
    return format_rows(rows)


def format_rows(rows: Sequence[tuple[str, ...]]) -> str:
    """Text columns, the first three aligned left and the numbers right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


INFO = Command(
    "info",
    "[WEIGHTS]",
    "print the layer table: shapes, parameters and FLOPs",
    "alnumpy info --size 160",
    info_arguments,
    run_info,
)


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy verify``."""
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="WEIGHTS",
        help="weights file, or a name of alnumpy models (default: alnet-photo)",
    )
    add_backend(parser)


def run_verify(args: argparse.Namespace) -> int:
    """``alnumpy verify``."""
    path = weights.locate(args.weights)
    embedder = Embedder(weights.read(path), backend=args.backend, threads=args.threads)  # the file, whatever is kept
    result = embedder.self_test()
    good = result.relative_error <= SELF_TEST_TOLERANCE  # false for NaN
    print(
        f"{'ok' if good else 'FAILED'}: {printable(path)}: relative error {result.relative_error:.2e} "
        f"(at most {SELF_TEST_TOLERANCE:.0e}), largest {result.largest_error:.2e}, "
        f"recorded by {printable(embedder.weights.self_test_by)}"
    )
    return 0 if good else 1


VERIFY = Command(
    "verify",
    "[WEIGHTS]",
    "check that this device computes what was recorded in a weights file",
    "alnumpy verify weights/alnet-photo.h5",
    verify_arguments,
    run_verify,
)


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy models``."""
    parser.add_argument("--measure", action="store_true", help="also measure how long a picture takes on this device")
    add_backend(parser)


def run_models(args: argparse.Namespace) -> int:
    """``alnumpy models``."""
    rows: list[tuple[str, ...]] = [("name", "network", "finds", "parameters", "MB", "input")]
    rows[0] += ("ms",) * args.measure
    failed = False
    cards = {}
    for name, path in weights.available().items():
        try:
            embedder = load(path, backend=args.backend, threads=args.threads)
        except WeightsError as error:
            warn(error)
            failed = True
            continue
        spec, side = embedder.spec, embedder.preprocessing.size
        card = cards[name] = embedder.weights.card
        parameters = counts.total(spec.layers()).parameters
        numbers = (f"{parameters:,}", f"{path.stat().st_size / 1e6:.1f}", f"{side}x{side}")
        milliseconds = (f"{_milliseconds(embedder):.1f}",) if args.measure else ()
        rows.append((name, spec.name, printable(card.get("finds", "")), *numbers, *milliseconds))
    print(format_rows(rows))
    for name, card in cards.items():
        if "licence of the code" in card:
            code, data = (printable(card.get(f"licence of the {what}", "")) for what in ("code", "data"))
            print(f"{name}: {code}; trained on {data}")
    return int(failed)


def _milliseconds(embedder: Embedder) -> float:
    """The shortest of several times for one picture, after a first run."""
    side = embedder.preprocessing.size
    x = weights.self_test_picture(side)
    embedder.forward(x)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        embedder.forward(x)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


MODELS = Command(
    "models",
    "",
    "list the weights that have a name, with their accuracy, size and licence",
    "alnumpy models --measure",
    models_arguments,
    run_models,
)


def kernels_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy kernels``."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the kernels with Numba ahead of their first use, for --backend numba; they are kept in a file",
    )


def run_kernels(args: argparse.Namespace) -> int:
    """``alnumpy kernels``."""
    from .. import kernels
    from ..kernels import cache, library

    choice, level = kernels.packaged()
    damaged = False
    for name, wanted in library.manifest()["sha256"].items():
        path = library.FOLDER / name
        state = "missing" if not path.exists() else "" if library.sha256(path) == wanted else "damaged"
        damaged = damaged or bool(state)
        chosen = "  <- chosen" if path == choice.path else ""
        print(f"{name:20} {path.stat().st_size if path.exists() else 0:>9,} bytes{' ' * bool(state)}{state}{chosen}")
    if choice.path is not None:
        print(f"compiled: {choice.path}, {choice.reason}{f', level {level}' if level else ''}")
    else:
        print(f"compiled: no, {choice.reason}")
    if find_spec("numba") is None:
        print("numba: not installed (pip install 'alnumpy[numba]')")
        if args.compile:
            raise MissingExtraError("--compile needs Numba: pip install 'alnumpy[numba]'")
    elif args.compile:
        kept, seconds = cache.warmup()
        if kept is None:
            return 1  # the kernels have warned why nothing could be kept
        print(f"numba: ready in {seconds:.1f} s, kept in {kept}")
    else:
        print(f"numba: {'compiled' if cache.is_cached() else 'installed, not compiled yet'}")
    used = "compiled" if choice.path is not None else "numba, for many pictures" if find_spec("numba") else "numpy"
    print(f"--backend auto takes {used}")
    return int(damaged)


KERNELS = Command(
    "kernels",
    "",
    "print which compiled kernels there are, which of them run on this device, and why",
    "alnumpy kernels",
    kernels_arguments,
    run_kernels,
)
