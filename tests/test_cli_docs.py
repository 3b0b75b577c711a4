"""docs/CLI.md is what the commands say of themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "dev" / "document_commands.py"


def test_embed_does_not_load_the_gallery():
    """Imports take time on a small device."""
    code = (
        "import sys; from alnumpy.cli import main; main(['embed', '/nowhere.jpg']); "
        "assert not {'sqlite3', 'alnumpy.gallery', 'alnumpy.evaluation', 'alnumpy.settings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def words(text):
    """The text without its layout, options written as in Python 3.13: both differ between versions of Python."""
    return re.sub(r"(-\w) (\S+), (--\S+ \2)", r"\1, \3", " ".join(text.split()))


def test_the_page_of_commands_is_true():
    result = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "CLI.md").read_text()
    assert words(result.stdout) == words(page), f"python {TOOL.relative_to(ROOT)} > docs/CLI.md"
