"""The commands as a user runs them: output, errors on stderr, exit codes, help."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from PIL import Image

import alnumpy
from alnumpy import cli, kernels, weights
from alnumpy.layers import parameters
from alnumpy.networks import SPECS

ROOT = Path(__file__).parents[1]
COMMANDS = next(a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def run(*arguments, stdin="", cwd=None, env=None):
    """(exit code, stdout, stderr) of ``alnumpy ARGUMENTS`` as a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "alnumpy", *map(os.fspath, arguments)],
        input=os.fsencode(stdin),
        capture_output=True,
        cwd=cwd,
        env=None if env is None else os.environ | env,
        check=False,
    )
    assert b"Traceback" not in result.stderr
    assert b"--debug shows where" not in result.stderr
    return result.returncode, result.stdout.decode(errors="surrogateescape"), result.stderr.decode()


@pytest.fixture
def folder(tmp_path):
    """Two digits, a picture in a folder below, a file that is not a picture, and one that only has a picture's name."""
    (tmp_path / "below").mkdir()
    shutil.copy(DIGITS[0], tmp_path / "a.png")
    shutil.copy(DIGITS[5], tmp_path / "b.png")
    shutil.copy(DIGITS[9], tmp_path / "below" / "c.png")
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def expected(*paths):
    return alnumpy.load().embed(list(paths))


def test_one_picture_from_any_folder(tmp_path):
    code, out, err = run("embed", DIGITS[0], cwd=tmp_path)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    record = json.loads(out)
    assert record["path"] == str(DIGITS[0])
    np.testing.assert_array_equal(np.array(record["embedding"], np.float32), expected(DIGITS[0])[0])


def test_formats_agree(folder):
    paths = [folder / "a.png", folder / "b.png"]
    y = expected(*paths)
    lines = [json.loads(line) for line in run("embed", folder)[1].splitlines()]
    array = json.loads(run("embed", folder, "--format", "json")[1])
    rows = list(csv.reader(io.StringIO(run("embed", folder, "--format", "csv")[1])))
    assert [r["path"] for r in lines] == [r["path"] for r in array] == [r[0] for r in rows] == [str(p) for p in paths]
    for values in ([r["embedding"] for r in lines], [r["embedding"] for r in array], [r[1:] for r in rows]):
        np.testing.assert_array_equal(np.array(values, np.float32), y)
    code, out, _ = run("embed", folder, "--format", "npy", "--output", folder / "y.npy")
    assert code == 0
    np.testing.assert_array_equal(np.load(folder / "y.npy"), y)
    assert [json.loads(line) for line in out.splitlines()] == [{"row": i, "path": str(p)} for i, p in enumerate(paths)]


def test_npy_needs_output(folder):
    code, out, err = run("embed", folder, "--format", "npy")
    assert (code, out) == (2, "")
    assert "--output" in err


def test_fast_decode(tmp_path):
    wave = np.sin(np.arange(400 * 300) / 7).reshape(300, 400) * 120 + 128
    Image.fromarray(wave.astype(np.uint8)).save(tmp_path / "a.jpg")
    whole, fast = (
        np.array(json.loads(run("embed", tmp_path / "a.jpg", *option)[1])["embedding"], np.float32)
        for option in ([], ["--fast-decode"])
    )
    np.testing.assert_array_equal(fast, alnumpy.load().embed(tmp_path / "a.jpg", fast_decode=True)[0])
    assert (whole != fast).any()


def test_recursive_and_stdin(folder):
    names = [json.loads(line)["path"] for line in run("embed", folder, "--recursive")[1].splitlines()]
    assert names == [str(folder / name) for name in ("a.png", "b.png", "below/c.png")]
    listed = f"{folder / 'below' / 'c.png'}\n{folder / 'a.png'}\n"
    names = [json.loads(line)["path"] for line in run("embed", "-", stdin=listed)[1].splitlines()]
    assert names == listed.split()


def test_a_bad_picture_is_named_and_the_others_go_on(folder):
    (folder / "aa.png").write_text("hello")
    code, out, err = run("embed", folder, folder / "missing.png", "--batch-size", "2")
    assert code == 1
    assert [os.path.basename(json.loads(line)["path"]) for line in out.splitlines()] == ["a.png", "b.png"]
    assert re.fullmatch(
        r"alnumpy: .*/aa.png: not a picture .*\nalnumpy: .*/missing.png: No such file or directory\n", err
    )


def test_nothing_to_embed(tmp_path):
    code, out, err = run("embed", tmp_path, "--format", "json")
    assert (code, json.loads(out)) == (1, [])
    assert "no pictures in this folder itself; --recursive" in err


def test_output_is_whole_or_absent(folder):
    code, out, _ = run("embed", folder, "--output", folder / "y.jsonl")
    assert (code, out) == (0, "")
    assert (folder / "y.jsonl").read_text() == run("embed", folder)[1]
    code, out, err = run("embed", folder, "--output", folder / "nowhere" / "y.jsonl")
    assert code == 1
    assert "nowhere" in err
    before = sorted(os.listdir(folder))
    code, _, err = run("embed", folder, "--weights", folder / "notes.txt", "--output", folder / "z")
    assert code == 1
    assert "notes.txt: not an HDF5 file" in err
    assert sorted(os.listdir(folder)) == before


def test_output_to_links_devices_and_folders(folder):
    (folder / "real.jsonl").write_text("old")
    (folder / "link.jsonl").symlink_to("real.jsonl")
    assert run("embed", folder / "a.png", "--output", folder / "link.jsonl")[0] == 0
    assert (folder / "link.jsonl").is_symlink()
    assert json.loads((folder / "real.jsonl").read_text())["path"] == str(folder / "a.png")
    assert run("embed", folder / "a.png", "--output", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
    for wrong in (folder, ""):
        code, _, err = run("embed", folder / "a.png", "--output", wrong)
        assert (code, err) == (1, f"alnumpy: {wrong}: Is a folder, not a file to write\n")
    before = (folder / "a.png").read_bytes()
    assert run("embed", folder, "--output", folder / "a.png")[0] == 2
    assert (folder / "a.png").read_bytes() == before


def test_closed_streams(folder):
    for redirection, code, message in ((">&-", 1, "stdout is closed"), ("2>&-", 0, ""), ("<&-", 0, "")):
        command = f"{sys.executable} -m alnumpy embed - {folder}/a.png {redirection}"
        result = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert (result.returncode, message in result.stderr) == (code, True)
        assert "Traceback" not in result.stderr


def test_max_pixels(folder):
    code, out, err = run("embed", folder / "a.png", "--max-pixels", "700")
    assert (code, out) == (1, "")
    assert "28x28 pixels, more than the limit of 700" in err


def test_out_of_memory_is_one_line(folder):
    command = f"ulimit -v 2000000; {sys.executable} -m alnumpy embed {folder}/a.png --size 4096 --backend numpy"
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=env)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "out of memory; a smaller --size" in result.stderr


def test_untrusted_texts_cannot_write_to_the_terminal(tmp_path):
    good = weights.read(weights.default_path())
    path = tmp_path / "w\x1b[2J.h5"
    weights.write(path, replace(good, card={"a\x1b[31m": "x\nsha256: forged", "b": "\ud800"}, self_test_by="\x1b[2J"))
    for command in ("info", "verify"):
        code, out, _ = run(command, path)
        assert code == 0
        assert "\x1b" not in out
        assert not re.search("^sha256: forged", out, re.M)


def test_options_of_embed(folder):
    raw = expected(folder / "a.png")[0]
    unit = json.loads(run("embed", folder / "a.png", "--normalize")[1])["embedding"]
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw), rtol=1e-5)
    sized = json.loads(run("embed", folder / "a.png", "--size", "40")[1])["embedding"]
    np.testing.assert_array_equal(np.float32(sized), alnumpy.load(size=40).embed(folder / "a.png")[0])
    code, out, _ = run("embed", folder / "a.png", "--weights", weights.default_path())
    assert (code, json.loads(out)["embedding"]) == (0, [float(str(v)) for v in raw])


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "unknown",
        "embed",
        "embed a.png --size 0",
        "embed a.png --size 9999",
        "embed a.png --batch-size x",
        "info --size 3x",
        "info w.h5 --spec lnet",
    ],
)
def test_wrong_usage_is_exit_2(arguments):
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err


def test_without_a_command_all_are_listed():
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "index " in err
    assert "kernels " in err


def test_wrong_usage_names_the_command():
    assert "\nalnumpy search: error: the following arguments are required: QUERY\n" in run("search")[2]
    assert "\nalnumpy models: error: unrecognized arguments: --json x\n" in run("models", "--json", "x")[2]


def test_names_that_are_not_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\n.png"
    shutil.copy(DIGITS[0], name)
    code, out, _ = run("embed", tmp_path)
    assert code == 0
    assert base64.b64decode(json.loads(out)["path_base64"]) == name
    code, out, _ = run("embed", tmp_path, "--format", "csv", env={"LANG": "C", "PYTHONUTF8": "0"})
    assert code == 0
    assert os.fsencode(next(csv.reader(io.StringIO(out, newline="")))[0]) == name
    carriage = tmp_path / "a\rb.png"
    shutil.copy(DIGITS[0], carriage)
    code, out, _ = run("embed", carriage, "--format", "csv")
    assert [row[0] for row in csv.reader(io.StringIO(out, newline=""))] == [str(carriage)]
    carriage.unlink()
    strange = tmp_path / "a\u2028b\x0bc.png"
    shutil.copy(DIGITS[0], strange)
    assert json.loads(run("embed", "-", stdin=f"{strange}")[1])["path"] == str(strange)
    code, _, err = run("embed", tmp_path / "\udcfe\n.png")
    assert code == 1
    assert err.count("\n") == 1


def test_stdout_closed_early(folder):
    paths = "\n".join([str(DIGITS[0])] * 200)
    command = f"{sys.executable} -m alnumpy embed - | head -1"
    result = subprocess.run(command, shell=True, input=paths, capture_output=True, text=True, check=False)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_ctrl_c_is_one_line(tmp_path):
    fed = subprocess.Popen(
        [sys.executable, "-m", "alnumpy", "embed", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background tests ignore it
    )
    time.sleep(1.5)
    fed.send_signal(signal.SIGINT)
    _, err = fed.communicate(timeout=20)
    assert (fed.returncode, err) == (130, b"alnumpy: interrupted\n")


def test_progress_is_shown_on_a_terminal_only():
    hasty = "import time; now = time.monotonic; time.monotonic = lambda: 50 * now()"
    hasty += "; from alnumpy.__main__ import run; run()"
    command = [sys.executable, "-c", hasty, "embed", "--backend", "numpy", *map(str, DIGITS * 2)]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 1000)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    bars = re.findall(rb"\[(#*)(\.*)\] (\d+)/60 pictures, [\d.]+/s, \d+ s left", shown)
    assert bars
    for full, empty, done in bars:
        assert (len(full), len(full + empty)) == (20 * int(done) // 60, 20)
    assert shown.endswith(b"\r\x1b[K")


def test_info_prints_the_layer_table():
    code, out, _ = run("info", "--spec", "alnet", "--size", "32")
    assert code == 0
    assert re.search(r"^block4.depthwise +depthwise 3x3 /2 g192 bn relu6 +192x4x4 +2,112 ", out, re.M)
    assert re.search(r"^total +756,914 +6,641,760 ", out, re.M)
    code, out, _ = run("info", "--size", "37x53")
    assert code == 0
    assert re.search(r"^stem +conv 3x3 /1 g1 bn relu +32x37x53 ", out, re.M)
    assert "sha256: " in out


@pytest.mark.parametrize("name", SPECS)
def test_info_of_every_network(name, capsys):
    assert cli.main(["info", "--spec", name, "--size", "64"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()}
    spec = SPECS[name]
    assert all(layer.name in lines for layer in spec.layers())
    assert f" {spec.embedding}x1x1 " in lines[spec.layers()[-1].name]
    counted = sum(prod(shape) for key, shape in parameters(spec.layers()).items() if "running_" not in key)
    assert lines["total"].split()[1] == f"{counted:,}"
    compiled = r"[\d,]+ bytes per thread \(compiled kernels\)"
    refused = f"numpy backend only: {name}: no compiled kernel computes the layer "
    assert re.match(f"activations: ({compiled}|{refused})", lines["activations:"])


def test_backends(folder):
    pytest.importorskip("numba")
    vectors = {}
    for backend in ("numpy", "numba"):
        code, out, err = run("embed", folder, "--backend", backend, "--threads", "1", "--verbose")
        assert code == 0
        assert re.fullmatch(rf"alnumpy: backend {backend}, 2 pictures in [\d.]+ s\n", err)
        vectors[backend] = np.array([json.loads(line)["embedding"] for line in out.splitlines()])
        code, out, _ = run("verify", "--backend", backend)
        assert (code, out[:3]) == (0, "ok:")
    error = np.linalg.norm(vectors["numba"] - vectors["numpy"]) / np.linalg.norm(vectors["numpy"])
    assert 0 < error < 1e-5


def test_kernels_tells_what_runs_here_and_compiles_ahead():
    code, out, err = run("kernels")
    assert (code, err) == (0, "")
    assert len(re.findall(r"^(?:linux|macos|windows)-\S+ +[\d,]+ bytes", out, re.M)) == 8
    choice, level = kernels.packaged()
    if choice.path is not None:
        assert re.search(rf"^{choice.path.name} .* <- chosen$", out, re.M)
        assert f"compiled: {choice.path}, {choice.reason}{', level ' * bool(level)}{level}\n" in out
        assert out.endswith("--backend auto takes compiled\n")
    pytest.importorskip("numba")
    code, out, err = run("kernels", "--compile")
    assert (code, err) == (0, "")
    assert Path(re.search(r"^numba: ready in [\d.]+ s, kept in (.*)$", out, re.M)[1]).exists()


@pytest.mark.parametrize("command", ["kernels --compile", "embed a.png --backend numba"])
def test_without_numba_the_extra_is_named(command):
    code = f"import sys; sys.modules['numba'] = None; from alnumpy.cli import main; sys.exit(main({command.split()}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'alnumpy[numba]'" in result.stderr


def test_verify_passes_and_fails(tmp_path):
    code, out, _ = run("verify")
    assert code == 0
    assert re.match(r"ok: .*alnet-photo.h5: relative error \d\.\d\de-\d\d \(at most 1e-05\), largest ", out)
    good = weights.read(weights.default_path())
    wrong = good.self_test_embedding.copy()
    wrong[0, 7] += 0.01 * np.linalg.norm(wrong)
    weights.write(tmp_path / "w.h5", replace(good, self_test_embedding=wrong))
    code, out, _ = run("verify", tmp_path / "w.h5")
    assert code == 1
    assert re.match(rf"FAILED: {tmp_path}/w.h5: relative error (9\.9\de-03|1\.0\de-02) ", out)


def test_debug_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "alnumpy", "--debug", "verify", str(tmp_path / "w.h5")]
    assert b"Traceback" in subprocess.run(command, capture_output=True, check=False).stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_an_example_and_documentation(name):
    command = COMMANDS[name]
    text = command.format_help()
    assert command.description
    assert f"example:\n  alnumpy {name}" in text
    assert all(action.help for action in command._actions)
    assert f"`alnumpy {name}" in (ROOT / "README.md").read_text()


def test_help_says_that_links_to_folders_are_not_followed():
    for name in ("embed", "index"):
        assert "links to folders" in " ".join(COMMANDS[name].format_help().split())
