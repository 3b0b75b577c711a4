"""The lines of docs/SCALE.md for other databases can be found by the program that runs them."""

from __future__ import annotations

import ast

import pytest

pytest.importorskip("pyarrow")
import try_stores


@pytest.mark.parametrize("store", try_stores.READ)
def test_the_page_has_lines_for_each_store_that_end_with_a_search(store):
    lines = try_stores.lines(try_stores.PAGE.read_text(), store)
    assert len(lines) <= 6
    *_, search = ast.parse("\n".join(lines)).body
    assert isinstance(search, ast.Expr)
    assert "query" in lines[-1]
    with pytest.raises(ValueError, match="no lines for Another"):
        try_stores.lines("", "Another")
