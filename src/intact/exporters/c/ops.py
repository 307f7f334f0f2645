"""Operations in C: layers with weights, products, sums, pools. One small function for each, in a registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from intact.arithmetic import Multiplier, Requantize, multiplier, shared_fixed_point
from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.c.builder import CBuilder, at
from intact.exporters.c.four_bits import FOUR_BIT_WORDS, WHOLE_BYTE_WORDS, packed_halves, packed_neighbours
from intact.exporters.c.layout import Stored, collapse
from intact.graph import Node
from intact.kernels import Kernel
from intact.kernels.base import activation_codes

__all__ = ["C_OPS", "Emitter", "c_op", "codes_of", "refuse"]

#: appends the calls of a node, whose kernel is bound
Emitter = Callable[[CBuilder, Node, Kernel], None]

C_OPS: dict[str, Emitter] = {}


def c_op(*ops: str) -> Callable[[Emitter], Emitter]:
    """Register what writes the calls of canonical operations."""

    def register(emit: Emitter) -> Emitter:
        C_OPS.update(dict.fromkeys(ops, emit))
        return emit

    return register


def refuse(node: Node, got: object, allowed: str) -> ExportError:
    """The error for an operation that has C form, but not with these attributes."""
    return ExportError("the operation has no C form", where=place(node), got=got, allowed=allowed,
                       fix="leave it out of the exported part, or rewrite it")


def codes_of(kernel: Kernel) -> dict[str, object]:
    """Fields that limit a result."""
    low, high = activation_codes(kernel.binding)
    return {"out_zero": int(kernel.binding.output.zero_point), "low": low, "high": high}


def channels_last(rank: int) -> tuple[int, ...]:
    """The order of the axes in which convolutions and pools read and write."""
    return (0, *range(2, rank), 1)


def spatial(node: Node, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width; a sequence has height 1."""
    if len(shape) not in (3, 4):
        raise refuse(node, f"{len(shape)} axes", "one or two spatial axes")
    return (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])


def pair(values: Sequence[int], missing: int) -> tuple[int, int]:
    """One number for rows and one for columns."""
    return (missing, values[0]) if len(values) == 1 else (values[0], values[1])


def _weighted(b: CBuilder, node: Node, kernel: Kernel, weight: torch.Tensor, geometry: dict[str, object],
              packed: Callable[[torch.Tensor], torch.Tensor] = packed_halves) -> tuple[str, dict[str, str]]:
    """Parameters of a layer with weights, in their order in memory (rows, length), and words that say how they lie."""
    (qx,), zero = kernel.binding.inputs, int(kernel.binding.inputs[0].zero_point)
    centred = qx.qtype.qmin - zero >= -(2**15) and qx.qtype.qmax - zero < 2**15
    if not centred or int(weight.min()) < -128 or int(weight.max()) > 127:
        raise refuse(node, f"activations {qx.qtype}, weights from {int(weight.min())} to {int(weight.max())}",
                     "8-bit weights, and activations of 16 bits less their zero point")
    by, bias = kernel.multiplier, kernel.binding.bias  # type: ignore[attr-defined]
    count = int(geometry["out_c"])  # type: ignore[call-overload]
    words, held = WHOLE_BYTE_WORDS, kernel.binding.weight
    if held is not None and held.qparams.qtype.bits <= 4 and int(weight.min()) >= -8 and int(weight.max()) <= 7:
        words, weight = FOUR_BIT_WORDS, packed(weight)
    fields = {"weight": b.array("weight", weight, "s8"),
              "bias": "NULL" if bias is None else b.array("bias", bias, "s32"), **b.multiplier(by, count)}
    return b.struct("conv", **fields, **geometry, in_zero=zero, **codes_of(kernel)), words


@c_op("conv")
def _conv(b: CBuilder, node: Node, kernel: Kernel) -> None:
    a, weight = node.attrs, kernel.codes  # type: ignore[attr-defined]
    shape = b.shape(node)
    rank, groups = len(shape), a["groups"]
    (out_h, out_w), (in_h, in_w) = spatial(node, shape), spatial(node, b.shape(b.q.graph[node.inputs[0]]))
    x = b.operand(node.inputs[0], channels_last(rank))
    y = b.result(channels_last(rank))
    kernel_h, kernel_w = pair(weight.shape[2:], 1)
    geometry: dict[str, object] = {
        "batch": shape[0], "in_h": in_h, "in_w": in_w, "in_c": x.shape[1], "out_h": out_h, "out_w": out_w,
        "out_c": shape[1], "kernel_h": kernel_h, "kernel_w": kernel_w}
    for name, values, missing in (("stride", a["stride"], 1), ("pad", a["pad_begin"], 0),
                                  ("dilation", a["dilation"], 1)):
        geometry[f"{name}_h"], geometry[f"{name}_w"] = pair(values, missing)
    geometry["groups"] = groups
    types = {"x": x.ctype, "y": y.ctype}
    if groups == x.shape[1] == shape[1]:
        p, words = _weighted(b, node, kernel, weight.flatten(1).t(), geometry, packed_neighbours)
        return b.call("depthwise2d${four}_${x}_$y", types | words, f"&{p}", at(x), at(y), buffers=(x, y))
    p, words = _weighted(b, node, kernel, weight.movedim(1, -1).flatten(1), geometry)
    columns = b.buffer("s16", math.prod(weight.shape[1:]) * min(2, out_h * out_w))
    return b.call("conv2d${four}_${x}_$y", types | words, f"&{p}", at(x), at(y), f"@{columns}@", scratch=(columns,),
                  buffers=(x, y))


@c_op("linear")
def _linear(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """A 1 x 1 convolution over the rows."""
    weight = kernel.codes  # type: ignore[attr-defined]
    x = b.operand(node.inputs[0])
    last = len(x.shape) - 1
    x = b.arranged(x, (*(axis for axis in x.order if axis != last), last))
    y = b.result(x.order)
    rows = x.size // x.shape[-1]
    geometry: dict[str, object] = {
        "batch": 1, "in_h": 1, "in_w": rows, "in_c": x.shape[-1], "out_h": 1, "out_w": rows, "out_c": len(weight),
        **{f"{name}_{side}": 0 if name == "pad" else 1 for name in ("kernel", "stride", "pad", "dilation")
           for side in "hw"}, "groups": 1}
    p, words = _weighted(b, node, kernel, weight, geometry)
    columns = b.buffer("s16", x.shape[-1] * min(2, rows))
    b.call("conv2d${four}_${x}_$y", {"x": x.ctype, "y": y.ctype, **words}, f"&{p}", at(x), at(y), f"@{columns}@",
           scratch=(columns,), buffers=(x, y))


# -- two operands -------------------------------------------------------------------------------


def broadcast_steps(x: Stored, shape: Sequence[int]) -> list[int]:
    """Steps of a tensor along the axes of a shape that it is repeated to."""
    lead = len(shape) - len(x.shape)
    return [0] * lead + [0 if n == 1 else s for n, s in zip(x.shape, x.steps, strict=True)]


def _binary(b: CBuilder, node: Node) -> tuple[Stored, Stored, Stored, dict[str, object]]:
    """Operands, result, and the fields that say how to walk them: in the order of an operand that is not repeated."""
    left, right = (b.operand(i) for i in node.inputs)
    shape = b.shape(node)
    leader = max((left, right), key=lambda x: x.size)  # the first of two
    lead = len(shape) - len(leader.shape)
    y = b.result((*range(lead), *(axis + lead for axis in leader.order)))
    tables = [broadcast_steps(x, shape) for x in (left, right)]
    sizes, (a, c) = collapse([shape[i] for i in y.order], *([t[i] for i in y.order] for t in tables))
    zeros = (int(q.zero_point) for q in b.q.bindings[node.name].inputs)
    fields: dict[str, object] = {"size": b.per_axis(sizes, 1), "a": b.per_axis(a), "b": b.per_axis(c),
                                 "a_zero": next(zeros), "b_zero": next(zeros)}
    return left, right, y, fields


def _call_binary(b: CBuilder, kind: str, p: str, left: Stored, right: Stored, y: Stored) -> None:
    axes = [i for i in y.order if y.shape[i] != 1]
    over = [x for x in (left, right) if x.size == y.size and x.ctype == y.ctype
            and [i + len(y.shape) - len(x.shape) for i in x.order if x.shape[i] != 1] == axes]
    types = {"a": left.ctype, "b": right.ctype, "y": y.ctype}
    b.call(kind + "_${a}_${b}_$y", types, f"&{p}", at(left), at(right), at(y), buffers=(left, right, y), over=over)


@c_op("add", "sub")
def _add(b: CBuilder, node: Node, kernel: Kernel) -> None:
    (qa, qb), out = kernel.binding.inputs, kernel.binding.output
    left, right, y, fields = _binary(b, node)
    m0, shift = shared_fixed_point(torch.stack([qa.scale, qb.scale]).double() / out.scale.double())
    sign = -1 if node.op == "sub" else 1
    p = b.struct("add", **fields, a_m0=int(m0[0]), b_m0=sign * int(m0[1]), shift=int(shift), **codes_of(kernel))
    _call_binary(b, "add", p, left, right, y)


@c_op("mul")
def _mul(b: CBuilder, node: Node, kernel: Kernel) -> None:
    qa, qb = kernel.binding.inputs
    reach = math.prod(max(q.qtype.qmax - int(q.zero_point), int(q.zero_point) - q.qtype.qmin) for q in (qa, qb))
    if reach >= 2**31:
        raise refuse(node, f"a product of {qa.qtype} and {qb.qtype}", "products below 2**31: symmetric 16-bit operands")
    left, right, y, fields = _binary(b, node)
    by = multiplier(qa.scale, qb.scale, kernel.binding.output.scale, kernel.binding.arithmetic)
    p = b.struct("mul", **fields, **b.multiplier(by), **codes_of(kernel))
    _call_binary(b, "mul", p, left, right, y)


@c_op("matmul")
def _matmul(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """Rows of the left operand times rows of the transposed right one, which lie in memory one after the other."""
    shape = b.shape(node)
    left = b.operand(node.inputs[0], range(len(b.shape(b.q.graph[node.inputs[0]]))))
    rank = len(b.shape(b.q.graph[node.inputs[1]]))
    if len(left.shape) < 2 or rank < 2:
        raise refuse(node, "an operand with one axis", "matrices")
    right = b.operand(node.inputs[1], (*range(rank - 2), rank - 1, rank - 2))
    y = b.result()
    outer = shape[:-2]
    tables = [broadcast_steps(x, shape)[:-2] for x in (left, right)]
    sizes, (a, c) = collapse(outer, *tables)
    length = left.shape[-1]
    wide = kernel.bound(length) >= 2**31  # type: ignore[attr-defined]
    zeros = [int(q.zero_point) for q in kernel.binding.inputs]
    p = b.struct("matmul", size=b.per_axis(sizes, 1), a=b.per_axis(a), b=b.per_axis(c), rows=shape[-2],
                 columns=shape[-1], length=length, **b.multiplier(kernel.multiplier),  # type: ignore[attr-defined]
                 a_zero=zeros[0], b_zero=zeros[1], **codes_of(kernel))
    types = {"a": left.ctype, "b": right.ctype, "y": y.ctype, "wide": "_wide" if wide else "",
             "SUM": "int64_t" if wide else "int32_t", "requantize": "requantize_wide" if wide else "requantize"}
    b.call("matmul${wide}_${a}_${b}_$y", types, f"&{p}", at(left), at(right), at(y), buffers=(left, right, y))


# -- pools --------------------------------------------------------------------------------------


def _pool(b: CBuilder, node: Node) -> tuple[Stored, Stored, dict[str, object]]:
    a, shape = node.attrs, b.shape(node)
    (out_h, out_w), (in_h, in_w) = spatial(node, shape), spatial(node, b.shape(b.q.graph[node.inputs[0]]))
    if len(shape) != 2 + len(a["kernel"]):
        raise refuse(node, f"{len(shape)} axes", "batch, channels and one or two spatial axes")
    x, y = b.operand(node.inputs[0], channels_last(len(shape))), b.result(channels_last(len(shape)))
    fields: dict[str, object] = {"batch": shape[0], "in_h": in_h, "in_w": in_w, "channels": shape[1], "out_h": out_h,
                                 "out_w": out_w}
    ones = [1] * len(a["kernel"])
    for name, values, missing in (("kernel", a["kernel"], 1), ("stride", a["stride"], 1), ("pad", a["padding"], 0),
                                  ("dilation", a.get("dilation", ones), 1)):
        fields[f"{name}_h"], fields[f"{name}_w"] = pair(values, missing)
    return x, y, fields


@c_op("max_pool")
def _max_pool(b: CBuilder, node: Node, kernel: Kernel) -> None:
    x, y, fields = _pool(b, node)
    p = b.struct("pool", **fields)
    b.call("max_pool_$x", {"x": x.ctype}, f"&{p}", at(x), at(y), buffers=(x, y))


def _counts(node: Node, size: int, windows: int, i: int) -> set[int]:
    """How many positions along an axis count in a window."""
    a, found = node.attrs, set()
    for start in range(-a["padding"][i], -a["padding"][i] + windows * a["stride"][i], a["stride"][i]):
        end = start + a["kernel"][i]
        if a["count_include_pad"]:
            found.add(min(end, size + a["padding"][i]) - start)
        else:
            found.add(min(end, size) - max(start, 0))
    return found


def _average_multiplier(kernel: Kernel, counts: torch.Tensor) -> Multiplier:
    """``s_x / (s_y * n)`` for one or several n; never a mere shift."""
    binding, rules = kernel.binding, kernel.binding.arithmetic
    if rules.requantize is Requantize.SHIFT:
        rules = replace(rules, requantize=Requantize.FIXED_POINT)
    one = torch.ones((), dtype=torch.float64)
    return multiplier(binding.inputs[0].scale, one, binding.output.scale.double() * counts.double(), rules)


@c_op("avg_pool")
def _average_pool(b: CBuilder, node: Node, kernel: Kernel) -> None:
    (qx,) = kernel.binding.inputs
    x, y, fields = _pool(b, node)
    sets = [_counts(node, n, w, i) for i, (n, w) in enumerate(zip(x.shape[2:], y.shape[2:], strict=True))]
    counts = torch.tensor(sorted({math.prod((h, w)) for h in sets[0] for w in (sets[1] if len(sets) > 1 else {1})}))
    by = _average_multiplier(kernel, counts)
    p = b.struct("average", pool=fields, counts=b.array("counts", counts, "s32"),
                 **b.multiplier(by, len(counts), average=True), count_padding=int(node.attrs["count_include_pad"]),
                 in_zero=int(qx.zero_point), **codes_of(kernel))
    b.call("average_pool_${x}_$y", {"x": x.ctype, "y": y.ctype}, f"&{p}", at(x), at(y), buffers=(x, y))


@c_op("mean")
def _mean(b: CBuilder, node: Node, kernel: Kernel) -> None:
    (qx,), axes = kernel.binding.inputs, list(node.attrs["axes"])
    x = b.operand(node.inputs[0])
    count, zero = math.prod(x.shape[i] for i in axes), int(qx.zero_point)
    if count * max(qx.qtype.qmax - zero, zero - qx.qtype.qmin) >= 2**31:
        raise refuse(node, f"a sum of {count} codes", "sums below 2**31")
    kept = [i for i in x.order if i not in axes]
    numbers = {axis: i for i, axis in enumerate(i for i in range(len(x.shape)) if i not in axes)}
    y = b.result([*axes, *kept] if node.attrs["keepdim"] else [numbers[i] for i in kept])
    size, (step,) = collapse([x.shape[i] for i in kept], [x.steps[i] for i in kept])
    inner = [i for i in x.order if i in axes]
    over, (over_step,) = collapse([x.shape[i] for i in inner], [x.steps[i] for i in inner])
    by = _average_multiplier(kernel, torch.tensor(count))
    p = b.struct("mean", size=b.per_axis(size, 1), step=b.per_axis(step), sum_size=b.per_axis(over, 1),
                 sum_step=b.per_axis(over_step), **b.multiplier(by, average=True), in_zero=zero, **codes_of(kernel))
    b.call("mean_${x}_$y", {"x": x.ctype, "y": y.ctype}, f"&{p}", at(x), at(y), buffers=(x, y))
