"""From a wide accumulator to output codes: one multiplier, one rounding, one place."""

from __future__ import annotations

import torch

from intact.arithmetic.arithmetic import Arithmetic
from intact.arithmetic.rounding import round_to_int

__all__ = ["multiplier", "requantize", "saturate"]


def multiplier(
    input_scale: torch.Tensor, weight_scale: torch.Tensor, output_scale: torch.Tensor
) -> torch.Tensor:
    """``float32(float32(s_x * s_w) / s_y)``: two roundings, in this order (ONNX Runtime, oneDNN)."""
    return (input_scale * weight_scale) / output_scale


def requantize(
    accumulator: torch.Tensor,
    scale: torch.Tensor,
    zero_point: int,
    low: int,
    high: int,
    arithmetic: Arithmetic,
) -> torch.Tensor:
    """``clamp(round(float32(acc) * scale) + zero_point, low, high)`` as integer-valued float32.

    ``accumulator`` holds exact integers in any dtype; it may be overwritten when it is float32.
    Converting it to float32 rounds half to even, as the runtime's own int32 conversion does.
    """
    acc = accumulator if accumulator.dtype == torch.float32 else accumulator.to(torch.float32)
    codes = round_to_int(acc.mul_(scale), arithmetic.rounding, inplace=True)
    if zero_point:
        codes.add_(zero_point)
    return codes.clamp_(low, high)


def saturate(codes: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Clamp integer-valued codes."""
    return codes.clamp(low, high)
