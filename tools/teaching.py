"""A better network as the teacher: its embeddings of pictures, and the layers of a student that stay frozen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from alnumpy import kernels
from alnumpy.arena import Buffer, Steps, round_up
from alnumpy.embedder import Embedder
from alnumpy.kernels.abi import NONE, PACK, Op
from alnumpy.layers import IMAGE, Layer, evaluate
from alnumpy.lower import Map, Place, Program, Walk

BATCH = 500


def embeddings(teacher: Embedder, images: Tensor, folder: Path, name: str) -> Tensor:
    """The teacher's embeddings of uint8 (N, 3, H, W), float16 (N, E), of length 1: computed once.

    They are kept in ``folder``, in a file that has the teacher's name and a digest of its weights and of the pictures.
    """
    digest = hashlib.sha256(teacher.identity(True, "").encode())
    digest.update(np.ascontiguousarray(images.numpy()).data)
    path = folder / f"{name}-{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        found = np.empty((len(images), teacher.spec.embedding), np.float16)
        for start in tqdm(range(0, len(images), BATCH), f"embeddings of {name}", disable=None):
            batch = images[start : start + BATCH].permute(0, 2, 3, 1).numpy()
            made = teacher.embed(list(batch))
            found[start : start + BATCH] = made / np.linalg.norm(made, axis=1, keepdims=True).clip(1e-12)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.save(file, found)
        os.replace(temporary, path)
    found = np.load(path)
    if found.shape != (len(images), teacher.spec.embedding):
        raise ValueError(f"{path}: not the teacher's embeddings of these pictures; remove the file")
    return torch.from_numpy(found)


def least_squares(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (M, E) and bias (M,) of the linear layer that best maps ``given`` (N, E) to ``wanted`` (N, M)."""
    x, y = given.double(), wanted.double()
    centre, middle = x.mean(0), y.mean(0)
    x, y = x - centre, y - middle
    gram = x.mT @ x
    gram += torch.eye(len(gram)) * (gram.trace() / len(gram) * 1e-2)  # few pictures must not give large weights
    weight = torch.linalg.solve(gram, x.mT @ y).mT
    return weight.float(), (middle - weight @ centre).float()


class WholeMap:
    """A unit whose result is a whole channels-last map, not the mean over its pixels."""

    def __init__(self, source: Place) -> None:
        self.place = source

    def emit(self, steps: Steps, x: Map) -> Map:
        floats = x.size[0] * x.size[1] * self.place.width
        width = round_up(floats, PACK)
        steps.add(
            Op.EMBEDDING, x=x.buffer, height=1, width=1, channels=width, size=floats,
            channel=NONE, spatial=NONE, y=Buffer(width),
        )  # fmt: skip
        return x


class Front:
    """The first layers of a network, which training does not change: alnumpy's compiled kernels compute them.

    They take a tenth of the time that torch takes, since they keep nothing for a backward pass.
    """

    def __init__(self, layers: Sequence[Layer], params: dict[str, np.ndarray]):
        walk, rest = Walk(layers, params), list(layers)
        while rest:
            done = walk.block(rest) or walk.layer(rest)
            if not done:
                raise ValueError(f"no compiled kernel computes {rest[0].name}, so that it cannot be frozen")
            del rest[:done]
        name = layers[-1].name
        place = walk.channels_last(name)
        if not place.in_order:
            place = walk.moved(name)
        walk.add(WholeMap(place), (name,), "map")
        self.layers, self.channels, self.width = layers, len(place.channels), place.width
        self.program = Program(0, walk.pack.weights.whole(), walk.pack.tables.whole(), walk.nodes)

    def __call__(self, images: Tensor, threads: int) -> Tensor:
        """float32 (N, 3, H, W) -> the output of the last layer, (N, C, H', W') in channels-last memory."""
        size = evaluate(self.layers, (images.shape[2], images.shape[3]), lambda layer, size, *_: layer.size(size))
        program = replace(self.program, channels=size[0] * size[1] * self.width)
        backend = "compiled" if kernels.packaged()[0].path else "numba"
        maps = kernels.run(program, np.ascontiguousarray(images.numpy()), threads, backend)
        return torch.from_numpy(maps).view(len(maps), *size, self.width)[..., : self.channels].permute(0, 3, 1, 2)


def split(layers: tuple[Layer, ...], last: str) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """The layers up to the last one of ``last``, which is a layer's name or its first part, and those after them.

    The others read the picture where they read the last of the first. Raises ValueError if they cannot be split.
    """
    ends = [i for i, layer in enumerate(layers, 1) if layer.name == last or layer.name.startswith(f"{last}.")]
    if not ends or ends[-1] == len(layers):
        names = dict.fromkeys(layer.name.partition(".")[0] for layer in layers)
        raise ValueError(f"--freeze {last}: not one of the layers that others follow; the layers: {', '.join(names)}")
    front, back = layers[: ends[-1]], layers[ends[-1] :]
    kept = {layer.name for layer in front[:-1]} | {IMAGE}
    if any(name in kept for layer in back for name in layer.inputs):
        raise ValueError(f"--freeze {last}: later layers read more than its result")
    renamed = {front[-1].name: IMAGE}

    def read(layer: Layer) -> Layer:
        return replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs))

    return front, tuple(map(read, back))
