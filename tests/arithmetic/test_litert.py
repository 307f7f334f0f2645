"""LiteRT's arithmetic in PyTorch against its specification in NumPy, which the interpreter was held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
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
from intact.arithmetic.litert_functions import function_codes, hard_swish_fits, scalar_code
from intact.arithmetic.litert_softmax import (
    fixed_exps,
    fixed_softmax,
    float_exps,
    float_softmax,
    wide_exps,
    wide_softmax,
)
from intact.errors import PlanError
from intact.kernels import KERNELS, Binding
from intact.reference.fixed_point import divide_half_away, quantized_multiplier
from intact.reference.litert import elementwise
from intact.reference.litert.elementwise import add, mul
from intact.reference.litert.linear import batch_matmul, requantize_sums
from intact.reference.litert.move import resize_bilinear
from intact.reference.litert.pool import mean
from intact.reference.litert.quant import Kernels, Quant
from intact.reference.litert.softmax import softmax, softmax_int16
from intact.reference.litert.tables import hard_swish, logistic_int16, tanh_int16
from intact.targets import get_target
from intact.types import INT8, INT16, QParams, QType

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


# -- 16 bits ------------------------------------------------------------------------------------

WIDE = get_target("litert_16x8").arithmetic
WIDE_SCALES = st.one_of(st.floats(-15, -6).map(lambda e: float(np.float32(2.0**e))),
                        st.integers(-15, -6).map(lambda e: 2.0**e))
EVERY_WIDE = np.arange(-(2**15), 2**15)


def wide(scale: float) -> tuple[Quant, QParams]:
    return Quant(scale, 0, 16), QParams.per_tensor(scale, 0, INT16)


@given(WIDE_SCALES, WIDE_SCALES, WIDE_SCALES, st.integers(0, 2**31))
def test_sums_and_products_of_16_bits(a, b, y, seed):
    (na, qa), (nb, qb), (ny, qy) = wide(a), wide(b), wide(y)
    rng = np.random.default_rng(seed)
    x = [np.concatenate([[-(2**15), 2**15 - 1, 0], rng.integers(-(2**15), 2**15, 2000)]) for _ in range(2)]
    tx = [torch.from_numpy(v).float() for v in x]
    for found, want in (
        (add_codes(*tx, qa, qb, qy, WIDE), add(*x, na, nb, ny)),
        (sub_codes(*tx, qa, qb, qy, WIDE), add(*x, na, nb, ny, subtract=True)),
        (mul_codes(*tx, qa, qb, qy, WIDE), mul(*x, na, nb, ny)),
    ):
        assert np.array_equal(found.numpy(), want)


@given(WIDE_SCALES, st.lists(SCALES, min_size=1, max_size=4), WIDE_SCALES, st.integers(0, 2**31))
@example(2.0**-15, [2.0**-7], 2.0**-6, 0)
def test_accumulators_of_48_bits(x, weights, y, seed):
    """To where the result wraps at 32 bits."""
    (nx, qx), (ny, qy), scale = wide(x), wide(y), torch.tensor(weights)
    rng = np.random.default_rng(seed)
    sums = np.round(rng.choice([-1, 1], (500, 1)) * 2.0 ** rng.uniform(0, 46.9, (500, len(weights)))).astype(np.int64)
    if max(weights) * x / y >= 127:
        return
    found = requantize(torch.from_numpy(sums), multiplier(qx.scale, scale, qy.scale, WIDE, 2.0**47), 0, -32768, 32767,
                       WIDE)
    assert np.array_equal(found.numpy(), requantize_sums(sums, nx, scale.numpy(), ny, bias="int64"))


def test_a_multiplier_of_128_has_no_short_form():
    with pytest.raises(PlanError, match="16 bits"):
        multiplier(torch.tensor(1.0), torch.tensor([0.5, 128.0]), torch.tensor(1.0), WIDE)


@given(WIDE_SCALES, st.integers(1, 40), st.integers(0, 2**31))
@example(2.0**-9, 3, 0)
def test_softmax_of_16_bits(scale, count, seed):
    codes = np.random.default_rng(seed).integers(-(2**15), 2**15, (6, count))
    found = wide_softmax(torch.from_numpy(codes), wide_exps(torch.tensor(scale)))
    assert np.array_equal(found.numpy(), softmax_int16(codes, Quant(scale, 0, 16)))


@settings(max_examples=20)  # of all 65,536 codes each
@given(WIDE_SCALES, WIDE_SCALES, st.floats(-3, 3, width=32).filter(lambda v: abs(v) > 1e-3))
def test_functions_of_16_bits(x, y, value):
    (nx, qx), (ny, qy), one = wide(x), wide(y), wide(2.0**-15)[1]
    assert np.array_equal(function_codes("sigmoid", {}, qx, one).numpy(), logistic_int16(EVERY_WIDE, nx))
    assert np.array_equal(function_codes("tanh", {}, qx, one).numpy(), tanh_int16(EVERY_WIDE, nx))
    assert np.array_equal(function_codes("relu", {}, qx, qy).numpy(), elementwise.requantize(EVERY_WIDE, nx, ny))
    for op, form in (("mul_scalar", mul), ("add_scalar", add)):
        code, q = scalar_code(op, {"value": value})
        assert float(q.scale) * code == np.float32(value)
        want = form(EVERY_WIDE, np.array(code), nx, Quant(float(q.scale), 0, 16), ny)
        assert np.array_equal(function_codes(op, {"value": value}, qx, qy).numpy(), want)
    assert function_codes("mul_scalar", {"value": 0.0}, qx, qy) is function_codes("gelu", {}, qx, qy) is None


@pytest.mark.parametrize("x, y", [
    (wide(2.0**-12)[1], wide(2.0**-14)[1]),  # LOGISTIC and TANH give 1/32768
    (QParams.per_tensor(2.0**-5, 0, INT8), wide(2.0**-15)[1]),
    (QParams.per_tensor(2.0**-5, 9, INT16), wide(2.0**-15)[1]),
    (QParams.per_tensor(2.0**-9, 0, QType(12, True)), QParams.per_tensor(2.0**-15, 0, QType(12, True))),
])
@pytest.mark.parametrize("op", ["sigmoid", "tanh", "hardswish"])
def test_no_kernel_for_other_encodings(op, x, y):
    """A target from a file may ask for them: it gets the nearest codes."""
    assert function_codes(op, {}, x, y) is None


@given(ENCODINGS, ENCODINGS)
def test_hard_swish(x, y):
    (nx, qx), (ny, qy) = both(x), both(y)
    codes = function_codes("hardswish", {}, qx, qy)
    assert (codes is not None) == hard_swish_fits(qx, qy)
    if codes is not None:
        assert np.array_equal(codes.numpy(), hard_swish(EVERY, nx, ny))


# -- products of matrices, and what XNNPACK does not take -------------------------------------------


@pytest.mark.parametrize("name", ["litert", "litert_reference", "litert_16x8"])
@given(st.data())
def test_products_of_matrices(name, data):
    is_wide = "16x8" in name
    made = [wide(data.draw(WIDE_SCALES)) if is_wide else both(data.draw(ENCODINGS)) for _ in range(3)]
    if not is_wide and data.draw(st.booleans()):  # XNNPACK takes those only
        made[1] = both((made[1][0].scale, 0))
    (na, qa), (nb, qb), (ny, qy) = made
    if is_wide and qa.scale * qb.scale / qy.scale >= 127:
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    a, b = (rng.integers(q.qtype.qmin, q.qtype.qmax + 1, s) for q, s in ((qa, (2, 9, 40)), (qb, (2, 40, 7))))
    kernel = KERNELS["matmul"](Binding("matmul", {}, (qa, qb), qy, get_target(name).arithmetic))
    found = kernel([torch.from_numpy(v).to(qa.qtype.storage) for v in (a, b)], {})
    want = batch_matmul(a, b, na, nb, ny, kernels="delegated" if name == "litert" else "reference")
    assert np.array_equal(found.numpy(), want)


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
@pytest.mark.parametrize("at", [0, 1])
def test_ratios_that_xnnpack_does_not_take_are_refused(op, at):
    out = QParams.per_tensor(0.25, 0, INT8)
    scales = [0.5, 0.5]
    scales[at] = 64.0 if op != "mul" else 128.0
    below = [s * (1 - 2.0**-20) if s > 1 else s for s in scales]
    for name in ("litert", "litert_reference"):
        for values, refused in ((scales, name == "litert"), (below, False)):
            qs = tuple(QParams.per_tensor(s, 0, INT8) for s in values)
            binding = Binding(op, {}, qs, out, get_target(name).arithmetic, where="block.1")
            if refused:
                with pytest.raises(PlanError, match=r"256 of the output's.*block\.1.*litert_reference"):
                    KERNELS[op](binding)
            else:
                KERNELS[op](binding)


@pytest.mark.parametrize(("name", "limit"), [("litert_reference", 2**19), ("litert_16x8", 2**14)])
def test_sums_for_which_tflite_ends_the_process_are_refused(name, limit):
    qtype = INT8 if name == "litert_reference" else INT16
    one, coarse = (QParams.per_tensor(s, 0, qtype) for s in (1.0, float(limit)))
    with pytest.raises(PlanError, match="TFLite has no kernel"):
        KERNELS["add"](Binding("add", {}, (one, coarse), one, get_target(name).arithmetic))
    KERNELS["mul"](Binding("mul", {}, (one, coarse), one, get_target(name).arithmetic))
