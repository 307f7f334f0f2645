"""What every canonical operation means in float: the definition that all other forms are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intact.errors import CaptureError
from intact.kernels import MOVES, UNARY_OPS
from intact.types.dims import Sizes, resolve_dim, resolve_shape

__all__ = ["FLOAT_OPS", "apply_activation", "run_float"]

Attrs = Mapping[str, Any]
FloatOp = Callable[[Sequence[Tensor], Mapping[str, Tensor], Attrs, Sizes], Tensor]


def apply_activation(x: Tensor, attrs: Attrs) -> Tensor:
    """The activation folded into a node: ``attrs["activation"]`` is ``[low, high]`` or absent."""
    bounds = attrs.get("activation")
    return x if bounds is None else x.clamp(bounds[0], bounds[1])


def _conv(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    x, begin, end = xs[0], a["pad_begin"], a["pad_end"]
    if begin != end:
        x = F.pad(x, [v for pair in zip(reversed(begin), reversed(end), strict=True) for v in pair])
        begin = [0] * len(begin)
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(begin) - 1]
    y: Tensor = conv(x, p["weight"], p.get("bias"), a["stride"], begin, a["dilation"], a["groups"])
    return y


def _conv_transpose(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(a["stride"]) - 1]
    y: Tensor = conv(
        xs[0], p["weight"], p.get("bias"), a["stride"], a["padding"], a["output_padding"],
        a["groups"], a["dilation"],
    )
    return y


def _batch_norm(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    return F.batch_norm(
        xs[0], p["mean"], p["var"], p.get("weight"), p.get("bias"), False, 0.0, a["eps"]
    )


def _avg_pool(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(a["kernel"]) - 1]
    y: Tensor = pool(
        xs[0], a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"]
    )
    return y


def _pad(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    if a["mode"] == "constant":
        return F.pad(xs[0], a["pads"], value=a["value"])
    return F.pad(xs[0], a["pads"], mode=a["mode"])


def _interpolate(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    return F.interpolate(
        xs[0], size=resolve_shape(a["size"], sizes), mode=a["mode"], align_corners=a["align_corners"],
    )


def _where(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    return torch.where(xs[0].to(torch.bool), xs[1], xs[2])


def _softmax(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Attrs, sizes: Sizes) -> Tensor:
    """What masks hide takes no part; their codes that hide are ``hidden`` (see :mod:`intact.graph.masks`)."""
    x, masks = xs[0], xs[1:]
    if not masks:
        return F.softmax(x, a["axis"])
    hidden = torch.zeros_like(x, dtype=torch.bool)
    for mask, code in zip(masks, a["hidden"], strict=True):
        hidden = hidden | (mask == bool(code) if mask.dtype == torch.bool else mask <= code)
    # finite, so that a row of which all is hidden has gradients
    y = F.softmax(x.masked_fill(hidden, torch.finfo(x.dtype).min), a["axis"])
    return y.masked_fill(hidden, 0.0)


FLOAT_OPS: dict[str, FloatOp] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "linear": lambda xs, p, a, b: F.linear(xs[0], p["weight"], p.get("bias")),
    "matmul": lambda xs, p, a, b: torch.matmul(xs[0], xs[1]),
    "add": lambda xs, p, a, b: xs[0] + xs[1],
    "sub": lambda xs, p, a, b: xs[0] - xs[1],
    "mul": lambda xs, p, a, b: xs[0] * xs[1],
    "div": lambda xs, p, a, b: xs[0] / xs[1],
    "minimum": lambda xs, p, a, b: torch.minimum(xs[0], xs[1]),
    "maximum": lambda xs, p, a, b: torch.maximum(xs[0], xs[1]),
    "where": _where,
    "concat": lambda xs, p, a, b: torch.cat(list(xs), a["axis"]),
    "avg_pool": _avg_pool,
    "mean": lambda xs, p, a, b: xs[0].mean(a["axes"], keepdim=a["keepdim"]),
    "sum": lambda xs, p, a, b: xs[0].sum(a["axes"], keepdim=a["keepdim"]),
    "softmax": _softmax,
    "log_softmax": lambda xs, p, a, b: F.log_softmax(xs[0], a["axis"]),
    "layer_norm": lambda xs, p, a, b: F.layer_norm(
        xs[0], a["shape"], p.get("weight"), p.get("bias"), a["eps"]
    ),
    "group_norm": lambda xs, p, a, b: F.group_norm(
        xs[0], a["groups"], p.get("weight"), p.get("bias"), a["eps"]
    ),
    "prelu": lambda xs, p, a, b: F.prelu(xs[0], p["weight"]),
    "interpolate": _interpolate,
    "pad": _pad,
    "embedding": lambda xs, p, a, b: F.embedding(xs[0], p["weight"]),
    "constant": lambda xs, p, a, b: p["value"],
    "arange": lambda xs, p, a, s: torch.arange(resolve_dim(a["start"], s), resolve_dim(a["end"], s), a["step"]),
}


def run_float(
    op: str, xs: Sequence[Tensor], params: Mapping[str, Tensor], attrs: Attrs, sizes: Sizes
) -> Tensor:
    """One canonical operation in float, its folded activation included.

    Args:
        op: canonical name.
        xs: operands.
        params: role to tensor.
        attrs: the node's attributes.
        sizes: what the symbols of dynamic shapes are in this call.

    Raises:
        CaptureError: for an unknown operation.

    >>> run_float("relu", [torch.tensor([-1.0, 2.0])], {}, {}, {})
    tensor([0., 2.])
    """
    if op in UNARY_OPS:
        return UNARY_OPS[op](xs[0], attrs)
    if op in MOVES:
        return MOVES[op](xs[0], attrs, sizes)
    if op not in FLOAT_OPS:
        raise CaptureError("no float definition of this operation", got=op)
    return apply_activation(FLOAT_OPS[op](xs, params, attrs, sizes), attrs)
