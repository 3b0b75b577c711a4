"""The measures of retrieval on a gallery, against cases worked by hand."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from galleries import SMALL, noise, small_weights

from alnumpy import AlnumpyError, Embedder, GalleryError
from alnumpy.evaluation import (
    LandmarkQuery,
    evaluate_gallery,
    evaluate_gallery_landmarks,
    evaluate_landmarks,
    parse_ground_truth,
    read_ground_truth,
    read_labels,
)
from alnumpy.gallery import Gallery

# Places on a line, so that rankings can be read off: cats at 0, 1 and 5, dogs at 2 and 4, and a single bird.
PLACES = {"cat/0": 0, "cat/1": 1, "cat/5": 5, "dog/2": 2, "dog/4": 4, "bird/9": 9}


@pytest.fixture
def make(tmp_path):
    """A function that makes a gallery of pictures whose embeddings are places on a line, and returns it open."""
    opened = []

    def make(name, places, seed=0):
        for i, picture in enumerate(places):
            path = tmp_path / name / f"{picture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(path, i)
        db = tmp_path / f"{name}.db"
        with Gallery(db, Embedder(small_weights(seed), backend="numpy"), "a") as gallery:
            gallery.index(tmp_path / name)
        with closing(sqlite3.connect(db, isolation_level=None)) as connection:
            for picture, place in places.items():
                vector = np.zeros(SMALL.embedding, "<f4")
                vector[0] = place
                connection.execute(
                    "UPDATE contents SET embedding = ? WHERE hash = (SELECT hash FROM pictures WHERE path = ?)",
                    [vector.tobytes(), os.fsencode(tmp_path / name / f"{picture}.png")],
                )
        opened.append(Gallery(db))
        return opened[-1]

    yield make
    for gallery in opened:
        gallery.close()


def test_folders_are_labels(make):
    result = evaluate_gallery(make("a", PLACES))
    # Ranks of the relevant of the five others, ties by path: cat/0: 1 4; cat/1: dog/2 ties with cat/0, which comes
    # first, so 1 4; cat/5: dog/4 dog/2, then cat/1 and bird/9 tie, bird first, so 4 5; dog/2: cat/1 cat/0, which ties
    # with dog/4, so 3; dog/4: cat/5 dog/2, so 2; bird/9: none.
    ap = [(1 + 2 / 4) / 2, (1 + 2 / 4) / 2, (1 / 4 + 2 / 5) / 2, 1 / 3, 1 / 2]
    assert result.scores.full_map == pytest.approx(np.mean(ap))
    assert result.scores.ap5_hits == result.scores.ap5 == pytest.approx(np.mean(ap))
    assert result.scores.precision1 == pytest.approx(2 / 5)
    assert result.scores.precision5 == pytest.approx((2 / 5 * 3 + 1 / 5 * 2) / 5)
    assert (result.scores.queries, result.scores.without_relevant) == (5, 1)
    assert (result.pictures, result.labels, result.excluded) == (6, 3, 6)
    assert result.unlabelled == result.unknown == result.damaged == []


def test_queries_of_another_gallery(make, tmp_path):
    queries = make("q", {"cat/0": 0, "dog/9": 9})
    result = evaluate_gallery(make("a", PLACES), queries=queries)
    # Nothing is left out. cat/0 at 0: cat/0 cat/1 dog/2 dog/4 cat/5; dog/9 at 9: bird/9 cat/5 dog/4 dog/2.
    assert result.scores.full_map == pytest.approx(((1 + 1 + 3 / 5) / 3 + (1 / 3 + 2 / 4) / 2) / 2)
    assert (result.pictures, result.excluded, result.scores.queries) == (6, 0, 2)
    with pytest.raises(GalleryError, match=r"other.db: made by another model"):
        evaluate_gallery(queries, queries=make("other", {"cat/0": 0}, seed=1))


def test_galleries_of_different_settings_cannot_be_compared(make, tmp_path):
    gallery, queries = make("a", PLACES), tmp_path / "flipped.db"
    with Gallery(queries, Embedder(small_weights(0), backend="numpy"), "a", flip=True) as flipped:
        flipped.index(tmp_path / "a")
        with pytest.raises(GalleryError, match=r"flipped.db: made by another model or with other settings"):
            evaluate_gallery(gallery, queries=flipped)
    for name, count in ("one", 5), ("two", 6):
        for i in range(count):
            (tmp_path / name).mkdir(exist_ok=True)
            noise(tmp_path / name / f"{i}.png", i)
        with Gallery(tmp_path / f"{name}.db", Embedder(small_weights(0), backend="numpy"), "a") as whole:
            whole.index(tmp_path / name)
            whole.reduce(tmp_path / f"{name}-small.db", 2)
    with Gallery(tmp_path / "one-small.db") as one, Gallery(tmp_path / "two-small.db") as two:
        evaluate_gallery(one, queries=one)
        for pair in (one, two), (gallery, one), (one, gallery):
            with pytest.raises(GalleryError, match="made by another model or with other settings"):
                evaluate_gallery(pair[0], queries=pair[1])


def test_labels_from_a_csv(make, tmp_path):
    gallery = make("a", PLACES)
    (tmp_path / "labels.csv").write_text(
        f"path,label\na/cat/0.png,x\n{tmp_path}/a/bird/9.png,x\na/cat/1.png,y\na/../a/dog/2.png,y\na/gone.png,x\n"
    )
    labels = read_labels(tmp_path / "labels.csv")
    result = evaluate_gallery(gallery, labels)
    # The gallery is 0x 9x 1y 2y: x at ranks 3 and 3, y at rank 1 (its tie with 0x, which comes first, at 2) and 1.
    assert result.scores.full_map == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1) / 4)
    assert result.pictures == 4
    assert result.unlabelled == [str(tmp_path / "a" / name) for name in ("cat/5.png", "dog/4.png")]
    assert result.unknown == [str(tmp_path / "a/gone.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must be path,label"),
        ("a.png,cat\n", "the first line must be path,label"),
        ("path,label\na.png\n", "line 2: 1 fields"),
        ("path,label\na.png,cat\n\nb.png,\n", "line 4: b.png has an empty label"),
        ("path,label\na.png,cat\nb.png,cat,3\n", "line 3: 3 fields"),
        ("path,label\na.png,cat\n./a.png,dog\n", r"line 3: ./a.png has another label"),
        ('path,label\na.png,"cat\nb.png,cat\nc.png,cat\n', "line 4: not CSV"),
        ('path,label\n"' + "x" * 200_000 + '",cat\n', "line 2: not CSV"),
    ],
)
def test_bad_labels_are_named(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(AlnumpyError, match=rf"labels.csv: {message}"):
        read_labels(tmp_path / "labels.csv")


def test_nothing_to_measure(make, tmp_path):
    gallery = make("a", PLACES)
    with pytest.raises(AlnumpyError, match=r"nothing to measure: none of 0 labelled queries"):
        evaluate_gallery(gallery, {})
    with pytest.raises(AlnumpyError, match=r"nothing to measure: none of 2 labelled queries"):
        evaluate_gallery(gallery, {str(tmp_path / "a/cat/0.png"): "x", str(tmp_path / "a/cat/1.png"): "y"})


@pytest.mark.parametrize("value", [np.nan, 1e30, None])
def test_damaged_embeddings_are_left_out_and_listed(make, tmp_path, value):
    make("a", PLACES).close()
    row = b"short" if value is None else np.full(SMALL.embedding, value, "<f4").tobytes()
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
        sql = "UPDATE contents SET embedding = ? WHERE hash = (SELECT hash FROM pictures WHERE path = ?)"
        db.execute(sql, [row, os.fsencode(tmp_path / "a/cat/1.png")])
    (tmp_path / "a/dog/4.png").unlink()
    with Gallery(tmp_path / "a.db", Embedder(small_weights(), backend="numpy"), "a") as gallery:
        gallery.index(tmp_path / "a")  # marks dog/4 as missing
        result = evaluate_gallery(gallery)
        labels = {str(tmp_path / "a" / f"{name}.png"): "x" for name in PLACES}
        assert evaluate_gallery(gallery, labels).unknown == [str(tmp_path / "a/dog/4.png")]
        assert result.damaged == [str(tmp_path / "a/cat/1.png")]
        assert (result.pictures, result.scores.queries) == (4, 2)
        assert evaluate_gallery_landmarks(gallery, [QUERY._replace(positive=["0", "1"])]).damaged == result.damaged


QUERY = LandmarkQuery("q_1", "0", (0, 0, 5, 5), ["0", "5", "elsewhere"], ["2", "nowhere"])


def test_landmarks_of_a_gallery(make):
    result = evaluate_gallery_landmarks(make("a", PLACES), [QUERY])
    # Ranking of 0: 0, 1, (2 is junk), 4, 5, 9: hits at ranks 1 and 4 of three positives.
    expected = ((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 3
    assert result == (pytest.approx(expected), {"q_1": pytest.approx(expected)}, 6, 1, ["elsewhere"], [])


def test_landmarks_of_a_gallery_need_their_pictures(make):
    with pytest.raises(AlnumpyError, match=r"a.db: 7, the query q_1, is not in the gallery"):
        evaluate_gallery_landmarks(make("a", PLACES), [QUERY._replace(picture="7")])
    with pytest.raises(AlnumpyError, match=r"b.db: .*/b/cat/5.png and .*/b/dog/5.png have the same name"):
        evaluate_gallery_landmarks(make("b", {"cat/0": 0, "cat/5": 5, "dog/5": 5}), [QUERY])
    assert evaluate_gallery_landmarks(make("c", {"cat/0": 0, "cat/6": 5, "dog/6": 5}), [QUERY]).pictures == 3


def test_landmarks_by_boxes():
    vectors = np.arange(4, dtype=np.float32)[:, None]
    queries = [QUERY._replace(name=name, positive=["a"], junk=[]) for name in ("first", "second")]
    result = evaluate_landmarks(np.array([[0], [2.9]], np.float32), queries, vectors, ["a", "b", "c", "d"])
    assert result.each == {"first": 1, "second": (0 + 1 / 4) / 2}
    assert (result.mean, result.in_database, result.missing) == ((1 + 1 / 8) / 2, 0, [])


GROUND_TRUTH = {
    "all_souls_1_query.txt": "oxc1_all_souls_000013 136.5 34.1 648.5 955.7\n",
    "all_souls_1_good.txt": "all_souls_000013\nall_souls_000026\n",
    "all_souls_1_ok.txt": "all_souls_000055\n",
    "all_souls_1_junk.txt": "",
}


def test_ground_truth(tmp_path):
    for name, text in (GROUND_TRUTH | {"README.txt": "not ground truth"}).items():
        (tmp_path / name).write_text(text)
    assert read_ground_truth(tmp_path) == [
        LandmarkQuery(
            "all_souls_1",
            "all_souls_000013",
            (136.5, 34.1, 648.5, 955.7),
            ["all_souls_000013", "all_souls_000026", "all_souls_000055"],
            [],
        )
    ]
    (tmp_path / "all_souls_1_ok.txt").write_text("all_souls_000055\nall_souls_000013\n")  # 13 is good as well
    (query,) = read_ground_truth(tmp_path)
    assert query.positive == ["all_souls_000013", "all_souls_000026", "all_souls_000055"]
    (tmp_path / "all_souls_1_junk.txt").unlink()
    with pytest.raises(AlnumpyError, match=rf"{tmp_path}: all_souls_1_junk.txt is missing"):
        read_ground_truth(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"all_souls_1_query.txt": ""}, "all_souls_1_query.txt: not a picture's name and four numbers"),
        ({"all_souls_1_query.txt": "x 1 2 3 4 5"}, "all_souls_1_query.txt: not a picture's name and four numbers"),
        ({"all_souls_1_query.txt": "x 1 2 three 4"}, "all_souls_1_query.txt: not a picture's name and four numbers"),
        ({"all_souls_1_query.txt": "x 1 2 inf 4"}, "all_souls_1_query.txt: the box is empty or not finite"),
        ({"all_souls_1_query.txt": "x 1 2 nan 4"}, "all_souls_1_query.txt: the box is empty or not finite"),
        ({"all_souls_1_query.txt": "x 1 2 3 2"}, "all_souls_1_query.txt: the box is empty or not finite"),
        ({"all_souls_1_good.txt": "", "all_souls_1_ok.txt": "\n"}, "the query has no positive picture"),
    ],
)
def test_bad_ground_truth_is_named(change, message):
    with pytest.raises(AlnumpyError, match=message):
        parse_ground_truth(GROUND_TRUTH | change)
    with pytest.raises(AlnumpyError, match="no ground truth"):
        parse_ground_truth({})
