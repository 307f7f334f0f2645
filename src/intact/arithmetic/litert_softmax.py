"""Softmax as LiteRT's kernels compute it; the output is 1/256 from -128 up, of 16 bits 1/32768 from 0 up.

The specification is :mod:`intact.reference.litert.softmax`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from intact.arithmetic.fixed_point import gemmlowp_multiplier, rounded_shift
from intact.arithmetic.rounding import Rounding, round_to_int
from intact.reference.fixed_point import multiply_by_quantized_multiplier, quantized_multiplier
from intact.reference.gemmlowp import exp_on_negative_values
from intact.reference.litert.softmax import interpolated, lut_int16

__all__ = ["fixed_exps", "fixed_softmax", "float_exps", "float_softmax", "wide_exps", "wide_softmax"]

_INT32 = 2**31


def fixed_exps(scale: Tensor) -> Tensor:
    """``exp(-scale * d)`` with 31 fraction bits for the differences d = 0 to 255; -1 where the kernel gives up."""
    m0, shift = (int(t) for t in gemmlowp_multiplier((scale.to(torch.float64) * 2.0**26).clamp(max=2.0**31 - 1)))
    left = 31 - shift
    radius = int(31 * 2**26 // 2**left) if left >= 0 else 255
    d = np.minimum(np.arange(256, dtype=np.int64), radius)
    fine = (-d * 2**max(left, 0) * m0 + 2**30) >> 31
    exps = torch.from_numpy(exp_on_negative_values(fine, 5)).to(torch.int64)
    return torch.where(torch.arange(256) <= radius, exps, -1)


def _high(a: Tensor, b: Tensor | int) -> Tensor:
    """The high half of the doubled product, rounded half up."""
    return (a * b + 2**30) >> 31


def _inverse(a: Tensor) -> Tensor:
    """``1 / (1 + a)`` with 31 fraction bits: three steps of Newton's method from 48/17 - 32/17 d, d = (1 + a) / 2."""
    half = (a + _INT32) >> 1
    x = 1515870810 + _high(half, -1010580540)
    for _ in range(3):
        x = x + (_high(x, 2**29 - _high(half, x)) << 2).clamp(-_INT32, _INT32 - 1)
    return (x << 1).clamp(-_INT32, _INT32 - 1)


def fixed_softmax(codes: Tensor, exps: Tensor) -> Tensor:
    """Codes of the probabilities along the last axis, from int64 codes and :func:`fixed_exps`; int64.

    >>> fixed_softmax(torch.tensor([[0, 0, 0, 0]]), fixed_exps(torch.tensor(0.1)))
    tensor([[-64, -64, -64, -64]])
    """
    e = exps.to(codes.device)[codes.amax(-1, keepdim=True) - codes]
    known = e.clamp(min=0)
    twelve = torch.tensor(12, device=codes.device)
    total = rounded_shift(known, twelve, Rounding.HALF_AWAY).sum(-1, keepdim=True)
    headroom = 32 - torch.frexp(total.to(torch.float64)).exponent.to(torch.int64)
    inverse = _inverse((total << headroom) - _INT32)
    share = rounded_shift(_high(inverse, known), 35 - headroom, Rounding.HALF_AWAY)
    return torch.where(e < 0, -128, (share - 128).clamp(-128, 127))


def float_exps(scale: Tensor) -> Tensor:
    """``exp(-scale * d)`` in float32 for the differences d = 0 to 255; the product is rounded to float32 first."""
    return (-scale * torch.arange(256, dtype=torch.float32)).to(torch.float64).exp().to(torch.float32)


def float_softmax(codes: Tensor, exps: Tensor) -> Tensor:
    """Codes of the probabilities along the last axis, from int64 codes and :func:`float_exps`; int64.

    >>> float_softmax(torch.tensor([[0, 0, 0, 0]]), float_exps(torch.tensor(0.1)))
    tensor([[-64, -64, -64, -64]])
    """
    e = exps.to(codes.device)[codes.amax(-1, keepdim=True) - codes]
    total = torch.zeros_like(e[..., 0])
    for i in range(e.shape[-1]):  # the order of the sum decides its last bits
        total = total + e[..., i]
    inverse = 1.0 / (total * (1.0 / 256.0))
    rounded = round_to_int(e * inverse[..., None], Rounding.HALF_AWAY).to(torch.int64)
    return (rounded - 128).clamp(-128, 127)


def wide_exps(scale: Tensor) -> Tensor:
    """``exp(-scale * d)`` with 15 fraction bits for the differences d = 0 to 65535: a line between two of 513 knots."""
    m0, shift = quantized_multiplier(float(scale) / (10.0 / 65535.0))
    fine = multiply_by_quantized_multiplier(-np.arange(2**16), m0, shift)
    return torch.from_numpy(interpolated(np.clip(fine + 32767, -32768, 32767), lut_int16(np.exp, -10.0, 0.0)))


@lru_cache(maxsize=1)
def _wide_inverses() -> Tensor:
    """``1 / (1 + a)`` with 15 fraction bits for a = (i + 32768) / 65536 and the codes i = -32768 to 32767."""
    knots = lut_int16(lambda v: 1 / (1 + v), 0.0, 1.0)
    return torch.from_numpy(interpolated(np.arange(-32768, 32768), knots))


def wide_softmax(codes: Tensor, exps: Tensor) -> Tensor:
    """Codes of the probabilities along the last axis, from int64 codes of 16 bits and :func:`wide_exps`; int64.

    >>> wide_softmax(torch.tensor([[0, 0, 0, 0]]), wide_exps(torch.tensor(0.001)))
    tensor([[8192, 8192, 8192, 8192]])
    """
    e = exps.to(codes.device)[codes.amax(-1, keepdim=True) - codes]
    total = e.sum(-1, keepdim=True)
    headroom = 32 - torch.frexp(total.to(torch.float64)).exponent.to(torch.int64)
    at = (((total << (headroom - 1)) + 2**13) >> 14) - 2**15 - 2**16
    inverse = _wide_inverses().to(codes.device)[at.clamp(-(2**15), 2**15 - 1) + 2**15]
    right = 31 - headroom
    return ((e * inverse + (torch.ones_like(right) << (right - 1))) >> right).clamp(0, 2**15 - 1)
