"""Float operations in ONNX: what the plan leaves in float, and whole float models to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intact.errors import ExportError
from intact.exporters.builder import Builder, onnx_type, place
from intact.exporters.leaves.forms import LEAF_FORMS
from intact.exporters.leaves.recurrent import recurrent_node
from intact.exporters.onnx import elementwise, index, reduce  # noqa: F401  (they register their forms)
from intact.exporters.onnx.call import ATEN, call
from intact.exporters.onnx.ops import MOVES, UNARY, avg_pool_attrs, clip, conv_attrs, pad, resize
from intact.graph import Node
from intact.types import QTensor

__all__ = ["EXPORTABLE", "FLOAT", "emit_float", "unsupported"]

Emit = Callable[[Builder, Node, list[str]], str]


def _params(b: Builder, n: Node, *roles: str) -> list[str]:
    return [b.const(n.params[r], b.params[n.params[r]]) for r in roles if r in n.params]


def _op(kind: str, *roles: str, **fixed: Any) -> Emit:
    return lambda b, n, xs: b.op(kind, [*xs, *_params(b, n, *roles)], f"{n.name}:{kind}", name=n.name, **fixed)


def _conv(b: Builder, n: Node, xs: list[str]) -> str:
    return b.op("Conv", [*xs, *_params(b, n, "weight", "bias")], f"{n.name}:conv", name=n.name, **conv_attrs(n.attrs))


def _conv_transpose(b: Builder, n: Node, xs: list[str]) -> str:
    a = n.attrs
    return b.op("ConvTranspose", [*xs, *_params(b, n, "weight", "bias")], f"{n.name}:conv", name=n.name,
                strides=a["stride"], pads=[*a["padding"], *a["padding"]], output_padding=a["output_padding"],
                dilations=a["dilation"], group=a["groups"])


def _linear(b: Builder, n: Node, xs: list[str]) -> str:
    if len(n.shape) == 2:
        return b.op("Gemm", [*xs, *_params(b, n, "weight", "bias")], f"{n.name}:gemm", name=n.name, transB=1)
    name = n.params["weight"]
    weight = b.const(f"{name}:transposed", b.params[name].detach().t().contiguous())
    y = b.op("MatMul", [*xs, weight], f"{n.name}:matmul", name=n.name)
    return b.op("Add", [y, *_params(b, n, "bias")], f"{n.name}:bias") if "bias" in n.params else y


def _batch_norm(b: Builder, n: Node, xs: list[str]) -> str:
    mean = b.params[n.params["mean"]]
    ones, zeros = np.ones(mean.shape, np.float32), np.zeros(mean.shape, np.float32)
    weight = _params(b, n, "weight") or [b.const(f"{n.name}:ones", ones)]
    bias = _params(b, n, "bias") or [b.const(f"{n.name}:zeros", zeros)]
    return b.op("BatchNormalization", [*xs, *weight, *bias, *_params(b, n, "mean", "var")], f"{n.name}:norm",
                name=n.name, epsilon=n.attrs["eps"])


def _layer_norm(b: Builder, n: Node, xs: list[str]) -> str:
    shape = n.attrs["shape"]
    weight = _params(b, n, "weight") or [b.const(f"{n.name}:ones", np.ones(shape, np.float32))]
    return b.op("LayerNormalization", [*xs, *weight, *_params(b, n, "bias")], f"{n.name}:norm", name=n.name,
                axis=-len(shape), epsilon=n.attrs["eps"])


def _group_norm(b: Builder, n: Node, xs: list[str]) -> str:
    channels = n.shape[1]
    weight = _params(b, n, "weight") or [b.const(f"{n.name}:ones", np.ones(channels, np.float32))]
    bias = _params(b, n, "bias") or [b.const(f"{n.name}:zeros", np.zeros(channels, np.float32))]
    return b.op("GroupNormalization", [*xs, *weight, *bias], f"{n.name}:norm", name=n.name,
                num_groups=n.attrs["groups"], epsilon=n.attrs["eps"])


def _reduce(kind: str) -> Emit:
    def emit(b: Builder, n: Node, xs: list[str]) -> str:
        axes = b.const(f"{n.name}:axes", np.array(n.attrs["axes"], np.int64))
        return b.op(kind, [*xs, axes], f"{n.name}:reduced", name=n.name, keepdims=int(n.attrs["keepdim"]))

    return emit


def _axis(kind: str) -> Emit:
    return lambda b, n, xs: b.op(kind, xs, f"{n.name}:{kind}", name=n.name, axis=n.attrs["axis"])


def _interpolate(b: Builder, n: Node, xs: list[str]) -> str:
    return resize(b, n, xs[0])


def _cast(b: Builder, x: str, dtype: str, base: str) -> str:
    return b.op("Cast", [x], base, to=onnx_type(dtype))


def _where(b: Builder, n: Node, xs: list[str]) -> str:
    condition = xs[0]
    if b.graph[n.inputs[0]].dtype != "bool":
        condition = _cast(b, condition, "bool", f"{n.name}:condition")
    return b.op("Where", [condition, *xs[1:]], f"{n.name}:where", name=n.name)


def _constant(b: Builder, n: Node, xs: list[str]) -> str:
    return b.const(f"{n.name}:value", b.params[n.params["value"]])


def _arange(b: Builder, n: Node, xs: list[str]) -> str:
    none = b.const("none", np.zeros(0, np.int64))
    bounds = [b.op("Reshape", [b.size(n.attrs[k]), none], f"{n.name}:{k}") for k in ("start", "end")]
    return b.op("Range", [*bounds, b.const(f"{n.name}:step", np.array(n.attrs["step"], np.int64))], f"{n.name}:range",
                name=n.name)


def _prelu(b: Builder, n: Node, xs: list[str]) -> str:
    slope = b.params[n.params["weight"]].detach().reshape(-1, *[1] * (len(n.shape) - 2))
    return b.op("PRelu", [*xs, b.const(f"{n.name}:slope", slope)], f"{n.name}:prelu", name=n.name)


def _embedding(b: Builder, n: Node, xs: list[str]) -> str:
    if n.name in b.tables:
        return _rows(b, n, xs[0], b.tables[n.name])
    return b.op("Gather", [*_params(b, n, "weight"), *xs], f"{n.name}:rows", name=n.name, axis=0)


def _rows(b: Builder, n: Node, ids: str, table: QTensor) -> str:
    """Rows of codes, and of scales: ``DequantizeLinear`` would make the whole table float in every call."""
    name, q = n.params["weight"], table.qparams

    def looked_up(values: Tensor, what: str) -> str:
        if not values.ndim:
            return b.const(f"{name}:{what}", values)
        column = b.const(f"{name}:{what}:rows", values.reshape(-1, 1))
        return b.op("Gather", [column, ids], f"{n.name}:{what}", axis=0)

    codes = b.op("Gather", [b.const(f"{name}:codes", table.codes), ids], f"{n.name}:codes", name=n.name, axis=0)
    rows = b.op("Cast", [codes], f"{n.name}:wide", to=onnx_type("float32"))
    if bool(q.zero_point.any()):
        rows = b.op("Sub", [rows, looked_up(q.zero_point.to(torch.float32), "zero_point")], f"{n.name}:centred")
    return b.op("Mul", [rows, looked_up(q.scale, "scale")], f"{n.name}:rows")


def _avg_pool(b: Builder, n: Node, xs: list[str]) -> str:
    """Windows that stick out of a padded image count what is inside: the padding is made first, and then counts."""
    a = n.attrs
    if not (a["ceil_mode"] and a["count_include_pad"]):
        return b.op("AveragePool", xs, f"{n.name}:pool", name=n.name, **avg_pool_attrs(a))
    rank, padding = len(n.shape), a["padding"]
    ends = [0] * (rank - len(padding)) + list(padding)
    x = b.op("Pad", [*xs, b.const(f"{n.name}:pads", np.array([*ends, *ends], np.int64))], f"{n.name}:padded")
    plain = {**a, "padding": [0] * len(padding), "count_include_pad": False}
    y = b.op("AveragePool", [x], f"{n.name}:pool", name=n.name, **avg_pool_attrs(plain))
    # torch makes no window that starts in the padding behind the image
    axes = range(rank - len(padding), rank)
    parts = [b.const(f"{n.name}:{k}", np.array(v, np.int64)) for k, v in (
        ("start", [0] * len(axes)), ("end", [n.shape[i] for i in axes]), ("axes", list(axes)))]
    return b.op("Slice", [y, *parts], f"{n.name}:windows")


#: canonical operation -> operator(s)
FLOAT: dict[str, Emit] = {
    "conv": _conv, "conv_transpose": _conv_transpose, "linear": _linear, "matmul": _op("MatMul"),
    "batch_norm": _batch_norm, "layer_norm": _layer_norm, "group_norm": _group_norm,
    "add": _op("Add"), "sub": _op("Sub"), "mul": _op("Mul"), "div": _op("Div"), "minimum": _op("Min"),
    "maximum": _op("Max"), "where": _where, "concat": _axis("Concat"), "softmax": _axis("Softmax"),
    "log_softmax": _axis("LogSoftmax"), "mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"),
    "interpolate": _interpolate, "constant": _constant, "arange": _arange, "prelu": _prelu, "embedding": _embedding,
    "avg_pool": _avg_pool,
    "pad": lambda b, n, xs: pad(b, n, xs[0], np.array(n.attrs["value"], np.float32)),
}
#: quantized layers, which no plan has
LEAVES: dict[str, Emit] = {**LEAF_FORMS, "leaf_recurrent": recurrent_node}


#: dtypes of these operations' operands follow the result, as torch promotes them
_PROMOTING = frozenset({"add", "sub", "mul", "div", "minimum", "maximum", "concat", "matmul", "sum", *UNARY})
EXPORTABLE = frozenset({"input", *FLOAT, *UNARY, *MOVES, *ATEN})


def unsupported(n: Node) -> str | None:
    """Why a node that runs in float has no ONNX form, or None."""
    if n.op == "opaque":
        return "its module could not be captured"
    name = n.attrs["target"] if n.op == "aten" else n.op
    return None if name in EXPORTABLE or name in LEAVES else f"{name} has no ONNX form here"


def emit_float(b: Builder, n: Node, xs: list[str]) -> str:
    """Append a float operation, its folded activation included.

    Raises:
        ExportError: if it has no ONNX form.
    """
    reason = unsupported(n)
    if reason is not None:
        raise ExportError("an operation cannot be exported", where=place(n), got=reason,
                          fix="exclude the module from the exported part")
    if n.op in _PROMOTING or n.op == "where":
        free = 1 if n.op == "where" else 0  # the condition
        xs = [*xs[:free], *(x if b.graph[i].dtype == n.dtype else _cast(b, x, n.dtype, f"{n.name}:cast")
                            for i, x in list(zip(n.inputs, xs, strict=True))[free:])]
    if n.op in UNARY:
        return UNARY[n.op](b, n, xs[0])
    if n.op in MOVES:
        return MOVES[n.op](b, n, xs[0])
    if n.op == "aten":
        return call(b, n, xs)
    if n.op in LEAVES:
        return LEAVES[n.op](b, n, xs)
    y = FLOAT[n.op](b, n, xs)
    bounds = n.attrs.get("activation")
    return y if bounds is None else clip(b, n, y, bounds[0], bounds[1])
