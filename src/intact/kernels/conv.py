"""Convolution and linear layer on codes: integer accumulate, add the int32 bias, requantize once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from intact.arithmetic import (
    accumulator_bounds,
    carrier_for,
    multiplier,
    pairs_saturate,
    quick_multiplier,
    requantize,
    requantize_quickly,
)
from intact.arithmetic.accumulate import FLOAT32_EXACT
from intact.arithmetic.quick import Quick
from intact.errors import PlanError
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, to_carrier
from intact.kernels.integer import conv_int, matmul_int
from intact.types import QParams
from intact.types.dims import Sizes

__all__ = ["ConvKernel", "LinearKernel"]

_MOST_PARTS = 64


class _WeightedKernel(Kernel):
    """What convolution and linear layer share: weights, bias, bound, multiplier."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        if binding.weight is None:
            raise PlanError("a weighted kernel has no weight", where=binding.where)
        (qx,) = binding.inputs
        self.codes = binding.weight.centred()
        self.zero = int(qx.zero_point)
        bounds = accumulator_bounds(self.codes, self.zero, qx.qtype.qmin, qx.qtype.qmax)
        if binding.bias is not None:
            bounds = bounds + binding.bias.to(torch.float64).abs()
        self.bound = float(bounds.max()) if bounds.numel() else 0.0
        width = binding.arithmetic.accumulator_width(qx.qtype.bits)
        limit = binding.arithmetic.accumulator_limit(qx.qtype.bits)
        if self.bound >= limit:
            raise PlanError(f"the accumulator of {width} bits can overflow", where=binding.where,
                            got=f"{self.bound:.4g}", allowed=f"below {limit:.4g}", fix="leave this layer in float")
        if binding.arithmetic.pair_bits == 16:
            risky = pairs_saturate(binding.weight.codes, qx.qtype.qmax - qx.qtype.qmin)
            if bool(risky.any()):
                raise PlanError("two products can saturate their sum of 16 bits", where=binding.where,
                                got=f"{int(risky.sum())} of {len(risky)} channels",
                                fix="give this layer weights of 7 bits (Quant(weight_bits=7))")
        self.wide = self.bound >= 2**31
        #: float32 while every partial sum is below 2**24, float64 beyond it
        self.carrier = carrier_for(self.bound)
        self.parts = self._parts(bounds, qx)
        #: float32 where every product is, so that no call converts it
        self.weight = self.codes.to(self.carrier if self.parts == 1 else torch.float32)
        self.multiplier = multiplier(qx.scale, binding.weight.qparams.scale, binding.output.scale,
                                     binding.arithmetic, self.bound)
        self.low, self.high = activation_codes(binding)
        self.raw, self.added = self._added(qx)

    def _added(self, qx: QParams) -> tuple[bool, Tensor | None]:
        """What one product in floats adds to its sums, which saves passes over them; None if it cannot.

        And whether that product takes the codes as they are: without padding ``sum(w * (x - z))`` is
        ``sum(w * x) - z * sum(w)``, exact where these sums stay as small.
        """
        if self.parts != 1:
            return False, None
        bias, a = self.binding.bias, self.binding.attrs
        added = torch.zeros(self.codes.shape[0], dtype=torch.float64) if bias is None else bias.to(torch.float64)
        if self.zero and not any((*a.get("pad_begin", ()), *a.get("pad_end", ()))):
            whole = added - self.zero * self.codes.to(torch.float64).flatten(1).sum(1)
            bounds = accumulator_bounds(self.codes, 0, qx.qtype.qmin, qx.qtype.qmax) + whole.abs()
            if bounds.numel() and carrier_for(float(bounds.max())) == self.carrier:
                return True, whole.to(self.carrier)
        return False, None if bias is None else added.to(self.carrier)

    def _parts(self, bounds: Tensor, qx: QParams) -> int:
        """Parts of the input channels whose sums each stay below 2**24; 1 if one float32 sum does, or groups forbid."""
        if self.carrier == torch.float32 or self.binding.attrs.get("groups", 1) != 1:
            return 1
        channels, parts = self.codes.shape[1], 1
        while parts < channels and parts < _MOST_PARTS:
            parts *= 2
            chunks = self.codes.chunk(parts, 1)
            worst = max(float(accumulator_bounds(c, self.zero, qx.qtype.qmin, qx.qtype.qmax).max()) for c in chunks)
            if worst < FLOAT32_EXACT:
                return parts
        return 1

    def finish(self, acc: Tensor, axis: int, like: Tensor, *, biased: bool = False) -> Tensor:
        """Bias, if it is not there yet, and requantization of an accumulator whose channels are ``axis``."""
        shape = [1] * acc.ndim
        shape[axis] = -1
        b = self.binding
        if b.bias is not None and not biased:
            acc.add_(b.bias.to(acc.dtype).to(acc.device).reshape(shape))
        if b.is_accumulator:
            keep = like.is_floating_point() or self.wide  # int32 would wrap a wide sum
            return acc if keep else acc.to(b.output.qtype.storage)
        ends = int(b.output.zero_point), self.low, self.high, b.arithmetic
        quick = self.quick if acc.dtype == torch.float32 else None
        if quick is not None:
            return to_carrier(requantize_quickly(acc, quick, self.multiplier, *ends, axis), like, b)
        return to_carrier(requantize(acc, self.multiplier.to(acc.device).reshape(*shape), *ends), like, b)

    @cached_property
    def quick(self) -> Quick | None:
        """Found when the first batch comes, as a model that is only converted has no use for it."""
        b = self.binding
        if self.carrier != torch.float32 or torch.compiler.is_compiling():
            return None
        ends = int(b.output.zero_point), self.low, self.high
        return quick_multiplier(self.multiplier, *ends, b.arithmetic, self.bound)

    def centred(self, x: Tensor) -> Tensor:
        """``x - zero_point`` in the float carrier (float32 if the channels are taken in parts)."""
        x = x.to(self.carrier if self.parts == 1 else torch.float32)
        return x - self.zero if self.zero and not self.raw else x

    def in_parts(self, x: Tensor, axis: int, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """``product(x, weight, bias)``: else float32 sums over parts of the input channels, added in float64: exact."""
        weight = self.weight.to(x.device)
        if self.parts == 1:
            return product(x, weight, None if self.added is None else self.added.to(x.device))
        total: Tensor | None = None
        for part, w in zip(x.chunk(self.parts, axis), weight.chunk(self.parts, 1), strict=True):
            y = product(part, w, None)
            total = y.to(torch.float64) if total is None else total.add_(y)
        assert total is not None
        return total


@kernel("conv")
class ConvKernel(_WeightedKernel):
    """Convolution with any stride, padding, dilation and groups; padded positions hold the zero point."""

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes (batch, out, *spatial) for codes (batch, channels, *spatial)."""
        (x,), a = xs, self.binding.attrs
        if x.is_floating_point():
            return self.finish(self._float(x), 1, x, biased=self.parts == 1)
        x, codes = (x, self.codes) if not self.wide else (x.to(torch.int64), self.codes.to(torch.int64))
        acc = conv_int(x, codes.to(x.device), self.zero, a["stride"], a["pad_begin"], a["pad_end"],
                       a["dilation"], a["groups"])
        return self.finish(acc, 1, xs[0])

    def _float(self, x: Tensor) -> Tensor:
        a = self.binding.attrs
        x, begin, end = self.centred(x), a["pad_begin"], a["pad_end"]
        if begin != end:
            x = F.pad(x, [v for pair in zip(reversed(begin), reversed(end), strict=True) for v in pair])
            begin = [0] * len(begin)
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(begin) - 1]
        return self.in_parts(
            x, 1, lambda v, w, bias: conv(v, w, bias, a["stride"], begin, a["dilation"], a["groups"])
        )


@kernel("linear")
class LinearKernel(_WeightedKernel):
    """``x @ w.T + b`` over the last axis."""

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes (..., out) for codes (..., in)."""
        (x,) = xs
        if x.is_floating_point():
            acc = self.in_parts(self.centred(x), x.ndim - 1, F.linear)
            return self.finish(acc, x.ndim - 1, x, biased=self.parts == 1)
        codes = self.codes.to(x.device)
        if self.wide:
            return self.finish(matmul_int(x.to(torch.int64), codes.to(torch.int64), self.zero), x.ndim - 1, x)
        return self.finish(matmul_int(x, codes, self.zero), x.ndim - 1, x)
