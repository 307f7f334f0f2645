"""Bilinear interpolation: of dequantized codes, in the order that ONNX Runtime uses, or in integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from intact.arithmetic import ResizeRule, Rounding, dequantize, multiplier, quantize, requantize, round_to_int
from intact.arithmetic.litert import mix_codes, resize_places
from intact.errors import PlanError
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, to_carrier
from intact.types.dims import Sizes, resolve_shape

__all__ = ["BilinearKernel"]


#: for every output position two neighbours, and what belongs to each
Axis = tuple[Tensor, Tensor, Tensor, Tensor]


@lru_cache(maxsize=64)
def _axis(source: int, size: int, corners: bool) -> Axis:
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


def distance_bits(bits: int) -> int:
    """Bits of the distance between two neighbours: with those of a code, twice, they fit in 31."""
    return min(11, (30 - bits) // 2)


def _whole(axis: Axis, bits: int) -> Axis:
    """Neighbours and their weights as integers, which add up to ``2**bits``."""
    low, high, to_low, _ = axis
    at_high = round_to_int(to_low.to(torch.float64) * 2.0**bits, Rounding.HALF_EVEN).to(torch.int64)
    return low, high, 2**bits - at_high, at_high


@kernel("interpolate")
class BilinearKernel(Kernel):
    """Four products, added from left to right, then quantized; no fused multiply-add.

    Where the rule is one of codes, :func:`intact.arithmetic.litert.mix_codes`. Else, without floats, the distances have
    :func:`distance_bits` bits, the sum is exact, and requantized once.
    """

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self.low, self.high = activation_codes(binding)
        self.rule = binding.arithmetic.resize
        if self.rule is not ResizeRule.PRODUCTS:
            if not binding.inputs[0].same_as(binding.output):
                raise PlanError("interpolated codes have their operand's encoding", where=binding.where)
        elif binding.arithmetic.integer_only:
            (qx,) = binding.inputs
            bits = distance_bits(qx.qtype.bits)
            self.bits = bits
            bound = 2.0 ** (qx.qtype.bits + 2 * bits)
            step = torch.tensor(2.0 ** (-2 * bits))
            self.multiplier = multiplier(qx.scale, step, binding.output.scale, binding.arithmetic, bound)

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes (batch, channels, *size)."""
        (x,), b = xs, self.binding
        corners = bool(b.attrs["align_corners"])
        ends = list(zip(x.shape[2:], resolve_shape(b.attrs["size"], sizes), strict=True))
        if self.rule is not ResizeRule.PRODUCTS:
            places = tuple(resize_places(*end, corners, self.rule) for end in ends)
            return to_carrier(mix_codes(x.long(), places, self.rule).clamp_(self.low, self.high).float(), x, b)
        rows, columns = (_axis(*end, corners) for end in ends)
        if b.arithmetic.integer_only:
            return to_carrier(self._integer(x, _whole(rows, self.bits), _whole(columns, self.bits)), x, b)
        values = dequantize(x, b.inputs[0])
        y1, y2, dy1, dy2 = (t.to(x.device) for t in rows)
        x1, x2, dx1, dx2 = (t.to(x.device) for t in columns)

        def term(rows: Tensor, columns: Tensor, a: Tensor, c: Tensor) -> Tensor:
            return (c[None, :] * a[:, None]) * values.index_select(2, rows).index_select(3, columns)

        total = term(y1, x1, dy2, dx2) + term(y1, x2, dy2, dx1)
        total = (total + term(y2, x1, dy1, dx2)) + term(y2, x2, dy1, dx1)
        codes = quantize(total, b.output, b.arithmetic).clamp_(self.low, self.high)
        return to_carrier(codes, x, b)

    def whole_tables(self, source: Sequence[int], size: Sequence[int]) -> tuple[Axis, Axis]:
        """Of rows and of columns: both neighbours of every output position, and their parts as integers."""
        corners = bool(self.binding.attrs["align_corners"])
        rows, columns = (_whole(_axis(n, m, corners), self.bits) for n, m in zip(source, size, strict=True))
        return rows, columns

    def _integer(self, x: Tensor, rows: Axis, columns: Axis) -> Tensor:
        y = x.long() - int(self.binding.inputs[0].zero_point)
        for axis, table in ((2, rows), (3, columns)):
            low, high, at_low, at_high = (t.to(x.device) for t in table)
            shape = [-1, 1] if axis == 2 else [-1]
            y = y.index_select(axis, low) * at_low.reshape(shape) + y.index_select(axis, high) * at_high.reshape(shape)
        by, b = self.multiplier.to(x.device), self.binding
        return requantize(y, by, int(b.output.zero_point), self.low, self.high, b.arithmetic)
