"""LiteRT's arithmetic in PyTorch against its specification in NumPy, which the interpreter was held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from intact.arithmetic import (
    Arithmetic,
    BinaryRule,
    MeanRule,
    Requantize,
    ResizeRule,
    add_codes,
    mul_codes,
    multiplier,
    requantize,
    sub_codes,
)
from intact.arithmetic.fixed_point import gemmlowp_multiplier
from intact.arithmetic.litert import code_mean, mean_codes, mix_codes, resize_places
from intact.arithmetic.litert_softmax import fixed_exps, fixed_softmax, float_exps, float_softmax
from intact.errors import PlanError
from intact.reference.fixed_point import divide_half_away, quantized_multiplier
from intact.reference.litert.elementwise import add, mul
from intact.reference.litert.linear import requantize_sums
from intact.reference.litert.move import resize_bilinear
from intact.reference.litert.pool import mean
from intact.reference.litert.quant import Kernels, Quant
from intact.reference.litert.softmax import softmax
from intact.types import INT8, QParams

SETS: dict[Kernels, tuple[BinaryRule, MeanRule, ResizeRule, Requantize]] = {
    "reference": (BinaryRule.TFLITE, MeanRule.TFLITE, ResizeRule.TFLITE, Requantize.FIXED_POINT_TWICE),
    "delegated": (BinaryRule.XNNPACK, MeanRule.XNNPACK, ResizeRule.XNNPACK, Requantize.FLOAT),
}
EVERY = np.arange(-128, 128)
#: a power of two in some: ties
SCALES = st.one_of(st.floats(-7, 0).map(lambda e: float(np.float32(2.0**e))), st.integers(-7, 0).map(lambda e: 2.0**e))
ENCODINGS = st.tuples(SCALES, st.integers(-128, 127))
kernels = pytest.mark.parametrize("kernels", SETS)


def both(encoding: tuple[float, int]) -> tuple[Quant, QParams]:
    return Quant(*encoding), QParams.per_tensor(*encoding, INT8)


@kernels
@given(ENCODINGS, ENCODINGS, ENCODINGS)
def test_sums_and_products_of_all_pairs_of_codes(kernels, a, b, y):
    rule = SETS[kernels][0]
    arithmetic = Arithmetic("a", add=rule, mul=rule)
    (na, qa), (nb, qb), (ny, qy) = both(a), both(b), both(y)
    x = np.repeat(EVERY, 256), np.tile(EVERY, 256)
    tx = [torch.from_numpy(v).float() for v in x]
    for found, want in (
        (add_codes(*tx, qa, qb, qy, arithmetic), add(*x, na, nb, ny, kernels=kernels)),
        (sub_codes(*tx, qa, qb, qy, arithmetic), add(*x, na, nb, ny, subtract=True, kernels=kernels)),
        (mul_codes(*tx, qa, qb, qy, arithmetic), mul(*x, na, nb, ny, kernels=kernels)),
    ):
        assert np.array_equal(found.numpy(), want)


@kernels
@given(ENCODINGS, ENCODINGS, st.integers(1, 3000), st.integers(0, 2**31))
def test_means(kernels, x, y, count, seed):
    (nx, qx), (ny, qy) = both(x), both(y)
    codes = np.random.default_rng(seed).integers(-128, 128, (8, count))
    total = torch.from_numpy(codes - qx.zero_point.item()).sum(1)
    found = mean_codes(total, count, qx, qy, SETS[kernels][1])
    assert np.array_equal(found.numpy(), mean(codes, (1,), nx, ny, kernels=kernels))


@kernels
@given(st.integers(1, 12), st.integers(1, 25), st.booleans(), st.integers(0, 2**31))
def test_interpolation(kernels, size, new, corners, seed):
    codes = np.random.default_rng(seed).integers(-128, 128, (2, size, size)).astype(np.int8)
    places = resize_places(size, new, corners, SETS[kernels][2])
    found = mix_codes(torch.from_numpy(codes).long(), (places, places), SETS[kernels][2])
    grid = "align_corners" if corners else "half_pixel"
    want = resize_bilinear(codes.transpose(1, 2, 0)[None], new, new, grid, kernels=kernels)
    assert np.array_equal(found.numpy(), want[0].transpose(2, 0, 1))


@kernels
@given(ENCODINGS, st.lists(SCALES, min_size=1, max_size=4), ENCODINGS, st.integers(0, 2**31))
def test_accumulators(kernels, x, weights, y, seed):
    (nx, qx), (ny, qy) = both(x), both(y)
    rng = np.random.default_rng(seed)
    sums = np.round(rng.choice([-1, 1], (500, 1)) * 2.0 ** rng.uniform(0, 30.9, (500, len(weights)))).astype(np.int64)
    arithmetic = Arithmetic("a", requantize=SETS[kernels][3])
    scale = torch.tensor(weights)
    by = multiplier(qx.scale, scale, qy.scale, arithmetic)
    found = requantize(torch.from_numpy(sums), by, int(qy.zero_point), -128, 127, arithmetic)
    want = requantize_sums(sums, nx, scale.numpy(), ny, kernels=kernels)
    assert np.array_equal(found.numpy(), want)


@kernels
@given(SCALES, st.integers(1, 40), st.integers(0, 2**31))
@example(1.0, 3, 0)
@example(2.0**-20, 1000, 0)
def test_softmax(kernels, scale, count, seed):
    codes = np.random.default_rng(seed).integers(-128, 128, (6, count))
    s = torch.tensor(scale)
    x = torch.from_numpy(codes)
    found = fixed_softmax(x, fixed_exps(s)) if kernels == "reference" else float_softmax(x, float_exps(s))
    assert np.array_equal(found.numpy(), softmax(codes, Quant(scale), kernels=kernels))


@given(st.integers(-(2**31), 2**31 - 1), st.integers(1, 10_000))
def test_averages_of_codes(total, count):
    assert int(code_mean(torch.tensor(total), torch.tensor(count))) == int(divide_half_away(total, count))


@given(st.one_of(st.floats(-45, 29.9).map(lambda e: 2.0**e), st.floats(2.0**-34, 2.0**29)))
@example(1.0 - 2.0**-40)
@example((1 + 2.0**-31) / 2)
@example(2.0**-32)
@example(2.0**-33)
def test_multipliers(real):
    m0, n = gemmlowp_multiplier(torch.tensor(real, dtype=torch.float64))
    want, shift = quantized_multiplier(real)
    assert (int(m0), 31 - int(n)) == (want, shift)


@pytest.mark.parametrize("real", [-1.0, float("nan"), float("inf"), 2.0**30])
def test_multipliers_that_cannot_be_expressed(real):
    with pytest.raises(PlanError, match="cannot be expressed"):
        gemmlowp_multiplier(torch.tensor(real, dtype=torch.float64))
