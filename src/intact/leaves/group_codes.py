"""Codes of weights without data: scale and zero point of every group, searched and refined; and their packing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intact.arithmetic import Rounding, round_to_int

__all__ = ["Codes", "group_codes", "pack", "unpack"]

_POWER = 1.5  # of the error: between the mean's 2 and HQQ's 0.7; 4 bits on MiniLM: 1.5 beats 1, 2 and 2.5
_SHRINK = 12  # ranges tried, from the extremes down to 0.6 of them
_STEPS = 4  # of the refinement
_BLOCK = 1 << 18  # elements at a time: in cache


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of rows of numbers: ``x = (code - zero) * scale``.

    Args:
        codes: uint8, (rows, size).
        scale: of ``dtype``, (rows, 1).
        zero: uint8, (rows, 1).
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor


def group_codes(groups: Tensor, bits: int, *, symmetric: bool, refine: bool, dtype: torch.dtype) -> Codes:
    """Unsigned codes, scale and zero point of every row of ``groups``.

    Without ``refine`` the range reaches the extremes of the row, and 0. With it, 12 ranges between that and 0.6 of
    it are tried with the zero point that centres them and its neighbours; then the scale is refined for the codes
    and the codes for the scale, by half-quadratic minimisation of the sum of ``|error| ** 1.5`` (the weighted least
    squares form of Geman & Reynolds 1992; Badri & Shaji, "Half-Quadratic Quantization", 2023, minimise another norm
    over a zero point that is a real number: with integer zero points, which runtimes have, and a free scale the
    error is less). What is kept is the best that was tried, with the scale as it is stored.

    Args:
        groups: finite real numbers, (rows, size).
        bits: 4 or 8.
        symmetric: the zero point is the middle code.
        refine: search.
        dtype: in which scales are stored.

    >>> q = group_codes(torch.tensor([[-1.0, 0.0, 2.0]]), 4, symmetric=False, refine=False, dtype=torch.float32)
    >>> q.codes.tolist(), round(float(q.scale), 6), int(q.zero)
    ([[0, 5, 15]], 0.2, 5)
    """
    height = max(1, _BLOCK // max(1, groups.shape[1]))
    parts = [_searched(block.to(torch.float32), bits, symmetric, refine, dtype) for block in groups.split(height)]
    return Codes(*(torch.cat([getattr(p, name) for p in parts]) for name in ("codes", "scale", "zero")))


def _searched(x: Tensor, bits: int, symmetric: bool, refine: bool, dtype: torch.dtype) -> Codes:
    # powers of the error of huge or tiny numbers leave float32: every row is searched as if its largest were about 1
    exponent = torch.frexp(x.abs().amax(1, keepdim=True)).exponent.clamp_(min=-100)
    x = torch.ldexp(x, -exponent)
    low, high = x.amin(1, keepdim=True).clamp(max=0.0), x.amax(1, keepdim=True).clamp(min=0.0)
    best = _Best(x, (1 << bits) - 1, dtype)
    middle = torch.full_like(low, float(1 << (bits - 1)))
    peak = torch.maximum(high, -low)
    for f in torch.linspace(1.0, 0.6, _SHRINK).tolist() if refine else (1.0,):
        if symmetric:
            best.consider(f * peak / (best.top - middle), middle)
            if refine:  # the lowest code has no opposite: worth it where the largest weight is negative
                best.consider(f * peak / middle, middle)
            continue
        scale = best.stored(f * (high - low) / best.top)
        centre = round_to_int(best.top / 2 - (low + high) / 2 / scale, Rounding.HALF_EVEN)
        for shift in (0.0, -1.0, 1.0) if refine else (0.0,):
            best.consider(scale, (centre + shift).clamp(0.0, best.top))
    for _ in range(_STEPS if refine else 0):
        scale, zero = best.fitted(), best.zero
        for shift in (0.0,) if symmetric else (0.0, -1.0, 1.0):
            best.consider(scale, (zero + shift).clamp(0.0, best.top))
    codes = best.steps(best.scale, best.zero) + best.zero
    scale = torch.ldexp(best.scale, exponent).to(dtype)
    zeros = scale < torch.finfo(torch.float32).tiny  # of such a row nothing is left
    codes, scale = torch.where(zeros, best.zero, codes), torch.where(zeros, torch.ones_like(scale), scale)
    return Codes(codes.to(torch.uint8), scale, best.zero.to(torch.uint8))


class _Best:
    """The parameters with the least error so far, for every row."""

    def __init__(self, x: Tensor, top: int, dtype: torch.dtype) -> None:
        self.x, self.top, self.dtype = x, float(top), dtype
        self.cost = torch.full_like(x[:, :1], torch.inf)
        self.scale, self.zero = torch.ones_like(self.cost), torch.zeros_like(self.cost)

    def stored(self, scale: Tensor) -> Tensor:
        """The scale as it will be read again; 1 for a row of zeros."""
        kept = scale.to(self.dtype).to(torch.float32)
        return torch.where(kept < 2.0**-100, torch.ones_like(kept), kept)

    def steps(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Codes minus zero point."""
        n = round_to_int(self.x / scale, Rounding.HALF_EVEN, inplace=True)
        return torch.minimum(torch.maximum(n, -zero), self.top - zero)

    def consider(self, scale: Tensor, zero: Tensor) -> None:
        """Take these parameters for the rows where they are better; of equals the first."""
        scale = self.stored(scale)
        error = self.steps(scale, zero).mul_(scale).sub_(self.x).abs_()
        cost = (error * error.sqrt()).sum(1, keepdim=True)  # ** 1.5
        better = cost < self.cost
        self.cost = torch.where(better, cost, self.cost)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)

    def fitted(self) -> Tensor:
        """The scale with the least weighted squared error for the codes; weights ``|error| ** (1.5 - 2)``."""
        n = self.steps(self.scale, self.zero)
        error = (n * self.scale - self.x).abs_()
        pull = (error + 1e-2 * self.scale) ** (_POWER - 2.0) * n
        norm = (pull * n).sum(1, keepdim=True)
        fit = (pull * self.x).sum(1, keepdim=True) / norm.clamp(min=2.0**-100)
        return torch.where((norm > 0) & (fit > 0), fit, self.scale)


def pack(codes: Tensor) -> Tensor:
    """Two 4-bit codes a byte along the last axis, the even one in the low half; an odd length is filled with 0.

    >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8)).tolist()
    [[33, 3]]
    """
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor, length: int) -> Tensor:
    """The codes that :func:`pack` packed; ``length`` of them.

    >>> unpack(torch.tensor([[33, 3]], dtype=torch.uint8), 3).tolist()
    [[1, 2, 3]]
    """
    both = torch.stack((packed & 15, packed >> 4), -1)
    return both.flatten(-2)[..., :length]
