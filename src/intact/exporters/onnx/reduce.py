"""Reductions of torch in ONNX: extremes, moments, norms, sums along an axis, sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from intact.exporters.onnx.call import Call, aten

__all__: list[str] = []

_EXTREMES = {"max": ("ReduceMax", "ArgMax"), "min": ("ReduceMin", "ArgMin")}


def _extreme(name: str) -> None:
    values, indices = _EXTREMES[name]

    @aten(f"a{name}.default", f"{name}.default")
    def whole(c: Call) -> str:
        return c.reduce(values, c.tensor("self"), c.axes(), bool(c["keepdim"]))

    @aten(f"{name}.dim")
    def along(c: Call) -> str:
        if c.n.attrs["index"] == 0:
            return c.reduce(values, c.tensor("self"), c.axes(), c["keepdim"])
        return _arg(c, indices, c.axes()[0], c["keepdim"])

    @aten(f"arg{name}.default")
    def position(c: Call) -> str:
        if c["dim"] is not None:
            return _arg(c, indices, c.axes()[0], c["keepdim"])
        if c["keepdim"]:
            raise c.refuse("the position in a flattened tensor that keeps its axes has no ONNX form here")
        flat = c.op("Reshape", c.tensor("self"), c.integers([-1], "flat"))
        return c.op(indices, flat, axis=0, keepdims=0)


def _arg(c: Call, kind: str, axis: int, keepdim: bool) -> str:
    return c.op(kind, c.tensor("self"), axis=axis, keepdims=int(keepdim))


for _name in _EXTREMES:
    _extreme(_name)


def _quantifier(name: str, kind: str) -> None:
    @aten(f"{name}.default", f"{name}.dim", f"{name}.dims")
    def emit(c: Call) -> str:
        ones = c.cast(c.tensor("self", "bool"), "int32")
        return c.cast(c.reduce(kind, ones, c.axes(), bool(c["keepdim"])), "bool")


_quantifier("any", "ReduceMax")
_quantifier("all", "ReduceMin")


@aten("count_nonzero.default", "count_nonzero.dim_IntList")
def _count_nonzero(c: Call) -> str:
    return c.reduce("ReduceSum", c.cast(c.tensor("self", "bool"), "int64"), c.axes())


@aten("prod.default", "prod.dim_int")
def _prod(c: Call) -> str:
    return c.reduce("ReduceProd", c.tensor("self", c.dtype), c.axes(), bool(c["keepdim"]))


@aten("logsumexp.default")
def _logsumexp(c: Call) -> str:
    return c.reduce("ReduceLogSumExp", c.tensor("self", c.dtype), c.axes(), c["keepdim"])


@aten("cumsum.default")
def _cumsum(c: Call) -> str:
    return c.op("CumSum", c.tensor("self", c.dtype), c.number(c.axes()[0], "int64", "axis"))


# -- moments ------------------------------------------------------------------------------------


def _count(c: Call, axes: Sequence[int]) -> str:
    """How many values are reduced into one, as a float; counted at run time if the batch is among them."""
    sizes = [c.shape("self")[a] for a in axes]
    if all(isinstance(s, int) for s in sizes):
        return c.number(math.prod(int(s) for s in sizes), name="count")
    dims = c.op("Gather", c.op("Shape", c.tensor("self")), c.integers(axes, "axes"))
    return c.cast(c.op("ReduceProd", dims, keepdims=0), "float32")


def _correction(c: Call) -> float:
    if "correction" in c.arguments:
        return 1.0 if c["correction"] is None else float(c["correction"])
    return float(bool(c["unbiased"]))


def _variance(c: Call) -> str:
    x, axes = c.tensor("self"), c.axes()
    apart = c.op("Sub", x, c.reduce("ReduceMean", x, axes, True))
    total = c.reduce("ReduceSum", c.op("Mul", apart, apart), axes, bool(c["keepdim"]))
    count, correction = _count(c, axes), _correction(c)
    if correction:
        rest = c.op("Sub", count, c.number(correction, name="correction"))
        count = c.op("Max", rest, c.number(0.0, name="zero"))
    return c.op("Div", total, count)


@aten("var.default", "var.dim", "var.correction")
def _var(c: Call) -> str:
    return _variance(c)


@aten("std.default", "std.dim", "std.correction")
def _std(c: Call) -> str:
    return c.op("Sqrt", _variance(c))


@aten("var_mean.default", "var_mean.dim", "var_mean.correction", "std_mean.default", "std_mean.dim",
      "std_mean.correction")
def _with_mean(c: Call) -> str:
    if c.n.attrs["index"] == 1:
        return c.reduce("ReduceMean", c.tensor("self"), c.axes(), bool(c["keepdim"]))
    return _std(c) if "std" in c.n.attrs["target"] else _variance(c)


# -- norms --------------------------------------------------------------------------------------


@aten("linalg_vector_norm.default", "norm.Scalar", "norm.ScalarOpt_dim")
def _vector_norm(c: Call) -> str:
    x, axes, keepdim = c.tensor("self", c.dtype), c.axes(), bool(c["keepdim"])
    order = next((v for v in (c["ord"], c["p"]) if v is not None), 2)
    if order in (1, 2):
        return c.reduce(f"ReduceL{int(order)}", x, axes, keepdim) if axes else c.op("Abs", x)
    if math.isinf(order):
        return c.reduce("ReduceMax" if order > 0 else "ReduceMin", c.op("Abs", x), axes, keepdim)
    if order == 0:
        return c.reduce("ReduceSum", c.cast(c.cast(x, "bool"), c.dtype), axes, keepdim)
    powers = c.op("Pow", c.op("Abs", x), c.number(order, c.dtype, "order"))
    total = c.reduce("ReduceSum", powers, axes, keepdim)
    return c.op("Pow", total, c.number(1.0 / order, c.dtype, "root"))


@aten("cosine_similarity.default")
def _cosine(c: Call) -> str:
    rank = max(len(c.shape("x1")), len(c.shape("x2")))
    axes = [c["dim"] % rank]
    a, b = c.tensor("x1"), c.tensor("x2")
    least = c.number(c["eps"], name="eps")
    norms = [c.op("Max", c.reduce("ReduceL2", v, axes, True), least) for v in (a, b)]
    parts = [c.op("Div", v, n) for v, n in zip((a, b), norms, strict=True)]
    return c.reduce("ReduceSum", c.op("Mul", *parts), axes)


@aten("rms_norm.default")
def _rms_norm(c: Call) -> str:
    x, rank = c.tensor("input"), len(c.n.shape)
    axes = list(range(rank - len(c["normalized_shape"]), rank))
    eps = 2.0**-23 if c["eps"] is None else c["eps"]
    mean = c.reduce("ReduceMean", c.op("Mul", x, x), axes, True)
    y = c.op("Div", x, c.op("Sqrt", c.op("Add", mean, c.number(eps, name="eps"))))
    return y if c["weight"] is None else c.op("Mul", y, c.tensor("weight"))


@aten("instance_norm.default")
def _instance_norm(c: Call) -> str:
    channels = c.n.shape[1]
    weight, bias = (c.tensor(k) if c[k] is not None else c.b.const(
        f"{c.n.name}:{k}", [v] * int(channels), "float32") for k, v in (("weight", 1.0), ("bias", 0.0)))
    if c["use_input_stats"]:
        return c.op("InstanceNormalization", c.tensor("input"), weight, bias, epsilon=c["eps"])
    return c.op("BatchNormalization", c.tensor("input"), weight, bias, c.tensor("running_mean"),
                c.tensor("running_var"), epsilon=c["eps"])


# -- order --------------------------------------------------------------------------------------


def _sorted(c: Call, axis: int, largest: bool, output: int, k: int | None = None) -> str:
    x, size = c.tensor("self"), c.shape("self")[axis]
    if k is not None or isinstance(size, int):
        count = c.integers([k if k is not None else int(size)], "k")
    else:
        count = c.op("Shape", x, start=axis, end=axis + 1)
    return c.op("TopK", x, count, output=output, axis=axis, largest=int(largest), sorted=1)


def _axis(c: Call) -> int:
    return int(c["dim"]) % len(c.shape("self"))


@aten("topk.default")
def _topk(c: Call) -> str:
    return _sorted(c, _axis(c), c["largest"], c.n.attrs["index"], int(c["k"]))


@aten("sort.default", "sort.stable")
def _sort(c: Call) -> str:
    return _sorted(c, _axis(c), c["descending"], c.n.attrs["index"])


@aten("argsort.default", "argsort.stable")
def _argsort(c: Call) -> str:
    return _sorted(c, _axis(c), c["descending"], 1)
