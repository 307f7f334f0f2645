"""aten operations as canonical ones: convolutions, matrix products, normalisation, pooling, attention."""

from __future__ import annotations

import math
from typing import Any

import torch

from intact.graph.converter import Const, Converter, Edge, Value, handler

__all__ = ["pairs"]

#: what is added to a score that is hidden: no sum of it and a score is another number, and none is infinite
_HIDDEN = -1e30


def pairs(value: Any, n: int) -> list[int]:
    """A list of n ints from an int, a one-element list or a full list."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * n if len(values) == 1 else values)]


def _conv(c: Converter, n: int, x: Value, w: Value, b: Value, stride: Any, padding: Any,
          dilation: Any, groups: int) -> Edge:
    stride, dilation = pairs(stride, n), pairs(dilation, n)
    if isinstance(padding, str):
        kernel = w.tensor.shape[2:] if isinstance(w, Const) else ()
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        begin = [t // 2 for t in total]
        end = [t - s for t, s in zip(total, begin, strict=True)]
    else:
        begin = end = pairs(padding, n)
    return c.emit("conv", [x], {"weight": w, "bias": b}, stride=stride, pad_begin=begin, pad_end=end,
                  dilation=dilation, groups=groups)


def _register_convs() -> None:
    for n in (1, 2, 3):
        def conv(c: Converter, x: Value, w: Value, b: Value = None, stride: Any = 1, padding: Any = 0,
                 dilation: Any = 1, groups: int = 1, *, _n: int = n) -> Value:
            return _conv(c, _n, x, w, b, stride, padding, dilation, groups)

        def transpose(c: Converter, x: Value, w: Value, b: Value = None, stride: Any = 1,
                      padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
                      *, _n: int = n) -> Value:
            return c.emit("conv_transpose", [x], {"weight": w, "bias": b}, stride=pairs(stride, _n),
                          padding=pairs(padding, _n), output_padding=pairs(output_padding, _n),
                          groups=groups, dilation=pairs(dilation, _n))

        def max_pool(c: Converter, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                     dilation: Any = 1, ceil_mode: bool = False, *, _n: int = n) -> Value:
            kernel = pairs(kernel, _n)
            return c.emit("max_pool", [x], kernel=kernel, stride=pairs(stride, _n) if stride else kernel,
                          padding=pairs(padding, _n), dilation=pairs(dilation, _n), ceil_mode=ceil_mode)

        def avg_pool(c: Converter, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                     ceil_mode: bool = False, count_include_pad: bool = True,
                     divisor_override: Any = None, *, _n: int = n) -> Value:
            if divisor_override is not None:
                raise c.error("average pooling with divisor_override", got=divisor_override)
            kernel, rank = pairs(kernel, _n), len(c.shape_of())
            count_include_pad = count_include_pad and any(pairs(padding, _n))  # without padding it says nothing
            if list(c.shape_of()[-_n:]) == kernel and not any(pairs(padding, _n)):
                return c.emit("mean", [x], axes=list(range(rank - _n, rank)), keepdim=True)
            return c.emit("avg_pool", [x], kernel=kernel, stride=pairs(stride, _n) if stride else kernel,
                          padding=pairs(padding, _n), ceil_mode=ceil_mode,
                          count_include_pad=count_include_pad)

        def adaptive(c: Converter, x: Value, size: Any, *, _n: int = n) -> Value:
            return _adaptive_avg_pool(c, x, _n, pairs(size, _n))

        handler(f"aten.conv{n}d.default", f"aten.conv{n}d.padding")(conv)
        handler(f"aten.conv_transpose{n}d.default", f"aten.conv_transpose{n}d.input")(transpose)
        handler(f"aten.max_pool{n}d.default")(max_pool)
        handler(f"aten.avg_pool{n}d.default")(avg_pool)
        handler(f"aten.adaptive_avg_pool{n}d.default")(adaptive)


_register_convs()


def _adaptive_avg_pool(c: Converter, x: Value, n: int, size: list[int]) -> Value:
    spatial = list(c.shape_of()[-n:])
    if size == [1] * n and size != spatial:
        rank = len(c.shape_of())
        return c.emit("mean", [x], axes=list(range(rank - n, rank)), keepdim=True)
    if any(not isinstance(d, int) for d in spatial):
        raise c.error("adaptive pooling of a free size to several windows", got=spatial)
    known = [int(d) for d in spatial]
    if size == known:
        return x
    if all(d % s == 0 for d, s in zip(known, size, strict=True)):
        kernel = [d // s for d, s in zip(known, size, strict=True)]
        return c.emit("avg_pool", [x], kernel=kernel, stride=kernel, padding=[0] * n, ceil_mode=False,
                      count_include_pad=True)
    # windows of unequal size: one matrix product with a constant averaging matrix per axis
    y, rank = x, len(c.shape_of())
    for i, (d, s) in enumerate(zip(known, size, strict=True)):
        if d == s:
            continue
        axis = rank - n + i
        matrix = torch.zeros(d, s)
        for j in range(s):
            start, end = j * d // s, -((-(j + 1) * d) // s)
            matrix[start:end, j] = 1.0 / (end - start)
        order = [a for a in range(rank) if a != axis] + [axis]
        inverse = [order.index(a) for a in range(rank)]
        y = c.emit("permute", [y], axes=order)
        y = c.emit("matmul", [y, Const(matrix)])
        y = c.emit("permute", [y], axes=inverse)
    return y


@handler("aten.convolution.default")
def _convolution(c: Converter, x: Value, w: Value, b: Value, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int) -> Value:
    n = len(stride)
    if transposed:
        return c.emit("conv_transpose", [x], {"weight": w, "bias": b}, stride=pairs(stride, n),
                      padding=pairs(padding, n), output_padding=pairs(output_padding, n), groups=groups,
                      dilation=pairs(dilation, n))
    return _conv(c, n, x, w, b, stride, padding, dilation, groups)


@handler("aten.linear.default")
def _linear(c: Converter, x: Value, w: Value, b: Value = None) -> Value:
    return c.emit("linear", [x], {"weight": w, "bias": b})


@handler("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def _matmul(c: Converter, a: Value, b: Value) -> Value:
    if isinstance(b, Const) and b.tensor.ndim == 2 and isinstance(a, Edge):
        return c.emit("linear", [a], {"weight": Const(b.tensor.t().contiguous()), "bias": None})
    return c.emit("matmul", [a, b])


@handler("aten.batch_norm.default")
def _batch_norm(c: Converter, x: Value, w: Value, b: Value, mean: Value, var: Value, training: bool,
                momentum: float, eps: float, cudnn: bool) -> Value:
    if mean is None or var is None:
        raise c.error("batch norm without running statistics", fix="set track_running_stats=True")
    return c.emit("batch_norm", [x], {"weight": w, "bias": b, "mean": mean, "var": var}, eps=eps,
                  momentum=momentum)


@handler("aten._native_batch_norm_legit_no_training.default")
def _batch_norm_eval(c: Converter, x: Value, w: Value, b: Value, mean: Value, var: Value,
                     momentum: float, eps: float) -> Value:
    y = c.emit("batch_norm", [x], {"weight": w, "bias": b, "mean": mean, "var": var}, eps=eps,
               momentum=momentum)
    return [y, None, None]


@handler("aten.layer_norm.default")
def _layer_norm(c: Converter, x: Value, shape: Any, w: Value = None, b: Value = None,
                eps: float = 1e-5, cudnn: bool = True) -> Value:
    return c.emit("layer_norm", [x], {"weight": w, "bias": b}, shape=[int(s) for s in shape], eps=eps)


@handler("aten.native_layer_norm.default")
def _native_layer_norm(c: Converter, x: Value, shape: Any, w: Value, b: Value, eps: float) -> Value:
    return [_layer_norm(c, x, shape, w, b, eps), None, None]


@handler("aten.group_norm.default")
def _group_norm(c: Converter, x: Value, groups: int, w: Value = None, b: Value = None,
                eps: float = 1e-5, cudnn: bool = True) -> Value:
    return c.emit("group_norm", [x], {"weight": w, "bias": b}, groups=groups, eps=eps)


@handler("aten.instance_norm.default")
def _instance_norm(c: Converter, x: Value, w: Value, b: Value, mean: Value, var: Value, use_input_stats: bool,
                   momentum: float, eps: float, cudnn: bool) -> Value:
    """A group for each channel; with running statistics a batch norm."""
    if not use_input_stats:
        return _batch_norm(c, x, w, b, mean, var, False, momentum, eps, cudnn)
    channels = c.shape_of()[1]
    if not isinstance(channels, int):
        raise c.error("instance norm of a free number of channels", got=channels)
    return c.emit("group_norm", [x], {"weight": w, "bias": b}, groups=channels, eps=eps)


@handler("aten.softmax.int", "aten._softmax.default")
def _softmax(c: Converter, x: Value, axis: int, *rest: Any) -> Value:
    return c.emit("softmax", [x], axis=axis % len(c.shape_of()))


@handler("aten.log_softmax.int", "aten._log_softmax.default")
def _log_softmax(c: Converter, x: Value, axis: int, *rest: Any) -> Value:
    return c.emit("log_softmax", [x], axis=axis % len(c.shape_of()))


@handler("aten.prelu.default")
def _prelu(c: Converter, x: Value, w: Value) -> Value:
    if isinstance(w, Const) and w.tensor.numel() == 1:
        return c.emit("leaky_relu", [x], slope=float(w.tensor))
    return c.emit("prelu", [x], {"weight": w})


@handler("aten.embedding.default")
def _embedding(c: Converter, w: Value, ids: Value, *rest: Any, **options: Any) -> Value:
    return c.emit("embedding", [ids], {"weight": w})


@handler("aten.scaled_dot_product_attention.default")
def _attention(c: Converter, q: Value, k: Value, v: Value, mask: Value = None, dropout: float = 0.0,
               is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Value:
    """softmax(q k^T * scale + mask) v, as matrix products and a softmax."""
    q_shape, k_shape = c.shape_of(0), c.shape_of(1)
    if enable_gqa and q_shape[-3] != k_shape[-3]:
        k, v = (_every_head(c, x, q_shape[-3], c.shape_of(i)) for i, x in ((1, k), (2, v)))
        k_shape = (*k_shape[:-3], q_shape[-3], *k_shape[-2:])
    width = q_shape[-1]
    assert isinstance(width, int)
    factor = scale if scale is not None else 1.0 / math.sqrt(width)
    order = list(range(len(k_shape)))
    order[-2], order[-1] = order[-1], order[-2]
    # the factor goes to the query: one product over (tokens, width) instead of (tokens, tokens)
    q = c.emit("mul_scalar", [q], value=factor)
    scores = c.emit("matmul", [q, c.emit("permute", [k], axes=order)])
    if is_causal:
        scores = _causal(c, scores, q_shape[-2], k_shape[-2])
    elif mask is not None:
        scores = _add_mask(c, scores, mask)
    return c.emit("matmul", [c.emit("softmax", [scores], axis=len(q_shape) - 1), v])


def _every_head(c: Converter, x: Value, heads: Any, shape: tuple[Any, ...]) -> Value:
    """Keys or values of fewer heads, one for each head of the queries: neighbours share one."""
    if not (isinstance(heads, int) and isinstance(shape[-3], int)):
        raise c.error("grouped-query attention with a free number of heads", got=(heads, shape))
    shared = [i for i in range(shape[-3]) for _ in range(heads // shape[-3])]
    return c.emit("index_select", [x], axis=len(shape) - 3, indices=shared)


def _causal(c: Converter, scores: Edge, rows: Any, cols: Any) -> Value:
    """Scores of what comes later than the query are taken down; the mask of a free length is made in the call."""
    if isinstance(rows, int) and isinstance(cols, int):
        keep = torch.ones(rows, cols, dtype=torch.bool).tril()
        return c.emit("add", [scores, Const(torch.zeros(rows, cols).masked_fill_(~keep, _HIDDEN))])
    number = [c.emit("reshape", [c.emit("arange", dtype="int64", start=0, end=size, step=1)], shape=shape)
              for size, shape in ((rows, [rows, 1]), (cols, [1, cols]))]
    keep_edge = c.emit("aten", number, dtype="bool", target="aten.ge.Tensor", args=[{"input": 0}, {"input": 1}],
                       kwargs={}, index=None)
    mask = c.emit("where", [keep_edge, Const(torch.tensor(0.0)), Const(torch.tensor(_HIDDEN))])
    return c.emit("add", [scores, mask])


def _add_mask(c: Converter, scores: Edge, mask: Value) -> Edge:
    """Additive float mask, or a boolean one turned into 0 and what hides any score."""
    if isinstance(mask, Const):
        t = mask.tensor
        if t.dtype == torch.bool:
            t = torch.zeros(t.shape).masked_fill_(~t, _HIDDEN)
        return c.emit("add", [scores, Const(t.clamp(min=_HIDDEN))])
    assert c.current is not None
    arg = c.current.args[3] if len(c.current.args) > 3 else c.current.kwargs["attn_mask"]
    if arg.meta["val"].dtype == torch.bool:  # type: ignore[union-attr]
        mask = c.emit("where", [mask, Const(torch.tensor(0.0)), Const(torch.tensor(_HIDDEN))])
    return c.emit("add", [scores, mask])


@handler("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec", "aten.upsample_nearest3d.vec",
         "aten.upsample_nearest1d.default", "aten.upsample_nearest2d.default",
         "aten.upsample_nearest3d.default")
def _nearest(c: Converter, x: Value, size: Any = None, factors: Any = None, *rest: Any) -> Value:
    return c.emit("interpolate_nearest", [x], mode="nearest", align_corners=None, **_resize(c))


@handler("aten.upsample_bilinear2d.vec", "aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.default",
         "aten.upsample_bicubic2d.vec")
def _linear_resize(c: Converter, x: Value, size: Any, align_corners: bool, *rest: Any) -> Value:
    assert c.current is not None
    target = str(c.current.target)
    mode = "bicubic" if "bicubic" in target else "bilinear" if "bilinear" in target else "linear"
    return c.emit("interpolate", [x], mode=mode, align_corners=align_corners, **_resize(c))


def _resize(c: Converter) -> dict[str, Any]:
    before, after = c.shape_of()[2:], c.dims(c.fake().shape)[2:]
    return {"size": list(after), "source": list(before)}
