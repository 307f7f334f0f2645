"""What must hold in an integer model, whoever made it: checked before it is written and after it is read.

Nothing here runs an operation on data, or makes a tensor larger than the largest one of the model.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch

from intact.arithmetic import PoolRule, multiplier, pairs_saturate
from intact.arithmetic.layer_norm import GAMMA_BITS, normalized_limit
from intact.engine.op_schema import DTYPES, check_node
from intact.engine.qmodel import QModel
from intact.engine.readers import brief
from intact.engine.shapes import check_shapes
from intact.errors import ArtifactError, PlanError
from intact.graph import Node
from intact.graph.free import limits_of
from intact.graph.ir import PASSIVE_OPS
from intact.graph.masks import MASK_CODES, mask_edges
from intact.kernels import KERNELS, Binding
from intact.targets import TARGETS, Target, describe, parse_target
from intact.types import PerChannel, PerTensor, QParams, QTensor
from intact.types.dims import resolve_dim, symbols_of

__all__ = ["check"]

_WEIGHTED = frozenset({"conv", "linear"})
_MAY_WEIGH = _WEIGHTED | {"layer_norm"}
_ACCUMULATORS = frozenset({"linear", "matmul", "mean"})  # may give the int32 accumulator itself


def check(q: QModel, *, foreign: bool = False) -> None:
    """Check that a model is whole, consistent, and cannot overflow.

    Args:
        q: a model.
        foreign: it comes from a file; see :func:`intact.engine.shapes.check_shapes`.

    Raises:
        ArtifactError: for the first rule that is broken; names the node, the edge or the tensor.

    >>> import torch, intact.api as intact
    >>> check(intact.quantize(torch.nn.Linear(4, 2), [torch.randn(16, 4)]))
    """
    _check_target(q.target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning about foreign data must not become an exception
        nodes = _check_graph(q)
        _check_calls(q, nodes)
        for name, qparams in q.qparams.items():
            _check_edge(q, nodes, name, qparams)
        for name, binding in q.bindings.items():
            if name not in nodes:
                raise ArtifactError("no such node", where=f"binding {brief(name)}")
            _check_binding(q, nodes, nodes[name], binding)
        for name, table in q.tables.items():
            _check_table(q, nodes.get(name), name, table)
        _check_params(q)
        check_shapes(q, foreign=foreign)


def _check_target(target: Target) -> None:
    """Known by its name, or one that a file can describe."""
    if TARGETS.get(target.name) == target:
        return
    try:
        parse_target(describe(target))
    except PlanError as e:
        raise ArtifactError("the target is not known by its name", where="target", got=brief(target.name),
                            allowed=", ".join(TARGETS), fix=f"call register_target first ({e.what})") from None


# -- graph --------------------------------------------------------------------------------------


def _check_graph(q: QModel) -> dict[str, Node]:
    """Nodes by name."""
    seen: dict[str, Node] = {}
    for node in q.graph:
        lost = [i for i in node.inputs if i not in seen]
        if lost or node.name in seen or not node.name:
            raise ArtifactError("a name is used twice, or an operand has no producer before it",
                                where=f"node {brief(node.name)}", got=brief(lost or node.name))
        check_node(node)
        seen[node.name] = node
    return seen


def _template_edges(template: Mapping[str, Any]) -> Iterator[str]:
    if template["kind"] == "edge":
        yield template["name"]
    elif template["kind"] != "const":
        items = template["items"]
        yield from chain.from_iterable(map(_template_edges, items.values() if template["kind"] == "dict" else items))


def _check_calls(q: QModel, nodes: Mapping[str, Node]) -> None:
    inputs = Counter(chain.from_iterable(map(_template_edges, q.signature.templates)))
    if inputs != Counter(n.name for n in q.graph.inputs) or len(set(q.signature.names)) != len(q.signature.names):
        raise ArtifactError("the signature does not fit the inputs of the graph", where="signature",
                            got=brief(sorted(inputs)), allowed=brief([n.name for n in q.graph.inputs]))
    lost = [name for name in q.graph.outputs if name not in nodes]
    if lost:
        raise ArtifactError("an output has no producer", where="graph.output", got=brief(lost))


def _check_params(q: QModel) -> None:
    """The float parameters are those that nodes in float read."""
    read = {name for node in q.graph if node.name not in q.bindings and node.name not in q.tables
            for name in node.params.values()}
    if read != set(q.float_params):
        raise ArtifactError("float parameters are missing, or not used", where="float parameters",
                            got=brief(sorted(read ^ set(q.float_params))))
    for name, value in q.float_params.items():
        if str(value.dtype).removeprefix("torch.") not in DTYPES or value.layout is not torch.strided:
            raise ArtifactError("a parameter cannot be saved", where=brief(name), got=f"{value.dtype}, {value.layout}",
                                allowed=", ".join(sorted(DTYPES)))


def _may_have_codes(node: Node, p: QParams) -> bool:
    """Real numbers, or a mask."""
    return "float" in node.dtype or (node.dtype == "bool" and p.same_as(MASK_CODES))


# -- numbers ------------------------------------------------------------------------------------


def _check_binding(q: QModel, nodes: Mapping[str, Node], node: Node, b: Binding) -> None:
    """An integer node: what the graph says, what the target has a rule for, and no overflow."""
    where = f"node {brief(node.name)}"
    if node.op not in KERNELS or node.op not in q.target.rules:
        raise ArtifactError(f"target '{q.target.name}' has no integer kernel for '{node.op}'", where=where)
    edges = [*node.inputs, node.name]
    if any(e not in q.qparams or not _may_have_codes(nodes[e], q.qparams[e]) for e in edges):
        raise ArtifactError("an edge of an integer node has no parameters, or is no float tensor", where=where)
    used = [*b.inputs, b.output]
    if len(used) != len(edges) or not all(u.same_as(q.qparams[e]) for u, e in zip(used, edges, strict=True)) \
            or b.op != node.op or dict(b.attrs) != dict(node.attrs) or b.arithmetic != q.target.arithmetic:
        raise ArtifactError("a kernel is not bound to what the graph says", where=where)
    if any(p.qtype.bits > 16 for p in b.inputs):
        raise ArtifactError("an integer kernel reads an accumulator", where=where)
    if node.op in PASSIVE_OPS and not b.inputs[0].same_as(b.output):
        raise ArtifactError("an operation that moves codes must keep their parameters", where=where)
    if node.op == "softmax" and not all(p.same_as(MASK_CODES) for p in b.inputs[1:]):
        raise ArtifactError("a mask has another encoding", where=where, got=brief([str(p.qtype) for p in b.inputs[1:]]),
                            allowed=f"{MASK_CODES.qtype}, scale 1, zero point 0")
    fixed = q.target.prescribed(node.op, b.output.qtype.bits)
    if fixed is not None and not b.output.same_as(fixed):
        raise ArtifactError("the target prescribes another encoding of this output", where=where,
                            got=str(b.output.qtype), allowed=f"scale {float(fixed.scale):g}, zero point "
                                                             f"{int(fixed.zero_point)}")
    if (node.op in _WEIGHTED and b.weight is None) or (b.weight is not None and node.op not in _MAY_WEIGH) \
            or (b.weight is None and b.bias is not None) \
            or (b.weight is not None) != ("weight" in node.params) or (b.bias is not None) != ("bias" in node.params):
        raise ArtifactError("weight and bias are not those that the node names", where=where)
    if b.weight is not None:
        _check_weight(q, node, b, where)
    _check_accumulator(q, nodes, node, b, where)


def _check_weight(q: QModel, node: Node, b: Binding, where: str) -> None:
    assert b.weight is not None
    codes, p = b.weight.codes, b.weight.qparams
    if node.op == "layer_norm":
        _check_factor(node, b, where)
        return
    ndim = 2 if node.op == "linear" else 2 + len(node.attrs["stride"])
    if codes.ndim != ndim or not codes.numel():
        raise ArtifactError("the weight has the wrong shape", where=where, got=list(codes.shape),
                            allowed=f"{ndim} axes")
    if p.granularity != PerTensor() and (p.granularity != PerChannel(0) or len(p.scale) != codes.shape[0]):
        raise ArtifactError("scales do not fit the weight", where=where, got=f"{p.granularity}, {p.scale.numel()}",
                            allowed=f"1, or {codes.shape[0]} along axis 0")
    if p.qtype.bits not in q.target.weight_bits or (not q.target.asymmetric_weights and bool(p.zero_point.any())):
        raise ArtifactError(f"target '{q.target.name}' does not run this weight", where=where, got=str(p.qtype),
                            allowed=f"{q.target.weight_bits} bits, zero point 0")
    low, high = (int(v) for v in torch.aminmax(codes))
    if low < p.qtype.qmin or high > p.qtype.qmax:
        raise ArtifactError("a weight code is out of range", where=where, got=f"[{low}, {high}]",
                            allowed=f"[{p.qtype.qmin}, {p.qtype.qmax}]")
    if b.bias is not None and (b.bias.dtype != torch.int32 or list(b.bias.shape) != [codes.shape[0]]):
        raise ArtifactError("the bias has the wrong form", where=where, got=f"{b.bias.dtype} {list(b.bias.shape)}",
                            allowed=f"int32 [{codes.shape[0]}]")
    if not bool(torch.isfinite(multiplier(b.inputs[0].scale, p.scale, b.output.scale).real).all()):
        raise ArtifactError("the multiplier of a channel is not finite", where=where)


def _check_table(q: QModel, node: Node | None, name: str, table: QTensor) -> None:
    """A table of codes, a scale for each row or one for all."""
    where, codes, p = f"table {brief(name)}", table.codes, table.qparams
    if node is None or node.op != "embedding" or name in q.bindings or "weight" not in node.params:
        raise ArtifactError("no node looks up rows in it", where=where)
    fits = p.granularity == PerTensor() or (p.granularity == PerChannel(0) and len(p.scale) == codes.shape[0])
    if codes.ndim != 2 or not codes.numel() or not fits or p.qtype.bits > 16:
        raise ArtifactError("a table has the wrong form", where=where, got=f"{list(codes.shape)}, {p.granularity}",
                            allowed="codes of rows, a scale for each or one for all")
    low, high = (int(v) for v in torch.aminmax(codes))
    if low < p.qtype.qmin or high > p.qtype.qmax:
        raise ArtifactError("a code of a table is out of range", where=where, got=f"[{low}, {high}]",
                            allowed=f"[{p.qtype.qmin}, {p.qtype.qmax}]")


def _check_factor(node: Node, b: Binding, where: str) -> None:
    """Weight and bias of a layer norm."""
    assert b.weight is not None
    codes, p, shape = b.weight.codes, b.weight.qparams, list(node.attrs["shape"])
    if p.granularity != PerTensor() or p.qtype.bits != GAMMA_BITS or bool(p.zero_point.any()) \
            or list(codes.shape) != shape or (b.bias is not None and list(b.bias.shape) != shape):
        raise ArtifactError("the factors of a layer norm have the wrong form", where=where,
                            got=f"{p.qtype} {list(codes.shape)}", allowed=f"{GAMMA_BITS} bits, shape {shape}")
    reach = codes.to(torch.float64).abs() * normalized_limit(codes.numel())
    if b.bias is not None:
        reach = reach + b.bias.to(torch.float64).abs()
    if int(codes.abs().max()) > p.qtype.qmax or float(reach.max()) >= 2**31:
        raise ArtifactError("a code of a layer norm is out of range", where=where, got=float(reach.max()))


def _check_accumulator(q: QModel, nodes: Mapping[str, Node], node: Node, b: Binding, where: str) -> None:
    """No partial sum, in any order, leaves the target's accumulator."""
    if node.op in _WEIGHTED:
        bound = _weighted_bound(b)
    elif node.op in ("matmul", "mean"):
        shape = nodes[node.inputs[0]].shape
        axes = [-1] if node.op == "matmul" else node.attrs["axes"]
        most = {name: high for name, (_, high) in limits_of(q.graph).items() if high is not None}
        if any(a >= len(shape) or not symbols_of(shape[a]) <= most.keys() for a in axes) or not shape:
            raise ArtifactError("a sum over an axis without a largest size", where=where, got=brief(shape))
        bound = 1.0
        for a in axes:
            bound *= resolve_dim(shape[a], most)
        for p in b.inputs:
            bound *= max(p.qtype.qmax - int(p.zero_point), int(p.zero_point) - p.qtype.qmin)
    elif node.op == "avg_pool" and b.arithmetic.average_pool is PoolRule.SUM:
        p = b.inputs[0]
        bound = float(math.prod(node.attrs["kernel"])) * max(
            p.qtype.qmax - int(p.zero_point), int(p.zero_point) - p.qtype.qmin)
    else:
        return
    widest = max(p.qtype.bits for p in b.inputs)
    limit = b.arithmetic.accumulator_limit(widest)
    if bound >= limit:
        width = b.arithmetic.accumulator_width(widest)
        raise ArtifactError(f"the accumulator of {width} bits can overflow", where=where, got=f"{bound:.4g}",
                            allowed=f"below {limit:.4g}", fix="leave this layer in float, or use fewer bits")
    if b.weight is not None and node.op in _WEIGHTED and b.arithmetic.pair_bits == 16:
        reach = b.inputs[0].qtype.qmax - b.inputs[0].qtype.qmin
        if bool(pairs_saturate(b.weight.codes, reach).any()):
            raise ArtifactError("two products can saturate their sum of 16 bits", where=where,
                                fix="use weights of fewer bits")


def _weighted_bound(b: Binding) -> float:
    """As ``arithmetic.accumulator_bounds``, without wide copies of the weight."""
    assert b.weight is not None
    rows = b.weight.codes.detach().cpu().flatten(1).numpy()
    positive = np.maximum(rows, 0).sum(1, dtype=np.int64).astype(np.float64)
    negative = positive - rows.sum(1, dtype=np.int64)
    p = b.inputs[0]
    above, below = float(p.qtype.qmax - int(p.zero_point)), float(int(p.zero_point) - p.qtype.qmin)
    reach = np.maximum(positive * above + negative * below, positive * below + negative * above)
    if b.bias is not None:
        reach = reach + np.abs(b.bias.detach().cpu().numpy().astype(np.float64))
    return float(reach.max())


def _check_edge(q: QModel, nodes: Mapping[str, Node], name: str, p: QParams) -> None:
    """Parameters of an edge: one scale; only an accumulator has 32 bits, and it may have a scale per channel."""
    where = f"edge {brief(name)}"
    if name not in nodes:
        raise ArtifactError("no such edge", where=where)
    node = nodes[name]
    if not _may_have_codes(node, p):
        raise ArtifactError("an edge that holds no floats has parameters", where=where, got=node.dtype)
    if p.same_as(MASK_CODES) and name in mask_edges(q.graph):
        return
    if p.qtype.bits <= 16:
        if p.granularity != PerTensor() or p.qtype.bits not in q.target.activation_bits:
            raise ArtifactError(f"target '{q.target.name}' has no such encoding of an edge", where=where,
                                got=f"{p.qtype} {p.granularity}", allowed=f"{q.target.activation_bits} bits per tensor")
        return
    last = len(node.shape) - 1
    channels = p.granularity == PerChannel(last) and list(p.scale.shape) == list(node.shape[last:])
    if name not in q.bindings or node.op not in _ACCUMULATORS or "activation" in node.attrs \
            or not (p.qtype.signed and not p.qtype.narrow) or bool(p.zero_point.any()) \
            or not (channels or p.granularity == PerTensor()):
        raise ArtifactError("this cannot be an accumulator", where=where, got=f"'{node.op}', {p.qtype} {p.granularity}",
                            allowed="int32 with zero point 0 from linear, matmul or mean")
