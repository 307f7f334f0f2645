"""A runtime's number rules as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from intact.arithmetic.rounding import Rounding

__all__ = ["REFERENCE", "Arithmetic", "BinaryRule", "PoolRule", "Requantize"]


class BinaryRule(Enum):
    """How an addition or a multiplication of two quantized operands is computed."""

    DEQUANTIZED = "dequantized"  # float32 values, float32 operation, quantize
    FUSED = "fused"  # on codes with float32 ratios (fma for addition, product of codes for multiplication)
    INTEGER = "integer"  # on codes with fixed-point ratios: no float at run time


class PoolRule(Enum):
    """How an average is computed."""

    DEQUANTIZED = "dequantized"  # float32 sum of values in window order, divided, then quantized
    SUM = "sum"  # exact integer sum, one multiplier


class Requantize(Enum):
    """How a wide accumulator is brought to the output's scale: by which multiplier, rounded how often."""

    FLOAT = "float"  # float32 multiplier
    FIXED_POINT = "fixed_point"  # M = M0 * 2**-n with M0 a 31-bit integer; 64-bit product, one rounding
    FIXED_POINT_TWICE = "fixed_point_twice"  # the high half of the doubled product, rounded, then a rounding shift
    SHIFT = "shift"  # M is a power of two, for scales are (a mean's 1 / n is not: it takes M0 * 2**-n)


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime quantizes, rounds, adds, multiplies and averages.

    An accumulator that could overflow is refused, so that it does not matter whether a runtime's wraps or saturates.

    Args:
        name: for messages and artefacts.
        rounding: the rule for every rounding (but for those that ``FIXED_POINT_TWICE`` prescribes).
        add: rule for additions and subtractions.
        mul: rule for multiplications of two activations.
        average_pool: rule for windows; a mean over whole axes always uses the exact integer sum.
        zero_inside_pool: the zero point is added before the rounding in windowed average pooling.
        accumulator_bits: width of the accumulator; a layer that could overflow it is refused.
        requantize: rule for accumulators.
        zero_inside: the zero point is added before the rounding, when quantizing and requantizing (it decides ties
            if it is odd).
        reciprocal: quantizing multiplies by the float32 reciprocal of the scale instead of dividing by the scale.
        pair_bits: 16 where two neighbouring products of a layer are added in 16 bits that saturate (x86 before VNNI);
            weights that could make them are refused, or get fewer bits from the plan.
    """

    name: str
    rounding: Rounding = Rounding.HALF_EVEN
    add: BinaryRule = BinaryRule.DEQUANTIZED
    mul: BinaryRule = BinaryRule.DEQUANTIZED
    average_pool: PoolRule = PoolRule.SUM
    zero_inside_pool: bool = False
    accumulator_bits: int = 32
    requantize: Requantize = Requantize.FLOAT
    zero_inside: bool = False
    reciprocal: bool = False
    pair_bits: int = 32

    @property
    def integer_only(self) -> bool:
        """True if nothing between input and output is a float."""
        return self.requantize is not Requantize.FLOAT

    @property
    def accumulator_limit(self) -> float:
        """Every partial sum must stay below this."""
        return 2.0 ** (53 if self.accumulator_bits == 53 else self.accumulator_bits - 1)


REFERENCE = Arithmetic("reference", accumulator_bits=53)  # exact in float64 and in int64
