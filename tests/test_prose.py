"""Prose follows those rules of CONTRIBUTING.md that a pattern can check."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BREACHES = {
    "database": r"\bdata bases?\b",
    "identical": r"\bvery bytes\b",
    "per": r"\b(?:ms|seconds|bytes|pictures|lines|numbers) an? (?:picture|second|minute|line|channel|row|step|epoch)\b",
    "a file that is not a picture": r"\b(?:what|that) is no (?!longer\b)\w",
}


def texts() -> dict[str, str]:
    """The text files of the repository by name, without this one and the page of the rules."""
    try:
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a clone")
    kept = [n for n in names if n.endswith((".py", ".md", ".html", ".js")) or n.startswith(".ci/")]
    rules = ("tests/test_prose.py", "CONTRIBUTING.md")
    return {n: (ROOT / n).read_text() for n in kept if n not in rules}


@pytest.mark.parametrize("word", BREACHES)
def test_one_word_for_one_thing(word):
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]}"
        for name, text in texts().items()
        for match in re.finditer(BREACHES[word], text)
    ]
    assert found == [], f"say: {word}"


def test_comments_are_no_genitives_or_relative_clauses_alone():
    """A comment that begins with "of" or "which" does not say what the thing beside it is."""
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts().items()
        if name.startswith(("alnumpy/", "tools/", "tests/")) and name.endswith(".py")
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"\S.*  # (?:of|which|whose) ", line)
    ]
    assert found == []
