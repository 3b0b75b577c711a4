"""File names that are not text, in every form that the commands print and read."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import DIGITS
from test_cli import run

from alnumpy import results

NAME = b"\xff\n.png"  # neither UTF-8 nor one line


@pytest.fixture
def desk(tmp_path):
    """A folder with two pictures, one with a name that is not text, and a gallery of them."""
    (tmp_path / "p").mkdir()
    shutil.copy(DIGITS[0], os.path.join(os.fsencode(tmp_path / "p"), NAME))
    shutil.copy(DIGITS[5], tmp_path / "p" / "b.png")
    assert run("index", "p", "--db", "g.db", cwd=tmp_path)[0] == 0
    return tmp_path


def full(desk):
    return os.path.join(os.fsencode(desk / "p"), NAME)


def given_back(record, key="path"):
    """The bytes of a name in a JSON object, which must be text for any reader of JSON."""
    record[key].encode()
    if f"{key}_base64" in record:
        return base64.b64decode(record[f"{key}_base64"])
    return os.fsencode(record[key])


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_json_gives_every_name_back(desk, locale):
    env = {"LC_ALL": locale}
    (answer,) = json.loads(run("search", os.fsdecode(full(desk)), "--db", "g.db", "--json", cwd=desk, env=env)[1])
    assert given_back(answer, "query") == full(desk)
    assert [given_back(r) for r in answer["results"]] == [full(desk), os.fsencode(desk / "p" / "b.png")]
    assert ["path_base64" in r for r in answer["results"]] == [True, False]
    (group,) = json.loads(run("duplicates", "--db", "g.db", "--threshold", "1e9", "--json", cwd=desk, env=env)[1])
    assert {given_back(r) for r in group} == {full(desk), os.fsencode(desk / "p" / "b.png")}
    for form in ("json", "jsonl"):
        out = run("embed", "p", "--format", form, cwd=desk, env=env)[1]
        records = json.loads(out) if form == "json" else [json.loads(line) for line in out.splitlines()]
        assert {given_back(r) for r in records} == {b"p/" + NAME, b"p/b.png"}
    out = run("embed", "p", "--format", "npy", "--output", "y.npy", cwd=desk, env=env)[1]
    assert {given_back(json.loads(line)) for line in out.splitlines()} == {b"p/" + NAME, b"p/b.png"}


def test_csv_gives_every_name_back(desk):
    out = run("search", "p/b.png", "--db", "g.db", "--csv", cwd=desk)[1]
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [os.fsencode(row["path"]) for row in rows] == [os.fsencode(desk / "p" / "b.png"), full(desk)]
    assert [base64.b64decode(row["path_base64"]) for row in rows] == [b"", full(desk)]


def test_names_that_are_not_text_are_shown_on_one_line(desk):
    code, out, err = run("search", "p/b.png", "--db", "g.db", cwd=desk)
    assert (code, err, out.count("\n")) == (0, "", 2)
    assert out.endswith(f"\t{desk}/p/\\udcff\\n.png\n")


def test_the_lists_of_eval(desk):
    shutil.copy(DIGITS[6], desk / "p" / "c.png")
    run("index", "p", "--db", "g.db", cwd=desk)
    (desk / "labels.csv").write_text("path,label\np/b.png,five\np/c.png,five\n")
    result = json.loads(run("eval", "--db", "g.db", "--labels", "labels.csv", "--json", cwd=desk)[1])
    assert result["unlabelled_base64"] == [base64.b64encode(full(desk)).decode()]
    fields = json.loads(results.measures_json({"mean": 0.5, "missing": ["a", "\udcff"], "damaged": ()}))
    assert fields == {
        "mean": 0.5, "missing": ["a", "\N{REPLACEMENT CHARACTER}"], "missing_base64": [None, "/w=="], "damaged": []
    }  # fmt: skip


@pytest.mark.parametrize("form", ["null", "null without the last", "lines", "crlf", "mark", "crlf without the last"])
def test_lists_of_paths(desk, form):
    names = [b"p/b.png", b"p/b.png"]
    if form.startswith("null"):
        names[0] = b"p/" + NAME
    between = {"n": b"\0", "l": b"\n", "c": b"\r\n", "m": b"\n"}[form[0]]
    data = between.join(names) + (b"" if "without" in form else between)
    if form == "mark":
        data = b"\xef\xbb\xbf" + data
    for command in (["embed", "-", "--format", "csv"], ["search", "-", "--db", "g.db", "-k", "1", "--csv"]):
        result = subprocess.run(
            [sys.executable, "-m", "alnumpy", *command], cwd=desk, input=data, capture_output=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, b"")
        rows = list(csv.reader(io.StringIO(os.fsdecode(result.stdout), newline="")))
        assert [os.fsencode(row[0]) for row in rows[command[0] == "search" :]] == names


def test_a_name_that_ends_with_a_carriage_return(tmp_path):
    for digit, name in ((0, "a.png\r"), (1, "b.png")):
        shutil.copy(DIGITS[digit], tmp_path / name)
    code, out, err = run("embed", "-", stdin="a.png\r\nb.png\r\n", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert [json.loads(line)["path"] for line in out.splitlines()] == ["a.png\r", "b.png"]


def test_paths_for_xargs(desk):
    code, out, err = run("search", "p/b.png", "--db", "g.db", "-0", cwd=desk)
    assert (code, err) == (0, "")
    assert os.fsencode(out).split(b"\0") == [os.fsencode(desk / "p" / "b.png"), full(desk), b""]
    out = run("duplicates", "--db", "g.db", "--threshold", "1e9", "-0", cwd=desk)[1]
    assert len(os.fsencode(out).split(b"\0")) == 2  # all but the first, and the empty rest after the last NUL
    assert run("search", "p/b.png", "--db", "g.db", "-0", "--json", cwd=desk)[0] == 2


def test_find_and_xargs(desk):
    command = (
        f"find p -name '*.png' -print0 | {sys.executable} -m alnumpy embed - --format npy --output y.npy >names &&"
        f"{sys.executable} -m alnumpy search p/b.png --db g.db -0 | xargs -0 ls -1d --"
    )
    result = subprocess.run(command, shell=True, cwd=desk, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert full(desk) in result.stdout
    assert np.load(desk / "y.npy").shape[0] == 2
