"""Numbers by hand, and by exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intact.arithmetic import (
    REFERENCE,
    Arithmetic,
    Multiplier,
    Rounding,
    accumulator_bounds,
    carrier_for,
    dequantize,
    fma_float32,
    quantize,
    quantize_kernel_weight,
    quantize_weight,
    requantize,
    round_to_int,
)
from intact.types import INT8, UINT8, PerChannel, QParams, QType

X = [-2.5, -1.75, -1.5, -1.25, -0.5, -0.25, 0.0, 0.25, 0.5, 1.25, 1.5, 1.75, 2.5]
GOLDEN = {
    Rounding.HALF_EVEN: [-2, -2, -2, -1, 0, 0, 0, 0, 0, 1, 2, 2, 2],
    Rounding.HALF_AWAY: [-3, -2, -2, -1, -1, 0, 0, 0, 1, 1, 2, 2, 3],
    Rounding.HALF_UP: [-2, -2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 2, 3],
    Rounding.FLOOR: [-3, -2, -2, -2, -1, -1, 0, 0, 0, 1, 1, 1, 2],
}


@pytest.mark.parametrize("rounding", Rounding)
def test_rounding_by_hand(rounding: Rounding) -> None:
    x = torch.tensor(X)
    want = torch.tensor(GOLDEN[rounding], dtype=torch.float32)
    assert torch.equal(round_to_int(x, rounding), want)
    assert torch.equal(round_to_int(x.double(), rounding), want.double())
    assert torch.equal(x, torch.tensor(X))
    assert torch.equal(round_to_int(x.clone(), rounding, inplace=True), want)


@pytest.mark.parametrize("rounding", [Rounding.HALF_EVEN, Rounding.HALF_AWAY, Rounding.HALF_UP])
def test_rounding_where_adding_a_half_would_round(rounding: Rounding) -> None:
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    x = torch.tensor([below, -below, 8388609.0, -8388609.0, 16777217.0, 3e38, math.inf, -math.inf])
    want = torch.tensor([0.0, 0.0, 8388609.0, -8388609.0, 16777216.0, 3e38, math.inf, -math.inf])
    finite = torch.isfinite(x)
    assert torch.equal(round_to_int(x[finite], rounding), want[finite])


def nearest_float32(value: Fraction) -> float:
    """The float32 nearest to an exact number, ties to even."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = max(magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 25, -149)
    while magnitude / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    while exponent > -149 and magnitude / Fraction(2) ** (exponent - 1) < 2**24:
        exponent -= 1
    result = float(Fraction(round(magnitude / Fraction(2) ** exponent)) * Fraction(2) ** exponent)
    return math.copysign(result, value)


def assert_fused(a: float, b: float, c: float) -> None:
    found = fma_float32(*(torch.tensor([v], dtype=torch.float32) for v in (a, b, c)))
    assert found.item() == nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))


floats = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 2.0**-30)


@settings(max_examples=300)
@given(floats, floats, floats)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    assert_fused(a, b, c)


@settings(max_examples=300)
@given(st.integers(0, 2**12), st.integers(-30, 30), st.integers(0, 40), st.sampled_from([-1, 1]), st.integers(0, 1))
def test_fma_near_ties_of_float32(odd: int, exponent: int, depth: int, sign: int, at: int) -> None:
    """c half-way between two float32, and a product that decides, however small it is."""
    c = (2**12 + odd) * 2.0 ** exponent
    half_step = 2.0 ** (math.frexp(c)[1] - 25)
    a = half_step if at else half_step * 2.0**-depth
    assert_fused(a, sign * (1.0 + 2.0**-23 * at), c)
    assert_fused(a, sign * 1.0, -c)


@pytest.mark.parametrize(("a", "b", "c"), [
    (1.0 + 2.0**-12, 1.0 + 2.0**-12, -(1.0 + 2.0**-11)), (3.0, 5.0, -15.0), (0.0, 7.0, 0.25),
    (2.0**-23, 0.5, 1.0), (2.0**-23, 0.5, 1.0 + 2.0**-23), (2.0**-24, 1.0 + 2.0**-23, 1.0),
])
def test_fma_by_hand(a: float, b: float, c: float) -> None:
    assert_fused(a, b, c)


def test_quantize_ties_and_ends() -> None:
    p = QParams.per_tensor(0.5, 3, UINT8)
    x = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, -2.0, 126.0, 1e30, math.inf, -math.inf])
    assert quantize(x, p).tolist() == [3, 5, 5, 3, 1, 0, 255, 255, 255, 0]
    away = Arithmetic("away", rounding=Rounding.HALF_AWAY)
    assert quantize(x[:5], p, away).tolist() == [4, 5, 6, 2, 1]
    assert x[0].item() == 0.25
    assert math.isnan(quantize(torch.tensor([math.nan]), p).item())


@settings(max_examples=50)
@given(st.floats(2.0**-100, 2.0**100, width=32), st.integers(0, 255))
def test_a_code_quantizes_to_itself(scale: float, zero: int) -> None:
    p = QParams.per_tensor(scale, zero, UINT8)
    codes = torch.arange(256, dtype=torch.float32)
    assert torch.equal(quantize(dequantize(codes, p), p), codes)
    assert torch.equal(dequantize(codes, p), dequantize(codes.to(torch.uint8), p))


def test_requantize_rounds_the_accumulator_and_then_the_product() -> None:
    acc = torch.tensor([2**24 + 1, 2**24 + 3, -5, 5, 1000], dtype=torch.int32)
    assert requantize(acc, Multiplier(torch.tensor(2.0**-17)), 1, 0, 255, REFERENCE).tolist() == [129, 129, 1, 1, 1]
    assert requantize(acc, Multiplier(torch.tensor(0.5)), 0, -128, 127, REFERENCE).tolist() == [127, 127, -2, 2, 127]


# -- weights -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 2**20), st.sampled_from([(3, 3), (5, 5), (1, 7), (3,), (2, 2, 2)]), st.sampled_from([2, 4, 8]),
       st.floats(0.3, 3.0))
def test_rounding_errors_of_a_kernel_cancel(seed: int, kernel: tuple[int, ...], bits: int, reach: float) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 3, *kernel, generator=g)
    qtype = QType(bits, signed=True, narrow=True)
    scale = (w.flatten(1).abs().amax(1) / qtype.qmax * reach).to(torch.float32)
    p = QParams(scale, torch.zeros(4, dtype=torch.int32), qtype, PerChannel(0))
    nearest, found = quantize_weight(w, p).codes, quantize_kernel_weight(w, p).codes
    assert found.dtype == qtype.storage
    assert qtype.qmin <= int(found.min()) and int(found.max()) <= qtype.qmax
    assert int((found.int() - nearest.int()).abs().max()) <= 1
    exact = w.double() / scale.double().reshape(-1, *[1] * (w.ndim - 1))
    inside = (exact.abs() <= qtype.qmax - 0.5).flatten(2).all(2)  # neither clipped nor moved out of the range
    error = (found.double() - exact).flatten(2)
    assert float((error.sum(2).abs() * inside).max()) <= 0.5 + 1e-5
    assert float(error.abs().masked_fill(~inside[..., None], 0.0).max()) <= 1.0


def test_kernels_of_one_tap_are_rounded_to_nearest() -> None:
    w = torch.randn(4, 3, 1, 1)
    p = QParams.per_tensor(0.01, 0, INT8)
    assert torch.equal(quantize_kernel_weight(w, p).codes, quantize_weight(w, p).codes)
    assert torch.equal(quantize_kernel_weight(w[..., 0, 0], p).codes, quantize_weight(w[..., 0, 0], p).codes)


# -- bounds ------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.integers(0, 2**20), st.integers(1, 12), st.integers(0, 255), st.booleans())
def test_no_partial_sum_passes_the_bound_and_some_sum_reaches_it(seed: int, n: int, zero: int, signed: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    low, high = (-128, 127) if signed else (0, 255)
    zero = zero + low
    w = torch.randint(-128, 128, (3, n), generator=g)
    bounds = accumulator_bounds(w, zero, low, high)
    x = torch.randint(low, high + 1, (20, n), generator=g)
    x = torch.where(torch.rand(20, n, generator=g) < 0.3, torch.where(x > zero, high, low), x)
    order = torch.randperm(n, generator=g)
    partial = ((x - zero)[:, None, :] * w)[..., order].cumsum(2).abs().amax((0, 2))
    assert bool((partial <= bounds).all())

    def extreme(sign: int) -> Tensor:
        return torch.where(w * sign > 0, high - zero, low - zero).mul(w).clamp(min=0 if sign > 0 else None,
                                                                               max=None if sign > 0 else 0).sum(1)

    assert torch.equal(torch.maximum(extreme(1), -extreme(-1)).double(), bounds)


def test_the_carrier_changes_at_two_to_the_24() -> None:
    assert carrier_for(2.0**24 - 1) is torch.float32
    assert carrier_for(2.0**24) is torch.float64
