"""Every way to install finds the package and its weights, even from the folder above a clone that is named alnumpy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("pip")
try:
    SETUPTOOLS = int(version("setuptools").split(".")[0])
except PackageNotFoundError:
    SETUPTOOLS = 0
if SETUPTOOLS < 64 or not (SETUPTOOLS > 70 or find_spec("wheel")):
    pytest.skip("needs setuptools 64 or newer and wheel, with which it builds", allow_module_level=True)

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "alnumpy", "weights")
LOOK = "import alnumpy, alnumpy.weights as w; print(alnumpy.__file__); print(w.default_path())"
INSTALL = ["-m", "pip", "--quiet", "install", "--no-build-isolation", "--no-deps", "--no-index"]


def run(command, folder):
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "PIP_TARGET", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def clone(tmp_path):
    """The repository as git clones it, in a folder of its own."""
    clone = tmp_path / "above" / "alnumpy"
    clone.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
        else:
            shutil.copy(ROOT / name, clone)
    return clone


@pytest.fixture
def python(tmp_path):
    """The Python of a new environment that shares NumPy and the build tools with this one."""
    venv.create(tmp_path / "venv", symlinks=os.name != "nt")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    (Path(site) / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return python


def found(python, folder):
    """Where Python finds alnumpy and its weights from this folder, after a test that both work."""
    assert run([python, "-m", "alnumpy", "verify"], folder).startswith("ok: ")
    return [Path(line) for line in run([python, "-c", LOOK], folder).splitlines()]


@pytest.mark.parametrize("mode", ["", "strict", "compat"])
def test_editable(clone, python, mode):
    options = ["--config-settings", f"editable_mode={mode}"] if mode else []
    run([python, *INSTALL, *options, "--editable", clone], clone)
    package, weights = found(python, clone.parent)
    assert package.resolve() == clone / "alnumpy" / "__init__.py"
    assert weights.resolve().parent == clone / "weights"


@pytest.mark.parametrize("form", ["folder", "wheel", "sdist"])
def test_installed(clone, python, form):
    source = clone
    if form != "folder":
        command = f"from setuptools import build_meta; print(build_meta.build_{form}('.'))"
        source = clone / run([sys.executable, "-c", command], clone).splitlines()[-1]
    run([python, *INSTALL, source], clone)
    package, weights = found(python, clone.parent)
    assert python.parents[1] in package.parents
    assert weights.parent == package.parent / "pretrained"
    assert sorted(os.listdir(weights.parent)) == sorted(os.listdir(ROOT / "weights"))


@pytest.mark.parametrize("source", ["", "https://example.org/alnumpy"])
def test_every_link_of_the_readme_works_on_a_page_without_the_repository(clone, source):
    if source:
        settings = (clone / "setup.cfg").read_text()
        (clone / "setup.cfg").write_text(settings.replace("project_urls =", f"project_urls =\n    Source = {source}"))
    command = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('.'))"
    shown = (clone / run([sys.executable, "-c", command], clone).splitlines()[-1] / "METADATA").read_text()
    relative = re.findall(r"\]\((?!https?:|#)", (clone / "README.md").read_text())
    assert relative
    assert not re.search(r"\]\((?!https?:|#)", shown)
    assert shown.count(source + "/") == len(relative) if source else "`alnet-photo`" in shown
