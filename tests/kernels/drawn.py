"""Random bindings of every kernel, and operands for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from intact.arithmetic import REFERENCE, Arithmetic, Requantize, Rounding
from intact.arithmetic.layer_norm import GAMMA_BITS
from intact.arithmetic.softmax import softmax_output
from intact.graph.masks import LOWEST, MASK_CODES
from intact.kernels import KERNELS, UNARY_OPS, Binding
from intact.targets import get_target
from intact.types import INT32, PerChannel, PerTensor, QParams, QTensor, QType

__all__ = ["DRAWN", "MOVING", "REFERENCE", "RUNTIME", "Draw", "accumulator", "draw_conv", "draw_linear", "draw_matmul",
           "draw_params", "same_in_both_carriers"]

RUNTIME = get_target("onnxruntime").arithmetic
GAMMA = QType(GAMMA_BITS, signed=True, narrow=True)
FIXED = get_target("fixed_point").arithmetic
WIDE = get_target("litert_16x8").arithmetic
Draw = Callable[[st.SearchStrategy[Any]], Any]
Drawn = tuple[Binding, list[Tensor], int]

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
    y = kernel([x.clone() for x in xs], {"batch": batch})
    z = kernel([x.to(torch.float32) for x in xs], {"batch": batch})
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
    attrs = {"low": -0.5, "high": 0.75, "slope": 0.1, "alpha": 1.5, "value": 2.0, "scale": 1.1,
             "input_scale": 0.7, "beta": 2.0, "threshold": 0.3, "bound": 0.4,
             "approximate": draw(st.sampled_from(["none", "tanh"]))}
    return {**attrs, **draw_activation(draw)}, [spatial(draw)]


CASES: dict[str, Callable[[Draw], Made]] = {
    "add": binary, "sub": binary, "mul": binary, "concat": concat, "mean": mean, "avg_pool": avg_pool,
    "interpolate": resize, "max_pool": max_pool, "reshape": reshape, "permute": permute, "expand": expand,
    "slice": slices, "index_select": index_select, "interpolate_nearest": resize, "pad": pad,
    **dict.fromkeys(UNARY_OPS, unary),
}


def draw_softmax(draw: Draw) -> Drawn:
    shape = spatial(draw)
    q, arithmetic = draw_params(draw, (2, 8, 16)), draw_fixed(draw)
    output = softmax_output(draw(st.sampled_from([4, 8, 16])), signed=True)
    hidden = draw(st.lists(st.sampled_from([LOWEST, 0, 1]), max_size=3))
    attrs = {"axis": draw(st.integers(1, 3)), **({"hidden": hidden} if hidden else {})}
    masks = [draw_mask(draw, shape, code) for code in hidden]
    return Binding("softmax", attrs, (q, *[MASK_CODES] * len(masks)), output, arithmetic), [
        draw_codes(draw, q, shape), *masks], shape[0]


def draw_mask(draw: Draw, shape: Sequence[int], code: int) -> Tensor:
    """Codes of 0 and of what hides, some or all; repeated along some axes, the first ones left out."""
    kept = [shape[0], *(1 if draw(st.booleans()) else d for d in shape[1:])]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    other = 0 if code else 1
    return torch.where(torch.rand(kept, generator=g) < share, code, other).to(torch.int8)


def draw_layer_norm(draw: Draw) -> Drawn:
    shape, axes = spatial(draw), draw(st.integers(1, 3))
    q, kept = draw_params(draw, (2, 8, 16)), list(shape[-axes:])
    weight = QTensor(draw_codes(draw, QParams.per_tensor(1.0, 0, GAMMA), kept),
                     QParams.per_tensor(draw(scales), 0, GAMMA)) if draw(st.booleans()) else None
    with_bias = weight is not None and draw(st.booleans())
    bias = torch.randint(-(2**20), 2**20, kept, dtype=torch.int32) if with_bias else None
    attrs = {"shape": kept, "eps": draw(st.sampled_from([0.0, 1e-5, 1.0]))}
    return Binding("layer_norm", attrs, (q,), draw_params(draw, (2, 8, 16)), draw_fixed(draw), weight, bias), [
        draw_codes(draw, q, shape)], shape[0]


MOVING = {"max_pool", "reshape", "permute", "expand", "slice", "index_select", "interpolate_nearest", "pad"}


def draw_fixed(draw: Draw) -> Arithmetic:
    """Integers only, rounded in any way."""
    return replace(FIXED, rounding=draw(st.sampled_from(Rounding)), zero_inside=draw(st.booleans()), requantize=draw(
        st.sampled_from([Requantize.FIXED_POINT, Requantize.FIXED_POINT_TWICE])))


def rules(draw: Draw) -> tuple[Arithmetic, Sequence[int]]:
    """A target's arithmetic, with the widths that it allows."""
    if draw(st.booleans()):
        return draw(st.sampled_from([(RUNTIME, (2, 4, 8)), (REFERENCE, (2, 8, 13, 16))]))
    return draw_fixed(draw), (2, 4, 8)


def summing_rules(draw: Draw) -> tuple[Arithmetic, Sequence[int]]:
    """For sums of products also TFLite's of 16-bit codes."""
    return (WIDE, (8, 16)) if draw(st.integers(0, 3)) == 0 else rules(draw)


def plain(op: str) -> Callable[[Draw], Drawn]:
    """Bindings of a kernel without weights."""

    def draw_binding(draw: Draw) -> Drawn:
        arithmetic, bits = rules(draw)
        attrs, shapes = CASES[op](draw)
        inputs = tuple(draw_params(draw, bits) for _ in shapes)
        output = inputs[0] if op in MOVING else draw_params(draw, bits)
        if op == "concat" and draw(st.booleans()):
            output = inputs[0]
        xs = [draw_codes(draw, q, s) for q, s in zip(inputs, shapes, strict=True)]
        return Binding(op, attrs, inputs, output, arithmetic), xs, shapes[0][0]

    return draw_binding


def draw_conv(draw: Draw) -> Drawn:
    arithmetic, bits = summing_rules(draw)
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
    return Binding("conv", attrs, (q,), draw_params(draw, bits), arithmetic, w, draw_bias(draw, out)), [x], len(x)


def draw_linear(draw: Draw) -> Drawn:
    arithmetic, bits = summing_rules(draw)
    length, out = draw(st.sampled_from([1, 1, 2, 7, 64])), draw(st.integers(1, 5))
    lead = draw(st.sampled_from([(1,), (3,), (2, 4), (2, 1, 3)]))
    q = draw_params(draw, bits)
    x, w = draw_codes(draw, q, (*lead, length)), draw_weight(draw, (out, length), bits)
    attrs = draw_activation(draw)
    return Binding("linear", attrs, (q,), draw_params(draw, bits), arithmetic, w, draw_bias(draw, out)), [x], len(x)


def draw_matmul(draw: Draw) -> Drawn:
    arithmetic, bits = summing_rules(draw)
    length = draw(st.sampled_from([1, 2, 9, 300]))
    shapes = draw(st.sampled_from([((2, 3, length), (2, length, 4)), ((2, 1, 2, length), (2, 3, length, 1)),
                                   ((1, 1, length), (length, 2))]))
    qs = tuple(draw_params(draw, bits) for _ in range(2))
    xs = [draw_codes(draw, q, s) for q, s in zip(qs, shapes, strict=True)]
    return Binding("matmul", {}, qs, draw_params(draw, bits), arithmetic), xs, len(xs[0])


#: kernel -> a random binding, operands and batch size
DRAWN: dict[str, Callable[[Draw], Drawn]] = {
    "softmax": draw_softmax, "layer_norm": draw_layer_norm,
    "conv": draw_conv, "linear": draw_linear, "matmul": draw_matmul, **{op: plain(op) for op in CASES},
}
