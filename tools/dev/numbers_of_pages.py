#!/usr/bin/env python3
"""Print where README.md and docs/ have measured numbers, and the commands that make them.

    python tools/dev/numbers_of_pages.py             # one line per command and section: the command, a tab, the section
    python tools/dev/numbers_of_pages.py --lines     # and the lines with numbers below

A section has numbers if it has figures with units, or with decimals. Its commands stand in it, above it on the page, or
in the sections of other pages that it links to. Exit code 1 if a section has numbers and no command.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITHOUT = {"CLI.md", "SERVE.md"}  # their numbers are defaults and limits
FIGURE = re.compile(
    r"\d(?:[\d.,]*\d)?\s?(?:ms|µs|MB|KB|GFLOP/s|million|%|times as fast|times its)(?!\w)"
    r"|(?<!Python )\b\d\.\d{2,}(?![.\d])"
)
FENCED = re.compile(r"^```\w*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:python3? \S|pytest \S|alnumpy [a-z]|(?:tools|tests)/\S+\.py|\.ci/\w)"
)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


class Section(NamedTuple):
    """A part of a page below one heading."""

    page: Path
    level: int
    title: str
    text: str

    @property
    def anchor(self) -> str:
        """The heading as a link to it ends."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")

    def figures(self) -> list[str]:
        """The lines with measured numbers."""
        return [line for line in self.text.splitlines() if FIGURE.search(line)]

    def commands(self) -> list[str]:
        """The commands in the text, each on one line."""
        blocks = "".join(FENCED.findall(self.text)).replace("\\\n", " ")
        spans = [*blocks.splitlines(), *re.findall(r"`([^`]+)`", FENCED.sub("", self.text))]
        codes = [" ".join(span.removeprefix("$ ").split()) for span in spans]
        return [code for code in codes if COMMAND.match(code)]


def sections(page: Path) -> list[Section]:
    """The sections of a page in order; the first one is what stands above the first heading or below the title."""
    parts = re.split(r"^(#+) (.*)\n", page.read_text(), flags=re.MULTILINE)
    return [
        Section(page, len(level), title, text)
        for level, title, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    ]


def sources(section: Section, every: list[Section], followed: bool = False) -> list[str]:
    """The commands that make a section's numbers: its own, those above it, or those of sections that it links to."""
    own = [s for s in every if s.page == section.page]
    above = {s.level: s for s in own[: own.index(section)]} | {section.level: section}  # the last one of each level
    found = next((c for level in range(section.level, 0, -1) if (c := above[level].commands())), [])
    for path, anchor in LINK.findall(section.text) if not followed else []:
        page = (section.page.parent / path).resolve() if path else section.page
        for other in every:
            if other.page == page and other != section and (not anchor or other.anchor == anchor):
                found = [*found, *sources(other, every, True)]
    return found


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if numbers have no command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", action="store_true", help="also print the lines with numbers")
    args = parser.parse_args(argv)
    every = [section for page in PAGES if page.name not in WITHOUT for section in sections(page)]
    missing = 0
    for section in every:
        if not (figures := section.figures()):
            continue
        place = f"{section.page.relative_to(ROOT)}#{section.anchor}"
        commands = sources(section, every)
        missing += not commands
        for command in dict.fromkeys(commands) or ["NO COMMAND"]:
            print(f"{command}\t{place}")
        for line in figures if args.lines else ():
            print(f"    {line}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
