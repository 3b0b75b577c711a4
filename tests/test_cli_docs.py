"""docs/CLI.md is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "document_commands.py"


def test_embed_does_not_load_the_gallery():
    """Nor anything else that only other commands need: a start takes time on a small device."""
    code = (
        "import sys; from alnumpy.cli import main; main(['embed', '/nowhere.jpg']); "
        "assert not {'sqlite3', 'alnumpy.gallery', 'alnumpy.evaluation', 'alnumpy.settings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_the_page_of_commands_is_true():
    result = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=True)
    assert result.stdout == (ROOT / "docs" / "CLI.md").read_text(), f"python {TOOL.relative_to(ROOT)} > docs/CLI.md"
