"""The page of results: its tables are those of the stored figures, and the figures those of the library's measures."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("tqdm")

import alnumpy
import reproduce
from alnumpy.retrieval import evaluate


def test_the_page_shows_what_was_measured():
    results = json.loads((reproduce.DOCS / "results.json").read_text())
    page = (reproduce.DOCS / "RESULTS.md").read_text()
    assert reproduce.fill(page, reproduce.tables(results)) == page


def test_the_figures_are_of_the_weights_that_ship():
    results = json.loads((reproduce.DOCS / "results.json").read_text())
    shipped = alnumpy.weights.default_path().parent
    assert results["photos"]["weights"] == reproduce.fingerprint(shipped / "alnet-photo.h5")
    assert results["MNIST"]["networks"]["alnet"]["weights"] == reproduce.fingerprint(shipped / "alnet-mnist.h5")


def test_every_data_set_of_the_paper_can_be_trained_on():
    assert set(reproduce.RECIPES) == set(reproduce.DATA_SIZES) == set(reproduce.PAPER)


def test_table_1_by_hand():
    first, second = list(reproduce.blocks(32))[:2]
    assert first == ["1", "1,824", "480", "0.263", "1,867,776", "491,520", "0.263"]  # 32 (32 + 16 + 9) and so on
    assert second[1:3] == [f"{96 * (16 + 24 + 9):,}", f"{96 * (40 // 8 + 9):,}"]


def test_the_papers_tables_agree_with_each_other():
    *_, last = reproduce.ABLATIONS.values()
    assert list(last[1:]) == [systems["ALNet"][-2] for systems in reproduce.PAPER.values()]


def test_every_row_of_the_paper_is_explained_or_named():
    verdicts = {(d, s): reproduce.verdict(s, d) for d in reproduce.PAPER for s in reproduce.NETWORKS}
    others = {row: verdict for row, verdict in verdicts.items() if not verdict.startswith(("explained", "an artefact"))}
    assert others == {
        ("MNIST", "ALNet"): "not matched: parameters",
        ("SVHN", "ALNet"): "not matched: parameters",
        ("Oxbuild5k", "MobileNetV2"): "not matched: FLOPs, parameters",
        ("Paris6k", "MobileNetV2"): "not matched: FLOPs, parameters",
    }
    assert {s for (_, s), verdict in verdicts.items() if verdict == "an artefact: FLOPs"} == {"EfficientNet"}


@pytest.mark.parametrize(
    ("system", "data", "flops", "parameters"),
    [
        ("MobileNets", "SUN397", 772.271, 3.620),
        ("ShuffleNet", "MNIST", 26.040, 0.926),
        ("ShuffleNetV2", "Paris6k", 2049.068, 1.319),
        ("MobileNetV2", "MNIST", 6.100, 2.236),
        ("EfficientNet", "Oxbuild5k", 15.649, 4.029),
        ("ALNet", "SUN397", 212.785, 0.765),
    ],
)
def test_recounts(system, data, flops, parameters):
    assert reproduce.recount(system, data) == pytest.approx((flops, parameters), abs=0.0006)


def test_measured_sizes_are_close_to_the_papers():
    measured = json.loads((reproduce.DOCS / "results.json").read_text())["sizes"]["megabytes"]
    for data, systems in reproduce.PAPER.items():
        for system, (_, _, size, *_) in systems.items():
            assert measured[data][system] == pytest.approx(size, rel=0.035), (data, system)


def test_fill_replaces_each_table_and_nothing_else():
    page = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n<!-- table: y -->\n<!-- end -->\nc"
    filled = "a\n<!-- table: x -->\n1\n<!-- end -->\nb\n<!-- table: y -->\n2\n<!-- end -->\nc"
    assert reproduce.fill(page, {"x": "1", "y": "2"}) == filled
    assert reproduce.fill(filled, {"x": "1", "y": "2"}) == filled
    with pytest.raises(ValueError, match="x"):
        reproduce.fill(page, {"y": "2"})


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """Pictures of three colours with some noise, as class folders and as landmarks."""
    root, random = tmp_path_factory.mktemp("collections"), np.random.default_rng(0)

    def draw(path, colour):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(np.array(colour) + random.integers(-60, 60, (24, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    colours = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
    for name, colour in colours.items():
        for split, count in ("train", 20), ("test", 4):
            for i in range(count):
                draw(root / "classes" / split / name / f"{i}.png", colour)
    for i, name in enumerate(["red", "red", "blue", "green"]):
        draw(root / "places" / f"place_{i}.png", colours[name])
    for kind, text in ("query", "place_0 0 0 20 20"), ("good", "place_0\nplace_1"), ("ok", ""), ("junk", "place_2"):
        (root / "places" / f"red_1_{kind}.txt").write_text(text)
    return root


def test_photos(collections, tmp_path, monkeypatch):
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    monkeypatch.setattr(reproduce, "WHITENED", (8,))
    arguments = ["photos", "--classes", collections / "classes", "--landmarks", collections / "places", "--sizes", "16"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()

    photos = json.loads((tmp_path / "results.json").read_text())["photos"]
    rows = {row["way"]: row for row in photos["classes"]}
    images, labels, _ = reproduce.load_class_folders(collections / "classes", "test", 16)
    vectors = alnumpy.load(size=16, backend="numpy").embed(list(images))
    expected = evaluate(vectors, labels, vectors, labels, np.arange(12))
    assert rows["ALNet"]["full_map"] == pytest.approx(expected.full_map)
    assert rows["ALNet"]["queries"] == 12
    assert rows["colour histogram, 512 bins, Hellinger"]["full_map"] == 1
    mirrored = alnumpy.load(size=16, backend="numpy").embed(list(images[:, :, ::-1]))
    mean = (vectors + mirrored) / 2
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    expected = evaluate(mean, labels, mean, labels, np.arange(12))
    assert rows["ALNet, flips averaged, L2-normalised"]["full_map"] == pytest.approx(expected.full_map)
    official = {row["way"]: row for row in photos["landmarks"]}
    assert official["colour histogram, 512 bins, Hellinger"]["official_map"] == 1
    assert set(official) == set(rows)
    page = (tmp_path / "RESULTS.md").read_text()
    assert f"| ALNet | 16 | {rows['ALNet']['precision1']:.3f} |" in page


def test_nothing_is_measured_for_a_page_that_cannot_be_filled(collections, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "measure_photos", lambda *_: 1 / 0)
    arguments = ["photos", "--classes", collections / "classes", "--landmarks", collections / "places"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"RESULTS.md"):
        reproduce.main()
    (tmp_path / "RESULTS.md").write_text("no table")
    with pytest.raises(SystemExit, match="the page has tables"):
        reproduce.main()


def test_networks(tmp_path, monkeypatch):
    digits, random = tmp_path / "digits", np.random.default_rng(0)
    digits.mkdir()
    for prefix, count in ("train", 128), ("t10k", 20):
        labels = random.integers(0, 10, count, np.uint8)
        for name, content in (
            ("images-idx3", random.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", labels),
        ):
            header = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, ">u4").tobytes()
            (digits / f"{prefix}-{name}-ubyte").write_bytes(header + content.tobytes())
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    monkeypatch.setattr(reproduce, "ABLATIONS", {"lnet": reproduce.ABLATIONS["lnet"]})
    monkeypatch.setitem(reproduce.RECIPES, "MNIST", "--size 28 --epochs 1")
    arguments = ["networks", "MNIST", digits, "--runs", tmp_path / "runs"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()

    measured = json.loads((tmp_path / "results.json").read_text())["MNIST"]
    images, labels, _ = reproduce.train.load(digits, "test", 28)
    vectors = alnumpy.load(tmp_path / "runs" / "MNIST" / "lnet" / "weights.h5", backend="numpy").embed(list(images))
    expected = evaluate(vectors, labels, vectors, labels, np.arange(20))
    assert measured["networks"]["lnet"]["full_map"] == pytest.approx(expected.full_map, abs=1e-3)  # ties may turn
    assert measured["pictures"] == 20
    assert f"{100 * measured['networks']['lnet']['full_map']:.2f}" in (tmp_path / "RESULTS.md").read_text()
