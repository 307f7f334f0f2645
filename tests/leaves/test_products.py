"""Fast path == reference path, bit for bit; codes of rows and of groups."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import intact
from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.leaves import product as products
from intact.leaves.group_codes import group_codes, pack, unpack
from intact.leaves.how import Dynamic, LeafHow, WeightOnly
from intact.leaves.product import product, scaled_products
from intact.leaves.weight import QWeight, encode
from intact.private import pack_matrix, packed_matmul
from intact.proven import packed_matmul_is_exact
from intact.types import PerChannel, PerGroup, PerTensor, PerToken

SIZES = st.integers(1, 40)
HOWS = [Dynamic(w, a) for w in (PerTensor(), PerChannel(0)) for a in (PerTensor(), PerToken())]


def scalar(codes: torch.Tensor, weight: QWeight) -> torch.Tensor:
    """The sum of products in int64, one weight scale each."""
    acc = codes.to(torch.int64) @ weight.codes.to(torch.int64).t()
    assert weight.scale is not None
    return acc.to(torch.float32) * weight.scale


@given(m=SIZES, k=SIZES, n=SIZES, seed=st.integers(0, 99), extreme=st.booleans(), how=st.sampled_from(HOWS))
def test_both_kernels_give_the_scalar_loops_numbers(
    m: int, k: int, n: int, seed: int, extreme: bool, how: Dynamic
) -> None:
    g = torch.Generator().manual_seed(seed)
    w = encode(torch.randn(n, k, generator=g), how)
    if extreme:
        w.codes.copy_(torch.where(w.codes < 0, -127, 127))
    x = torch.randint(0, 256, (m, k), generator=g, dtype=torch.uint8)
    want = scalar(x, w)
    assert torch.equal(scaled_products(x, w.derived()), want)
    wide = torch.cat([x, torch.randint(0, 256, (m, 8), generator=g, dtype=torch.uint8)], 1)
    assert torch.equal(scaled_products(wide, w.derived()), want)
    assert torch.equal(scaled_products(x, w.derived(), fast=False), want)


@given(lead=st.lists(st.integers(1, 7), max_size=3), k=SIZES, n=st.integers(1, 300), seed=st.integers(0, 99),
       bias=st.sampled_from(["none", "row", "whole"]), per_tensor=st.booleans())
def test_one_function_gives_the_numbers_of_the_steps(
    lead: list[int], k: int, n: int, seed: int, bias: str, per_tensor: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    w = encode(torch.randn(n, k, generator=g), Dynamic(PerTensor() if per_tensor else PerChannel(0)))
    x = torch.randn(*lead, k, generator=g) * 3.0
    added = {"none": None, "row": torch.randn(n, generator=g), "whole": torch.randn(*lead, n, generator=g)}[bias]
    fast = product(x, w, added)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_fused_is_exact", lambda: False)
        assert torch.equal(fast, product(x, w, added))
    flat = None if added is None else added.reshape(-1, n)
    steps = products._by_steps(x.reshape(-1, k), w.derived(), flat if bias == "whole" and lead else added, fast=False)
    assert torch.equal(fast.reshape(-1, n), steps) and fast.shape == (*lead, n)


@pytest.mark.parametrize(("m", "k", "n"), [(12, 36, 5500), (130, 96, 520), (300, 33, 260), (2, 8, 40000),
                                           (2, 515, 260), (23, 300, 700), (24, 300, 700)])
def test_results_of_any_number_are_those_of_the_steps(m: int, k: int, n: int) -> None:
    w, bias = encode(torch.randn(n, k), Dynamic()), torch.randn(n)
    x = torch.randn(m, k)
    for added in (None, bias, torch.randn(m, n)):
        steps = products._by_steps(x, w.derived(), added, fast=False)
        assert torch.equal(product(x, w, added), steps)


def test_a_weight_that_was_written_to_is_seen() -> None:
    q, x = intact.quantize_dynamic(nn.Linear(8, 4)), torch.randn(3, 8)
    before = q(x)
    q.qweight.codes.neg_()
    assert torch.allclose(q(x) - q.bias, -(before - q.bias), atol=1e-5)
    q.qweight.scale = q.qweight.scale * 2.0
    assert torch.allclose(q(x) - q.bias, -2.0 * (before - q.bias), atol=1e-5)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30),
       st.floats(-(2.0**20), 2.0**20, width=32))
def test_codes_of_rows_are_within_half_a_step(values: list[float], shift: float) -> None:
    x = torch.tensor([values]) + shift
    codes, step, low = quantize_rows(x)
    codes = codes[:, : x.shape[1]]
    assert all(map(torch.equal, (codes, step, low), quantize_rows(x, fast=False)))
    real = codes.double() * step.double() + low.double()
    slack = float(x.abs().max()) * 2**-22
    assert float((real - x.double()).abs().max()) <= 0.5001 * float(step) + slack
    assert int(codes[x == x.min()].max()) == 0


@given(m=SIZES, k=SIZES, seed=st.integers(0, 99), size=st.sampled_from([1e-9, 1e-3, 1.0, 1e6, 1e37]),
       ties=st.booleans())
def test_the_kernel_gives_the_codes_of_the_formula(m: int, k: int, seed: int, size: float, ties: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=g) * size + torch.randn(m, 1, generator=g)
    if ties:
        x = torch.randint(-200, 310, (m, k), generator=g) / 2.0
        x[:, 0], x[:, -1] = -100.0, 155.0
    fast, slow = quantize_rows(x), quantize_rows(x, fast=False)
    assert torch.equal(fast[0][:, :k], slow[0]) and torch.equal(fast[1], slow[1]) and torch.equal(fast[2], slow[2])
    assert torch.equal(quantize_rows(x.t().contiguous().t())[0][:, :k], slow[0])


def test_rows_that_are_nearly_constant_do_not_wrap() -> None:
    for base in (1.0, 1e4, -3e20):
        x = torch.full((1, 8), base)
        x[0, 3] = torch.nextafter(x[0, 3], torch.tensor(torch.inf))
        codes, step, low = quantize_rows(x)
        assert codes[0, 3] > 230 and int(codes[:, :8].sum()) == codes[0, 3]
        assert torch.allclose(codes[:, :8] * step + low, x, rtol=1e-6, atol=0)


def test_the_range_of_a_tensor_is_that_of_onnx() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0, 0.6])
    scale, zero = tensor_range(x)
    assert quantize_tensor(x, scale, zero).tolist() == [0, 85, 255, 136] and float(scale) == pytest.approx(3 / 255)
    assert [float(v) for v in tensor_range(torch.zeros(3))] == [1.0, 0.0]


@pytest.mark.parametrize("how", [*HOWS, Dynamic(PerGroup(1, 16)), Dynamic(PerGroup(1, 16), PerTensor())], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_near_the_float_ones_in_blocks_of_any_size(how: Dynamic, bias: bool) -> None:
    layer = nn.Linear(48, 400, bias=bias)
    q = intact.quantize_dynamic(layer, {"": how})
    for x in (torch.randn(1500, 48), torch.randn(1, 48), torch.randn(2, 3, 48), torch.randn(48), torch.zeros(0, 48)):
        y, plain = q(x), layer(x).detach()
        assert y.shape == plain.shape and y.dtype == plain.dtype
        if x.numel() > 48:
            assert float((y - plain).std() / plain.std()) < 0.02
    x = torch.randn(1500, 48)
    if isinstance(how.activation, PerToken):  # each row by itself
        assert torch.allclose(q(x)[700:703], q(x[700:703]), atol=1e-5)


def test_inputs_that_are_not_finite_stay_so_in_their_row() -> None:
    q, x = intact.quantize_dynamic(nn.Linear(8, 4)), torch.randn(20, 8)
    x[3, 2], x[5, 1] = torch.nan, torch.inf
    y = q(x)
    assert not bool(torch.isfinite(y[3]).any()) and not bool(torch.isfinite(y[5]).any())
    assert bool(torch.isfinite(y[[0, 1, 2, 4, 6]]).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_dtypes_come_back_as_they_went_in(dtype: torch.dtype) -> None:
    for q in (intact.quantize_dynamic(nn.Linear(64, 4)), intact.quantize_weights(nn.Linear(64, 4))):
        assert q(torch.randn(3, 64, dtype=dtype)).dtype == dtype


@given(st.integers(1, 9), st.integers(1, 33))
def test_packing_is_undone(rows: int, length: int) -> None:
    codes = torch.randint(0, 16, (rows, length), dtype=torch.uint8)
    assert pack(codes).shape[1] == (length + 1) // 2 and torch.equal(unpack(pack(codes), length), codes)


@pytest.mark.parametrize(("bits", "symmetric", "group"),
                         list(itertools.product((4, 8), (True, False), (None, 16, 128))))
def test_search_lowers_the_error_and_codes_fit(bits: int, symmetric: bool, group: int | None) -> None:
    w = torch.randn(32, 128) * torch.rand(32, 1).exp()
    grain = PerChannel(0) if group is None else PerGroup(1, group)
    plain, fine = (encode(w, WeightOnly(bits, grain, symmetric, refine)) for refine in (False, True))

    def error(q: QWeight) -> float:
        return float((q.dequantize() - w).abs().pow(1.5).sum())

    assert error(fine) <= error(plain) < 0.4 * float(w.abs().pow(1.5).sum())
    assert bits == 8 or error(fine) < 0.98 * error(plain)
    assert fine.codes.numel() == w.numel() * bits // 8
    assert (fine.zero_point is None) == symmetric
    index = torch.tensor([5, 5, 0])
    assert torch.equal(fine.rows(index), fine.dequantize()[index])


def test_groups_against_brute_force() -> None:
    x = torch.randn(6, 4)
    q = group_codes(x, 4, symmetric=False, refine=True, dtype=torch.float32)
    mine = ((q.codes.float() - q.zero) * q.scale - x).abs().pow(1.5).sum(1)
    for row in range(6):
        span = float(x[row].max().clamp(min=0) - x[row].min().clamp(max=0))
        best = min(float((((x[row] / s).round() + z).clamp(0, 15).sub(z).mul(s) - x[row]).abs().pow(1.5).sum())
                   for s in torch.linspace(0.6, 1.05, 200).mul(span / 15) for z in range(16))
        assert float(mine[row]) <= 3.0 * best + 1e-3  # 36 and a few candidates against 3,200


def test_scales_that_float16_could_not_hold() -> None:
    for size in (1e-9, 1.0, 1e9):
        w = torch.randn(4, 32) * size
        q = encode(w, WeightOnly(4, PerGroup(1, 32)))
        assert float((q.dequantize() - w).std() / w.std()) < 0.12
    how: LeafHow = WeightOnly(4, PerGroup(1, 32))
    assert torch.equal(encode(torch.zeros(2, 32), how).dequantize(), torch.zeros(2, 32))


def test_gradients_flow_through_weight_only_layers() -> None:
    x = torch.randn(3, 64, requires_grad=True)
    intact.quantize_weights(nn.Linear(64, 4))(x).sum().backward()
    assert x.grad is not None and bool(x.grad.any())
    y = product(x, encode(torch.randn(4, 64), Dynamic()))
    assert not y.requires_grad


def test_packing_a_view_is_packing_what_is_seen() -> None:
    w = torch.randint(-127, 128, (32, 32), dtype=torch.int8).t()
    x = torch.randint(0, 256, (20, 32), dtype=torch.uint8)
    if not packed_matmul_is_exact():
        pytest.skip("this CPU has no exact packed kernel")
    want = (x.to(torch.int32) @ w.to(torch.int32).t()).to(torch.float32)
    assert torch.equal(packed_matmul(x, pack_matrix(w), torch.ones(32)), want)
