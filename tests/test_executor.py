"""Pictures are read and embedded by the workers of an executor: the same gallery as by this process alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from galleries import change, counts, dump, noise, small_weights

import alnumpy
from alnumpy import GalleryError, embedder, formats, ingest, weights, worker
from alnumpy.cli import main, scheduler
from alnumpy.cli.scheduler import workers
from alnumpy.gallery import Gallery
from alnumpy.rebuilding import rebuild

with suppress(ImportError):  # what needs it is skipped
    import distributed

AUTO = "compiled" if embedder.available("compiled") else "numpy"  # what the backend auto takes here


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    """The path of a weights file."""
    name = tmp_path_factory.mktemp("weights") / "w.h5"
    weights.write(name, small_weights())
    return str(name)


def opened(path, w, **options):
    """A gallery to write to."""
    options = {"batch_size": 2} | options
    made = alnumpy.load(w, backend=options.pop("backend", "numpy"), threads=2)
    return Gallery(path, made, "a", weights=w, **options)


def alone(folder, w, path=None, **options):
    """What a gallery holds that this process has made without an executor."""
    path = path or folder.parent / "alone.db"
    with opened(path, w, **options) as gallery:
        gallery.index(folder)
    return dump(path)


@pytest.fixture
def many(tmp_path):
    """Forty files, of which four are copies of others and one is damaged."""
    root = tmp_path / "many"
    root.mkdir()
    for i in range(40):
        noise(root / f"{i:02}.png", i % 36, (12, 9 + i % 36))
    (root / "20.png").write_text("broken")
    return root


class Later(Executor):
    """An executor of the test: a task runs here when its result is asked for, and all travels as to a process."""

    def __init__(self, before=lambda paths: None):
        self.before = before  # is called before each task
        self.sent = []  # the files of each task
        self.waiting = self.most = 0  # tasks whose results were not asked for yet

    def submit(self, *task):
        *_, values = task
        self.sent.append(values["files"])
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        future, sent = Future(), pickle.dumps(task)
        future.result = lambda: self.run(*pickle.loads(sent))
        return future

    def run(self, function, expression, values):
        self.waiting -= 1
        self.before([os.path.basename(path) for path, _ in values["files"]])
        return pickle.loads(pickle.dumps(function(expression, values)))


@pytest.fixture(scope="module")
def processes():
    """Two worker processes."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float16", "flip": True, "normalize": True},
        {"dtype": "int8", "fast_decode": False},
        {"relative": True, "batch_size": 7},
        {"backend": "auto"},
    ],
    ids=str,
)
def test_processes_make_the_same_gallery(options, folder, path, w, processes):
    noise(folder / "photo.jpg", 5, (300, 200))
    shutil.copy(folder / "a.png", folder / "copy.png")
    if sys.platform == "linux":
        noise(folder / os.fsdecode(b"caf\xe9.png"), 6)  # a name that is not UTF-8
    wanted = alone(folder, w, **options)
    with opened(path, w, **options) as gallery:
        report = gallery.index(folder, executor=processes)
        assert counts(report) == {"embedded": len(wanted[1]), "recognised": 1}
        assert [os.path.basename(name) for name, _ in report.failed] == ["broken.png"]
        assert report.backend == (AUTO if "backend" in options else "numpy")
        assert min(report.decode_seconds, report.network_seconds) > 0
    assert dump(path) == wanted


def test_threads_and_a_reduced_gallery(many, tmp_path, w):
    with opened(tmp_path / "whole.db", w) as gallery:
        gallery.index(many / "00.png")
        for i in range(1, 8):
            gallery.add(many / f"0{i}.png")
        for name in ("alone.db", "small.db"):
            gallery.reduce(tmp_path / name, 3)
    wanted = alone(many, w, tmp_path / "alone.db")
    with opened(tmp_path / "small.db", w) as gallery, ThreadPoolExecutor(3) as threads:
        assert gallery.index(many, executor=threads).embedded == 27
    assert dump(tmp_path / "small.db") == wanted


def test_a_rebuild_by_workers(folder, path, w, tmp_path):
    weights.write(tmp_path / "other.h5", small_weights(1))
    other = alnumpy.load(tmp_path / "other.h5", backend="numpy")
    for name, executor in ((path, Later()), (tmp_path / "alone.db", None)):
        with opened(name, w) as gallery:
            gallery.index(folder)
        assert rebuild(name, other, weights=str(tmp_path / "other.h5"), executor=executor).embedded == 3
    assert dump(path) == dump(tmp_path / "alone.db")


def test_few_batches_are_given_out_at_a_time(many, path, w, monkeypatch):
    monkeypatch.setattr(ingest, "AHEAD", 10)
    executor, done = Later(), []
    with opened(path, w, batch_size=3) as gallery:
        gallery.index(many, executor=executor, progress=lambda *numbers: done.append(numbers))
    assert (len(executor.sent), executor.most) == (14, 3)
    assert done == [*((n, 40) for n in range(3, 40, 3)), (40, 40)]


def test_known_contents_are_not_decoded_again(many, path, w, monkeypatch):
    executor, decoded = Later(), []

    def decode(self, source, f=worker.Encoder.decode):
        decoded.append(source)
        return f(self, source)

    monkeypatch.setattr(worker.Encoder, "decode", decode)
    with opened(path, w) as gallery:
        assert counts(gallery.index(many, executor=executor)) == {"embedded": 35, "recognised": 4}
        decoded.clear()
        assert counts(gallery.index(many, rehash=True, executor=executor)) == {"recognised": 39}
        assert [os.path.basename(path) for path in decoded] == ["20.png"]
        assert max(len(known) for files in executor.sent for _, known in files) == 1  # those of the file's size
        before = dump(path)
        change(path, "UPDATE pictures SET size = -1")  # as after files could not be read for a while
        assert counts(gallery.index(many, executor=executor)) == {"recognised": 39}
        assert dump(path) == before


# Files and workers that fail


def test_files_that_workers_cannot_read(folder, path, w, processes):
    with opened(path, w) as gallery:
        gallery.index(folder)
        (folder / "a.png").unlink()
        os.mkfifo(folder / "a.png")
        noise(folder / "b.png", 9, (200, 200))
        report = gallery.index(folder, executor=processes)
        assert [(os.path.basename(name), reason[:18]) for name, reason in report.failed] == [
            ("a.png", "not a regular file"),
            ("broken.png", "not a picture that"),
        ]
        assert counts(report) == {"embedded": 1, "unchanged": 2}
        assert len(dump(path)[1]) == 3
        (folder / "a.png").unlink()
        noise(folder / "a.png", 0)
        assert counts(gallery.index(folder, executor=processes)) == {"recognised": 1, "unchanged": 3}


def test_a_picture_on_which_workers_die_stops_no_other(many, path, w):
    class KilledWorker(Exception):
        """As Dask's."""

    def die(names):
        if "07.png" in names:
            raise KilledWorker

    with opened(path, w, batch_size=4) as gallery:
        report = gallery.index(many, executor=Later(die))
        assert [(os.path.basename(name), reason) for name, reason in report.failed] == [
            ("07.png", worker.DIED),
            ("20.png", dict(report.failed)[str(many / "20.png")]),
        ]
        assert report.embedded == 34
        assert counts(gallery.index(many, executor=Later())) == {"embedded": 1, "unchanged": 39}
    assert dump(path) == alone(many, w)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenExecutor("terminated abruptly"), r"a worker died \(BrokenExecutor: terminated abruptly\)"),
        (CancelledError(), "the connection to the workers was lost, or their work was cancelled"),
        (
            ModuleNotFoundError("No module named 'alnumpy'"),
            r"a worker has no alnumpy, or another version \(.*\): ",
        ),
        (
            ConnectionResetError("by peer"),
            r"the connection to the workers was lost \(ConnectionResetError: by peer\)",
        ),
        (MemoryError(), r"the workers failed \(MemoryError\)"),
        (OSError("too many open files"), r"the workers failed \(OSError: too many open files\)"),
        (AttributeError("a fault of the program"), r"the workers failed \(AttributeError: a fault of the program\)"),
    ],
    ids=["broken", "cancelled", "without alnumpy", "reset", "memory", "files", "fault"],
)
def test_an_executor_that_fails_ends_the_run_and_the_next_one_goes_on(error, message, many, path, w):
    def fail(names):
        if "31.png" in names:
            raise error

    wanted = rf"gallery\.db: {message}.*\. What was stored stays; run again to go on"
    with opened(path, w) as gallery:
        with pytest.raises(GalleryError, match=wanted):
            gallery.index(many, executor=Later(fail))
        assert len(gallery) == 30
        assert counts(gallery.index(many)) == {"embedded": 6, "recognised": 4, "unchanged": 30}
    assert dump(path) == alone(many, w)


def test_an_interrupted_run_gives_back_what_was_given_out(many, path, w):
    cancelled = []

    class Kept(Later):
        def submit(self, *task):
            future = super().submit(*task)
            future.cancel = lambda: cancelled.append(task)
            return future

    def stop(done, total):
        raise KeyboardInterrupt

    with opened(path, w) as gallery:
        with pytest.raises(KeyboardInterrupt):
            gallery.index(many, executor=Kept(), progress=stop)
        assert (len(gallery), len(cancelled)) == (2, 19)


def test_a_killed_process_ends_the_run_and_the_next_one_goes_on(many, path, w, monkeypatch):
    monkeypatch.setattr(ingest, "AHEAD", 2)
    with opened(path, w) as gallery:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pid = pool.submit(os.getpid).result()
            with pytest.raises(GalleryError, match=r"a worker died .*What was stored stays"):
                gallery.index(many, executor=pool, progress=lambda *_: os.kill(pid, signal.SIGKILL))
        assert len(gallery) == 2
        gallery.index(many)
    assert dump(path) == alone(many, w)


def refuse(folder, path, w, executor, message):
    """Indexes with workers that are not fit for it; nothing is stored."""
    with opened(path, w) as gallery:
        with pytest.raises(GalleryError, match=rf"gallery\.db: the worker on {socket.gethostname()} {message}"):
            gallery.index(folder, executor=executor)
        assert len(gallery) == 0


def test_a_worker_with_another_version_is_refused(folder, path, w, monkeypatch):
    own = formats.decoders()
    changed = Later(lambda _: monkeypatch.setattr(formats, "decoders", lambda: "alnumpy 9.9.9, Pillow 13"))
    refuse(folder, path, w, changed, f"has alnumpy 9.9.9, Pillow 13, but this process {own}: install the same packages")


def test_a_worker_with_other_weights_is_refused(folder, path, tmp_path):
    name = str(tmp_path / "w.h5")
    weights.write(name, small_weights(2))
    changed = Later(lambda _: weights.write(name, small_weights(3)))
    wanted = r"does not have the weights that the gallery was made with \(small, .*w\.h5\), or has others .*: copy"
    refuse(folder, path, name, changed, wanted)
    weights.write(name, small_weights(2))
    refuse(folder, path, name, Later(lambda _: os.path.exists(name) and os.unlink(name)), wanted)


@pytest.mark.skipif(AUTO != "compiled", reason="no compiled kernels run here")
def test_a_worker_that_cannot_run_the_backend_is_refused(folder, path, tmp_path, monkeypatch):
    name = str(tmp_path / "w.h5")
    weights.write(name, small_weights(4))
    changed = Later(lambda _: monkeypatch.setattr(alnumpy.embedder, "available", lambda name: name == "numba"))
    wanted = r"cannot run the backend compiled \(.*numba.*\); choose another one with --backend"
    with opened(path, name, backend="auto") as gallery, pytest.raises(GalleryError, match=wanted):
        gallery.index(folder, executor=changed)


# Dask


class Cluster:
    """A Dask scheduler and workers, each a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.workers = []
        file = folder / "scheduler.json"
        self.scheduler = self.start("scheduler", "--port", "0", "--scheduler-file", file)
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().endswith("\n}"):
            assert self.scheduler.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]

    def start(self, what, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen([*command, *options], cwd=self.folder, stderr=subprocess.DEVNULL)

    def work(self, count):
        """Starts workers until there are so many."""
        self.workers = [process for process in self.workers if process.poll() is None]
        options = (self.address, "--nthreads", "1", "--no-nanny", "--local-directory", self.folder)
        self.workers += [self.start("worker", *options) for _ in range(count - len(self.workers))]
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)

    def stop(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler with two workers."""
    pytest.importorskip("distributed")
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.work(2)
        yield made
    finally:
        made.stop()


def command(*arguments):
    """The exit code, stdout and stderr of the program."""
    done = subprocess.run([sys.executable, "-m", "alnumpy", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_with_workers(many, path, w, cluster, tmp_path):
    index = ("index", "--db", path, "--backend", "numpy", "--batch-size", "2", "--scheduler", cluster.address)
    code, out, err = command(*index, many, "--weights", w)
    assert (code, out) == (1, "35 embedded, 4 recognised, 0 unchanged, 0 vanished, 0 removed, 1 failed\n")
    assert [line.partition(": not a picture")[0] for line in err.splitlines()] == [f"alnumpy: {many / '20.png'}"]
    assert dump(path) == alone(many, w)
    (many / "20.png").unlink()
    assert command(*index)[:2] == (0, "0 embedded, 0 recognised, 39 unchanged, 1 vanished, 0 removed, 0 failed\n")
    other = str(tmp_path / "other.h5")
    weights.write(other, small_weights(1))
    assert command(*index, "--rebuild", "--weights", other) == (
        0,
        "35 embedded, 4 recognised, 0 unchanged, 0 vanished, 0 removed, 0 failed\n",
        "",
    )


def test_a_worker_killed_in_mid_run_loses_nothing(many, path, w, cluster, monkeypatch):
    monkeypatch.setattr(ingest, "AHEAD", 16)
    victim = cluster.workers[0]

    def kill(done, total):
        if done == 4:
            victim.kill()

    with opened(path, w) as gallery, distributed.Client(cluster.address, set_as_default=False) as client:
        report = gallery.index(many, executor=client.get_executor(pure=False), progress=kill)
    assert counts(report) == {"embedded": 35, "recognised": 4}
    assert victim.wait(60) == -signal.SIGKILL
    assert dump(path) == alone(many, w)
    cluster.work(2)


def test_a_scheduler_that_goes_away_ends_the_run(many, path, w, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "AHEAD", 2)
    short = Cluster(tmp_path)
    try:
        with pytest.raises(GalleryError, match="the scheduler has no workers; start some with: dask worker"):
            workers(short.address).__enter__()
        short.work(1)
        lost = r"gallery\.db: the connection to the workers was lost.*\. What was stored stays; run again to go on"
        with opened(path, w) as gallery:
            with pytest.raises(GalleryError, match=lost), workers(short.address) as executor:
                gallery.index(many, executor=executor, progress=lambda *_: short.scheduler.kill())
            assert 2 <= len(gallery) < 40
            with workers(cluster.address) as executor:
                gallery.index(many, executor=executor)
    finally:
        short.stop()
    assert dump(path) == alone(many, w)


@pytest.mark.parametrize(
    "greeting",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", bytes(64)],
    ids=["silent", "http", "ssh", "zeros"],
)
def test_other_servers_are_no_schedulers(greeting, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(scheduler, "WAIT", 1)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        greeted = []

        def greet():
            with suppress(OSError):
                connection, _ = server.accept()
                greeted.append(connection)
                connection.sendall(greeting)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(
            GalleryError, match=f"{address}: no scheduler answers there.*; start one with: dask scheduler"
        ):
            workers(address).__enter__()
        for connection in greeted:
            connection.close()


def test_schedulers_that_cannot_be_asked(folder, path, w, monkeypatch, capsys):
    pytest.importorskip("distributed")
    monkeypatch.setattr(scheduler, "WAIT", 1)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    index = ["index", str(folder), "--db", str(path), "--weights", w, "--scheduler"]
    for arguments, code, message in (
        ([*index, nobody], 1, f"{nobody}: no scheduler answers there.*; start one with: dask scheduler"),
        ([*index, "somewhere"], 2, "somewhere: not the address of a scheduler, such as tcp://HOST:8786"),
        ([*index, nobody, "--watch"], 2, "--scheduler is for one run and cannot be combined with --watch"),
    ):
        assert main(arguments) == code
        assert re.match(f"alnumpy: {message}", capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([*index, nobody]) == 1
    assert capsys.readouterr().err == "alnumpy: --scheduler needs Dask: pip install 'alnumpy[dask]'\n"
    assert not path.exists()
