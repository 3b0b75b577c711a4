#!/usr/bin/env python3
"""Train a network as a classifier, or to give what a better network gives, keeping the best weights.

    python tools/train.py mnist/ --epochs 8 --shift 2 --out runs/mnist
    python tools/train.py objects64.zip scenes64.zip --recipe modern --size 32 64 --epochs 20 5 --crop 0.6 --flip
    python tools/train.py objects64.zip --unlabelled photos/ --teacher efficientnet-lite0 --init alnet-photo \
        --recipe modern --lr 0.01 --mix --size 48 64 96 128 --freeze block2 --crop 0.7 --flip --load-size 64

A source is the folder of MNIST's four idx files or of SVHN's two .mat files; SUN397 with its partition lists (those of
partition 1 are used); Oxford5k or Paris6k with their ground truth (every fifth picture is held out); or a folder or a
zip of class folders, below train/ and test/ (or val/), or without these, when every tenth picture of a class, at least
one, is held out. Several are trained on together, each with its own classes. Pictures that cannot be read are named
and left out.

With --teacher the network learns the directions of the embeddings of better weights: a linear layer, dropped
afterwards, maps the network's embedding of the part that it sees to the teacher's normalised and centred embedding
of the whole picture, and 1 - cosine is the loss. The teacher's embeddings are computed once and kept beside OUT. Labels
are not needed (--unlabelled); --label-weight adds the classifier's loss.

Recipe "paper" is section 4.3: SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4, the rate lowered in steps.
Recipe "modern" is Muon for the matrices and AdamW for the rest, a rate that rises for a tenth of the steps and then
falls as a cosine, label smoothing, an exponential moving average of the weights and, on a GPU, mixed precision.

Writes OUT/best.pt (the weights with the highest accuracy on held-out pictures or, with a teacher, the highest mean
cosine with its embeddings, in percent), OUT/last.pt (for --resume, with which --epochs may differ),
OUT/log.csv and OUT/curve.png. Needs the extra: pip install 'alnumpy[train]'.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    sys.exit(f"train.py: {missing.name} is not installed; training needs: pip install 'alnumpy[train]'")

import alnumpy
import teaching
from alnumpy import weights
from alnumpy.errors import AlnumpyError
from alnumpy.networks import SPECS, Spec
from datasets import LeftOut, files, landmark_classes, load_class_folders, load_folder, mnist, sun397, svhn
from torch_network import Network

MODERN_LR = 0.02  # learning rate of Muon
ADAM_SHARE = 0.2  # share of it for the arrays that AdamW trains
EMA_DECAY = 0.999
EVALUATION_BATCH = 500
STATISTICS_BATCHES = 100  # batches from which batch norm's statistics of the averaged weights are computed
FITTED = 10_000  # pictures that the layer from the network to its teacher is first fitted to
COMPARED = 2_000  # held-out pictures whose embeddings are compared with the teacher's after each epoch
UNLABELLED = -1


@dataclass
class Data:
    """Pictures (N, 3, S, S) uint8 in channels-last memory, labels (N,) int64 or -1, and the names of the classes."""

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


def gather(
    sources: Sequence[Path], split: str, size: int, unlabelled: Sequence[Path] = (), leave_out: Sequence[str] = ()
) -> Data:
    """Several data sets as one: the classes of each source follow those of the source before.

    Every tenth of the ``unlabelled`` pictures is held out. Classes whose names fit one of ``leave_out`` are in no
    split.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    classes: list[str] = []

    def add(pictures: np.ndarray, targets: np.ndarray) -> None:
        stored = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        images.append(stored if stored.shape[2] == size else resized(stored, size).round().byte())
        labels.append(torch.from_numpy(targets))

    for source in sources:
        pictures, targets, names = load(source, split, size)
        kept = np.array([not any(fnmatchcase(name, pattern) for pattern in leave_out) for name in names])
        number = np.cumsum(kept) - 1 + len(classes)
        chosen = kept[targets]
        add(*((pictures, number[targets]) if chosen.all() else (pictures[chosen], number[targets[chosen]])))
        classes += [name for name, stays in zip(names, kept, strict=True) if stays]
    for source in unlabelled:
        pictures = load_folder(source, size)
        chosen = (np.arange(len(pictures)) % 10 == 9) == (split == "test")
        add(pictures[chosen], np.full(chosen.sum(), UNLABELLED, np.int64))
    return Data(torch.cat(images), torch.cat(labels), classes)


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over all pixels of uint8 (N, 3, H, W), in 0..1; exact, from the histogram."""
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
    """The random changes of a training batch. The scale of the crop is drawn once per batch, which is fast on a CPU."""

    size: int
    shift: int  # pixels, black moving in
    rotate: float  # most degrees, either way, black moving in
    stretch: float  # most share by which each side becomes longer or shorter, black moving in
    crop: float  # least side of the random square, as a share of the picture's
    flip: bool
    unscaled: float = 0.0  # share of the batches with squares of the network's size, if pictures are that large

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
        fits = self.unscaled and self.size <= stored
        if fits and float(torch.rand((), generator=generator)) < self.unscaled:
            images = cut(images, draw(stored - self.size), draw(stored - self.size), self.size)
        elif self.crop < 1:
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
    if x.shape[1] > 1:  # a single row is finished: its one singular value is 1
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


class Student(Network):
    """A network while it learns: it gives scores of classes and, with a teacher, its estimate of the teacher's.

    The layers up to ``frozen``, if any, are not computed: the input is their output.
    """

    def __init__(self, spec: Spec, classes: int, targets: int = 0, frozen: str = ""):
        super().__init__(spec, classes)
        self.teacher = nn.Linear(spec.embedding, targets) if targets else None
        if frozen:
            front, self.layers = teaching.split(self.layers, frozen)
            for layer in front:
                self.get_submodule(layer.name).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        y = self.embed(x)
        return self.head(y), self.teacher(y) if self.teacher else None


@torch.no_grad()
def settle(model: Network, inputs: Iterable[Tensor]) -> None:
    """Computes batch norm's statistics anew from ``inputs``: averaged weights have no others that fit."""
    modules = [model.get_submodule(layer.name) for layer in model.layers]
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for x in inputs:
        model.embed(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Trainer:
    """A network, its optimisers and their schedule: everything that a checkpoint to resume from must hold."""

    def __init__(self, args: argparse.Namespace, classes: int, steps: int, device: torch.device, targets: int = 0):
        self.device, self.modern, self.label_weight = device, args.recipe == "modern", args.label_weight
        self.spec = SPECS[args.spec]
        if args.stem:
            self.spec = Spec.from_dict(self.spec.to_dict() | {"stem": args.stem})
        model = Student(self.spec, classes if self.label_weight else 0, targets, args.freeze)
        if args.init:
            file = weights.locate(args.init)
            start = weights.read(file)
            if start.spec != self.spec:
                raise ValueError(f"{file}: its network is not {args.spec}")
            arrays = {name: torch.from_numpy(np.array(array)) for name, array in start.parameters.items()}
            model.load_state_dict(arrays, strict=False)
        self.front = None
        if args.freeze:
            layers, _ = teaching.split(self.spec.layers(), args.freeze)
            self.front = teaching.Front(layers, {name: array.numpy() for name, array in model.state_dict().items()})
        self.threads = args.threads
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers: list[torch.optim.Optimizer]
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        falls: Callable[[int], float]
        if self.modern:
            matrices = [
                (module.weight, getattr(module, "groups", 1))
                for module in self.model.modules()
                if isinstance(module, (nn.Conv2d, nn.Linear))
                and module not in (self.model.head, self.model.teacher)
                and module.weight.requires_grad
            ]
            taken = {id(weight) for weight, _ in matrices}
            rest = [parameter for parameter in learning if id(parameter) not in taken]
            self.optimizers = [
                Muon(matrices, args.lr, momentum=0.95, weight_decay=0.02),
                torch.optim.AdamW(rest, args.lr * ADAM_SHARE, betas=(0.9, 0.99), weight_decay=0.0),
            ]
            falls = lambda step: rise_and_fall(step, steps)  # noqa: E731
        else:
            self.optimizers = [torch.optim.SGD(learning, args.lr, momentum=0.9, weight_decay=1e-4)]
            # The paper does not name the steps: ten times at a half and at three quarters of the epochs.
            falls = lambda step: 0.1 ** ((step >= steps // 2) + (step >= steps * 3 // 4))  # noqa: E731
        # A schedule's state has no steps, so that a run that is resumed with more epochs follows the longer one.
        self.schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, falls) for optimizer in self.optimizers]
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average) if self.modern else None
        self.run: Callable[[Tensor], Any] = compiled(self.model, device) if args.compile else self.model
        self.smoothing = 0.1 if self.modern else 0.0

    def parts(self) -> dict[str, Any]:
        """The parts that have a state, by name in the checkpoint."""
        parts = {"model": self.model} | ({"average": self.average} if self.average else {})
        parts |= {f"optimizer{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return parts | {f"scheduler{i}": scheduler for i, scheduler in enumerate(self.schedulers)}

    def seen(self, x: Tensor) -> Tensor:
        """The input of the trained layers for the network's input, in the memory layout for training."""
        if self.front:
            x = self.front(x.cpu(), self.threads).to(self.device)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Fits the layer to the teacher to these inputs and targets: a good start at no cost."""
        assert self.model.teacher
        self.model.eval()
        given, wanted = zip(*((self.model.embed(x), targets) for x, targets in batches), strict=True)
        weight, bias = teaching.least_squares(torch.cat(given).cpu(), torch.cat(wanted).cpu())
        self.model.teacher.weight.copy_(weight)
        self.model.teacher.bias.copy_(bias)

    def loss(self, x: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        scores, taught = self.run(x)
        total = torch.zeros((), device=self.device)
        if targets is not None:
            total = 1 - F.cosine_similarity(taught, targets).mean()
        if self.label_weight:
            count = (labels != UNLABELLED).sum().clamp_min(1)
            each = F.cross_entropy(scores, labels, None, None, UNLABELLED, None, "sum", self.smoothing)
            total = total + self.label_weight * each / count
        return total

    def step(self, x: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        mixed = self.modern and self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
            loss = self.loss(x, labels, targets)
        self.model.zero_grad()
        loss.backward()
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach()

    def network(self, inputs: Iterable[Tensor]) -> Student:
        """The network to evaluate and keep. Averaged weights need batch norm's statistics of their own: ``inputs``."""
        if not self.average:
            return self.model
        averaged: Student = self.average.module  # type: ignore[assignment]
        settle(averaged, inputs)
        return averaged


class Normalise:
    """float (N, 3, H, W) in 0..255 -> the network's input."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device):
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    def __call__(self, x: Tensor) -> Tensor:
        return (x / 255 - self.mean) / self.std


@torch.inference_mode()
def accuracy(model: Student, data: Data, inputs: Callable[[Tensor], Tensor]) -> float:
    """Share of the labelled pictures whose highest score is their label, in percent."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64)
    for images, labels in zip(data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True):
        right += (model(inputs(images))[0].argmax(1).cpu() == labels).sum()
    return 100 * float(right) / int((data.labels != UNLABELLED).sum())


@torch.inference_mode()
def agreement(model: Student, images: Tensor, targets: Tensor, inputs: Callable[[Tensor], Tensor]) -> float:
    """Mean cosine between the student's estimates and the teacher's embeddings, in percent."""
    model.eval()
    cosines = [
        F.cosine_similarity(model(inputs(part))[1].cpu(), wanted.cpu())
        for part, wanted in zip(images.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True)
    ]
    return 100 * float(torch.cat(cosines).mean())


def save(path: Path, checkpoint: dict) -> None:
    """Writes a whole checkpoint or leaves the old one: a stop while writing loses nothing."""
    temporary = path.with_suffix(".tmp")
    try:
        torch.save(checkpoint, temporary)
    except RuntimeError as error:  # torch's error for a full disk
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written; is the disk full? ({str(error).splitlines()[0]})") from None
    os.replace(temporary, path)


def load_last(path: Path, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A checkpoint to resume from. Raises ValueError if it is damaged, or of a run with other settings."""
    with open(path, "rb") as file:
        try:
            last = torch.load(file, weights_only=True, map_location=device)
            theirs = last["settings"]
        except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            raise ValueError(f"{path}: not a checkpoint of train.py, or damaged") from None
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{path}: its run has another {name}; give the value that it was begun with, or another folder"
            )
    return last


def report(rows: list[dict[str, Any]], measure: str, out: Path) -> None:
    """The log by epoch as OUT/log.csv, and its loss and the measure as OUT/curve.png."""
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
    right.plot(epochs, [row[measure] for row in rows], color="tab:blue", marker=".")
    right.set_ylabel(f"{measure} on held-out pictures, % (blue)")
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
    add("sources", type=Path, nargs="*", metavar="SOURCE", help="data sets to train on together")
    unlabelled = "folders or zips of pictures to learn from the teacher, whatever their folders; a tenth is held out"
    add("--unlabelled", type=Path, nargs="+", default=[], metavar="FOLDER", help=unlabelled)
    left_out = "classes not to learn from, for example 'object/*2'"
    add("--leave-out", nargs="+", default=[], metavar="PATTERN", help=left_out)
    add("--teacher", metavar="WEIGHTS", help="name or file of weights whose embeddings are to be learned")
    share = "weight of the classifier's loss beside the teacher's (default: 0, no classifier)"
    add("--label-weight", type=within(float, 0, 1e3), help=share)
    add(
        "--freeze", default="", metavar="LAYER", help="keep the layers up to this one, for example block2, as in --init"
    )
    add("--spec", choices=SPECS, default="alnet", help="which network (default: %(default)s)")
    add("--stem", type=within(int, 1, 1024), help="channels of its first convolution (default: the network's own)")
    add("--recipe", choices=("paper", "modern"), default="paper", help="see above (default: %(default)s)")
    sides = "side of the network's input in pixels; several to train at one after the other (default: 28)"
    add("--size", type=within(int, 8, 1024), nargs="+", default=[28], help=sides)
    mix = "draw the size of each batch from all of --size, so that each has as many pixels; the first is evaluated"
    add("--mix", action="store_true", help=mix)
    add(
        "--epochs", type=within(int, 1), nargs="+", default=[8], help="passes over the data at each --size (default: 8)"
    )
    add(
        "--load-size",
        type=within(int, 8, 1024),
        help="side at which pictures are kept in memory (default: last --size)",
    )
    add("--lr", type=within(float, 1e-12, 1e3), help=f"highest learning rate (default: 0.1; modern: {MODERN_LR})")
    add("--per-epoch", type=within(int, 2), help="pictures in an epoch, drawn anew for each (default: all)")
    add("--batch-size", type=within(int, 2), default=128, help="pictures per step (default: %(default)s)")
    shift = "random shift, in pixels of --load-size (default: none, as the paper)"
    add("--shift", type=within(int, 0, 64), default=0, help=shift)
    rotate = "largest random rotation, in degrees either way (default: none)"
    add("--rotate", type=within(float, 0, 180), default=0.0, help=rotate)
    stretch = "each side made longer or shorter by at most this share (default: none)"
    add("--stretch", type=within(float, 0, 0.9), default=0.0, help=stretch)
    crop = "random square of at least this share of the side (default: none)"
    add("--crop", type=within(float, 0.1, 1), default=1.0, help=crop)
    unscaled = "share of the batches of squares of the network's size, not scaled, where pictures are that large"
    add("--unscaled", type=within(float, 0, 1), default=0.0, help=unscaled)
    add("--flip", action="store_true", help="mirror half of the pictures")
    add("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: %(default)s)")
    add("--init", metavar="WEIGHTS", help="name or file of weights to start from, with a new classifier")
    devices = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    add("--device", choices=devices, default=devices[0], help="(default here: %(default)s)")
    threads = torch.get_num_threads()
    add("--threads", type=within(int, 1, 1024), default=threads, help="CPU threads (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile: a minute to start, then less time per step")
    add("--out", type=Path, help="folder to write to (default: runs/ and the names of the data)")
    add("--resume", action="store_true", help="continue from OUT/last.pt, to the end of --epochs")
    return parser


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if not args.sources and not args.unlabelled:
        raise ValueError("nothing to learn from: name a SOURCE, or --unlabelled with --teacher")
    if not args.teacher and (args.unlabelled or args.label_weight is not None or not args.sources):
        raise ValueError("--unlabelled and --label-weight need a --teacher")
    if len(args.epochs) != (1 if args.mix else len(args.size)):
        each = "one number for all" if args.mix else "they go together"
        raise ValueError(f"--size has {len(args.size)} numbers and --epochs {len(args.epochs)}: {each}")
    if args.freeze and not args.init:
        raise ValueError("--freeze needs --init: the weights that stay")
    if args.label_weight is None:
        args.label_weight = 0.0 if args.teacher else 1.0
    args.lr = args.lr or (MODERN_LR if args.recipe == "modern" else 0.1)
    args.load_size = args.load_size or (max(args.size) if args.mix else args.size[-1])
    args.out = args.out or Path("runs", "-".join(source.stem for source in [*args.sources, *args.unlabelled]))
    checkpoint = args.out / "last.pt"
    if checkpoint.exists() and not args.resume:
        raise ValueError(f"{checkpoint} exists: --resume continues that run, another --out begins a new one")

    training, held_out = (
        gather(args.sources, split, args.load_size, args.unlabelled, args.leave_out) for split in ("train", "test")
    )
    if training.classes != held_out.classes:
        some = ", ".join(sorted(set(training.classes) ^ set(held_out.classes))[:5])
        raise ValueError(f"training and test pictures are not of the same classes; in one of them only: {some}")
    if not (len(held_out.labels) if args.teacher else (held_out.labels != UNLABELLED).any()):
        raise ValueError("there is no held-out picture to measure the accuracy on")
    count = min(len(training.labels), args.per_epoch or len(training.labels))
    steps = count // args.batch_size
    if not steps:
        raise ValueError(f"--batch-size {args.batch_size} is more than the {count} training pictures")
    mean, std = mean_and_std(training.images)
    if 0 in std:
        raise ValueError("all training pictures have one and the same value in a colour channel")
    if args.init and args.freeze:  # the frozen layers must see the same input as before
        kept = weights.read(weights.locate(args.init)).preprocessing
        mean, std = list(kept.mean), list(kept.std)
    normalise = Normalise(mean, std, device)
    targets, compared = None, held_out.images
    if args.teacher:
        file = weights.locate(args.teacher)
        teacher = alnumpy.load(file, threads=args.threads)
        chosen = torch.randperm(len(held_out.labels), generator=torch.Generator().manual_seed(0))[:COMPARED]
        compared = held_out.images[chosen]
        found = [teaching.embeddings(teacher, x, args.out.parent, file.stem) for x in (training.images, compared)]
        targets, centre = found[0], found[0].float().mean(0)
    if device.type == "cuda":  # all data are kept on the GPU
        training = Data(training.images.to(device), training.labels.to(device), training.classes)
        if targets is not None:
            targets, centre = targets.to(device), centre.to(device)
            found[1] = found[1].to(device)
    trainer = Trainer(args, len(training.classes), steps * sum(args.epochs), device, len(centre) if args.teacher else 0)

    kept_names = (
        "spec",
        "stem",
        "recipe",
        "mix",
        "load_size",
        "lr",
        "batch_size",
        "per_epoch",
        "shift",
        "rotate",
        "stretch",
        "crop",
        "unscaled",
        "flip",
        "seed",
        "label_weight",
        "leave_out",
        "freeze",
    )
    settings = {f"--{name.replace('_', '-')}": getattr(args, name) for name in kept_names}
    settings |= {"--init": str(args.init), "--teacher": str(args.teacher)}
    settings |= {"data": [mean, std, len(training.labels), training.classes]}
    sizes = [size for size, epochs in zip(args.size, args.epochs, strict=False) for _ in range(epochs)]
    measure = "agreement" if args.teacher else "accuracy"
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def wanted(index: Tensor) -> Tensor | None:
        return None if targets is None else targets[index].float() - centre

    def whole(images: Tensor) -> Tensor:
        return trainer.seen(normalise(resized(images.to(device), args.size[0] if args.mix else size)))

    if args.resume:
        last = load_last(checkpoint, settings, device)
        rows = last["log"]
        done = [row["size"] for row in rows][: len(sizes)]
        if done != sizes[: len(done)]:
            raise ValueError(f"{checkpoint}: its run was at other sizes; --size and --epochs must begin as its own did")
        for name, part in trainer.parts().items():
            part.load_state_dict(last[name])
    elif targets is not None:
        size = args.size[0]
        fitted = torch.randperm(len(targets), generator=torch.Generator().manual_seed(args.seed))[:FITTED]
        trainer.fit((whole(training.images[i]), wanted(i)) for i in fitted.split(EVALUATION_BATCH))

    for epoch, size in list(enumerate(sizes, 1))[len(rows) :]:
        generator = torch.Generator().manual_seed(args.seed * 1000 + epoch)  # the same order after a resume
        begin, lr = time.monotonic(), trainer.schedulers[0].get_last_lr()[0]
        total = torch.zeros((), device=device)
        trainer.model.train()
        order = torch.randperm(len(training.labels), generator=generator).to(device)
        batches = order[: steps * args.batch_size].split(args.batch_size)

        def inputs(index: Tensor, size: int = size, generator: torch.Generator = generator) -> Tensor:
            if args.mix:
                shares = torch.tensor([1.0 / side**2 for side in args.size])
                size = args.size[int(torch.multinomial(shares, 1, generator=generator))]
            augment = Augmentation(size, args.shift, args.rotate, args.stretch, args.crop, args.flip, args.unscaled)
            return trainer.seen(normalise(augment(training.images[index], generator)))

        for index in tqdm(batches, desc=f"epoch {epoch}", disable=None):
            total += trainer.step(inputs(index), training.labels[index], wanted(index))
        loss = float(total) / steps
        if not math.isfinite(loss):
            raise ValueError(f"the loss is not finite in epoch {epoch}: a lower --lr may help")
        model = trainer.network(inputs(index) for index in batches[:STATISTICS_BATCHES])
        if args.teacher:
            reached = agreement(model, compared, found[1].float() - centre, whole)
        else:
            reached = accuracy(model, held_out, whole)
        print(f"epoch {epoch}: {size} pixels, lr {lr:g}, loss {loss:.4f}, {measure} {reached:.2f}%", flush=True)
        if not rows or reached > max(row[measure] for row in rows):
            best = {
                "state_dict": {k: v for k, v in model.state_dict().items() if not k.startswith("teacher.")},
                "epoch": epoch,
                measure: reached,
                "spec": trainer.spec.to_dict(),
                "preprocessing": {"size": size, "mean": mean, "std": std},
                "classes": training.classes,
            }
            save(args.out / "best.pt", best)
        seconds = round(time.monotonic() - begin)
        rows.append({"epoch": epoch, "size": size, "lr": lr, "train_loss": loss, measure: reached, "seconds": seconds})
        state = {name: part.state_dict() for name, part in trainer.parts().items()}
        save(checkpoint, state | {"settings": settings, "log": rows})
        report(rows, measure, args.out)


def told(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning as one line."""
    print(f"train.py: {message}", file=sys.stderr)


def main() -> None:
    args = parser().parse_args()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", LeftOut)
            warnings.showwarning = told
            train(args)
    except (OSError, ValueError, EOFError, AlnumpyError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; --resume continues after the last complete epoch, if there was one")


if __name__ == "__main__":
    main()
