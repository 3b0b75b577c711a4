"""The definition of ALNet: every operator and the forward pass as pure functions of NumPy arrays.

Arrays are float32 or float64, pictures are (N, C, H, W). Each operator computes what the PyTorch operator named in its
docstring computes. n: batch, c: input channels, o: output channels, g: groups, h w: height and width, k: kernel taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .spec import Cbam, Conv, Shuffle, Spec, layers

Array = np.ndarray

ONE_THREAD = 1 << 18  # multiply-adds of a matrix product up to which OpenBLAS takes one thread


def _product(kernel: Array, columns: Array) -> Array:
    """(g, o, k) @ (n, g, k, p) -> (n, g, o, p), in pieces that BLAS computes in one thread, whatever it may use.

    With more threads some of its kernels add in another order, and the bits would depend on their number.
    """
    o, k = kernel.shape[1:]
    p = columns.shape[-1]
    width = max(64, ONE_THREAD // (o * k))
    pieces = -(-o // max(4, ONE_THREAD // (k * min(width, p))))  # of about as many rows each, so that none is single
    if pieces == 1 and width >= p:
        return kernel @ columns
    y = np.empty((*columns.shape[:2], o, p), np.result_type(kernel, columns))
    for left in range(0, p, width):
        for rows in np.array_split(np.arange(o), pieces):
            part = slice(rows[0], rows[-1] + 1), slice(left, left + width)
            np.matmul(kernel[:, part[0]], columns[..., part[1]], out=y[:, :, part[0], part[1]])
    return y


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """``torch.nn.functional.conv2d``: (N, C, H, W) with weight (O, C/g, KH, KW) and bias (O,) -> (N, O, H', W').

    Raises ValueError where the shapes do not fit together or the padded input is smaller than the kernel.
    """
    n, c, h, w = x.shape
    o, c_per_group, kh, kw = weight.shape
    if c != c_per_group * groups or o % groups:
        raise ValueError(f"conv2d: input {x.shape} and weight {weight.shape} do not fit {groups} groups")
    ho = (h + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    wo = (w + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    if ho < 1 or wo < 1:
        raise ValueError(f"conv2d: padded input of {h}x{w} is smaller than the kernel {kh}x{kw}")
    if padding:
        padded = np.zeros((n, c, h + 2 * padding, w + 2 * padding), x.dtype)
        padded[:, :, padding : padding + h, padding : padding + w] = x
        x = padded
    rows = [slice(i * dilation, i * dilation + stride * (ho - 1) + 1, stride) for i in range(kh)]
    cols = [slice(j * dilation, j * dilation + stride * (wo - 1) + 1, stride) for j in range(kw)]
    taps = [x[:, :, row, col] for row in rows for col in cols]  # k times (n, c, ho, wo): what each kernel tap sees

    if c_per_group == 1 and o == c:  # depthwise: one filter a channel, so no sum over channels
        kernel = weight.reshape(c, kh * kw).T[:, :, None, None]  # (k, c, 1, 1)
        y = taps[0] * kernel[0]  # (n, c, ho, wo)
        product = np.empty_like(y)
        for tap, w_tap in zip(taps[1:], kernel[1:], strict=True):
            y += np.multiply(tap, w_tap, out=product)
    else:
        columns = np.stack(taps, 2) if len(taps) > 1 else taps[0]  # (n, c, k, ho, wo)
        columns = columns.reshape(n, groups, c_per_group * kh * kw, ho * wo)
        kernel = weight.reshape(groups, o // groups, c_per_group * kh * kw)
        vector = o == groups or ho * wo == 1  # times a matrix: BLAS's bits depend on the number of its threads
        y = np.einsum("gok,ngkp->ngop", kernel, columns) if vector else _product(kernel, columns)
        y = y.reshape(n, o, ho, wo)
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
    """``torch.sigmoid``: 1 / (1 + exp(-x)), any shape. Overflow of exp is the right answer, 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``torch.nn.functional.linear``: (N, C) with weight (O, C) and bias (O,) -> (N, O)."""
    y = np.einsum("nc,oc->no", x, weight)  # not by BLAS, for the same bits in any batch and with any number of threads
    return y if bias is None else y + bias


def _bins(size: int, out: int) -> list[slice]:
    """PyTorch's adaptive pooling rule: bin i covers floor(i*size/out) to ceil((i+1)*size/out), so bins may overlap."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _adaptive_pool2d(pool: Callable[..., Array], x: Array, output_size: int | tuple[int, int]) -> Array:
    out_h, out_w = (output_size, output_size) if isinstance(output_size, int) else output_size
    n, c, h, w = x.shape
    y = np.empty((n, c, out_h, out_w), x.dtype)
    for i, row in enumerate(_bins(h, out_h)):
        for j, col in enumerate(_bins(w, out_w)):
            y[:, :, i, j] = pool(x[:, :, row, col].reshape(n, c, -1), axis=2)
    return y


def adaptive_avg_pool2d(x: Array, output_size: int | tuple[int, int]) -> Array:
    """``torch.nn.functional.adaptive_avg_pool2d``: (N, C, H, W) -> (N, C, *output_size), any output size."""
    return _adaptive_pool2d(np.mean, x, output_size)


def adaptive_max_pool2d(x: Array, output_size: int | tuple[int, int]) -> Array:
    """``torch.nn.functional.adaptive_max_pool2d``: (N, C, H, W) -> (N, C, *output_size), any output size."""
    return _adaptive_pool2d(np.max, x, output_size)


def cbam(x: Array, layer: Cbam, params: Mapping[str, Array], eps: float = 1e-5) -> Array:
    """Convolutional block attention (Woo et al., ECCV 2018) in the layout that ``layer.layout`` names.

    (N, C, H, W) -> (N, C, H, W). ``params`` holds the arrays under the names of ``spec.layer_parameters(layer)``.
    """

    def get(name: str) -> Array | None:
        return params.get(f"{layer.name}.{name}")

    def mlp(pooled: Array) -> Array:
        hidden = relu(linear(pooled, params[f"{layer.name}.fc1.weight"], get("fc1.bias")))  # (n, hidden)
        return linear(hidden, params[f"{layer.name}.fc2.weight"], get("fc2.bias"))  # (n, c)

    channel = sigmoid(mlp(x.mean((2, 3))) + mlp(x.max((2, 3))))  # (n, c)
    x = x * channel[:, :, None, None]  # (n, c, h, w)
    maps = [x.mean(1), x.max(1)] if layer.layout.mean_first else [x.max(1), x.mean(1)]  # 2 of (n, h, w)
    spatial = conv2d(np.stack(maps, 1), params[f"{layer.name}.spatial.weight"], padding=3)  # (n, 1, h, w)
    if layer.layout.spatial_bn:
        spatial = batch_norm(spatial, *_bn(layer.name, params), eps)  # (n, 1, h, w)
    return np.multiply(x, sigmoid(spatial), out=x)  # (n, c, h, w)


def _bn(name: str, params: Mapping[str, Array]) -> tuple[Array, Array, Array, Array]:
    weight, bias, mean, var = (
        params[f"{name}.bn.{field}"] for field in ("weight", "bias", "running_mean", "running_var")
    )
    return weight, bias, mean, var


ACTIVATIONS = {"relu": relu, "relu6": relu6, "": lambda x: x}


def conv_bn_activation(x: Array, layer: Conv, params: Mapping[str, Array], eps: float = 1e-5) -> Array:
    """One ``spec.Conv``: convolution, batch norm, activation. (N, cin, H, W) -> (N, cout, H', W')."""
    weight, bias = params[f"{layer.name}.conv.weight"], params.get(f"{layer.name}.conv.bias")
    x = conv2d(x, weight, bias, layer.stride, layer.kernel // 2, groups=layer.groups)
    x = batch_norm(x, *_bn(layer.name, params), eps)
    return ACTIVATIONS[layer.activation](x)


def forward(spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The whole embedding network: preprocessed pictures (N, 3, H, W) -> embeddings (N, spec.embedding).

    ``params`` holds the arrays under the names of ``spec.parameters(spec)``, of the dtype of ``x``.
    """
    for layer in layers(spec):
        if isinstance(layer, Conv):
            x = conv_bn_activation(x, layer, params, spec.bn_eps)
        elif isinstance(layer, Shuffle):
            x = channel_shuffle(x, layer.groups)
        else:
            x = cbam(x, layer, params, spec.bn_eps)
    return adaptive_avg_pool2d(x, 1)[:, :, 0, 0]  # (n, embedding)
