"""Concatenation on codes: each operand is brought to the output's scale by a table, or copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from intact.arithmetic import Requantize, dequantize, multiplier, quantize, requantize
from intact.kernels.base import Binding, Kernel, kernel
from intact.kernels.elementwise import all_codes, look_up
from intact.types import QParams
from intact.types.dims import Sizes

__all__ = ["ConcatKernel"]


def rescaled(q: QParams, binding: Binding) -> Tensor:
    """The output's code of every code of an operand."""
    codes, out, arithmetic = all_codes(q), binding.output, binding.arithmetic
    if not arithmetic.integer_only:
        return quantize(dequantize(codes, q), out, arithmetic)
    if arithmetic.requantize is Requantize.FIXED_POINT_16:  # between codes TFLite keeps 31 bits
        arithmetic = replace(arithmetic, requantize=Requantize.FIXED_POINT_TWICE)
    by = multiplier(q.scale, torch.ones(()), out.scale, arithmetic, 2.0**17)
    return requantize(codes - int(q.zero_point), by, int(out.zero_point), out.qtype.qmin, out.qtype.qmax, arithmetic)


@kernel("concat")
class ConcatKernel(Kernel):
    """Operands with the output's parameters are copied; the others are requantized code by code."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        self.tables = [
            None if q.same_as(binding.output)
            else rescaled(q, binding)
            for q in binding.inputs
        ]

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes joined along ``attrs['axis']``."""
        storage = self.binding.output.qtype.storage
        parts = []
        for x, q, table in zip(xs, self.binding.inputs, self.tables, strict=True):
            if table is not None:
                values = table if x.is_floating_point() else table.to(storage)
                x = look_up(values.to(x.device), x.to(torch.int32) - q.qtype.qmin)
            parts.append(x)
        return torch.cat(parts, self.binding.attrs["axis"])
