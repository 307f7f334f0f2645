"""Softmax, layer norm and bilinear interpolation; registered like the operations of :mod:`intact.exporters.c.ops`."""

from __future__ import annotations

import math

import torch

from intact.arithmetic.layer_norm import normalized_bits, normalized_limit
from intact.exporters.c.builder import CBuilder, at
from intact.exporters.c.layout import Stored, collapse
from intact.exporters.c.ops import broadcast_steps, c_op, channels_last, codes_of, refuse
from intact.graph import Node
from intact.kernels import Kernel

__all__: list[str] = []


@c_op("softmax")
def _softmax(b: CBuilder, node: Node, kernel: Kernel) -> None:
    x, axis = b.operand(node.inputs[0]), node.attrs["axis"]
    y = b.result(x.order)
    others = [i for i in x.order if i != axis]
    coarse, fine = kernel.tables(x.shape[axis])  # type: ignore[attr-defined]
    fields: dict[str, object] = {
        "length": x.shape[axis], "along": x.steps[axis], "coarse": b.array("coarse", coarse, "s32"),
        "fine": b.array("fine", fine, "s32"), "steps": int(1.0 / float(kernel.binding.output.scale)),
        **codes_of(kernel)}
    types = {"x": x.ctype, "y": y.ctype}
    if len(node.inputs) == 1:
        size, (step,) = collapse([x.shape[i] for i in others], [x.steps[i] for i in others])
        p = b.struct("softmax", size=b.per_axis(size, 1), step=b.per_axis(step), **fields)
        return b.call("softmax_${x}_$y", types, f"&{p}", at(x), at(y), buffers=(x, y))
    mask, hidden = _one_mask(b, node)
    wide = broadcast_steps(mask, x.shape)
    size, (step, other) = collapse([x.shape[i] for i in others], [x.steps[i] for i in others],
                                   [wide[i] for i in others])
    fields = {"size": b.per_axis(size, 1), "step": b.per_axis(step), **fields}
    p = b.struct("masked_softmax", softmax=fields, mask_step=b.per_axis(other), mask_along=wide[axis], hidden=hidden)
    return b.call("masked_softmax_${x}_$y", types, f"&{p}", at(x), at(mask), at(y), buffers=(x, mask, y))


def _one_mask(b: CBuilder, node: Node) -> tuple[Stored, int]:
    """The mask of a softmax, and its code that hides; of several, one that hides what any of them does."""
    masks, codes = [b.operand(i) for i in node.inputs[1:]], node.attrs["hidden"]
    if len(masks) == 1:
        return masks[0], codes[0]
    shape = torch.broadcast_shapes(*(m.shape for m in masks))
    y = Stored(b.buffer("s8", math.prod(shape)), tuple(shape), tuple(range(len(shape))), "s8")
    for i, (mask, code) in enumerate(zip(masks, codes, strict=True)):
        size, (step,) = collapse(shape, broadcast_steps(mask, shape))
        p = b.struct("hide", size=b.per_axis(size, 1), step=b.per_axis(step), hidden=code, first=int(i == 0))
        b.call("hide", {}, f"&{p}", at(mask), at(y), buffers=(mask, y), edge=False)
    return y, 1


@c_op("layer_norm")
def _layer_norm(b: CBuilder, node: Node, kernel: Kernel) -> None:
    x = b.operand(node.inputs[0], range(len(b.shape(node))))
    y, count = b.result(), math.prod(node.attrs["shape"])
    weight, bias = kernel.weight, kernel.binding.bias  # type: ignore[attr-defined]
    most = normalized_limit(count) * (1 if weight is None else int(weight.abs().max()))
    most += 0 if bias is None else int(bias.long().abs().max())
    if most >= 2**31 or (weight is not None and int(weight.abs().max()) >= 2**15):
        raise refuse(node, f"sums of up to {most:.4g}", "sums below 2**31, weights below 2**15")
    p = b.struct("layer_norm", weight="NULL" if weight is None else b.array("weight", weight, "s16"),
                 bias="NULL" if bias is None else b.array("bias", bias, "s32"),
                 epsilon=kernel.epsilon, rows=x.size // count, count=count,  # type: ignore[attr-defined]
                 bits=normalized_bits(count), **b.multiplier(kernel.multiplier),  # type: ignore[attr-defined]
                 **codes_of(kernel))
    b.call("layer_norm_${x}_$y", {"x": x.ctype, "y": y.ctype}, f"&{p}", at(x), at(y), buffers=(x, y))


@c_op("interpolate")
def _bilinear(b: CBuilder, node: Node, kernel: Kernel) -> None:
    order = channels_last(4)
    x, y, (qx,) = b.operand(node.inputs[0], order), b.result(order), kernel.binding.inputs
    fields: dict[str, object] = {}
    tables = kernel.whole_tables(x.shape[2:], y.shape[2:])  # type: ignore[attr-defined]
    for name, table in zip(("row", "col"), tables, strict=True):
        first, second, at_first, at_second = table
        fields |= {name: b.array(name, first, "s32"), f"next_{name}": b.array(f"next_{name}", second, "s32"),
                   f"{name}_part": b.array(f"{name}_part", at_second, "s32")}
        fields["one"] = int(at_first[0] + at_second[0])
    p = b.struct("bilinear", **fields, batch=x.shape[0], in_h=x.shape[2], in_w=x.shape[3], channels=x.shape[1],
                 out_h=y.shape[2], out_w=y.shape[3], in_zero=int(qx.zero_point),
                 **b.multiplier(kernel.multiplier), **codes_of(kernel))  # type: ignore[attr-defined]
    b.call("bilinear_${x}_$y", {"x": x.ctype, "y": y.ctype}, f"&{p}", at(x), at(y), buffers=(x, y))
