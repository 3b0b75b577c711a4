"""The model cards are what the weights files hold."""

from __future__ import annotations

import pytest

from alnumpy import weights
from alnumpy.cli import main
from cards import ROOT
from cards import main as print_cards


def test_cards_and_the_table_are_printed_from_the_files():
    assert print_cards(["--check"]) == 0, "python tools/cards.py"


@pytest.mark.parametrize("path", sorted((ROOT / "weights").glob("*.h5")), ids=lambda path: path.stem)
def test_a_card_says_what_counts(path):
    card = weights.read(path).card
    assert {"purpose", "take it for", "finds", "licence", "licence in short", "limits"} <= set(card)


def test_models_are_listed_with_what_they_find(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for path in (ROOT / "weights").glob("*.h5"):
        card = weights.read(path).card
        (line,) = (line for line in out.splitlines() if line.startswith(f"{path.stem} "))
        assert card["finds"] in line
        assert f"{path.stem}: {card['licence in short']}" in out


def test_models_are_timed(capsys):
    assert main(["models", "--measure", "--backend", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "ms"
    assert float(lines[1].split()[-1]) > 0
