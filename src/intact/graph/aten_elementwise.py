"""aten operations as canonical ones: element-wise arithmetic, shapes, slices, identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from intact.graph.aten_functions import function_of_one
from intact.graph.converter import Const, Converter, Edge, Value, handler

__all__: list[str] = []


def _scalar(value: Value) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Const) and value.tensor.ndim == 0:
        return float(value.tensor)
    return None


def _binary(op: str, *, scalar: Callable[[Converter, Value, float], Value],
            reversed_scalar: Callable[[Converter, Value, float], Value]) -> Callable[..., Value]:
    def convert(c: Converter, a: Value, b: Value, *, alpha: float = 1, rounding_mode: Any = None) -> Value:
        if rounding_mode is not None:
            assert c.current is not None
            return c.generic(str(c.current.target), [a, b], {"rounding_mode": rounding_mode})
        if not c.fake().dtype.is_floating_point and (alpha != 1 or not _scalar(a) is _scalar(b) is None):
            assert c.current is not None  # an integer and a number stay integers
            return c.generic(str(c.current.target), [a, b], {"alpha": alpha} if alpha != 1 else {})
        whole = function_of_one(c, op, a, b) if alpha == 1 and c.fake().dtype.is_floating_point else None
        if whole is not None:
            return c.emit(whole, [a])
        if alpha != 1:
            k = _scalar(b)
            b = k * alpha if k is not None else c.emit("mul_scalar", [b], value=float(alpha))
        k = _scalar(b)
        if k is not None:
            return scalar(c, a, k)
        k = _scalar(a)
        return reversed_scalar(c, b, k) if k is not None else c.emit(op, [a, b])

    return convert


def _plus(c: Converter, x: Value, k: float) -> Value:
    return c.emit("add_scalar", [x], value=k) if k else x


def _times(c: Converter, x: Value, k: float) -> Value:
    return c.emit("mul_scalar", [x], value=k) if k != 1 else x


handler("aten.add.Tensor", "aten.add.Scalar")(_binary("add", scalar=_plus, reversed_scalar=_plus))
handler("aten.mul.Tensor", "aten.mul.Scalar")(_binary("mul", scalar=_times, reversed_scalar=_times))
handler("aten.sub.Tensor", "aten.sub.Scalar")(_binary(
    "sub", scalar=lambda c, x, k: _plus(c, x, -k),
    reversed_scalar=lambda c, x, k: _plus(c, c.emit("neg", [x]), k)))
handler("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode")(_binary(
    "div", scalar=lambda c, x, k: _times(c, x, 1.0 / k),
    reversed_scalar=lambda c, x, k: _times(c, c.emit("reciprocal", [x]), k)))


@handler("aten.rsub.Scalar", "aten.rsub.Tensor")
def _rsub(c: Converter, x: Value, k: Value, alpha: float = 1) -> Value:
    number = _scalar(k)
    if number is not None and not c.fake().dtype.is_floating_point:
        assert c.current is not None
        return c.generic(str(c.current.target), [x, k, alpha], {})
    if number is None or alpha != 1:
        return c.emit("sub", [k, x if alpha == 1 else c.emit("mul_scalar", [x], value=float(alpha))])
    return _plus(c, c.emit("neg", [x]), number)


@handler("aten.outer.default", "aten.ger.default")
def _outer(c: Converter, a: Value, b: Value) -> Value:
    rows, columns = c.dims(c.fake().shape)
    return c.emit("mul", [c.emit("reshape", [a], shape=[rows, 1]), c.emit("reshape", [b], shape=[1, columns])])


@handler("aten.pow.Tensor_Scalar")
def _pow(c: Converter, x: Value, k: float) -> Value:
    return c.emit("mul", [x, x]) if k == 2 else c.emit("pow_scalar", [x], value=float(k))


@handler("aten.minimum.default", "aten.min.other")
def _minimum(c: Converter, a: Value, b: Value) -> Value:
    return c.emit("minimum", [a, b])


@handler("aten.maximum.default", "aten.max.other")
def _maximum(c: Converter, a: Value, b: Value) -> Value:
    return c.emit("maximum", [a, b])


@handler("aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default",
         "aten.lift_fresh_copy.default", "aten.alpha_dropout.default", "aten._assert_tensor_metadata.default")
def _identity(c: Converter, x: Value, *rest: Any, **options: Any) -> Value:
    return x


@handler("aten.dropout.default", "aten.feature_dropout.default")
def _dropout(c: Converter, x: Value, p: float, train: bool) -> Value:
    """Nothing in evaluation; what it does in training is kept beside the graph."""
    if isinstance(x, Edge) and p > 0.0:
        whole_channels = c.current is not None and "feature" in str(c.current.target)
        c.dropouts[x.name] = (float(p), whole_channels)
    return x


@handler("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other",
         "aten.type_as.default")
def _to(c: Converter, x: Value, *rest: Any, **options: Any) -> Value:
    assert c.current is not None
    source, result = c.current.args[0], c.fake()
    if source.meta["val"].dtype == result.dtype:  # type: ignore[union-attr]
        return x
    dtype = str(result.dtype)
    return c.generic("aten._to_copy.default", [x], {"dtype": getattr(torch, dtype.removeprefix("torch."))})


# -- joining and shaping --------------------------------------------------------------------


@handler("aten.cat.default")
def _cat(c: Converter, xs: list[Value], axis: int = 0) -> Value:
    # torch joins a tensor of shape (0,) with any: an empty list of keys and values, most often
    xs = [x for x in xs if not (isinstance(x, Const) and x.tensor.shape == (0,))] or xs[:1]
    if len(xs) == 1:
        return xs[0]
    return c.emit("concat", xs, axis=axis % len(c.fake().shape))


@handler("aten.stack.default")
def _stack(c: Converter, xs: list[Value], axis: int = 0) -> Value:
    shape = list(c.dims(c.fake().shape))
    axis = axis % len(shape)
    shape[axis] = 1
    return c.emit("concat", [c.emit("reshape", [x], shape=shape) for x in xs], axis=axis)


@handler("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
         "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.unsqueeze.default",
         "aten.unflatten.int")
def _reshape(c: Converter, x: Value, *rest: Any) -> Value:
    shape = list(c.dims(c.fake().shape))
    return x if shape == list(c.shape_of()) else c.emit("reshape", [x], shape=shape)


@handler("aten.permute.default")
def _permute(c: Converter, x: Value, axes: list[int]) -> Value:
    order = [a % len(axes) for a in axes]
    return x if order == sorted(order) else c.emit("permute", [x], axes=order)


@handler("aten.transpose.int")
def _transpose(c: Converter, x: Value, a: int, b: int) -> Value:
    order = list(range(len(c.shape_of())))
    order[a], order[b] = order[b], order[a]
    return _permute(c, x, order)


@handler("aten.t.default", "aten.numpy_T.default")
def _t(c: Converter, x: Value) -> Value:
    return _permute(c, x, list(reversed(range(len(c.shape_of())))))


@handler("aten.expand.default")
def _expand(c: Converter, x: Value, *rest: Any, **options: Any) -> Value:
    shape = list(c.dims(c.fake().shape))
    same = isinstance(x, Edge) and shape == list(c.shape_of())
    return x if same else c.emit("expand", [x], shape=shape)


@handler("aten.slice.Tensor")
def _slice(c: Converter, x: Value, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    shape = c.shape_of()
    axis = axis % len(shape)
    size = shape[axis]
    begin: Any = 0 if start is None else start
    whole = end is None or end == size or (isinstance(end, int) and end >= 2**62)
    if whole and begin == 0 and step == 1:
        return x
    if isinstance(size, int) and not isinstance(begin, str) and not isinstance(end, str):
        begin, end, step = slice(begin, None if whole else end, step).indices(size)
    elif whole:
        end = 2**31 - 1
    return c.emit("slice", [x], axis=axis, start=begin, end=end, step=step)


@handler("aten.select.int")
def _select(c: Converter, x: Value, axis: int, index: Any) -> Value:
    shape = list(c.shape_of())
    axis = axis % len(shape)
    size = shape[axis]
    if isinstance(index, str):
        raise c.error("an index that depends on a size", got=index)
    index = index % size if isinstance(size, int) else index
    part = c.emit("slice", [x], axis=axis, start=index, end=index + 1 if index != -1 else 2**31 - 1, step=1)
    return c.emit("reshape", [part], shape=[d for i, d in enumerate(shape) if i != axis])


@handler("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.tensor_split.sections")
def _split(c: Converter, x: Value, sizes: Any, axis: int = 0) -> Value:
    parts, start = [], 0
    axis = axis % len(c.shape_of())
    for example in c.fake():
        size = example.shape[axis]
        if not isinstance(size, int):
            raise c.error("a split of an axis whose size is free", got=c.dim(size))
        parts.append(c.emit("slice", [x], axis=axis, start=start, end=start + size, step=1))
        start += size
    return parts


@handler("aten.unbind.int")
def _unbind(c: Converter, x: Value, axis: int = 0) -> Value:
    return [_select(c, x, axis, i) for i in range(len(c.fake()))]


@handler("aten.index_select.default")
def _index_select(c: Converter, x: Value, axis: int, index: Value) -> Value:
    if not isinstance(index, Const):
        assert c.current is not None
        return c.generic(str(c.current.target), [x, axis, index], {})
    return _select_many(c, x, axis % len(c.shape_of()), index)


def _select_many(c: Converter, x: Value, axis: int, index: Const) -> Value:
    size = c.shape_of()[axis]
    values = [int(v) for v in index.tensor.tolist()]
    if any(v < 0 for v in values) and not isinstance(size, int):
        raise c.error("a negative index of an axis whose size is free", got=values)
    return c.emit("index_select", [x], axis=axis, indices=[v % size if isinstance(size, int) else v for v in values])


@handler("aten.index.Tensor")
def _index(c: Converter, x: Value, indices: list[Value]) -> Value:
    used = [(i, v) for i, v in enumerate(indices) if v is not None]
    if len(used) == 1 and isinstance(used[0][1], Const) and used[0][1].tensor.ndim == 1 \
            and used[0][1].tensor.dtype != torch.bool:
        axis, index = used[0]
        return _select_many(c, x, axis, index)
    assert c.current is not None
    return c.generic(str(c.current.target), [x, indices], {})


@handler("aten.roll.default")
def _roll(c: Converter, x: Value, shifts: Any, axes: Any = ()) -> Value:
    if not axes:
        raise c.error("roll of a flattened tensor")
    for shift, axis in zip(shifts, axes, strict=True):
        shape = c.shape_of()
        axis = axis % len(shape)
        size = shape[axis]
        if not isinstance(size, int):
            raise c.error("roll of an axis whose size is free", got=size)
        x = c.emit("index_select", [x], axis=axis, indices=[(i - shift) % size for i in range(size)])
    return x


@handler("aten.flip.default")
def _flip(c: Converter, x: Value, axes: Any) -> Value:
    source = x
    for axis in axes:
        shape = c.shape_of()
        axis = axis % len(shape)
        size = shape[axis]
        if not isinstance(size, int):
            return c.generic("aten.flip.default", [source, list(axes)], {})
        x = c.emit("index_select", [x], axis=axis, indices=list(reversed(range(size))))
    return x


@handler("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def _channel_shuffle(c: Converter, x: Value, groups: int) -> Value:
    n, channels, *rest = c.shape_of()
    if not isinstance(channels, int):
        raise c.error("channel shuffle of a dynamic size")
    y = c.emit("reshape", [x], shape=[n, groups, channels // groups, *rest])
    y = c.emit("permute", [y], axes=[0, 2, 1, *range(3, 3 + len(rest))])
    return c.emit("reshape", [y], shape=[n, channels, *rest])


@handler("aten.pixel_shuffle.default")
def _pixel_shuffle(c: Converter, x: Value, r: int) -> Value:
    n, ch, h, w = c.shape_of()
    if not isinstance(ch, int):
        raise c.error("pixel shuffle of a dynamic size")
    y = c.emit("reshape", [x], shape=[n, ch // r**2, r, r, h, w])
    y = c.emit("permute", [y], axes=[0, 1, 4, 2, 5, 3])
    return c.emit("reshape", [y], shape=list(c.dims(c.fake().shape)))


@handler("aten.pad.default", "aten.constant_pad_nd.default")
def _pad(c: Converter, x: Value, pads: list[int], mode: str | float = "constant", value: float | None = None) -> Value:
    if not isinstance(mode, str):
        mode, value = "constant", float(mode)
    if not any(pads):
        return x
    return c.emit("pad", [x], pads=[int(p) for p in pads], mode=mode, value=float(value or 0.0))


@handler("aten.reflection_pad1d.default", "aten.reflection_pad2d.default")
def _reflect(c: Converter, x: Value, pads: list[int]) -> Value:
    return _pad(c, x, pads, "reflect")


@handler("aten.replication_pad1d.default", "aten.replication_pad2d.default")
def _replicate(c: Converter, x: Value, pads: list[int]) -> Value:
    return _pad(c, x, pads, "replicate")


def _reduce(op: str) -> Callable[..., Value]:
    def convert(c: Converter, x: Value, axes: Any = None, keepdim: bool = False, **options: Any) -> Value:
        rank = len(c.shape_of())
        chosen = list(range(rank)) if not axes else [a % rank for a in ([axes] if isinstance(axes, int) else axes)]
        return c.emit(op, [x], axes=sorted(chosen), keepdim=keepdim)

    return convert


handler("aten.mean.dim", "aten.mean.default")(_reduce("mean"))
handler("aten.sum.dim_IntList", "aten.sum.default")(_reduce("sum"))
