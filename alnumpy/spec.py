"""ALNet as data: the layer table, the presets, and what follows from them (shapes, parameters, FLOPs).

Source: Zhang, Bai, Kpalma, "OMCBIR: Offline mobile content-based image retrieval with lightweight CNN optimization",
Displays 76 (2023), sections 3.2 to 3.4. The paper prints no layer table; the one here reproduces its parameter counts
(Tables 5 to 7) and its FLOPs at 32x32 (Table 3).

Everything else in alnumpy (the NumPy reference, the torch module, the weights file, the converter) is one loop over
``layers(spec)``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from .errors import SpecError

MAX_CHANNELS = (
    8192  # per layer, expansion included: far above ALNet's 1280, far below what would exhaust a small device
)
MAX_BLOCKS = 64


class CbamLayout(NamedTuple):
    """How a public CBAM implementation differs from the others."""

    mean_first: bool  # the spatial convolution sees [mean, max]; otherwise [max, mean]
    mlp_bias: bool  # the shared MLP has biases (Linear layers), or none (1x1 convolutions)
    spatial_bn: bool  # a batch norm of one channel follows the spatial convolution


# The three layouts in circulation. The order of the first two cannot be seen in a checkpoint: it must be known.
CBAM_LAYOUTS = {
    "mean-max": CbamLayout(mean_first=True, mlp_bias=False, spatial_bn=False),
    "max-mean": CbamLayout(mean_first=False, mlp_bias=False, spatial_bn=False),
    "max-mean-bias-bn": CbamLayout(mean_first=False, mlp_bias=True, spatial_bn=True),
}


class Block(NamedTuple):
    """One ALBlock: expansion t, output channels c, stride s of its depthwise convolution."""

    t: int
    c: int
    s: int


@dataclass(frozen=True)
class Spec:
    """A network of the ALNet family. The defaults are ALNet; raises SpecError where the fields do not fit together."""

    name: str = "alnet"
    stem: int = 32
    stem_bias: bool = True
    blocks: tuple[Block, ...] = (
        Block(1, 16, 1),
        Block(6, 24, 2),
        Block(6, 32, 2),
        Block(6, 64, 2),
        Block(6, 96, 1),
        Block(6, 160, 2),
        Block(6, 320, 1),
    )
    embedding: int = 1280
    groups: int = 8
    shuffle: bool = True
    cbam: str = "mean-max"  # a key of CBAM_LAYOUTS, or "" for none
    reduction: int = 16
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "blocks", tuple(Block(*block) for block in self.blocks))
        except TypeError as error:
            raise SpecError(f"spec: blocks must be a list of (t, c, s) rows: {error}") from None
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 64 or not self.name.isprintable():
            raise SpecError("spec: name must be a printable text of 1 to 64 characters")
        if self.cbam not in ("", *CBAM_LAYOUTS):
            raise SpecError(f"spec: cbam must be '' or one of {', '.join(CBAM_LAYOUTS)}, not {self.cbam!r}")
        for field in ("stem_bias", "shuffle"):
            if not isinstance(getattr(self, field), bool):
                raise SpecError(f"spec: {field} must be true or false")
        if not isinstance(self.bn_eps, float) or not 0 < self.bn_eps <= 0.1:
            raise SpecError(f"spec: bn_eps must be a number above 0 and at most 0.1, not {self.bn_eps!r}")
        if len(self.blocks) > MAX_BLOCKS:
            raise SpecError(f"spec: {len(self.blocks)} blocks, at most {MAX_BLOCKS} are allowed")
        channels = [("stem", self.stem), ("embedding", self.embedding), ("reduction", self.reduction)]
        channels += [("groups", self.groups)]
        cin = self.stem
        for i, (t, c, s) in enumerate(self.blocks, 1):
            channels += [(f"block{i} t", t), (f"block{i} c", c), (f"block{i} s", s)]
            if all(type(v) is int for v in (cin, t)):
                channels += [(f"block{i} t*c", cin * t)]
            cin = c
        for label, value in channels:
            if type(value) is not int or not 1 <= value <= MAX_CHANNELS:
                raise SpecError(f"spec: {label} must be a whole number from 1 to {MAX_CHANNELS}, not {value!r}")
        for label, value in [("stem", self.stem)] + [(f"block{i} c", b.c) for i, b in enumerate(self.blocks, 1)]:
            if value % self.groups:
                raise SpecError(f"spec: {label} = {value} is not divisible into {self.groups} groups")

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON types."""
        return dataclasses.asdict(self) | {"blocks": [list(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Spec:
        """The inverse of ``to_dict``. Raises SpecError for unknown, missing or absurd fields."""
        if not isinstance(fields, dict):
            raise SpecError("spec: not a table of fields")
        known = {field.name for field in dataclasses.fields(cls)}
        if known != set(fields):
            wrong = ", ".join(sorted(known ^ set(map(str, fields))))
            raise SpecError(f"spec: missing or unknown fields: {wrong}")
        return cls(**fields)


# The paper's ablations (Table 7): channel shuffle (CS) and CBAM switched on and off.
SPECS = {
    spec.name: spec
    for spec in (
        Spec(),
        Spec(name="lnet-cbam", shuffle=False),
        Spec(name="lnet-cs", cbam=""),
        Spec(name="lnet", shuffle=False, cbam=""),
    )
}


class Conv(NamedTuple):
    """Convolution with padding kernel // 2, then batch norm, then ``activation`` ("relu", "relu6" or "")."""

    name: str
    cin: int
    cout: int
    kernel: int
    stride: int
    groups: int
    bias: bool
    activation: str


class Shuffle(NamedTuple):
    """Channel shuffle: (N, g, C/g, H, W) -> (N, C/g, g, H, W), flattened to C again."""

    name: str
    channels: int
    groups: int


class Cbam(NamedTuple):
    """Convolutional block attention: channel attention, then spatial attention (paper, section 3.4)."""

    name: str
    channels: int
    hidden: int
    layout: CbamLayout


Layer = Conv | Shuffle | Cbam


def layers(spec: Spec) -> list[Layer]:
    """The network as a flat list, in the order of the data. Adaptive average pooling to 1x1 follows the last layer."""
    result: list[Layer] = []

    def cbam(name: str, channels: int) -> None:
        if spec.cbam:
            hidden = max(1, channels // spec.reduction)
            result.append(Cbam(f"{name}.cbam", channels, hidden, CBAM_LAYOUTS[spec.cbam]))

    result.append(Conv("stem", 3, spec.stem, 3, 1, 1, spec.stem_bias, "relu"))
    cbam("stem", spec.stem)
    cin = spec.stem
    for i, (t, c, s) in enumerate(spec.blocks, 1):
        wide = cin * t
        result.append(Conv(f"block{i}.expand", cin, wide, 1, 1, spec.groups, False, "relu6"))
        if spec.shuffle:
            result.append(Shuffle(f"block{i}.shuffle", wide, spec.groups))
        result.append(Conv(f"block{i}.depthwise", wide, wide, 3, s, wide, False, "relu6"))
        result.append(Conv(f"block{i}.project", wide, c, 1, 1, spec.groups, False, ""))
        cbam(f"block{i}", c)
        cin = c
    result.append(Conv("last", cin, spec.embedding, 1, 1, 1, False, "relu6"))
    cbam("last", spec.embedding)
    return result


def _bn_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{field}": (channels,) for field in ("weight", "bias", "running_mean", "running_var")}


def layer_parameters(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's arrays, batch norm statistics included. Shapes are PyTorch's."""
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(layer, Conv):
        shapes[f"{layer.name}.conv.weight"] = (layer.cout, layer.cin // layer.groups, layer.kernel, layer.kernel)
        if layer.bias:
            shapes[f"{layer.name}.conv.bias"] = (layer.cout,)
        shapes |= _bn_shapes(f"{layer.name}.bn", layer.cout)
    elif isinstance(layer, Cbam):
        for fc, cin, cout in (("fc1", layer.channels, layer.hidden), ("fc2", layer.hidden, layer.channels)):
            shapes[f"{layer.name}.{fc}.weight"] = (cout, cin)
            if layer.layout.mlp_bias:
                shapes[f"{layer.name}.{fc}.bias"] = (cout,)
        shapes[f"{layer.name}.spatial.weight"] = (1, 2, 7, 7)
        if layer.layout.spatial_bn:
            shapes |= _bn_shapes(f"{layer.name}.bn", 1)
    return shapes


def parameters(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all arrays of the embedding network, in network order."""
    return {name: shape for layer in layers(spec) for name, shape in layer_parameters(layer).items()}


def count_params(layer: Layer) -> dict[str, int]:
    """Trainable parameters of a layer by part: "conv", "bn", "cbam". Running statistics do not count."""
    counts = {"conv": 0, "bn": 0, "cbam": 0}
    for name, shape in layer_parameters(layer).items():
        if "running_" not in name:
            part = "cbam" if isinstance(layer, Cbam) else "bn" if ".bn." in name else "conv"
            counts[part] += prod(shape)
    return counts


def total_params(spec: Spec, classes: int = 0) -> int:
    """Trainable parameters of the embedding network, with a linear head where ``classes`` is given."""
    head = (spec.embedding + 1) * classes
    return sum(sum(count_params(layer).values()) for layer in layers(spec)) + head


def output_size(layer: Layer, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a layer's output for an input of (H, W)."""
    if isinstance(layer, Conv):
        pad = 2 * (layer.kernel // 2)
        h, w = ((side + pad - layer.kernel) // layer.stride + 1 for side in size)
        return h, w
    return size


def layer_flops(layer: Layer, size: tuple[int, int]) -> int:
    """FLOPs of a layer for an input of (H, W), counted as the paper's authors count in their training code.

    Convolution: output elements x (Cin/g x K x K + bias). Batch norm: 4 x elements. Adaptive average pool: (H x W + 1)
    x C. Each of the two passes through the shared MLP counts. Activations, max pools and multiplications by attention:
    0.
    """
    h, w = output_size(layer, size)
    if isinstance(layer, Conv):
        taps = layer.cin // layer.groups * layer.kernel**2 + layer.bias
        return layer.cout * h * w * (taps + 4)
    if isinstance(layer, Cbam):
        pool = (h * w + 1) * layer.channels
        mlp = 2 * (2 * layer.channels * layer.hidden + layer.layout.mlp_bias * (layer.channels + layer.hidden))
        return pool + mlp + h * w * (2 * 7 * 7 + 4 * layer.layout.spatial_bn)
    return 0


def layer_flops_eq5(layer: Layer, size: tuple[int, int]) -> int:
    """FLOPs of a layer by the paper's equation (5), 2HW(Cin K^2 + 1)Cout, with Cin/g as Cin, H and W of the output."""
    h, w = output_size(layer, size)
    if isinstance(layer, Conv):
        return 2 * h * w * (layer.cin // layer.groups * layer.kernel**2 + 1) * layer.cout
    if isinstance(layer, Cbam):
        mlp = 2 * 2 * ((layer.channels + 1) * layer.hidden + (layer.hidden + 1) * layer.channels)
        return mlp + 2 * h * w * (2 * 7 * 7 + 1)
    return 0


def total_flops(spec: Spec, size: tuple[int, int]) -> tuple[int, int]:
    """FLOPs of the embedding network for an input of (H, W): (the authors' way, by equation (5))."""
    authors = eq5 = 0
    for layer in layers(spec):
        authors += layer_flops(layer, size)
        eq5 += layer_flops_eq5(layer, size)
        size = output_size(layer, size)
    return authors + (prod(size) + 1) * spec.embedding, eq5


def bottleneck_cost(
    c1: int, c2: int, t: int, size1: tuple[int, int], size2: tuple[int, int], groups: int = 1
) -> tuple[int, int]:
    """(parameters, FLOPs) of a block by the paper's Table 1: groups 1 is MobileNetV2's bottleneck, else an ALBlock.

    ``size1`` is (H1, W1) before the depthwise convolution, ``size2`` (H2, W2) after it. Batch norm and CBAM are left
    out, as the table leaves them out. ``c1`` and ``c2`` must be divisible by ``groups``.
    """
    wide = t * c1
    convs = ((c1 // groups * wide, prod(size1)), (9 * wide, prod(size2)), (wide // groups * c2, prod(size2)))
    return sum(p for p, _ in convs), sum(p * area for p, area in convs)


def alblock_ratios(
    c1: int, c2: int, size1: tuple[int, int], size2: tuple[int, int], groups: int = 8
) -> tuple[float, float]:
    """The paper's equations (1) and (2): parameters and FLOPs of an ALBlock over those of MobileNetV2's bottleneck."""
    area1, area2 = prod(size1), prod(size2)
    r1 = ((c1 + c2) / groups + 9) / (c1 + c2 + 9)
    r2 = (c1 * area1 / groups + (9 + c2 / groups) * area2) / (c1 * area1 + (9 + c2) * area2)
    return r1, r2
