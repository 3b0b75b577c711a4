"""ALNet as a torch module, built from the same spec object as everything else: for training, conversion and parity."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alnumpy.spec import Cbam, Conv, Shuffle, Spec, layers


class ConvBN(nn.Module):
    """Convolution, batch norm, activation: one ``spec.Conv``."""

    def __init__(self, layer: Conv, eps: float):
        super().__init__()
        self.conv = nn.Conv2d(
            layer.cin, layer.cout, layer.kernel, layer.stride, layer.kernel // 2, groups=layer.groups, bias=layer.bias
        )
        self.bn = nn.BatchNorm2d(layer.cout, eps=eps)
        self.activation = {"relu": nn.ReLU(inplace=True), "relu6": nn.ReLU6(inplace=True), "": nn.Identity()}[
            layer.activation
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))


class ChannelShuffle(nn.Module):
    """``torch.nn.ChannelShuffle`` that keeps the channels-last memory format, in which training on a CPU is fastest."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).unflatten(3, (self.groups, -1))  # (n, h, w, g, c/g)
        return x.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


class CBAM(nn.Module):
    """Convolutional block attention: one ``spec.Cbam``."""

    def __init__(self, layer: Cbam, eps: float):
        super().__init__()
        self.mean_first = layer.layout.mean_first
        self.fc1 = nn.Linear(layer.channels, layer.hidden, bias=layer.layout.mlp_bias)
        self.fc2 = nn.Linear(layer.hidden, layer.channels, bias=layer.layout.mlp_bias)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=eps) if layer.layout.spatial_bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.fc2(F.relu(self.fc1(x.mean((2, 3)))))
        highest = self.fc2(F.relu(self.fc1(x.amax((2, 3)))))
        x = x * torch.sigmoid(mean + highest)[:, :, None, None]
        maps = [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
        pooled = torch.cat(maps if self.mean_first else maps[::-1], 1)
        return x * torch.sigmoid(self.bn(self.spatial(pooled)))


class ALNet(nn.Module):
    """The network of ``spec``; with ``classes`` a linear head for training, without it (N, 3, H, W) -> embeddings.

    The state dict's names are those of ``spec.parameters(spec)``, plus ``head.*`` and ``*.num_batches_tracked``.
    """

    def __init__(self, spec: Spec, classes: int = 0):
        super().__init__()
        self.spec = spec
        modules: dict[str, nn.Module] = {}
        for layer in layers(spec):
            if isinstance(layer, Conv):
                modules[layer.name] = ConvBN(layer, spec.bn_eps)
            elif isinstance(layer, Shuffle):
                modules[layer.name] = ChannelShuffle(layer.groups)
            else:
                modules[layer.name] = CBAM(layer, spec.bn_eps)
        self.order = list(modules)
        for path, module in modules.items():  # "block1.expand" becomes self.block1.expand, so that names are the spec's
            parent: nn.Module = self
            *folders, leaf = path.split(".")
            for folder in folders:
                if not hasattr(parent, folder):
                    parent.add_module(folder, nn.Module())
                parent = getattr(parent, folder)
            parent.add_module(leaf, module)
        self.head = nn.Linear(spec.embedding, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def from_arrays(spec: Spec, params: dict[str, np.ndarray], classes: int = 0) -> ALNet:
    """The torch module with the arrays of a weights file, in evaluation mode; a head, if any, has initial weights."""
    model = ALNet(spec, classes)
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
