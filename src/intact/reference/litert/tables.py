"""LOGISTIC, TANH, HARD_SWISH: functions of one code.

With int8 the kernel fills a table of 256 codes from a float32 function: it is a constant of the file, not arithmetic,
and its entries follow the machine's ``exp`` and ``tanh``. With int16 all is integer: a table of 256 knots and a line
between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from intact.reference import gemmlowp
from intact.reference.fixed_point import (
    Array,
    quantized_multiplier,
    round_half_away,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)
from intact.reference.litert.quant import Kernels, Quant, round_half_even

__all__ = ["hard_swish", "logistic", "logistic_int16", "lut_int8", "sigmoid_knots", "tanh", "tanh_int16"]

Function = Callable[[Array], Array]
"""float32 to float32, rounded after every step; exp and tanh correctly rounded, as glibc's are but for a few."""


def lut_int8(function: Function, qx: Quant, qy: Quant, *, kernels: Kernels = "reference") -> Array:
    """The outputs for the codes -128 to 127 of a float32 function.

    y = f(s_x * (code - z_x)) * (1 / s_y), half away from zero, then the zero point; XNNPACK: the zero point, then half
    to even.

    >>> lut_int8(np.tanh, Quant(1 / 16), Quant(1 / 128))[[0, 128, 255]]
    array([-128,    0,  127])
    """
    reals = (np.arange(-128, 128) - qx.zero_point).astype(np.float32) * qx.f32
    values = function(reals).astype(np.float32) * (np.float32(1) / qy.f32)
    if kernels == "delegated":
        codes = round_half_even(values + np.float32(qy.zero_point))
    else:
        codes = round_half_away(values) + np.float32(qy.zero_point)
    return np.clip(codes, qy.qmin, qy.qmax).astype(np.int64)


def logistic(x: Array, qx: Quant, qy: Quant, *, kernels: Kernels = "reference") -> Array:
    """LOGISTIC of int8; the output encoding is 1/256 with zero point -128. XNNPACK evaluates it in float64.

    >>> logistic(np.array([0]), Quant(0.1), Quant(1 / 256, -128))
    array([0])
    """
    def real(v: Array) -> Array:
        wide = np.exp(-v.astype(np.float64))
        return np.asarray(1 / (1 + (wide if kernels == "delegated" else wide.astype(np.float32))))
    return lut_int8(real, qx, qy, kernels=kernels)[x.astype(np.int64) + 128]


def tanh(x: Array, qx: Quant, qy: Quant, *, kernels: Kernels = "reference") -> Array:
    """TANH of int8; the output encoding is 1/128 with zero point 0.

    >>> tanh(np.array([10]), Quant(0.1), Quant(1 / 128))
    array([97])
    """
    return lut_int8(lambda v: np.tanh(v.astype(np.float64)), qx, qy, kernels=kernels)[x.astype(np.int64) + 128]


_RAISED = (
    4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39, 40, 41, 43, 44, 45, 46, 49,
    50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135, 255,
)


def sigmoid_knots() -> Array:
    """sigmoid(i / 24) for i = 0 to 255 with 16 fraction bits, as the int16 kernels hold it.

    The kernels' table is one above the nearest number at 44 places.

    >>> sigmoid_knots()[[0, 1, 4, 255]]
    array([32768, 33451, 35493, 65535])
    """
    knots = round_half_away(65536 / (1 + np.exp(-np.arange(256) / 24.0))).astype(np.int64)
    knots[list(_RAISED)] += 1
    return knots


def _input_scale(scale: float, shifts: tuple[int, ...]) -> tuple[int, int]:
    """(multiplier, left shift) that bring codes to 1/(3 * 4096); multiplier 0 for powers of two within shifts."""
    log = math.log2(scale)
    if log == math.floor(log) and 12 + int(log) in shifts:
        return 0, 12 + int(log)
    multiplier, left = float(np.float32(scale)) * 4096.0 * 3.0, 0
    while multiplier <= 32767.0 / 2.0 and left <= 30:
        multiplier, left = multiplier * 2.0, left + 1
    return int(multiplier), left


def logistic_int16(x: Array, qx: Quant, *, kernels: Kernels = "reference") -> Array:
    """LOGISTIC of int16; the output encoding is 1/32768 with zero point 0.

    Optimized, where s_x is 2**-12: gemmlowp's logistic in 16 bits instead.

    >>> logistic_int16(np.array([0, 4096, -32768]), Quant(1 / 4096, 0, 16))
    array([16384, 23956,    11])
    """
    m, left = _input_scale(qx.scale, (0,))
    if m == 0 and kernels != "reference":
        return gemmlowp.logistic(x.astype(np.int64), 3, 16)
    m, left = (3 << left, 0) if m == 0 else (m, left)
    scaled = (x.astype(np.int64) * m + ((1 << left) >> 1)) >> left
    size, knots = np.abs(scaled), sigmoid_knots()
    at = np.minimum(size >> 9, 254)
    line = (knots[at] << 9) + (size & 0x1FF) * (knots[at + 1] - knots[at])
    value = np.where(size >> 9 >= 255, 0x7FFF << 10, line)
    return np.where(scaled >= 0, value + (1 << 9), (1 << 25) - value + (1 << 9) - 1) >> 10


def tanh_int16(x: Array, qx: Quant, *, kernels: Kernels = "reference") -> Array:
    """TANH of int16, as 2 * sigmoid(2 x) - 1; the output encoding is 1/32768 with zero point 0.

    Optimized, where s_x is 2**-12 or 2**-11: gemmlowp's tanh in 16 bits instead.

    >>> tanh_int16(np.array([0, 4096, -32768]), Quant(1 / 4096, 0, 16))
    array([     0,  24956, -32767])
    """
    m, left = _input_scale(qx.scale, (0, 1))
    if m == 0 and kernels != "reference":
        return gemmlowp.tanh(np.clip(x.astype(np.int64) << left, -32768, 32767), 3, 16)
    m, left = (3 << left, 0) if m == 0 else (m, left)
    scaled = (x.astype(np.int64) * m + ((1 << left) >> 1)) >> left
    size, knots = np.abs(scaled), sigmoid_knots()
    at = np.minimum(size >> 8, 254)
    line = (knots[at] << 8) + (size & 0xFF) * (knots[at + 1] - knots[at])
    value = np.where(size >> 8 >= 255, 0xFFFF << 8, line)
    positive, negative = value - (1 << 23) + (1 << 7), -value + (1 << 23) + (1 << 7) - 1
    return np.where(scaled >= 0, positive, negative) >> 8


def _int16(x: Array) -> Array:
    return np.clip(x, -(2**15), 2**15 - 1)


def _reduced(multiplier: np.float32) -> tuple[int, int]:
    """A multiplier's 15-bit mantissa and shift."""
    m0, shift = quantized_multiplier(float(multiplier))
    return (0x7FFF if m0 >= 2**31 - 2**15 else (m0 + 2**15) >> 16), shift


def hard_swish(x: Array, qx: Quant, qy: Quant) -> Array:
    """HARD_SWISH of int8, x * relu6(x + 3) / 6 in 16-bit fixed point, in every set of kernels.

    Needs s_x / (128 * s_y) < 1.

    >>> hard_swish(np.array([-40, 0, 10, 60]), Quant(0.1), Quant(0.05))
    array([  0,   0,  13, 120])
    """
    fine = np.float32(1 / 128) * qx.f32
    out, out_shift = _reduced(fine / qy.f32)
    gate, gate_shift = _reduced(fine / np.float32(3 / 32768))
    value = (x.astype(np.int64) - qx.zero_point) << 7
    scaled = saturating_rounding_doubling_high_mul(value, out, 16)
    if gate_shift > 0:
        value = _int16(value << (gate_shift - 1))
    value = saturating_rounding_doubling_high_mul(value, gate, 16)
    value = _int16(value << 1) if gate_shift > 0 else rounding_divide_by_pot(value, -gate_shift)
    value = (value + (1 << 15)) >> 1
    product = value * scaled
    product = np.sign(product) * (np.abs(product) >> 15)  # towards zero
    codes = rounding_divide_by_pot(product, -out_shift) + qy.zero_point
    return np.asarray(np.clip(codes, qy.qmin, qy.qmax))
