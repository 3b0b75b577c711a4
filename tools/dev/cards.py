#!/usr/bin/env python3
"""Write the model cards from the data in the weights files: weights/NAME.md, and the table in README.md.

    python tools/dev/cards.py            # writes them
    python tools/dev/cards.py --check    # exit code 1 if they differ
    python tools/dev/cards.py --measure  # times all networks first, side by side, on a machine that does nothing else

A card is data: ``alnumpy convert --card NAME=TEXT`` writes a field of it. Measuring needs compiled kernels, or the
extra ``numba``.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from alnumpy import counts, weights
from alnumpy.embedder import load
from alnumpy.weights import Weights
from benchmark import cpu_name, in_fresh_process

BACKENDS = {"numpy": "with NumPy", "compiled": "compiled"}
ROUNDS = 40  # rounds over all networks, one picture each
ROOT = Path(__file__).resolve().parents[2]
MARKERS = re.compile(r"(?<=<!-- weights -->\n).*?(?=<!-- end of weights -->)", re.S)


def card(path: Path) -> str:
    """The card of a weights file as Markdown: its purpose, a table of its fields, its notes."""
    found = weights.read(path)
    fields = dict(found.card)
    purpose, notes = fields.pop("purpose", ""), fields.pop("notes", "")
    how = found.preprocessing
    share = "the centre square of the picture" if how.share == 1 else f"{how.share:g} of the short side, in the middle"
    rows = {
        "network": f"`{found.spec.name}`, {parameters(found):,} parameters, stored as {found.dtype}",
        "input": f"{how.size}x{how.size} pixels, {share}, {how.interpolation}, {how.channels}",
        "compared": "divided by their L2 norm" if found.normalize else "as they are",
        **fields,
        "checkpoint": f"SHA-256 {found.source_sha256}" if found.source_sha256 else "",
    }
    table = [f"| {name} | {' '.join(text.split())} |" for name, text in rows.items() if text]
    return (
        "\n".join([f"# {path.name}", "", purpose, "", "| | |", "|---|---|", *table, *(["", notes] if notes else [])])
        + "\n"
    )


def table(paths: list[Path]) -> str:
    """The table of README.md."""
    lines = [
        "| name | network | input | MB | ms per picture | finds | licence of the code | data | take it for |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    machines = set()
    for path in paths:
        found = weights.read(path)
        fields = ("milliseconds", "finds", "licence of the code", "licence of the data", "take it for")
        cells = (
            f"[`{path.stem}`](weights/{path.stem}.md)",
            f"{found.spec.name}, {parameters(found) / 1e6:.2f}M",
            f"{found.preprocessing.size}x{found.preprocessing.size}",
            f"{path.stat().st_size / 1e6:.1f}",
            *(found.card.get(field, "") for field in fields),
        )
        lines.append("| " + " | ".join(cells) + " |")
        machines.add(found.card.get("timed on", ""))
    measured = "Milliseconds for a decoded picture (`python tools/dev/cards.py --measure`)"
    return "\n".join([*lines, "", f"{measured}: {'; '.join(sorted(machines))}.", ""])


def measure(paths: list[Path]) -> None:
    """Records in each weights file how long a decoded picture takes with one thread."""
    times = in_fresh_process(1, in_turn, paths)
    machine = f"the least of {ROUNDS} with one thread of {cpu_name()}, all networks in turn, NumPy {np.__version__}"
    for path in paths:
        found = weights.read(path)
        text = ", ".join(f"{1000 * times[path, name]:.1f} {title}" for name, title in BACKENDS.items())
        weights.write(path, replace(found, card={**found.card, "milliseconds": text, "timed on": machine}))


def in_turn(paths: list[Path]) -> dict[tuple[Path, str], float]:
    """The shortest time of each network with each backend, in seconds; the first round does not count."""
    runs = [(path, name, load(path, backend=name, threads=1)) for path in paths for name in BACKENDS]
    least: dict[tuple[Path, str], float] = {}
    for number in range(ROUNDS + 1):
        for path, name, embedder in runs:
            x = weights.self_test_picture(embedder.preprocessing.size)
            start = time.perf_counter()
            embedder.forward(x)
            if number:
                least[path, name] = min(least.get((path, name), math.inf), time.perf_counter() - start)
    return least


def parameters(found: Weights) -> int:
    """Trainable parameters, without the classifier."""
    return counts.total(found.spec.layers()).parameters


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and report differences")
    parser.add_argument(
        "--measure", action="store_true", help="time the networks first, and record the times in the files"
    )
    args = parser.parse_args(argv)
    paths = sorted((ROOT / "weights").glob("*.h5"))
    if args.measure:
        measure(paths)
    readme = ROOT / "README.md"
    texts = {path.with_suffix(".md"): card(path) for path in paths}
    texts[readme] = MARKERS.sub(lambda _: table(paths), readme.read_text())
    different = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in different:
        print(f"{path.relative_to(ROOT)}: {'differs' if args.check else 'written'}")
        if not args.check:
            path.write_text(texts[path])
    return int(args.check and bool(different))


if __name__ == "__main__":
    sys.exit(main())
