"""SOFTMAX over the last axis: fixed point in the reference kernel, a float table in the optimized one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from intact.reference.fixed_point import (
    Array,
    multiply_by_quantized_multiplier,
    quantized_multiplier,
    round_half_away,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)
from intact.reference.gemmlowp import exp_on_negative_values, one_over_one_plus_x
from intact.reference.litert.quant import Kernels, Quant

__all__ = ["interpolated", "lut_int16", "softmax", "softmax_int16"]

def _leading_zeros(x: Array) -> Array:
    """Of positive 32-bit numbers."""
    return np.asarray(32 - np.frexp(x.astype(np.float64))[1].astype(np.int64))


def softmax(x: Array, qx: Quant, *, beta: float = 1.0, kernels: Kernels = "reference") -> Array:
    """SOFTMAX of int8 over the last axis; the output encoding is 1/256 with zero point -128.

    >>> softmax(np.array([[0, 0, 0, 0]]), Quant(0.1))
    array([[-64, -64, -64, -64]])
    """
    codes = x.astype(np.int64)
    diff = codes - codes.max(-1, keepdims=True)
    if kernels != "reference":
        return _softmax_float(diff, codes, qx, beta)
    m0, left = quantized_multiplier(min(float(beta) * float(qx.f32) * (1 << 26), 2.0**31 - 1))
    radius = math.floor(31 * (1 << 26) / (1 << left))
    scaled = saturating_rounding_doubling_high_mul(np.maximum(diff, -radius) << left, m0)
    exps = np.where(diff >= -radius, exp_on_negative_values(scaled, 5), 0)
    sums = rounding_divide_by_pot(exps, 12).sum(-1, keepdims=True)
    headroom = _leading_zeros(sums)
    scale = one_over_one_plus_x((sums << headroom) - (1 << 31))
    over = 12 - headroom
    out = rounding_divide_by_pot(saturating_rounding_doubling_high_mul(scale, exps), over + 31 - 8) - 128
    return np.where(diff >= -radius, np.clip(out, -128, 127), -128)


def _softmax_float(diff: Array, codes: Array, qx: Quant, beta: float) -> Array:
    """Table of exp, a float32 sum from left to right, one division; half away from zero."""
    table = np.exp((-qx.f32 * np.float32(beta) * np.arange(256, dtype=np.float32)).astype(np.float64))
    values = table.astype(np.float32)[-diff]
    total = np.zeros(values.shape[:-1], np.float32)
    for i in range(values.shape[-1]):
        total = total + values[..., i]
    inverse = np.float32(1) / (total * np.float32(1 / 256))
    return np.asarray(np.clip(round_half_away(values * inverse[..., None]).astype(np.int64) - 128, -128, 127))


def lut_int16(function: Callable[[Array], Array], low: float, high: float) -> Array:
    """513 knots of a function of [low, high] with values in [-1, 1], as int16 codes of 2/65535.

    Each knot but the last leans by half the error that the line makes in the middle of its step.
    Source: ``LUTPopulateInt16`` of TensorFlow Lite, in float64.

    >>> lut_int16(np.exp, -10.0, 0.0)[[0, 511, 512]]
    array([    2, 32133, 32767])
    """
    step = (high - low) / 512
    scale = 65536 / (2.0 / 65535 * 65535)
    at = low + np.arange(512) * step
    value, middle, after = (function(v) * scale for v in (at, at + step / 2, low + np.arange(1, 513) * step))
    sample = round_half_away(value)
    error = round_half_away((after + sample) / 2) - round_half_away(middle)
    last = round_half_away(np.atleast_1d(function(np.array(high)) * scale))
    knots = np.concatenate([sample - round_half_away(error / 2), last])
    return np.asarray(np.clip(knots, -32768, 32767).astype(np.int64))


def interpolated(x: Array, table: Array) -> Array:
    """A 513-entry table read at int16 codes: 9 bits choose, 7 bits interpolate, half up. Source: ``LUTLookup``.

    >>> interpolated(np.array([-32768, -32704, 32767]), np.arange(513) * 10)
    array([   0,    5, 5120])
    """
    at, offset = 256 + (x.astype(np.int64) >> 7), x.astype(np.int64) & 0x7F
    return np.asarray(table[at] + (((table[at + 1] - table[at]) * offset + 64) >> 7))


def softmax_int16(x: Array, qx: Quant, *, beta: float = 1.0) -> Array:
    """SOFTMAX of int16 over the last axis, in every set of kernels; the output encoding is 1/32768, zero point 0.

    >>> softmax_int16(np.array([[0, 0, 0, 0]]), Quant(0.001, 0, 16))
    array([[8192, 8192, 8192, 8192]])
    """
    codes = x.astype(np.int64)
    ratio = float(qx.f32 * np.float32(beta)) / (10.0 / 65535.0)
    diff = multiply_by_quantized_multiplier(codes - codes.max(-1, keepdims=True), *quantized_multiplier(ratio))
    exps = interpolated(np.clip(diff + 32767, -32768, 32767), lut_int16(np.exp, -10.0, 0.0))
    sums = exps.sum(-1, keepdims=True)
    headroom = _leading_zeros(sums)
    shifted = ((sums << (headroom - 1)) + (1 << 13)) >> 14
    at = np.clip(shifted - (1 << 15) - (1 << 16), -32768, 32767)
    inverse = interpolated(at, lut_int16(lambda v: 1 / (1 + v), 0.0, 1.0))
    right = 31 - headroom
    return np.asarray(np.clip((exps * inverse + (1 << (right - 1))) >> right, 0, 32767))
