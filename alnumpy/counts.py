"""What networks cost: parameters, multiply-adds, and FLOPs by the two rules of ALNet's paper."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from .layers import Layer, Size, evaluate


class Cost(NamedTuple):
    """The cost of a layer, for one picture."""

    layer: Layer
    size: Size  # the size of its output
    parameters: int  # trainable ones; running statistics do not count
    flops: int  # as the paper's authors count them in their public code, see ``flops``
    flops_eq5: int  # by the paper's equation (5)
    multiply_adds: int


def parameters(layer: Layer) -> int:
    """Trainable parameters of a layer: running statistics do not count."""
    return sum(prod(shape) for name, shape in layer.shapes().items() if "running_" not in name)


def flops(layer: Layer, size: Size) -> int:
    """FLOPs of a layer for an input of (H, W), as the paper's authors count them in their public code.

    Convolution: output elements x (Cin/g x K x K + bias). Batch norm: 4 x elements. Adaptive average pool: (H x W + 1)
    x C. Average pool of 3x3: 4 x output elements. Each of the two passes through CBAM's shared MLP counts. Activations,
    max pools, additions and multiplications by attention: 0.
    """
    products = sum(outputs * (inputs + bias) for outputs, inputs, bias in layer.products(size))
    return products + layer.other_flops(size)


def flops_eq5(layer: Layer, size: Size) -> int:
    """FLOPs of a layer by the paper's equation (5), 2HW(Cin K^2 + 1)Cout, with Cin/g as Cin, H and W of the output."""
    return sum(2 * outputs * (inputs + 1) for outputs, inputs, _ in layer.products(size))


def costs(layers: Sequence[Layer], size: Size) -> list[Cost]:
    """The cost of each layer for a picture of (H, W)."""
    found = list[Cost]()

    def count(layer: Layer, before: Size, *_: Size) -> Size:
        rules = flops(layer, before), flops_eq5(layer, before), layer.multiply_adds(before)
        found.append(Cost(layer, layer.size(before), parameters(layer), *rules))
        return found[-1].size

    evaluate(layers, size, count)
    return found


class Total(NamedTuple):
    """The sums of a network's costs."""

    parameters: int
    flops: int
    flops_eq5: int
    multiply_adds: int


def total(layers: Sequence[Layer], size: Size = (32, 32)) -> Total:
    """The cost of the embedding network, without a classifier, for a picture of (H, W)."""
    return Total(*map(sum, zip(*(cost[2:] for cost in costs(layers, size)), strict=True)))


def bottleneck_cost(c1: int, c2: int, t: int, size1: Size, size2: Size, groups: int = 1) -> tuple[int, int]:
    """(parameters, FLOPs) of a block by the paper's Table 1: groups 1 is MobileNetV2's bottleneck, else an ALBlock.

    ``size1`` is (H1, W1) before the depthwise convolution, ``size2`` (H2, W2) after it. Batch norm and CBAM are left
    out, as the table leaves them out. ``c1`` and ``c2`` must be divisible by ``groups``.
    """
    wide = t * c1
    convs = ((c1 // groups * wide, prod(size1)), (9 * wide, prod(size2)), (wide // groups * c2, prod(size2)))
    return sum(p for p, _ in convs), sum(p * area for p, area in convs)


def alblock_ratios(c1: int, c2: int, size1: Size, size2: Size, groups: int = 8) -> tuple[float, float]:
    """The paper's equations (1) and (2): parameters and FLOPs of an ALBlock over those of MobileNetV2's bottleneck."""
    area1, area2 = prod(size1), prod(size2)
    r1 = ((c1 + c2) / groups + 9) / (c1 + c2 + 9)
    r2 = (c1 * area1 / groups + (9 + c2 / groups) * area2) / (c1 * area1 + (9 + c2) * area2)
    return r1, r2
