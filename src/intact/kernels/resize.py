"""Bilinear interpolation of dequantized codes, in the order of operations that ONNX Runtime uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from intact.arithmetic import dequantize, quantize
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, to_carrier
from intact.types.dims import Sizes, resolve_shape

__all__ = ["BilinearKernel"]


@lru_cache(maxsize=64)
def _axis(source: int, size: int, corners: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper neighbour of every output position, and their distances to it, in float32."""
    out = torch.arange(size, dtype=torch.float32)
    if source == size:
        where = out
    elif corners:
        where = out * float(source - 1) / float(size - 1) if size > 1 else torch.zeros(size)
    else:
        scale = torch.tensor(size / source, dtype=torch.float32)
        where = (out + 0.5) / scale - 0.5 if size > 1 else torch.zeros(size)
    where = where.clamp(0.0, float(source - 1))
    low = where.to(torch.int64).clamp_(max=source - 1)
    high = (low + 1).clamp_(max=source - 1)
    same = low == high
    half = torch.full_like(where, 0.5)
    to_low = torch.where(same, half, (where - low.to(torch.float32)).abs())
    to_high = torch.where(same, half, (where - high.to(torch.float32)).abs())
    return low, high, to_low, to_high


@kernel("interpolate")
class BilinearKernel(Kernel):
    """Four products, added from left to right, then quantized; no fused multiply-add."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self.low, self.high = activation_codes(binding)

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes (batch, channels, *size)."""
        (x,), b = xs, self.binding
        values = dequantize(x, b.inputs[0])
        height, width = resolve_shape(b.attrs["size"], sizes)
        corners = bool(b.attrs["align_corners"])
        y1, y2, dy1, dy2 = (t.to(x.device) for t in _axis(x.shape[2], height, corners))
        x1, x2, dx1, dx2 = (t.to(x.device) for t in _axis(x.shape[3], width, corners))

        def term(rows: Tensor, columns: Tensor, a: Tensor, c: Tensor) -> Tensor:
            return (c[None, :] * a[:, None]) * values.index_select(2, rows).index_select(3, columns)

        total = term(y1, x1, dy2, dx2) + term(y1, x2, dy2, dx1)
        total = (total + term(y2, x1, dy1, dx2)) + term(y2, x2, dy1, dx1)
        codes = quantize(total, b.output, b.arithmetic).clamp_(self.low, self.high)
        return to_carrier(codes, x, b)
