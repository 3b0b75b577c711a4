"""The model cards are what the weights files hold."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

import cards
from alnumpy import weights
from alnumpy.cli import main
from cards import ROOT
from cards import main as print_cards


def test_cards_and_the_table_are_printed_from_the_files():
    assert print_cards(["--check"]) == 0, "python tools/dev/cards.py"


@pytest.mark.parametrize("path", sorted((ROOT / "weights").glob("*.h5")), ids=lambda path: path.stem)
def test_a_card_says_what_counts(path):
    card = weights.read(path).card
    licences = {"licence", "licence of the code", "licence of the data"}
    assert licences | {"purpose", "take it for", "finds", "limits", "milliseconds", "timed on"} <= set(card)


def test_models_are_listed_with_what_they_find(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for path in (ROOT / "weights").glob("*.h5"):
        card = weights.read(path).card
        (line,) = (line for line in out.splitlines() if line.startswith(f"{path.stem} "))
        assert card["finds"] in line
        assert f"{path.stem}: {card['licence of the code']}; trained on {card['licence of the data']}" in out


def test_models_are_timed(capsys):
    assert main(["models", "--measure", "--backend", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "ms"
    assert float(lines[1].split()[-1]) > 0


def test_times_are_recorded_in_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "BACKENDS", {"numpy": "with NumPy"})
    monkeypatch.setattr(cards, "ROUNDS", 2)
    monkeypatch.setattr(cards, "in_fresh_process", lambda threads, function, *arguments: function(*arguments))
    path = tmp_path / "w.h5"
    shutil.copy(weights.locate("alnet-mnist"), path)
    before = weights.read(path)
    cards.measure([path])
    after = weights.read(path)
    changed = {"milliseconds", "timed on"}
    assert float(re.fullmatch(r"([\d.]+) with NumPy", after.card["milliseconds"])[1]) > 0
    assert f"NumPy {np.__version__}" in after.card["timed on"]
    assert {k: v for k, v in after.card.items() if k not in changed} == {
        k: v for k, v in before.card.items() if k not in changed
    }
    np.testing.assert_equal(after.parameters, before.parameters)
    assert f"| {after.card['milliseconds']} |" in cards.table([path])


def test_a_gallery_by_a_name_of_weights(tmp_path, capsys):
    """A gallery is compared as the weights say, and finds its weights again."""
    db, digits = str(tmp_path / "g.db"), sorted((ROOT / "tests" / "data" / "digits").glob("[01]-*.png"))
    named = ("--weights", "efficientnet-lite0", "--size", "32", "--backend", "numpy")
    assert main(["index", *map(str, digits), "--db", db, *named]) == 0
    assert main(["stats", "--db", db]) == 0
    assert "normalize: True" in capsys.readouterr().out.splitlines()
    assert main(["search", str(digits[0]), "--db", db, "-k", "1", "--backend", "numpy"]) == 0
    assert capsys.readouterr().out.split()[1] == str(digits[0])
    other = str(tmp_path / "other.db")
    assert main(["index", *map(str, digits), "--db", other, *named, "--no-normalize"]) == 0
    assert main(["stats", "--db", other]) == 0
    assert "normalize: False" in capsys.readouterr().out.splitlines()
