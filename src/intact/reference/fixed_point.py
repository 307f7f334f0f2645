"""Fixed-point requantization in NumPy: the normative specification of the integer rules.

A real multiplier M becomes ``m0 * 2**(shift - 31)`` with m0 in [2**30, 2**31): 31 fraction bits and a shift, positive
to the left. All functions work element by element on int64 arrays that hold int32 values, and no intermediate result
leaves int64. Names follow gemmlowp and TensorFlow Lite, whose sources are the specification that is mirrored here.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "INT32_MAX",
    "INT32_MIN",
    "Array",
    "Rounding",
    "divide_half_away",
    "multiply_by_quantized_multiplier",
    "multiply_int64_by_quantized_multiplier",
    "quantized_multiplier",
    "quantized_multipliers",
    "round_half_away",
    "rounding_divide_by_pot",
    "saturating_rounding_doubling_high_mul",
    "wrap_int32",
]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
Array = npt.NDArray[Any]
Rounding = Literal["double", "double_up", "single"]


def round_half_away(x: npt.ArrayLike) -> Array:
    """The nearest integer of floats, ties away from zero, exactly (``std::round``).

    ``floor(x + 0.5)`` is not it: 0.49999997 + 0.5 is 1 in float32.

    >>> round_half_away(np.float32([0.49999997, 0.5, -0.5, 1.5, -2.5]))
    array([ 0.,  1., -1.,  2., -3.], dtype=float32)
    """
    x = np.asarray(x)
    whole = np.trunc(x)
    with np.errstate(invalid="ignore"):  # infinities stay
        return np.asarray(whole + np.copysign(np.abs(x - whole) >= 0.5, x).astype(x.dtype))


def wrap_int32(x: npt.ArrayLike) -> Array:
    """The low 32 bits as a signed number, as int64: what an int32 register keeps.

    >>> wrap_int32([2**31, -(2**31) - 1, 5])
    array([-2147483648,  2147483647,           5])
    """
    return (np.asarray(x, np.int64) + 2**31 & 0xFFFFFFFF) - 2**31


def divide_half_away(a: npt.ArrayLike, n: npt.ArrayLike) -> Array:
    """Integers a divided by n > 0 as TensorFlow Lite's pools do it: (|a| + n // 2) // n with the sign of a.

    A tie goes away from zero.

    >>> divide_half_away([5, -5, 7, -7, 4], 2)
    array([ 3, -3,  4, -4,  2])
    """
    a, n = np.asarray(a, np.int64), np.asarray(n, np.int64)
    return np.asarray(np.where(a < 0, -1, 1) * ((np.abs(a) + n // 2) // n))


def quantized_multiplier(multiplier: float) -> tuple[int, int]:
    """The mantissa m0 and the shift of a real multiplier M >= 0: M is about m0 * 2**(shift - 31).

    m0 is in [2**30, 2**31), or 0 where M is 0 or rounds below 2**-32 (all bits would be shifted out).
    Source: ``QuantizeMultiplier`` of TensorFlow Lite.

    Raises:
        ValueError: for a negative or non-finite M, and for M of 2**30 or more.

    >>> quantized_multiplier(0.25)
    (1073741824, -1)
    >>> quantized_multiplier(1 / 3)
    (1431655765, -1)
    >>> quantized_multiplier(2.0**-40)
    (0, 0)
    """
    if not (math.isfinite(multiplier) and 0 <= multiplier < 2.0**30):
        raise ValueError(f"a multiplier is finite and in [0, 2**30), got {multiplier}")
    fraction, shift = math.frexp(multiplier)
    m0 = math.floor(fraction * 2.0**31 + 0.5)  # exact: the sum needs at most 53 bits for a float64 fraction
    if m0 == 2**31:
        m0, shift = 2**30, shift + 1
    return (m0, shift) if m0 and shift >= -31 else (0, 0)


def quantized_multipliers(multipliers: npt.ArrayLike) -> tuple[Array, Array]:
    """``quantized_multiplier`` of each channel: two int64 arrays of the same shape.

    >>> quantized_multipliers([0.5, 0.75])
    (array([1073741824, 1610612736]), array([0, 0]))
    """
    values = np.asarray(multipliers, np.float64)
    pairs = np.array([quantized_multiplier(float(m)) for m in values.ravel()], np.int64).reshape(*values.shape, 2)
    return pairs[..., 0], pairs[..., 1]


def saturating_rounding_doubling_high_mul(a: npt.ArrayLike, b: npt.ArrayLike, bits: int = 32) -> Array:
    """The high half of 2 * a * b, rounded half up: floor((a * b + 2**(bits - 2)) / 2**(bits - 1)).

    Only the lowest value times itself leaves the range; it saturates.
    Source: ``SaturatingRoundingDoublingHighMul`` of gemmlowp, ``SQRDMULH`` of Arm.

    >>> saturating_rounding_doubling_high_mul([3, -3, -(2**31)], [2**30, 2**30, -(2**31)])
    array([         2,         -1, 2147483647])
    """
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    return np.asarray(np.minimum((a * b + (1 << (bits - 2))) >> (bits - 1), (1 << (bits - 1)) - 1))


def rounding_divide_by_pot(x: npt.ArrayLike, exponent: npt.ArrayLike) -> Array:
    """Integers x / 2**exponent for exponent in [0, 31], ties away from zero.

    Source: ``RoundingDivideByPOT`` of gemmlowp.

    >>> rounding_divide_by_pot([5, 6, 7, -5, -6, -7], 2)
    array([ 1,  2,  2, -1, -2, -2])
    """
    x, e = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    mask = (np.int64(1) << e) - 1
    return np.asarray((x >> e) + ((x & mask) > (mask >> 1) + (x < 0)))


def multiply_by_quantized_multiplier(
    x: npt.ArrayLike, m0: npt.ArrayLike, shift: npt.ArrayLike, rounding: Rounding = "double"
) -> Array:
    """The product x * m0 * 2**(shift - 31) for int32 x: the requantization of fixed-point runtimes.

    Args:
        x: int32 values, any shape.
        m0: mantissa in [0, 2**31), broadcast against x.
        shift: in [-31, 30], broadcast against x.
        rounding: ``"double"`` rounds the high product half up and then the right shift half away from zero
            (gemmlowp, TensorFlow Lite's portable kernels); ``"double_up"`` rounds both half up (``SQRDMULH`` and
            ``SRSHL`` of Arm, and the kernels that follow them); ``"single"`` rounds once, half up (TensorFlow Lite
            built with ``TFLITE_SINGLE_ROUNDING``). With the first two a left shift wraps in 32 bits.

    Returns:
        int64 array of int32 values; a result that does not fit wraps.

    >>> m0, shift = quantized_multiplier(1 / 16)
    >>> multiply_by_quantized_multiplier([6, 7, 8, -8, -24], m0, shift)  # 7 / 16: 3.5 / 8, 4 / 8, 1
    array([ 0,  1,  1, -1, -2])
    >>> multiply_by_quantized_multiplier([6, 7, 8, -8, -24], m0, shift, "double_up")
    array([ 0,  1,  1,  0, -1])
    >>> multiply_by_quantized_multiplier([6, 7, 8, -8, -24], m0, shift, "single")
    array([ 0,  0,  1,  0, -1])
    """
    x, m0, shift = np.asarray(x, np.int64), np.asarray(m0, np.int64), np.asarray(shift, np.int64)
    if rounding == "single":
        total = 31 - shift
        return wrap_int32((x * m0 + (np.int64(1) << (total - 1))) >> total)
    left = wrap_int32(x << np.maximum(shift, 0))
    high, right = saturating_rounding_doubling_high_mul(left, m0), np.maximum(-shift, 0)
    if rounding == "double":
        return rounding_divide_by_pot(high, right)
    return np.asarray((high + ((np.int64(1) << right) >> 1)) >> right)


def multiply_int64_by_quantized_multiplier(x: npt.ArrayLike, m0: npt.ArrayLike, shift: npt.ArrayLike) -> Array:
    """The product x * m0 * 2**(shift - 31) for a 48-bit accumulator: m0 is cut to 15 bits, one rounding half up.

    This is the requantization of int16 activations with an int64 bias: its scale is 16 bits wide, so that results up to
    one in 2**16 of their size away from the real value are normal.

    Args:
        x: values in [-2**47, 2**47).
        m0: mantissa in [0, 2**31).
        shift: in [-31, 7].

    >>> multiply_int64_by_quantized_multiplier([100_000, -100_000], *quantized_multiplier(0.3))
    array([ 30000, -30000])
    """
    x, m0, shift = np.asarray(x, np.int64), np.asarray(m0, np.int64), np.asarray(shift, np.int64)
    reduced = np.where(m0 < 0x7FFF0000, (m0 + (1 << 15)) >> 16, 0x7FFF)
    total = 15 - shift
    return wrap_int32((x * reduced + (np.int64(1) << (total - 1))) >> total)
