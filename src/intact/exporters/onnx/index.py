"""Indexing, copying and products of torch in ONNX."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intact.exporters.onnx.call import Call, aten

__all__: list[str] = []


@aten("gather.default")
def _gather(c: Call) -> str:
    return c.op("GatherElements", c.tensor("self"), c.tensor("index"), axis=c["dim"])


@aten("scatter.src", "scatter.value", "scatter_add.default")
def _scatter(c: Call) -> str:
    index, x = c.tensor("index"), c.tensor("self")
    if c["src"] is not None:
        if c.shape("src") != c.shape("index"):
            raise c.refuse("a scatter of a part of its source has no ONNX form here", c.shape("src"))
        source = c.tensor("src", c.dtype)
    else:
        source = c.op("Expand", c.number(c["value"], c.dtype, "value"), c.op("Shape", index))
    adds = "scatter_add" in c.n.attrs["target"]
    return c.op("ScatterElements", x, index, source, axis=c["dim"], reduction="add" if adds else "none")


@aten("index_select.default")
def _index_select(c: Call) -> str:
    return c.op("Gather", c.tensor("self"), c.tensor("index"), axis=c["dim"])


@aten("index.Tensor")
def _index(c: Call) -> str:
    """One index, or several on neighbouring axes, which are then merged."""
    used = [(i, v) for i, v in enumerate(c["indices"]) if v is not None]
    first, shape = used[0][0], c.shape("self")
    sizes = shape[first:first + len(used)]
    together = [i for i, _ in used] == list(range(first, first + len(used)))
    if not together or any(c.dtype_of(v) == "bool" for _, v in used):
        raise c.refuse("an index of this kind has no ONNX form here", [i for i, _ in used])
    if len(used) == 1:
        return c.op("Gather", c.tensor("self"), c.tensor_of(used[0][1]), axis=first)
    flat = None
    for (_, v), size in zip(used, sizes, strict=True):
        n = c.number(size, "int64", "size") if isinstance(size, int) else c.b.size(size)
        part = c.op("Mod", c.tensor_of(v, "int64"), n)  # a negative index counts from the end
        flat = part if flat is None else c.op("Add", c.op("Mul", flat, n), part)
    wide = c.op("Concat", *(c.b.size(d) for d in shape[:first]), c.integers([-1], "merged"),
                *(c.b.size(d) for d in shape[first + len(used):]), axis=0)
    rows = c.op("Reshape", c.tensor("self"), wide)
    return c.op("Gather", rows, str(flat), axis=first)


@aten("one_hot.default")
def _one_hot(c: Call) -> str:
    depth = c.n.shape[-1]
    if not isinstance(depth, int) or c["num_classes"] == -1:
        raise c.refuse("one_hot without the number of classes has no ONNX form")
    return c.op("OneHot", c.tensor("self"), c.integers([depth], "depth"), c.integers([0, 1], "values"), axis=-1)


def _triangle(name: str) -> None:
    @aten(f"{name}.default")
    def emit(c: Call) -> str:
        return c.op("Trilu", c.tensor("self"), c.tensor("diagonal", "int64"), upper=int(name == "triu"))


_triangle("tril")
_triangle("triu")


@aten("repeat.default", "tile.default")
def _repeat(c: Call) -> str:
    times = c["repeats"] if c["repeats"] is not None else c["dims"]
    x, rank = c.tensor("self"), len(c.shape("self"))
    if len(times) > rank:
        x = c.op("Unsqueeze", x, c.integers(range(len(times) - rank), "new_axes"))
    sizes = [c.b.size(t["dim"] if isinstance(t, Mapping) else t) for t in [1] * (rank - len(times)) + list(times)]
    return c.op("Tile", x, c.op("Concat", *sizes, axis=0)) if sizes else x


@aten("flip.default")
def _flip(c: Call) -> str:
    axes = [a % len(c.shape("self")) for a in c["dims"]]
    back, before_all = [-1] * len(axes), [-(2**63) + 1] * len(axes)
    parts = [("start", back), ("end", before_all), ("axes", axes), ("step", back)]
    return c.op("Slice", c.tensor("self"), *(c.integers(v, k) for k, v in parts)) if axes else c.tensor("self")


@aten("einsum.default")
def _einsum(c: Call) -> str:
    operands = [c.tensor_of(v, c.dtype) for v in c["tensors"]]
    return c.op("Einsum", *operands, equation=c["equation"].replace(" ", ""))


@aten("bilinear.default")
def _bilinear(c: Call) -> str:
    """``x1 W_o x2`` for every output o."""
    letters = "abcdefgh"[:len(c.n.shape) - 1]
    role = c.n.params[c["weight"]["param"]] if "param" in c["weight"] else None
    if role is None:
        raise c.refuse("a bilinear form of a computed weight has no ONNX form here")
    weight = c.b.params[role].detach()
    out, left, right = weight.shape
    flat = c.b.const(f"{role}:flat", np.ascontiguousarray(weight.permute(1, 0, 2).reshape(left, out * right).numpy()))
    rows = c.op("Reshape", c.op("MatMul", c.tensor("input1"), flat), c.b.dynamic_shape(
        [*c.n.shape[:-1], out, right], f"{c.n.name}:rows"))
    y = c.op("Einsum", rows, c.tensor("input2"), equation=f"{letters}yz,{letters}z->{letters}y")
    return y if c["bias"] is None else c.op("Add", y, c.tensor("bias"))


@aten("grid_sampler.default")
def _grid_sampler(c: Call) -> str:
    mode = ("linear", "nearest", "cubic")[c["interpolation_mode"]]
    padding = ("zeros", "border", "reflection")[c["padding_mode"]]
    return c.op("GridSample", c.tensor("input"), c.tensor("grid"), mode=mode, padding_mode=padding,
                align_corners=int(c["align_corners"]))
