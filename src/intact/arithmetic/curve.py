"""A function of one code as straight lines between knots: a fraction of the memory of a full table.

Knots stand at every ``2**step``-th code, with :data:`FRACTION` bits behind the point; between two of them the value is
``(k0 * 2**step + (k1 - k0) * rest) / 2**(step + FRACTION)``, rounded once by the arithmetic's rule. It is integers
throughout, and fits in 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from intact.arithmetic.fixed_point import rounded_shift
from intact.arithmetic.rounding import Rounding
from intact.types import QType

__all__ = ["FRACTION", "Curve", "fitted_curve"]

#: bits of a knot behind the point
FRACTION = 8
_LIMIT = 2**30  # of a knot: far outside of all codes, so that a line may lead there
_FIRST, _LEAST = 5, 4  # 2**5 + 1 knots at first; 2**4 codes between them at last


@dataclass(frozen=True, eq=False)
class Curve:
    """Straight lines between knots.

    Args:
        knots: values of the output's codes, zero point included, times ``2**FRACTION``; int64 within 31 bits.
        step: knots are ``2**step`` codes apart; the first stands at the operand's lowest code.
    """

    knots: Tensor
    step: int

    def totals(self, index: Tensor) -> Tensor:
        """The value at codes counted from the lowest one, times ``2**(step + FRACTION)``; int64.

        >>> Curve(torch.tensor([0, 512]), 1).totals(torch.tensor([0, 1])).tolist()
        [0, 512]
        """
        left, rest = index >> self.step, index & ((1 << self.step) - 1)
        low, high = self.knots[left], self.knots[left + 1]
        return (low << self.step) + (high - low) * rest

    def codes(self, index: Tensor, rounding: Rounding, low: int, high: int) -> Tensor:
        """Output codes, as integer-valued float32.

        >>> Curve(torch.tensor([0, 512]), 1).codes(torch.tensor([0, 1]), Rounding.HALF_UP, -128, 127)
        tensor([0., 1.])
        """
        shift = torch.tensor(self.step + FRACTION)
        return rounded_shift(self.totals(index), shift, rounding).clamp_(low, high).to(torch.float32)


def fitted_curve(values: Callable[[Tensor], Tensor], operand: QType, output: QType, low: int, high: int
                 ) -> Curve | None:
    """The curve with the fewest knots that is nowhere more than half a code of 16 bits away from a function.

    Args:
        values: from codes to real-valued output codes, zero point included, both float64.
        operand: its codes are those that are looked at, every one.
        output: half of its code is allowed at 16 bits, half of a 256th of its code at 8.
        low: where output codes are clamped; beyond it all is equal.
        high: likewise.

    Returns:
        None where knots would have to be less than 16 codes apart (a pole, a corner between two of them), or the
        operand has at most 8 bits.

    >>> curve = fitted_curve(lambda c: c * c / 65536, QType(16, True), QType(16, True), -32768, 32767)
    >>> len(curve.knots)
    257
    """
    if operand.bits <= 8:
        return None
    index = torch.arange(operand.qmax - operand.qmin + 1)
    exact = values((index + operand.qmin).to(torch.float64)).clamp(low, high)
    allowed = 0.5 * 2.0 ** min(0, output.bits - 16)
    for step in range(operand.bits - _FIRST, _LEAST - 1, -1):
        places = torch.arange((len(index) >> step) + 1 + (len(index) % (1 << step) > 0)) << step
        knots = (values((places + operand.qmin).to(torch.float64)) * 2.0**FRACTION).round_().clamp_(-_LIMIT, _LIMIT)
        curve = Curve(knots.to(torch.int64), step)
        found = curve.totals(index).to(torch.float64).mul_(2.0 ** -(step + FRACTION)).clamp_(low, high)
        if float((found - exact).abs().max()) <= allowed:
            return curve
    return None
