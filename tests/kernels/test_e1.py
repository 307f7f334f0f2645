"""E1: sums of products against plain NumPy, in both carriers (``tests/contract`` holds every kernel's against each
other)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intact.arithmetic import Requantize, fixed_point
from intact.arithmetic.fixed_point import scaled_twice
from intact.kernels import KERNELS, Binding
from intact.kernels.base import activation_codes
from intact.reference import integer as mirror
from intact.reference.fixed_point import multiply_int64_by_quantized_multiplier, quantized_multipliers
from intact.types import QParams, QTensor, QType
from tests.kernels.drawn import (
    DRAWN,
    REFERENCE,
    RUNTIME,
    accumulator,
    draw_conv,
    draw_linear,
    draw_matmul,
    same_in_both_carriers,
)

# -- sums of products against plain loops ------------------------------------------------------------


def conv_loop(x: np.ndarray, w: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """Convolution of centred codes in int64, one output at a time."""
    x = np.pad(x, [(0, 0), (0, 0), *zip(a["pad_begin"], a["pad_end"], strict=True)])
    reach = [d * (k - 1) + 1 for d, k in zip(a["dilation"], w.shape[2:], strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, a["stride"], strict=True)]
    y = np.zeros((len(x), len(w), *sizes), np.int64)
    per, out = w.shape[1], len(w) // a["groups"]
    for o in range(len(w)):
        first = o // out * per
        for at in itertools.product(*map(range, sizes)):
            part = x[(slice(None), slice(first, first + per), *(
                slice(i * s, i * s + r, d)
                for i, s, r, d in zip(at, a["stride"], reach, a["dilation"], strict=True)))]
            y[(slice(None), o, *at)] = (part * w[o]).reshape(len(x), -1).sum(1)
    return y


def expected_integers(acc: np.ndarray, b: Binding, axis: int) -> np.ndarray:
    """Fixed point in NumPy (two roundings: as ``tests/arithmetic`` holds them against Python's integers)."""
    assert b.weight is not None
    shape = [1] * acc.ndim
    shape[axis] = -1
    real = float(b.inputs[0].scale) * b.weight.qparams.scale.double().numpy() / float(b.output.scale)
    real = real.reshape(shape) if real.ndim else real
    low, high = activation_codes(b)
    out = mirror.Codes(float(b.output.scale), int(b.output.zero_point), low, high)
    if b.arithmetic.requantize is Requantize.FIXED_POINT_TWICE:
        twice = scaled_twice(torch.from_numpy(acc), *fixed_point(torch.as_tensor(real)))
        return np.clip(twice.numpy() + out.zero, low, high)
    if b.arithmetic.requantize is Requantize.FIXED_POINT_16:
        short = multiply_int64_by_quantized_multiplier(acc, *quantized_multipliers(real))
        return np.clip(short + out.zero, low, high)
    return mirror.requantize(acc, real, out, b.arithmetic.rounding.value, inside=b.arithmetic.zero_inside)


def expected_codes(acc: np.ndarray, b: Binding, axis: int) -> np.ndarray:
    """float32(acc) * multiplier, half to even, zero point, clamp: the formula in NumPy float32; or fixed point."""
    assert b.weight is not None
    if b.arithmetic.integer_only:
        return expected_integers(acc, b, axis)
    scale = np.float32(1) * b.inputs[0].scale.numpy() * b.weight.qparams.scale.numpy() / b.output.scale.numpy()
    shape = [1] * acc.ndim
    shape[axis] = -1
    y = np.rint(acc.astype(np.float32) * scale.astype(np.float32).reshape(shape)) + int(b.output.zero_point)
    q = b.output.qtype
    low, high = float(q.qmin), float(q.qmax)
    if "activation" in b.attrs:
        ends = np.array(b.attrs["activation"], np.float32) / b.output.scale.numpy()
        ends = np.clip(np.rint(ends) + int(b.output.zero_point), q.qmin, q.qmax)
        low, high = float(ends[0]), float(ends[1])
    return np.clip(y, low, high)


def check_weighted(binding: Binding, x: Tensor, acc: np.ndarray, axis: int) -> None:
    if binding.bias is not None:
        shape = [1] * acc.ndim
        shape[axis] = -1
        acc = acc + binding.bias.numpy().astype(np.int64).reshape(shape)
    y = same_in_both_carriers(binding, [x], len(x))
    assert np.array_equal(y.numpy(), expected_codes(acc, binding, axis))
    assert binding.weight is not None
    if np.abs(acc).max(initial=0) < 2**31:
        out = accumulator(binding.inputs[0].scale * binding.weight.qparams.scale, axis)
        bare = {k: v for k, v in binding.attrs.items() if k != "activation"}
        total = same_in_both_carriers(replace(binding, output=out, attrs=bare), [x], len(x))
        assert np.array_equal(total.numpy(), acc)


@settings(max_examples=80)
@given(st.data())
def test_conv_is_the_plain_loop(data: st.DataObject) -> None:
    binding, (x,), _ = draw_conv(data.draw)
    assert binding.weight is not None
    centred = x.numpy().astype(np.int64) - int(binding.inputs[0].zero_point)
    check_weighted(binding, x, conv_loop(centred, binding.weight.codes.numpy().astype(np.int64), binding.attrs), 1)


@settings(max_examples=80)
@given(st.data())
def test_linear_is_the_plain_sum(data: st.DataObject) -> None:
    binding, (x,), _ = draw_linear(data.draw)
    assert binding.weight is not None
    centred, codes = x.numpy().astype(np.int64) - int(binding.inputs[0].zero_point), \
        binding.weight.codes.numpy().astype(np.int64)
    acc = np.zeros((*x.shape[:-1], len(codes)), np.int64)
    for k in range(x.shape[-1]):
        acc += centred[..., k, None] * codes[:, k]
    check_weighted(binding, x, acc, x.ndim - 1)


@settings(max_examples=60)
@given(st.data())
def test_matmul_is_the_plain_product(data: st.DataObject) -> None:
    binding, xs, batch = draw_matmul(data.draw)
    qs = binding.inputs
    want = np.matmul(*(v.numpy().astype(np.int64) - int(q.zero_point) for v, q in zip(xs, qs, strict=True)))
    if np.abs(want).max() < 2**31:
        out = replace(binding, output=accumulator(qs[0].scale * qs[1].scale, 0))
        assert np.array_equal(same_in_both_carriers(out, xs, batch).numpy(), want)


@settings(max_examples=40)
@given(st.data())
def test_mean_is_the_plain_sum(data: st.DataObject) -> None:
    binding, (x,), batch = DRAWN["mean"](data.draw)
    total = same_in_both_carriers(replace(binding, output=accumulator(torch.tensor(1.0), 1)), [x], batch)
    want = (x.numpy().astype(np.int64) - int(binding.inputs[0].zero_point)).sum(
        tuple(binding.attrs["axes"]), keepdims=binding.attrs["keepdim"])
    assert np.array_equal(total.numpy(), want)


# -- beyond what float32 holds -----------------------------------------------------------------------


@pytest.mark.parametrize("op", ["linear", "conv"])
@pytest.mark.parametrize("weight_bits", [8, 16])
def test_sums_beyond_float32_use_float64(op: str, weight_bits: int) -> None:
    length = 601  # 601 * 255 * 127 is above 2**24, and odd sums there are no float32
    qx = QParams.per_tensor(0.01, 0, QType(8, signed=False))
    wtype = QType(weight_bits, signed=True, narrow=True)
    codes = torch.full((2, length), wtype.qmax).to(wtype.storage)
    codes[1, ::2] = wtype.qmin
    shape = (2, length) if op == "linear" else (2, length, 1)
    weight = QTensor(codes.reshape(shape), QParams.per_tensor(0.01, 0, wtype))
    attrs = {} if op == "linear" else \
        {"stride": [1], "pad_begin": [0], "pad_end": [0], "dilation": [1], "groups": 1}
    out = accumulator(torch.tensor(1e-4), 1)
    arithmetic = RUNTIME if weight_bits == 8 else REFERENCE
    binding = Binding(op, attrs, (qx,), out, arithmetic, weight, torch.tensor([1, -1], dtype=torch.int32))
    assert KERNELS[op](binding).carrier is torch.float64  # type: ignore[attr-defined]
    x = torch.full((1, length) if op == "linear" else (1, length, 1), 255, dtype=torch.uint8)
    want = codes.to(torch.int64).sum(1) * 255 + torch.tensor([1, -1])
    if int(want.abs().max()) < 2**31:
        assert torch.equal(same_in_both_carriers(binding, [x], 1).flatten().to(torch.int64), want)
    narrow = replace(binding, output=QParams.per_tensor(2.0**10, 7, QType(8, signed=False)))
    same_in_both_carriers(narrow, [x], 1)


@pytest.mark.parametrize("op", ["linear", "matmul"])
def test_wide_accumulators_hold_more_than_32_bits(op: str) -> None:
    """16-bit operands with arithmetic REFERENCE: the accumulator itself may pass 2**31."""
    q = QParams.per_tensor(0.01, 0, QType(16, signed=False))
    wq = QParams.per_tensor(0.01, 0, QType(16, signed=True, narrow=True))
    x = torch.full((2, 3), 65535, dtype=q.qtype.storage)
    w = torch.full((4, 3), 32767, dtype=wq.qtype.storage)
    out = accumulator(torch.tensor(1e-4), 1)
    if op == "linear":
        y = same_in_both_carriers(Binding(op, {}, (q,), out, REFERENCE, QTensor(w, wq)), [x], 2)
    else:
        y = same_in_both_carriers(Binding(op, {}, (q, wq), out, REFERENCE), [x, w.t()], 2)
    assert torch.equal(y.to(torch.int64), torch.full((2, 4), 3 * 65535 * 32767))


def test_a_long_mean_of_16_bit_codes() -> None:
    q = QParams.per_tensor(0.01, 0, QType(16, signed=False))
    x = torch.full((1, 1, 200, 200), 65535, dtype=q.qtype.storage)
    y = same_in_both_carriers(Binding("mean", {"axes": [2, 3], "keepdim": False}, (q,), q, REFERENCE), [x], 1)
    assert y.item() == 65535


def test_a_reduction_of_one_is_the_product() -> None:
    q = QParams.per_tensor(0.5, 3, QType(8, signed=False))
    weight = QTensor(torch.tensor([[-2]], dtype=torch.int8), QParams.per_tensor(0.25, 0, QType(8, signed=True)))
    binding = Binding("linear", {}, (q,), q, RUNTIME, weight)
    x = torch.tensor([[0], [1], [3], [255]], dtype=torch.uint8)
    # (q - 3) * -2 * 0.125 / 0.5 = (q - 3) * -0.5: 1.5 is a tie, and goes to 2
    assert same_in_both_carriers(binding, [x], 4).tolist() == [[3 + 2], [3 + 1], [3], [0]]
