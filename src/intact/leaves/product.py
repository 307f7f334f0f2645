"""The product of float activations with the codes of a weight."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor
from torch.nn import functional as F

from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.errors import IntactError
from intact.leaves.how import Dynamic
from intact.leaves.recording import call, recording
from intact.leaves.weight import Derived, QWeight
from intact.private import int8_matmul, packed_matmul, packed_matmul_is_exact
from intact.types import PerToken

__all__ = ["product", "scaled_products"]

_CHUNK = 1 << 17  # float32 numbers at a time: what several passes touch stays in a core's cache
_PACKED = 12  # rows: for fewer the fixed cost of the packed kernel is more than it saves


def product(x: Tensor, weight: QWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias`` for x (..., columns), in the dtype of ``x``.

    With :class:`Dynamic` weights both operands of the product are integers, and it is exact; no gradient flows. Else
    the weight is made float32 first.

    Raises:
        IntactError: if x does not fit.

    >>> from intact.leaves.weight import encode
    >>> x, w = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -1.27]])
    >>> product(x, encode(w, Dynamic()))
    tensor([[1.7700]])
    """
    if x.ndim == 0 or x.shape[-1] != weight.shape[1] or not x.is_floating_point():
        raise IntactError("the input does not fit the layer", got=f"{x.dtype}, {tuple(x.shape)}",
                          allowed=f"real numbers, {weight.shape[1]} in the last axis")
    if recording():
        result: Tensor = call("leaf_product", weight, x, bias)
        return result
    bias = None if bias is None else bias.to(torch.float32)
    if not isinstance(weight.how, Dynamic):
        return F.linear(x.to(torch.float32), weight.dequantize(), bias).to(x.dtype)
    with torch.no_grad():
        result = _integer(x.reshape(-1, x.shape[-1]).to(torch.float32), weight, bias)
    return result.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def _integer(x: Tensor, weight: QWeight, bias: Tensor | None) -> Tensor:
    """For float32 x (rows, columns).

    Per token ``(codes_x @ codes_w.T * scale_w) * step + (low * offsets + bias)``; per tensor, as ONNX Runtime,
    ``(codes_x - zero) @ codes_w.T * (step * scale_w) + bias``.
    """
    how, derived = weight.how, weight.derived()
    assert isinstance(how, Dynamic)
    if x.shape[0] == 0:
        return x.new_empty(0, weight.shape[0])
    if isinstance(how.activation, PerToken):
        codes, step, low = quantize_rows(x)
        return _with_origins(scaled_products(codes, derived), step, low, derived.offsets, bias)
    step, zero = tensor_range(x)
    rows = max(1, _CHUNK // x.shape[1])
    parts = [quantize_tensor(part, step, zero) for part in x.split(rows)]
    codes = parts[0] if len(parts) == 1 else torch.cat(parts)
    scaled = scaled_products(codes, derived, step=step, zero=int(zero.nan_to_num()))
    return scaled if bias is None else scaled.add_(bias)


def _with_origins(scaled: Tensor, step: Tensor, low: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """``scaled * step + (low * offsets + bias)`` in place of ``scaled``, rows at a time.

    Every product is rounded before it is added to something: addcmul would not, and no runtime has it.
    """
    rows = max(1, _CHUNK // scaled.shape[1])
    whole = scaled.shape[0] <= rows
    for begin in range(0, scaled.shape[0], rows):
        part = slice(begin, begin + rows)
        y, s, z = (scaled, step, low) if whole else (scaled[part], step[part], low[part])
        base = torch.mul(z, offsets, out=_SCRATCH.floats(y.shape, y.device))
        if bias is not None:
            base.add_(bias)
        y.mul_(s).add_(base)
    return scaled


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
        x: activations; columns behind those of the weight do not count.
        derived: of the weight.
        step: a scale of all activations; None for 1.
        zero: their zero point.
        fast: allow the kernel with the packed weight, which gives the same numbers.
    """
    w, scale = derived.codes, derived.row_scale if step is None else derived.row_scale * step
    columns = w.shape[1]
    if scale.ndim < 2:
        if fast and len(x) >= _PACKED and x.device.type == "cpu" and packed_matmul_is_exact():
            return packed_matmul(x, derived.packed(x.shape[1] - columns), scale, zero)
        acc = int8_matmul(x[:, :columns].contiguous(), w.t())
        return (acc.sub_(derived.sums[:, 0], alpha=zero) if zero else acc).to(torch.float32).mul_(scale)
    size = columns // scale.shape[1]
    total: Tensor | None = None
    for g in range(scale.shape[1]):
        part = slice(g * size, (g + 1) * size)
        acc = int8_matmul(x[:, part].contiguous(), w[:, part].contiguous().t())
        term = acc.sub_(derived.sums[:, g], alpha=zero).to(torch.float32).mul_(scale[:, g])
        total = term if total is None else total.add_(term)
    assert total is not None
    return total
