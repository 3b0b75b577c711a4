"""The budget of memory: how much there is, who gets it, and what happens if it runs out."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import alnumpy
from alnumpy import ImageError, decode, images, memory
from alnumpy.errors import AlnumpyError, ImageMemoryError
from alnumpy.images import Preprocessing
from fuzz import image_seeds

HOW = Preprocessing(8, (0, 0, 0), (1, 1, 1))
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def budget():
    made = memory.Budget()
    made.limit = 100
    return made


def test_threads_never_hold_more_than_the_limit(budget):
    most = 0

    def work(count):
        nonlocal most
        with budget.hold(count):
            most = max(most, budget.held)
            time.sleep(0.001)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 70, 20, 50, 100, 1] * 20))
    assert 70 < most <= 100
    assert budget.held == 0


def test_more_than_the_limit_goes_alone_and_in_its_turn(budget):
    order, started = [], threading.Event()

    def work(count):
        with budget.hold(count):
            order.append((count, budget.held))

    with budget.hold(10):
        threads = [threading.Thread(target=work, args=[count]) for count in (500, 20)]
        for thread in threads:
            thread.start()
            while not started.wait(0.02) and not budget._waiting:
                pass
            time.sleep(0.02)
        assert order == []  # the large one waits for the first, the small one for the large one
    for thread in threads:
        thread.join()
    assert order == [(500, 500), (20, 20)]


def test_an_error_gives_back_what_was_held(budget):
    with pytest.raises(ZeroDivisionError), budget.hold(60):
        raise ZeroDivisionError
    assert budget.held == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_made_by_fork_starts_with_an_empty_budget():
    code = (
        "import os; from alnumpy import memory\n"
        "with memory.hold(memory.ALONE):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        with memory.hold(1): os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "7\n"


def test_limits_of_memory(budget, monkeypatch):
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    budget.limit = None
    monkeypatch.setattr(memory, "room", lambda: 10**9)
    assert budget.allowed() == 2 * memory.PER_THREAD
    budget._waiting.extend(range(4))
    assert budget.allowed() == 4 * memory.PER_THREAD
    budget._waiting.extend(range(100))
    assert budget.allowed() == 5 * 10**8  # half of the available memory
    monkeypatch.setenv(memory.VARIABLE, "1.5G")
    assert budget.allowed() == 1_500_000_000
    budget.limit = 7
    assert budget.allowed() == 7
    for text in ("", "much", "-1", "1T", "0"):
        with pytest.raises(AlnumpyError, match="ALNUMPY_MEMORY must be a number of bytes"):
            memory.parse(text)
    assert [memory.parse(text) for text in ("5", "12k", "3 MB", "2g")] == [5, 12_000, 3_000_000, 2_000_000_000]
    with pytest.raises(ValueError, match="at least 1"):
        memory.set_limit(0)


def test_free_memory_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_address_room", lambda: None)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    assert memory.room(str(tmp_path)) == 10**9  # the available memory is unknown
    write({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:   5000 kB\n"})
    assert memory.room(str(tmp_path)) == 5000 * 1024
    group = "sys/fs/cgroup/a/b/memory"
    write({"proc/self/cgroup": "0::/a/b\n", f"{group}.max": "max\n", f"{group}.current": "10\n"})
    assert memory.room(str(tmp_path)) == 5000 * 1024
    write({f"{group}.max": "1000000\n", f"{group}.current": "400000\n"})
    assert memory.room(str(tmp_path)) == 600_000
    write({f"{group}.stat": "anon 5\ninactive_file 100000\n"})  # pages of files, which the system gives up
    assert memory.room(str(tmp_path)) == 700_000
    write({"sys/fs/cgroup/a/memory.max": "500000\n", "sys/fs/cgroup/a/memory.current": "450000\n"})  # limits all of a
    assert memory.room(str(tmp_path)) == 50_000
    first = "sys/fs/cgroup/memory/memory"
    write({"proc/self/cgroup": "4:cpu,memory:/docker/x\n1:name=systemd:/\n", f"{first}.limit_in_bytes": "90000\n"})
    write({f"{first}.usage_in_bytes": "80000\n", f"{first}.stat": "total_inactive_file 1000\n"})
    assert memory.room(str(tmp_path)) == 11_000


@linux
def test_a_limited_address_space():
    code = (
        "import resource; from alnumpy import memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)\n"
        "print(memory.room() < 1 << 30, memory.obtainable(1 << 20), memory.obtainable(1 << 30))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True False\n"


# Pixels are freed after use


class Pixels:
    """Objects with pixels among those that Python's cycle collector finds."""

    @staticmethod
    def in_cycles(make):
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            make()
            gc.collect()
            return [type(item).__name__ for item in gc.garbage if isinstance(item, (Image.Image, np.ndarray))]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()


@pytest.mark.filterwarnings("ignore:::PIL")
def test_no_cycle_holds_pixels_in_any_format(tmp_path):
    image_seeds(tmp_path)

    def each():
        for path in sorted(tmp_path.iterdir()):
            data = path.read_bytes()
            images.load(path, HOW)
            if path.suffix != ".gif":  # a GIF's first frame may still be there
                with pytest.raises(ImageError):
                    images.load(data[: len(data) // 2], HOW)

    assert Pixels.in_cycles(each) == []


def test_an_error_that_is_kept_holds_no_pixels(tmp_path):
    image = Image.effect_noise((900, 900), 90).convert("RGB")
    file = io.BytesIO()
    image.save(file, "JPEG")
    with pytest.raises(ImageError, match="truncated") as raised:
        images.load(file.getvalue()[:-90_000], HOW)
    trace, seen = raised.value.__traceback__, []
    error = raised.value
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            seen += [value for value in trace.tb_frame.f_locals.values() if isinstance(value, ImageFile.ImageFile)]
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    assert seen == []


INDEX = """
import gc, sys
gc.disable()
import alnumpy
from alnumpy.gallery import Gallery
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
with Gallery(sys.argv[1], alnumpy.load(backend="numpy", threads=2), "a", fast_decode=False) as gallery:
    gallery.index(sys.argv[2])
    base = peak()
    report = gallery.index(sys.argv[3])
print(report.embedded, len(report.failed), peak() - base)
"""


@linux
def test_photos_of_real_size_do_not_add_up(tmp_path):
    """Eight pictures of 12 megapixels (390 MB in all, twice that if rotated) and one of 48, two at a time."""
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.effect_noise((504, 378), 60)
    photo.convert("RGB").save(tmp_path / "small" / "a.jpg")
    file = io.BytesIO()
    photo.resize((4032, 3024)).convert("RGB").save(file, "JPEG", quality=70, exif=exif)
    for number in range(8):
        (tmp_path / "large" / f"{number}.jpg").write_bytes(file.getvalue() + bytes([number]))
    photo.resize((8064, 6048)).convert("RGB").save(tmp_path / "large" / "huge.jpg", quality=50, exif=exif)
    command = [sys.executable, "-c", INDEX, tmp_path / "g.db", tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    embedded, failed, growth = map(int, done.stdout.split())
    assert (embedded, failed) == (9, 0)
    assert 90e6 < growth < 260e6


# Memory runs out


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 48), 90).save(path)
    return path


def test_a_picture_without_memory_is_tried_again_alone(picture, monkeypatch):
    held = []

    def open_plugin(*arguments, real=decode.open_plugin):
        held.append(memory._budget._holders)
        return real(*arguments)

    def decoded(image, *_):
        held.append(memory.held())
        if len(held) < 3:
            raise MemoryError
        return image.convert("RGB")

    Image.open(picture).convert("LA").save(picture)
    monkeypatch.setattr(decode, "open_plugin", open_plugin)
    monkeypatch.setattr("alnumpy.pixels.decode", decoded)
    assert images.load(picture, HOW)[1] == (64, 48)
    assert [held[1] < 10**6, held[3]] == [True, memory.ALONE - 1]
    assert memory.held() == 0


def test_too_little_memory_is_not_reported_as_damage(picture, monkeypatch):
    calls = []

    def failing(*_):
        calls.append(1)
        raise MemoryError

    monkeypatch.setattr(decode, "open_plugin", failing)
    with pytest.raises(ImageMemoryError, match=r"a\.png: out of memory") as raised:
        images.load(picture, HOW)
    assert isinstance(raised.value, MemoryError)
    assert isinstance(raised.value, ImageError)
    assert raised.value.transient
    assert len(calls) == 2
    (found,) = alnumpy.load(backend="numpy").embed_files([picture])
    assert isinstance(found.error, MemoryError)


@pytest.mark.parametrize("words", ["could not create decoder object", "broken data stream when reading image file"])
def test_messages_of_decoders_without_memory(picture, monkeypatch, words):
    def load(self):
        exec(compile(f"raise OSError({words!r})", "ImageFile.py", "exec"), {"__name__": "PIL.ImageFile"})

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match="damaged: its pixels") as raised:
        images.read(picture)
    assert not raised.value.transient
    monkeypatch.setattr(memory, "obtainable", lambda count: False)
    with pytest.raises(ImageMemoryError, match="out of memory"):
        images.read(picture)


LIMITED = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from alnumpy import images
how = images.Preprocessing(64, (0, 0, 0), (1, 1, 1))
images.load(sys.argv[1], how)
size = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (550 << 20),) * 2)
with ThreadPoolExecutor(4) as pool:
    print(*[x.shape for x, _ in pool.map(lambda path: images.load(path, how), sys.argv[2:])])
"""


@linux
def test_several_large_pictures_in_a_small_address_space(tmp_path):
    """Four WebPs that take 150 MB each, four threads that take 64 MB of addresses each, and 550 MB for all of them."""
    Image.new("RGBA", (64, 64)).save(tmp_path / "small.webp")
    Image.new("RGBA", (3000, 3000), (200, 30, 90, 120)).save(tmp_path / "0.webp", method=0, quality=10)
    large = [str(tmp_path / "0.webp")] * 4
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "small.webp"), *large]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["(3,", "64,", "64)"] * 4, done.stderr


# Whether the fault is the picture's


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, IndexError, ValueError, ZeroDivisionError])
def test_an_error_in_alnumpys_code_is_not_blamed_on_the_picture(picture, monkeypatch, error):
    def failing(*_):
        raise error("a mistake")

    monkeypatch.setattr(images, "preprocess", failing)
    for source in (picture, Path(picture).read_bytes(), Image.open(picture), np.zeros((3, 3), np.uint8)):
        with pytest.raises(error, match="a mistake"):
            images.load(source, HOW)


def test_an_error_in_a_decoder_is_blamed_on_the_picture(picture, monkeypatch):
    def load(self):
        exec(compile("None + 1", "ImageFile.py", "exec"), {"__name__": "PIL.ImageFile"})

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match=r"a\.png: damaged picture \(TypeError"):
        images.read(picture)


def test_a_file_that_cannot_be_read_now_is_not_damaged(picture, monkeypatch):
    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("alnumpy.containers.Parts.readinto", failing)
    with pytest.raises(ImageError, match=r"a\.png: Input/output error") as raised:
        images.read(picture)
    assert raised.value.transient
