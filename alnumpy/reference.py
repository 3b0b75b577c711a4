"""The definition: every operator, every layer and the forward pass as pure functions of NumPy arrays.

Arrays are float32 or float64, pictures are (N, C, H, W). Each operator computes what the PyTorch operator named in its
docstring computes. n: batch, c: input channels, o: output channels, g: groups, h w: height and width, k: kernel taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .arrays import grouped_product, pad, taps
from .layers import BN, Add, Cbam, Concat, Conv, Layer, Mean, Pool, Shuffle, Slice, SqueezeExcite, evaluate
from .networks import Spec

Array = np.ndarray


def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """``torch.nn.functional.conv2d``: (N, C, H, W) with weight (O, C/g, KH, KW) and bias (O,) -> (N, O, H', W').

    Raises ValueError if the shapes do not fit together or the padded input is smaller than the kernel.
    """
    n, c = x.shape[:2]
    o, c_per_group, kh, kw = weight.shape
    if c != c_per_group * groups or o % groups:
        raise ValueError(f"conv2d: input {x.shape} and weight {weight.shape} do not fit {groups} groups")
    seen = taps(pad(x, (padding, padding), (padding, padding)), kh, kw, stride)
    ho, wo = seen[0].shape[2:]
    if c_per_group == 1 and o == c:  # depthwise: one filter per channel, so no sum over channels
        kernel = weight.reshape(c, kh * kw).T[:, :, None, None]  # (k, c, 1, 1)
        y = seen[0] * kernel[0]  # (n, c, ho, wo)
        product = np.empty_like(y)
        for tap, w_tap in zip(seen[1:], kernel[1:], strict=True):
            y += np.multiply(tap, w_tap, out=product)
    else:
        columns = np.stack(seen, 2) if len(seen) > 1 else seen[0]  # (n, c, k, ho, wo)
        columns = columns.reshape(n, groups, c_per_group * kh * kw, ho * wo)
        kernel = weight.reshape(groups, o // groups, c_per_group * kh * kw)
        y = grouped_product(kernel, columns).reshape(n, o, ho, wo)
    return y if bias is None else np.add(y, bias[:, None, None], out=y)


def channel_shuffle(x: Array, groups: int) -> Array:
    """``torch.nn.functional.channel_shuffle``: swaps (g, C/g) to (C/g, g) and flattens. C must be divisible by g."""
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).swapaxes(1, 2).reshape(n, c, h, w)


def batch_norm(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float = 1e-5) -> Array:
    """``torch.nn.functional.batch_norm`` in evaluation mode: (N, C, H, W), statistics and affine (C,)."""
    scale = weight / np.sqrt(var + np.asarray(eps, var.dtype))  # (c,)
    shift = bias - mean * scale  # (c,)
    y = x * scale[:, None, None]
    return np.add(y, shift[:, None, None], out=y)


def relu(x: Array) -> Array:
    """``torch.nn.functional.relu``, any shape. NaN stays NaN."""
    return np.maximum(x, 0)


def relu6(x: Array) -> Array:
    """``torch.nn.functional.relu6``: min(max(x, 0), 6), any shape. NaN stays NaN."""
    return np.clip(x, 0, 6)


def sigmoid(x: Array) -> Array:
    """``torch.sigmoid``: 1 / (1 + exp(-x)), any shape. If exp overflows, the result is 0, which is right."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    """``torch.nn.functional.silu``: x sigmoid(x), any shape."""
    return x * sigmoid(x)


def hardsigmoid(x: Array) -> Array:
    """``torch.nn.functional.hardsigmoid``: relu6(x + 3) / 6, any shape."""
    return relu6(x + 3) / 6


def hardswish(x: Array) -> Array:
    """``torch.nn.functional.hardswish``: x relu6(x + 3) / 6, any shape."""
    return x * hardsigmoid(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"": lambda x: x}
ACTIVATIONS |= {f.__name__: f for f in (relu, relu6, silu, hardswish, sigmoid, hardsigmoid)}


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``torch.nn.functional.linear``: (N, C) with weight (O, C) and bias (O,) -> (N, O)."""
    y = np.einsum("nc,oc->no", x, weight)  # not BLAS: the same bits in any batch and with any number of threads
    return y if bias is None else y + bias


def max_pool2d(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """``torch.nn.functional.max_pool2d``: (N, C, H, W) -> (N, C, H', W'). NaN stays NaN."""
    first, *others = taps(pad(x, (padding, padding), (padding, padding), -np.inf), kernel, kernel, stride)
    y = first.copy()
    for tap in others:
        np.maximum(y, tap, out=y)
    return y


def avg_pool2d(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """``torch.nn.functional.avg_pool2d``: (N, C, H, W) -> (N, C, H', W'). The padding counts as zeros."""
    first, *others = taps(pad(x, (padding, padding), (padding, padding)), kernel, kernel, stride)
    return sum(others, first) / kernel**2


def adaptive_avg_pool2d(x: Array, output_size: int | tuple[int, int]) -> Array:
    """``torch.nn.functional.adaptive_avg_pool2d``: (N, C, H, W) -> (N, C, *output_size), any output size."""
    sizes = (output_size, output_size) if isinstance(output_size, int) else output_size
    # Bin i covers floor(i * side / out) to ceil((i + 1) * side / out), so that bins may overlap.
    rows, columns = (
        [slice(i * side // out, -(-(i + 1) * side // out)) for i in range(out)]
        for side, out in zip(x.shape[2:], sizes, strict=True)
    )
    means = [x[:, :, row, column].reshape(*x.shape[:2], -1).mean(2) for row in rows for column in columns]
    return np.stack(means, 2).reshape(*x.shape[:2], *sizes)


def _norm(x: Array, layer: Conv | Cbam, params: Mapping[str, Array]) -> Array:
    weight, bias, mean, var = (params[f"{layer.name}.bn.{field}"] for field in BN)
    return batch_norm(x, weight, bias, mean, var, layer.eps)


def _mlp(x: Array, activation: str, name: str, params: Mapping[str, Array]) -> Array:
    """(n, c) -> (n, hidden) -> (n, c)"""
    hidden = linear(x, params[f"{name}.fc1.weight"], params.get(f"{name}.fc1.bias"))
    return linear(ACTIVATIONS[activation](hidden), params[f"{name}.fc2.weight"], params.get(f"{name}.fc2.bias"))


def squeeze_excite(x: Array, layer: SqueezeExcite, params: Mapping[str, Array]) -> Array:
    """Squeeze-and-excitation (Hu et al., CVPR 2018): (N, C, H, W) -> (N, C, H, W)."""
    gate = ACTIVATIONS[layer.gate](_mlp(x.mean((2, 3)), layer.activation, layer.name, params))  # (n, c)
    return x * gate[:, :, None, None]


def cbam(x: Array, layer: Cbam, params: Mapping[str, Array]) -> Array:
    """Convolutional block attention (Woo et al., ECCV 2018): (N, C, H, W) -> (N, C, H, W)."""
    mean, most = (_mlp(pooled, "relu", layer.name, params) for pooled in (x.mean((2, 3)), x.max((2, 3))))
    x = x * sigmoid(mean + most)[:, :, None, None]  # (n, c, h, w)
    maps = [x.mean(1), x.max(1)] if layer.layout.mean_first else [x.max(1), x.mean(1)]  # 2 of (n, h, w)
    spatial = conv2d(np.stack(maps, 1), params[f"{layer.name}.spatial.weight"], padding=3)  # (n, 1, h, w)
    if layer.layout.spatial_bn:
        spatial = _norm(spatial, layer, params)  # (n, 1, h, w)
    return np.multiply(x, sigmoid(spatial), out=x)  # (n, c, h, w)


def compute(layer: Layer, params: Mapping[str, Array], x: Array, *others: Array) -> Array:
    """One layer of any network: its input, or its two inputs, to its output, all (N, C, H, W).

    ``params`` holds the network's arrays under the names of ``layers.parameters``.
    """
    match layer:
        case Conv():
            weight, bias = params[f"{layer.name}.conv.weight"], params.get(f"{layer.name}.conv.bias")
            x = conv2d(pad(x, *layer.pads((x.shape[2], x.shape[3]))), weight, bias, layer.stride, groups=layer.groups)
            x = _norm(x, layer, params) if layer.batch_norm else x
            return ACTIVATIONS[layer.activation](x)
        case Shuffle():
            return channel_shuffle(x, layer.groups)
        case Slice():
            return x[:, layer.indices()]
        case Add():
            return ACTIVATIONS[layer.activation](x + others[0])
        case Concat():
            return ACTIVATIONS[layer.activation](np.concatenate([x, *others], 1))
        case Pool():
            return max_pool2d(x, 3, 2, 1) if layer.kind == "max" else avg_pool2d(x, 3, 2, 1)
        case Mean():
            return adaptive_avg_pool2d(x, 1)
        case SqueezeExcite():
            return squeeze_excite(x, layer, params)
        case Cbam():
            return cbam(x, layer, params)
        case _:
            raise TypeError(f"{layer} is not a layer")


def forward(spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The whole embedding network: preprocessed pictures (N, 3, H, W) -> embeddings (N, spec.embedding).

    ``params`` holds the arrays under the names of ``layers.parameters``, of the dtype of ``x``.
    """
    y = evaluate(spec.layers(), x, lambda layer, *inputs: compute(layer, params, *inputs))
    return y.reshape(len(x), spec.embedding)
