#!/usr/bin/env python3
"""Print the model cards from what the weights files hold: weights/NAME.md, and the table in README.md.

    python tools/cards.py            # writes them
    python tools/cards.py --check    # exit code 1 where they differ

A card is data: ``alnumpy convert --card NAME=TEXT`` writes a field of it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from alnumpy import counts, weights
from alnumpy.weights import Weights

ROOT = Path(__file__).resolve().parents[1]
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
        "| name | network | input | MB | finds (P@1, full mAP) | licence | take it for |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        found = weights.read(path)
        cells = (
            f"[`{path.stem}`](weights/{path.stem}.md)",
            f"{found.spec.name}, {parameters(found) / 1e6:.2f}M",
            f"{found.preprocessing.size}x{found.preprocessing.size}",
            f"{path.stat().st_size / 1e6:.1f}",
            *(found.card.get(field, "") for field in ("finds", "licence in short", "take it for")),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parameters(found: Weights) -> int:
    """Trainable parameters, without the classifier."""
    return counts.total(found.spec.layers()).parameters


def main(argv: list[str] | None = None) -> int:
    """Returns 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    args = parser.parse_args(argv)
    paths = sorted((ROOT / "weights").glob("*.h5"))
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
