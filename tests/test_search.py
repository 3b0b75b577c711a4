"""Search and duplicates: exactness, order, and pictures that cannot be ranked."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from galleries import SMALL, change, names, noise, small_weights
from PIL import Image

from alnumpy import Embedder, GalleryError, ImageError, filters, listing, packed, pairs
from alnumpy.gallery import Gallery, Match
from alnumpy.packed import encode, row_length


def test_length_membership_and_text(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a") as opened:
        assert (len(opened), folder / "a.png" in opened) == (0, False)
        opened.index(folder)
        os.unlink(folder / "a.png")
        opened.index(folder)
        (tmp_path / "link").symlink_to(folder)
        assert len(opened) == len(list(opened)) == 4
        for path_in in (folder / "a.png", str(folder / "below/../b.png"), tmp_path / "link" / "b.png"):
            assert path_in in opened
        for other in (folder, folder / "new.png", "a.png", 3, None):
            assert other not in opened
        assert repr(opened) == f"<Gallery {str(path)!r}, small, 24 float32, to write>"
    assert repr(opened) == f"<Gallery {str(path)!r}, small, 24 float32, closed>"
    with Gallery(path) as opened:
        assert repr(opened).endswith("float32, to read>")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_search_is_exact_over_what_is_stored(tmp_path, path, embedder, monkeypatch, dtype):
    monkeypatch.setattr(packed, "BLOCK", 7)
    for i in range(40):
        noise(tmp_path / f"{i:02}.png", i % 36)  # four copies
    with Gallery(path, embedder, "a", dtype=dtype) as opened:
        opened.index(tmp_path)
        rows = list(opened)
        stored = np.stack([row.embedding for row in rows])
        queries = np.random.default_rng(1).normal(size=(5, 24)) * stored.std(0) + stored.mean(0)
        found = opened.search(queries, 12)
        distances = np.linalg.norm(stored[None] - queries.astype(np.float32)[:, None], axis=2)
        for matches, row in zip(found, distances, strict=True):
            order = np.argsort(row, kind="stable")[:12]
            assert [match.path for match in matches] == [rows[i].path for i in order]
            np.testing.assert_allclose([match.distance for match in matches], row[order], rtol=1e-5)
        for row in rows:
            first = opened.search(row.path, 1)[0][0]
            assert (first.distance, first.same) == (0, True)
    with Gallery(path, embedder) as opened:
        assert opened.search(queries, 12) == found


def test_ties_go_by_path_and_the_query_itself_is_marked(folder, path, embedder, tmp_path):
    for name in ("z.png", "aa.png", "m.png"):
        shutil.copy(folder / "b.png", folder / name)
    shutil.copy(folder / "b.png", tmp_path / "elsewhere.png")
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        for query in (folder / "b.png", tmp_path / "elsewhere.png"):
            (matches,) = opened.search(query, 5)
            assert names(matches)[:4] == ["aa.png", "b.png", "m.png", "z.png"]
            assert [match.same for match in matches] == [True] * 4 + [False]
            assert [match.distance for match in matches[:4]] == [0] * 4
        assert names(opened.search(folder / "b.png", 2)[0]) == ["aa.png", "b.png"]
        (matches,) = opened.search(Image.open(folder / "b.png"), 100)
        assert len(matches) == 6
        assert not any(match.same for match in matches)
        assert matches[0].distance == 0
        pixels = np.asarray(Image.open(folder / "b.png"))
        assert opened.search([pixels, os.fspath(folder / "b.png")], 100) == [
            matches,
            opened.search(folder / "b.png", 100)[0],
        ]


def test_invalid_searches_are_refused(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        assert opened.search(np.zeros((2, 24)), 3) == [[], []]
        assert opened.search([], 3) == []
        opened.index(folder)
        for wrong in (np.zeros(23), np.zeros((1, 2, 24)), np.full(24, np.nan), np.full(24, 1e18), np.full(24, 1e300)):
            with pytest.raises(ValueError, match=r"finite embeddings \(Q, 24\)"):
                opened.search(wrong)
        with pytest.raises(ValueError, match="k must be"):
            opened.search(np.zeros(24), 0)
        for name in ("broken.png", "missing.png", "below"):
            with pytest.raises(ImageError, match=name):
                opened.search(folder / name)
    with Gallery(path) as opened:
        assert opened.search(folder / "a.png")[0][0].same  # its embedding is stored
        with pytest.raises(ValueError, match="with an embedder"):
            opened.search(noise(folder / "new.png", 77))
        with pytest.raises(ValueError, match="with an embedder"):
            opened.update()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_damaged_rows_are_reported_and_not_ranked(folder, path, embedder, dtype):
    noise(folder / "d.png", 9)
    with Gallery(path, embedder, "a", dtype=dtype) as opened:
        opened.index(folder)

    def set_row(name, row):
        change(path, "UPDATE contents SET embedding = ? WHERE hash = (SELECT hash FROM pictures WHERE path = ?)",
               row, os.fsencode(folder / name))  # fmt: skip

    for short in (b"", b"123", b"0" * (row_length(24, dtype) + 1), "text", 17):
        set_row("a.png", short)
        set_row("b.png", encode(np.full((1, 24), np.nan, np.float32), dtype).tobytes())
        with Gallery(path) as opened:
            (matches,) = opened.search(np.zeros(24))
            assert sorted(names([Match(*item, False) for item in opened.damaged])) == ["a.png", "b.png"]
            assert sorted(names(matches)) == ["c.png", "d.png"]
            assert len(list(opened)) == 5
            assert sorted(names(opened.groups(1e9)[0])) == ["c.png", "d.png"]


def test_an_embedding_that_the_format_cannot_hold_is_an_error(folder, path):
    loud = small_weights()
    loud.parameters["last.bn.weight"][:] = 1e30
    loud.parameters["last.bn.bias"][:] = 1e30
    spec = replace(SMALL, cbam="")
    params = {name: array for name, array in loud.parameters.items() if ".cbam" not in name}
    params["last.conv.weight"][:] = np.inf
    embedder = Embedder(replace(loud, spec=spec, parameters=params), backend="numpy", threads=1)
    with Gallery(path, embedder, "a") as opened:
        report = opened.index(folder / "a.png")
        assert report.failed == [(str(folder / "a.png"), "its embedding is not finite in the gallery's number format")]
        assert opened.search(np.zeros(24)) == [[]]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_group_is_a_picture_and_all_near_it(tmp_path, path, embedder, monkeypatch, dtype):
    monkeypatch.setattr(packed, "BLOCK", 5)
    for i in range(30):
        noise(tmp_path / f"{i:02}.png", i % 27, (12, 30 - i % 27))  # the first ones have most pixels
    with Gallery(path, embedder, "a", dtype=dtype) as opened:
        opened.index(tmp_path)
        vectors = np.stack([row.embedding for row in opened])
        distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
        with monkeypatch.context() as patch:
            patch.setattr(pairs, "MOST", 350)  # there are 351
            with pytest.raises(GalleryError, match="more than 350 pairs of pictures are within 1e\\+09 of each other"):
                opened.groups(1e9)
        for wrong in ({"like": "same"}, {"like": 0, "keep": "best"}):
            with pytest.raises(ValueError, match="must be one of"):
                opened.groups(**wrong)
        exact = opened.groups(0)
        assert [sorted(names(group)) for group in exact] == [[f"{i:02}.png", f"{i + 27}.png"] for i in range(3)]
        assert all(member.distance == 0 and member.same for group in exact for member in group)
        assert [len(group) for group in opened.groups(1e200)] == [30]
        for threshold in np.quantile(distances, (0.08, 0.15, 0.3)):
            left = set(range(30))
            wanted = {}
            for i in range(27):
                near = {j for j in left if distances[i, j] <= threshold} if i in left else set()
                left -= near
                if len(near) > 1:
                    wanted[i] = near
            groups = [{int(Path(member.path).stem): member for member in group} for group in opened.groups(threshold)]
            assert {min(group): group.keys() for group in groups} == wanted
            for group in groups:
                for i, member in group.items():
                    assert member.distance == pytest.approx(distances[min(group), i], rel=1e-5)


def test_only_a_search_with_filters_passes_over_all_rows(folder, path, embedder, monkeypatch):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        (wanted,) = opened.search(np.zeros(24))
        monkeypatch.setattr(filters, "search", lambda *_: [["filtered"]])
        monkeypatch.setattr(listing, "shown", lambda _, found: found)
        assert opened.search(np.zeros(24), max_distance=1e9) == [wanted]
        assert opened.search(np.zeros(24), skip_same=True) == [wanted]
        for options in ({"folders": folder}, {"since": "2024"}, {"until": "2024"}, {"mean": True}):
            assert opened.search(np.zeros(24), **options) == [["filtered"]]


def test_links_to_one_file_are_one_result_and_copies_are_not(folder, path, embedder, tmp_path):
    for number in range(12):
        os.link(folder / "a.png", folder / f"link{number:02}.png")
    (folder / "symbolic.png").symlink_to(folder / "b.png")
    (tmp_path / "same").symlink_to(folder)
    shutil.copy(folder / "a.png", folder / "z.png")
    with Gallery(path, embedder, "a") as opened:
        opened.index([folder, tmp_path / "same"])
        (matches,) = opened.search(folder / "a.png", 4)
        assert sorted(names(matches)) == ["a.png", "b.png", "c.png", "z.png"]
        assert [name for name, match in zip(names(matches), matches, strict=True) if match.same] == ["a.png", "z.png"]
        assert names(opened.search(folder / "a.png", 1)[0]) == ["a.png"]
        assert opened.search(folder / "a.png", 100)[0] == matches
        assert [sorted(names(group)) for group in opened.groups(0)] == [["a.png", "z.png"]]
        assert [sorted(names(group)) for group in opened.groups("exact")] == [["a.png", "z.png"]]
        (folder / "z.png").unlink()
        assert opened.groups("exact") == []  # links to one file are not duplicates


def test_a_missing_file_is_a_result_only_without_an_identical_one(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        folder.rename(tmp_path / "renamed")
        assert len(opened.search(np.zeros(24))[0]) == 3  # the gallery was not told
        opened.index(tmp_path / "renamed")
        assert {os.path.dirname(match.path) for match in opened.search(np.zeros(24), 3)[0]} == {
            str(tmp_path / "renamed"), str(tmp_path / "renamed" / "below")
        }  # fmt: skip
        (tmp_path / "renamed" / "a.png").unlink()
        found = opened.search(np.zeros(24))[0]
        assert sorted(names(found)) == ["a.png", "a.png", "b.png", "c.png"]


def test_queries_can_be_anything_that_an_embedder_takes(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        data = (folder / "a.png").read_bytes()
        embedded = embedder.embedded
        (wanted,) = opened.search(folder / "a.png")
        assert opened.search(data) == [wanted]  # its content is known
        assert embedder.embedded == embedded
        pixels = np.asarray(Image.open(folder / "a.png"))
        with open(folder / "a.png", "rb") as file:
            found = opened.search([file, pixels])
        for matches in found:
            assert [(match.path, match.distance, match.same) for match in matches] == [
                (match.path, pytest.approx(match.distance, abs=1e-5), False) for match in wanted
            ]
        with pytest.raises(TypeError, match="bytes"):
            opened.search([17])
