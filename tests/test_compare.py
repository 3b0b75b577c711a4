"""tools/dev/compare.py runs the commits that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "dev" / "compare.py"

pytestmark = pytest.mark.skipif(not (TOOL.parents[1] / ".git").exists(), reason="needs the repository's history")


def compare(*arguments):
    command = [sys.executable, TOOL, *arguments, "--backend", "numpy", "--rounds", "3", "--sizes", "8", "64"]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_commit_and_the_working_tree_side_by_side():
    done = compare("HEAD", ".")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert re.fullmatch(r" +8 px, ms  faster +64 px, ms  faster", header)
    assert [row.split()[0] for row in rows] == ["HEAD", "."]
    for row in rows:
        small, _, large, _ = map(float, row.split()[1:])
        assert 0 < small < large
    assert 1 / 3 < float(rows[1].split()[2]) < 3  # the same code, even on a noisy machine


def test_an_unknown_commit_is_refused():
    done = compare("no-such-commit")
    assert done.returncode == 1
    assert "compare.py: no-such-commit: not a commit" in done.stderr
