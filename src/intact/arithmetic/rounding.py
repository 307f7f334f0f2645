"""From a real number to an integer: the four rules that targets use."""

from __future__ import annotations

from enum import Enum

import torch

__all__ = ["Rounding", "round_to_int"]


class Rounding(Enum):
    """How a tie (and everything else) is rounded."""

    HALF_EVEN = "half_even"
    HALF_AWAY = "half_away"
    HALF_UP = "half_up"
    FLOOR = "floor"


def round_to_int(x: torch.Tensor, rounding: Rounding, *, inplace: bool = False) -> torch.Tensor:
    """Integer-valued tensor of the dtype of ``x`` (floating), rounded by ``rounding``.

    >>> x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    >>> round_to_int(x, Rounding.HALF_EVEN).int().tolist()
    [-2, -2, 0, 0, 2, 2]
    >>> round_to_int(x, Rounding.HALF_AWAY).int().tolist()
    [-3, -2, -1, 1, 2, 3]
    >>> round_to_int(x, Rounding.HALF_UP).int().tolist()
    [-2, -1, 0, 1, 2, 3]
    """
    if rounding is Rounding.HALF_EVEN:
        return x.round_() if inplace else x.round()
    if rounding is Rounding.FLOOR:
        return x.floor()
    # on the magnitude, and floor first: x + 0.5 would itself round for large x or for the float just below 0.5,
    # and x - floor(x) for small negative x
    size = x.abs()
    below = size.floor()
    fraction = size - below
    tie_out = x >= 0 if rounding is Rounding.HALF_UP else torch.ones_like(x, dtype=torch.bool)
    up = torch.where(tie_out, fraction >= 0.5, fraction > 0.5)
    return torch.copysign(below + up.to(x.dtype), x)
