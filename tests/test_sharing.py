"""Galleries shared by several processes and threads."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from galleries import noise
from PIL import Image

from alnumpy import GalleryError, listing
from alnumpy.database import Database
from alnumpy.gallery import Gallery, Match


def test_readers_see_whole_batches_while_one_writes(tmp_path, path, embedder):
    for i in range(8):
        noise(tmp_path / f"{i}.png", i)
    with Gallery(path, embedder, "a"):
        pass
    query = np.zeros(24)
    with Gallery(path) as reader, Gallery(path, embedder, "a", batch_size=2) as writer:
        assert reader.search(query) == [[]]
        seen = []
        writer.index(tmp_path, progress=lambda done, total: seen.append((done, len(reader.search(query, 20)[0]))))
        assert seen == [(2, 2), (4, 4), (6, 6), (8, 8)]
        assert len(writer.search(query)[0]) == 8
        with pytest.raises(GalleryError, match="opened to read"):
            reader.remove(tmp_path)
    with Gallery(path) as reader:
        assert len(reader.search(query)[0]) == 8


def open_often(path, together, let_in):
    for _ in range(200):
        together.wait()
        try:
            opened = Database(path, writable=True)
        except GalleryError:
            opened = None
        together.wait()
        if opened:
            with let_in.get_lock():
                let_in.value += 1
            opened.close()


def test_one_of_two_simultaneous_writers_is_refused(path):
    processes = multiprocessing.get_context("spawn")
    together, let_in = processes.Barrier(2), processes.Value("i", 0)
    both = [processes.Process(target=open_often, args=(path, together, let_in)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert let_in.value == 200


def test_a_pausing_reader_does_not_block_writers(folder, path, embedder, monkeypatch):
    monkeypatch.setattr(listing, "PART", 2)
    monkeypatch.setattr("alnumpy.database.WAIT", 0.1)
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
        expected = [row.path for row in opened]
    with Gallery(path) as reader:
        rows = iter(reader)
        seen = [next(rows).path]
        noise(folder / "new.png", 9)
        with Gallery(path, embedder, "a") as opened:
            assert opened.index(folder).embedded == 1
        seen += [row.path for row in rows]
    assert seen == [*expected, str(folder / "new.png")]  # a later part shows it


def test_a_second_writer_is_refused(path, embedder):
    with Gallery(path, embedder, "a"):
        with pytest.raises(GalleryError, match=r"gallery.db: another alnumpy is writing to it; try again"):
            Gallery(path, embedder, "a")
        code = f"from alnumpy.gallery import Gallery; Gallery({str(path)!r}, mode='a')"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another alnumpy is writing to it" in second.stderr
    with Gallery(path, embedder, "a"):
        pass
    assert sorted(os.listdir(path.parent)) == ["gallery.db", "gallery.db-lock"]


def test_a_writer_that_closes_while_another_opens_leaves_one_lock(path, monkeypatch):
    first = Database(path, writable=True)

    def connect(name, *arguments, connect=sqlite3.connect, **options):
        opened = connect(name, *arguments, **options)
        if name.endswith("-lock"):  # opened but not yet locked
            first.close()
        return opened

    monkeypatch.setattr(sqlite3, "connect", connect)
    with closing(Database(path, writable=True)), pytest.raises(GalleryError, match="another alnumpy is writing to it"):
        Database(path, writable=True)


def write_alone(path, together, met):
    """Opens a gallery again and again. Notes whether another process had it open."""
    together.wait()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        try:
            opened = Database(path, writable=True)
        except GalleryError:
            continue
        try:
            os.close(os.open(f"{path}-alone", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            met.value = 1
        else:
            os.unlink(f"{path}-alone")
        opened.close()


def test_two_writers_are_never_open_at_once(path):
    processes = multiprocessing.get_context("spawn")
    together, met = processes.Barrier(3), processes.Value("i", 0)
    several = [processes.Process(target=write_alone, args=(path, together, met)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0] * 3
    assert met.value == 0


def test_a_link_to_a_gallery_is_that_gallery(folder, path, embedder, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link.db"
    os.symlink(path, link)
    with Gallery(link, embedder, "a") as opened:
        opened.index(folder)
        with pytest.raises(GalleryError, match="another alnumpy is writing to it"):
            Gallery(path, embedder, "a")
    assert os.listdir(tmp_path / "links") == ["link.db"]
    with Gallery(path) as opened:
        assert opened.stats()["pictures"] == 3


def test_eight_threads_search_while_a_ninth_indexes(tmp_path, path, embedder):
    for i in range(60):
        noise(tmp_path / f"{i:02}.png", i)
    done = threading.Event()
    with Gallery(path, embedder, "a", batch_size=3) as opened, ThreadPoolExecutor(9) as pool:
        opened.index(tmp_path / "00.png")

        def search(number):
            seen = []
            while not done.is_set():
                seen.append(len(opened.search(np.zeros(24), 100)[0]))
                assert opened.search(tmp_path / "00.png", 1)[0][0] == Match(str(tmp_path / "00.png"), 0.0, True)
                assert opened.search(tmp_path / f"{number:02}.png", 1)[0][0].path
                assert len(list(opened)) >= seen[-1]
                assert opened.stats()["pictures"] >= seen[-1]
            assert seen == sorted(seen)
            return seen[-1]

        searching = [pool.submit(search, number) for number in range(8)]
        report = pool.submit(opened.index, tmp_path).result()
        done.set()
        assert all(future.result() <= 60 for future in searching)
        assert (report.embedded, len(opened.search(np.zeros(24), 100)[0])) == (59, 60)


def test_one_of_two_writing_threads_waits(folder, path, embedder):
    with Gallery(path, embedder, "a", batch_size=1) as opened, ThreadPoolExecutor(2) as pool:
        reports = [future.result() for future in [pool.submit(opened.index, folder) for _ in range(2)]]
        assert sorted((report.embedded, report.unchanged) for report in reports) == [(0, 4), (3, 0)]


def test_a_gallery_is_used_from_asyncio(folder, path, embedder):
    async def work(opened):
        await asyncio.to_thread(opened.index, folder)
        found = await asyncio.gather(*(asyncio.to_thread(opened.search, folder / "a.png", 1) for _ in range(5)))
        rows = [row.path for row in await asyncio.to_thread(list, opened)]
        assert await asyncio.to_thread(opened.remove, folder / "a.png") == 1
        return found, rows

    with Gallery(path, embedder, "a") as opened:
        found, rows = asyncio.run(work(opened))
        assert found == [[[Match(str(folder / "a.png"), 0.0, True)]]] * 5
        assert len(rows) == 4
        assert folder / "a.png" not in opened


def snapshot(opened):
    with opened._open.snapshot(opened.settings) as found:
        return found


def test_galleries_of_one_file_share_what_they_have_read(folder, path, embedder, tmp_path):
    with Gallery(path, embedder, "a") as writer:
        writer.index(folder)
        (tmp_path / "link.db").symlink_to(path)
        with Gallery(path) as one, Gallery(tmp_path / "link.db") as other:
            shared = snapshot(one)
            assert shared is snapshot(other) is snapshot(writer)
            writer.remove(folder / "a.png")
            assert snapshot(one) is not shared
            assert snapshot(one) is snapshot(other)
            noise(folder / "d.png", 5)
            Image.open(folder / "d.png").save(folder / "e.png", compress_level=0)
            code = (
                "import alnumpy, sys; from alnumpy.gallery import Gallery\n"
                "with Gallery(sys.argv[1], mode='a') as opened: opened.remove(sys.argv[2])"
            )
        last = weakref.ref(snapshot(writer))
        assert last() is not None
    assert last() is None  # its memory is free
    with Gallery(path) as reader:
        assert len(reader.search(np.zeros(24))[0]) == 2
        subprocess.run([sys.executable, "-c", code, path, folder / "b.png"], check=True)
        assert len(reader.search(np.zeros(24))[0]) == 1  # another process has written
        with Gallery(tmp_path / "other.db", embedder, "a") as other:
            other.index(folder)
        os.replace(tmp_path / "other.db", path)
        with Gallery(path) as replaced:
            assert len(replaced.search(np.zeros(24))[0]) == 5
            assert len(reader.search(np.zeros(24))[0]) == 1


def test_a_gallery_that_is_closed_while_others_use_it(folder, path, embedder):
    with Gallery(path, embedder, "a") as opened:
        opened.index(folder)
    started = threading.Barrier(5)

    def search_for_ever(opened):
        while True:
            assert len(opened.search(np.zeros(24))[0]) == 3
            list(opened)

    def search(opened):
        started.wait()
        with pytest.raises(ValueError, match="the gallery is closed"):
            search_for_ever(opened)
        return True

    with ThreadPoolExecutor(4) as pool, Gallery(path) as other:
        opened = Gallery(path)
        searching = [pool.submit(search, opened) for _ in range(4)]
        started.wait()
        opened.close()
        opened.close()
        assert all(future.result() for future in searching)
        assert len(other.search(np.zeros(24))[0]) == 3
    writer = Gallery(path, embedder, "a", batch_size=1)
    for i in range(3):
        noise(folder / f"new{i}.png", 10 + i)
    with pytest.raises(ValueError, match="the gallery is closed"):
        writer.index(folder, progress=lambda *_: writer.close())
    with Gallery(path) as opened:
        assert len(opened) == 5  # stored pictures stay
