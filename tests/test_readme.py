"""Every example of the README runs as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DIGITS, random_params
from PIL import Image

from alnumpy import SPECS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "pictures").mkdir()
    for name, digit in zip(("a.png", "b.png"), DIGITS, strict=False):
        shutil.copy(digit, folder / "pictures" / name)
    Image.open(DIGITS[0]).resize((90, 60)).save(folder / "photo.jpg")
    (folder / "tools").symlink_to(ROOT / "tools")
    torch = pytest.importorskip("torch")
    from torch_network import from_arrays

    spec = SPECS["alnet"]
    torch.save(from_arrays(spec, random_params(spec), classes=3).state_dict(), folder / "my_checkpoint.pt")
    return folder


def test_python_examples(desk):
    code = "".join(blocks("python"))
    result = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^photo.jpg: \[.*\]\n.*\nnearest: [01]$", result.stdout, re.M)


@pytest.mark.parametrize("line", re.findall(r"^\$ (.*)$", "".join(blocks("console")), re.M))
def test_console_examples(desk, line):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        line,
        shell=True,
        cwd=desk,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path, "XDG_DATA_HOME": str(desk / "data")},
    )
    assert result.returncode == 0, result.stderr
    written = re.search(r"(?:--output|-o) (\S+)", line)
    assert (desk / written[1]).stat().st_size if written else result.stdout


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://doi.org/") or (ROOT / target).exists(), target


def test_the_picture_of_the_first_command_is_there():
    assert len(blocks("sh")) == 2
    assert (ROOT / blocks("sh")[0].split()[-1]).exists()
