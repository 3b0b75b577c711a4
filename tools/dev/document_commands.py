#!/usr/bin/env python3
"""Prints docs/CLI.md: the help of every command. ``python tools/dev/document_commands.py > docs/CLI.md``"""

from __future__ import annotations

import argparse
import os

from alnumpy import cli

WIDTH = 100  # columns of the help

BEGINNING = """# The commands

Printed by `python tools/dev/document_commands.py`; a test keeps this page true.

Results go to stdout, progress and warnings to stderr. The exit code is 0 if all went well, 1 if some input failed and
2 for wrong usage.

**Lists of paths.** Where `-` stands for a list of paths on stdin, there is one path per line, ended by LF or CR LF, or
each is followed by a NUL: `find . -name '*.jpg' -print0 | alnumpy embed -`. The option `-0` prints such lists, for
`xargs -0`.

**Names that are not text.** Names of files are bytes. JSON has a second field for a name that is not UTF-8:
`path_base64` beside `path` (`query_base64` beside `query`) holds all of its bytes in base64, and `path` shows U+FFFD
for bytes that are not text. CSV has the bytes themselves in the column `path`, and the same base64 in a last column
`path_base64` if it has a header. In text such bytes are shown as escapes, so that every result is one line.
"""


def page() -> str:
    """The whole page; its layout depends on the version of Python."""
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}  # argparse reads these
    parser = cli.build_parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = [BEGINNING]
    for name, command in [("alnumpy", parser), *((f"alnumpy {name}", command) for name, command in commands.items())]:
        parts.append(f"\n## {name}\n\n```text\n{command.format_help()}```\n")
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
