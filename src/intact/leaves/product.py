"""The product of float activations with the codes of a weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.leaves.how import Dynamic
from intact.leaves.weight import QWeight
from intact.private import int8_matmul
from intact.types import PerToken

__all__ = ["product"]

_CHUNK = 1 << 18  # float32 numbers read and written at a time: what every pass touches stays in a core's cache
_LEAST = 32  # rows: fewer starve the matrix product


def product(x: Tensor, weight: QWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias`` for x (..., columns), in the dtype of ``x``.

    With :class:`Dynamic` weights both operands of the product are integers, and it is exact; no gradient flows. Else
    the weight is made float32 first.

    >>> from intact.leaves.weight import encode
    >>> x, w = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -1.27]])
    >>> product(x, encode(w, Dynamic()))
    tensor([[1.7700]])
    """
    if not isinstance(weight.how, Dynamic):
        return F.linear(x.to(torch.float32), weight.dequantize(), bias).to(x.dtype)
    with torch.no_grad():
        flat = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        result = _integer(flat, weight, bias)
    return result.reshape(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def _integer(x: Tensor, weight: QWeight, bias: Tensor | None) -> Tensor:
    """``scale_x * (codes_x @ codes_w.T) * scale_w + middle_x * sum(w) + bias``, rows at a time."""
    m, n = x.shape[0], weight.shape[0]
    result = x.new_empty(m, n)
    if m == 0:
        return result
    how, scale_w, offsets = weight.how, weight.scale, weight.offsets()
    assert isinstance(how, Dynamic) and scale_w is not None
    whole = None if isinstance(how.activation, PerToken) else tensor_range(x)
    rows = max(_LEAST, _CHUNK // (x.shape[1] + n))
    for begin in range(0, m, rows):
        part, out = x[begin : begin + rows], result[begin : begin + rows]
        if whole is None:
            codes, scale, middle = quantize_rows(part)
        else:
            scale, zero = whole
            codes = (quantize_tensor(part, scale, zero) ^ 128).view(torch.int8)  # flips the top bit: minus 128
            middle = (128.0 - zero) * scale
        _accumulate(codes, weight.codes, scale_w, out)
        out.mul_(scale)
        if bias is not None:
            torch.addcmul(bias, out, scale_w, out=out) if scale_w.ndim < 2 else out.add_(bias)
        elif scale_w.ndim < 2:
            out.mul_(scale_w)
        out.addcmul_(middle, offsets)
    return result


def _accumulate(x: Tensor, w: Tensor, scale_w: Tensor, out: Tensor) -> None:
    """The int32 accumulators as float32; for groups their sum, each times its scale."""
    if scale_w.ndim < 2:
        out.copy_(int8_matmul(x, w.t()))
        return
    groups = scale_w.shape[1]
    size = w.shape[1] // groups
    out.zero_()
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        acc = int8_matmul(x[:, part].contiguous(), w[:, part].contiguous().t())
        out.addcmul_(acc.to(torch.float32), scale_w[:, g])
