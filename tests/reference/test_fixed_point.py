"""Fixed-point requantization in NumPy against exact fractions in plain Python."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intact.reference.fixed_point import (
    Rounding,
    divide_half_away,
    multiply_by_quantized_multiplier,
    multiply_int64_by_quantized_multiplier,
    quantized_multiplier,
    quantized_multipliers,
    round_half_away,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
    wrap_int32,
)

EXTREMES = [-(2**31), -(2**31) + 1, -(2**30), -1, 0, 1, 2**30, 2**31 - 2, 2**31 - 1]
int32 = st.one_of(st.sampled_from(EXTREMES), st.integers(-(2**31), 2**31 - 1))
# Mantissa and exponent apart: every size from 2**-40 to 2**10 is as likely, and so are powers of two (ties).
multipliers = st.builds(
    math.ldexp, st.one_of(st.sampled_from([0.5, 0.75, 1 - 2.0**-53]), st.floats(0.5, 1, exclude_max=True)),
    st.integers(-39, 11),
)


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def wrap(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def split(multiplier: float) -> tuple[int, int]:
    """The specification's mantissa and shift from the exact value of a float."""
    value, shift = Fraction(multiplier), 0
    while value >= 1:
        value, shift = value / 2, shift + 1
    while value and value < Fraction(1, 2):
        value, shift = value * 2, shift - 1
    m0 = half_away(value * 2**31)
    m0, shift = (m0 // 2, shift + 1) if m0 == 2**31 else (m0, shift)
    return (m0, shift) if shift >= -31 else (0, 0)


def scale(x: int, m0: int, shift: int, rounding: Rounding) -> int:
    if rounding == "single":
        return wrap(half_up(Fraction(x * m0, 1) * Fraction(2) ** (shift - 31)))
    left, right = max(shift, 0), max(-shift, 0)
    high = min(half_up(Fraction(wrap(x << left) * m0, 2**31)), 2**31 - 1)
    return (half_away if rounding == "double" else half_up)(Fraction(high, 2**right))


@given(multipliers)
def test_mantissa_and_shift(multiplier: float) -> None:
    m0, shift = quantized_multiplier(multiplier)
    assert (m0, shift) == split(multiplier)
    if m0:
        assert 2**30 <= m0 < 2**31 and -31 <= shift <= 30
        assert abs(Fraction(m0) * Fraction(2) ** (shift - 31) / Fraction(multiplier) - 1) <= Fraction(1, 2**31)
    else:
        assert multiplier < 2.0**-32


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 2.0**30])
def test_multipliers_that_have_no_mantissa_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="multiplier"):
        quantized_multiplier(bad)


@pytest.mark.parametrize("rounding", ["double", "double_up", "single"])
@given(x=int32, multiplier=multipliers, others=st.lists(int32, min_size=1, max_size=20))
def test_requantization(rounding: Rounding, x: int, multiplier: float, others: list[int]) -> None:
    m0, shift = quantized_multiplier(multiplier)
    values = [x, *others, *EXTREMES]
    want = [scale(v, m0, shift, rounding) for v in values]
    assert multiply_by_quantized_multiplier(values, m0, shift, rounding).tolist() == want


@pytest.mark.parametrize("rounding", ["double", "double_up", "single"])
@given(shift=st.integers(1, 31), start=st.integers(-(2**30), 2**30))
def test_ties(rounding: Rounding, shift: int, start: int) -> None:
    """M = 2**-shift: every 2**shift-th value is a tie; the middle between two of them, too."""
    m0, s = quantized_multiplier(2.0**-shift)
    values = np.unique(np.clip([(start >> shift << shift) + (1 << shift >> 1) + d for d in (-1, 0, 1)], *EXTREMES[::8]))
    got = multiply_by_quantized_multiplier(values, m0, s, rounding)
    assert got.tolist() == [scale(int(v), m0, s, rounding) for v in values]


@given(x=st.lists(int32, min_size=1), multiplier=st.lists(multipliers, min_size=1, max_size=4))
def test_each_channel_is_its_own(x: list[int], multiplier: list[float]) -> None:
    got = multiply_by_quantized_multiplier(np.array(x)[:, None], *quantized_multipliers(multiplier))
    want = [multiply_by_quantized_multiplier(x, *quantized_multiplier(m)) for m in multiplier]
    assert np.array_equal(got, np.stack(want, -1))


@given(x=st.integers(-(2**47), 2**47 - 1), multiplier=multipliers)
def test_requantization_of_48_bits(x: int, multiplier: float) -> None:
    m0, shift = quantized_multiplier(multiplier)
    if shift > 7:
        return
    reduced = (m0 + 2**15) >> 16 if m0 < 0x7FFF0000 else 0x7FFF
    want = wrap(half_up(Fraction(x * reduced) * Fraction(2) ** (shift - 15)))
    assert multiply_int64_by_quantized_multiplier(x, m0, shift).item() == want


@given(a=int32, b=int32, exponent=st.integers(0, 31))
def test_parts(a: int, b: int, exponent: int) -> None:
    high = saturating_rounding_doubling_high_mul(a, b).item()
    assert high == min(half_up(Fraction(a * b, 2**31)), 2**31 - 1)
    assert rounding_divide_by_pot(a, exponent).item() == half_away(Fraction(a, 2**exponent))
    assert wrap_int32(a * 3 + b).item() == wrap(a * 3 + b)
    if b > 0:
        assert divide_half_away(a, b).item() == (1 if a >= 0 else -1) * ((abs(a) + b // 2) // b)


@given(st.floats(-(2.0**40), 2.0**40, width=32))
def test_round_half_away(x: float) -> None:
    assert round_half_away(np.float32(x)).item() == half_away(Fraction(x))
