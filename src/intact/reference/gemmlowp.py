"""exp, 1 / (1 + x), logistic and tanh in fixed point, as gemmlowp's ``fixedpoint.h`` defines them.

A number with i integer bits in a register of ``bits`` has bits - 1 - i fraction bits. Products are high halves, rounded
half up. The constants are given for 32 bits and rounded to 16.
"""

from __future__ import annotations

import numpy as np

from intact.reference.fixed_point import Array, rounding_divide_by_pot, saturating_rounding_doubling_high_mul

__all__ = ["exp_on_negative_values", "logistic", "one_over_one_plus_x", "tanh"]


def _constant(raw: int, bits: int) -> int:
    return int(rounding_divide_by_pot(raw, 32 - bits))


def _saturated(x: Array, bits: int) -> Array:
    return np.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def _exp_near_zero(a: Array, bits: int) -> Array:
    """Exponential of a in [-1/4, 0) without integer bits: a Taylor polynomial around -1/8."""
    def times(p: Array | int, q: Array) -> Array:
        return saturating_rounding_doubling_high_mul(p, q, bits)
    x = a + (1 << (bits - 4))
    x2 = times(x, x)
    x3, x4 = times(x2, x), times(x2, x2)
    third = times(_constant(715827883, bits), rounding_divide_by_pot(x4, 2) + x3)
    middle = _constant(1895147668, bits)  # exp(-1/8)
    return _saturated(middle + times(middle, x + rounding_divide_by_pot(third + x2, 1)), bits)


def exp_on_negative_values(a: Array, integer_bits: int, bits: int = 32) -> Array:
    """Exponential of a <= 0 with ``integer_bits`` integer bits, up to 5; the result has none.

    >>> exp_on_negative_values(np.array([0, -(1 << 26)]), 5) / 2**31
    array([1.        , 0.36787955])
    """
    fraction = bits - 1 - integer_bits
    quarter = 1 << (fraction - 2)
    low = (a & (quarter - 1)) - quarter
    result, rest = _exp_near_zero(low << integer_bits, bits), low - a
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)  # exp(-2**e)
    for exponent, factor in zip(range(-2, 5), factors, strict=True):
        if integer_bits > exponent:
            shrunk = saturating_rounding_doubling_high_mul(result, _constant(factor, bits), bits)
            result = np.where(rest & (1 << (fraction + exponent)), shrunk, result)
    return np.where(a == 0, (1 << (bits - 1)) - 1, result)


def _inverse_of_half_sum(a: Array, bits: int) -> Array:
    """2 / (1 + a) for a in [0, 1], with two integer bits: three steps of Newton's method for 1 / d, d = (1 + a) / 2."""
    half = (a + (1 << (bits - 1)) - 1 + 1) >> 1
    x = _constant(1515870810, bits) + saturating_rounding_doubling_high_mul(half, _constant(-1010580540, bits), bits)
    for _ in range(3):  # from 48/17 - 32/17 d
        error = (1 << (bits - 3)) - saturating_rounding_doubling_high_mul(half, x, bits)
        x = x + _saturated(saturating_rounding_doubling_high_mul(x, error, bits) << 2, bits)
    return x


def one_over_one_plus_x(a: Array, bits: int = 32) -> Array:
    """1 / (1 + a) for a in [0, 1]; no integer bits.

    >>> one_over_one_plus_x(np.array([0, 2**30])) / 2**31
    array([1.        , 0.66666667])
    """
    return _saturated(_inverse_of_half_sum(a, bits) << 1, bits)


def logistic(a: Array, integer_bits: int, bits: int = 32) -> Array:
    """1 / (1 + exp(-a)) of any a; the result has no integer bits.

    >>> logistic(np.array([0, 1 << 12, -(1 << 12)]), 3, 16)
    array([16384, 23952,  8815])
    """
    positive = one_over_one_plus_x(exp_on_negative_values(-np.abs(a), integer_bits, bits), bits)
    return np.where(a == 0, 1 << (bits - 2), np.where(a > 0, positive, (1 << (bits - 1)) - 1 - positive))


def tanh(a: Array, integer_bits: int, bits: int = 32) -> Array:
    """Hyperbolic tangent of any a, as (1 - exp(-2 |a|)) / (1 + exp(-2 |a|)); the result has no integer bits.

    >>> tanh(np.array([0, 1 << 12, -(1 << 12)]), 3, 16)
    array([     0,  24964, -24964])
    """
    inverse = _inverse_of_half_sum(exp_on_negative_values(-np.abs(a), integer_bits + 1, bits), bits)
    size = _saturated((inverse - (1 << (bits - 3))) << 2, bits)
    return np.sign(a) * size
