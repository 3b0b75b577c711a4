"""Training: recipes, resuming, augmentation, and the way from pictures to a weights file."""

import csv
import gzip
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")

import alnumpy  # noqa: E402
import convert_weights  # noqa: E402
import teaching  # noqa: E402
import torch_network  # noqa: E402
import train  # noqa: E402
from torch_network import Network  # noqa: E402

SIZE = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes that any network can tell apart: light above dark, and dark above light."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in ("train", 64), ("val", 8):
        for name, up in ("sky", True), ("ground", False):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, (SIZE, SIZE, 3), np.uint8)
                pixels[slice(None, SIZE // 2) if up else slice(SIZE // 2, None)] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    train.main()


def arguments(pictures, out, **options):
    given = {"size": SIZE, "epochs": 3, "batch-size": 32, "lr": 0.02, "threads": 1, "out": out} | options
    return [pictures, *(part for name, value in given.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize("name", [name for name in alnumpy.SPECS if not name.startswith(("alnet", "lnet"))])
def test_every_preset_is_trained_and_converted(pictures, tmp_path, monkeypatch, name):
    run(monkeypatch, *arguments(pictures, tmp_path, spec=name, epochs=1))
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert convert_weights.main([str(tmp_path / "best.pt"), "-o", str(tmp_path / "net.h5")]) == 0
    embedder = alnumpy.load(tmp_path / "net.h5", backend="numpy")
    assert embedder.spec == alnumpy.SPECS[name]
    model = Network(embedder.spec, 2)
    model.load_state_dict(best["state_dict"])
    x = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with torch.inference_mode():
        wanted = model.eval()(torch.from_numpy(x)).numpy()
    weight, bias = (best["state_dict"][f"head.{field}"].numpy() for field in ("weight", "bias"))
    ours = embedder.forward(x) @ weight.T + bias
    assert np.linalg.norm(ours - wanted) <= 1e-4 * np.linalg.norm(wanted)


def test_learns_and_its_checkpoint_converts_to_the_same_network(pictures, tmp_path, monkeypatch):
    run(monkeypatch, *arguments(pictures, tmp_path, **{"spec": "lnet", "epochs": 6, "batch-size": 8}), "--flip")
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 7)]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["accuracy"] == max(float(row["accuracy"]) for row in rows)
    assert best["classes"] == ["ground", "sky"]
    every = np.stack([np.asarray(Image.open(path)) for path in (pictures / "train").rglob("*.png")]) / 255
    assert np.allclose(best["preprocessing"]["mean"], every.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(best["preprocessing"]["std"], every.std((0, 1, 2)), atol=1e-4)

    assert convert_weights.main([str(tmp_path / "best.pt"), "-o", str(tmp_path / "net.h5")]) == 0
    embedder = alnumpy.load(tmp_path / "net.h5", backend="numpy")
    assert embedder.preprocessing.size == SIZE
    assert best["accuracy"] == 100
    sky, ground = (embedder.embed(sorted((pictures / "val" / name).iterdir())) for name in ("sky", "ground"))
    assert np.linalg.norm(sky - sky.mean(0), axis=1).max() < np.linalg.norm(sky.mean(0) - ground.mean(0))


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_a_stopped_run_continues_as_if_it_had_not_stopped(pictures, tmp_path, monkeypatch, recipe):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(monkeypatch, *arguments(pictures, whole, recipe=recipe, crop=0.5), "--flip")

    real = train.Trainer.step
    steps = []

    def stop_in_the_second_epoch(trainer, x, labels, targets):
        steps.append(x)
        if len(steps) == 6:  # 128 pictures in batches of 32: four steps per epoch
            raise KeyboardInterrupt
        return real(trainer, x, labels, targets)

    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "step", stop_in_the_second_epoch)
        with pytest.raises(SystemExit, match="--resume"):
            run(patched, *arguments(pictures, halves, recipe=recipe, crop=0.5), "--flip")
    run(monkeypatch, *arguments(pictures, halves, recipe=recipe, crop=0.5), "--flip", "--resume")

    ends = [torch.load(folder / "last.pt", weights_only=True) for folder in (whole, halves)]
    assert len(ends[0]["log"]) == len(ends[1]["log"]) == 3
    for name, tensor in ends[0]["model"].items():
        assert torch.equal(tensor, ends[1]["model"][name]), name
    lines = [[row.split(",")[:-1] for row in (folder / "log.csv").read_text().split()] for folder in (whole, halves)]
    assert lines[0] == lines[1]  # equal without the seconds


def test_the_papers_rate_falls_at_a_half_and_at_three_quarters(pictures, tmp_path, monkeypatch):
    run(monkeypatch, *arguments(pictures, tmp_path, epochs=4, lr=0.1))
    with open(tmp_path / "log.csv", newline="") as file:
        assert [row["lr"] for row in csv.DictReader(file)] == ["0.1", "0.1", "0.01", "0.001"]


def test_trains_at_one_size_after_the_other(pictures, tmp_path, monkeypatch):
    whole, halves = ([*arguments(pictures, tmp_path / name)] for name in ("whole", "halves"))
    sizes = ["--size", "8", "16", "--epochs", "2", "1", "--recipe", "modern"]
    run(monkeypatch, *whole, *sizes)
    with open(tmp_path / "whole" / "log.csv", newline="") as file:
        assert [row["size"] for row in csv.DictReader(file)] == ["8", "8", "16"]
    assert torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["settings"]["--load-size"] == 16
    with pytest.raises(SystemExit, match="--size has 2 numbers and --epochs 1"):
        run(monkeypatch, *halves, "--size", "8", "16")


def test_starts_from_a_weights_file(pictures, tmp_path, monkeypatch):
    path = alnumpy.weights.default_path()
    run(monkeypatch, *arguments(pictures, tmp_path, epochs=1, lr=1e-9), "--init", path)
    trained = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    for name, array in alnumpy.weights.read(path).parameters.items():
        if "running" not in name:  # running statistics follow the new pictures at any rate
            assert np.allclose(array, trained[name].numpy(), atol=1e-6), name


def test_several_sources_have_their_own_classes(pictures, tmp_path):
    digits = tmp_path / "digits"
    digits.mkdir()
    for prefix in "train", "t10k":
        for name, shape in ("images-idx3", (3, 28, 28)), ("labels-idx1", (3,)):
            header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
            content = np.arange(np.prod(shape)) % 10
            (digits / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + content.astype("u1").tobytes()))
    both = train.gather([pictures, digits], "train", SIZE)
    assert both.images.shape == (131, 3, SIZE, SIZE)
    assert both.images.dtype == torch.uint8
    assert both.classes == ["ground", "sky", *"0123456789"]
    assert both.labels[:128].unique().tolist() == [0, 1]
    assert both.labels[128:].tolist() == [2, 3, 4]

    some = train.gather([pictures, digits], "train", SIZE, leave_out=["s*", "[1-9]"])
    assert some.classes == ["ground", "0"]
    assert some.labels.tolist() == [0] * 64 + [1]
    assert torch.equal(some.images, torch.cat([both.images[:64], both.images[128:129]]))


def test_a_finished_run_is_lengthened(pictures, tmp_path, monkeypatch):
    run(monkeypatch, *arguments(pictures, tmp_path, epochs=2, lr=0.1))
    run(monkeypatch, *arguments(pictures, tmp_path, epochs=4, lr=0.1), "--resume")
    with open(tmp_path / "log.csv", newline="") as file:
        rows = [(row["epoch"], row["lr"]) for row in csv.DictReader(file)]
    assert rows[:2] == [("1", "0.1"), ("2", "0.01")]
    assert rows[3] == ("4", "0.001")  # at three quarters of four epochs


def test_out_is_named_by_the_data(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, "mine")
    run(monkeypatch, "mine", "--size", 16, "--epochs", 1, "--batch-size", 32, "--threads", 1, "--spec", "lnet")
    assert (tmp_path / "runs" / "mine" / "best.pt").exists()


def test_unreadable_pictures_do_not_end_a_run(pictures, tmp_path, monkeypatch, capsys):
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data" / "train" / "sky" / "bad.png").write_bytes(b"nothing")
    run(monkeypatch, *arguments(tmp_path / "data", tmp_path / "out", spec="lnet", epochs=1))
    assert "train/sky/bad.png: not a picture" in capsys.readouterr().err
    assert (tmp_path / "out" / "best.pt").exists()


# --- a teacher ------------------------------------------------------------------------------------------------------


def taught(pictures, out, *more, **options):
    given = {"epochs": 2, "teacher": "alnet-photo", "recipe": "modern", "batch-size": 32} | options
    return [*arguments(pictures, out, **given)[1:], *more]


def test_a_student_comes_nearer_to_its_teacher(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "photos" / "2024"
    folder.mkdir(parents=True)
    for i, path in enumerate(sorted((pictures / "train").rglob("*.png"))):
        shutil.copy(path, folder / f"{i}.png")
    given = taught(pictures, tmp_path / "out", "--unlabelled", tmp_path / "photos", spec="lnet", epochs=6)
    run(monkeypatch, *given)
    with open(tmp_path / "out" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["agreement"]) > 1.5 * float(rows[0]["agreement"])
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    (stored,) = sorted(tmp_path.glob("alnet-photo-*.npy"), key=lambda path: -path.stat().st_size)[:1]
    embeddings = np.load(stored)
    assert embeddings.shape == (116, 1280)  # each tenth is held out
    names = [path for i, path in enumerate(sorted(folder.iterdir(), key=lambda path: int(path.stem))) if i % 10 != 9]
    wanted = alnumpy.load("alnet-photo", normalize=True).embed(names)
    assert np.allclose(embeddings, wanted, atol=1e-3)  # float16

    best = torch.load(tmp_path / "out" / "best.pt", weights_only=True)
    assert not any(name.startswith(("teacher", "head")) for name in best["state_dict"])
    assert convert_weights.main([str(tmp_path / "out" / "best.pt"), "-o", str(tmp_path / "net.h5")]) == 0
    assert alnumpy.load(tmp_path / "net.h5").spec == alnumpy.SPECS["lnet"]

    def never(*_):
        raise AssertionError("the teacher's embeddings are there")

    monkeypatch.setattr(alnumpy.Embedder, "embed", never)
    run(monkeypatch, *taught(pictures, tmp_path / "again", "--unlabelled", tmp_path / "photos", spec="lnet"))


def test_labels_and_a_teacher_together(pictures, tmp_path, monkeypatch):
    sizes = ["--mix", "--size", "8", "12", "16", "--unscaled", "0.5", "--crop", "0.7"]
    given = taught(pictures, tmp_path, *sizes, spec="lnet", **{"label-weight": 0.5})
    run(monkeypatch, pictures, *given, "--unlabelled", pictures)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["state_dict"]["head.weight"].shape == (2, 1280)
    assert best["preprocessing"]["size"] == 8
    data = train.gather([pictures], "train", SIZE, [pictures])
    assert (data.labels == -1).sum() == 130  # 144 pictures in both splits; each tenth but the last four is held out


def test_frozen_layers_do_not_change(pictures, tmp_path, monkeypatch):
    run(monkeypatch, pictures, *taught(pictures, tmp_path, init="alnet-photo"), "--freeze", "block2")
    trained = torch.load(tmp_path / "best.pt", weights_only=True)["state_dict"]
    same = {
        name: np.array_equal(array, trained[name].numpy())
        for name, array in alnumpy.weights.read(alnumpy.weights.locate("alnet-photo")).parameters.items()
    }
    assert all(value for name, value in same.items() if name.startswith(("stem", "block1.", "block2.")))
    assert not any(
        value for name, value in same.items() if name.endswith("conv.weight") and name[:6] in ("block4", "block7")
    )


@pytest.mark.parametrize(("last", "side"), [("stem", 9), ("block2", 24), ("block5", 33)])
def test_the_front_agrees_with_torch(last, side):
    params = alnumpy.weights.read(alnumpy.weights.locate("alnet-photo")).parameters
    model = torch_network.from_arrays(alnumpy.SPECS["alnet"], params)
    front, back = teaching.split(model.layers, last)
    x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = model.embed(x)
        model.layers = front
        wanted = torch_network.evaluate(front, x, lambda layer, *inputs: model.get_submodule(layer.name)(*inputs))
        got = teaching.Front(front, params)(x, 1)
        assert torch.allclose(got, wanted, atol=1e-4)
        model.layers = back
        assert torch.allclose(model.embed(got), whole, atol=1e-3)


def test_least_squares_finds_a_linear_layer():
    generator = torch.Generator().manual_seed(0)
    given, layer = torch.randn(400, 5, generator=generator) + 3, torch.nn.Linear(5, 7)
    weight, bias = teaching.least_squares(given, layer(given).detach())
    assert torch.allclose(weight, layer.weight, atol=0.02)
    assert torch.allclose(given @ weight.T + bias, layer(given), atol=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--teacher", "nobody"], "nobody: no weights have this name"),
        (["--freeze", "block2"], "--freeze needs --init"),
        (["--freeze", "block9", "--init", "alnet-photo"], "--freeze block9: not one of the layers"),
        (["--mix", "--epochs", "1", "1", "--size", "8", "16"], "--epochs 2: one number for all"),
    ],
)
def test_impossible_teaching_is_refused(pictures, tmp_path, monkeypatch, wrong, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, pictures, *taught(pictures, tmp_path), *wrong)


@pytest.mark.parametrize("wrong", [[], ["--label-weight", "1"], ["--unlabelled", "folder"]])
def test_options_that_need_a_teacher_are_refused_without_one(tmp_path, monkeypatch, wrong):
    with pytest.raises(SystemExit, match="--teacher"):
        run(monkeypatch, *wrong, "--out", tmp_path)


def test_mixed_sizes_have_as_many_pixels_each(pictures, tmp_path, monkeypatch):
    seen = []
    real = train.Trainer.step

    def note(trainer, x, labels, targets):
        seen.append(x.shape[2])
        return real(trainer, x, labels, targets)

    monkeypatch.setattr(train.Trainer, "step", note)
    given = {"spec": "lnet", "epochs": 20, "batch-size": 8, "load-size": 16, "lr": 1e-3}
    run(monkeypatch, *arguments(pictures, tmp_path, **given), "--mix", "--size", "8", "16")
    assert len(seen) == 320
    assert 8 * 8 * seen.count(8) == pytest.approx(16 * 16 * seen.count(16), rel=0.5)


def test_the_moving_average_starts_fast_and_ends_slow():
    average = torch.zeros(1)
    train.moving_average([average], [torch.ones(1)], 8)
    assert average.item() == pytest.approx(0.5)  # 1 - 9 / 18
    train.moving_average([average], [torch.zeros(1)], 10**6)
    assert average.item() == pytest.approx(0.5 * train.EMA_DECAY)


def test_the_modern_rate_rises_for_a_tenth_and_falls_to_zero():
    rates = [train.rise_and_fall(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert train.rise_and_fall(0, 1) == 1


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 20, 3), (2, 3, 20), (5, 1, 9)])
def test_orthogonal_keeps_the_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    core = u.mT @ train.orthogonal(matrices) @ v.mT
    values = torch.diagonal(core, dim1=1, dim2=2)
    assert 0.3 < values.min() <= values.max() < 1.3  # very small singular values have not reached 0.6 yet
    assert (core - torch.diag_embed(values)).abs().max() < 1e-4


def test_muon_steps_on_each_group_like_torch_on_a_matrix():
    generator = torch.Generator().manual_seed(1)
    conv = torch.nn.Conv2d(12, 16, 1, groups=4, bias=False)
    parts = [torch.nn.Parameter(part.flatten(1).clone()) for part in conv.weight.detach().chunk(4)]
    ours = train.Muon([(conv.weight, 4)], lr=0.02, momentum=0.95, weight_decay=0.1)
    torchs = torch.optim.Muon(parts, lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(5):
        conv.weight.grad = torch.randn(conv.weight.shape, generator=generator)
        for part, gradient in zip(parts, conv.weight.grad.chunk(4), strict=True):
            part.grad = gradient.flatten(1)
        ours.step()
        torchs.step()
    # torch iterates in bfloat16
    assert torch.allclose(conv.weight.detach().flatten(1), torch.cat(parts).detach(), atol=0.02 * 5 * 0.02)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_torchs_convolution_forwards_and_backwards(stride):
    plain = torch.nn.Conv2d(6, 6, 3, stride, 1, groups=6, bias=False)
    ours = train.DepthwiseConv2d(6, 6, 3, stride, 1, groups=6, bias=False)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for conv in plain, ours:
        start = x.clone().requires_grad_()
        y = conv(start)
        (y**2).sum().backward()
        results.append((y, start.grad, conv.weight.grad))
    for expected, got in zip(*results, strict=True):
        assert torch.allclose(expected, got, atol=1e-5)


def test_cut_takes_each_pictures_own_square():
    images = torch.arange(2 * 3 * 6 * 7).view(2, 3, 6, 7)
    squares = train.cut(images, torch.tensor([0, 2]), torch.tensor([3, 1]), 4)
    assert torch.equal(squares[0], images[0, :, 0:4, 3:7])
    assert torch.equal(squares[1], images[1, :, 2:6, 1:5])


def test_augmentation_keeps_within_its_limits():
    images = torch.zeros(40, 3, SIZE, SIZE, dtype=torch.uint8)
    images[:, :, 5, 3] = 255
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(train.Augmentation(SIZE, 0, 0, 0, 1.0, False)(images, generator), images.float())

    shifted = train.Augmentation(SIZE, 2, 0, 0, 1.0, False)(images, generator)
    where = {tuple(place) for place in (shifted[:, 0] == 255).nonzero()[:, 1:].tolist()}
    assert where <= {(row, column) for row in range(3, 8) for column in range(1, 6)}
    assert len(where) > 10

    flipped = train.Augmentation(SIZE, 0, 0, 0, 1.0, True)(images, generator)
    columns = (flipped[:, 0] == 255).nonzero()[:, 2].tolist()
    assert set(columns) == {3, SIZE - 4}

    turned = train.Augmentation(SIZE, 0, 20, 0, 1.0, False)(images, generator)
    rows, columns = ((turned[:, 0] * torch.arange(SIZE)).sum(1), (turned[:, 0] * torch.arange(SIZE)[:, None]).sum(1))
    middle = (SIZE - 1) / 2
    weight = turned[:, 0].sum((1, 2))
    x, y = rows.sum(1) / weight - middle, columns.sum(1) / weight - middle
    angles = torch.rad2deg(torch.atan2(y, x) - np.arctan2(5 - middle, 3 - middle))
    assert angles.abs().max() < 22  # bilinear sampling moves a single pixel by a part of its width
    assert angles.min() < -10 < 10 < angles.max()
    assert torch.allclose(torch.hypot(x, y), torch.tensor(5.148), atol=0.5)

    square = torch.nn.functional.pad(torch.full((200, 3, 20, 20), 255, dtype=torch.uint8), [10] * 4)
    stretched = train.Augmentation(40, 0, 0, 0.2, 1.0, False)(square, generator)[:, 0] / 255
    width, height = stretched[:, 20].sum(1), stretched[:, :, 20].sum(1)
    for side in (width, height):  # a map from the output to the input by 0.8 to 1.2: 25 to 16.7 pixels
        assert 20 / 1.2 - 0.1 < side.min() < 18 < 22 < side.max() < 20 / 0.8 + 0.1
    assert abs(np.corrcoef(width, height)[0, 1]) < 0.3  # each side has its own random factor
    assert torch.allclose(stretched, stretched.flip(1, 2), atol=1e-5)  # stretched about the middle

    whole = train.Augmentation(8, 0, 0, 0, 0.5, False, unscaled=1.0)(images, generator)
    assert set(whole.flatten().tolist()) <= {0.0, 255.0}  # pixels are cut out, not scaled
    assert 0 < (whole[:, 0] == 255).sum() < 40  # the pixel is in some of the squares

    cropped = train.Augmentation(8, 0, 0, 0, 0.5, False)(images, generator)
    assert cropped.shape == (40, 3, 8, 8)


def test_pictures_are_resized_as_on_the_device():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    ours = train.resized(torch.from_numpy(pixels).permute(2, 0, 1)[None], 32)[0].permute(1, 2, 0)
    device = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(ours.numpy() - device).max() <= 1  # Pillow rounds to whole numbers, after each direction


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--init", "missing.h5"], "missing.h5"),
        (["--resume"], "last.pt"),
        (["--spec", "lnet", "--init", str(alnumpy.weights.default_path())], "not lnet"),
        (["--batch-size", "1000"], "--batch-size 1000 is more than the 128 training pictures"),
        (["--lr", "1000", "--recipe", "modern", "--batch-size", "8"], "the loss is not finite"),
    ],
)
def test_impossible_runs_are_refused_in_one_line(pictures, tmp_path, monkeypatch, wrong, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *arguments(pictures, tmp_path), *wrong)


@pytest.mark.parametrize(
    "wrong",
    [["--epochs", "0"], ["--crop", "60"], ["--crop", "0"], ["--lr", "nan"], ["--shift", "-3"], ["--threads", "0"]],
)
def test_numbers_out_of_range_are_wrong_usage(pictures, tmp_path, monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments(pictures, tmp_path), *wrong)
    assert f"argument {wrong[0]}: {wrong[1]} is not from" in capsys.readouterr().err


def test_a_run_is_neither_replaced_nor_continued_as_another(pictures, tmp_path, monkeypatch):
    run(monkeypatch, *arguments(pictures, tmp_path, epochs=1))
    before = (tmp_path / "best.pt").read_bytes()
    for wrong, message in (
        ([], "last.pt exists: --resume"),
        (["--resume", "--size", "20", "--load-size", "16"], "last.pt: its run was at other sizes"),
        (["--resume", "--seed", "1"], "last.pt: its run has another --seed"),
        (["--resume", "--recipe", "modern"], "last.pt: its run has another --recipe"),
        (["--resume", "--load-size", "20"], "last.pt: its run has another --load-size"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, *arguments(pictures, tmp_path, epochs=1), *wrong)
    with pytest.raises(SystemExit, match=r"last.pt: its run has another data"):
        run(monkeypatch, *arguments(pictures / "train", tmp_path, epochs=1), "--resume")
    assert (tmp_path / "best.pt").read_bytes() == before

    whole = (tmp_path / "last.pt").read_bytes()
    for damaged in b"", b"not a checkpoint", whole[: len(whole) // 2], before:
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(SystemExit, match=r"last.pt: not a checkpoint of train.py, or damaged"):
            run(monkeypatch, *arguments(pictures, tmp_path, epochs=1), "--resume")


def test_every_tenth_picture_is_held_out_without_a_split(pictures):
    training, test = (train.gather([pictures / "train"], split, SIZE) for split in ("train", "test"))
    assert training.classes == test.classes == ["ground", "sky"]
    assert (len(training.labels), len(test.labels)) == (116, 12)
    every, _, _ = train.load_class_folders(pictures / "train", "", SIZE)
    held_out = [*range(9, 64, 10), *range(64 + 9, 128, 10)]  # every tenth of each class
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), every[held_out])


def test_a_small_class_has_a_picture_held_out(pictures, tmp_path, monkeypatch):
    for name, count in ("ground", 3), ("sky", 12):
        (tmp_path / "few" / name).mkdir(parents=True)
        for i in range(count):
            shutil.copy(pictures / "train" / name / f"{i}.png", tmp_path / "few" / name)
    training, test = (train.gather([tmp_path / "few"], split, SIZE) for split in ("train", "test"))
    assert (training.labels.tolist(), test.labels.tolist()) == ([0] * 2 + [1] * 11, [0, 1])
    (tmp_path / "places").mkdir()  # every fifth picture of it is held out
    for name in ("hall_1.png", "hall_2.png"):
        shutil.copy(pictures / "train" / "sky" / "0.png", tmp_path / "places" / name)
    (tmp_path / "places" / "hall_1_query.txt").touch()
    with pytest.raises(SystemExit, match="there is no held-out picture"):
        run(monkeypatch, *arguments(tmp_path / "places", tmp_path / "out", **{"batch-size": 2}))


def test_pictures_of_one_value_are_named(tmp_path, monkeypatch):
    (tmp_path / "black" / "one").mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "black" / "one" / f"{i}.png")
    with pytest.raises(SystemExit, match="all training pictures have one and the same value"):
        run(monkeypatch, *arguments(tmp_path / "black", tmp_path / "out", **{"batch-size": 8}))


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "last.pt").write_text("before")

    def full(checkpoint, path):
        path.write_text("half")
        raise RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last.pt: cannot be written; is the disk full\? \(.*failed\)"):
        train.save(tmp_path / "last.pt", {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_sun397_is_read_by_its_lists(pictures, tmp_path):
    for letter, name in ("g", "ground"), ("s", "sky"):
        shutil.copytree(pictures / "train" / name, tmp_path / letter / name)
    lists = {
        "ClassName": "/g/ground /s/sky",
        "Training_01": "/s/sky/0.png /g/ground/1.png",
        "Testing_01": "/s/sky/2.png",
    }
    (tmp_path / "Partitions").mkdir()
    for name, lines in lists.items():
        (tmp_path / "Partitions" / f"{name}.txt").write_text(lines.replace(" ", "\n"))
    training, test = (train.gather([tmp_path], split, SIZE) for split in ("train", "test"))
    assert training.classes == test.classes == ["ground", "sky"]
    assert (training.labels.tolist(), test.labels.tolist()) == ([1, 0], [1])


def test_a_missing_source_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="nowhere"):
        run(monkeypatch, tmp_path / "nowhere", "--out", tmp_path / "out")
