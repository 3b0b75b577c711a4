"""The networks: families, each a table of rows and a loop that turns the rows into layers, and presets by name.

ALNet's table is not printed in its paper (Zhang, Bai, Kpalma, "OMCBIR: Offline mobile content-based image retrieval
with lightweight CNN optimization", Displays 76, 2023); the one here reproduces all of the paper's counts. The others
are the networks it is compared with, as in their public checkpoints, and as its authors ran them ("-paper"). Fields
record differences between implementations that no checkpoint shows.

How to add a network: docs/ADDING_A_NETWORK.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

from .errors import SpecError
from .layers import CBAM_LAYOUTS, MAX_LAYERS, Chain, Layer, check_choice, check_number


@dataclass(frozen=True)
class Spec:
    """A network as data: the base of the families.

    A family is a table of rows and ``build``, a loop over them. Its fields are numbers, words, truth values, and rows
    of these. All have defaults, which also define the type of a value, and whether 0 is allowed. Raises SpecError
    for values of other types.
    """

    name: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
        if not 1 <= len(self.name) <= 64 or not self.name.isprintable():
            raise SpecError("spec: name must be a printable text of 1 to 64 characters")

    def build(self) -> Chain:
        """The network. Raises SpecError if the fields do not fit together."""
        raise NotImplementedError

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        return tuple(self.build().layers)

    def layers(self) -> tuple[Layer, ...]:
        """The network as layers in the order of computation, made once. Raises SpecError as ``build`` does."""
        return self._layers

    @cached_property
    def embedding(self) -> int:
        """How many numbers an embedding has."""
        return self.layers()[-1].channels

    @property
    def bn_eps(self) -> float:
        """The eps of all batch norms."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON types. ALNet's has no family, since older files have none."""
        (family,) = (name for name, kind in FAMILIES.items() if kind is type(self))
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {key: [list(row) for row in v] if isinstance(v, tuple) else v for key, v in fields.items()}
        return plain if family == DEFAULT_FAMILY else {"family": family} | plain

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Spec:
        """The inverse of ``to_dict``. Raises SpecError for unknown, missing or impossible fields."""
        if not isinstance(fields, dict):
            raise SpecError("spec: not a table of fields")
        family = fields.get("family", DEFAULT_FAMILY)
        check_choice("family", family, list(FAMILIES))
        fields = {key: value for key, value in fields.items() if key != "family"}
        known = {field.name for field in dataclasses.fields(FAMILIES[family])}
        if known != set(fields):
            wrong = ", ".join(sorted(known ^ set(map(str, fields))))
            raise SpecError(f"spec: missing or unknown fields: {wrong}")
        spec = FAMILIES[family](**fields)
        spec.layers()
        return spec


def _checked(what: str, value: Any, default: Any) -> Any:
    """The value of a field, rows as those of the default. Raises SpecError if it is not of the default's type."""
    if not isinstance(default, tuple):
        _check_value(what, value, [default])
        return value
    row_type = type(default[0])
    try:
        rows = tuple(row_type(*row) for row in value)
    except TypeError as error:
        columns = ", ".join(row_type._fields)
        raise SpecError(f"spec: {what} must be a list of ({columns}) rows: {error}") from None
    if len(rows) > MAX_LAYERS:
        raise SpecError(f"spec: {len(rows)} {what}, at most {MAX_LAYERS} are allowed")
    for i, row in enumerate(rows, 1):
        for name, item, defaults in zip(row_type._fields, row, zip(*default, strict=True), strict=True):
            _check_value(f"{what.removesuffix('s')}{i} {name}", item, defaults)
    return rows


def _check_value(what: str, value: Any, defaults: Sequence[Any]) -> None:
    kind = type(defaults[0])
    if kind is int:
        check_number(what, value, least=min(1, *defaults))
    elif type(value) is not kind:
        names = {bool: "true or false", float: "a number with a point", str: "a text"}
        raise SpecError(f"spec: {what} must be {names[kind]}, not {value!r}")


class Block(NamedTuple):
    """One ALBlock: expansion t, output channels c, stride s of its depthwise convolution."""

    t: int
    c: int
    s: int


@dataclass(frozen=True)
class ALNet(Spec):
    """ALNet and its ablations (Zhang, Bai, Kpalma 2023). The paper's stem is as wide as the picture."""

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

    def build(self) -> Chain:
        check_choice("cbam", self.cbam, ["", *CBAM_LAYOUTS])
        net = Chain(self.bn_eps)

        def cbam(name: str) -> None:
            if self.cbam:
                net.cbam(f"{name}.cbam", max(1, net.channels // self.reduction), CBAM_LAYOUTS[self.cbam])

        net.conv("stem", self.stem, "relu", kernel=3, bias=self.stem_bias)
        cbam("stem")
        for i, (t, c, s) in enumerate(self.blocks, 1):
            net.conv(f"block{i}.expand", t * net.channels, "relu6", groups=self.groups)
            if self.shuffle:
                net.shuffle(f"block{i}.shuffle", self.groups)
            net.depthwise(f"block{i}.depthwise", "relu6", stride=s)
            net.conv(f"block{i}.project", c, groups=self.groups)
            cbam(f"block{i}")
        net.conv("last", self.embedding, "relu6")
        cbam("last")
        net.mean("pool")
        return net


class Stage(NamedTuple):
    """Blocks of equal width, the first with a stride."""

    channels: int
    repeats: int
    stride: int


def _blocks(stages: Sequence[Stage]) -> Iterator[tuple[str, int, int]]:
    """Name, channels and stride of each block."""
    strides = [(stage.channels, stage.stride if i == 0 else 1) for stage in stages for i in range(stage.repeats)]
    for i, (channels, stride) in enumerate(strides, 1):
        yield f"block{i}", channels, stride


@dataclass(frozen=True)
class MobileNetV1(Spec):
    """MobileNet (Howard et al. 2017)."""

    name: str = "mobilenet-v1"
    stem: int = 32
    stem_stride: int = 2
    stages: tuple[Stage, ...] = (
        Stage(64, 1, 1),
        Stage(128, 2, 2),
        Stage(256, 2, 2),
        Stage(512, 6, 2),
        Stage(1024, 2, 2),
    )
    pointwise_bias: bool = False
    activation: str = "relu6"
    padding: str = "symmetric"
    bn_eps: float = 1e-5

    def build(self) -> Chain:
        net = Chain(self.bn_eps, self.padding)
        net.conv("stem", self.stem, self.activation, kernel=3, stride=self.stem_stride)
        for name, channels, stride in _blocks(self.stages):
            net.depthwise(f"{name}.depthwise", self.activation, stride=stride)
            net.conv(f"{name}.project", channels, self.activation, bias=self.pointwise_bias)
        net.mean("pool")
        return net


class Bottleneck(NamedTuple):
    """An inverted residual block."""

    kernel: int  # kernel of the depthwise convolution
    wide: int  # its channels; 0: the input's channels, without a convolution that expands them
    channels: int
    stride: int
    squeeze: int  # hidden channels of squeeze-and-excitation; 0: none
    activation: str


def bottlenecks(
    rows: Sequence[tuple[int, int, int, int, int]],
    activation: str,
    squeeze: bool = False,
    width: float = 1.0,
    depth: float = 1.0,
) -> tuple[Bottleneck, ...]:
    """Blocks of the rows (expansion, kernel, channels, repeats, stride of the first), wider and deeper by factors.

    ``squeeze``: squeeze-and-excitation to a quarter of a block's input channels. The first and the last row are not
    made deeper. For an expansion of 1 the input counts as having 32 channels.
    """
    blocks, cin = list[Bottleneck](), 32
    for i, (t, kernel, channels, repeats, stride) in enumerate(rows):
        channels = _multiple_of_8(width * channels)
        for repeat in range(repeats if i in (0, len(rows) - 1) else ceil(depth * repeats)):
            wide = t * cin if t > 1 else 0
            first = stride if repeat == 0 else 1
            blocks.append(Bottleneck(kernel, wide, channels, first, cin // 4 if squeeze else 0, activation))
            cin = channels
    return tuple(blocks)


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and not below nine tenths of the number."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


MOBILENET_V2 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 3, 32, 3, 2),
    (6, 3, 64, 4, 2),
    (6, 3, 96, 3, 1),
    (6, 3, 160, 3, 2),
    (6, 3, 320, 1, 1),
)
EFFICIENTNET = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
MOBILENET_V3_SMALL = (
    Bottleneck(3, 0, 16, 2, 8, "relu"),
    Bottleneck(3, 72, 24, 2, 0, "relu"),
    Bottleneck(3, 88, 24, 1, 0, "relu"),
    Bottleneck(5, 96, 40, 2, 24, "hardswish"),
    Bottleneck(5, 240, 40, 1, 64, "hardswish"),
    Bottleneck(5, 240, 40, 1, 64, "hardswish"),
    Bottleneck(5, 120, 48, 1, 32, "hardswish"),
    Bottleneck(5, 144, 48, 1, 40, "hardswish"),
    Bottleneck(5, 288, 96, 2, 72, "hardswish"),
    Bottleneck(5, 576, 96, 1, 144, "hardswish"),
    Bottleneck(5, 576, 96, 1, 144, "hardswish"),
)
MOBILENET_V3_LARGE = (
    Bottleneck(3, 0, 16, 1, 0, "relu"),
    Bottleneck(3, 64, 24, 2, 0, "relu"),
    Bottleneck(3, 72, 24, 1, 0, "relu"),
    Bottleneck(5, 72, 40, 2, 24, "relu"),
    Bottleneck(5, 120, 40, 1, 32, "relu"),
    Bottleneck(5, 120, 40, 1, 32, "relu"),
    Bottleneck(3, 240, 80, 2, 0, "hardswish"),
    Bottleneck(3, 200, 80, 1, 0, "hardswish"),
    Bottleneck(3, 184, 80, 1, 0, "hardswish"),
    Bottleneck(3, 184, 80, 1, 0, "hardswish"),
    Bottleneck(3, 480, 112, 1, 120, "hardswish"),
    Bottleneck(3, 672, 112, 1, 168, "hardswish"),
    Bottleneck(5, 672, 160, 2, 168, "hardswish"),
    Bottleneck(5, 960, 160, 1, 240, "hardswish"),
    Bottleneck(5, 960, 160, 1, 240, "hardswish"),
)


@dataclass(frozen=True)
class InvertedResiduals(Spec):
    """MobileNetV2 (Sandler et al. 2018), MobileNetV3 (Howard et al. 2019), EfficientNet (Tan, Le 2019) and -Lite."""

    name: str = "mobilenet-v2"
    stem: int = 32
    blocks: tuple[Bottleneck, ...] = bottlenecks(MOBILENET_V2, "relu6")
    last: int = 1280  # channels that are pooled
    hidden: int = 0  # outputs of MobileNetV3's dense layer after the pool, which are then the embedding; 0: none
    activation: str = "relu6"  # activation of the stem, the last convolution and the dense layer
    squeeze_activation: str = "relu"
    squeeze_gate: str = "sigmoid"
    padding: str = "symmetric"
    bn_eps: float = 1e-5

    def build(self) -> Chain:
        net = Chain(self.bn_eps, self.padding)
        net.conv("stem", self.stem, self.activation, kernel=3, stride=2)
        for i, block in enumerate(self.blocks, 1):
            name, start, cin = f"block{i}", net.last, net.channels
            if block.wide:
                net.conv(f"{name}.expand", block.wide, block.activation)
            net.depthwise(f"{name}.depthwise", block.activation, block.kernel, stride=block.stride)
            if block.squeeze:
                net.squeeze_excite(f"{name}.se", block.squeeze, self.squeeze_activation, self.squeeze_gate)
            net.conv(f"{name}.project", block.channels)
            if block.stride == 1 and block.channels == cin:
                net.plus(f"{name}.add", start)
        net.conv("last", self.last, self.activation)
        net.mean("pool")
        if self.hidden:
            net.conv("hidden", self.hidden, self.activation, bias=True, batch_norm=False)
        return net


@dataclass(frozen=True)
class ShuffleNetV1(Spec):
    """ShuffleNet (Zhang et al. 2017)."""

    name: str = "shufflenet-v1"
    groups: int = 3
    stem: int = 24
    stem_stride: int = 2
    stem_plain: bool = False  # whether the stem has neither batch norm nor activation
    stem_pool: bool = True
    stages: tuple[Stage, ...] = (Stage(240, 4, 2), Stage(480, 8, 2), Stage(960, 4, 2))
    first_grouped: bool = False  # whether the first block's first convolution, whose input is narrow, has groups
    shuffle: str = "standard"  # shuffles before the depthwise convolution; or "inverse", after it
    pooled_first: bool = True  # whether the pooled input comes before the convolutions in the concatenation
    bias: bool = False  # whether all convolutions have biases
    bn_eps: float = 1e-5

    def build(self) -> Chain:
        check_choice("shuffle", self.shuffle, ("standard", "inverse"))
        net = Chain(self.bn_eps)
        stem = {"batch_norm": False} if self.stem_plain else {"activation": "relu"}
        net.conv("stem", self.stem, kernel=3, stride=self.stem_stride, bias=self.bias, **stem)
        if self.stem_pool:
            net.pool("stem.pool", "max")
        for name, channels, stride in _blocks(self.stages):
            start, cin, narrow = net.last, net.channels, channels // 4
            grouped = self.groups if self.first_grouped or name != "block1" else 1
            net.conv(f"{name}.compress", narrow, "relu", groups=grouped, bias=self.bias)
            if self.shuffle == "standard":
                net.shuffle(f"{name}.shuffle", self.groups)
            net.depthwise(f"{name}.depthwise", stride=stride, bias=self.bias)
            if self.shuffle == "inverse":
                net.shuffle(f"{name}.shuffle", narrow // self.groups)
            wide = channels - cin if stride == 2 else channels
            main = net.conv(f"{name}.expand", wide, groups=self.groups, bias=self.bias)
            if stride == 2:
                net.at(start)
                pooled = net.pool(f"{name}.pool", "mean")
                net.concat(f"{name}.concat", *((pooled, main) if self.pooled_first else (main, pooled)), "relu")
            else:
                net.plus(f"{name}.add", start, "relu")
        net.mean("pool")
        return net


@dataclass(frozen=True)
class ShuffleNetV2(Spec):
    """ShuffleNet V2 (Ma et al. 2018)."""

    name: str = "shufflenet-v2"
    stem: int = 24
    stem_stride: int = 2
    stem_activation: str = "relu"
    stem_pool: bool = True
    stages: tuple[Stage, ...] = (Stage(116, 4, 2), Stage(232, 8, 2), Stage(464, 4, 2))
    last: int = 1024
    split: str = "halves"  # torchvision's, shuffled afterwards; or "even-odd", megvii's
    hidden_of_input: bool = (
        False  # whether blocks with a stride are inside as wide as their input, or as half their output
    )
    bias: bool = False  # whether all convolutions have biases
    bn_eps: float = 1e-5

    def build(self) -> Chain:
        check_choice("split", self.split, ("halves", "even-odd"))
        halves = self.split == "halves"
        net = Chain(self.bn_eps)
        net.conv("stem", self.stem, self.stem_activation, kernel=3, stride=self.stem_stride, bias=self.bias)
        if self.stem_pool:
            net.pool("stem.pool", "max")
        for name, channels, stride in _blocks(self.stages):
            start, cin, half = net.last, net.channels, channels // 2
            hidden = half
            if stride == 2:  # two branches of the whole input
                narrow = half if halves else cin
                hidden = cin if self.hidden_of_input else half
                net.depthwise(f"{name}.left.depthwise", stride=2, bias=self.bias)
                left = net.conv(f"{name}.left.project", narrow, "relu", bias=self.bias)
                net.at(start)
            else:  # half of the channels passes unchanged
                narrow = half
                left = net.slice(f"{name}.left", half, 0, 1 if halves else 2)
                net.at(start)
                net.slice(f"{name}.right", half, *((half, 1) if halves else (1, 2)))
            net.conv(f"{name}.expand", hidden, "relu", bias=self.bias)
            net.depthwise(f"{name}.depthwise", stride=stride, bias=self.bias)
            right = net.conv(f"{name}.project", channels - narrow, "relu", bias=self.bias)
            net.concat(f"{name}.concat", left, right)
            if halves:
                net.shuffle(f"{name}.shuffle", 2)
        net.conv("last", self.last, "relu", bias=self.bias)
        net.mean("pool")
        return net


DEFAULT_FAMILY = "alnet"
FAMILIES: dict[str, type[Spec]] = {
    DEFAULT_FAMILY: ALNet,
    "mobilenet-v1": MobileNetV1,
    "inverted-residuals": InvertedResiduals,
    "shufflenet-v1": ShuffleNetV1,
    "shufflenet-v2": ShuffleNetV2,
}

_B0 = InvertedResiduals(
    "efficientnet-b0", blocks=bottlenecks(EFFICIENTNET, "silu", True), activation="silu", squeeze_activation="silu"
)
_LITE0 = InvertedResiduals("efficientnet-lite0", blocks=bottlenecks(EFFICIENTNET, "relu6"), padding="same", bn_eps=1e-3)
_V3 = InvertedResiduals(activation="hardswish", squeeze_gate="hardsigmoid", stem=16, bn_eps=1e-3)

SPECS = {
    spec.name: spec
    for spec in (
        ALNet(),
        # The paper's ablations (Table 7): channel shuffle (CS) and CBAM switched on and off.
        ALNet("lnet-cbam", shuffle=False),
        ALNet("lnet-cs", cbam=""),
        ALNet("lnet", shuffle=False, cbam=""),
        # ALNet as its paper counts it at 24, 128 and 160 pixels (Tables 2, 4, 5 and 6).
        *(ALNet(f"alnet-stem{width}", stem=width) for width in (24, 128, 160)),
        MobileNetV1(),
        InvertedResiduals(),
        ShuffleNetV1(),
        ShuffleNetV2(),
        _B0,
        _LITE0,
        replace(_LITE0, name="efficientnet-lite1", blocks=bottlenecks(EFFICIENTNET, "relu6", depth=1.1)),
        replace(_LITE0, name="efficientnet-lite2", blocks=bottlenecks(EFFICIENTNET, "relu6", width=1.1, depth=1.2)),
        replace(_V3, name="mobilenet-v3-small", blocks=MOBILENET_V3_SMALL, last=576),
        replace(_V3, name="mobilenet-v3-large", blocks=MOBILENET_V3_LARGE, last=960),
        # The paper's authors ran these. Their MobileNetV2 is mobilenet-v2 with the picture's side as its stem.
        MobileNetV1("mobilenet-v1-paper", stem_stride=1, pointwise_bias=True, activation="relu"),
        ShuffleNetV1("shufflenet-v1-paper", stem_stride=1, stem_pool=False, first_grouped=True, bias=True),
        ShuffleNetV2(
            "shufflenet-v2-paper",
            stem=32,  # the picture's side
            stem_stride=1,
            stem_activation="",
            stem_pool=False,
            hidden_of_input=True,
            bias=True,
        ),
    )
}
