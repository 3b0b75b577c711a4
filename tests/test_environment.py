"""The program in bad company: signals, locales, closed streams, missing folders and rights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import DIGITS

PROGRAM = [sys.executable, "-m", "alnumpy"]
ENDINGS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


# Signals

START = """
import signal
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # tests in the background have them ignored
from alnumpy import __main__ as program
program.catch_signals()
print("begun", flush=True)
program.run()
"""


def start_embedding(folder, backend, **options):
    """The program at its very beginning, with work for many seconds."""
    (folder / "list").write_text(f"{DIGITS[0]}\n" * 20_000)
    with open(folder / "list") as paths:
        process = subprocess.Popen(
            [sys.executable, "-c", START, "embed", "-", "--output", "y", "--backend", backend],
            cwd=folder, stdin=paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
    assert process.stdout.readline() == b"begun\n"
    return process


def end(process, number, folder):
    """Sends a signal; what must follow is one line, the code, and nothing left."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, b"", f"alnumpy: {ENDINGS[number]}\n".encode())
    assert os.listdir(folder) == ["list"]


@pytest.mark.parametrize("moment", range(20))
def test_a_signal_at_any_moment(tmp_path, moment):
    """Handlers are there before the imports, which take the first tenths of a second."""
    process = start_embedding(tmp_path, "numpy")
    time.sleep(moment * 0.025)
    end(process, list(ENDINGS)[moment % 3], tmp_path)


def wait_for_temporary_file(folder):
    while not any(name.startswith(".y.") for name in os.listdir(folder)):
        time.sleep(0.01)


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_removes_the_temporary_file(tmp_path, number):
    process = start_embedding(tmp_path, "numpy")
    wait_for_temporary_file(tmp_path)
    end(process, number, tmp_path)


def test_a_signal_during_a_late_import_removes_the_temporary_file(tmp_path):
    """C code may swallow an exception in an import: Cython's and NumPy's do."""
    pytest.importorskip("numba")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "llvmlite.py").write_text("import time\ntry:\n    time.sleep(600)\nexcept BaseException:\n    pass\n")
    path = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "work").mkdir()
    process = start_embedding(tmp_path / "work", "numba", env=os.environ | {"PYTHONPATH": path})
    wait_for_temporary_file(tmp_path / "work")
    time.sleep(0.3)
    end(process, signal.SIGTERM, tmp_path / "work")


def test_a_signal_that_python_would_ignore(tmp_path):
    """In a destructor an exception is only printed: the process ends all the same."""
    code = START.replace(
        "program.run()",
        """
class Waiting:
    def __del__(self):
        import signal, os
        os.kill(os.getpid(), signal.SIGINT)
from alnumpy import cli
cli.main = lambda: Waiting() and None
program.run()
""",
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"begun\n", b"alnumpy: interrupted\n")


def test_signals_that_the_caller_ignores_stay_ignored(tmp_path):
    (tmp_path / "list").write_text(f"{DIGITS[0]}\n" * 300)
    command = f"trap '' INT HUP; exec {sys.executable} -m alnumpy embed - < list"
    process = subprocess.Popen(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate()
    assert (process.returncode, out.count(b"\n")) == (0, 299)


def test_from_the_start_of_python_no_traceback_names_our_files(tmp_path):
    """While Python itself starts, a signal has Python's own effect."""
    for moment in range(12):
        process = subprocess.Popen([*PROGRAM, "embed", "-"], stdin=-1, stdout=-1, stderr=-1)
        time.sleep(moment * 0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) in ((-15, b""), (143, b"alnumpy: terminated\n"))
