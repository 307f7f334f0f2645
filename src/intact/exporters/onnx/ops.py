"""Operations that look the same in ONNX on floats and on dequantized codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from intact.exporters.builder import Builder
from intact.graph import Node
from intact.types.dims import Dim, ratio

__all__ = ["MOVES", "UNARY", "avg_pool_attrs", "conv_attrs", "resize"]

Attrs = Mapping[str, Any]


def conv_attrs(a: Attrs) -> dict[str, Any]:
    """Conv attributes."""
    return {"strides": a["stride"], "pads": [*a["pad_begin"], *a["pad_end"]], "dilations": a["dilation"],
            "group": a["groups"]}


def avg_pool_attrs(a: Attrs) -> dict[str, Any]:
    """AveragePool attributes."""
    return {"kernel_shape": a["kernel"], "strides": a["stride"], "pads": [*a["padding"], *a["padding"]],
            "ceil_mode": int(a["ceil_mode"]), "count_include_pad": int(a["count_include_pad"])}


def _resize_attrs(a: Attrs) -> dict[str, Any]:
    """Resize attributes of a (bi)linear or bicubic interpolation."""
    corners = "align_corners" if a["align_corners"] else "pytorch_half_pixel"
    if a["mode"] == "bicubic":
        return {"mode": "cubic", "coordinate_transformation_mode": corners, "cubic_coeff_a": -0.75}
    return {"mode": "linear", "coordinate_transformation_mode": corners}


def _scalar(b: Builder, node: Node, value: float, name: str = "value") -> str:
    return b.const(f"{node.name}:{name}", np.array(value, np.float32))


def _simple(kind: str, **attrs: Any) -> Callable[[Builder, Node, str], str]:
    return lambda b, n, x: b.op(kind, [x], f"{n.name}:{kind}", name=n.name, **attrs)


def _clamp(b: Builder, n: Node, x: str) -> str:
    low, high = (0.0, math.inf) if n.op == "relu" else (n.attrs["low"], n.attrs["high"])
    return clip(b, n, x, low, high)


def clip(b: Builder, n: Node, x: str, low: float, high: float) -> str:
    """Clip with infinite bounds left out; Relu where that is all."""
    if low == 0.0 and high == math.inf:
        return b.op("Relu", [x], f"{n.name}:relu")
    bounds = ["" if math.isinf(v) else _scalar(b, n, v, name) for v, name in ((low, "low"), (high, "high"))]
    return b.op("Clip", [x, *bounds] if bounds[1] else [x, bounds[0]], f"{n.name}:clip")


def _silu(b: Builder, n: Node, x: str) -> str:
    return b.op("Mul", [x, b.op("Sigmoid", [x], f"{n.name}:sigmoid")], f"{n.name}:silu", name=n.name)


def _rsqrt(b: Builder, n: Node, x: str) -> str:
    return b.op("Reciprocal", [b.op("Sqrt", [x], f"{n.name}:sqrt")], f"{n.name}:rsqrt", name=n.name)


def _scaled_elu(b: Builder, n: Node, x: str) -> str:
    """``scale * (max(x, 0) + alpha * (exp(input_scale * min(x, 0)) - 1))``; Exp gives the same at every position."""
    a = n.attrs
    y = b.op("Min", [x, _scalar(b, n, 0.0, "zero")], f"{n.name}:negative")
    if a["input_scale"] != 1.0:
        y = b.op("Mul", [y, _scalar(b, n, a["input_scale"], "input_scale")], f"{n.name}:within")
    y = b.op("Sub", [b.op("Exp", [y], f"{n.name}:exp"), _scalar(b, n, 1.0, "one")], f"{n.name}:less_one")
    if a["alpha"] != 1.0:
        y = b.op("Mul", [y, _scalar(b, n, a["alpha"], "alpha")], f"{n.name}:scaled")
    positive = b.op("Max", [x, _scalar(b, n, 0.0, "zero")], f"{n.name}:positive")
    name = None if a["scale"] != 1.0 else n.name
    y = b.op("Add", [positive, y], f"{n.name}:elu", name=name)
    if a["scale"] == 1.0:
        return y
    return b.op("Mul", [y, _scalar(b, n, a["scale"], "scale")], f"{n.name}:product", name=n.name)


def _scaled_softplus(b: Builder, n: Node, x: str) -> str:
    beta = _scalar(b, n, n.attrs["beta"], "beta")
    within = b.op("Mul", [x, beta], f"{n.name}:within")
    curved = b.op("Div", [b.op("Softplus", [within], f"{n.name}:softplus"), beta], f"{n.name}:curved")
    linear = b.op("Greater", [within, _scalar(b, n, n.attrs["threshold"], "threshold")], f"{n.name}:linear")
    return b.op("Where", [linear, x, curved], f"{n.name}:chosen", name=n.name)


def _log_sigmoid(b: Builder, n: Node, x: str) -> str:
    below = b.op("Softplus", [b.op("Neg", [x], f"{n.name}:minus")], f"{n.name}:softplus")
    return b.op("Neg", [below], f"{n.name}:log_sigmoid", name=n.name)


def _shrink(b: Builder, n: Node, x: str) -> str:
    bound = n.attrs["bound"]
    return b.op("Shrink", [x], f"{n.name}:shrink", name=n.name, lambd=bound, bias=bound * (n.op == "softshrink"))


def _tanhshrink(b: Builder, n: Node, x: str) -> str:
    return b.op("Sub", [x, b.op("Tanh", [x], f"{n.name}:tanh")], f"{n.name}:shrink", name=n.name)


def _threshold(b: Builder, n: Node, x: str) -> str:
    above = b.op("Greater", [x, _scalar(b, n, n.attrs["threshold"], "threshold")], f"{n.name}:above")
    return b.op("Where", [above, x, _scalar(b, n, n.attrs["value"])], f"{n.name}:chosen", name=n.name)


def _with_scalar(kind: str) -> Callable[[Builder, Node, str], str]:
    return lambda b, n, x: b.op(kind, [x, _scalar(b, n, n.attrs["value"])], f"{n.name}:{kind}", name=n.name)


#: function of one value -> float operator(s)
UNARY: dict[str, Callable[[Builder, Node, str], str]] = {
    "relu": _clamp, "clamp": _clamp, "silu": _silu, "rsqrt": _rsqrt,
    "leaky_relu": lambda b, n, x: b.op("LeakyRelu", [x], f"{n.name}:leaky", name=n.name, alpha=n.attrs["slope"]),
    "elu": lambda b, n, x: b.op("Elu", [x], f"{n.name}:elu", name=n.name, alpha=n.attrs["alpha"]),
    "gelu": lambda b, n, x: b.op("Gelu", [x], f"{n.name}:gelu", name=n.name, approximate=n.attrs["approximate"]),
    "scaled_elu": _scaled_elu, "scaled_softplus": _scaled_softplus, "log_sigmoid": _log_sigmoid,
    "hardshrink": _shrink, "softshrink": _shrink, "tanhshrink": _tanhshrink, "threshold": _threshold,
    "hardsigmoid": _simple("HardSigmoid", alpha=1.0 / 6.0, beta=0.5),
    "add_scalar": _with_scalar("Add"), "mul_scalar": _with_scalar("Mul"), "pow_scalar": _with_scalar("Pow"),
    **{op: _simple(kind) for op, kind in {
        "hardswish": "HardSwish", "sigmoid": "Sigmoid", "tanh": "Tanh", "mish": "Mish", "softplus": "Softplus",
        "softsign": "Softsign",
        "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "abs": "Abs", "neg": "Neg",
        "sin": "Sin", "cos": "Cos", "erf": "Erf"}.items()},
}


# -- moves: the same on float values and on codes -------------------------------------------


def _reshape(b: Builder, n: Node, x: str) -> str:
    return b.op("Reshape", [x, b.shape_const(n.attrs["shape"], n.name)], f"{n.name}:moved", name=n.name)


def _permute(b: Builder, n: Node, x: str) -> str:
    return b.op("Transpose", [x], f"{n.name}:moved", name=n.name, perm=n.attrs["axes"])


def _expand(b: Builder, n: Node, x: str) -> str:
    return b.op("Expand", [x, b.dynamic_shape(n.attrs["shape"], n.name)], f"{n.name}:moved", name=n.name)


def _slice(b: Builder, n: Node, x: str) -> str:
    a = n.attrs
    parts = [b.size(a[k]) if isinstance(a[k], str) else b.const(f"{n.name}:{k}", np.array([a[k]], np.int64))
             for k in ("start", "end", "axis", "step")]
    return b.op("Slice", [x, *parts], f"{n.name}:moved", name=n.name)


def _max_pool(b: Builder, n: Node, x: str) -> str:
    a = n.attrs
    return b.op("MaxPool", [x], f"{n.name}:moved", name=n.name, kernel_shape=a["kernel"], strides=a["stride"],
                pads=[*a["padding"], *a["padding"]], dilations=a["dilation"], ceil_mode=int(a["ceil_mode"]))


def _gather(b: Builder, n: Node, x: str, axis: int, indices: Sequence[int], last: bool) -> str:
    index = b.const(f"{n.name}:indices{axis}", np.array(indices, np.int64))
    return b.op("Gather", [x, index], f"{n.name}:moved", name=n.name if last else None, axis=axis)


def _index_select(b: Builder, n: Node, x: str) -> str:
    return _gather(b, n, x, n.attrs["axis"], n.attrs["indices"], True)


def _nearest(b: Builder, n: Node, x: str) -> str:
    source, size = n.attrs["source"], n.attrs["size"]
    scales = [1.0, 1.0, *(ratio(t, s) or 0.5 for s, t in zip(source, size, strict=True))]
    if all(s.is_integer() for s in scales):
        factors = b.const(f"{n.name}:scales", np.array(scales, np.float32))
        return b.op("Resize", [x, "", factors], f"{n.name}:moved", name=n.name, mode="nearest",
                    coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    for i, (s, t) in enumerate(zip(source, size, strict=True)):  # torch's own index arithmetic
        if isinstance(s, str) or isinstance(t, str):
            x = b.op("Gather", [x, _nearest_indices(b, s, t)], f"{n.name}:moved", axis=2 + i)
            continue
        index = np.minimum(np.floor(np.arange(t, dtype=np.float32) * np.float32(s / t)).astype(np.int64), s - 1)
        x = _gather(b, n, x, 2 + i, index.tolist(), i + 1 == len(source))
    return x


def _nearest_indices(b: Builder, source: Dim, size: Dim) -> str:
    """``floor(i * (source / size))`` in float32, with sizes that are read at run time."""
    none = b.const("none", np.zeros(0, np.int64))
    end, start, step = (b.op("Reshape", [b.size(v), none], "nearest:bound") for v in (size, 0, 1))
    wide = [b.op("Cast", [b.size(v)], "nearest:wide", to=TensorProto.DOUBLE) for v in (source, size)]
    factor = b.op("Cast", [b.op("Div", wide, "nearest:quotient")], "nearest:ratio", to=TensorProto.FLOAT)
    place = b.op("Cast", [b.op("Range", [start, end, step], "nearest:places")], "nearest:place", to=TensorProto.FLOAT)
    index = b.op("Cast", [b.op("Floor", [b.op("Mul", [place, factor], "nearest:at")], "nearest:floor")],
                 "nearest:index", to=TensorProto.INT64)
    return b.op("Min", [index, b.op("Sub", [b.size(source), b.size(1)], "nearest:last")], "nearest:indices")


def resize(b: Builder, n: Node, x: str) -> str:
    """A (bi)linear or bicubic interpolation, by factors; to sizes where they are free, or no factor gives them."""
    scales = [1.0, 1.0, *(ratio(t, s) or 0.5 for s, t in zip(n.attrs["source"], n.attrs["size"], strict=True))]
    sizes = list(zip(n.attrs["source"], n.attrs["size"], scales[2:], strict=True))
    free = any(isinstance(d, str) for source, size, _ in sizes for d in (source, size))
    other = not free and any(math.floor(s * float(np.float32(by))) != t for s, t, by in sizes)  # 5 by 1.4f is 6.9999998
    if other or (free and not all(s.is_integer() for s in scales)):
        operands = [x, "", "", b.dynamic_shape(n.shape, n.name)]
    else:
        operands = [x, "", b.const(f"{n.name}:scales", np.array(scales, np.float32))]
    return b.op("Resize", operands, f"{n.name}:resize", name=n.name, **_resize_attrs(n.attrs))


#: operation that only moves values -> operator(s), on floats or on codes
MOVES: dict[str, Callable[[Builder, Node, str], str]] = {
    "reshape": _reshape, "permute": _permute, "expand": _expand, "slice": _slice, "max_pool": _max_pool,
    "index_select": _index_select, "interpolate_nearest": _nearest,
}


def pad(b: Builder, n: Node, x: str, value: Any) -> str:
    """Pad; torch lists the last axis first, ONNX all begins and then all ends."""
    rank, pads = len(n.shape), n.attrs["pads"]
    begin, end = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        begin[rank - 1 - i], end[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    amounts = b.const(f"{n.name}:pads", np.array([*begin, *end], np.int64))
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[n.attrs["mode"]]
    constant = [b.const(f"{n.name}:value", value)] if mode == "constant" else []
    return b.op("Pad", [x, amounts, *constant], f"{n.name}:moved", name=n.name, mode=mode)
