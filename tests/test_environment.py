"""The program in difficult surroundings: signals, locales, closed streams, missing folders and permissions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from test_cli_names import given_back

import alnumpy
from alnumpy import cli
from alnumpy.kernels import cache

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "alnumpy"]
ENDINGS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def python_path(*folders):
    """PYTHONPATH with further folders in front."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


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
    """The program at its start, with work for many seconds."""
    (folder / "list").write_text(f"{DIGITS[0]}\n" * 20_000)
    with open(folder / "list") as paths:
        process = subprocess.Popen(
            [sys.executable, "-c", START, "embed", "-", "--output", "y", "--backend", backend],
            cwd=folder, stdin=paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
    assert process.stdout.readline() == b"begun\n"
    return process


def end(process, number, folder):
    """Sends a signal, and checks for one line, the exit code, and no files left behind."""
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
    """Waits for a temporary file, which only its owner may read."""
    while not (found := list(folder.glob(".y.*"))):
        time.sleep(0.01)
    assert found[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_removes_the_temporary_file(tmp_path, number):
    process = start_embedding(tmp_path, "numpy")
    wait_for_temporary_file(tmp_path)
    end(process, number, tmp_path)


def test_a_signal_during_a_late_import_removes_the_temporary_file(tmp_path):
    """C code may swallow an exception during an import, as Cython's and NumPy's does."""
    pytest.importorskip("numba")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "llvmlite.py").write_text("import time\ntry:\n    time.sleep(600)\nexcept BaseException:\n    pass\n")
    (tmp_path / "work").mkdir()
    process = start_embedding(tmp_path / "work", "numba", env=os.environ | {"PYTHONPATH": python_path(modules)})
    wait_for_temporary_file(tmp_path / "work")
    time.sleep(0.3)
    end(process, signal.SIGTERM, tmp_path / "work")


def test_a_signal_in_a_destructor_ends_the_process(tmp_path):
    """An exception in a destructor is only printed, but the process ends."""
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
    """A signal has Python's own effect while Python itself starts."""
    for moment in range(12):
        process = subprocess.Popen([*PROGRAM, "embed", "-"], stdin=-1, stdout=-1, stderr=-1)
        time.sleep(moment * 0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) in ((-15, b""), (143, b"alnumpy: terminated\n"))


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug():
    code = START.replace(
        "program.run()", "from alnumpy import cli\ncli.main = lambda: 1 / len(chr(10)[1:])\nprogram.run()"
    )
    for arguments in ([], ["--debug"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        if arguments:
            assert result.stderr.startswith("Traceback")
        else:
            assert result.stderr == "alnumpy: ZeroDivisionError: division by zero; --debug shows where\n"


# Every command in every environment. A guard in each process ends it when it opens a socket.

GUARD = """
import os, sys
def guard(event, arguments):
    if event.startswith("socket."):
        os.write(2, f"guard: {event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(guard)
"""
# Permissions do not bind root: this drops CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, and children inherit that.
UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0 and any(ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) for capability in (1, 2)):
    sys.exit(98)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
NAMES = (b"a.png", "é ü.png".encode(), b"\xff\n.png", b"below/b.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures with strange names, one of them damaged, and a gallery of them."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("p/below", "guard", "temporary", "out"):
        (place / folder).mkdir(parents=True)
    (place / "guard" / "sitecustomize.py").write_text(GUARD)
    for name, digit in zip(NAMES, (0, 9, 12, 20), strict=True):
        shutil.copy(DIGITS[digit], os.fsencode(place / "p") + b"/" + name)
    (place / "p" / "é bad.png").write_text("hello")
    assert run(place, COMMANDS["index"])[0] == 1
    return place


DOCUMENTED = set(cli.MODULES)
COMMANDS = {
    "embed": "embed {p} --recursive --format csv",
    "index": "index {p} --db {g}",
    "search": "search {a} --db {g} --csv --html {out}/h.html --montage {out}/m.png",
    "duplicates": "duplicates --db {g} --threshold 9 --json",
    "serve": "serve --db {p}/gone.db",
    "move": "move {p}/gone.png {a} --db {g}",
    "list": "list --db {g} --csv",
    "stats": "stats --db {g}",
    "remove": "remove {p}/gone.png --db {g}",
    "reduce": "reduce --db {g} --dimensions 2 --out {out}/small.db",
    "merge": "merge {g} {g} --out {out}/all.db",
    "export": "export --db {g} --format npz --output {out}/g.npz",
    "eval": "eval --db {g}",
    "info": "info",
    "verify": "verify",
    "models": "models",
    "convert": "convert {p}/gone.pt -o {out}/w.h5",
    "kernels": "kernels --compile",
}  # fmt: skip


def run(place, command, flags=(), wrap=(), env=(), **options):
    """(exit code, stdout, stderr) as bytes; no socket was opened, no traceback shown, nothing temporary left."""
    paths = {"p": place / "p", "a": place / "p" / "a.png", "g": place / "g.db", "out": place / "out"}
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LC_", "LANG"))}
    variables["OPENBLAS_NUM_THREADS"] = "1"  # several threads disturb each other on a busy machine
    variables |= {
        "PYTHONPATH": python_path(place / "guard"),
        "TMPDIR": str(place / "temporary"),
        "LANG": "C.UTF-8",
    } | dict(env)
    for written in (place / "out").iterdir():
        written.unlink()
    result = subprocess.run(
        [*wrap, sys.executable, *flags, "-m", "alnumpy", *command.format(**paths).split(" ")],
        env={key: value for key, value in variables.items() if value is not None},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        cwd=place,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr
    for bad in (b"Traceback", b"Warning", b"Exception", b"--debug shows where"):
        assert bad not in result.stderr
    assert os.listdir(place / "temporary") == []
    return result.returncode, result.stdout, result.stderr


def run_all(place, **options):
    """Every command's results, without the time that compiling took."""
    results = {}
    for name, command in COMMANDS.items():
        if name not in DOCUMENTED or (name == "kernels" and find_spec("numba") is None):
            continue
        code, out, err = run(place, command, **options)
        results[name] = code, re.sub(rb"ready in [\d.]+ s", b"", out), err
    return results


@pytest.fixture(scope="module")
def usual(place):
    """The results of every command in an ordinary environment."""
    assert set(COMMANDS) >= DOCUMENTED, "every command belongs here"
    results = run_all(place)
    assert [name for name, result in results.items() if result[0]] == [
        "embed",
        "index",
        "serve",
        "move",
        "remove",
        "convert",
    ]  # damaged; missing
    assert results["index"][1].startswith(b"0 embedded, 0 recognised, 5 unchanged")
    assert results["search"][1].count(b"\n") == 6
    return results


def test_the_guard_notices_sockets(place):
    code = "import socket; socket.socket()"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(place / "guard")}, check=False,
                          capture_output=True).returncode == 99  # fmt: skip


def test_importing_all_modules_opens_no_socket(place):
    code = (
        "import importlib, pkgutil, alnumpy\n"
        "EXTRAS = {'alnumpy.kernels': 'numba', 'alnumpy.serve.': 'flask'}\n"
        "for module in pkgutil.walk_packages(alnumpy.__path__, 'alnumpy.'):\n"
        "    extra = next((e for e in EXTRAS if module.name.startswith(e)), None)\n"
        "    if extra is None or find_spec(EXTRAS[extra]):\n"
        "        importlib.import_module(module.name)\n"
        "print('alnumpy.gallery' in sys.modules)"
    )
    command = [sys.executable, "-c", "import sys; from importlib.util import find_spec; " + code]
    env = os.environ | {"PYTHONPATH": python_path(place / "guard")}
    result = subprocess.run(command, env=env, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, b"True\n"), result.stderr


@pytest.mark.parametrize("flags", [["-O"], ["-X", "dev", "-W", "error"]], ids=" ".join)
def test_python_flags_change_nothing(place, usual, flags):
    assert run_all(place, flags=flags) == usual


def test_a_locale_without_letters(place, usual):
    """Data have the same bytes; letters that the locale lacks are escaped in text."""
    env = {"LANG": None, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = run_all(place, env=env)
    for name in usual:
        assert found[name][0] == usual[name][0]
        assert found[name][2].isascii()
    for name in ("embed", "search", "index", "info"):
        assert found[name][1] == usual[name][1]
    assert rb"/p/\udcc3\udca9 bad.png" in found["stats"][1]
    out = run(place, "embed {p} --recursive", env=env)[1]
    assert {given_back(json.loads(line)) for line in out.splitlines()} == {
        os.fsencode(place / "p") + b"/" + name for name in NAMES
    }
    assert rb"/p/\xe9 bad.png" in run(place, COMMANDS["stats"], env={"PYTHONIOENCODING": "ascii"})[1]
    listed = os.fsencode(place / "p") + b"/" + NAMES[1]
    env = {"PYTHONIOENCODING": "latin-1"}
    with tempfile.TemporaryFile() as file:
        file.write(listed)
        file.seek(0)
        assert run(place, "embed - --format csv", env=env, stdin=file)[1].startswith(listed + b",")


def test_stdout_without_a_reader(place, usual):
    """A pipe whose reader has gone, as after ``| head -1``, even before the first line."""
    for command in [*(COMMANDS[name] for name in usual), "--help", "--version", "embed --help", "info --spec lnet"]:
        reader, writer = os.pipe()
        os.close(reader)
        assert run(place, command, stdout=writer)[0] == 1
        os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_stdout_that_is_full(place, usual):
    for name in (name for name, result in usual.items() if result[1]):
        with open("/dev/full", "wb") as full:
            code, _, err = run(place, COMMANDS[name], stdout=full)
        assert code == 1
        assert err in (told := b"alnumpy: stdout: No space left on device\n", usual[name][2] + told)


def test_stdin_closed_and_the_current_folder_removed(place, usual):
    wrap = ["sh", "-c", f'mkdir {place}/gone && cd {place}/gone && rmdir ../gone && exec "$@" <&-', "sh"]
    assert run_all(place, wrap=wrap) == usual
    code, _, err = run(place, "stats --db g.db", wrap=wrap)
    assert (code, err) == (1, b"alnumpy: the current folder: No such file or directory\n")


# Permissions


@pytest.fixture(scope="module")
def unprivileged():
    wrap = [sys.executable, "-c", UNPRIVILEGED]
    if subprocess.run([*wrap, "-c", ""], check=False).returncode == 98:
        pytest.skip("root cannot drop its rights here")
    return {"wrap": [*wrap, "-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"]}


def modes(folder):
    """The names below a folder with their modes and sizes."""
    return {path: (path.stat().st_mode, path.stat().st_size) for path in folder.rglob("*")}


def test_a_read_only_install_without_home_or_cache(place, usual, tmp_path, unprivileged):
    install = tmp_path / "install"
    for source in ("alnumpy", "weights"):
        shutil.copytree(ROOT / source, install / source, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home").mkdir()
    for path in [tmp_path / "home", install, *install.rglob("*")]:
        path.chmod(0o555)
    before = modes(tmp_path)
    path = os.pathsep.join([str(place / "guard"), str(install)])
    for home in (None, tmp_path / "home", tmp_path / "nowhere"):
        env = {"HOME": home and str(home), "XDG_CACHE_HOME": None, "ALNUMPY_CACHE_DIR": None, "PYTHONPATH": path}
        code, out, err = run(place, COMMANDS["search"], env=env, **unprivileged)
        assert (code, out, err) == usual["search"]
    assert str(install).encode() in run(place, "info", env=env, **unprivileged)[1]
    assert modes(tmp_path) == before
    for path in (install, *install.rglob("*")):
        path.chmod(0o755)  # so that the folder can be removed


def test_kernels_that_cannot_be_kept_are_reported_in_one_line(place, tmp_path):
    """Warnings are errors here. The kernels that an ordinary run has kept replace compiling."""
    pytest.importorskip("numba")
    cache.warmup()
    (tmp_path / "file").touch()
    (tmp_path / "kept").write_bytes(cache.cache_file().read_bytes()[32:])
    code = (
        "import sys; from alnumpy import __main__; from alnumpy.kernels import compiler\n"
        f"compiler.compile_runner = lambda: open({str(tmp_path / 'kept')!r}, 'rb').read()\n__main__.run()"
    )
    for flags in ([], ["-W", "error::RuntimeWarning"]):
        result = subprocess.run(
            [sys.executable, *flags, "-c", code, "verify", "--backend", "numba"],
            env=os.environ | {"ALNUMPY_CACHE_DIR": str(tmp_path / "file" / "below")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stdout[:3]) == (0, "ok:")
        assert re.fullmatch(r"alnumpy: compiled kernels cannot be kept .*ALNUMPY_CACHE_DIR .*\n", result.stderr)


def test_files_without_permission_are_named(place, usual, tmp_path, unprivileged):
    shutil.copytree(place / "p", tmp_path / "p")
    (tmp_path / "p" / "a.png").chmod(0)
    _, out, err = run(place, f"embed {tmp_path}/p --recursive --format csv", **unprivileged)
    assert out.count(b".png") == 3
    assert f"alnumpy: {tmp_path}/p/a.png: Permission denied\n" in err.decode()
    (tmp_path / "p" / "below").chmod(0)
    out, err = run(place, f"embed {tmp_path}/p {{a}} --recursive --format csv", **unprivileged)[1:]
    assert (out.count(b"\n"), err.decode()) == (1, f"alnumpy: {tmp_path}/p/below: Permission denied\n")
    (tmp_path / "p" / "below").chmod(0o755)
    (tmp_path / "g").mkdir()
    shutil.copy(place / "g.db", tmp_path / "g")
    (tmp_path / "g").chmod(0o555)
    (tmp_path / "g" / "g.db").chmod(0o444)
    before = modes(tmp_path)
    assert run(place, f"search {{a}} --db {tmp_path}/g/g.db --csv", **unprivileged) == usual["search"]
    for command in (f"index {{p}} --db {tmp_path}/g/g.db", f"embed {{a}} --output {tmp_path}/g/y"):
        code, out, err = run(place, command, **unprivileged)
        assert (code, out, err.count(b"\n")) == (1, b"", 1)
        assert f"alnumpy: {tmp_path}/g/".encode() in err
    assert modes(tmp_path) == before
    (tmp_path / "g").chmod(0o755)


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0, 0o644)])
def test_files_have_the_mode_of_the_umask_and_are_never_writable_by_all(place, tmp_path, umask, mode):
    wrap = ["sh", "-c", f'umask {umask:o} && exec "$@"', "sh"]
    run(place, f"index {{p}} --db {tmp_path}/g.db", wrap=wrap)
    run(place, f"search {{a}} --db {tmp_path}/g.db --html {tmp_path}/h.html --montage {tmp_path}/m.png", wrap=wrap)
    run(place, f"embed {{a}} --output {tmp_path}/y", wrap=wrap)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    written = 0o664 & ~umask
    assert found == {"g.db": mode, "g.db-lock": mode, "h.html": written, "m.png": written, "y": written}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_same_bytes_give_the_same_bits(place, tmp_path, backend):
    """Bits are the same in other processes, batches, places in them and numbers of threads, including BLAS's own."""
    if backend == "numba":
        pytest.importorskip("numba")
    pictures = DIGITS[:7]
    one_by_one = alnumpy.load(size=100, backend=backend, threads=1)
    expected = np.concatenate([one_by_one.embed(picture) for picture in pictures])
    for threads, batch_size, order in ((1, 1, 1), (2, 3, -1), (4, 7, 1)):
        command = f"embed --format npy --output {tmp_path}/y.npy --size 100 --backend {backend}"
        command += f" --threads {threads} --batch-size {batch_size} {' '.join(map(str, pictures[::order]))}"
        assert run(place, command, env={"OPENBLAS_NUM_THREADS": str(threads)})[0] == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy").view(np.uint32)[::order], expected.view(np.uint32))
