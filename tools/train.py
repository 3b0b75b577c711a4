#!/usr/bin/env python3
"""Train ALNet or an ablation as a classifier, keeping the weights with the best accuracy.

    python tools/train.py mnist/ --epochs 8 --shift 2 --out runs/mnist
    python tools/train.py objects64.zip scenes64.zip --recipe modern --size 32 64 --epochs 20 5 --crop 0.6 --flip

A source is the folder of MNIST's four idx files or of SVHN's two .mat files; SUN397 with its partition lists (those of
partition 1 are used); Oxford5k or Paris6k with their ground truth (every fifth picture is held out); or a folder or a
zip of class folders, below train/ and test/ (or val/), or without these, when every tenth picture of a class, at least
one, is held out. Several are trained on together, each with its own classes.

Recipe "paper" is section 4.3: SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4, the rate lowered in steps.
Recipe "modern" is Muon for the matrices and AdamW for the rest, a rate that rises for a tenth of the steps and then
falls as a cosine, label smoothing, an exponential moving average of the weights and, on a GPU, mixed precision.

Writes OUT/best.pt (the weights with the highest accuracy), OUT/last.pt (to go on from with --resume), OUT/log.csv and
OUT/curve.png. Needs the extra: pip install 'alnumpy[train]'.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel, update_bn
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    sys.exit(f"train.py: {missing.name} is not installed; training needs: pip install 'alnumpy[train]'")

from alnumpy import weights
from alnumpy.errors import AlnumpyError
from alnumpy.networks import SPECS
from datasets import files, landmark_classes, load_class_folders, mnist, sun397, svhn
from torch_network import Network

MODERN_LR = 0.02  # of Muon
ADAM_SHARE = 0.2  # of it for what AdamW trains
EMA_DECAY = 0.999
EVALUATION_BATCH = 500
STATISTICS_BATCHES = 100  # of which batch norm's statistics of the averaged weights are taken


@dataclass
class Data:
    """Pictures (N, 3, S, S) uint8 in channels-last memory, labels (N,) int64, and the names of the classes."""

    images: Tensor
    labels: Tensor
    classes: list[str]


def load(source: Path, split: str, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One data set's "train" or "test" pictures: uint8 (N, S, S, 3), labels (N,) and class names."""
    if any(source.glob("train-images-idx3-ubyte*")):
        images, labels = mnist(source, split)
        return np.repeat(images[..., None], 3, axis=3), labels.astype(np.int64), [str(digit) for digit in range(10)]
    if any(source.glob("train_32x32.mat")):
        images, labels = svhn(source, split)
        return images, labels.astype(np.int64), [str(digit) for digit in range(10)]
    names = files(source)
    if any(Path(name).name == "ClassName.txt" for name in names):
        return sun397(source, source, split, size)
    if any(name.endswith("_query.txt") for name in names):
        return landmark_classes(source, split, size)
    folders = {name.split("/")[0] for name in names}
    if "train" not in folders:
        images, labels, classes = load_class_folders(source, "", size)
        counts = np.bincount(labels)
        within = np.concatenate([np.arange(count) for count in counts])  # its class, by which pictures are ordered
        chosen = (within % 10 == np.minimum(counts[labels] - 1, 9)) == (split == "test")
        return images[chosen], labels[chosen], classes
    return load_class_folders(source, "val" if split == "test" and "test" not in folders else split, size)


def gather(sources: list[Path], split: str, size: int) -> Data:
    """Several data sets as one: the classes of each source follow those of the source before."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    classes: list[str] = []
    for source in sources:
        pictures, targets, names = load(source, split, size)
        stored = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        images.append(stored if stored.shape[2] == size else resized(stored, size).round().byte())
        labels.append(torch.from_numpy(targets) + len(classes))
        classes += names
    return Data(torch.cat(images), torch.cat(labels), classes)


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Of each channel over all pixels of uint8 (N, 3, H, W), in 0..1, exact: from the histogram of the 256 values."""
    values, means, stds = np.arange(256) / 255, [], []
    for channel in range(3):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).numpy() / images[:, channel].numel()
        mean = float(share @ values)
        means.append(round(mean, 4))
        stds.append(round(float(np.sqrt(share @ (values - mean) ** 2)), 4))
    return means, stds


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """From each picture of (N, C, H, W) the square of ``side`` pixels at its own ``top`` and ``left`` (N,)."""
    rows, columns = (start[:, None] + torch.arange(side, device=images.device) for start in (top, left))
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class Augmentation:
    """What a training batch undergoes. The scale of the crop is one draw for a batch: simple, and fast on a CPU."""

    size: int
    shift: int  # pixels, black moving in
    rotate: float  # most degrees, either way, black moving in
    stretch: float  # most share by which each side becomes longer or shorter, black moving in
    crop: float  # least side of the random square, as a share of the picture's
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (N, 3, S, S) -> float32 (N, 3, size, size) in 0..255."""
        n, stored = len(images), images.shape[2]

        def draw(most: int) -> Tensor:
            return torch.randint(0, most + 1, (n,), generator=generator).to(images.device)

        if self.shift:
            images = cut(F.pad(images, [self.shift] * 4), draw(2 * self.shift), draw(2 * self.shift), stored)
        if self.rotate or self.stretch:
            draws = (torch.rand(3, n, generator=generator) * 2 - 1).to(images.device)
            angle, (x, y) = draws[0] * math.radians(self.rotate), 1 + draws[1:] * self.stretch
            cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
            maps = torch.stack([x * cos, -x * sin, zero, y * sin, y * cos, zero], 1).view(n, 2, 3)
            grid = F.affine_grid(maps, list(images.shape), align_corners=False)
            images = F.grid_sample(images.float(), grid, align_corners=False)
        if self.crop < 1:
            side = int(torch.randint(round(self.crop * stored), stored + 1, (), generator=generator))
            images = cut(images, draw(stored - side), draw(stored - side), side)
        if self.flip:
            images = torch.where(draw(1).bool()[:, None, None, None], images.flip(3), images)
        return resized(images, self.size)


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 or float (N, 3, S, S) -> float32 (N, 3, size, size), in 0..255, as by Pillow's bilinear filter."""
    if images.shape[2] == size:
        return images.float()
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def moving_average(averages: Sequence[Tensor], latest: Sequence[Tensor], updates: Tensor | int) -> None:
    """Moves the averages towards the latest values; faster at first, so that the initial weights are soon forgotten."""
    count = int(updates)
    share = 1 - min(EMA_DECAY, (1 + count) / (10 + count))
    for average, value in zip(averages, latest, strict=True):
        average.lerp_(value, share)


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest orthogonal matrix to each of (N, R, C): the same singular vectors, all values in 0.6 to 1.3.

    Five steps of a Newton-Schulz iteration, with the coefficients of ``torch.optim.Muon``.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    if x.shape[1] > 1:  # a single row is done: its one singular value is 1
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrices else x.mT


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` for convolutions, which it refuses: in groups, they are a matrix for each group.

    ``layers``: pairs of a weight (out, in / groups, ...) and its number of groups.
    """

    def __init__(self, layers: list[tuple[Tensor, int]], lr: float, momentum: float, weight_decay: float):
        groups = [{"params": [weight], "matrices": count} for weight, count in layers]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (weight,) = group["params"]
            state, momentum = self.state[weight], group["momentum"]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].mul_(momentum).add_(weight.grad)
            update = (weight.grad + momentum * state["momentum"]).reshape(group["matrices"], -1, weight[0].numel())
            rate = group["lr"] * max(1, update.shape[1] / update.shape[2]) ** 0.5
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_(rate * orthogonal(update).reshape(weight.shape))


def rise_and_fall(step: int, steps: int) -> float:
    """Share of the highest learning rate: rises for a tenth of the steps, then falls to zero as a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


@torch.library.custom_op("alnumpy::depthwise_backward", mutates_args=())
def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    arguments = (gradient, x, weight, [0], [stride] * 2, [1, 1], [1, 1], False, [0, 0], x.shape[1], [True, True, False])
    return torch.ops.aten.convolution_backward(*arguments)[:2]


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


class Depthwise(torch.autograd.Function):
    """A depthwise convolution, 3x3, padded by 1, whose backward pass stays channels last under torch.compile.

    Inductor computes ``x`` anew in the backward pass, in a layout of its own choice for which the convolution is
    several times slower. For a custom operator it keeps the layout.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, 1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *torch.ops.alnumpy.depthwise_backward(gradient, *ctx.saved_tensors, ctx.stride), None


class DepthwiseConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return Depthwise.apply(x, self.weight, self.stride[0])


def compiled(model: Network, device: torch.device) -> Callable[[Tensor], Tensor]:
    """torch.compile, with depthwise convolutions that are fast under it on a CPU."""
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
                module.__class__ = DepthwiseConv2d  # the same parameters under the same names
    return torch.compile(model, dynamic=False)


class Trainer:
    """A network, its optimisers and their schedule: all that a checkpoint to resume from has to hold."""

    def __init__(self, args: argparse.Namespace, classes: int, steps: int, device: torch.device):
        self.device, self.modern = device, args.recipe == "modern"
        self.spec = SPECS[args.spec]
        model = Network(self.spec, classes)
        if args.init:
            start = weights.read(args.init)
            if start.spec != self.spec:
                raise ValueError(f"{args.init}: its network is not {args.spec}")
            arrays = {name: torch.from_numpy(np.array(array)) for name, array in start.parameters.items()}
            model.load_state_dict(arrays, strict=False)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers: list[torch.optim.Optimizer]
        self.schedulers: list[torch.optim.lr_scheduler.LRScheduler]
        if self.modern:
            matrices = [
                (module.weight, getattr(module, "groups", 1))
                for module in self.model.modules()
                if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not self.model.head
            ]
            taken = {id(weight) for weight, _ in matrices}
            rest = [parameter for parameter in self.model.parameters() if id(parameter) not in taken]
            self.optimizers = [
                Muon(matrices, args.lr, momentum=0.95, weight_decay=0.02),
                torch.optim.AdamW(rest, args.lr * ADAM_SHARE, betas=(0.9, 0.99), weight_decay=0.0),
            ]
            self.schedulers = [
                torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rise_and_fall(step, steps))
                for optimizer in self.optimizers
            ]
        else:
            optimizer = torch.optim.SGD(self.model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
            # The paper does not name the steps: ten times at a half and at three quarters of the epochs.
            milestones = [steps // 2, steps * 3 // 4]
            self.optimizers = [optimizer]
            self.schedulers = [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)]
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average) if self.modern else None
        self.run: Callable[[Tensor], Tensor] = compiled(self.model, device) if args.compile else self.model
        self.smoothing = 0.1 if self.modern else 0.0

    def parts(self) -> dict[str, Any]:
        """What has a state, by its name in the checkpoint."""
        parts = {"model": self.model} | ({"average": self.average} if self.average else {})
        parts |= {f"optimizer{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return parts | {f"scheduler{i}": scheduler for i, scheduler in enumerate(self.schedulers)}

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        mixed = self.modern and self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
            loss = F.cross_entropy(self.run(x), labels, label_smoothing=self.smoothing)
        self.model.zero_grad()
        loss.backward()
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach()

    def network(self, inputs: Iterable[Tensor]) -> torch.nn.Module:
        """What to evaluate and to keep. The averaged weights need batch norm's statistics of their own: ``inputs``."""
        if not self.average:
            return self.model
        update_bn(inputs, self.average)
        return self.average.module


class Normalise:
    """float (N, 3, H, W) in 0..255 -> the network's input, channels last in memory."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device):
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    def __call__(self, x: Tensor) -> Tensor:
        return ((x / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, data: Data, size: int, normalise: Normalise, device: torch.device) -> float:
    """Share of the pictures whose highest score is their label, in percent."""
    model.eval()
    right = 0
    for images, labels in zip(data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True):
        scores = model(normalise(resized(images.to(device), size)))
        right += int((scores.argmax(1) == labels.to(device)).sum())
    return 100 * right / len(data.labels)


def save(path: Path, checkpoint: dict) -> None:
    """Writes a whole checkpoint or leaves the old one: a stop while writing loses nothing."""
    temporary = path.with_suffix(".tmp")
    try:
        torch.save(checkpoint, temporary)
    except RuntimeError as error:  # as torch calls a full disk
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written; is the disk full? ({str(error).splitlines()[0]})") from None
    os.replace(temporary, path)


def load_last(path: Path, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A checkpoint to go on from. Raises ValueError where it is damaged, or of a run with other settings."""
    with open(path, "rb") as file:
        try:
            last = torch.load(file, weights_only=True, map_location=device)
            theirs = last["settings"]
        except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            raise ValueError(f"{path}: not a checkpoint of train.py to go on from, or damaged") from None
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{path}: its run has another {name}; give it what it was begun with, or train into another folder"
            )
    return last


def report(rows: list[dict[str, Any]], out: Path) -> None:
    """The log by epoch as OUT/log.csv, and its loss and accuracy as OUT/curve.png."""
    from matplotlib.figure import Figure

    with open(out / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: round(value, 8) for key, value in row.items()} for row in rows)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot(epochs, [row["train_loss"] for row in rows], color="tab:orange", marker=".")
    left.set(xlabel="epoch", ylabel="training loss (orange)")
    right = left.twinx()
    right.plot(epochs, [row["accuracy"] for row in rows], color="tab:blue", marker=".")
    right.set_ylabel("accuracy on held-out pictures, % (blue)")
    figure.savefig(out / "curve.png", dpi=120)


def within(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type for argparse: a number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    parse.__name__ = kind.__name__  # for argparse's message
    return parse


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    add = parser.add_argument
    add("sources", type=Path, nargs="+", metavar="SOURCE", help="data sets to train on together")
    add("--spec", choices=SPECS, default="alnet", help="which network (default: %(default)s)")
    add("--recipe", choices=("paper", "modern"), default="paper", help="see above (default: %(default)s)")
    sides = "side of the network's input in pixels; several to train at one after the other (default: 28)"
    add("--size", type=within(int, 8, 1024), nargs="+", default=[28], help=sides)
    add(
        "--epochs", type=within(int, 1), nargs="+", default=[8], help="passes over the data at each --size (default: 8)"
    )
    add(
        "--load-size",
        type=within(int, 8, 1024),
        help="side at which pictures are kept in memory (default: last --size)",
    )
    add("--lr", type=within(float, 1e-12, 1e3), help=f"highest learning rate (default: 0.1; modern: {MODERN_LR})")
    add("--batch-size", type=within(int, 2), default=128, help="pictures a step (default: %(default)s)")
    shift = "random shift, in pixels of --load-size (default: none, as the paper)"
    add("--shift", type=within(int, 0, 64), default=0, help=shift)
    rotate = "random rotation of at most so many degrees either way (default: none)"
    add("--rotate", type=within(float, 0, 180), default=0.0, help=rotate)
    stretch = "each side made longer or shorter by at most this share (default: none)"
    add("--stretch", type=within(float, 0, 0.9), default=0.0, help=stretch)
    crop = "random square of at least this share of the side (default: none)"
    add("--crop", type=within(float, 0.1, 1), default=1.0, help=crop)
    add("--flip", action="store_true", help="mirror half of the pictures")
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    add("--init", type=Path, metavar="WEIGHTS.h5", help="start from these weights, with a new classifier")
    devices = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    add("--device", choices=devices, default=devices[0], help="(default here: %(default)s)")
    threads = torch.get_num_threads()
    add("--threads", type=within(int, 1, 1024), default=threads, help="CPU threads (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile: a minute to start, then less time a step")
    add("--out", type=Path, default=Path("runs/mnist"), help="folder to write to (default: %(default)s)")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    return parser


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if len(args.size) != len(args.epochs):
        raise ValueError(f"--size has {len(args.size)} numbers and --epochs {len(args.epochs)}: they go together")
    args.lr = args.lr or (MODERN_LR if args.recipe == "modern" else 0.1)
    args.load_size = args.load_size or args.size[-1]
    checkpoint = args.out / "last.pt"
    if checkpoint.exists() and not args.resume:
        raise ValueError(f"{checkpoint} is there: --resume goes on with that run, another --out begins a new one")

    training, held_out = (gather(args.sources, split, args.load_size) for split in ("train", "test"))
    if training.classes != held_out.classes:
        some = ", ".join(sorted(set(training.classes) ^ set(held_out.classes))[:5])
        raise ValueError(f"training and test pictures are not of the same classes; in one of them only: {some}")
    if not len(held_out.labels):
        raise ValueError("there is no held-out picture to measure the accuracy on")
    steps = len(training.labels) // args.batch_size
    if not steps:
        raise ValueError(f"--batch-size {args.batch_size} is more than the {len(training.labels)} training pictures")
    mean, std = mean_and_std(training.images)
    if 0 in std:
        raise ValueError("all training pictures have one and the same value in a colour channel")
    normalise = Normalise(mean, std, device)
    trainer = Trainer(args, len(training.classes), steps * sum(args.epochs), device)

    kept = (
        "spec",
        "recipe",
        "size",
        "epochs",
        "load_size",
        "lr",
        "batch_size",
        "shift",
        "rotate",
        "stretch",
        "crop",
        "flip",
        "seed",
    )
    settings = {f"--{name.replace('_', '-')}": getattr(args, name) for name in kept}
    settings |= {"--init": str(args.init), "data": [mean, std, len(training.labels), training.classes]}
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if args.resume:
        last = load_last(checkpoint, settings, device)
        rows = last["log"]
        for name, part in trainer.parts().items():
            part.load_state_dict(last[name])

    sizes = [size for size, epochs in zip(args.size, args.epochs, strict=True) for _ in range(epochs)]
    for epoch, size in list(enumerate(sizes, 1))[len(rows) :]:
        augment = Augmentation(size, args.shift, args.rotate, args.stretch, args.crop, args.flip)
        generator = torch.Generator().manual_seed(args.seed * 1000 + epoch)  # the same order after a resume
        begin, lr = time.monotonic(), trainer.schedulers[0].get_last_lr()[0]
        total = torch.zeros((), device=device)
        trainer.model.train()
        order = torch.randperm(len(training.labels), generator=generator)
        batches = order[: steps * args.batch_size].split(args.batch_size)

        def inputs(index: Tensor, augment: Augmentation = augment, generator: torch.Generator = generator) -> Tensor:
            return normalise(augment(training.images[index].to(device), generator))

        for index in tqdm(batches, desc=f"epoch {epoch}", disable=None):
            total += trainer.step(inputs(index), training.labels[index].to(device))
        loss = float(total) / steps
        if not math.isfinite(loss):
            raise ValueError(f"the loss is not finite in epoch {epoch}: a lower --lr may help")
        model = trainer.network(inputs(index) for index in batches[:STATISTICS_BATCHES])
        reached = accuracy(model, held_out, size, normalise, device)
        print(f"epoch {epoch}: {size} pixels, lr {lr:g}, loss {loss:.4f}, accuracy {reached:.2f}%", flush=True)
        if not rows or reached > max(row["accuracy"] for row in rows):
            best = {
                "state_dict": model.state_dict(),
                "epoch": epoch,
                "accuracy": reached,
                "spec": trainer.spec.to_dict(),
                "preprocessing": {"size": size, "mean": mean, "std": std},
                "classes": training.classes,
            }
            save(args.out / "best.pt", best)
        seconds = round(time.monotonic() - begin)
        rows.append(
            {"epoch": epoch, "size": size, "lr": lr, "train_loss": loss, "accuracy": reached, "seconds": seconds}
        )
        state = {name: part.state_dict() for name, part in trainer.parts().items()}
        save(checkpoint, state | {"settings": settings, "log": rows})
        report(rows, args.out)


def main() -> None:
    args = parser().parse_args()
    try:
        train(args)
    except (OSError, ValueError, EOFError, AlnumpyError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; --resume goes on after the last whole epoch, if there was one")


if __name__ == "__main__":
    main()
