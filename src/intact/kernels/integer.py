"""Exact integer convolution and matrix product on codes, in int32 (int64 for wide codes)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from intact.private import int8_matmul

__all__ = ["conv_int", "matmul_int"]

_CHUNK = 1 << 26  # bytes of unfolded input at a time


def _centre(x: Tensor) -> tuple[Tensor, int]:
    """Codes as int8 and what was taken off them; int32 codes if they do not fit."""
    if x.dtype == torch.uint8:
        return (x ^ 128).view(torch.int8), 128  # flipping the top bit subtracts 128
    return x, 0


def matmul_int(x: Tensor, w: Tensor, zero: int) -> Tensor:
    """``(x - zero) @ w.T`` in int32 for codes x (..., k) and weights w (n, k)."""
    flat = x.reshape(-1, x.shape[-1])
    if x.dtype in (torch.uint8, torch.int8) and w.dtype == torch.int8:
        shifted, offset = _centre(flat)
        acc = int8_matmul(shifted.contiguous(), w.t())
        if offset != zero:
            acc = acc + (offset - zero) * w.sum(1, dtype=torch.int32)
    else:
        wide = torch.int64 if torch.int64 in (x.dtype, w.dtype) else torch.int32
        acc = (flat.to(wide) - zero) @ w.to(wide).t()
    return acc.reshape(*x.shape[:-1], w.shape[0])


def conv_int(
    x: Tensor, w: Tensor, zero: int, stride: Sequence[int], begin: Sequence[int], end: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:
    """Convolution of ``x - zero`` (zero padding) with ``w``, in int32.

    Args:
        x: codes (batch, channels, *spatial).
        w: weights (out, channels / groups, *kernel).
        zero: zero point of x, which also fills the padding.
        stride: one per spatial axis, as are the following.
        begin: padding before.
        end: padding after.
        dilation: distance of taps.
        groups: groups of channels.
    """
    n = x.ndim - 2
    pads = [v for pair in zip(reversed(begin), reversed(end), strict=True) for v in pair]
    if any(pads):
        x = _pad(x, pads, zero)
    if groups > 1 and w.shape[1] == 1:
        return _depthwise(x, w, zero, stride, dilation)
    rows = x.shape[1] * _prod(w.shape[2:]) * _prod(_out_size(x, w, stride, dilation))
    step = max(1, _CHUNK // max(1, rows * x.element_size()))
    parts = [_unfolded(x[i : i + step], w, zero, stride, dilation, groups, n) for i in range(0, x.shape[0], step)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _prod(values: Sequence[int]) -> int:
    result = 1
    for v in values:
        result *= v
    return result


def _pad(x: Tensor, pads: Sequence[int], value: int) -> Tensor:
    shape = list(x.shape)
    inner = [slice(None)] * x.ndim
    for i in range(len(pads) // 2):
        axis = x.ndim - 1 - i
        shape[axis] += pads[2 * i] + pads[2 * i + 1]
        inner[axis] = slice(pads[2 * i], pads[2 * i] + x.shape[axis])
    y = x.new_full(shape, value)
    y[tuple(inner)] = x
    return y


def _out_size(x: Tensor, w: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [
        (x.shape[2 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in range(len(stride))
    ]


def _taps(x: Tensor, w: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> list[Tensor]:
    """For every kernel position the strided view of x that it multiplies."""
    size = _out_size(x, w, stride, dilation)
    views = []
    for offset in itertools.product(*[range(k) for k in w.shape[2:]]):
        index: list[slice] = [slice(None), slice(None)]
        for o, d, s, m in zip(offset, dilation, stride, size, strict=True):
            index.append(slice(o * d, o * d + (m - 1) * s + 1, s))
        views.append(x[tuple(index)])
    return views


def _unfolded(x: Tensor, w: Tensor, zero: int, stride: Sequence[int], dilation: Sequence[int], groups: int,
              n: int) -> Tensor:
    columns = torch.stack(_taps(x, w, stride, dilation), -1)  # (batch, channels, *out, taps)
    columns = columns.movedim(1, -2)  # (batch, *out, channels, taps)
    size, per, out = columns.shape[1:-2], w.shape[1], w.shape[0] // groups
    results = []
    for g in range(groups):
        part = columns[..., g * per : (g + 1) * per, :].reshape(x.shape[0], _prod(size), -1)
        results.append(matmul_int(part, w[g * out : (g + 1) * out].flatten(1), zero))
    acc = torch.cat(results, -1) if groups > 1 else results[0]
    return acc.reshape(x.shape[0], *size, w.shape[0]).movedim(-1, 1)


def _depthwise(x: Tensor, w: Tensor, zero: int, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    multiple = w.shape[0] // x.shape[1]
    wide = torch.int64 if torch.int64 in (x.dtype, w.dtype) else torch.int32
    weights = w.to(wide).flatten(1)  # (out, taps)
    acc: Tensor | None = None
    for i, view in enumerate(_taps(x, w, stride, dilation)):
        value = view.to(wide) - zero
        if multiple > 1:
            value = value.repeat_interleave(multiple, 1)
        term = value * weights[:, i].reshape(1, -1, *[1] * (x.ndim - 2))
        acc = term if acc is None else acc.add_(term)
    assert acc is not None
    return acc
