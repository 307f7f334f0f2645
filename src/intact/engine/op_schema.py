"""What each operation of a saved graph may look like: operands, parameter roles, types of attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from intact.engine.readers import brief
from intact.errors import ArtifactError
from intact.graph import Node
from intact.graph.generic import DTYPES, problem
from intact.graph.masks import LOWEST
from intact.kernels import UNARY_OPS
from intact.types.dims import is_dim

__all__ = ["DTYPES", "OPS", "OpSchema", "check_node"]

_LIST_LIMIT = 65536  # operands, or results, of one operation
_LARGEST = 2**31 - 1  # of a dimension, a stride, ...
_ELEMENTS = 2**40  # of a tensor, per sample


# -- attributes ---------------------------------------------------------------------------------


def _whole(low: int, high: int = _LARGEST) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and low <= v <= high


def _many(item: Callable[[Any], bool], most: int = _LARGEST) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list | tuple) and len(v) <= most and all(map(item, v))


def _number(v: Any) -> bool:
    return type(v) in (int, float) and not math.isnan(v)


def _dim(v: Any) -> bool:
    return _whole(0)(v) or is_dim(v)


@dataclass(frozen=True)
class _Kind:
    """What an attribute may be."""

    says: str
    holds: Callable[[Any], bool]


def _one_of(*values: Any) -> _Kind:
    return _Kind(" or ".join(map(repr, values)), lambda v: any(type(v) is type(o) and v == o for o in values))


_AXIS = _Kind("an axis", _whole(0, 15))
_AXES = _Kind("distinct axes", lambda v: _many(_whole(0, 15))(v) and len(set(v)) == len(v))
_COUNT = _Kind("an integer from 1", _whole(1))
_INDEX = _Kind("an integer", _whole(-(2**63), 2**63 - 1))
_INDICES = _Kind("integers from 0", _many(_whole(0)))
_PADS = _Kind("up to 6 integers", _many(_whole(-_LARGEST), 6))
_HIDDEN = _Kind("codes that hide", lambda v: _many(lambda c: type(c) is int and c in (LOWEST, 0, 1))(v))
_FLAG = _Kind("true or false", lambda v: type(v) is bool)
_NUMBER = _Kind("a number", _number)
_DIMS = _Kind('integers, or expressions such as "2*batch"', _many(_dim, 16))
_BOUND = _Kind("an integer or a size", lambda v: _whole(-(2**63), 2**63 - 1)(v) or is_dim(v))
_START = _Kind("a size", lambda v: _whole(0, 2**24)(v) or is_dim(v))
_SIZES = _Kind("1 to 3 sizes", lambda v: _many(_dim, 3)(v) and len(v) > 0 and 0 not in v)
_LIMITS = _Kind("{symbol: [low, high or null]}", lambda v: isinstance(v, Mapping) and all(
    is_dim(k) and _many(lambda n: n is None or _whole(1)(n), 2)(r) and len(r) == 2 and r[0] is not None
    and (r[1] is None or r[0] <= r[1]) for k, r in v.items()))
_FROM_1 = _Kind("1 to 8 integers from 1", lambda v: _many(_whole(1), 8)(v) and len(v) > 0)
_FROM_0 = _Kind("1 to 3 integers from 0", lambda v: _many(_whole(0), 3)(v) and len(v) > 0)
_RANGE = _Kind("[low, high]", lambda v: _many(_number, 2)(v) and len(v) == 2 and v[0] <= v[1])
_ANY = _Kind("an argument template", lambda v: True)
#: attributes with one entry for each spatial axis
_SPATIAL = frozenset({"stride", "pad_begin", "pad_end", "dilation", "kernel", "padding", "output_padding", "size",
                      "source"})


@dataclass(frozen=True)
class OpSchema:
    """Operands, parameter roles and attributes of one operation."""

    inputs: int = 1
    more: int = 0  # further operands, at most
    roles: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    attrs: Mapping[str, _Kind] = field(default_factory=dict)
    activation: bool = False  # may have a folded activation


_WINDOW = {"kernel": _FROM_1, "stride": _FROM_1, "padding": _FROM_0, "ceil_mode": _FLAG}
_REDUCE = {"axes": _AXES, "keepdim": _FLAG}
_RESIZE = {"size": _SIZES, "source": _SIZES}
_UNARY: dict[str, dict[str, _Kind]] = {
    "clamp": {"low": _NUMBER, "high": _NUMBER}, "leaky_relu": {"slope": _NUMBER}, "elu": {"alpha": _NUMBER},
    "gelu": {"approximate": _one_of("none", "tanh")},
    "scaled_elu": {"alpha": _NUMBER, "scale": _NUMBER, "input_scale": _NUMBER},
    "scaled_softplus": {"beta": _NUMBER, "threshold": _NUMBER},
    "threshold": {"threshold": _NUMBER, "value": _NUMBER},
    **{op: {"bound": _NUMBER} for op in ("hardshrink", "softshrink")},
    **{op: {"value": _NUMBER} for op in ("add_scalar", "mul_scalar", "pow_scalar")},
}

#: every operation that a saved graph may hold
OPS: dict[str, OpSchema] = {
    "input": OpSchema(0),
    "constant": OpSchema(0, roles=("value",)),
    "arange": OpSchema(0, attrs={"start": _START, "end": _START, "step": _COUNT}),
    "conv": OpSchema(1, 0, ("weight",), ("bias",), {
        "stride": _FROM_1, "pad_begin": _FROM_0, "pad_end": _FROM_0, "dilation": _FROM_1, "groups": _COUNT}, True),
    "conv_transpose": OpSchema(1, 0, ("weight",), ("bias",), {
        "stride": _FROM_1, "padding": _FROM_0, "output_padding": _FROM_0, "groups": _COUNT, "dilation": _FROM_1}, True),
    "linear": OpSchema(1, 0, ("weight",), ("bias",), {}, True),
    "batch_norm": OpSchema(1, 0, ("mean", "var"), ("weight", "bias"), {"eps": _NUMBER}),
    "layer_norm": OpSchema(1, 0, (), ("weight", "bias"), {"shape": _FROM_1, "eps": _NUMBER}),
    "group_norm": OpSchema(1, 0, (), ("weight", "bias"), {"groups": _COUNT, "eps": _NUMBER}),
    "prelu": OpSchema(1, 0, ("weight",)),
    "embedding": OpSchema(1, 0, ("weight",)),
    **{op: OpSchema(2, activation=True) for op in ("matmul", "add", "sub", "mul", "div")},
    **{op: OpSchema(2) for op in ("minimum", "maximum")},
    "where": OpSchema(3),
    "concat": OpSchema(1, _LIST_LIMIT, attrs={"axis": _AXIS}),
    "avg_pool": OpSchema(attrs={**_WINDOW, "count_include_pad": _FLAG}, activation=True),
    "max_pool": OpSchema(attrs={**_WINDOW, "dilation": _FROM_1}),
    "mean": OpSchema(attrs=_REDUCE, activation=True),
    "sum": OpSchema(attrs=_REDUCE),
    "softmax": OpSchema(1, _LIST_LIMIT, attrs={"axis": _AXIS}),  # scores, masks
    "log_softmax": OpSchema(attrs={"axis": _AXIS}),
    "interpolate": OpSchema(attrs={**_RESIZE, "mode": _one_of("linear", "bilinear", "bicubic"),
                                   "align_corners": _one_of(True, False, None)}),
    "interpolate_nearest": OpSchema(attrs={**_RESIZE, "mode": _one_of("nearest"), "align_corners": _one_of(None)}),
    "pad": OpSchema(attrs={"pads": _PADS, "mode": _one_of("constant", "reflect", "replicate", "circular"),
                           "value": _NUMBER}),
    "reshape": OpSchema(attrs={"shape": _DIMS}),
    "expand": OpSchema(attrs={"shape": _DIMS}),
    "permute": OpSchema(attrs={"axes": _AXES}),
    "slice": OpSchema(attrs={"axis": _AXIS, "start": _BOUND, "end": _BOUND, "step": _COUNT}),
    "index_select": OpSchema(attrs={"axis": _AXIS, "indices": _INDICES}),
    "aten": OpSchema(0, _LIST_LIMIT, attrs={"target": _ANY, "args": _ANY, "kwargs": _ANY, "index": _ANY}),
    **{op: OpSchema(attrs=_UNARY.get(op, {})) for op in UNARY_OPS},
}


def check_node(node: Node) -> None:
    """Check the form of one node; whether its numbers fit the shapes of its operands is not seen here.

    Args:
        node: the node.

    Raises:
        ArtifactError: for an unknown operation, or anything that its schema does not allow.

    >>> check_node(Node("y", "permute", ("x",), attrs={"axes": [0, 2, 1]}, shape=("batch", 3, 2)))
    """
    schema, where = OPS.get(node.op), f"node {brief(node.name)}"
    if schema is None:
        raise ArtifactError("unknown operation", where=where, got=brief(node.op), fix="upgrade Intact")
    if not schema.inputs <= len(node.inputs) <= schema.inputs + schema.more:
        raise ArtifactError(f"'{node.op}' has the wrong number of operands", where=where, got=len(node.inputs),
                            allowed=schema.inputs)
    roles, known = set(node.params), {*schema.roles, *schema.optional}
    if node.op != "aten" and not set(schema.roles) <= roles <= known:
        raise ArtifactError(f"'{node.op}' has the wrong parameters", where=where, got=brief(sorted(roles)),
                            allowed=", ".join(sorted(known)))
    _check_attrs(node, schema, where)
    sizes = [d for d in node.shape if isinstance(d, int)]
    if not _DIMS.holds(node.shape) or node.dtype not in DTYPES or math.prod(sizes) > _ELEMENTS:
        raise ArtifactError("a shape or a dtype is wrong", where=where, got=brief((node.shape, node.dtype)))
    if node.op == "aten":
        _check_aten(node, where)


def _check_attrs(node: Node, schema: OpSchema, where: str) -> None:
    kinds = {**schema.attrs, **({"activation": _RANGE} if schema.activation and "activation" in node.attrs else {}),
             **({"limits": _LIMITS} if node.op == "input" and "limits" in node.attrs else {}),
             **({"hidden": _HIDDEN} if node.op == "softmax" and len(node.inputs) > 1 else {})}
    if set(node.attrs) != set(kinds):
        raise ArtifactError(f"'{node.op}' has the wrong attributes", where=where, got=brief(sorted(node.attrs)),
                            allowed=", ".join(sorted(kinds)))
    for name, kind in kinds.items():
        if not kind.holds(node.attrs[name]):
            raise ArtifactError(f"attribute '{name}' of '{node.op}' is wrong", where=where,
                                got=brief(node.attrs[name]), allowed=kind.says)
    if "hidden" in kinds and len(node.attrs["hidden"]) != len(node.inputs) - 1:
        raise ArtifactError("every mask of a softmax has a code that hides", where=where, got=brief(node.attrs))
    if len({len(node.attrs[a]) for a in _SPATIAL & set(kinds)}) > 1:
        raise ArtifactError(f"attributes of '{node.op}' differ in length", where=where, got=brief(dict(node.attrs)))


def _check_aten(node: Node, where: str) -> None:
    """A pure function of torch, by name: it makes tensors, and changes or reads nothing else."""
    wrong = problem(node.attrs, len(node.inputs), node.params, node.shape)
    if wrong is not None:
        raise ArtifactError(wrong[0], where=where, got=brief(wrong[1]), allowed=wrong[2],
                            fix="write this part of the model with other operations")
