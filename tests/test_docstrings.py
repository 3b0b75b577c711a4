"""The docstrings of what users call: their sections, and examples that run."""

import doctest
import inspect
import os
import re
import shutil

import numpy as np
import pytest
from conftest import DIGITS
from PIL import Image

import alnumpy

CLASSES = ("Embedded", "Embedder", "Gallery", "Match", "Picture", "Report")
NO_ERRORS = {
    "Embedded",
    "Match",
    "Picture",
    "Report",
    "Gallery.close",
    "Embedder.identity",
}  # these raise nothing of their own
PUBLIC = {name: getattr(alnumpy, name) for name in (*CLASSES, "load")} | {
    f"{owner.__name__}.{name}": member
    for owner in (alnumpy.Embedder, alnumpy.Gallery)
    for name, member in vars(owner).items()
    if inspect.isfunction(member) and not name.startswith("_")
}


def sections(text):
    """The text of each section by its heading."""
    parts = re.split(r"^(Parameters|Returns|Raises|Example):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The names that examples use: pictures, a gallery of them, and an embedder."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("pictures")
    for name, digit in (("a.png", DIGITS[0]), ("b.png", DIGITS[1]), ("copy.png", DIGITS[0])):
        shutil.copy(digit, f"pictures/{name}")
    Image.open(DIGITS[0]).resize((90, 60)).save("photo.jpg")
    embedder = alnumpy.load()
    with alnumpy.Gallery("gallery.db", embedder, "a") as gallery:
        gallery.index("pictures")
        yield {"alnumpy": alnumpy, "np": np, "os": os, "embedder": embedder, "gallery": gallery}


@pytest.mark.parametrize("name", PUBLIC)
def test_sections(name):
    found = sections(inspect.getdoc(PUBLIC[name]))
    signature = inspect.signature(PUBLIC[name])
    documented = re.findall(r"^    (\w[\w, ]*): ", found.get("Parameters", ""), re.MULTILINE)
    names = [part for line in documented for part in line.split(", ")]
    assert names == [parameter for parameter in signature.parameters if parameter != "self"]
    returns = inspect.isfunction(PUBLIC[name]) and signature.return_annotation != "None"
    assert ("Returns" in found) == returns
    assert ("Raises" in found) == (name not in NO_ERRORS)
    assert ">>> " in found["Example"]


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name, examples):
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(PUBLIC[name]), examples, name, None, 0)
    told = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert result.attempted > 0
    assert not result.failed, "".join(told)
