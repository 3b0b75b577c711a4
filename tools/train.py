#!/usr/bin/env python3
"""Train ALNet or an ablation as a classifier on MNIST by the paper's recipe (section 4.3), keeping the best accuracy.

    python tools/train.py FOLDER_WITH_THE_FOUR_IDX_FILES --epochs 8 --out runs/mnist

Writes OUT/best.pt (the weights with the highest test accuracy), OUT/last.pt (to go on from with --resume) and
OUT/log.csv. Needs the extra: pip install 'alnumpy[train]'.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from alnet_torch import ALNet
from alnumpy.spec import SPECS
from datasets import mnist

# Mean and standard deviation of the training pixels of MNIST, in 0..1, the same for the three equal channels.
MNIST_PREPROCESSING = {"size": 28, "mean": [0.1307] * 3, "std": [0.3081] * 3}


def to_input(images: Tensor) -> Tensor:
    """Grey uint8 (N, H, W) -> normalised float32 (N, 3, H, W), the grey channel repeated, channels last in memory."""
    mean, std = MNIST_PREPROCESSING["mean"][0], MNIST_PREPROCESSING["std"][0]  # type: ignore[index]
    x = (images[:, None].float() / 255 - mean) / std
    return x.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)


def random_shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture of (N, H, W) moved by up to ``most`` pixels in both directions, zeros moving in."""
    n, h, w = images.shape
    padded = F.pad(images, (most, most, most, most))
    top, left = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    rows, cols = top + torch.arange(h), left + torch.arange(w)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]]


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Share of the pictures whose highest score is their label, in percent."""
    model.eval()
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = sum(int((model(to_input(x)).argmax(1) == y).sum()) for x, y in batches)
    return 100 * right / len(images)


def save(path: Path, checkpoint: dict) -> None:
    """Writes a whole checkpoint or leaves the old one: a stop while writing loses nothing."""
    torch.save(checkpoint, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the four MNIST idx files, gzipped or not")
    parser.add_argument("--spec", choices=SPECS, default="alnet", help="which network (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.1, help="initial learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures a step (default: %(default)s)")
    parser.add_argument(
        "--shift", type=int, default=0, help="random shift in pixels (default: %(default)s, as the paper)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mnist"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    try:
        train_images, train_labels = (torch.from_numpy(np.array(a)) for a in mnist(args.data, "train"))
        test_images, test_labels = (torch.from_numpy(np.array(a)) for a in mnist(args.data, "test"))
    except (OSError, ValueError, EOFError) as error:
        sys.exit(f"train.py: {error}")

    torch.manual_seed(args.seed)
    spec = SPECS[args.spec]
    model = ALNet(spec, classes=int(train_labels.max()) + 1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
    # The paper lowers the rate in steps without naming them: ten times at a half and at three quarters of the epochs.
    milestones = [args.epochs // 2, args.epochs * 3 // 4]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
    first, best = 0, 0.0
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        try:
            last = torch.load(args.out / "last.pt", weights_only=True)
        except OSError as error:
            sys.exit(f"train.py: nothing to resume: {error}")
        model.load_state_dict(last["state_dict"])
        optimizer.load_state_dict(last["optimizer"])
        scheduler.load_state_dict(last["scheduler"])
        first, best = last["epoch"], last["best_accuracy"]

    with open(args.out / "log.csv", "a" if args.resume else "w", newline="") as log:
        rows = csv.writer(log)
        if not args.resume:
            rows.writerow(["epoch", "lr", "train_loss", "test_accuracy"])
        for epoch in range(first + 1, args.epochs + 1):
            generator = torch.Generator().manual_seed(args.seed * 1000 + epoch)  # the same order after a resume
            lr, losses = scheduler.get_last_lr()[0], []
            model.train()
            steps = torch.randperm(len(train_images), generator=generator).split(args.batch_size)
            for index in tqdm(steps, desc=f"epoch {epoch}", disable=None):
                images = train_images[index]
                if args.shift:
                    images = random_shift(images, args.shift, generator)
                loss = F.cross_entropy(model(to_input(images)), train_labels[index].long())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            scheduler.step()
            reached = accuracy(model, test_images, test_labels, args.batch_size)
            rows.writerow([epoch, f"{lr:g}", f"{np.mean(losses):.4f}", f"{reached:.2f}"])
            log.flush()
            print(f"epoch {epoch}: lr {lr:g}, loss {np.mean(losses):.4f}, test accuracy {reached:.2f}%", flush=True)
            weights = {
                "state_dict": model.state_dict(),
                "epoch": epoch,
                "accuracy": reached,
                "spec": spec.to_dict(),
                "preprocessing": MNIST_PREPROCESSING,
            }
            if reached > best:
                best = reached
                save(args.out / "best.pt", weights)
            resume = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "best_accuracy": best}
            save(args.out / "last.pt", weights | resume)


if __name__ == "__main__":
    main()
