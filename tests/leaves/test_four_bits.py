"""Products of bfloat16 with 4-bit codes as they are stored."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intact.leaves.four_bits import four_bit_product
from intact.leaves.how import WeightOnly
from intact.leaves.product import product
from intact.leaves.weight import encode
from intact.proven import four_bits_are_exact
from intact.types import PerGroup

pytestmark = pytest.mark.skipif(not four_bits_are_exact(), reason="torch has no such kernel here")


@given(m=st.integers(1, 16), groups=st.integers(1, 4), n=st.integers(1, 5), size=st.sampled_from([32, 64, 128]),
       seed=st.integers(0, 99), symmetric=st.booleans(), balance=st.booleans())
def test_only_the_sum_is_rounded(
    m: int, groups: int, n: int, size: int, seed: int, symmetric: bool, balance: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(16 * n, groups * size, generator=g) * torch.rand(groups * size, generator=g)
    weight = encode(w, WeightOnly(4, PerGroup(1, size), symmetric, balance=balance), product=True)
    x = torch.randn(m, groups * size, generator=g).to(torch.bfloat16)
    found = four_bit_product(x, weight)
    assert found is not None and found.dtype == torch.float32
    real = weight.without_columns().to(torch.float64)
    exact = weight.balanced(x).to(torch.float64) @ real.t()
    # half a step of bfloat16 each for the sum and, of a balanced weight, what its second part lacks of the inputs
    most = weight.balanced(x).abs().to(torch.float64) @ real.abs().t()
    assert bool(((found - exact).abs() <= exact.abs() / 255 + most * 2.0**-15).all())


def test_a_weight_that_is_written_to_is_packed_anew_and_copies_begin_without() -> None:
    weight = encode(torch.randn(32, 64), WeightOnly(4, PerGroup(1, 32)))
    x = torch.randn(2, 64).to(torch.bfloat16)
    before = product(x, weight)
    twin = copy.deepcopy(weight)
    weight.codes.copy_(weight.codes ^ 255)
    assert not torch.equal(product(x, weight), before) and torch.equal(product(x, twin), before)


@pytest.mark.parametrize(("rows", "columns", "size", "m"), [(30, 64, 32, 1), (32, 64, 16, 1), (32, 64, 32, 17)])
def test_what_the_kernel_lacks_is_made_real(rows: int, columns: int, size: int, m: int) -> None:
    weight = encode(torch.randn(rows, columns), WeightOnly(4, PerGroup(1, size)))
    x = torch.randn(m, columns).to(torch.bfloat16)
    assert four_bit_product(x, weight) is None and four_bit_product(x.float(), weight) is None
    wanted = x.float() @ weight.without_columns().t()
    assert torch.allclose(product(x, weight).float(), wanted, rtol=2.0**-7, atol=1e-2)
