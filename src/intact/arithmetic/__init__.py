"""The number rules of runtimes: quantize, round, saturate, accumulate, requantize. The only room that rounds."""

from intact.arithmetic.accumulate import accumulator_bounds, carrier_for, pairs_saturate
from intact.arithmetic.arithmetic import (
    REFERENCE,
    Arithmetic,
    BinaryRule,
    FunctionRule,
    MatMulRule,
    MeanRule,
    PoolRule,
    Requantize,
    ResizeRule,
    SoftmaxRule,
)
from intact.arithmetic.curve import Curve, fitted_curve
from intact.arithmetic.dynamic import ROW_EPSILON, quantize_rows, quantize_tensor, tensor_range
from intact.arithmetic.elementwise import add_codes, fma_float32, mul_codes, sub_codes
from intact.arithmetic.fixed_point import fixed_point, rounded_shift, shared_fixed_point
from intact.arithmetic.quantize import dequantize, quantize, quantize_weight
from intact.arithmetic.quick import quick_multiplier, requantize_quickly
from intact.arithmetic.requantize import PRODUCT_LIMIT, Multiplier, multiplier, requantize
from intact.arithmetic.rounding import Rounding, round_to_int
from intact.arithmetic.weight_rounding import quantize_kernel_weight

__all__ = [
    "PRODUCT_LIMIT",
    "REFERENCE",
    "ROW_EPSILON",
    "Arithmetic",
    "BinaryRule",
    "Curve",
    "FunctionRule",
    "MatMulRule",
    "MeanRule",
    "Multiplier",
    "PoolRule",
    "Requantize",
    "ResizeRule",
    "Rounding",
    "SoftmaxRule",
    "accumulator_bounds",
    "add_codes",
    "carrier_for",
    "dequantize",
    "fitted_curve",
    "fixed_point",
    "fma_float32",
    "mul_codes",
    "multiplier",
    "pairs_saturate",
    "quantize",
    "quantize_kernel_weight",
    "quantize_rows",
    "quantize_tensor",
    "quantize_weight",
    "quick_multiplier",
    "requantize",
    "requantize_quickly",
    "round_to_int",
    "rounded_shift",
    "shared_fixed_point",
    "sub_codes",
    "tensor_range",
]
