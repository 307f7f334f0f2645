"""ADD, SUB, MUL, QUANTIZE, DEQUANTIZE, requantization, RELU: one code of each input gives one code."""

from __future__ import annotations

import math

import numpy as np

from intact.reference.fixed_point import (
    Array,
    Rounding,
    multiply_by_quantized_multiplier,
    quantized_multiplier,
    round_half_away,
    wrap_int32,
)
from intact.reference.litert.quant import (
    Activation,
    Kernels,
    Quant,
    blocks_then_rest,
    clamp,
    round_half_even,
    to_int32,
)

__all__ = ["add", "dequantize", "mul", "quantize", "relu", "requantize"]


def _add_fixed_point(
    a: Array, b: Array, qa: Quant, qb: Quant, qy: Quant, sign: int, rounding: Rounding = "double"
) -> Array:
    """Both inputs, rounded so, on the grid of twice the larger scale, widened by 20 (int8) or 15 (int16) bits."""
    left = 20 if qy.bits == 8 else 15
    twice = 2.0 * max(float(qa.f32), float(qb.f32))
    def scaled(codes: Array, q: Quant) -> Array:
        m0, shift = quantized_multiplier(float(q.f32) / twice)
        return multiply_by_quantized_multiplier((codes.astype(np.int64) - q.zero_point) << left, m0, shift, rounding)
    total = scaled(a, qa) + sign * scaled(b, qb)
    return multiply_by_quantized_multiplier(total, *quantized_multiplier(twice / ((1 << left) * float(qy.f32))))


def _add_delegated(a: Array, b: Array, qa: Quant, qb: Quant, qy: Quant, sign: int) -> Array:
    """XNNPACK: multipliers of 21 bits on one shift, one sum, one shift half up."""
    ra, rb = qa.f32 / qy.f32, qb.f32 / qy.f32
    shift = 20 - (math.frexp(float(max(ra, rb)))[1] - 1)
    ma, mb = (int(round_half_even(np.asarray(r * np.float32(2.0**shift)))) for r in (ra, rb))
    total = (a.astype(np.int64) - qa.zero_point) * ma + sign * (b.astype(np.int64) - qb.zero_point) * mb
    return (total + (1 << (shift - 1))) >> shift


def add(
    a: Array, b: Array, qa: Quant, qb: Quant, qy: Quant, *, subtract: bool = False, kernels: Kernels = "reference",
    activation: Activation = "NONE",
) -> Array:
    """ADD, or SUB.

    The optimized int8 kernel holds the result before its zero point in 16 bits: this function is for what fits. The
    optimized ADD of int16 (AVX2) rounds each input once, half up, in blocks of 16; what is left of the tensor, and what
    broadcasts, as the reference. XNNPACK is for ratios s_a / s_y below 256.

    >>> add(np.array([1, 2, 3]), np.array([1, 1, 2]), Quant(1.0), Quant(0.5), Quant(1.0))
    array([2, 3, 4])
    """
    form = _add_delegated if kernels == "delegated" and qy.bits == 8 else _add_fixed_point
    total = form(a, b, qa, qb, qy, -1 if subtract else 1)
    if qy.bits == 16 and kernels != "reference" and not subtract and a.size == b.size:
        total = blocks_then_rest(_add_fixed_point(a, b, qa, qb, qy, 1, "single"), total, 16)
    return clamp(total, qy, activation, kernels)


def mul(
    a: Array, b: Array, qa: Quant, qb: Quant, qy: Quant, *, kernels: Kernels = "reference",
    activation: Activation = "NONE",
) -> Array:
    """MUL: the product of both codes without zero points, times s_a * s_b / s_y, which is rounded to float32.

    The optimized int8 kernel holds the result before its zero point in 16 bits: this function is for what fits.

    >>> mul(np.array([3, -3]), np.array([5, 5]), Quant(0.5), Quant(0.5), Quant(0.5))
    array([ 8, -7])
    """
    product = (a.astype(np.int64) - qa.zero_point) * (b.astype(np.int64) - qb.zero_point)
    scale = qa.f32 * qb.f32 / qy.f32
    if kernels == "delegated" and qy.bits == 8:
        return clamp(round_half_even(product.astype(np.float32) * scale), qy, activation, kernels)
    return clamp(multiply_by_quantized_multiplier(product, *quantized_multiplier(float(scale))), qy, activation)


def requantize(x: Array, qx: Quant, qy: Quant, *, kernels: Kernels = "reference") -> Array:
    """QUANTIZE from codes to codes.

    Reference: Q31, rounded twice. Optimized int8 to int8: both roundings half up, but for the last
    ``size % 16`` elements of the tensor, which follow the reference. XNNPACK int8 to int8: 8 fraction bits, half up;
    it takes ratios s_x / s_y from 2**-8 to 2**7.

    >>> requantize(np.array([1, 2, 3, -3]), Quant(0.5), Quant(1.0))
    array([ 1,  1,  2, -1])
    >>> requantize(np.array([-2]), Quant(0.25), Quant(1.0)), requantize(np.array([-2] * 16), Quant(0.25), Quant(1.0),
    ...     kernels="optimized")[:1]
    (array([-1]), array([0]))
    """
    codes = x.astype(np.int64) - qx.zero_point
    m0, shift = quantized_multiplier(float(qx.f32) / float(qy.f32))
    int8 = qx.bits == qy.bits == 8
    ratio = qx.f32 / qy.f32
    if int8 and kernels == "delegated" and 2.0**-8 <= ratio <= 2.0**7:
        return clamp((codes * int(round_half_even(np.asarray(np.float32(256) * ratio))) + 128) >> 8, qy)
    scaled = multiply_by_quantized_multiplier(codes, m0, shift)
    if int8 and kernels != "reference":
        scaled = blocks_then_rest(multiply_by_quantized_multiplier(codes, m0, shift, "double_up"), scaled, 16)
    return clamp(scaled, qy)


def quantize(x: Array, q: Quant, *, kernels: Kernels = "reference") -> Array:
    """QUANTIZE from float32.

    Reference: x / s rounded half away; the others: x * (1 / s) rounded half to even, but for the last ``size % 8``
    elements of the tensor in the optimized kernel: there x / s in float64, half away. XNNPACK (int8) then clamps, NaN
    to the highest code. The built-in kernels convert to int32 first: beyond 2**31 * s, and for NaN, they give -2**31
    plus the zero point, which wraps in 32 bits: one end of the range or the other, whatever the sign of x.

    >>> quantize(np.float32([0.25, 0.75, -0.25]), Quant(0.5))
    array([ 1,  2, -1])
    >>> quantize(np.float32([0.25] * 9), Quant(0.5), kernels="optimized")
    array([0, 0, 0, 0, 0, 0, 0, 0, 1])
    >>> [quantize(np.float32([1e9]), Quant(0.01, z)).item() for z in (-5, 0)]
    [127, -128]
    """
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        away, even = round_half_away(x / q.f32), round_half_even(x * (np.float32(1) / q.f32))
    if kernels == "delegated" and q.bits == 8:
        return clamp(np.where(np.isnan(even), 512, np.clip(even, -512, 512)), q)
    rest = round_half_away(x.astype(np.float64) / np.float64(q.f32))
    scaled = away if kernels == "reference" else blocks_then_rest(even, rest, 8)
    return np.clip(wrap_int32(to_int32(scaled) + q.zero_point), q.qmin, q.qmax)


def dequantize(x: Array, q: Quant, *, kernels: Kernels = "reference") -> Array:
    """DEQUANTIZE to float32: s * (code - zero point); optimized int8: s * code - s * zero_point, each rounded.

    The last ``size % 8`` elements follow the reference there too.

    >>> dequantize(np.array([3]), Quant(0.5, 1))
    array([1.], dtype=float32)
    """
    exact = (x.astype(np.int64) - q.zero_point).astype(np.float32) * q.f32
    if kernels != "optimized" or q.bits != 8:
        return np.asarray(exact)
    split = x.astype(np.float32) * q.f32 - np.float32(q.zero_point) * q.f32
    return blocks_then_rest(split, exact, 8)


def relu(x: Array, qx: Quant, qy: Quant, activation: Activation = "RELU") -> Array:
    """RELU, RELU6, RELU_N1_TO_1 as operators: requantized by s_x / s_y (float32), then clamped.

    >>> relu(np.array([-4, 3]), Quant(0.5), Quant(0.5, -2))
    array([-2,  1])
    """
    codes = x.astype(np.int64) - qx.zero_point
    return clamp(multiply_by_quantized_multiplier(codes, *quantized_multiplier(float(qx.f32 / qy.f32))), qy, activation)
