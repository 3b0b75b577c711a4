"""The object that users hold."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from PIL import Image

import alnumpy
from alnumpy import AlnumpyError, ImageError, MissingExtraError, SpecError, WeightsError, images, kernels, reference
from alnumpy import embedder as embedder_module
from alnumpy.kernels import cache
from alnumpy.weights import default_path


@pytest.fixture(scope="module", params=["numpy", "compiled", "numba"])
def embedder(request):
    if not embedder_module.available(request.param):
        pytest.skip(f"the backend {request.param} does not run here")
    return alnumpy.load(backend=request.param)


def test_embed_takes_paths_images_and_arrays(embedder):
    image = Image.open(DIGITS[0]).convert("RGB")
    y = embedder.embed([DIGITS[0], str(DIGITS[0]), image, np.asarray(image)])
    assert (y.shape, y.dtype) == ((4, 1280), np.float32)
    assert (y == y[0]).all()
    for single in (DIGITS[0], str(DIGITS[0]), image, np.asarray(image)):
        np.testing.assert_array_equal(embedder.embed(single), y[:1])
    assert embedder.embed([]).shape == (0, 1280)


def test_embed_is_preprocess_then_the_reference(embedder):
    x = images.preprocess(images.read(DIGITS[3]), embedder.preprocessing)[None]
    expected = reference.forward(embedder.spec, embedder.weights.parameters, x)
    np.testing.assert_allclose(embedder.embed(DIGITS[3]), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_embed_raises_for_a_bad_picture(embedder, tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ImageError, match=r"a.png: not a picture"):
        embedder.embed([DIGITS[0], tmp_path / "a.png"])


def test_forward_has_the_same_bits_in_any_batch(embedder):
    x = np.random.default_rng(0).normal(size=(5, 3, 37, 21)).astype(np.float32)
    whole = embedder.forward(x)
    for i in range(5):
        np.testing.assert_array_equal(embedder.forward(x[i : i + 1])[0], whole[i])
    np.testing.assert_array_equal(embedder.forward(x[::-1])[::-1], whole)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 1, 28, 28), (1, 3, 0, 28)])
def test_forward_refuses_other_shapes(embedder, shape):
    with pytest.raises(ValueError, match="forward takes"):
        embedder.forward(np.zeros(shape, np.float32))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_the_kernels_keep_no_memory():
    pytest.importorskip("numba")
    embedder = alnumpy.load(backend="numba", threads=2)
    x = np.random.default_rng(0).normal(size=(100, 3, 28, 28)).astype(np.float32)

    def resident_pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    embedder.forward(x)
    before = resident_pages()
    for _ in range(100):  # 10,000 pictures
        embedder.forward(x)
    assert (resident_pages() - before) * os.sysconf("SC_PAGESIZE") < 2_000_000  # 200 bytes per picture


def test_the_backends_agree():
    pytest.importorskip("numba")
    a, b = (alnumpy.load(backend=backend).embed(DIGITS) for backend in ("numpy", "numba"))
    assert (np.linalg.norm(a - b, axis=1) <= 1e-5 * np.linalg.norm(a, axis=1)).all()


def used(embedder, pictures, known=True):
    """The backend that ran for each of ``pictures`` files."""
    paths = [DIGITS[0]] * pictures
    batches = embedder.embed_files(paths if known else (path for path in paths), batch_size=10)
    return [embedder.backend_used for _ in batches]


def test_auto_takes_the_packaged_library_from_the_first_picture_on():
    if kernels.packaged()[0].path is None:
        pytest.skip(f"no compiled kernels here: {kernels.packaged()[0].reason}")
    auto = alnumpy.load()
    assert set(used(auto, 1)) == {"compiled"}
    np.testing.assert_array_equal(auto.embed(DIGITS[0]), alnumpy.load(backend="compiled").embed(DIGITS[0]))


@pytest.fixture
def no_library(monkeypatch):
    """Makes the CPU one without a packaged library."""
    monkeypatch.setattr(kernels, "packaged", lambda: (kernels.library.Choice(None, "there is none for s390x"), ""))


def test_auto_stays_on_numpy_until_the_start_of_numba_is_repaid(monkeypatch, no_library):
    pytest.importorskip("numba")
    cache.warmup()
    monkeypatch.setattr(cache, "is_cached", lambda: True)
    assert alnumpy.load(backend="compiled").backend == "numba"  # compiled here instead
    assert set(used(alnumpy.load(size=32), 15)) == {"numpy"}
    assert set(used(alnumpy.load(size=32), 200)) == {"numba"}  # decided for the whole run, before its first batch
    unknown = used(alnumpy.load(size=32), 200, known=False)
    assert (unknown[0], unknown[-1]) == ("numpy", "numba")
    one_by_one = alnumpy.load(size=32)
    for _ in range(2):
        assert set(used(one_by_one, 8)) == {"numpy"}
    assert set(used(one_by_one, 8)) == {"numba"}
    assert set(used(one_by_one, 1)) == {"numba"}
    monkeypatch.setattr(cache, "is_cached", lambda: False)
    assert set(used(alnumpy.load(size=32), 200)) == {"numpy"}  # compiling costs more than 200 small pictures
    x = np.zeros((1, 3, 28, 28), np.float32)
    fresh = alnumpy.load()
    fresh._forward(x, 10_000)
    assert fresh.backend_used == "numba"


def test_numpy_runs_without_a_library_and_numba(monkeypatch, no_library):
    monkeypatch.setattr(embedder_module, "find_spec", lambda name: None)
    assert set(used(alnumpy.load(), 200)) == {"numpy"}
    with pytest.raises(MissingExtraError, match=r"pip install 'alnumpy\[numba\]'"):
        alnumpy.load(backend="numba")
    with pytest.raises(MissingExtraError, match=r"none for s390x.*pip install 'alnumpy\[numba\]'"):
        alnumpy.load(backend="compiled")


def test_threads(monkeypatch):
    monkeypatch.setenv("ALNUMPY_THREADS", "3")
    assert alnumpy.load().threads == 3
    assert alnumpy.load(threads=2).threads == 2
    monkeypatch.setenv("ALNUMPY_THREADS", "")
    assert alnumpy.load().threads >= 1
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("ALNUMPY_THREADS", wrong)
        with pytest.raises(AlnumpyError, match="ALNUMPY_THREADS must be"):
            alnumpy.load()
    with pytest.raises(ValueError, match="threads must be"):
        alnumpy.load(threads=0)
    with pytest.raises(ValueError, match="backend must be"):
        alnumpy.load(backend="cuda")


def test_normalize():
    raw, unit = alnumpy.load().embed(DIGITS[:3]), alnumpy.load(normalize=True).embed(DIGITS[:3])
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)


def test_normalize_leaves_a_zero_embedding(monkeypatch):
    unit = alnumpy.load(normalize=True, backend="numpy")
    monkeypatch.setattr(reference, "forward", lambda spec, params, x: np.zeros((1, 1280), np.float32))
    assert not unit.embed(DIGITS[0]).any()


def test_an_embedding_that_is_not_finite_is_an_error(monkeypatch):
    broken = alnumpy.load(backend="numpy")
    monkeypatch.setattr(reference, "forward", lambda spec, params, x: np.full((1, 1280), np.nan, np.float32))
    with pytest.raises(ImageError, match="not finite"):
        broken.embed(DIGITS[0])
    (result,) = broken.embed_files([DIGITS[0]])
    assert result.embedding is None
    assert f"{DIGITS[0]}: the embedding is not finite" in str(result.error)


def test_size_changes_the_input():
    larger = alnumpy.load(size=40)
    assert larger.preprocessing.size == 40
    x = images.preprocess(images.read(DIGITS[0]), larger.preprocessing)[None]
    np.testing.assert_array_equal(larger.embed(DIGITS[0]), larger.forward(x))
    with pytest.raises(SpecError, match="size must be"):
        alnumpy.load(size=0)


def test_embed_files_keeps_the_order_and_names_errors(embedder, tmp_path):
    (tmp_path / "bad.png").write_text("hello")
    paths = [DIGITS[0], tmp_path / "bad.png", DIGITS[1], tmp_path / "missing.png", DIGITS[2]]
    for batch_size in (1, 2, 5, 32):
        results = list(embedder.embed_files(paths, batch_size))
        assert [r.path for r in results] == [str(p) for p in paths]
        assert [r.error is None for r in results] == [True, False, True, False, True]
        for result, path in zip(results, paths, strict=True):
            if result.error is None:
                np.testing.assert_array_equal(result.embedding, embedder.embed(path)[0])
            else:
                assert result.embedding is None
                assert str(path) in str(result.error)
    with pytest.raises(ValueError, match="batch_size"):
        next(embedder.embed_files(paths, 0))
    with pytest.raises(TypeError, match="not one path"):
        next(embedder.embed_files("a.png"))


def test_embed_files_takes_any_iterable_in_constant_memory(embedder):
    def endless():
        while True:
            yield DIGITS[0]

    def held():
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)

    embedder = alnumpy.load(size=48, backend=embedder.backend)
    results = embedder.embed_files(endless(), batch_size=4)
    for _ in range(9):
        next(results)
    tracemalloc.start()
    for _ in range(4):
        next(results)
    before = held()
    for _ in range(120):
        next(results)
    after = held()
    results.close()  # CPython before 3.13.2 crashes where a thread allocates while tracing stops
    tracemalloc.stop()
    assert after - before < 400_000  # what is read ahead is 300 kB; 120 embeddings alone would be 614 kB


def test_the_nearest_digits_are_of_the_same_kind():
    """The weights for digits retrieve: for most digits, the nearest other one by L2 has the same label."""
    y = alnumpy.load(default_path().with_name("alnet-mnist.h5")).embed(DIGITS)
    distances = np.linalg.norm(y[:, None] - y[None], axis=2) + np.diag([np.inf] * len(y))
    labels = np.array([int(path.name[0]) for path in DIGITS])
    assert (labels[distances.argmin(1)] == labels).mean() >= 0.9


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere.h5: no such file"):
        alnumpy.load(tmp_path / "nowhere.h5")


def test_import_is_light():
    code = (
        "import alnumpy, sys; print([m for m in ('numba', 'llvmlite', 'h5py', 'torch', 'sqlite3') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_embedding_one_picture_imports_neither_numba_nor_torch():
    code = (
        f"import alnumpy, sys; alnumpy.load().embed({str(DIGITS[0])!r}); "
        "print([m for m in ('numba', 'llvmlite', 'torch') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_all_kinds_of_pictures(embedder):
    path = DIGITS[0]
    grey = np.asarray(Image.open(path).convert("L"))
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    wanted = embedder.embed(path)
    assert wanted.dtype == np.float32
    with open(path, "rb") as file:
        sources = [path.read_bytes(), io.BytesIO(path.read_bytes()), file, Image.open(path), grey, grey[..., None]]
        sources += [np.dstack([grey] * 3), rgba, bytearray(path.read_bytes())]
        for source in sources:
            np.testing.assert_array_equal(embedder.embed(source), wanted)
        file.seek(0)
        np.testing.assert_array_equal(embedder.embed([file, path]), np.vstack([wanted, wanted]))
    behind = io.BytesIO(b"something else" + path.read_bytes())
    behind.seek(14)
    np.testing.assert_array_equal(embedder.embed(behind), wanted)
    for wrong in (None, 3, 0.5):
        with pytest.raises(TypeError, match="a path, the bytes of a file, a binary file object"):
            embedder.embed(wrong)
        with pytest.raises(TypeError, match=f"a uint8 array, not {type(wrong).__name__}"):
            embedder.embed([wrong])


def test_every_kind_of_picture_is_guarded(embedder, tmp_path):
    image = Image.effect_noise((60, 50), 90)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg")
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), image, np.asarray(image)):
        assert len(embedder.embed(source, max_pixels=3000)) == 1
        with pytest.raises(ImageError, match="60x50 pixels, more than the limit of 2999"):
            embedder.embed(source, max_pixels=2999)
    with Image.open(tmp_path / "a.png") as lazy, pytest.raises(ImageError, match="more than the limit"):
        embedder.embed(lazy, max_pixels=2999)
    half = embedder.embed(images.read_file(tmp_path / "a.jpg", draft=25)[0])
    np.testing.assert_array_equal(embedder.embed(tmp_path / "a.jpg", max_pixels=2999), half)
    with Image.open(tmp_path / "a.jpg") as lazy:
        np.testing.assert_array_equal(embedder.embed(lazy, max_pixels=2999), half)
        assert lazy.size == (60, 50)  # the picture stays as it was


def test_pickled_and_copied_embedders_share_their_weights(embedder):
    wanted = embedder.embed(DIGITS[0])
    first = alnumpy.load()  # another embedder with equal weights
    assert pickle.loads(pickle.dumps(first)).weights is first.weights
    twins = [pickle.loads(pickle.dumps(embedder)), copy.copy(embedder), copy.deepcopy(embedder)]
    assert len({id(twin.weights) for twin in [*twins, embedder, first]}) == 1
    for twin in twins:
        np.testing.assert_array_equal(twin.embed(DIGITS[0]), wanted)
    code = (
        "import pickle, sys; one, other = [pickle.loads(sys.stdin.buffer.read(int(n))) for n in sys.argv[1:]]; "
        "print(one is not other and one.weights is other.weights, one.weights.spec.name)"
    )
    data = pickle.dumps(embedder)
    command = [sys.executable, "-c", code, str(len(data)), str(len(data))]
    done = subprocess.run(command, input=data + data, capture_output=True, check=True)
    assert done.stdout.decode() == f"True {embedder.spec.name}\n"
