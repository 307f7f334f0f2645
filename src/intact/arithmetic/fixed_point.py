"""Multiplication of an integer by a real number without floats: ``M = M0 * 2**-n``.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
section 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intact.arithmetic.rounding import Rounding
from intact.errors import PlanError

__all__ = ["MAX_SHIFT", "fixed_point", "gemmlowp_multiplier", "rounded_shift", "scaled", "scaled_twice",
           "shared_fixed_point", "short_multiplier", "wrapped"]

MAX_SHIFT = 62  # a product of 31 and 32 bits stays below 2**62: a longer shift gives nothing


def fixed_point(real: Tensor, *, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """``(M0, n)`` in int64 with ``real`` about ``M0 * 2**-n``: ``M0`` in [2**30, 2**31), less only where n is 62.

    Args:
        real: positive float64 multipliers of any shape.
        power_of_two: they must be powers of two.

    Raises:
        PlanError: for a multiplier that is not finite, of 2**31 or more, or so small that it rounds to 0.

    >>> fixed_point(torch.tensor([0.75, 3.0], dtype=torch.float64))
    (tensor([1610612736, 1610612736]), tensor([31, 29]))
    """
    fraction, exponent = torch.frexp(real.to(torch.float64))  # real = fraction * 2**exponent, fraction in [0.5, 1)
    if power_of_two and bool((fraction != 0.5).any()):
        raise PlanError("a multiplier is not a power of two", got=f"{float(real.flatten()[0]):g}",
                        fix="scales must be powers of two on this target")
    shift = (31 - exponent.to(torch.int64)).clamp(max=MAX_SHIFT)
    # ldexp by way of a clamped shift: exact, one rounding (half to even) to 31 bits, or fewer for tiny multipliers
    m0 = (real.to(torch.float64) * torch.exp2(shift.to(torch.float64))).round().to(torch.int64)
    full = m0 == 2**31  # 0.99999999999 rounds up to 1.0
    m0, shift = torch.where(full, m0 // 2, m0), torch.where(full, shift - 1, shift)
    bad = ~torch.isfinite(real) | (real >= 2.0**31) | (m0 <= 0) | (shift < 0)
    if bool(bad.any()):
        raise PlanError("a multiplier cannot be expressed in fixed point", got=f"{float(real[bad].flatten()[0]):g}",
                        allowed=f"at least 2**-{MAX_SHIFT}, below 2**31",
                        fix="leave the layer in float, or look at the ranges of its input and output")
    return m0, shift


def shared_fixed_point(real: Tensor) -> tuple[Tensor, Tensor]:
    """``(M0, n)`` for several multipliers of one sum, with one shift ``n``: the largest ``M0`` has 31 bits.

    >>> shared_fixed_point(torch.tensor([0.75, 0.375], dtype=torch.float64))
    (tensor([1610612736,  805306368]), tensor(31))
    """
    _, shifts = fixed_point(real.max())
    m0 = (real.to(torch.float64) * torch.exp2(shifts.to(torch.float64))).round().to(torch.int64)
    return m0.clamp(max=2**31 - 1), shifts


def rounded_shift(x: Tensor, shift: Tensor, rounding: Rounding, zero_point: int = 0) -> Tensor:
    """``round(x / 2**shift + zero_point) - zero_point`` of int64 integers below 2**62, for shifts of 0 to 62.

    A zero point inside the rounding matters to ties only: to their parity, and to their sign.

    >>> x = torch.tensor([-10, -6, -2, 2, 6, 10])
    >>> rounded_shift(x, torch.tensor(2), Rounding.HALF_EVEN).tolist()
    [-2, -2, 0, 0, 2, 2]
    >>> rounded_shift(x, torch.tensor(2), Rounding.HALF_EVEN, zero_point=1).tolist()
    [-3, -1, -1, 1, 1, 3]
    """
    if rounding is Rounding.FLOOR:
        return x >> shift
    half = (torch.ones_like(shift) << shift) >> 1
    if rounding is Rounding.HALF_UP:
        return (x + half) >> shift
    below = (x >> shift) + zero_point
    # just below the middle, a tie goes down: from an even number, or from a negative one
    down = (below & 1) ^ 1 if rounding is Rounding.HALF_EVEN else (below < 0).to(torch.int64)
    return (x + half - down * (shift > 0)) >> shift


def gemmlowp_multiplier(real: Tensor) -> tuple[Tensor, Tensor]:
    """``(M0, n)`` as TFLite has them: M0 rounded half away from zero; below 2**-32 nothing is left of it.

    Raises:
        PlanError: for a multiplier that is not finite, negative, or of 2**30 or more.

    >>> gemmlowp_multiplier(torch.tensor([0.75, 2.0**-40], dtype=torch.float64))
    (tensor([1610612736,          0]), tensor([31, 31]))
    """
    real = real.to(torch.float64)
    bad = ~torch.isfinite(real) | (real >= 2.0**30) | (real < 0)
    if bool(bad.any()):
        raise PlanError("a multiplier cannot be expressed in fixed point", got=f"{float(real[bad].flatten()[0]):g}",
                        allowed="0 to 2**30", fix="look at the ranges of the layer's input and output")
    fraction, exponent = torch.frexp(real)
    m0 = (fraction * 2.0**31 + 0.5).floor().to(torch.int64)
    full = m0 == 2**31
    m0, exponent = torch.where(full, m0 // 2, m0), exponent.to(torch.int64) + full.to(torch.int64)
    gone = (exponent < -31) | (m0 == 0)
    return torch.where(gone, 0, m0), 31 - torch.where(gone, 0, exponent)


def short_multiplier(real: Tensor) -> tuple[Tensor, Tensor]:
    """``(M0, n)`` of TFLite's kernels for 16-bit codes: the mantissa of :func:`gemmlowp_multiplier`, cut to 15 bits.

    Raises:
        PlanError: for a multiplier that is not finite, negative, or of 128 or more.

    >>> short_multiplier(torch.tensor([0.75, 1.0], dtype=torch.float64))
    (tensor([24576, 16384]), tensor([15, 14]))
    """
    bad = ~torch.isfinite(real) | (real >= 128)
    if bool(bad.any()):
        raise PlanError("a multiplier cannot be expressed in 16 bits", got=f"{float(real[bad].flatten()[0]):g}",
                        allowed="0 to 128", fix="look at the ranges of the layer's input and output")
    m0, shift = gemmlowp_multiplier(real)
    return torch.where(m0 < 0x7FFF0000, (m0 + 2**15) >> 16, 0x7FFF), shift - 16


def wrapped(x: Tensor) -> Tensor:
    """The low 32 bits of int64 integers as a signed number.

    >>> wrapped(torch.tensor([2**31, 5]))
    tensor([-2147483648,           5])
    """
    return ((x + 2**31) & 0xFFFFFFFF) - 2**31


def scaled(x: Tensor, m0: Tensor, shift: Tensor, rounding: Rounding, zero_point: int = 0) -> Tensor:
    """``round(x * M0 / 2**shift)`` in int64, with one rounding, for integers ``x`` in [-2**31, 2**31).

    ``zero_point`` as in :func:`rounded_shift`.

    >>> scaled(torch.tensor([1, 2, 3]), *fixed_point(torch.tensor(0.5, dtype=torch.float64)), Rounding.HALF_EVEN)
    tensor([0, 1, 2])
    """
    return rounded_shift(x.to(torch.int64) * m0, shift, rounding, zero_point)


def scaled_twice(x: Tensor, m0: Tensor, shift: Tensor) -> Tensor:
    """The same with two roundings, as gemmlowp and the reference kernels of TFLite do it.

    The high half of the doubled product, rounded half up; then, where ``shift`` is above 31, a division by a power of
    two, rounded half away from zero. Below 31, ``x`` is shifted to the left first, and wraps in 32 bits.

    >>> scaled_twice(torch.tensor([1, 2, 3]), *fixed_point(torch.tensor(0.25, dtype=torch.float64)))
    tensor([1, 1, 1])
    """
    right = shift - 31
    left = (-right).clamp(min=0)
    x = x.to(torch.int64) << left
    if bool(left.any()):
        x = wrapped(x)
    high = (x * m0 + 2**30) >> 31
    return rounded_shift(high, right.clamp(min=0), Rounding.HALF_AWAY)
