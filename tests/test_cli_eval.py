"""``alnumpy eval``, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from conftest import DIGITS
from test_cli import run

from alnumpy.weights import default_path

MNIST = default_path().with_name("alnet-mnist.h5")  # these weights tell digits apart


@pytest.fixture
def desk(tmp_path):
    """Digits in folders of their name, 5 pictures of two classes and one alone, and a gallery of them."""
    for i, name in ((0, "0/a"), (1, "0/b"), (2, "0/c"), (5, "5/d"), (6, "5/e"), (9, "alone/f")):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DIGITS[i], tmp_path / "p" / f"{name}.png")
    assert run("index", "p", "--db", "g.db", "--weights", MNIST, cwd=tmp_path)[0] == 0
    return tmp_path


def test_folders(desk):
    code, out, err = run("eval", "--db", "g.db", cwd=desk)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "gallery: 6 pictures with 3 labels: the names of their folders",
        "queries: 5; 1 more have nothing to find; 6 are in the gallery, left out of their own ranking",
        "ties: by path",
    ]
    values = {line[:34].strip(): float(line[34:]) for line in lines[3:]}
    assert list(values) == [
        "full mAP",
        "AP@5, divided by the hits among 5",
        "AP@5, divided by min(5, relevant)",
        "precision@1",
        "precision@5",
    ]
    assert values["precision@5"] == pytest.approx((3 * 2 / 5 + 2 * 1 / 5) / 5, abs=1e-4)  # all five others are ranked
    result = json.loads(run("eval", "--db", "g.db", "--json", cwd=desk)[1])
    assert result["scores"]["full_map"] == pytest.approx(values["full mAP"], abs=1e-4)
    assert (result["pictures"], result["scores"]["queries"], result["excluded"]) == (6, 5, 6)


def test_labels(desk):
    (desk / "labels.csv").write_text("path,label\np/0/a.png,x\np/0/b.png,x\np/5/d.png,y\n")
    code, out, err = run("eval", "--db", "g.db", "--labels", "labels.csv", "--json", cwd=desk)
    assert (code, err) == (0, f"alnumpy: {desk}/p/0/c.png: not in labels.csv, left out; and 2 more\n")
    assert [os.path.basename(path) for path in json.loads(out)["unlabelled"]] == ["c.png", "e.png", "f.png"]
    assert json.loads(out)["scores"]["without_relevant"] == 1
    (desk / "labels.csv").write_text("path,label\np/0/a.png,x\np/0/b.png,x\ngone.png,x\n")
    code, _, err = run("eval", "--db", "g.db", "--labels", "labels.csv", cwd=desk)
    assert code == 1
    assert f"alnumpy: {desk}/gone.png: labelled, but not in the gallery\n" in err
    (desk / "labels.csv").write_text("p/0/a.png,x\n")
    assert run("eval", "--db", "g.db", "--labels", "labels.csv", cwd=desk) == (
        1, "", "alnumpy: labels.csv: the first line must be path,label\n"
    )  # fmt: skip
    assert run("eval", "--db", "g.db", "--labels", "none.csv", cwd=desk)[::2] == (
        1, "alnumpy: none.csv: No such file or directory\n"
    )  # fmt: skip


def test_queries_of_another_gallery(desk):
    assert run("index", "p/0", "--db", "q.db", "--weights", MNIST, cwd=desk)[0] == 0
    code, out, err = run("eval", "--db", "g.db", "--queries", "q.db", cwd=desk)
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == "queries: 3; 3 are in the gallery, left out of their own ranking"


def test_ground_truth(desk):
    (desk / "gt").mkdir()
    for kind, text in (("query", "a 1 1 20 20"), ("good", "a b"), ("ok", "gone"), ("junk", "c")):
        (desk / "gt" / f"zero_1_{kind}.txt").write_text(text)
    (desk / "gt" / "._zero_1_query.txt").write_bytes(b"\0\5\x16\7")  # a companion file of macOS
    code, out, err = run("eval", "--db", "g.db", "--groundtruth", "gt", cwd=desk)
    assert (code, err) == (1, "alnumpy: gone: not in the gallery, counted as never found\n")
    lines = out.splitlines()
    assert lines[0] == "gallery: 6 pictures"
    assert lines[1] == "queries: 1, whole pictures (no boxes), not left out of their own ranking"
    assert lines[3].split()[:-1] == ["mAP,", "junk", "ignored,", "trapezoid", "rule"]
    value = float(lines[3].split()[-1])
    assert value == pytest.approx(2 / 3, abs=1e-4)  # the query and the other zero come first, "gone" never
    assert lines[4].split() == ["zero_1", f"{value:.4f}"]
    result = json.loads(run("eval", "--db", "g.db", "--groundtruth", "gt", "--json", cwd=desk)[1])
    assert result["each"] == {"zero_1": pytest.approx(value, abs=1e-4)}
    assert result["missing"] == ["gone"]

    (desk / "gt" / "zero_1_query.txt").write_text("nothing")
    code, out, err = run("eval", "--db", "g.db", "--groundtruth", "gt", cwd=desk)
    assert (code, out, err) == (1, "", "alnumpy: gt: zero_1_query.txt: not a picture's name and four numbers\n")
    code, _, err = run("eval", "--db", "g.db", "--groundtruth", "gt", "--queries", "g.db", cwd=desk)
    assert (code, err) == (2, "alnumpy: --groundtruth names the queries itself: leave out --queries\n")


def test_damaged_embeddings(desk):
    with closing(sqlite3.connect(desk / "g.db", isolation_level=None)) as db:
        db.execute("UPDATE contents SET embedding = x'00' WHERE rowid = 1")
    code, out, err = run("eval", "--db", "g.db", cwd=desk)
    assert code == 1
    assert out.startswith("gallery: 5 pictures")
    assert err.endswith(".png: damaged in the gallery, left out\n")


def test_a_single_label_is_reported(desk):
    for picture in (desk / "p").glob("*/*.png"):
        picture.rename(desk / "p" / picture.name)
    assert run("index", "p", "--db", "h.db", "--weights", MNIST, cwd=desk)[0] == 0
    code, out, err = run("eval", "--db", "h.db", cwd=desk)
    assert (code, "1 labels" in out) == (0, True)
    assert "all pictures have one label" in err
