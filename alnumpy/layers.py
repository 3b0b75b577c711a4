"""What networks are made of: layers as rows of data, each with the names of the layers that it reads.

A network is a flat list of layers in the order of computation. A layer's name is also the name of its one output;
"image" is the picture, and the last layer puts out the embedding as a map of one pixel. Properties of a layer by itself
are methods here: the shapes of its arrays, the size of its output, its work. The code that computes it is elsewhere:
reference.py in NumPy, lower.py for the kernels, tools/torch_network.py in torch. Each of them is a function for
``evaluate``, the one loop over layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from .errors import SpecError

IMAGE = "image"
ACTIVATIONS = ("", "relu", "relu6", "silu", "hardswish")
GATES = ("sigmoid", "hardsigmoid")
PADDINGS = ("symmetric", "same")  # kernel // 2 on each side; or TensorFlow's way, which is not symmetric at stride 2
KERNELS = (1, 3, 5, 7)
BN = ("weight", "bias", "running_mean", "running_var")
MAX_LAYERS = 512
MAX_CHANNELS = 8192  # channels of any map: far above the widest network's 1920, far below what exhausts a device

Size = tuple[int, int]  # height, width
Shapes = dict[str, tuple[int, ...]]
Value = TypeVar("Value")


class CbamLayout(NamedTuple):
    """How a public CBAM implementation differs from the others."""

    mean_first: bool  # the spatial convolution sees [mean, max]; otherwise [max, mean]
    mlp_bias: bool  # the shared MLP has biases (Linear layers), or none (1x1 convolutions)
    spatial_bn: bool  # a batch norm of one channel follows the spatial convolution


# A checkpoint does not show the order of mean and max.
CBAM_LAYOUTS = {
    order + mlp + spatial: CbamLayout(order == "mean-max", bool(mlp), bool(spatial))
    for order in ("mean-max", "max-mean")
    for mlp in ("", "-bias")
    for spatial in ("", "-bn")
}


class Product(NamedTuple):
    """``outputs`` sums of ``inputs`` products each, with or without a bias added."""

    outputs: int
    inputs: int
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer that reads ``inputs`` and puts out ``channels`` channels.

    The methods are those of a layer that has no arrays, keeps channels and size, and multiplies nothing; ``size`` is
    always that of the input.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int

    def shapes(self) -> Shapes:
        """PyTorch's shapes of the arrays, batch norm's statistics included, by name."""
        return {}

    def size(self, size: Size) -> Size:
        """(H, W) of the output."""
        return size

    def products(self, size: Size) -> list[Product]:
        """The products that the layer computes."""
        return []

    def multiply_adds(self, size: Size) -> int:
        return sum(product.outputs * product.inputs for product in self.products(size))

    def other_flops(self, size: Size) -> int:
        """FLOPs that the paper's authors count besides products: 4 per element of a batch norm, and those of pools."""
        return 0

    def fits(self, *channels: int) -> bool:
        """Whether the layer can read maps of these numbers of channels."""
        return channels == (self.channels,)

    def __str__(self) -> str:
        """The operator in a few words, for tables."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Conv(Layer):
    """Convolution, then batch norm if ``batch_norm`` says so, then the activation."""

    cin: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False
    batch_norm: bool = True
    activation: str = ""
    padding: str = "symmetric"
    eps: float = 1e-5

    def shapes(self) -> Shapes:
        shapes: Shapes = {"conv.weight": (self.channels, self.cin // self.groups, self.kernel, self.kernel)}
        if self.bias:
            shapes["conv.bias"] = (self.channels,)
        return shapes | (_bn_shapes(self.channels) if self.batch_norm else {})

    def size(self, size: Size) -> Size:
        height, width = (-(-side // self.stride) for side in size)  # the same with either padding
        return height, width

    def pads(self, size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows of zeros (above, below) and columns (left, right) around an input of (H, W)."""
        half = self.kernel // 2
        if self.padding == "symmetric":
            return (half, half), (half, half)
        totals = [
            max((out - 1) * self.stride + self.kernel - side, 0)
            for side, out in zip(size, self.size(size), strict=True)
        ]
        rows, columns = ((total // 2, total - total // 2) for total in totals)
        return rows, columns

    def products(self, size: Size) -> list[Product]:
        height, width = self.size(size)
        taps = self.cin // self.groups * self.kernel**2
        return [Product(height * width * self.channels, taps, self.bias)]

    def other_flops(self, size: Size) -> int:
        height, width = self.size(size)
        return 4 * height * width * self.channels if self.batch_norm else 0

    def fits(self, *channels: int) -> bool:
        return channels == (self.cin,) and self.cin % self.groups == 0 and self.channels % self.groups == 0

    def __str__(self) -> str:
        kind = "depthwise" if self.groups == self.cin > 1 else "conv"
        norm = "bn " if self.batch_norm else ""
        padding = "" if self.padding == "symmetric" else f"{self.padding} "
        text = f"{kind} {self.kernel}x{self.kernel} /{self.stride} g{self.groups} {padding}{norm}{self.activation}"
        return text.strip()


@dataclass(frozen=True)
class Shuffle(Layer):
    """Channel shuffle: (N, g, C/g, H, W) -> (N, C/g, g, H, W), flattened to C again.

    The inverse of a shuffle in g groups is a shuffle in C/g groups.
    """

    groups: int

    def fits(self, *channels: int) -> bool:
        return super().fits(*channels) and self.channels % self.groups == 0

    def __str__(self) -> str:
        return f"channel shuffle g{self.groups}"


@dataclass(frozen=True)
class Slice(Layer):
    """The channels start, start + step, start + 2 step and so on."""

    start: int
    step: int = 1

    def indices(self) -> slice:
        return slice(self.start, self.start + self.step * self.channels, self.step)

    def fits(self, *channels: int) -> bool:
        return len(channels) == 1 and self.start + self.step * (self.channels - 1) < channels[0]

    def __str__(self) -> str:
        last = self.start + self.step * (self.channels - 1)
        return f"channels {self.start} to {last}" + (f" by {self.step}" if self.step > 1 else "")


@dataclass(frozen=True)
class Add(Layer):
    """The sum of two maps, then the activation."""

    activation: str = ""

    def fits(self, *channels: int) -> bool:
        return channels == (self.channels, self.channels)

    def __str__(self) -> str:
        return f"add {self.activation}".strip()


@dataclass(frozen=True)
class Concat(Layer):
    """The channels of the first map, then those of the second, then the activation."""

    activation: str = ""

    def fits(self, *channels: int) -> bool:
        return len(channels) == 2 and sum(channels) == self.channels

    def __str__(self) -> str:
        return f"concat {self.activation}".strip()


@dataclass(frozen=True)
class Pool(Layer):
    """3x3 windows, stride 2, padding 1: the "max", or the "mean" of nine, in which the padding counts as zeros."""

    kind: str

    def size(self, size: Size) -> Size:
        height, width = (-(-side // 2) for side in size)
        return height, width

    def other_flops(self, size: Size) -> int:
        height, width = self.size(size)
        return 4 * height * width * self.channels if self.kind == "mean" else 0

    def __str__(self) -> str:
        return f"{self.kind} pool 3x3 /2"


@dataclass(frozen=True)
class Mean(Layer):
    """The mean over all pixels, a map of one pixel."""

    def size(self, size: Size) -> Size:
        return 1, 1

    def other_flops(self, size: Size) -> int:
        return _pooled(size, self.channels)

    def __str__(self) -> str:
        return "adaptive average 1x1"


@dataclass(frozen=True)
class SqueezeExcite(Layer):
    """x * gate(fc2(activation(fc1(mean of x over the pixels))))."""

    hidden: int
    activation: str
    gate: str

    def shapes(self) -> Shapes:
        weights = {"fc1": (self.hidden, self.channels), "fc2": (self.channels, self.hidden)}
        return {
            f"{fc}.{field}": shape
            for fc, weight in weights.items()
            for field, shape in (("weight", weight), ("bias", weight[:1]))
        }

    def products(self, size: Size) -> list[Product]:
        return [Product(self.hidden, self.channels, True), Product(self.channels, self.hidden, True)]

    def other_flops(self, size: Size) -> int:
        return _pooled(size, self.channels)

    def __str__(self) -> str:
        return f"squeeze-excite hidden {self.hidden} {self.activation} {self.gate}"


@dataclass(frozen=True)
class Cbam(Layer):
    """Convolutional block attention: channel attention, then spatial attention (paper, section 3.4)."""

    hidden: int
    layout: CbamLayout
    eps: float = 1e-5

    def shapes(self) -> Shapes:
        shapes: Shapes = {}
        for fc, weight in (("fc1", (self.hidden, self.channels)), ("fc2", (self.channels, self.hidden))):
            shapes[f"{fc}.weight"] = weight
            if self.layout.mlp_bias:
                shapes[f"{fc}.bias"] = weight[:1]
        shapes["spatial.weight"] = (1, 2, 7, 7)
        return shapes | (_bn_shapes(1) if self.layout.spatial_bn else {})

    def products(self, size: Size) -> list[Product]:
        bias = self.layout.mlp_bias
        twice = Product(2 * self.hidden, self.channels, bias), Product(2 * self.channels, self.hidden, bias)
        return [*twice, Product(size[0] * size[1], 2 * 7 * 7)]

    def other_flops(self, size: Size) -> int:
        return _pooled(size, self.channels) + 4 * size[0] * size[1] * self.layout.spatial_bn

    def __str__(self) -> str:
        (name,) = (name for name, layout in CBAM_LAYOUTS.items() if layout == self.layout)
        return f"cbam {name} hidden {self.hidden}"


def _bn_shapes(channels: int) -> Shapes:
    return {f"bn.{field}": (channels,) for field in BN}


def _pooled(size: Size, channels: int) -> int:
    """FLOPs of an adaptive pool to one pixel, as the paper's authors count it."""
    return (size[0] * size[1] + 1) * channels


def parameters(layers: Sequence[Layer]) -> Shapes:
    """Names and shapes of all arrays of a network, in its order."""
    return {f"{layer.name}.{field}": shape for layer in layers for field, shape in layer.shapes().items()}


def evaluate(layers: Sequence[Layer], image: Value, compute: Callable[..., Value]) -> Value:
    """The value of the last layer: calls ``compute(layer, *inputs)`` for each layer, in order.

    Values can be anything that ``compute`` returns: arrays, tensors, sizes, names, buffers. Each is dropped after its
    last reader. For example, the sizes of all maps:

    >>> from alnumpy.networks import SPECS
    >>> evaluate(SPECS["alnet"].layers()[:-1], (28, 28), lambda layer, size, *_: layer.size(size))
    (2, 2)
    """
    values = {IMAGE: image}
    del image
    last = {name: i for i, layer in enumerate(layers) for name in layer.inputs}
    for i, layer in enumerate(layers):
        value = compute(layer, *[values[name] for name in layer.inputs])
        for name in layer.inputs:
            if last[name] == i:
                values.pop(name, None)
        values[layer.name] = value
        del value
    return values[layers[-1].name]


class Chain:
    """A list of layers under construction, each of which reads the one before it, unless ``at`` says what to read.

    ``eps`` and ``padding`` are those of all layers. Every layer is checked as it is added: raises SpecError for a name
    that is taken, an input that is not there, and numbers that do not fit. Each method returns the layer's name.
    """

    def __init__(self, eps: float = 1e-5, padding: str = "symmetric") -> None:
        self.layers: list[Layer] = []
        self.maps = {IMAGE: (3, (1 << 64, 1 << 64))}  # channels and size, for a picture so large that strides show
        self.last = IMAGE  # the name of what the next layer reads
        self.eps, self.padding = eps, padding
        check_choice("padding", padding, PADDINGS)
        if not isinstance(eps, float) or not 0 < eps <= 0.1:
            raise SpecError(f"spec: bn_eps must be a number above 0 and at most 0.1, not {eps!r}")

    @property
    def channels(self) -> int:
        """The channels of the map that the next layer reads."""
        return self.maps[self.last][0]

    def at(self, name: str) -> None:
        """The next layer reads the layer ``name``."""
        self.last = name

    def add(self, layer: Layer) -> str:
        if len(self.layers) == MAX_LAYERS:
            raise SpecError(f"spec: more than {MAX_LAYERS} layers")
        if layer.name in self.maps:
            raise SpecError(f"spec: two layers are called {layer.name}")
        if missing := [name for name in layer.inputs if name not in self.maps]:
            raise SpecError(f"spec: {layer.name} reads {missing[0]}, which is not an earlier layer")
        _check_fields(layer)
        channels, sizes = zip(*(self.maps[name] for name in layer.inputs), strict=True)
        if not layer.fits(*channels):
            groups = getattr(layer, "groups", 1)
            why = f"not divisible into {groups} groups, or not what it reads" if groups > 1 else "not what it reads"
            raise SpecError(f"spec: {layer} {layer.name} to {layer.channels} channels, from {channels}: {why}")
        if len(set(sizes)) > 1:
            raise SpecError(f"spec: {layer.name} reads maps of different sizes")
        self.layers.append(layer)
        self.maps[layer.name] = layer.channels, layer.size(sizes[0])
        self.last = layer.name
        return layer.name

    def conv(self, name: str, channels: int, activation: str = "", **options: Any) -> str:
        """``options``: the other fields of ``Conv``."""
        how: dict[str, Any] = {"padding": self.padding, "eps": self.eps, "activation": activation} | options
        return self.add(Conv(name, (self.last,), channels, self.channels, **how))

    def depthwise(self, name: str, activation: str = "", kernel: int = 3, **options: Any) -> str:
        return self.conv(name, self.channels, activation, kernel=kernel, groups=self.channels, **options)

    def shuffle(self, name: str, groups: int) -> str:
        return self.add(Shuffle(name, (self.last,), self.channels, groups))

    def slice(self, name: str, channels: int, start: int, step: int = 1) -> str:
        return self.add(Slice(name, (self.last,), channels, start, step))

    def plus(self, name: str, other: str, activation: str = "") -> str:
        """``other`` plus the last layer."""
        return self.add(Add(name, (other, self.last), self.channels, activation))

    def concat(self, name: str, first: str, second: str, activation: str = "") -> str:
        channels = self.maps[first][0] + self.maps[second][0]
        return self.add(Concat(name, (first, second), channels, activation))

    def pool(self, name: str, kind: str) -> str:
        return self.add(Pool(name, (self.last,), self.channels, kind))

    def mean(self, name: str) -> str:
        return self.add(Mean(name, (self.last,), self.channels))

    def squeeze_excite(self, name: str, hidden: int, activation: str, gate: str) -> str:
        return self.add(SqueezeExcite(name, (self.last,), self.channels, hidden, activation, gate))

    def cbam(self, name: str, hidden: int, layout: CbamLayout) -> str:
        return self.add(Cbam(name, (self.last,), self.channels, hidden, layout, self.eps))


CHOICES = {"kernel": KERNELS, "activation": ACTIVATIONS, "gate": GATES, "padding": PADDINGS, "kind": ("max", "mean")}


def _check_fields(layer: Layer) -> None:
    """Checks that whole numbers are within their limits, and words among the known ones."""
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.type == "int":
            check_number(f"{layer.name}: {field.name}", value, least=0 if field.name == "start" else 1)
        if field.name in CHOICES:
            check_choice(f"{layer.name}: {field.name}", value, CHOICES[field.name])


def check_number(what: str, value: Any, least: int = 1) -> None:
    """Raises SpecError unless ``value`` is a whole number from ``least`` to MAX_CHANNELS."""
    if type(value) is not int or not least <= value <= MAX_CHANNELS:
        raise SpecError(f"spec: {what} must be a whole number from {least} to {MAX_CHANNELS}, not {value!r}")


def check_choice(what: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise SpecError(f"spec: {what} must be one of {names}, not {value!r}")
