"""The product of float activations with the codes of a weight."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor
from torch.nn import functional as F

from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.leaves.how import Dynamic
from intact.leaves.recording import call, recording
from intact.leaves.weight import Derived, QWeight
from intact.private import int8_matmul, packed_matmul, packed_matmul_is_exact
from intact.types import PerToken

__all__ = ["product", "scaled_products"]

_CHUNK = 1 << 18  # float32 numbers at a time: what every pass touches stays in a core's cache
_LEAST = 128  # rows: fewer starve the matrix product
_PACKED = 12  # rows: for fewer the fixed cost of the packed kernel is more than it saves


def product(x: Tensor, weight: QWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias`` for x (..., columns), in the dtype of ``x``.

    With :class:`Dynamic` weights both operands of the product are integers, and it is exact; no gradient flows. Else
    the weight is made float32 first.

    >>> from intact.leaves.weight import encode
    >>> x, w = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -1.27]])
    >>> product(x, encode(w, Dynamic()))
    tensor([[1.7700]])
    """
    if recording():
        result: Tensor = call("leaf_product", weight, x, bias)
        return result
    if not isinstance(weight.how, Dynamic):
        return F.linear(x.to(torch.float32), weight.dequantize(), bias).to(x.dtype)
    with torch.no_grad():
        result = _integer(x.reshape(-1, x.shape[-1]).to(torch.float32), weight, bias)
    return result.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def _integer(x: Tensor, weight: QWeight, bias: Tensor | None) -> Tensor:
    """Rows at a time, in steps that runtimes have too: no product is added to anything without being rounded first.

    Per token ``(codes_x @ codes_w.T * scale_w) * step + (low * offsets + bias)``; per tensor, as ONNX Runtime,
    ``(codes_x - zero) @ codes_w.T * (step * scale_w) + bias``.
    """
    (m, k), n = x.shape, weight.shape[0]
    how, derived = weight.how, weight.derived()
    assert isinstance(how, Dynamic)
    if m == 0:
        return x.new_empty(0, n)
    whole = None if isinstance(how.activation, PerToken) else tensor_range(x)
    rows = min(max(_LEAST, _CHUNK // max(k, n)), m)
    result = x.new_empty(m, n) if rows < m else None
    for begin in range(0, m, rows):
        part, out = x[begin : begin + rows], None if result is None else result[begin : begin + rows]
        if whole is None:
            y = _of_rows(part, derived, bias, out)
        else:
            step, zero = whole
            scaled = scaled_products(quantize_tensor(part, step, zero), derived, step=step,
                                     zero=int(zero.nan_to_num()))
            y = scaled if bias is None and out is None else torch.add(
                scaled, 0.0 if bias is None else bias, out=scaled if out is None else out)
    return y if result is None else result


def _of_rows(x: Tensor, derived: Derived, bias: Tensor | None, out: Tensor | None) -> Tensor:
    codes, step, low = quantize_rows(x, _SCRATCH.floats(x.shape, x.device))
    scaled = scaled_products(codes, derived).mul_(step)
    base = torch.mul(low, derived.offsets, out=_SCRATCH.floats(scaled.shape, x.device))
    if bias is not None:
        base.add_(bias)
    return torch.add(base, scaled, out=scaled if out is None else out)


class _Scratch(threading.local):
    """A thread's room for what does not outlast a step: fresh memory costs as much as several passes over it."""

    def __init__(self) -> None:
        self._buffer = self._view = torch.empty(0)

    def floats(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Float32 numbers of any value, overwritten by the next call."""
        if self._view.shape == shape and self._view.device == device:
            return self._view
        count = math.prod(shape)
        with torch.inference_mode(False):
            if self._buffer.numel() < count or self._buffer.device != device:
                self._buffer = torch.empty(max(count, _CHUNK), dtype=torch.float32, device=device)
            self._view = self._buffer[:count].view(shape)
        return self._view


_SCRATCH = _Scratch()


def scaled_products(
    x: Tensor, derived: Derived, *, step: Tensor | None = None, zero: int = 0, fast: bool = True
) -> Tensor:
    """``float32((x - zero) @ codes.T) * (step * scale)``, summed over groups, for uint8 codes x (m, k).

    Args:
        x: activations.
        derived: of the weight.
        step: a scale of all activations; None for 1.
        zero: their zero point.
        fast: allow the kernel with the packed weight, which gives the same numbers.
    """
    w, scale = derived.codes, derived.row_scale if step is None else derived.row_scale * step
    if scale.ndim < 2:
        if fast and len(x) >= _PACKED and x.device.type == "cpu" and packed_matmul_is_exact():
            return packed_matmul(x, derived.packed, scale, zero)
        acc = int8_matmul(_centred(x), w.t()).add_(derived.sums[:, 0], alpha=128 - zero)
        return acc.to(torch.float32).mul_(scale)
    size = w.shape[1] // scale.shape[1]
    total: Tensor | None = None
    for g in range(scale.shape[1]):
        part = slice(g * size, (g + 1) * size)
        acc = int8_matmul(_centred(x[:, part]).contiguous(), w[:, part].contiguous().t())
        term = acc.add_(derived.sums[:, g], alpha=128 - zero).to(torch.float32).mul_(scale[:, g])
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


def _centred(x: Tensor) -> Tensor:
    return (x ^ 128).view(torch.int8)  # flipping the top bit subtracts 128
