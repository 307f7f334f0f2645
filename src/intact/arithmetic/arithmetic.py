"""A runtime's number rules as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from intact.arithmetic.rounding import Rounding

__all__ = ["REFERENCE", "Arithmetic", "BinaryRule", "PoolRule"]


class BinaryRule(Enum):
    """How an addition or a multiplication of two quantized operands is computed."""

    DEQUANTIZED = "dequantized"  # float32 values, float32 operation, quantize
    FUSED = "fused"  # on codes with float32 ratios (fma for addition, product of codes for multiplication)


class PoolRule(Enum):
    """How an average is computed."""

    DEQUANTIZED = "dequantized"  # float32 sum of values in window order, divided, then quantized
    SUM = "sum"  # exact integer sum, one float32 multiplier


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime quantizes, rounds, adds, multiplies and averages.

    Args:
        name: for messages and artefacts.
        rounding: the rule for every rounding.
        add: rule for additions.
        mul: rule for multiplications of two activations.
        average_pool: rule for windows; a mean over whole axes always uses the exact integer sum.
        zero_inside_pool: the zero point is added before the rounding in windowed average pooling.
        accumulator_bits: width of the accumulator; a layer that could overflow it is refused.
    """

    name: str
    rounding: Rounding = Rounding.HALF_EVEN
    add: BinaryRule = BinaryRule.DEQUANTIZED
    mul: BinaryRule = BinaryRule.DEQUANTIZED
    average_pool: PoolRule = PoolRule.SUM
    zero_inside_pool: bool = False
    accumulator_bits: int = 32


REFERENCE = Arithmetic("reference", accumulator_bits=53)  # exact in float64 and in int64
