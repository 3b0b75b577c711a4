"""Any network as a torch module, from the same layers as everything else: to train, to convert, and for parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alnumpy.layers import Add, Cbam, Concat, Conv, Layer, Mean, Pool, Shuffle, Slice, SqueezeExcite, evaluate
from alnumpy.networks import Spec

# In place if a module is the only reader of its input.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
}


class ConvBN(nn.Module):
    """Convolution, batch norm, activation: one ``layers.Conv``."""

    def __init__(self, layer: Conv):
        super().__init__()
        self.pads = layer.pads if layer.padding == "same" else None  # these depend on the size of the input
        padding = 0 if self.pads else layer.kernel // 2
        self.conv = nn.Conv2d(
            layer.cin, layer.channels, layer.kernel, layer.stride, padding, groups=layer.groups, bias=layer.bias
        )
        self.bn = nn.BatchNorm2d(layer.channels, eps=layer.eps) if layer.batch_norm else nn.Identity()
        self.activation = ACTIVATIONS[layer.activation]()

    def forward(self, x: Tensor) -> Tensor:
        if self.pads:
            rows, columns = self.pads((x.shape[2], x.shape[3]))
            x = F.pad(x, (*columns, *rows))
        return self.activation(self.bn(self.conv(x)))


class ChannelShuffle(nn.Module):
    """``torch.nn.ChannelShuffle`` that keeps the channels-last memory format, in which training on a CPU is fastest."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).unflatten(3, (self.groups, -1))  # (n, h, w, g, c/g)
        return x.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


class SqueezeAndExcite(nn.Module):
    """One ``layers.SqueezeExcite``."""

    def __init__(self, layer: SqueezeExcite):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(layer.channels, layer.hidden), nn.Linear(layer.hidden, layer.channels)
        self.activation, self.gate = ACTIVATIONS[layer.activation](), ACTIVATIONS[layer.gate]()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.activation(self.fc1(x.mean((2, 3))))))[:, :, None, None]


class CBAM(nn.Module):
    """Convolutional block attention: one ``layers.Cbam``."""

    def __init__(self, layer: Cbam):
        super().__init__()
        self.mean_first = layer.layout.mean_first
        self.fc1 = nn.Linear(layer.channels, layer.hidden, bias=layer.layout.mlp_bias)
        self.fc2 = nn.Linear(layer.hidden, layer.channels, bias=layer.layout.mlp_bias)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=layer.eps) if layer.layout.spatial_bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.fc2(F.relu(self.fc1(x.mean((2, 3)))))
        highest = self.fc2(F.relu(self.fc1(x.amax((2, 3)))))
        x = x * torch.sigmoid(mean + highest)[:, :, None, None]
        maps = [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
        pooled = torch.cat(maps if self.mean_first else maps[::-1], 1)
        return x * torch.sigmoid(self.bn(self.spatial(pooled)))


class Apply(nn.Module):
    """A layer without arrays."""

    def __init__(self, function: Callable[..., Tensor], activation: str = ""):
        super().__init__()
        self.function, self.activation = function, ACTIVATIONS[activation]()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.activation(self.function(*inputs))


def module(layer: Layer) -> nn.Module:
    """One layer of any network."""
    match layer:
        case Conv():
            return ConvBN(layer)
        case Shuffle():
            return ChannelShuffle(layer.groups)
        case Slice():
            return Apply(lambda x: x[:, layer.indices()])
        case Add():
            return Apply(torch.add, layer.activation)
        case Concat():
            return Apply(lambda *maps: torch.cat(maps, 1), layer.activation)
        case Pool():
            return nn.MaxPool2d(3, 2, 1) if layer.kind == "max" else nn.AvgPool2d(3, 2, 1)
        case Mean():
            return nn.AdaptiveAvgPool2d(1)
        case SqueezeExcite():
            return SqueezeAndExcite(layer)
        case Cbam():
            return CBAM(layer)
        case _:
            raise TypeError(f"{layer} is not a layer")


class Network(nn.Module):
    """The network of ``spec``; with ``classes`` a linear head for training, without it (N, 3, H, W) -> embeddings.

    The state dict's names are those of ``layers.parameters``, plus ``head.*`` and ``*.num_batches_tracked``.
    """

    def __init__(self, spec: Spec, classes: int = 0):
        super().__init__()
        self.spec, self.layers = spec, spec.layers()
        for layer in self.layers:  # "block1.expand" becomes self.block1.expand, so that names are the layers'
            parent: nn.Module = self
            *folders, leaf = layer.name.split(".")
            for folder in folders:
                if not hasattr(parent, folder):
                    parent.add_module(folder, nn.Module())
                parent = getattr(parent, folder)
            parent.add_module(leaf, module(layer))
        self.head = nn.Linear(spec.embedding, classes) if classes else nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        y = evaluate(self.layers, x, lambda layer, *inputs: self.get_submodule(layer.name)(*inputs))
        return y.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def from_arrays(spec: Spec, params: Mapping[str, np.ndarray], classes: int = 0) -> Network:
    """The torch module with the arrays of a weights file, in evaluation mode; a head, if any, has initial weights."""
    model = Network(spec, classes)
    state = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in params.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.startswith("head.") and not name.endswith("num_batches_tracked")]
    if wrong or unexpected:
        raise ValueError(f"the arrays do not fit the spec: missing {wrong}, unexpected {unexpected}")
    return model.eval()


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """The state dict as float32 arrays, without the head and the batch counters."""
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32)
        for name, tensor in model.state_dict().items()
        if not name.startswith("head.") and not name.endswith("num_batches_tracked")
    }
