#!/usr/bin/env python3
"""Train ALNet or an ablation as a classifier, keeping the weights with the best accuracy.

    python tools/train.py mnist/ --epochs 8 --shift 2 --out runs/mnist
    python tools/train.py objects64.zip scenes64.zip --recipe modern --size 64 --crop 0.5 --flip --out runs/photo

A source is the folder of MNIST's four idx files or of SVHN's two .mat files, or a folder or a zip of class folders
below train/ and test/ (or val/). Several are trained on together, each with its own classes. Recipe "paper" is section
4.3: SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4, the rate lowered in steps. Recipe "modern" is SGD with a
one-cycle rate, label smoothing, an exponential moving average of the weights and, on a GPU, mixed precision.

Writes OUT/best.pt (the weights with the highest accuracy), OUT/last.pt (to go on from with --resume), OUT/log.csv and
OUT/curve.png. Needs the extra: pip install 'alnumpy[train]'.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, update_bn
from tqdm import tqdm

from alnet_torch import ALNet
from alnumpy import weights
from alnumpy.errors import AlnumpyError
from alnumpy.spec import SPECS
from datasets import files, load_class_folders, mnist, svhn

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
    if split == "test" and not any(name.startswith("test/") for name in files(source)):
        split = "val"
    return load_class_folders(source, split, size)


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
    crop: float  # least side of the random square, as a share of the picture's
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (N, 3, S, S) -> float32 (N, 3, size, size) in 0..255."""
        n, stored = len(images), images.shape[2]

        def draw(most: int) -> Tensor:
            return torch.randint(0, most + 1, (n,), generator=generator).to(images.device)

        if self.shift:
            images = cut(F.pad(images, [self.shift] * 4), draw(2 * self.shift), draw(2 * self.shift), stored)
        if self.crop < 1:
            side = int(torch.randint(round(self.crop * stored), stored + 1, (), generator=generator))
            images = cut(images, draw(stored - side), draw(stored - side), side)
        if self.flip:
            images = torch.where(draw(1).bool()[:, None, None, None], images.flip(3), images)
        return resized(images, self.size)


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, S, S) -> float32 (N, 3, size, size) in 0..255, as Pillow's bilinear filter does it on the device."""
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


class Trainer:
    """A network, its optimiser and its schedule: all that a checkpoint to resume from has to hold."""

    def __init__(self, args: argparse.Namespace, classes: int, steps: int, device: torch.device):
        self.device, self.modern = device, args.recipe == "modern"
        self.spec = SPECS[args.spec]
        model = ALNet(self.spec, classes)
        if args.init:
            start = weights.read(args.init)
            if start.spec != self.spec:
                raise ValueError(f"{args.init}: its network is not {args.spec}")
            arrays = {name: torch.from_numpy(np.array(array)) for name, array in start.parameters.items()}
            model.load_state_dict(arrays, strict=False)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        decayed = [p for p in self.model.parameters() if p.ndim > 1 or not self.modern]
        others = [p for p in self.model.parameters() if p.ndim <= 1 and self.modern]  # of batch norm, and biases
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, args.lr, momentum=0.9, weight_decay=1e-4, nesterov=self.modern)
        self.scheduler: torch.optim.lr_scheduler.LRScheduler
        if self.modern:
            total = max(steps * args.epochs, 2)
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, args.lr, total_steps=total, pct_start=0.1, cycle_momentum=False
            )
        else:
            # The paper does not name the steps: ten times at a half and at three quarters of the epochs.
            milestones = [args.epochs * steps // 2, args.epochs * steps * 3 // 4]
            self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones, 0.1)
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average) if self.modern else None
        self.run = torch.compile(self.model) if args.compile else self.model
        self.smoothing = 0.1 if self.modern else 0.0

    def parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return parts | ({"average": self.average} if self.average else {})

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        mixed = self.modern and self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
            loss = F.cross_entropy(self.run(x), labels, label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
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
    torch.save(checkpoint, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def plot(log: Path, curve: Path) -> None:
    """The log's loss and accuracy by epoch, as a PNG."""
    from matplotlib.figure import Figure

    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot(epochs, [float(row["train_loss"]) for row in rows], color="tab:orange", marker=".")
    left.set(xlabel="epoch", ylabel="training loss (orange)")
    right = left.twinx()
    right.plot(epochs, [float(row["accuracy"]) for row in rows], color="tab:blue", marker=".")
    right.set_ylabel("accuracy on held-out pictures, % (blue)")
    figure.savefig(curve, dpi=120)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    add = parser.add_argument
    add("sources", type=Path, nargs="+", metavar="SOURCE", help="data sets to train on together")
    add("--spec", choices=SPECS, default="alnet", help="which network (default: %(default)s)")
    add("--recipe", choices=("paper", "modern"), default="paper", help="see above (default: %(default)s)")
    add("--size", type=int, default=28, help="side of the network's input in pixels (default: %(default)s)")
    add("--load-size", type=int, help="side at which pictures are kept in memory (default: --size)")
    add("--epochs", type=int, default=8, help="passes over the data (default: %(default)s)")
    add("--lr", type=float, default=0.1, help="initial, or with modern highest, learning rate (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="pictures a step (default: %(default)s)")
    add("--shift", type=int, default=0, help="random shift, in pixels of --load-size (default: none, as the paper)")
    add("--crop", type=float, default=1.0, help="random square of at least this share of the side (default: none)")
    add("--flip", action="store_true", help="mirror half of the pictures")
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    add("--init", type=Path, metavar="WEIGHTS.h5", help="start from these weights, with a new classifier")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default here: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile: a minute to start, then a third less time a step")
    add("--out", type=Path, default=Path("runs/mnist"), help="folder to write to (default: %(default)s)")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    return parser


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    stored = args.load_size or args.size
    training, held_out = gather(args.sources, "train", stored), gather(args.sources, "test", stored)
    if training.classes != held_out.classes:
        raise ValueError(f"{args.sources[0]}: training and test pictures are not of the same classes")
    mean, std = mean_and_std(training.images)
    normalise = Normalise(mean, std, device)
    augment = Augmentation(args.size, args.shift, args.crop, args.flip)
    steps = len(training.labels) // args.batch_size
    trainer = Trainer(args, len(training.classes), steps, device)

    args.out.mkdir(parents=True, exist_ok=True)
    first, best = 0, 0.0
    if args.resume:
        last = torch.load(args.out / "last.pt", weights_only=True, map_location=device)
        for name, part in trainer.parts().items():
            part.load_state_dict(last[name])
        first, best = last["epoch"], last["best_accuracy"]

    log = args.out / "log.csv"
    if not args.resume:
        log.write_text("epoch,lr,train_loss,accuracy,seconds\n")
    for epoch in range(first + 1, args.epochs + 1):
        generator = torch.Generator().manual_seed(args.seed * 1000 + epoch)  # the same order after a resume
        begin, lr = time.monotonic(), trainer.scheduler.get_last_lr()[0]
        total = torch.zeros((), device=device)
        trainer.model.train()
        order = torch.randperm(len(training.labels), generator=generator)
        batches = order[: steps * args.batch_size].split(args.batch_size)

        def inputs(index: Tensor, generator: torch.Generator = generator) -> Tensor:
            return normalise(augment(training.images[index].to(device), generator))

        for index in tqdm(batches, desc=f"epoch {epoch}", disable=None):
            total += trainer.step(inputs(index), training.labels[index].to(device))
        loss = float(total) / steps
        model = trainer.network(inputs(index) for index in batches[:STATISTICS_BATCHES])
        reached = accuracy(model, held_out, args.size, normalise, device)
        with open(log, "a", newline="") as file:
            row = [epoch, f"{lr:g}", f"{loss:.4f}", f"{reached:.2f}", round(time.monotonic() - begin)]
            csv.writer(file).writerow(row)
        print(f"epoch {epoch}: lr {lr:g}, loss {loss:.4f}, accuracy {reached:.2f}%", flush=True)
        if reached > best:
            best = reached
            checkpoint = {
                "state_dict": model.state_dict(),
                "epoch": epoch,
                "accuracy": reached,
                "spec": trainer.spec.to_dict(),
                "preprocessing": {"size": args.size, "mean": mean, "std": std},
                "classes": training.classes,
            }
            save(args.out / "best.pt", checkpoint)
        state = {name: part.state_dict() for name, part in trainer.parts().items()}
        save(args.out / "last.pt", state | {"epoch": epoch, "best_accuracy": best})
        plot(log, args.out / "curve.png")


def main() -> None:
    args = parser().parse_args()
    try:
        train(args)
    except (OSError, ValueError, EOFError, AlnumpyError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; --resume goes on after the last whole epoch")


if __name__ == "__main__":
    main()
