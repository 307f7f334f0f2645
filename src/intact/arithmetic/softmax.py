"""Softmax in integers: two tables of powers of e, one integer division."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from intact.errors import PlanError
from intact.types import QParams, QType

__all__ = ["exp_bits", "exp_tables", "softmax_codes", "softmax_output"]

_LOW = 8  # bits of the difference that the second table takes
_HALF = 1 << 14


def softmax_output(bits: int, signed: bool, symmetric: bool = False) -> QParams:
    """The encoding of probabilities: 1.0 saturates by less than a step.

    Scale ``2**-bits`` from the lowest code up; symmetric and signed: scale ``2**(1 - bits)``, zero point 0.

    >>> p = softmax_output(8, signed=True)
    >>> float(p.scale) * 256, int(p.zero_point)
    (1.0, -128)
    """
    qtype = QType(bits, signed=signed)
    if signed and symmetric:
        return QParams.per_tensor(2.0 ** (1 - bits), 0, qtype)
    return QParams.per_tensor(2.0**-bits, qtype.qmin, qtype)


def exp_bits(count: int) -> int:
    """Fraction bits of a power of e, so that ``count`` of them add up below 2**30.

    >>> exp_bits(1000), exp_bits(100_000)
    (16, 13)
    """
    return min(16, 30 - max(count - 1, 0).bit_length())


def exp_tables(scale: float, bits: int, fraction: int) -> tuple[Tensor, Tensor]:
    """``exp(-scale * 256 * h)`` with ``fraction`` bits, and ``exp(-scale * l)`` with 15, for all h and l; int64.

    Args:
        scale: of the operand's codes.
        bits: of the operand's codes; a difference of two has as many.
        fraction: bits behind the point of the first table.
    """
    high = torch.arange(1 << max(bits - _LOW, 0), dtype=torch.float64) * (1 << _LOW)
    low = torch.arange(1 << min(bits, _LOW), dtype=torch.float64)
    return (
        ((-scale * high).exp() * 2.0**fraction).round().to(torch.int64),
        ((-scale * low).exp() * 2.0**15).round().to(torch.int64),
    )


def softmax_codes(
    codes: Tensor, axis: int, tables: tuple[Tensor, Tensor], output: QParams, hidden: Tensor | None = None
) -> Tensor:
    """Codes of the probabilities along ``axis``, int64.

    With ``d = max(codes) - code``: ``e = (high[d >> 8] * low[d & 255] + 2**14) >> 15``, and the probability is
    ``(e * n + S / 2) / S`` rounded down, where S is the sum of all e and n the number of steps from 0 to 1. What is
    hidden has e = 0 and is no maximum; where all is hidden, S is 1, and so every probability 0.

    Args:
        codes: int64.
        axis: that is normalised; its length must be what the tables were made for.
        tables: of :func:`exp_tables`.
        output: of :func:`softmax_output`, or any other power of two as scale.
        hidden: what takes no part, of the shape of ``codes``.

    >>> tables = exp_tables(0.1, 8, exp_bits(2))
    >>> softmax_codes(torch.tensor([[10, 10]]), 1, tables, softmax_output(8, signed=True))
    tensor([[0, 0]])
    """
    high, low = tables
    if hidden is not None:
        codes = codes.masked_fill(hidden, int(codes.min()))
    d = codes.amax(axis, keepdim=True) - codes
    e = (high[d >> _LOW] * low[d & ((1 << _LOW) - 1)] + _HALF) >> 15
    e = e if hidden is None else e.masked_fill(hidden, 0)
    total = e.sum(axis, keepdim=True).clamp(min=1)
    steps = round(1.0 / float(output.scale))
    if not math.log2(steps).is_integer():
        raise PlanError("the scale of probabilities is not a power of two", got=float(output.scale))
    found = torch.div(e * steps + (total >> 1), total, rounding_mode="floor") + int(output.zero_point)
    return found.clamp(output.qtype.qmin, output.qtype.qmax)
