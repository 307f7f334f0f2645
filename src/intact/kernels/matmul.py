"""Matrix product of two activations on codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from intact.arithmetic import Arithmetic, MatMulRule, Multiplier, Requantize, carrier_for, multiplier, requantize
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, to_carrier
from intact.types.dims import Sizes

__all__ = ["MatMulKernel"]


def _requantization(binding: Binding) -> tuple[Arithmetic, Multiplier]:
    """By what the accumulator is multiplied, and how it is rounded."""
    (qa, qb), arithmetic, out = binding.inputs, binding.arithmetic, binding.output.scale
    if arithmetic.matmul is MatMulRule.XNNPACK and int(qb.zero_point):
        arithmetic = replace(arithmetic, requantize=Requantize.FIXED_POINT_TWICE)
    if arithmetic.requantize is Requantize.FLOAT or arithmetic.matmul is MatMulRule.ACCUMULATOR:
        return arithmetic, multiplier(qa.scale, qb.scale, out, arithmetic)
    return arithmetic, multiplier(qa.scale * qb.scale, torch.ones(()), out, arithmetic)


@kernel("matmul")
class MatMulKernel(Kernel):
    """``(a - z_a) @ (b - z_b)`` over the last two axes, batched as ``torch.matmul``."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self.zeros = [int(q.zero_point) for q in binding.inputs]
        self.arithmetic, self.multiplier = _requantization(binding)
        self.low, self.high = activation_codes(binding)

    def bound(self, length: int) -> float:
        """Largest magnitude of a sum of ``length`` products."""
        reach = [max(q.qtype.qmax - z, z - q.qtype.qmin)
                 for q, z in zip(self.binding.inputs, self.zeros, strict=True)]
        return float(length) * reach[0] * reach[1]

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes of the product."""
        a, b = xs
        if a.is_floating_point():
            carrier = carrier_for(self.bound(a.shape[-1]))
        else:
            carrier = torch.int32 if self.bound(a.shape[-1]) < 2**31 else torch.int64
        acc = torch.matmul(a.to(carrier) - self.zeros[0], b.to(carrier) - self.zeros[1])
        if self.binding.is_accumulator:
            return acc
        codes = requantize(acc, self.multiplier.to(acc.device), int(self.binding.output.zero_point), self.low,
                           self.high, self.arithmetic)
        return to_carrier(codes, a, self.binding)
