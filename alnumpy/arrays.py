"""What the operators of reference.py share: padding, windows, and products whose bits do not depend on threads."""

from __future__ import annotations

import numpy as np

Array = np.ndarray

ONE_THREAD = 1 << 18  # OpenBLAS takes one thread for matrix products of up to this many multiply-adds


def pad(x: Array, rows: tuple[int, int], columns: tuple[int, int], value: float = 0) -> Array:
    """``torch.nn.functional.pad`` of (N, C, H, W): ``rows`` above and below, ``columns`` left and right."""
    if not any((*rows, *columns)):
        return x
    n, c, h, w = x.shape
    shape = n, c, h + sum(rows), w + sum(columns)
    padded = np.full(shape, value, x.dtype) if value else np.zeros(shape, x.dtype)  # zeros need no writing
    padded[:, :, rows[0] : rows[0] + h, columns[0] : columns[0] + w] = x
    return padded


def taps(x: Array, kh: int, kw: int, stride: int) -> list[Array]:
    """For each of the k = kh kw positions in a window, the values there: k times (n, c, ho, wo), row by row.

    Raises ValueError if the input is smaller than the window.
    """
    h, w = x.shape[2:]
    ho, wo = (h - kh) // stride + 1, (w - kw) // stride + 1
    if ho < 1 or wo < 1:
        raise ValueError(f"padded input of {h}x{w} is smaller than the kernel {kh}x{kw}")
    rows = [slice(i, i + stride * (ho - 1) + 1, stride) for i in range(kh)]
    columns = [slice(j, j + stride * (wo - 1) + 1, stride) for j in range(kw)]
    return [x[:, :, row, column] for row in rows for column in columns]


def grouped_product(kernel: Array, columns: Array) -> Array:
    """(g, o, k) @ (n, g, k, p) -> (n, g, o, p), in pieces so small that BLAS computes each in one thread.

    With more threads some of its kernels add in another order, and the bits would depend on the number of threads. The
    bits of a vector times a matrix would depend on it as well: einsum computes that product.
    """
    o, k = kernel.shape[1:]
    p = columns.shape[-1]
    if o == 1 or p == 1:
        return np.einsum("gok,ngkp->ngop", kernel, columns)
    width = max(64, ONE_THREAD // (o * k))
    pieces = -(-o // max(4, ONE_THREAD // (k * min(width, p))))  # all of about as many rows, so that none has just one
    if pieces == 1 and width >= p:
        return kernel @ columns
    y = np.empty((*columns.shape[:2], o, p), np.result_type(kernel, columns))
    for left in range(0, p, width):
        for rows in np.array_split(np.arange(o), pieces):
            part = slice(rows[0], rows[-1] + 1), slice(left, left + width)
            np.matmul(kernel[:, part[0]], columns[..., part[1]], out=y[:, :, part[0], part[1]])
    return y
