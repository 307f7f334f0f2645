"""Whether every node of a saved graph gives the shape and the dtype that it declares, found without memory.

Common operations have a rule below: torch's meta device, which the others run on, first imports for seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from intact.engine.qmodel import QModel
from intact.engine.readers import brief
from intact.errors import ArtifactError, IntactError
from intact.graph import FloatModel, Node
from intact.graph.float_model import run_node
from intact.graph.free import limits_of
from intact.kernels import UNARY_OPS
from intact.types.dims import BATCH, Sizes, resolve_dim, resolve_shape

__all__ = ["RULES", "check_shapes"]

Shape = tuple[int, ...]
Rule = Callable[[Sequence[Shape], Mapping[str, Shape], Mapping[str, Any], Sizes], Shape | None]

#: primes that no fixed dimension happens to be
_BATCH, _FREE = 8191, (4093, 5003, 6007, 7001)
#: what torch raises when shapes or arguments do not fit
_REFUSALS = (RuntimeError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError,
             ValueError, IntactError)


def check_shapes(q: QModel, *, foreign: bool = False) -> None:
    """Check the declared shape and dtype of every node against those of its operands.

    Args:
        q: a model.
        foreign: it comes from a file: what an operation by name declares is believed, for torch can crash on
            arguments that nobody would write, even where it only computes a shape.

    Raises:
        ArtifactError: for the first node whose operands, parameters, attributes and output do not fit together.

    >>> import torch, intact.api as intact
    >>> check_shapes(intact.quantize(torch.nn.Linear(4, 2), [torch.randn(16, 4)]))
    """
    params = _blank_params(q)
    holder = FloatModel(q.graph, params, q.signature, {})
    for sizes in _points(q):
        _check_at(q, holder, sizes, foreign)


def _points(q: QModel) -> list[dict[str, int]]:
    """Sizes to look at: one batch; with free axes three, for a size may be a quotient."""
    limits = limits_of(q.graph)
    free = [name for name in limits if name != BATCH]
    return [{BATCH: _BATCH, **{name: _within(_FREE[i % len(_FREE)] + i - step, *limits[name])
                               for i, name in enumerate(free)}} for step in ((0, 1, 3) if free else (0,))]


def _within(size: int, low: int, high: int | None) -> int:
    return size if high is None or size <= high else low + size % (high - low + 1)


def _check_at(q: QModel, holder: FloatModel, sizes: Sizes, foreign: bool) -> None:
    params = holder.params
    edges: dict[str, tuple[Shape, str]] = {}
    for node in q.graph:
        where = f"node {brief(node.name)}"
        try:
            declared = (tuple(resolve_shape(node.shape, sizes)), node.dtype)
        except IntactError as error:
            raise ArtifactError("a size of no input", where=where, got=brief(node.shape)) from error
        if node.op != "input" and not (foreign and node.op == "aten"):
            xs = [edges[i] for i in node.inputs]
            try:
                found = _by_rule(node, xs, params, sizes) or _by_torch(holder, node, xs, sizes)
            except _REFUSALS as error:
                raise ArtifactError("the shapes of a node do not fit together", where=where,
                                    got=brief(str(error).partition("\n")[0])) from None
            if found != declared:
                raise ArtifactError("a node does not give what it declares", where=where, got=brief(declared),
                                    allowed=brief(found))
        edges[node.name] = declared


def _blank_params(q: QModel) -> dict[str, Tensor]:
    """Every parameter as a tensor without memory; weights and biases have the shapes of their codes."""
    params = {k: torch.empty(v.shape, dtype=v.dtype, device="meta") for k, v in q.float_params.items()}
    for node in q.graph:
        b = q.bindings.get(node.name)
        if b is not None and b.weight is not None:
            params[node.params["weight"]] = torch.empty(b.weight.codes.shape, device="meta")
        if b is not None and b.bias is not None:
            params[node.params["bias"]] = torch.empty(b.bias.shape, device="meta")
        if node.name in q.tables:
            params[node.params["weight"]] = torch.empty(q.tables[node.name].codes.shape, device="meta")
    return params


def _by_rule(node: Node, xs: Sequence[tuple[Shape, str]], params: Mapping[str, Tensor], sizes: Sizes
             ) -> tuple[Shape, str] | None:
    """Shape and dtype by a rule; None if there is none for these operands."""
    used = {role: params[name] for role, name in node.params.items()}
    if node.op == "arange":
        a = node.attrs
        return (len(range(resolve_dim(a["start"], sizes), resolve_dim(a["end"], sizes), a["step"])),), "int64"
    if node.op == "constant":
        return tuple(used["value"].shape), str(used["value"].dtype).removeprefix("torch.")
    dtypes = {dtype for _, dtype in xs} | {str(p.dtype).removeprefix("torch.") for p in used.values()}
    if node.op not in RULES or len(dtypes) != 1 or not (dtypes <= _FLOATS or node.op in _ANY_DTYPE):
        return None
    shape = RULES[node.op]([s for s, _ in xs], {r: tuple(p.shape) for r, p in used.items()}, node.attrs, sizes)
    return None if shape is None else (shape, dtypes.pop())


def _by_torch(holder: FloatModel, node: Node, xs: Sequence[tuple[Shape, str]], sizes: Sizes) -> tuple[Shape, str]:
    """Shape and dtype from torch's meta device: shapes without memory."""
    blanks = [torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for shape, dtype in xs]
    plain = replace(node, attrs={k: v for k, v in node.attrs.items() if k != "activation"})
    with torch.no_grad():
        y = run_node(holder, plain, blanks, sizes)
    return tuple(y.shape), str(y.dtype).removeprefix("torch.")


# -- rules: shapes of operands, shapes of parameters, attributes, symbols -> shape -------------


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _broadcast(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    rank = max(map(len, xs))
    wide = [(1,) * (rank - len(x)) + x for x in xs]
    found = [{d for d in dims if d != 1} for dims in zip(*wide, strict=True)]
    _need(all(len(s) <= 1 for s in found), f"{list(xs)} do not broadcast")
    return tuple(s.pop() if s else 1 for s in found)


def _windows(sizes: Shape, kernel: Sequence[int], a: Mapping[str, Any], begin: Sequence[int], end: Sequence[int],
             dilation: Sequence[int], ceil: bool = False) -> Shape:
    """Number of windows along each spatial axis (the documentation of torch.nn.MaxPool2d)."""
    _need(len(sizes) == len(kernel) == len(begin), "the number of spatial axes does not fit")
    found = []
    for n, k, s, lo, hi, d in zip(sizes, kernel, a["stride"], begin, end, dilation, strict=True):
        span = n + lo + hi - d * (k - 1) - 1
        _need(span >= 0, f"a window of {k} does not fit into {n}")
        count = span // s + 1
        if ceil and span % s and count * s < n + lo:
            count += 1
        found.append(count)
    return tuple(found)


def _conv(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    (x,), w, groups = xs, p["weight"], a["groups"]
    _need(len(x) == len(w) == 2 + len(a["stride"]), f"operand {x}, weight {w}, stride {a['stride']}")
    _need(x[1] == w[1] * groups and w[0] % groups == 0, f"operand {x}, weight {w}, groups {groups}")
    _need(p.get("bias", w[:1]) == w[:1], f"bias {p.get('bias')}, weight {w}")
    return (x[0], w[0], *_windows(x[2:], w[2:], a, a["pad_begin"], a["pad_end"], a["dilation"]))


def _linear(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    (x,), w = xs, p["weight"]
    _need(len(w) == 2 and len(x) > 0 and x[-1] == w[1], f"operand {x}, weight {w}")
    _need(p.get("bias", w[:1]) == w[:1], f"bias {p.get('bias')}, weight {w}")
    return (*x[:-1], w[0])


def _matmul(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape | None:
    x, y = xs
    if len(x) < 2 or len(y) < 2:
        return None
    _need(x[-1] == y[-2], f"operands {x} and {y}")
    return (*_broadcast([x[:-2], y[:-2]], p, a, sizes), x[-2], y[-1])


def _concat(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    axis, first = a["axis"], xs[0]
    _need(axis < len(first), f"axis {axis} of {first}")
    _need(all(x[:axis] + x[axis + 1 :] == first[:axis] + first[axis + 1 :] and len(x) == len(first) for x in xs),
          f"operands {list(xs)}")
    return (*first[:axis], sum(x[axis] for x in xs), *first[axis + 1 :])


def _reduce(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape | None:
    (x,), axes = xs, a["axes"]
    _need(all(i < len(x) for i in axes), f"axes {axes} of {x}")
    if not axes:
        return None  # torch then takes all of them
    return tuple(1 if i in axes else d for i, d in enumerate(x) if a["keepdim"] or i not in axes)


def _pool(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape | None:
    (x,), pad = xs, a["padding"]
    if len(x) != 2 + len(a["kernel"]):
        return None
    dilation = a.get("dilation", [1] * len(pad))
    _need(all(2 * lo <= k for lo, k in zip(pad, a["kernel"], strict=True)), "padding is more than half the kernel")
    return (*x[:2], *_windows(x[2:], a["kernel"], a, pad, pad, dilation, a["ceil_mode"]))


def _same_along(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    _need(a["axis"] < len(xs[0]), f"axis {a['axis']} of {xs[0]}")
    return xs[0]


def _layer_norm(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    (x,), shape = xs, tuple(a["shape"])
    _need(len(shape) <= len(x) and x[len(x) - len(shape) :] == shape, f"normalised shape {shape} of {x}")
    _need(all(s == shape for s in p.values()), f"parameters {dict(p)} for {shape}")
    return x


def _resize(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    (x,), axes = xs, {"linear": 1, "bilinear": 2, "bicubic": 2}.get(a["mode"], len(a["size"]))
    source, size = (tuple(resolve_shape(a[k], sizes)) for k in ("source", "size"))
    _need(x[2:] == source and axes == len(size), f"{x} from {source} to {size}")
    return (*x[:2], *size)


def _reshape(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    shape = tuple(resolve_shape(a["shape"], sizes))
    _need(math.prod(shape) == math.prod(xs[0]), f"{xs[0]} to {shape}")
    return shape


def _permute(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    _need(sorted(a["axes"]) == list(range(len(xs[0]))), f"axes {a['axes']} of {xs[0]}")
    return tuple(xs[0][i] for i in a["axes"])


def _slice(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    x = _same_along(xs, p, a, sizes)
    start, end = resolve_dim(a["start"], sizes), resolve_dim(a["end"], sizes)
    size = len(range(*slice(start, end, a["step"]).indices(x[a["axis"]])))
    return (*x[: a["axis"]], size, *x[a["axis"] + 1 :])


def _index_select(xs: Sequence[Shape], p: Mapping[str, Shape], a: Mapping[str, Any], sizes: Sizes) -> Shape:
    x = _same_along(xs, p, a, sizes)
    _need(max(a["indices"], default=0) < x[a["axis"]], f"an index is beyond the end of {x}")
    return (*x[: a["axis"]], len(a["indices"]), *x[a["axis"] + 1 :])


RULES: dict[str, Rule] = {
    **{op: lambda xs, p, a, b: xs[0] for op in UNARY_OPS},
    **dict.fromkeys(("add", "sub", "mul", "div", "minimum", "maximum"), _broadcast),
    **dict.fromkeys(("mean", "sum"), _reduce), **dict.fromkeys(("max_pool", "avg_pool"), _pool),
    **dict.fromkeys(("softmax", "log_softmax"), _same_along),
    **dict.fromkeys(("interpolate", "interpolate_nearest"), _resize),
    "conv": _conv, "linear": _linear, "matmul": _matmul, "concat": _concat, "layer_norm": _layer_norm,
    "reshape": _reshape, "permute": _permute, "slice": _slice, "index_select": _index_select,
}
_FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
_ANY_DTYPE = frozenset({"concat", "reshape", "permute", "slice", "index_select", "interpolate_nearest"})
