"""A runtime's number rules as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from intact.arithmetic.rounding import Rounding

__all__ = ["REFERENCE", "Arithmetic", "BinaryRule", "FunctionRule", "MatMulRule", "MeanRule", "PoolRule",
           "Requantize", "ResizeRule", "SoftmaxRule"]


class BinaryRule(Enum):
    """How an addition or a multiplication of two quantized operands is computed."""

    DEQUANTIZED = "dequantized"  # float32 values, float32 operation, quantize
    FUSED = "fused"  # on codes with float32 ratios (fma for a sum, product of codes); above 8 bits dequantized
    INTEGER = "integer"  # on codes with fixed-point ratios: no float at run time
    TFLITE = "tflite"  # 31-bit multipliers, each product rounded twice; a sum on twice the larger operand's scale
    XNNPACK = "xnnpack"  # sum: 21-bit multipliers of one shift; product of codes: a float32 ratio, then the zero point


class PoolRule(Enum):
    """How an average is computed."""

    DEQUANTIZED = "dequantized"  # float32 sum of values in window order, divided, then quantized
    SUM = "sum"  # exact integer sum, one multiplier
    CODES = "codes"  # the codes' own mean, a tie away from code 0; operand and output have one encoding


class MeanRule(Enum):
    """How a mean over whole axes is computed; always from the exact integer sum."""

    SUM = "sum"  # one multiplier, as an accumulator
    TFLITE = "tflite"  # a 31-bit multiplier, divided by the count as an integer; rounded twice
    XNNPACK = "xnnpack"  # float32 ratio and offset, the zero point inside the rounding


class ResizeRule(Enum):
    """How bilinear interpolation weighs neighbours."""

    PRODUCTS = "products"  # of dequantized values; without floats of codes: up to 11 bits a side, one multiplier
    TFLITE = "tflite"  # of codes, 10 bits a side, a tie away from code 0; operand and output have one encoding
    XNNPACK = "xnnpack"  # of codes, 11 bits a side, a tie upwards; operand and output have one encoding


class Requantize(Enum):
    """How a wide accumulator is brought to the output's scale: by which multiplier, rounded how often."""

    FLOAT = "float"  # float32 multiplier
    FIXED_POINT = "fixed_point"  # M = M0 * 2**-n with M0 a 31-bit integer; 64-bit product, one rounding
    FIXED_POINT_TWICE = "fixed_point_twice"  # TFLite: high half of the doubled product, rounded; a rounding shift
    FIXED_POINT_16 = "fixed_point_16"  # TFLite with 16-bit codes: M0 of 15 bits, one rounding, half up
    SHIFT = "shift"  # M is a power of two, for scales are (a mean's 1 / n is not: it takes M0 * 2**-n)


class SoftmaxRule(Enum):
    """How a softmax of codes is computed."""

    TABLES = "tables"  # two integer tables of powers of e, one integer division
    TFLITE = "tflite"  # 8 bits: gemmlowp's fixed point; 16 bits: tables of 513 knots for exp and for 1 / (1 + x)
    FLOAT_TABLE = "float_table"  # LiteRT's other kernels: a float32 table, summed from left to right; 8 bits


class MatMulRule(Enum):
    """How the accumulator of a product of two activations is brought to the output's scale."""

    ACCUMULATOR = "accumulator"  # as every other
    TFLITE = "tflite"  # the product of both scales is rounded to float32 first; then as every other
    XNNPACK = "xnnpack"  # as every other where the second operand has zero point 0; else TFLite's, rounded twice


class FunctionRule(Enum):
    """How a function of one value is computed."""

    TABLE = "table"  # the nearest code of the function's value, of all codes: 128 KB at 16 bits
    INTERPOLATED = "interpolated"  # above 8 bits straight lines, within half a code of 16 bits; else TABLE
    LITERT = "litert"  # where LiteRT has an integer kernel, that one's code: hardswish; sigmoid and tanh of 16 bits


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime quantizes, rounds, adds, multiplies and averages.

    An accumulator that could overflow is refused, so that it does not matter whether a runtime's wraps or saturates.

    Args:
        name: for messages and artefacts.
        rounding: the rule for every rounding (but for those that ``FIXED_POINT_TWICE`` prescribes).
        add: rule for additions and subtractions.
        mul: rule for multiplications of two activations.
        average_pool: rule for windows.
        mean: rule for whole axes.
        resize: rule for bilinear interpolation.
        softmax: rule for softmax, where it runs in integers.
        matmul: rule for products of two activations.
        functions: rule for functions of one value.
        zero_inside_pool: the zero point is added before the rounding in windowed average pooling of 8 bits.
        accumulator_bits: width of the accumulator; a layer that could overflow it is refused.
        wide_accumulator_bits: the same where an operand has more than 8 bits, if it is wider then.
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
    mean: MeanRule = MeanRule.SUM
    resize: ResizeRule = ResizeRule.PRODUCTS
    softmax: SoftmaxRule = SoftmaxRule.TABLES
    matmul: MatMulRule = MatMulRule.ACCUMULATOR
    functions: FunctionRule = FunctionRule.TABLE
    zero_inside_pool: bool = False
    accumulator_bits: int = 32
    wide_accumulator_bits: int = 8
    requantize: Requantize = Requantize.FLOAT
    zero_inside: bool = False
    reciprocal: bool = False
    pair_bits: int = 32

    @property
    def integer_only(self) -> bool:
        """True if nothing between input and output is a float."""
        return self.requantize is not Requantize.FLOAT

    def accumulator_width(self, bits: int) -> int:
        """Bits of the accumulator for operands of so many bits."""
        return max(self.accumulator_bits, self.wide_accumulator_bits) if bits > 8 else self.accumulator_bits

    def accumulator_limit(self, bits: int) -> float:
        """Every partial sum of products with operands of so many bits must stay below this.

        >>> Arithmetic("x").accumulator_limit(8) == 2.0**31
        True
        """
        width = self.accumulator_width(bits)
        return 2.0 ** (53 if width == 53 else width - 1)


REFERENCE = Arithmetic("reference", accumulator_bits=53)  # exact in float64 and in int64
