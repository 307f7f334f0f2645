"""Layer normalization of codes, in integers; only for targets that have no floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from intact.arithmetic import multiplier, requantize
from intact.arithmetic.layer_norm import layer_norm_epsilon, normalized_codes
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, operand_scale, to_carrier
from intact.types.dims import Sizes

__all__ = ["LayerNormKernel"]


@kernel("layer_norm")
class LayerNormKernel(Kernel):
    """Normalized values times weight codes, plus bias codes, requantized once.

    The weight has one scale s_w; with ``b`` bits behind the point of a normalized value, the sum has the scale
    ``s_w * 2**-b``, and so has the bias.
    """

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        (qx,) = binding.inputs
        count = math.prod(binding.attrs["shape"])
        self.epsilon = layer_norm_epsilon(float(binding.attrs["eps"]), count, float(qx.scale))
        step, one = operand_scale(binding.op, binding.attrs, qx), torch.ones(())
        self.weight = None if binding.weight is None else binding.weight.centred().to(torch.int64)
        scale = one if binding.weight is None else binding.weight.qparams.scale
        self.multiplier = multiplier(step, scale, binding.output.scale, binding.arithmetic)
        self.low, self.high = activation_codes(binding)

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes of the operand's shape."""
        (x,), b = xs, self.binding
        axes = tuple(range(x.ndim - len(b.attrs["shape"]), x.ndim))
        acc = normalized_codes(x.long(), axes, self.epsilon)
        if self.weight is not None:
            acc = acc * self.weight.to(x.device)
        if b.bias is not None:
            acc = acc + b.bias.to(x.device)
        by = self.multiplier.to(x.device)
        codes = requantize(acc, by, int(b.output.zero_point), self.low, self.high, b.arithmetic)
        return to_carrier(codes, x, b)
