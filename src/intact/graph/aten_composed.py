"""aten operations that are made of canonical ones: filled tensors, repetitions, windows, products with factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from intact.graph.aten import pairs
from intact.graph.converter import Const, Converter, Edge, Value, handler

__all__: list[str] = []


def _as_it_is(c: Converter, *args: Value, **kwargs: Value) -> Value:
    """The call itself, run by name."""
    assert c.current is not None
    return c.generic(str(c.current.target), list(args), kwargs)


# -- tensors of one number ----------------------------------------------------------------------


def _filled(c: Converter, value: float) -> Value:
    example = c.fake()
    number = Const(torch.tensor(value).to(example.dtype))
    shape = list(c.dims(example.shape))
    return c.emit("expand", [number], shape=shape) if any(isinstance(d, str) for d in shape) else \
        Const(number.tensor.expand([int(d) for d in shape]).contiguous())


@handler("aten.zeros_like.default", "aten.new_zeros.default", "aten.zeros.default", "aten.zero.default",
         "aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default")
def _zeros(c: Converter, *args: Any, **options: Any) -> Value:
    # what is made empty is written before it is read: 0 is as good as any other number
    return _filled(c, 0)


@handler("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def _arange(c: Converter, *bounds: Any, **options: Any) -> Value:
    whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in bounds]
    start, end, step = (0, whole[0], 1) if len(whole) == 1 else (*whole, 1)[:3]
    if not all(isinstance(v, (int, str)) for v in (start, end)) or not (isinstance(step, int) and step > 0):
        raise c.error("a range that is not of whole numbers", got=bounds)
    numbers = c.emit("arange", dtype="int64", start=start, end=end, step=step)
    dtype = c.fake().dtype
    return numbers if dtype == torch.int64 else c.generic("aten._to_copy.default", [numbers], {"dtype": dtype})


@handler("aten.ones_like.default", "aten.new_ones.default", "aten.ones.default")
def _ones(c: Converter, *args: Any, **options: Any) -> Value:
    return _filled(c, 1)


@handler("aten.full_like.default", "aten.fill.Scalar", "aten.new_full.default", "aten.full.default")
def _full(c: Converter, *args: Any, **options: Any) -> Value:
    value = args[-1] if len(args) > 1 else options.get("fill_value", options.get("value"))
    return _filled(c, value) if isinstance(value, (int, float)) else _as_it_is(c, *args, **options)


def _like_result(c: Converter, value: Value) -> Value:
    return Const(torch.tensor(value, dtype=c.fake().dtype)) if isinstance(value, (int, float)) else value


@handler("aten.where.self", "aten.where.Scalar", "aten.where.ScalarOther", "aten.where.ScalarSelf")
def _where(c: Converter, condition: Value, a: Value, b: Value) -> Value:
    return c.emit("where", [condition, _like_result(c, a), _like_result(c, b)])


@handler("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(c: Converter, x: Value, mask: Value, value: Value) -> Value:
    return c.emit("where", [mask, _like_result(c, value), x])


# -- moves --------------------------------------------------------------------------------------


@handler("aten.repeat.default", "aten.tile.default")
def _repeat(c: Converter, x: Value, times: Sequence[Any]) -> Value:
    shape = list(c.shape_of()) if isinstance(x, Edge) else list(x.tensor.shape)
    rank = max(len(shape), len(times))
    old, counts = [1] * (rank - len(shape)) + shape, [1] * (rank - len(times)) + list(times)
    pairs = list(zip(counts, old, strict=True))
    if any(n == 0 or (n != 1 and d != 1 and not (isinstance(n, int) and isinstance(d, int))) for n, d in pairs):
        return _as_it_is(c, x, times)  # nothing is left, or the batch is a factor of a new size
    apart = [v for n, d in pairs for v in ([1, d] if n != 1 and d != 1 else [d])]
    wide = [v for n, d in pairs for v in ([n, d] if n != 1 and d != 1 else [n if d == 1 else d])]
    y = x if apart == shape else c.emit("reshape", [x], shape=apart)
    y = y if wide == apart else c.emit("expand", [y], shape=wide)
    final = list(c.dims(c.fake().shape))
    return y if final == wide else c.emit("reshape", [y], shape=final)


@handler("aten.repeat_interleave.self_int")
def _repeat_interleave(c: Converter, x: Value, times: int, axis: int | None = None, **options: Any) -> Value:
    shape = c.shape_of()
    size = shape[axis] if axis is not None else None
    if axis is None or not isinstance(size, int):
        return _as_it_is(c, x, times, axis, **options)
    return c.emit("index_select", [x], axis=axis % len(shape), indices=[i for i in range(size) for _ in range(times)])


@handler("aten.unfold.default")
def _unfold(c: Converter, x: Value, axis: int, size: int, step: int) -> Value:
    shape = list(c.shape_of())
    axis = axis % len(shape) if shape else 0
    length = shape[axis] if shape else None
    if not isinstance(length, int):
        return _as_it_is(c, x, axis, size, step)
    starts = range(0, length - size + 1, step)
    y = c.emit("index_select", [x], axis=axis, indices=[s + i for s in starts for i in range(size)])
    y = c.emit("reshape", [y], shape=[*shape[:axis], len(starts), size, *shape[axis + 1:]])
    order = [a for a in range(len(shape) + 1) if a != axis + 1] + [axis + 1]
    return y if order == sorted(order) else c.emit("permute", [y], axes=order)


@handler("aten.pixel_unshuffle.default")
def _pixel_unshuffle(c: Converter, x: Value, r: int) -> Value:
    shape = c.shape_of()
    if len(shape) != 4 or not all(isinstance(d, int) for d in shape[1:]):
        return _as_it_is(c, x, r)
    n, ch, h, w = shape
    y = c.emit("reshape", [x], shape=[n, ch, int(h) // r, r, int(w) // r, r])
    y = c.emit("permute", [y], axes=[0, 1, 3, 5, 2, 4])
    return c.emit("reshape", [y], shape=list(c.dims(c.fake().shape)))


def _part(c: Converter, x: Value, axis: int, start: int, end: int) -> list[Value]:
    return [c.emit("slice", [x], axis=axis, start=start, end=end, step=1)] if start < end else []


@handler("aten.select_scatter.default")
def _select_scatter(c: Converter, x: Value, source: Value, axis: int, index: int) -> Value:
    shape = list(c.dims(c.fake().shape))
    axis, size = axis % len(shape), shape[axis]
    if not isinstance(size, int) or not isinstance(index, int):
        return _as_it_is(c, x, source, axis, index)
    index = index % size
    one = [d if i != axis else 1 for i, d in enumerate(shape)]
    middle = c.emit("reshape", [source], shape=one)
    return c.emit("concat", [*_part(c, x, axis, 0, index), middle, *_part(c, x, axis, index + 1, size)], axis=axis)


@handler("aten.slice_scatter.default")
def _slice_scatter(c: Converter, x: Value, source: Value, axis: int = 0, start: Any = None, end: Any = None,
                   step: int = 1) -> Value:
    shape = list(c.dims(c.fake().shape))
    axis, size = axis % len(shape), shape[axis]
    if not isinstance(size, int) or step != 1 or isinstance(start, str) or isinstance(end, str):
        return _as_it_is(c, x, source, axis, start, end, step)
    first, last, _ = slice(start, end).indices(size)
    return c.emit("concat", [*_part(c, x, axis, 0, first), source, *_part(c, x, axis, last, size)], axis=axis)


@handler("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def _adaptive_max_pool(c: Converter, x: Value, size: Any) -> Value:
    assert c.current is not None
    n = int(str(c.current.target).split("pool")[1][0])
    spatial, wanted = c.shape_of()[-n:], pairs(size, n)
    both = _as_it_is(c, x, size)
    if any(not isinstance(d, int) or d % s for d, s in zip(spatial, wanted, strict=True)):
        return both
    kernel = [int(d) // s for d, s in zip(spatial, wanted, strict=True)]
    return [_windows(c, x, kernel, kernel, [0] * n, [1] * n, False), both[1]]


@handler("aten.max_pool1d_with_indices.default", "aten.max_pool2d_with_indices.default",
         "aten.max_pool3d_with_indices.default")
def _max_pool_with_indices(c: Converter, x: Value, kernel: Any, stride: Any = None, padding: Any = 0,
                           dilation: Any = 1, ceil_mode: bool = False) -> Value:
    assert c.current is not None
    n = int(str(c.current.target).split("pool")[1][0])
    size = pairs(kernel, n)
    both = _as_it_is(c, x, size, pairs(stride, n) if stride else [], pairs(padding, n), pairs(dilation, n), ceil_mode)
    return [_windows(c, x, size, pairs(stride, n) if stride else size, pairs(padding, n), pairs(dilation, n),
                     ceil_mode), both[1]]


def _windows(c: Converter, x: Value, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int],
             ceil_mode: bool) -> Edge:
    return c.emit("max_pool", [x], kernel=kernel, stride=stride, padding=padding, dilation=dilation,
                  ceil_mode=ceil_mode)


# -- arithmetic ---------------------------------------------------------------------------------


@handler("aten.square.default")
def _square(c: Converter, x: Value) -> Value:
    return c.emit("mul", [x, x])


@handler("aten.glu.default")
def _glu(c: Converter, x: Value, axis: int = -1) -> Value:
    shape = c.shape_of()
    axis = axis % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        return _as_it_is(c, x, axis)
    a, b = (c.emit("slice", [x], axis=axis, start=s, end=s + size // 2, step=1) for s in (0, size // 2))
    return c.emit("mul", [a, c.emit("sigmoid", [b])])


def _scaled(c: Converter, x: Value, factor: float) -> Value:
    if isinstance(x, Const):
        return x if factor == 1 else Const(x.tensor * factor)
    return x if factor == 1 else c.emit("mul_scalar", [x], value=float(factor))


@handler("aten.addmm.default", "aten.baddbmm.default", "aten.addbmm.default")
def _addmm(c: Converter, b: Value, x: Value, w: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """``beta * b + alpha * (x @ w)``; a weight and a bias that are constant make a linear layer."""
    assert c.current is not None
    if "addbmm" in str(c.current.target).replace("baddbmm", ""):
        return _as_it_is(c, b, x, w, beta=beta, alpha=alpha)
    if isinstance(w, Const) and w.tensor.ndim == 2 and isinstance(x, Edge):
        weight = Const((w.tensor if alpha == 1 else w.tensor * alpha).t().contiguous())
        if beta == 0 or (isinstance(b, Const) and b.tensor.ndim == 1):
            return c.emit("linear", [x], {"weight": weight, "bias": None if beta == 0 else _scaled(c, b, beta)})
        y = c.emit("linear", [x], {"weight": weight, "bias": None})
    else:
        y = _scaled(c, c.emit("matmul", [x, w]), alpha)
    return y if beta == 0 else c.emit("add", [y, _scaled(c, b, beta)])


@handler("aten.mv.default")
def _mv(c: Converter, x: Value, v: Value) -> Value:
    if not (isinstance(v, Const) and isinstance(x, Edge)):
        return _as_it_is(c, x, v)
    y = c.emit("linear", [x], {"weight": Const(v.tensor.reshape(1, -1)), "bias": None})
    return c.emit("reshape", [y], shape=list(c.dims(c.fake().shape)))
