"""Ranking and its measures, compared with cases worked by hand, plain loops, and the published rules."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import given, st

from alnumpy import retrieval
from alnumpy.retrieval import average_precision, evaluate, official_average_precision, rankings


def ranked(text):
    """Relevance of one ranking, from a text such as "1011"."""
    return np.array([[c == "1" for c in text]])


@pytest.mark.parametrize(
    ("text", "full", "hits5", "ap5"),
    [
        ("1", 1, 1, 1),
        ("01", 1 / 2, 1 / 2, 1 / 2),
        ("1010", (1 + 2 / 3) / 2, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),
        # Seven results, relevant at ranks 1, 3 and 7: full AP (1 + 2/3 + 3/7) / 3.
        ("1010001", (1 + 2 / 3 + 3 / 7) / 3, (1 + 2 / 3) / 2, (1 + 2 / 3) / 3),
        # Six relevant pictures, all but one after the fifth rank: min(5, 6) = 5.
        ("0000111111", (1 / 5 + 2 / 6 + 3 / 7 + 4 / 8 + 5 / 9 + 6 / 10) / 6, 1 / 5, 1 / 25),
        ("0000011", (1 / 6 + 2 / 7) / 2, 0, 0),
        ("000", np.nan, np.nan, np.nan),
    ],
)
def test_average_precision_by_hand(text, full, hits5, ap5):
    assert average_precision(ranked(text))[0] == pytest.approx(full, nan_ok=True)
    assert average_precision(ranked(text), 5, by_hits=True)[0] == pytest.approx(hits5, nan_ok=True)
    assert average_precision(ranked(text), 5)[0] == pytest.approx(ap5, nan_ok=True)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 45))
def test_average_precision_is_the_loop_of_the_definition(relevance, k):
    hits, gained = 0, 0.0
    for rank, relevant in enumerate(relevance[:k], 1):
        if relevant:
            hits += 1
            gained += hits / rank
    expected = gained / min(k, sum(relevance)) if any(relevance) else np.nan
    assert average_precision(np.array([relevance]), k)[0] == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_full_ap_is_scikit_learns(relevance):
    metrics = pytest.importorskip("sklearn.metrics")
    scores = -np.arange(len(relevance))
    assert average_precision(np.array([relevance]))[0] == pytest.approx(
        metrics.average_precision_score(relevance, scores)
    )


def test_official_rule_by_hand():
    # Ranking of pictures 0 to 5; 0 and 3 are positive, 1 is junk: the list that counts is 0 2 3 4 5.
    # Recall rises by 1/2 at rank 1 (precisions 1 and 1) and at rank 3 (precisions 1/2 and 2/3).
    value = official_average_precision(np.arange(6), np.array([0, 3]), np.array([1]))
    assert value == pytest.approx(0.5 * (1 + 1) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2)
    assert official_average_precision(np.array([2, 0]), np.array([0]), np.array([])) == pytest.approx((0 + 1 / 2) / 2)
    missing = official_average_precision(np.array([2, 0]), np.array([0, -1]), np.array([-1]))
    assert missing == pytest.approx((0 + 1 / 2) / 2 / 2)
    with pytest.raises(ValueError, match="without a positive"):
        official_average_precision(np.arange(3), np.array([]), np.array([1]))


@given(st.integers(1, 30), st.data())
def test_official_rule_is_the_loop_of_the_benchmark(n, data):
    kinds = data.draw(st.lists(st.sampled_from("pjn"), min_size=n, max_size=n).filter(lambda k: "p" in k))
    order = np.array(data.draw(st.permutations(range(n))))
    positive, junk = (np.array([i for i, k in enumerate(kinds) if k == kind], np.int64) for kind in "pj")
    old_recall, old_precision, ap, hits, seen = 0.0, 1.0, 0.0, 0, 0
    for index in order:
        if kinds[index] == "j":
            continue
        hits += kinds[index] == "p"
        seen += 1
        recall, precision = hits / len(positive), hits / seen
        ap += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    assert official_average_precision(order, positive, junk) == pytest.approx(ap)


def test_rankings_put_ties_in_order_of_position():
    rng = np.random.default_rng(2)
    x = rng.integers(-1, 2, (200, 3)).astype(np.float32)
    x[5] = 0
    ((part, order),) = rankings(x[:9], x, np.array([-1] * 8 + [8]))
    exact = ((x[:9, None] - x) ** 2).sum(2)
    exact[8, 8] = np.inf
    assert part == slice(0, 9)
    np.testing.assert_array_equal(order, np.argsort(exact, axis=1, kind="stable"))


def test_rankings_put_equal_pictures_in_order_of_position():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 1280)).astype(np.float32)[rng.integers(0, 200, 500)]
    equal = x[:, None, 0] == x[None, :, 0]
    first, second = np.nonzero(np.triu(equal, 1))
    ((_, order),) = rankings(x[:100], x)
    places = np.argsort(order, axis=1)  # the rank of each picture of the gallery
    assert (places[:, first] < places[:, second]).all()
    assert (order[:, 0] == equal[:100].argmax(1)).all()  # the first copy of the query itself


def test_evaluate_in_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 6, 50)
    labels[3] = 99  # a label of its own
    whole = evaluate(x, labels, x, labels, np.arange(50))
    monkeypatch.setattr(retrieval, "BLOCK", 170)
    assert len(list(rankings(x, x))) > 10
    assert evaluate(x, labels, x, labels, np.arange(50)) == pytest.approx(whole)

    full, first = [], []
    for i in range(50):
        order = [j for j in np.argsort(np.linalg.norm(x - x[i], axis=1), kind="stable") if j != i]
        relevance = labels[order] == labels[i]
        if relevance.any():
            full.append(average_precision(relevance[None])[0])
            first.append(relevance[0])
    assert (whole.queries, whole.without_relevant) == (49, 1)
    assert whole.full_map == pytest.approx(np.mean(full))
    assert whole.precision1 == pytest.approx(np.mean(first))


def test_evaluate_of_queries_outside_the_gallery():
    gallery, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    scores = evaluate(gallery[:1] * 0.9, np.array([0]), gallery, labels)
    # Nearest is 0; the others are equally far, so they rank by index: relevance 1 0 1 0.
    assert scores.full_map == pytest.approx((1 + 2 / 3) / 2)
    assert scores.precision1 == 1
    assert scores.precision5 == pytest.approx(2 / 4)


def test_precision_of_a_query_that_is_in_a_small_gallery():
    # Three others are ranked: the query's own place does not count among them.
    scores = evaluate(np.zeros((4, 2)), np.array([0, 0, 0, 1]), np.zeros((4, 2)), np.array([0, 0, 0, 1]), np.arange(4))
    assert scores.precision5 == pytest.approx(2 / 3)
    assert (scores.queries, scores.without_relevant) == (3, 1)


def test_evaluate_without_queries_or_gallery():
    x, labels = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
    for scores, left_out in ((evaluate(x[:0], labels[:0], x, labels), 0), (evaluate(x, labels, x[:0], labels[:0]), 2)):
        assert np.isnan(scores[:5]).all()
        assert scores[5:] == (0, left_out)
