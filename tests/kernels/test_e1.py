"""E1: every kernel gives the same codes on integers and on floats that hold integers; sums against plain NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intact.arithmetic import REFERENCE, Arithmetic
from intact.kernels import KERNELS, UNARY_OPS, Binding
from intact.targets import get_target
from intact.types import INT32, PerChannel, PerTensor, QParams, QTensor, QType

RUNTIME = get_target("onnxruntime").arithmetic
Draw = Callable[[st.SearchStrategy[Any]], Any]

scales = st.floats(2.0**-12, 2.0**-3, width=32)


def qtypes(bits: Sequence[int]) -> st.SearchStrategy[QType]:
    return st.builds(QType, st.sampled_from(bits), st.booleans())


def draw_params(draw: Draw, bits: Sequence[int]) -> QParams:
    qtype = draw(qtypes(bits))
    zero = draw(st.one_of(st.sampled_from([qtype.qmin, qtype.qmax]), st.integers(qtype.qmin, qtype.qmax)))
    return QParams.per_tensor(draw(scales), zero, qtype)


def draw_codes(draw: Draw, q: QParams, shape: Sequence[int]) -> Tensor:
    """Codes of an edge: any, all at one end, or only ends."""
    low, high = q.qtype.qmin, q.qtype.qmax
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kind = draw(st.sampled_from(["any", "low", "high", "ends"]))
    if kind in ("low", "high"):
        return torch.full(list(shape), low if kind == "low" else high, dtype=q.qtype.storage)
    codes = torch.randint(low, high + 1, list(shape), generator=g)
    if kind == "ends":
        codes = torch.where(codes > (low + high) / 2, high, low)
    return codes.to(q.qtype.storage)


def same_in_both_carriers(binding: Binding, xs: Sequence[Tensor], batch: int) -> Tensor:
    kernel = KERNELS[binding.op](binding)
    y = kernel([x.clone() for x in xs], batch)
    z = kernel([x.to(torch.float32) for x in xs], batch)
    assert not y.is_floating_point() and z.is_floating_point()
    assert y.shape == z.shape
    assert torch.equal(y.to(torch.float64), z.to(torch.float64))
    if not binding.is_accumulator:
        q = binding.output.qtype
        assert y.dtype == q.storage
        assert q.qmin <= int(y.min()) and int(y.max()) <= q.qmax
    return y


def draw_weight(draw: Draw, shape: Sequence[int], bits: Sequence[int], axis: int = 0) -> QTensor:
    qtype = QType(draw(st.sampled_from(bits)), signed=True, narrow=draw(st.booleans()))
    codes = draw_codes(draw, QParams.per_tensor(1.0, 0, qtype), shape)
    if draw(st.booleans()):
        scale = torch.tensor([draw(scales) for _ in range(shape[axis])])
        return QTensor(codes, QParams(scale, torch.zeros(len(scale), dtype=torch.int32), qtype, PerChannel(axis)))
    return QTensor(codes, QParams.per_tensor(draw(scales), 0, qtype))


def draw_bias(draw: Draw, n: int) -> Tensor | None:
    if not draw(st.booleans()):
        return None
    return torch.tensor([draw(st.integers(-(2**24), 2**24)) for _ in range(n)], dtype=torch.int32)


def accumulator(scale: Tensor, axis: int) -> QParams:
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), INT32,
                   PerChannel(axis) if scale.ndim else PerTensor())


def draw_activation(draw: Draw) -> dict[str, Any]:
    return {"activation": draw(st.sampled_from([[0.0, 6.0], [0.0, float("inf")], [-1.0, 1.0]]))} \
        if draw(st.booleans()) else {}


# -- cases: op -> what it is drawn from: attributes and shapes of the operands ----------------------

Made = tuple[dict[str, Any], list[tuple[int, ...]]]


def spatial(draw: Draw, n: int = 2) -> tuple[int, ...]:
    return (draw(st.integers(1, 3)), draw(st.integers(1, 4)), *(draw(st.integers(4, 7)) for _ in range(n)))


def binary(draw: Draw) -> Made:
    shape = spatial(draw)
    b = [1 if draw(st.booleans()) else d for d in shape]
    return draw_activation(draw), [shape, tuple(b[draw(st.integers(0, 2)):])]


def concat(draw: Draw) -> Made:
    shape = spatial(draw)
    widths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return {"axis": 1}, [(shape[0], w, *shape[2:]) for w in widths]


def mean(draw: Draw) -> Made:
    shape = spatial(draw) if draw(st.booleans()) else (2, 3, 1, 1)
    return {"axes": draw(st.sampled_from([[2, 3], [1], [3], [1, 2, 3]])), "keepdim": draw(st.booleans())}, [shape]


def window(draw: Draw, n: int) -> dict[str, Any]:
    kernel = [draw(st.integers(1, 3)) for _ in range(n)]
    return {"kernel": kernel, "stride": [draw(st.integers(1, 3)) for _ in range(n)],
            "padding": [draw(st.integers(0, k // 2)) for k in kernel], "ceil_mode": draw(st.booleans())}


def avg_pool(draw: Draw) -> Made:
    n = draw(st.integers(1, 3))
    return {**window(draw, n), "count_include_pad": draw(st.booleans())}, [spatial(draw, n)]


def max_pool(draw: Draw) -> Made:
    n = draw(st.integers(1, 3))
    a = window(draw, n)
    return {**a, "dilation": [draw(st.integers(1, 2)) if k < 3 else 1 for k in a["kernel"]]}, [spatial(draw, n)]


def resize(draw: Draw) -> Made:
    shape = spatial(draw)
    size = [draw(st.integers(1, 12)) for _ in range(2)]
    return {"source": list(shape[2:]), "size": size, "align_corners": draw(st.booleans()), "mode": "bilinear"}, [shape]


def reshape(draw: Draw) -> Made:
    shape = spatial(draw)
    to = draw(st.sampled_from([["batch", -1], [f"{shape[1]}*batch", *shape[2:]], ["batch", *reversed(shape[1:])]]))
    return {"shape": to}, [shape]


def permute(draw: Draw) -> Made:
    return {"axes": draw(st.permutations(range(4)))}, [spatial(draw)]


def expand(draw: Draw) -> Made:
    shape = spatial(draw)
    return {"shape": ["batch", 5, *shape[2:]]}, [(shape[0], 1, *shape[2:])]


def slices(draw: Draw) -> Made:
    start = draw(st.integers(0, 2))
    return {"axis": 2, "start": start, "end": start + draw(st.integers(1, 9)), "step": draw(st.integers(1, 2))}, \
        [spatial(draw)]


def index_select(draw: Draw) -> Made:
    return {"axis": 3, "indices": draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))}, [spatial(draw)]


def pad(draw: Draw) -> Made:
    return {"pads": [draw(st.integers(0, 3)) for _ in range(4)], "value": draw(st.floats(-3, 3, width=32)),
            "mode": draw(st.sampled_from(["constant", "reflect", "replicate"]))}, [spatial(draw)]


def unary(draw: Draw) -> Made:
    attrs = {"low": -0.5, "high": 0.75, "slope": 0.1, "alpha": 1.5, "value": 2.0,
             "approximate": draw(st.sampled_from(["none", "tanh"]))}
    return {**attrs, **draw_activation(draw)}, [spatial(draw)]


CASES: dict[str, Callable[[Draw], Made]] = {
    "add": binary, "sub": binary, "mul": binary, "concat": concat, "mean": mean, "avg_pool": avg_pool,
    "interpolate": resize, "max_pool": max_pool, "reshape": reshape, "permute": permute, "expand": expand,
    "slice": slices, "index_select": index_select, "interpolate_nearest": resize, "pad": pad,
    **dict.fromkeys(UNARY_OPS, unary),
}
WEIGHTED = {"conv", "linear"}
MOVING = {"max_pool", "reshape", "permute", "expand", "slice", "index_select", "interpolate_nearest", "pad"}


def test_every_kernel_has_a_case() -> None:
    assert set(CASES) | WEIGHTED | {"matmul"} == set(KERNELS)


def rules(draw: Draw) -> tuple[Arithmetic, Sequence[int]]:
    """A target's arithmetic, with the widths that it allows."""
    return draw(st.sampled_from([(RUNTIME, (2, 4, 8)), (REFERENCE, (2, 8, 13, 16))]))


@pytest.mark.parametrize("op", sorted(CASES))
def test_the_carriers_agree(op: str) -> None:
    @settings(max_examples=8 if op in UNARY_OPS else 40)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        draw = data.draw
        arithmetic, bits = rules(draw)
        attrs, shapes = CASES[op](draw)
        inputs = tuple(draw_params(draw, bits) for _ in shapes)
        output = inputs[0] if op in MOVING else draw_params(draw, bits)
        if op == "concat" and draw(st.booleans()):
            output = inputs[0]
        xs = [draw_codes(draw, q, s) for q, s in zip(inputs, shapes, strict=True)]
        same_in_both_carriers(Binding(op, attrs, inputs, output, arithmetic), xs, shapes[0][0])
        if op == "mean":
            total = same_in_both_carriers(Binding(op, attrs, inputs, accumulator(torch.tensor(1.0), 1), arithmetic), xs,
                                          shapes[0][0])
            want = (xs[0].numpy().astype(np.int64) - int(inputs[0].zero_point)).sum(tuple(attrs["axes"]),
                                                                                   keepdims=attrs["keepdim"])
            assert np.array_equal(total.numpy(), want)

    run()


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


def expected_codes(acc: np.ndarray, b: Binding, axis: int) -> np.ndarray:
    """float32(acc) * multiplier, half to even, zero point, clamp: the formula in NumPy float32."""
    assert b.weight is not None
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
    draw = data.draw
    arithmetic, bits = rules(draw)
    n, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    per, out = draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(n)]

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(n)]

    attrs = {"stride": each(1, 3), "pad_begin": each(0, 2), "pad_end": each(0, 2), "dilation": each(1, 2),
             "groups": groups, **draw_activation(draw)}
    q = draw_params(draw, bits)
    x = draw_codes(draw, q, (draw(st.integers(1, 2)), groups * per, *each(5, 6)))
    w = draw_weight(draw, (out, per, *kernel), bits)
    binding = Binding("conv", attrs, (q,), draw_params(draw, bits), arithmetic, w, draw_bias(draw, out))
    acc = conv_loop(x.numpy().astype(np.int64) - int(q.zero_point), w.codes.numpy().astype(np.int64), attrs)
    check_weighted(binding, x, acc, 1)


@settings(max_examples=80)
@given(st.data())
def test_linear_is_the_plain_sum(data: st.DataObject) -> None:
    draw = data.draw
    arithmetic, bits = rules(draw)
    length, out = draw(st.sampled_from([1, 1, 2, 7, 64])), draw(st.integers(1, 5))
    lead = draw(st.sampled_from([(1,), (3,), (2, 4), (2, 1, 3)]))
    q = draw_params(draw, bits)
    x, w = draw_codes(draw, q, (*lead, length)), draw_weight(draw, (out, length), bits)
    attrs = draw_activation(draw)
    binding = Binding("linear", attrs, (q,), draw_params(draw, bits), arithmetic, w, draw_bias(draw, out))
    centred, codes = x.numpy().astype(np.int64) - int(q.zero_point), w.codes.numpy().astype(np.int64)
    acc = np.zeros((*lead, out), np.int64)
    for k in range(length):
        acc += centred[..., k, None] * codes[:, k]
    check_weighted(binding, x, acc, x.ndim - 1)


@settings(max_examples=60)
@given(st.data())
def test_matmul_is_the_plain_product(data: st.DataObject) -> None:
    draw = data.draw
    arithmetic, bits = rules(draw)
    length = draw(st.sampled_from([1, 2, 9, 300]))
    shapes = draw(st.sampled_from([((2, 3, length), (2, length, 4)), ((2, 1, 2, length), (2, 3, length, 1)),
                                   ((1, 1, length), (length, 2))]))
    qs = tuple(draw_params(draw, bits) for _ in range(2))
    a, b = (draw_codes(draw, q, s) for q, s in zip(qs, shapes, strict=True))
    want = np.matmul(*(v.numpy().astype(np.int64) - int(q.zero_point) for v, q in zip((a, b), qs, strict=True)))
    same_in_both_carriers(Binding("matmul", {}, qs, draw_params(draw, bits), arithmetic), [a, b], len(a))
    if np.abs(want).max() < 2**31:
        out = Binding("matmul", {}, qs, accumulator(qs[0].scale * qs[1].scale, 0), arithmetic)
        assert np.array_equal(same_in_both_carriers(out, [a, b], len(a)).numpy(), want)


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
