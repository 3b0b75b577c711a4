"""The page of results: its tables hold the stored figures, and the library's measures give those figures."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("tqdm")

import alnumpy
import reproduce
from alnumpy.evaluation import evaluate_gallery
from alnumpy.retrieval import evaluate


def test_the_page_shows_the_measured_figures():
    results = json.loads((reproduce.DOCS / "results.json").read_text())
    page = (reproduce.DOCS / "RESULTS.md").read_text()
    assert reproduce.fill(page, reproduce.tables(results)) == page


def test_the_figures_belong_to_the_weights_that_ship():
    results = json.loads((reproduce.DOCS / "results.json").read_text())
    shipped = alnumpy.weights.default_path().parent
    assert set(results["photos"]["networks"]) == set(reproduce.PHOTO_SIZES)
    small = {name: measured for name, measured in results["formats"].items() if name.startswith("alnet")}
    for name, measured in [*results["photos"]["networks"].items(), *small.items()]:
        assert measured["weights"] == reproduce.fingerprint(shipped / f"{name}.h5")
    assert results["MNIST"]["networks"]["alnet"]["weights"] == reproduce.fingerprint(shipped / "alnet-mnist.h5")


def test_int8_costs_less_than_half_a_point():
    formats = json.loads((reproduce.DOCS / "results.json").read_text())["formats"]
    limits = {"alnet-photo": (0.005, 1), "alnet-mnist": (0.005, 1), "efficientnet-lite0": (0.002, 4)}
    for name, (most, megabytes) in limits.items():
        exact, coarse = (formats[name]["formats"][dtype] for dtype in ("float32", "int8"))
        assert exact["full_map"] - coarse["full_map"] <= most
        assert coarse["bytes"] < 1e6 * megabytes


def test_cards_have_the_measured_figures():
    networks = json.loads((reproduce.DOCS / "results.json").read_text())["photos"]["networks"]
    for name, measured in networks.items():
        found = alnumpy.weights.read(alnumpy.weights.locate(name))
        way = found.preprocessing.size, "L2-normalised"
        (row,) = (row for row in measured["classes"] if (row["size"], row["way"]) == way)
        found_things = f"P@1 {row['precision1']:.3f}, mAP {row['full_map']:.3f} on sun397-15"
        assert found.card["finds"] == f"{found_things} at {row['size']} pixels, L2-normalised"


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
    """The measured figures are those of a gallery."""
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    monkeypatch.setattr(reproduce, "WHITENED", (8,))
    (collections / "places" / "damaged.png").write_bytes(b"damaged")
    arguments = ["photos", "--classes", collections / "classes", "--landmarks", collections / "places"]
    arguments += ["--weights", "efficientnet-lite0", "--sizes", "32"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()

    photos = json.loads((tmp_path / "results.json").read_text())["photos"]
    rows = {row["way"]: row for row in photos["networks"]["efficientnet-lite0"]["classes"]}
    for normalize, flip, way in (
        (False, False, "raw"),
        (True, False, "L2-normalised"),
        (True, True, "flips averaged, L2-normalised"),
    ):
        embedder = alnumpy.load("efficientnet-lite0", 32, backend="numpy")
        with alnumpy.Gallery(tmp_path / f"{way}.db", embedder, "a", flip=flip, normalize=normalize) as gallery:
            gallery.index([collections / "classes" / "test"])
            expected = evaluate_gallery(gallery).scores
        assert rows[way]["full_map"] == pytest.approx(expected.full_map, abs=1e-6)
        assert rows[way]["queries"] == 12
    assert "flips averaged, whitened to 8" in rows
    (baseline, _) = photos["baselines"]["classes"]
    assert (baseline["way"], baseline["full_map"]) == ("colour histogram, 512 bins, Hellinger", 1)
    (baseline, _) = photos["baselines"]["landmarks"]
    assert (baseline["official_map"], baseline["pictures"]) == (1, 4)
    places = photos["networks"]["efficientnet-lite0"]["landmarks"]
    assert {row["way"] for row in places} == set(rows)
    assert {row["pictures"] for row in places} == {4}
    page = (tmp_path / "RESULTS.md").read_text()
    assert f"| efficientnet-lite0 | 32 | raw | {rows['raw']['precision1']:.3f} |" in page


def test_formats(collections, tmp_path, monkeypatch):
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    arguments = ["formats", "alnet-mnist", collections / "classes"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()

    measured = json.loads((tmp_path / "results.json").read_text())["formats"]["alnet-mnist"]
    assert measured["data"] == "classes"
    formats = measured["formats"]
    assert list(formats) == ["float32", "float16", "int8"]
    assert formats["float32"]["bytes"] > 1.9 * formats["float16"]["bytes"] > 3 * formats["int8"]["bytes"]
    embedder = alnumpy.load("alnet-mnist", backend="numpy")
    with alnumpy.Gallery(tmp_path / "g.db", embedder, "a") as gallery:
        gallery.index([collections / "classes" / "test"])
        expected = evaluate_gallery(gallery).scores
    assert formats["float32"]["full_map"] == pytest.approx(expected.full_map, abs=1e-6)
    lost = 100 * (formats["float32"]["full_map"] - formats["int8"]["full_map"])
    assert f"| {formats['int8']['full_map']:.4f} | {lost:.2f} |" in (tmp_path / "RESULTS.md").read_text()


def test_decoding(tmp_path, monkeypatch):
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "classes" / "test" / name).mkdir(parents=True)
    (tmp_path / "places").mkdir()
    for i, path in enumerate(("classes/test/a/1.jpg", "classes/test/a/2.jpg", "classes/test/b/1.jpg",
                              "classes/test/b/2.jpg", "places/red_1.jpg", "places/red_2.jpg")):  # fmt: skip
        size = (110, 100) if i % 2 else (100, 120)
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / path)
    for kind, text in ("query", "red_1 0 0 20 20"), ("good", "red_1"), ("ok", ""), ("junk", ""):
        (tmp_path / "places" / f"red_{kind}.txt").write_text(text)
    before = [{"network": "efficientnet-lite0", "measure": "classes", "size": 128, "side": 100, "scale": 1,
               "whole": 0.9, "fast": 0.9}]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"decoding": before}))
    arguments = [
        "decoding",
        "--classes",
        tmp_path / "classes",
        "--landmarks",
        tmp_path / "places",
        "--enlarged",
        "1",
        "3",
        "--weights",
        "alnet-photo",
    ]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()
    kept, *rows = json.loads((tmp_path / "results.json").read_text())["decoding"]
    assert [kept] == before  # the figures of another network are kept
    assert [(row["measure"], row["pictures"], row["side"], row["scale"]) for row in rows] == [
        ("classes", 4, 100, 1), ("classes", 4, 300, 2), ("landmarks", 2, 100, 1), ("landmarks", 2, 300, 2)
    ]  # fmt: skip
    assert all(0 < row["whole"] <= 1 and 0 < row["fast"] <= 1 for row in rows)
    assert rows[0]["whole"] == rows[0]["fast"]  # too small for decoding at reduced size
    assert "| alnet-photo, full mAP | 64 | 300 | 1/2 |" in (tmp_path / "RESULTS.md").read_text()


def test_a_page_that_cannot_be_filled_is_refused_before_measuring(collections, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "measure_photos", lambda *_: 1 / 0)
    arguments = ["photos", "--classes", collections / "classes", "--landmarks", collections / "places"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"RESULTS.md"):
        reproduce.main()
    (tmp_path / "RESULTS.md").write_text("no table")
    with pytest.raises(SystemExit, match="the page has tables"):
        reproduce.main()


@pytest.fixture
def digits(tmp_path):
    """Files in MNIST's form: 128 training and 20 test pictures."""
    folder, random = tmp_path / "digits", np.random.default_rng(0)
    folder.mkdir()
    for prefix, count in ("train", 128), ("t10k", 20):
        labels = random.integers(0, 10, count, np.uint8)
        for name, content in (
            ("images-idx3", random.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", labels),
        ):
            header = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, ">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + content.tobytes())
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    return folder


def reproduced(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()
    return json.loads((tmp_path / "results.json").read_text())["MNIST"]


def test_ablations(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "ABLATIONS", {"lnet": reproduce.ABLATIONS["lnet"]})
    monkeypatch.setitem(reproduce.RECIPES, "MNIST", "--size 28 --epochs 1")
    measured = reproduced(monkeypatch, tmp_path, "ablations", "MNIST", digits, "--runs", tmp_path / "runs")
    images, labels, _ = reproduce.train.load(digits, "test", 28)
    vectors = alnumpy.load(tmp_path / "runs" / "MNIST" / "lnet" / "weights.h5", backend="numpy").embed(list(images))
    expected = evaluate(vectors, labels, vectors, labels, np.arange(20))
    assert measured["networks"]["lnet"]["full_map"] == pytest.approx(expected.full_map, abs=1e-3)  # ties may swap
    assert measured["pictures"] == 20
    assert f"{100 * measured['networks']['lnet']['full_map']:.2f}" in (tmp_path / "RESULTS.md").read_text()


def test_the_papers_networks(digits, tmp_path, monkeypatch):
    arguments = ["networks", "MNIST", digits, "--runs", tmp_path / "runs", "--epochs", "1", "--only", "ALNet"]
    first = reproduced(monkeypatch, tmp_path, *arguments)["six"]
    assert list(first["networks"]) == ["ALNet"]
    made = alnumpy.weights.read(tmp_path / "runs" / "MNIST" / "six-modern-alnet" / "weights.h5")
    assert made.spec.to_dict() == alnumpy.SPECS["alnet"].to_dict() | {"stem": 24}  # as the paper counted it

    trained = []
    real = reproduce.trained

    def note(options, *rest):
        trained.append(options)
        return real(options, *rest)

    monkeypatch.setattr(reproduce, "trained", note)
    both = reproduced(monkeypatch, tmp_path, *arguments, reproduce.PAPERS_RECIPE)["six"]
    assert [options for options in trained if "--recipe paper --size 28 --epochs 1" in options] == trained
    assert len(trained) == 1  # the other network is kept
    assert both["networks"]["ALNet"] == first["networks"]["ALNet"]
    row = both["networks"][reproduce.PAPERS_RECIPE]
    assert 0 < row["milliseconds"] < 100
    page = (tmp_path / "RESULTS.md").read_text()
    shares = f"{100 * row['full_map']:.2f} |  | {100 * row['ap5_hits']:.2f} |"
    assert f"| ALNet, the paper's recipe |  | 5.41 |  | 0.77 |  |  |  | {shares}" in page
    assert (tmp_path / "networks-mnist.png").read_bytes().startswith(b"\x89PNG")


def test_the_shipped_weights_are_measured_without_training(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "trained", lambda *_: 1 / 0)
    arguments = ["networks", "MNIST", str(digits), "--measure-only"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *arguments])
    reproduce.main()
    printed = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    images, labels, _ = reproduce.train.load(digits, "test", 28)
    vectors = alnumpy.load("alnet-mnist", backend="numpy").embed(list(images))
    expected = evaluate(vectors, labels, vectors, labels, np.arange(20))
    assert float(printed["full_map"]) == pytest.approx(100 * expected.full_map, abs=0.1)
    assert (printed["MFLOPs"], printed["M parameters"], printed["MB"]) == ("5.78", "0.77", "3.15")


def test_kinds(collections, tmp_path, monkeypatch):
    (tmp_path / "RESULTS.md").write_text((reproduce.DOCS / "RESULTS.md").read_text())
    arguments = ["kinds", collections / "classes", "--split", "test", "--only", "*e*", "--sizes", "32"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--docs", str(tmp_path), *map(str, arguments)])
    reproduce.main()
    (row,) = json.loads((tmp_path / "results.json").read_text())["kinds"]["alnet-photo"]["rows"]
    assert row["pictures"] == 12
    files = sorted((collections / "classes" / "test").glob("*e*/*.png"))
    vectors = alnumpy.load("alnet-photo", 32, normalize=True).embed(files)
    labels = np.unique([path.parent.name for path in files], return_inverse=True)[1]
    expected = evaluate(vectors, labels, vectors, labels, np.arange(12))
    assert row["full_map"] == pytest.approx(expected.full_map, abs=1e-6)
    assert f"| alnet-photo | classes, *e* | 32 | {expected.precision1:.3f} |" in (tmp_path / "RESULTS.md").read_text()
