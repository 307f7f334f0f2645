"""Averages on codes: over whole axes by an exact integer sum, over windows as the target does it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from intact.arithmetic import (
    Arithmetic,
    MeanRule,
    Multiplier,
    PoolRule,
    Requantize,
    carrier_for,
    dequantize,
    multiplier,
    requantize,
    round_to_int,
)
from intact.arithmetic.litert import code_mean, mean_codes
from intact.errors import PlanError
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, to_carrier
from intact.types.dims import Sizes

__all__ = ["AveragePoolKernel", "MeanKernel"]


def _average_multiplier(
    scale: Tensor, output_scale: Tensor, count: Tensor, arithmetic: Arithmetic, bound: float
) -> Multiplier:
    """``s_x / (s_y * n)``; in float32 in this order.

    Where scales are powers of two, ``1 / n`` still is none: a mean then takes a fixed-point multiplier, one rounding.
    """
    if arithmetic.requantize is Requantize.FLOAT:
        return Multiplier(scale / (output_scale * count))
    if arithmetic.requantize is Requantize.SHIFT:
        arithmetic = replace(arithmetic, requantize=Requantize.FIXED_POINT)
    one = torch.ones((), dtype=torch.float64, device=scale.device)
    return multiplier(scale, one, output_scale.to(torch.float64) * count.to(torch.float64), arithmetic, bound)


@kernel("mean")
class MeanKernel(Kernel):
    """``round(sum(x - z_x) * (s_x / (s_y * n))) + z_y``; as an accumulator the sum itself, scale s_x / n."""

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes with the averaged axes removed, or kept with size 1."""
        (x,), b = xs, self.binding
        (qx,) = b.inputs
        axes, zero = b.attrs["axes"], int(qx.zero_point)
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        bound = float(count) * max(qx.qtype.qmax - zero, zero - qx.qtype.qmin)
        whole = torch.int32 if bound < 2**31 else torch.int64
        carrier = carrier_for(bound) if x.is_floating_point() else whole
        total = (x.to(carrier) - zero).sum(axes, keepdim=b.attrs["keepdim"], dtype=carrier)
        if b.is_accumulator:
            return total
        if b.arithmetic.mean is not MeanRule.SUM:
            low, high = activation_codes(b)
            return to_carrier(mean_codes(total, count, qx, b.output, b.arithmetic.mean).clamp_(low, high), x, b)
        by = _average_multiplier(qx.scale, b.output.scale, torch.tensor(float(count)), b.arithmetic, bound)
        low, high = activation_codes(b)
        codes = requantize(total, by.to(x.device), int(b.output.zero_point), low, high, b.arithmetic)
        return to_carrier(codes, x, b)


@kernel("avg_pool")
class AveragePoolKernel(Kernel):
    """Average over windows, by the arithmetic's :class:`PoolRule`."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self.low, self.high = activation_codes(binding)
        self.rule = binding.arithmetic.average_pool
        if self.rule is PoolRule.CODES and not binding.inputs[0].same_as(binding.output):
            raise PlanError("an average of codes has its operand's encoding", where=binding.where,
                            got=f"{float(binding.output.scale):g}", allowed=f"{float(binding.inputs[0].scale):g}")

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes (batch, channels, *windows)."""
        (x,), b = xs, self.binding
        if self.rule is PoolRule.DEQUANTIZED:
            return to_carrier(self._dequantized(x), x, b)
        return to_carrier(self._exact(x), x, b)

    def _counts(self, x: Tensor) -> Tensor:
        """Divisor of every window: the positions that count, exact small integers."""
        a = self.binding.attrs
        ones = torch.ones(1, 1, *x.shape[2:], device=x.device)
        if a["count_include_pad"]:
            padded = F.pad(ones, [p for p in reversed(a["padding"]) for _ in (0, 1)], value=1.0)
            return self._sum(padded, [0] * len(a["padding"]), x.shape[2:])
        return self._sum(ones, a["padding"], x.shape[2:])

    def _sum(self, x: Tensor, padding: Sequence[int], source: Sequence[int]) -> Tensor:
        """Sum of each window in row-major order; windows may stick out at the end (ceil mode)."""
        a = self.binding.attrs
        sizes = [self._windows(n, i) for i, n in enumerate(source)]
        pads: list[int] = []
        for i in reversed(range(len(sizes))):
            need = (sizes[i] - 1) * a["stride"][i] + a["kernel"][i]
            pads += [padding[i], max(0, need - padding[i] - x.shape[2 + i])]
        x = F.pad(x, pads)
        total: Tensor | None = None
        for offset in itertools.product(*[range(k) for k in a["kernel"]]):
            index: list[slice] = [slice(None), slice(None)]
            for o, s, n in zip(offset, a["stride"], sizes, strict=True):
                index.append(slice(o, o + (n - 1) * s + 1, s))
            part = x[tuple(index)]
            total = part.clone() if total is None else total.add_(part)
        assert total is not None
        return total

    def _windows(self, size: int, i: int) -> int:
        a = self.binding.attrs
        kernel_size, stride, pad = a["kernel"][i], a["stride"][i], a["padding"][i]
        span = size + 2 * pad - kernel_size
        if not a["ceil_mode"]:
            return int(span // stride + 1)
        windows = -(-span // stride) + 1
        # a window that would start in the padding at the end is dropped
        return int(windows - 1 if (windows - 1) * stride >= size + pad else windows)

    def _dequantized(self, x: Tensor) -> Tensor:
        b = self.binding
        values = self._sum(dequantize(x, b.inputs[0]), b.attrs["padding"], x.shape[2:]) / self._counts(x)
        y = values / b.output.scale.to(x.device)
        zero = int(b.output.zero_point)
        if b.arithmetic.zero_inside_pool and max(b.inputs[0].qtype.bits, b.output.qtype.bits) <= 8:
            codes = round_to_int(y + zero, b.arithmetic.rounding)
        else:
            codes = round_to_int(y, b.arithmetic.rounding) + zero
        return codes.clamp_(self.low, self.high)

    def _exact(self, x: Tensor) -> Tensor:
        b = self.binding
        (qx,) = b.inputs
        zero = int(qx.zero_point)
        bound = float(math.prod(b.attrs["kernel"])) * max(qx.qtype.qmax - zero, zero - qx.qtype.qmin)
        total = self._sum(x.to(carrier_for(bound)) - zero, b.attrs["padding"], x.shape[2:])
        if self.rule is PoolRule.CODES:
            counts = self._counts(x)
            codes = code_mean(total.to(torch.int64) + zero * counts.to(torch.int64), counts)
            return codes.clamp_(self.low, self.high).to(torch.float32)
        scales = qx.scale.to(x.device), b.output.scale.to(x.device)
        by = _average_multiplier(*scales, self._counts(x), b.arithmetic, bound)
        return requantize(total, by, int(b.output.zero_point), self.low, self.high, b.arithmetic)
