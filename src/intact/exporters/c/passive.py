"""Operations in C that move codes or look them up; registered like those of :mod:`intact.exporters.c.ops`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from intact.arithmetic import multiplier
from intact.exporters.c.builder import CBuilder, at
from intact.exporters.c.layout import Stored, viewed
from intact.exporters.c.ops import broadcast_steps, c_op, codes_of
from intact.graph import Node
from intact.kernels import UNARY_OPS, Kernel
from intact.kernels.base import activation_codes
from intact.types.dims import BATCH, resolve_dim

__all__: list[str] = []


@c_op("permute")
def _permute(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """The same memory: only the axes have other numbers."""
    x, axes = b.operand(node.inputs[0]), [a % len(b.shape(node)) for a in node.attrs["axes"]]
    b.alias(x, [axes.index(a) for a in x.order])


@c_op("reshape")
def _reshape(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """The same memory where its order allows that."""
    x, shape = b.operand(node.inputs[0]), b.shape(node)
    order = viewed(x, shape)
    if order is None:
        x, order = b.arranged(x, tuple(range(len(x.shape)))), tuple(range(len(shape)))
    b.alias(x, order)


def _copied(b: CBuilder, x: Stored, y: Stored, source: Sequence[int], start: int = 0) -> None:
    """Every element of the result, from places with other steps."""
    b.copy(x, y, [y.shape[i] for i in y.order], [source[i] for i in y.order], [y.steps[i] for i in y.order],
           start=start, edge=True)


@c_op("slice")
def _slice(b: CBuilder, node: Node, kernel: Kernel) -> None:
    x, a = b.operand(node.inputs[0]), node.attrs
    first, end = (resolve_dim(a[k], {BATCH: 1}) for k in ("start", "end"))
    start, _, step = slice(first, end, a["step"]).indices(x.shape[a["axis"]])
    source = list(x.steps)
    first = start * source[a["axis"]]
    source[a["axis"]] *= step
    _copied(b, x, b.result(x.order), source, first)


@c_op("expand")
def _expand(b: CBuilder, node: Node, kernel: Kernel) -> None:
    x, shape = b.operand(node.inputs[0]), b.shape(node)
    lead = len(shape) - len(x.shape)
    y = b.result((*range(lead), *(axis + lead for axis in x.order)))
    _copied(b, x, y, broadcast_steps(x, shape))


@c_op("index_select", "interpolate_nearest")
def _gather(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """Whatever picks whole slices along each axis: where from, the kernel says itself, asked with coordinates."""
    x = b.operand(node.inputs[0])
    y = b.result(x.order)
    picked: dict[int, str] = {}
    for axis, size in enumerate(x.shape):
        shape = [size if i == axis else 1 for i in range(len(x.shape))]
        coordinates = torch.arange(size).reshape(shape).expand(x.shape)
        found = kernel([coordinates], {BATCH: 1}).to(torch.int64)
        line = found[tuple(slice(None) if i == axis else 0 for i in range(found.ndim))]
        if not torch.equal(line, torch.arange(size)):
            picked[axis] = b.array(f"index{axis}", line, "s32")
    axes = [i for i in y.order if y.shape[i] != 1 or i in picked]
    p = b.struct("gather", size=b.per_axis([y.shape[i] for i in axes], 1), step=b.per_axis([x.steps[i] for i in axes]),
                 index=b.per_axis([picked.get(i, "NULL") for i in axes], "NULL"))
    b.call("gather_$x", {"x": x.ctype}, f"&{p}", at(x), at(y), buffers=(x, y))


@c_op("pad")
def _pad(b: CBuilder, node: Node, kernel: Kernel) -> None:
    if node.attrs["mode"] != "constant":
        return _gather(b, node, kernel)
    x = b.operand(node.inputs[0])
    y = b.result(x.order)
    rank, pads = len(x.shape), node.attrs["pads"]
    sides = {rank - 1 - i // 2: (pads[i], pads[i + 1]) for i in range(0, len(pads), 2)}
    size, start, to = list(x.shape), 0, 0
    for axis, (low, high) in sides.items():
        size[axis] += min(low, 0) + min(high, 0)  # a negative padding cuts off
        start += max(-low, 0) * x.steps[axis]
        to += max(low, 0) * y.steps[axis]
    b.call("fill_$x", {"x": y.ctype}, at(y), str(y.size), str(kernel.value), buffers=(y,), edge=False)  # type: ignore[attr-defined]
    b.copy(x, y, [size[i] for i in y.order], [x.steps[i] for i in y.order], [y.steps[i] for i in y.order],
           start=start, to=to, edge=True)
    return None


@c_op("concat")
def _concat(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """Each operand to its part of the result; requantized if its scale is another one."""
    parts, axis, binding = [b.operand(i) for i in node.inputs], node.attrs["axis"], kernel.binding
    y = b.result(parts[0].order)
    start, last = 0, len(parts) - 1
    for i, (x, q) in enumerate(zip(parts, binding.inputs, strict=True)):
        walk = [x.shape[k] for k in y.order], [x.steps[k] for k in y.order], [y.steps[k] for k in y.order]
        if kernel.tables[i] is None:  # type: ignore[attr-defined]
            b.copy(x, y, *walk, to=start, edge=i == last)
        else:
            by = multiplier(q.scale, torch.ones(()), binding.output.scale, binding.arithmetic)
            moved = {"size": b.per_axis(walk[0], 1), "from": b.per_axis(walk[1]), "to": b.per_axis(walk[2])}
            p = b.struct("rescale", copy=moved, **b.multiplier(by), in_zero=int(q.zero_point), **codes_of(kernel))
            b.call("rescale_${x}_$y", {"x": x.ctype, "y": y.ctype}, f"&{p}", at(x), at(y, start), buffers=(x, y),
                   edge=i == last)
        start += x.shape[axis] * y.steps[axis]


@c_op(*UNARY_OPS)
def _unary(b: CBuilder, node: Node, kernel: Kernel) -> None:
    """A table, the knots of a curve, or a clamp where that gives the same."""
    table, lowest = kernel.table.to(torch.int64), kernel.qmin  # type: ignore[attr-defined]
    x = b.operand(node.inputs[0])
    y = b.result(x.order)
    types, over = {"x": x.ctype, "y": y.ctype}, [x] if x.ctype == y.ctype else []
    low, high = int(table.min()), int(table.max())
    inner = ((table > low) & (table < high)).nonzero().flatten()
    if len(inner):
        offset = int(table[inner[0]]) - int(inner[0]) - lowest
        every = torch.arange(lowest, lowest + len(table))
        if torch.equal((every + offset).clamp(low, high), table):
            return b.call("clamp_${x}_$y", types, str(offset), str(low), str(high), at(x), at(y), str(x.size),
                          buffers=(x, y), over=over)
    curve = kernel.curve  # type: ignore[attr-defined]
    if curve is not None:
        low, high = activation_codes(kernel.binding)
        numbers = map(str, (curve.step, lowest, low, high))
        return b.call("curve_${x}_$y", types, b.array("knots", curve.knots, "s32"), *numbers, at(x), at(y), str(x.size),
                      buffers=(x, y), over=over)
    name = b.array("table", table, y.ctype)
    return b.call("table_${x}_$y", types, name, str(lowest), at(x), at(y), str(x.size), buffers=(x, y), over=over)
