"""From a wide accumulator to output codes: one multiplier, one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intact.arithmetic.arithmetic import REFERENCE, Arithmetic, Requantize
from intact.arithmetic.fixed_point import (
    fixed_point,
    gemmlowp_multiplier,
    scaled,
    scaled_twice,
    short_multiplier,
    wrapped,
)
from intact.arithmetic.rounding import Rounding, round_to_int

__all__ = ["PRODUCT_LIMIT", "Multiplier", "multiplier", "parts_in_cache", "requantize"]

_PART = 1 << 15  # numbers that a thread takes at a time
#: what is requantized in integers stays below it: times a multiplier of 31 bits, and half a step, it fits in 64
PRODUCT_LIMIT = 2**31
_DOUBLE_EXACT = 2.0**21  # an accumulator below it, times 31 bits, and half a step, is a float64


@dataclass(frozen=True, eq=False)
class Multiplier:
    """What an accumulator is multiplied with, as the arithmetic has it.

    Args:
        real: the number itself, float32 for ``FLOAT``, else float64 (exactly ``m0 * 2**-shift``).
        m0: 31 bits (``FIXED_POINT_16``: 15), int64; None for ``FLOAT``.
        shift: int64; None for ``FLOAT``.
        small: every accumulator that it is used on lies below 2**21, so that float64 holds all products.
        room: what may be added to such a product, in units of a half, without a rounding.
    """

    real: Tensor
    m0: Tensor | None = None
    shift: Tensor | None = None
    small: bool = False
    room: float = 0.0

    def to(self, device: torch.device) -> Multiplier:
        """On another device."""
        if self.real.device == device:
            return self
        move = {name: t.to(device) for name in ("m0", "shift") if (t := getattr(self, name)) is not None}
        return replace(self, real=self.real.to(device), **move)

    def of_channels(self, index: Tensor) -> Multiplier:
        """Those of some channels; there is one for each."""
        pick = {name: t[index] for name in ("m0", "shift") if (t := getattr(self, name)) is not None}
        return replace(self, real=self.real[index], **pick)

    def reshape(self, *shape: int) -> Multiplier:
        """To be broadcast; one number stays one number."""
        if not self.real.ndim:
            return self
        move = {name: t.reshape(shape) for name in ("m0", "shift") if (t := getattr(self, name)) is not None}
        return replace(self, real=self.real.reshape(shape), **move)


def multiplier(
    input_scale: Tensor, weight_scale: Tensor, output_scale: Tensor, arithmetic: Arithmetic = REFERENCE,
    bound: float = 2.0**31,
) -> Multiplier:
    """``s_x * s_w / s_y``.

    ``FLOAT``: ``float32(float32(s_x * s_w) / s_y)``: two roundings, in this order (ONNX Runtime, oneDNN). Else the
    quotient in float64, then 31 bits of it (``FIXED_POINT_16``: 15).

    Args:
        input_scale: float32.
        weight_scale: float32; one, or one for each channel.
        output_scale: float32.
        arithmetic: the target's number rules.
        bound: of the accumulators that it will be used on.

    Raises:
        PlanError: if the number cannot be expressed.
    """
    if arithmetic.requantize is Requantize.FLOAT:
        return Multiplier((input_scale * weight_scale) / output_scale)
    real = input_scale.to(torch.float64) * weight_scale.to(torch.float64) / output_scale.to(torch.float64)
    if arithmetic.requantize is Requantize.FIXED_POINT_TWICE:
        m0, shift = gemmlowp_multiplier(real)
    elif arithmetic.requantize is Requantize.FIXED_POINT_16:
        m0, shift = short_multiplier(real)
    else:
        m0, shift = fixed_point(real, power_of_two=arithmetic.requantize is Requantize.SHIFT)
    exact = m0.to(torch.float64) * torch.exp2(-shift.to(torch.float64))
    # a product is a multiple of 2**-shift below 2**(52 - shift), and float64 has 53 bits
    return Multiplier(exact, m0, shift, bound < _DOUBLE_EXACT, 2.0 ** (52 - int(shift.max())) if shift.numel() else 0.0)


def requantize(
    accumulator: Tensor, by: Multiplier, zero_point: int, low: int, high: int, arithmetic: Arithmetic,
) -> Tensor:
    """``clamp(round(acc * M) + zero_point, low, high)`` as integer-valued float32.

    ``accumulator`` holds exact integers in any dtype; it may be overwritten when it is float32. For ``FLOAT`` it is
    converted to float32 first, which rounds half to even, as the runtime's own int32 conversion does.
    """
    inside = zero_point if arithmetic.zero_inside else 0
    if by.m0 is None or by.shift is None:
        acc = accumulator if accumulator.dtype == torch.float32 else accumulator.to(torch.float32)
        for part, _, real in parts_in_cache(acc, acc, by.real):
            part.mul_(real)
            codes = round_to_int(part.add_(inside) if inside else part, arithmetic.rounding, inplace=True)
            if zero_point and not inside:
                codes.add_(zero_point)
            torch.clamp(codes, low, high, out=part)
        return acc
    if arithmetic.requantize is Requantize.FIXED_POINT_TWICE:
        whole = scaled_twice(accumulator, by.m0, by.shift)
    elif arithmetic.requantize is Requantize.FIXED_POINT_16:  # a result of more than 32 bits wraps
        whole = wrapped(scaled(accumulator, by.m0, by.shift, Rounding.HALF_UP))
    elif by.small and not (inside & 1 or (inside and arithmetic.rounding is Rounding.HALF_AWAY)):
        fits = accumulator.dtype == torch.float32
        codes = accumulator if fits else torch.empty_like(accumulator, dtype=torch.float32)
        half = 0.5 if arithmetic.rounding is Rounding.HALF_UP else 0.0
        at_once = (half or arithmetic.rounding is Rounding.FLOOR) and abs(zero_point) + half <= by.room
        for part, result, real in parts_in_cache(accumulator, codes, by.real):
            wide = part.to(torch.float64).mul_(real)
            if at_once:
                result.copy_(wide.add_(zero_point + half).floor_())
            else:
                result.copy_(_round_small(wide, arithmetic.rounding)).add_(zero_point)
            result.clamp_(low, high)  # what float32 had to round lies far beyond both
        return codes
    else:
        whole = scaled(accumulator, by.m0, by.shift, arithmetic.rounding, inside)
    return whole.add_(zero_point).clamp_(low, high).to(torch.float32)


def parts_in_cache(x: Tensor, y: Tensor, by: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views of two tensors of one shape, and of what is broadcast to it, of which several passes stay in the cache."""
    most = _PART * torch.get_num_threads()
    if torch.compiler.is_compiling() or x.numel() <= most or not x.ndim or x.device.type != "cpu":
        yield x, y, by
        return
    axis = max((i for i in range(x.ndim) if x.shape[i] > 1), key=x.stride)  # what lies together stays together
    step = max(1, most * x.shape[axis] // x.numel())
    for at in range(0, x.shape[axis], step):
        size = min(step, x.shape[axis] - at)
        varies = by.ndim == x.ndim and by.shape[axis] > 1
        parts = x.narrow(axis, at, size), y.narrow(axis, at, size), by.narrow(axis, at, size) if varies else by
        if parts[0].numel() > most:
            yield from parts_in_cache(*parts)
        else:
            yield parts


def _round_small(x: Tensor, rounding: Rounding) -> Tensor:
    """In place, for float64 numbers to which 0.5 can be added without a rounding."""
    if rounding is Rounding.HALF_EVEN:
        return x.round_()
    if rounding is Rounding.HALF_AWAY:
        return x.add_(torch.copysign(torch.tensor(0.5, dtype=x.dtype, device=x.device), x)).trunc_()
    return (x if rounding is Rounding.FLOOR else x.add_(0.5)).floor_()
