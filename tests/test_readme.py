"""Every example of the README and of the pages in docs/ runs as written, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS, random_params
from PIL import Image

import numbers_of_pages as numbers
from alnumpy import SPECS, cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = [README, *(ROOT / "docs" / f"{name}.md" for name in ("GALLERY", "LIBRARY", "CONVERTING", "DUPLICATES"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def lines(page):
    return re.findall(r"^\$ (.*)$", "".join(blocks(page, "console")), re.M)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "pictures").mkdir()
    for name, digit in zip(("a.png", "b.png"), DIGITS, strict=False):
        shutil.copy(digit, folder / "pictures" / name)
    shutil.copy(DIGITS[0], folder / "pictures" / "copy.png")
    Image.open(DIGITS[0]).resize((90, 60)).save(folder / "photo.jpg")
    return folder


@pytest.fixture(scope="module")
def model(desk):
    """The reader's own model, as a module and as a checkpoint."""
    torch = pytest.importorskip("torch")
    from torch_network import from_arrays

    spec = SPECS["alnet"]
    torch.save(from_arrays(spec, random_params(spec), classes=3).state_dict(), desk / "my_checkpoint.pt")
    (desk / "my_project.py").write_text("import torch\nmodel = torch.nn.Flatten()\n")


def run(command, desk, **options):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "XDG_DATA_HOME": str(desk / "data")}
    return subprocess.run(command, cwd=desk, capture_output=True, text=True, check=False, env=environment, **options)


def test_python_examples(desk):
    result = run([sys.executable, "-c", "".join(blocks(ROOT / "docs/LIBRARY.md", "python"))], desk)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^photo.jpg: \[.*\]\n.*\nnearest: [01]$", result.stdout, re.M)


def test_the_example_for_against_writes_both_arrays(desk, model):
    result = run([sys.executable, "-c", "".join(blocks(ROOT / "docs/CONVERTING.md", "python"))], desk)
    assert result.returncode == 0, result.stderr
    with np.load(desk / "against.npz") as found:
        assert found["input"].shape == (2, 3, 128, 128)
        np.testing.assert_array_equal(found["embedding"], found["input"].reshape(2, -1))


@pytest.mark.parametrize(("page", "line"), [(page.stem, line) for page in EXAMPLES for line in lines(page)])
def test_console_examples(desk, page, line, request):
    if re.search("my_(checkpoint|weights)", line):
        request.getfixturevalue("model")
    result = run(line, desk, shell=True)
    assert result.returncode == 0, result.stderr
    written = re.search(r"(?:--output|-o) (\S+)", line)
    assert (desk / written[1]).stat().st_size if written else result.stdout


def test_all_examples_are_run():
    assert [page.stem for page in DOCS if page not in EXAMPLES and blocks(page, "console")] == []


def anchors(page):
    """The names that links give to the headings of a page: lower case, hyphens for spaces, no other punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.stem)
def test_links_lead_to_a_file_or_a_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def test_every_measured_number_has_a_command_that_exists(capsys):
    assert numbers.main([]) == 0, capsys.readouterr().out
    commands = {line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()}
    scripts = {script for command in commands for script in re.findall(r"(?:tools|tests)/[\w/]+\.py|\.ci/\w+", command)}
    assert len(commands) > 40
    assert {"tools/reproduce.py", "tools/dev/benchmark.py", "tools/dev/fuzz.py"} <= scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    names = {match[1] for command in commands if (match := re.match(r"(?:\.venv/bin/)?alnumpy (\w+)", command))}
    assert names <= set(cli.MODULES)


def test_a_number_without_a_command_is_noticed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n`alnumpy info`\n\n## With\n\n12 ms\n\n# Other\n\nPython 3.11\n\n## Without\n\n| 0.123 |\n"
    )
    monkeypatch.setattr(numbers, "PAGES", [page])
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    assert numbers.main(["--lines"]) == 1
    assert (
        capsys.readouterr().out == "alnumpy info\tpage.md#with\n    12 ms\nNO COMMAND\tpage.md#without\n    | 0.123 |\n"
    )


def test_the_first_commands_name_pictures_that_ship():
    first, second = blocks(README, "sh")
    paths = re.findall(r"tests/\S+", first)
    assert len(paths) == 2
    assert all((ROOT / path).exists() for path in paths)
    assert "pytest" in second


def test_the_readme_shows_what_its_search_prints(tmp_path):
    first = blocks(README, "sh")[0].replace(".venv/bin/", "").replace(".venv/", f"{tmp_path}/")
    first = first.replace("tests/data", str(ROOT / "tests/data"))
    for line in first.splitlines()[1:]:
        result = run([sys.executable, "-m", *line.split()], tmp_path)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "results.html").stat().st_size
    with Image.open(tmp_path / "results.png") as made, Image.open(ROOT / "docs/search.png") as picture:
        assert made.size == picture.size
        assert np.abs(np.int16(made) - np.int16(picture)).mean() < 3  # fonts and decoders differ a little
    shown = next(text for text in blocks(README, "text") if text.startswith("0.0000"))
    pattern = re.compile(r"^(\S+)\t\S*/(\S+?)(\tsame)?$", re.M)
    for ours, theirs in zip(pattern.findall(result.stdout), pattern.findall(shown), strict=True):
        assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-2)  # decoders differ a little
        assert ours[1:] == theirs[1:]
