"""What the package exports, and which of its files may import which, as the table of CONTRIBUTING.md says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import alnumpy

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alnumpy"
EVERYWHERE = {"errors", "files"}  # every file may import these
TABLE = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
# In the order of the table: a file may import what stands above it.
ORDER = [name for row in TABLE if row.startswith("`alnumpy/") for name in re.findall(r"(\w+)(?:\.py|/`)", row)]


def imported_by(path):
    """The files and folders of the package that a file of it imports when it runs, not for its types only."""
    tree = ast.parse(path.read_text())
    types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    for_types = {id(node) for block in types for child in block.body for node in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            above = path.parents[node.level - 1].relative_to(PACKAGE).parts
            base = [*above, *(node.module.split(".") if node.module else ())]
            yield from (base[:1] or [name.name for name in node.names])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not any(name.split(".")[0] == "alnumpy" for name in names), f"{path} imports by the full name"


def test_every_file_stands_in_the_table_once():
    files = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert sorted(ORDER) == sorted(path.stem for path in files if path.name != "__init__.py")


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_what_stands_above_it(name):
    home = PACKAGE / name
    above = {"__version__", name} | (EVERYWHERE | set(ORDER[: ORDER.index(name)]) if name not in EVERYWHERE else set())
    for path in home.glob("*.py") if home.is_dir() else [home.with_suffix(".py")]:
        assert set(imported_by(path)) <= above


def test_what_is_exported():
    for name in alnumpy.__all__:
        assert getattr(alnumpy, name).__doc__
        assert name in dir(alnumpy)
    assert {"Gallery", "Match", "Picture", "Report"} <= set(alnumpy.__all__)
    assert alnumpy.Gallery.__module__ == "alnumpy.gallery"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = alnumpy.nonsense


def test_names_are_imported_when_they_are_used():
    code = (
        "import sys, alnumpy; assert 'numpy' not in sys.modules\n"
        "alnumpy.load; assert 'sqlite3' not in sys.modules\n"
        "from alnumpy import Gallery; assert 'sqlite3' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
