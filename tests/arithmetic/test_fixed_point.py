"""Fixed-point requantization against Python's integers, which have any width."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from intact.arithmetic import Arithmetic, Requantize, Rounding, fixed_point, multiplier, requantize
from intact.arithmetic.fixed_point import MAX_SHIFT, rounded_shift, scaled, scaled_twice
from intact.errors import PlanError

REALS = st.floats(-40, 10).map(lambda e: 2.0**e)
INT32 = st.integers(-(2**31), 2**31 - 1)
ZEROS = st.integers(-128, 255)


def rounded(value: Fraction, rounding: Rounding) -> int:
    """The definition."""
    match rounding:
        case Rounding.FLOOR:
            return math.floor(value)
        case Rounding.HALF_UP:
            return math.floor(value + Fraction(1, 2))
        case Rounding.HALF_EVEN:
            return round(value)
        case Rounding.HALF_AWAY:
            return math.floor(abs(value) + Fraction(1, 2)) * (-1 if value < 0 else 1)


def pair(real: float) -> tuple[torch.Tensor, torch.Tensor]:
    return fixed_point(torch.tensor(real, dtype=torch.float64))


@given(REALS)
@example(1.0)
@example(1.0 - 2.0**-40)
@example(2.0**-62)
def test_thirty_one_bits_of_any_multiplier(real):
    m0, shift = (int(t) for t in pair(real))
    assert 0 < m0 < 2**31 and 0 <= shift <= MAX_SHIFT
    if shift < MAX_SHIFT:
        assert m0 >= 2**30
    assert abs(Fraction(m0, 2**shift) - Fraction(real)) <= Fraction(1, 2 ** (shift + 1))


@pytest.mark.parametrize("real", [0.0, math.inf, math.nan, 2.0**31, 2.0**-70, -0.5])
def test_what_cannot_be_expressed_is_refused(real):
    with pytest.raises(PlanError, match="cannot be expressed"):
        pair(real)


def test_shifts_need_powers_of_two():
    shifts = Arithmetic("a", requantize=Requantize.SHIFT)
    assert multiplier(*(torch.tensor(2.0**e) for e in (-3, -5, -4)), shifts).real == 2.0**-4
    with pytest.raises(PlanError, match="power of two"):
        multiplier(*(torch.tensor(v) for v in (0.3, 0.5, 1.0)), shifts)


@given(INT32, REALS, st.sampled_from(Rounding), ZEROS)
@example(-(2**31), 2.0**-40, Rounding.HALF_AWAY, 0)
@example(2**31 - 1, 2.0**10, Rounding.HALF_EVEN, 1)
@example(3, 0.5, Rounding.HALF_EVEN, 1)
def test_one_rounding(x, real, rounding, zero):
    m0, shift = pair(real)
    exact = Fraction(x * int(m0), 2 ** int(shift))
    assert int(scaled(torch.tensor(x), m0, shift, rounding)) == rounded(exact, rounding)
    assert int(scaled(torch.tensor(x), m0, shift, rounding, zero)) + zero == rounded(exact + zero, rounding)


@given(st.integers(-(2**40), 2**40), st.integers(0, 62), st.sampled_from(Rounding), st.booleans())
def test_ties(x, shift, rounding, odd):
    """Multiples of half a step, where the rules differ."""
    x = x * 2 ** max(shift - 1, 0) if abs(x) * 2 ** max(shift - 1, 0) < 2**62 else x % 8
    zero = int(odd)
    exact = Fraction(x, 2**shift)
    assert int(rounded_shift(torch.tensor(x), torch.tensor(shift), rounding)) == rounded(exact, rounding)
    inside = rounded_shift(torch.tensor(x), torch.tensor(shift), rounding, zero)
    assert int(inside) == rounded(exact + zero, rounding) - zero


@given(INT32, REALS)
@example(-(2**31), 2.0**-31)
@example(2**31 - 1, 2.0**9)
def test_two_roundings(x, real):
    """A shift that wraps, gemmlowp's SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, C's division."""
    m0, shift = pair(real)
    right = int(shift) - 31
    left = (x * 2 ** max(-right, 0) + 2**31) % 2**32 - 2**31
    product = left * int(m0)
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    mask = 2 ** max(right, 0) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    expected = (high >> max(right, 0)) + (1 if (high & mask) > threshold else 0)
    assert int(scaled_twice(torch.tensor(x), m0, shift)) == expected


@given(
    st.lists(st.integers(-(2**21) + 1, 2**21 - 1), min_size=1, max_size=20), st.lists(REALS, min_size=1, max_size=4),
    st.sampled_from(Rounding), ZEROS, st.booleans(), st.sampled_from([torch.float32, torch.float64, torch.int32]),
)
def test_small_accumulators_take_the_short_way_to_the_same_codes(accs, reals, rounding, zero, inside, carrier):
    arithmetic = Arithmetic("a", rounding=rounding, requantize=Requantize.FIXED_POINT, zero_inside=inside)
    # scales that are powers of two near it, so that the quotient is the real number
    real = torch.tensor(reals, dtype=torch.float64)
    one = torch.ones(())
    short, long = (multiplier(real, one, one, arithmetic, bound) for bound in (2.0**21 - 1, 2.0**31))
    acc = torch.tensor(accs)[:, None].expand(-1, len(reals))
    found = [requantize(acc.to(carrier), by, zero, -128, 127, arithmetic) for by in (short, long)]
    assert short.small and not long.small
    assert torch.equal(*found)


@given(
    st.integers(1, 2**21 - 1), st.integers(0, 300), st.integers(-2, 2), st.sampled_from(Rounding),
    st.integers(-32768, 65535), st.booleans(),
)
@example(acc=3, whole=0, nudge=-1, rounding=Rounding.HALF_UP, zero=128, negative=False)
@example(acc=2**21 - 1, whole=0, nudge=-1, rounding=Rounding.HALF_UP, zero=65535, negative=False)
def test_no_sum_of_the_short_way_rounds_to_a_tie(acc, whole, nudge, rounding, zero, negative):
    """Multipliers as near as 31 bits come to where ``acc * M`` is a tie."""
    arithmetic = Arithmetic("a", rounding=rounding, requantize=Requantize.FIXED_POINT)
    m0, shift = pair((whole + 0.5) / acc)
    one, real = torch.ones(()), (m0 + nudge).double() * 2.0 ** -int(shift)
    by = multiplier(real, one, one, arithmetic, 2.0**21 - 1)
    x = -acc if negative else acc
    exact = rounded(x * Fraction(int(by.m0), 2 ** int(by.shift)), rounding) + zero
    found = requantize(torch.tensor([float(x)]), by, zero, -(2**16), 2**17, arithmetic)
    assert by.small and int(found) == exact


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("way", [Requantize.FLOAT, Requantize.FIXED_POINT])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_taken_in_parts_have_the_codes_of_their_numbers(rounding, way, layout):
    arithmetic = Arithmetic("a", rounding=rounding, requantize=way)
    one, real = torch.ones(()), torch.linspace(0.001, 0.2, 5)
    by = multiplier(real, one, one, arithmetic, 2.0**21 - 1).reshape(1, -1, 1, 1)
    acc = torch.randint(-2000, 2000, (3, 5, 97, 101)).float().contiguous(memory_format=layout)
    single = [requantize(acc[i : i + 1, c : c + 1].clone(), multiplier(real[c], one, one, arithmetic, 2.0**21 - 1), 7,
                         -128, 127, arithmetic) for i in range(3) for c in range(5)]
    found = requantize(acc.clone(), by, 7, -128, 127, arithmetic)
    assert torch.equal(found, torch.cat(single).reshape(acc.shape))


def test_golden_vector_of_the_integer_line():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    halves = (x * 2).to(torch.int64)
    m0, shift = pair(0.5)
    assert scaled(halves, m0, shift, Rounding.HALF_EVEN).tolist() == [-2, -2, 0, 0, 2, 2]
    assert scaled(halves, m0, shift, Rounding.HALF_UP).tolist() == [-2, -1, 0, 1, 2, 3]
