"""Softmax and layer norm in integers: against Python's integers, and near enough to the real functions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intact.arithmetic import dequantize
from intact.arithmetic.layer_norm import (
    integer_sqrt,
    layer_norm_epsilon,
    normalized_bits,
    normalized_codes,
    normalized_limit,
)
from intact.arithmetic.softmax import exp_bits, exp_tables, softmax_codes, softmax_output
from intact.errors import PlanError
from intact.types import QParams, QType


@given(st.integers(0, 2**62 - 1))
@settings(max_examples=300)
def test_integer_square_root(x):
    near = math.isqrt(x)
    for value in {x, near * near, max(near * near - 1, 0), min((near + 1) ** 2 - 1, 2**62 - 1)}:
        assert int(integer_sqrt(torch.tensor(value))) == math.isqrt(value)


def python_layer_norm(codes: list[int], epsilon: int) -> list[int]:
    n, total = len(codes), sum(codes)
    wide = n * sum(c * c for c in codes) - total * total + epsilon
    room = (61 - (wide.bit_length() - 1)) & ~1
    root = math.isqrt(wide << room)
    assert 2**30 <= root < 2**31
    found = []
    for c in codes:
        d = n * c - total
        size = ((abs(d) << (room // 2 + normalized_bits(n))) + (root >> 1)) // root
        found.append(-size if d < 0 else size)
    return found


ROWS = st.integers(1, 40).flatmap(lambda n: st.one_of(
    *(st.lists(values, min_size=n, max_size=n) for values in (
        st.integers(-128, 127), st.integers(-(2**15), 2**15 - 1), st.sampled_from([-(2**15), 2**15 - 1])))))


@given(ROWS, st.sampled_from([1, 17, 2**40, 2**60]))
def test_layer_norm_is_what_python_says(row, epsilon):
    found = normalized_codes(torch.tensor([row]), (1,), epsilon)[0]
    assert found.tolist() == python_layer_norm(row, epsilon)
    assert int(found.abs().max()) <= normalized_limit(len(row))


@pytest.mark.parametrize(("bits", "count"), [(8, 16), (8, 384), (16, 768), (16, 2**14)])
def test_layer_norm_is_near_the_real_one(bits, count):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, count, generator=g, dtype=torch.float64)
    scale = float(x.abs().max()) / 2 ** (bits - 1)
    codes = (x / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    found = normalized_codes(codes.long(), (1,), layer_norm_epsilon(1e-5, count, scale))
    real = torch.nn.functional.layer_norm(codes * scale, (count,), eps=1e-5)
    assert float((found / 2.0 ** normalized_bits(count) - real).abs().max()) < 2.0 ** -normalized_bits(count)


def test_a_constant_row_is_zero():
    assert not normalized_codes(torch.full((2, 9), 77), (1,), 1).any()


def python_softmax(codes: list[int], high: list[int], low: list[int], bits: int, zero: int) -> list[int]:
    top = max(codes)
    e = [(high[(top - c) >> 8] * low[(top - c) & 255] + 2**14) >> 15 for c in codes]
    total = sum(e)
    assert total < 2**31
    return [(v * 2**bits + total // 2) // total + zero for v in e]


@given(ROWS, st.floats(1e-6, 10.0), st.sampled_from([4, 8, 16]))
def test_softmax_is_what_python_says(row, scale, bits):
    tables, out = exp_tables(scale, 16, exp_bits(len(row))), softmax_output(bits, signed=True)
    steps = round(math.log2(1 / float(out.scale)))
    expected = python_softmax(row, *(t.tolist() for t in tables), steps, int(out.zero_point))
    found = softmax_codes(torch.tensor([row]), 1, tables, out)[0]
    assert found.tolist() == [min(v, out.qtype.qmax) for v in expected]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_softmax_is_near_the_real_one(bits, signed):
    g = torch.Generator().manual_seed(0)
    q = QParams.per_tensor(20.0 / 2**bits, 0, QType(bits, signed=True))
    codes = torch.randint(q.qtype.qmin, q.qtype.qmax, (16, 50), generator=g)
    out = softmax_output(bits, signed)
    found = softmax_codes(codes, 1, exp_tables(float(q.scale), bits, exp_bits(50)), out)
    real = torch.softmax(codes * q.scale.double(), 1)
    error = (dequantize(found.float(), out) - real).abs().max()
    assert float(error) < (1.01 * float(out.scale) if bits == 8 else 2e-4)


def test_probabilities_need_a_power_of_two():
    codes, odd = torch.zeros(1, 2, dtype=torch.int64), QParams.per_tensor(0.3, 0, QType(8, signed=True))
    with pytest.raises(PlanError, match="power of two"):
        softmax_codes(codes, 1, exp_tables(0.1, 8, 16), odd)
