"""An integer model as one JSON document and a few tensors, and back.

Tensors: ``scales`` and ``zero_points`` (all parameters, packed), ``codes/<weight>``, ``bias/<node>``,
``float/<parameter>``. Everything else is in the document. What follows from the graph (the operands of a kernel,
their parameters) is not stored, so that it cannot contradict the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intact.engine.qmodel import QModel
from intact.engine.readers import array, brief, number, record, text
from intact.errors import ArtifactError, IntactError, PlanError
from intact.graph import Graph, Node
from intact.graph.signature import Signature
from intact.kernels import Binding
from intact.targets import BUILT_IN, TARGETS, Target, describe, parse_target
from intact.types import PerChannel, PerTensor, QParams, QTensor, QType

__all__ = ["FORMAT", "FORMAT_VERSION", "decode", "encode"]

FORMAT = "intact"
FORMAT_VERSION = 1
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}

Tensors = dict[str, Tensor]


def encode(q: QModel) -> tuple[dict[str, Any], Tensors]:
    """The document and the tensors of a model; equal models give equal ones, in the same order.

    Raises:
        ArtifactError: if the model holds what the format cannot express.
    """
    table = _Table()
    edges = {name: table.add(q.qparams[name]) for name in sorted(q.qparams)}
    weights, bindings, tables, tensors = _encode_bindings(q, table)
    tensors["scales"], tensors["zero_points"] = table.packed()
    for name, value in q.float_params.items():
        tensors[f"float/{name}"] = value
    seen: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        # the container refuses tensors that share memory: views of one file do
        tensors[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "target": _encode_target(q.target),
        "graph": {"nodes": [_encode_node(n) for n in q.graph], "output": _encode_template(q.graph.output)},
        "signature": [[n, _encode_template(t)] for n, t in zip(q.signature.names, q.signature.templates, strict=True)],
        "qparams": table.rows,
        "edges": edges,
        "weights": weights,
        "bindings": bindings,
        "tables": tables,
        "info": _plain(q.info, "info"),
    }, tensors


def decode(document: Mapping[str, Any], tensors: Tensors) -> QModel:
    """The model of a document. Types, names and numbers are checked here, their meaning by ``validate.check``.

    Raises:
        ArtifactError: for anything unexpected.
    """
    names = ("format", "format_version", "target", "graph", "signature", "qparams", "edges", "weights", "bindings",
             "tables", "info")
    fields, left = record({"tables": {}, **document}, "document", *names), dict(tensors)
    target = _decode_target(fields["target"])
    graph = _decode_graph(fields["graph"])
    table = _decode_table(fields["qparams"], left)
    edges = {k: _at(table, v, f"edges.{k}") for k, v in record(fields["edges"], "edges").items()}
    weights = {}
    for name, row in record(fields["weights"], "weights").items():
        if not name.startswith("codes/"):
            raise ArtifactError("a weight has the wrong name", where="weights", got=brief(name), allowed="codes/...")
        codes = _take(left, name, "weights")
        weights[name] = _guard(f"weights.{name}", QTensor, codes, _at(table, row, f"weights.{name}"))
    rows = _decode_tables(fields["tables"], graph, weights)
    bindings = _decode_bindings(fields["bindings"], graph, edges, weights, left, target, set(rows.values()))
    floats = {name.removeprefix("float/"): left.pop(name) for name in sorted(left) if name.startswith("float/")}
    if left:
        raise ArtifactError("the file holds tensors that nothing uses", where=brief(sorted(left)))
    info = _rich_fields(fields["info"], "info")
    return QModel(graph, _decode_signature(fields["signature"]), target, bindings, edges, floats, info=info,
                  tables={node: weights[name] for node, name in rows.items()})


# -- parameters of codes ------------------------------------------------------------------------


class _Table:
    """Distinct parameters in the order in which they were added."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._scales: list[Tensor] = []
        self._zeros: list[Tensor] = []
        self._known: dict[Any, int] = {}

    def add(self, p: QParams) -> int:
        if not isinstance(p.granularity, PerTensor | PerChannel):
            raise ArtifactError("this granularity cannot be saved", got=str(p.granularity),
                                allowed="per tensor, per channel")
        axis = p.granularity.axis if isinstance(p.granularity, PerChannel) else None
        scale, zero = p.scale.detach().cpu().reshape(-1), p.zero_point.detach().cpu().reshape(-1)
        key = (p.qtype, axis, scale.numpy().tobytes(), zero.numpy().tobytes())
        if key not in self._known:
            self._known[key] = len(self.rows)
            t = p.qtype
            self.rows.append({"bits": t.bits, "signed": t.signed, "narrow": t.narrow, "axis": axis,
                              "count": scale.numel()})
            self._scales.append(scale)
            self._zeros.append(zero)
        return self._known[key]

    def packed(self) -> tuple[Tensor, Tensor]:
        none = torch.zeros(0)
        return torch.cat([none, *self._scales]), torch.cat([none.to(torch.int32), *self._zeros])


def _decode_table(rows: Any, left: Tensors) -> list[QParams]:
    scales, zeros = _take(left, "scales", "qparams"), _take(left, "zero_points", "qparams")
    if scales.dtype != torch.float32 or zeros.dtype != torch.int32 or scales.ndim != 1 or scales.shape != zeros.shape:
        raise ArtifactError("scales and zero points have the wrong form", where="scales, zero_points",
                            got=f"{scales.dtype} {list(scales.shape)}, {zeros.dtype} {list(zeros.shape)}",
                            allowed="float32 [n], int32 [n]")
    table, start = [], 0
    for i, row in enumerate(array(rows, "qparams")):
        where = f"qparams[{i}]"
        f = record(row, where, "bits", "signed", "narrow", "axis", "count")
        count = number(f["count"], where, low=1, high=len(scales) - start)
        axis = None if f["axis"] is None else number(f["axis"], where, low=0, high=16)
        if type(f["signed"]) is not bool or type(f["narrow"]) is not bool or (axis is None and count != 1):
            raise ArtifactError("malformed parameters", where=where, got=brief(row))
        qtype = _guard(where, QType, number(f["bits"], where, low=2, high=32), f["signed"], f["narrow"])
        scale, zero = scales[start : start + count], zeros[start : start + count]
        if axis is None:
            table.append(_guard(where, QParams, scale[0], zero[0], qtype, PerTensor()))
        else:
            table.append(_guard(where, QParams, scale, zero, qtype, PerChannel(axis)))
        start += count
    if start != len(scales):
        raise ArtifactError("there are more scales than parameters", where="scales", got=len(scales), allowed=start)
    return table


# -- bindings -----------------------------------------------------------------------------------


def _encode_bindings(q: QModel, table: _Table) -> tuple[dict[str, int], dict[str, Any], dict[str, str], Tensors]:
    names: dict[int, str] = {}
    tables: dict[str, str] = {}
    weights: dict[str, int] = {}
    bindings: dict[str, Any] = {}
    tensors: Tensors = {}

    def stored(weight: QTensor, node: Node) -> str:
        if id(weight) not in names:
            name = base = f"codes/{node.params.get('weight', node.name)}"
            n = 1
            while name in tensors:
                n += 1
                name = f"{base}@{n}"
            names[id(weight)] = name
            tensors[name], weights[name] = weight.codes, table.add(weight.qparams)
        return names[id(weight)]

    for node in q.graph:
        if node.name in q.tables:
            tables[node.name] = stored(q.tables[node.name], node)
        if node.name not in q.bindings:
            continue
        b = q.bindings[node.name]
        entry: dict[str, str | None] = {"weight": None, "bias": None}
        if b.weight is not None:
            entry["weight"] = stored(b.weight, node)
        if b.bias is not None:
            entry["bias"] = name = f"bias/{node.name}"
            tensors[name] = b.bias
        bindings[node.name] = entry
    return weights, bindings, tables, tensors


def _decode_tables(value: Any, graph: Graph, weights: Mapping[str, QTensor]) -> dict[str, str]:
    """The weight of each node that looks up rows of a table of codes."""
    index, found = graph.index, {}
    for node, name in record(value, "tables").items():
        if node not in index or text(name, "tables") not in weights:
            raise ArtifactError("no such node or weight", where="tables", got=brief((node, name)))
        found[node] = name
    return found


def _decode_bindings(value: Any, graph: Graph, edges: Mapping[str, QParams], weights: Mapping[str, QTensor],
                     left: Tensors, target: Target, tables: set[str]) -> dict[str, Binding]:
    bindings, index, used = {}, graph.index, set(tables)
    for name, entry in record(value, "bindings").items():
        where = f"bindings.{name}"
        f = record(entry, where, "weight", "bias")
        if name not in index:
            raise ArtifactError("no such node", where=where)
        node = index[name]
        missing = [i for i in (*node.inputs, name) if i not in edges]
        if missing:
            raise ArtifactError("an edge of an integer node has no parameters", where=where, got=brief(missing))
        weight = None
        if f["weight"] is not None:
            used.add(text(f["weight"], where))
            if f["weight"] not in weights:
                raise ArtifactError("no such weight", where=where, got=brief(f["weight"]))
            weight = weights[f["weight"]]
        if f["bias"] not in (None, f"bias/{name}"):
            raise ArtifactError("a bias has the wrong name", where=where, got=brief(f["bias"]), allowed=f"bias/{name}")
        bias = None if f["bias"] is None else _take(left, f["bias"], where)
        bindings[name] = Binding(node.op, node.attrs, tuple(edges[i] for i in node.inputs), edges[name],
                                 target.arithmetic, weight, bias, where=node.path or name)
    if used != set(weights):
        raise ArtifactError("weights that nothing uses", where="weights", got=brief(sorted(set(weights) - used)))
    return bindings


def _encode_target(target: Target) -> dict[str, Any]:
    """By name; of a target of the user's own also all that it says, so that the file needs nothing beside it."""
    named = {"name": target.name, "version": target.version}
    if target.name in BUILT_IN:
        return named
    try:
        return {**named, "description": describe(target)}
    except PlanError:  # rules in Python: whoever loads the file has to register them
        return named


def _decode_target(value: Any) -> Target:
    described = isinstance(value, dict) and "description" in value
    f = record(value, "target", "name", "version", *(["description"] if described else []))
    name, version = text(f["name"], "target"), number(f["version"], "target", low=0)
    if described:
        try:
            target = parse_target(f["description"], "target.description")
        except PlanError as e:
            raise ArtifactError(e.what, where=brief(e.where), got=brief(e.got), allowed=e.allowed) from None
        if (target.name, target.version) != (name, version):
            raise ArtifactError("the target's description is of another one", where="target", got=brief(target.name),
                                allowed=f"{brief(name)}, version {version}")
        return target
    if name not in TARGETS:
        raise ArtifactError("the model was made for a target that is not known here", where="target", got=brief(name),
                            allowed=", ".join(TARGETS), fix="register the target, or upgrade Intact")
    if TARGETS[name].version != version:
        raise ArtifactError("the model was made for another version of its target", where=f"target {name!r}",
                            got=version, allowed=TARGETS[name].version,
                            fix="use the version of Intact that wrote the file, or quantize the model again")
    return TARGETS[name]


# -- graph --------------------------------------------------------------------------------------


def _encode_node(n: Node) -> dict[str, Any]:
    return {"name": n.name, "op": n.op, "inputs": list(n.inputs), "params": dict(n.params), "path": n.path,
            "attrs": _plain(n.attrs, n.name), "shape": list(n.shape), "dtype": n.dtype}


def _decode_graph(value: Any) -> Graph:
    f = record(value, "graph", "nodes", "output")
    nodes = []
    for i, entry in enumerate(array(f["nodes"], "graph.nodes")):
        where = f"graph.nodes[{i}]"
        n = record(entry, where, "name", "op", "inputs", "params", "path", "attrs", "shape", "dtype")
        params = {k: text(v, where) for k, v in record(n["params"], where).items()}
        shape = tuple(d if isinstance(d, str) else number(d, where, low=0) for d in array(n["shape"], where))
        inputs = tuple(text(i, where) for i in array(n["inputs"], where))
        nodes.append(Node(text(n["name"], where), text(n["op"], where), inputs, params,
                          _rich_fields(n["attrs"], where), text(n["path"], where), shape, text(n["dtype"], where)))
    return Graph(tuple(nodes), _decode_template(f["output"], "graph.output"))


def _encode_template(t: Mapping[str, Any]) -> dict[str, Any]:
    """As it is, but with the items of a dict as pairs: their order is the user's."""
    kind = t["kind"]
    if kind == "dict":
        return {"kind": kind, "items": [[k, _encode_template(v)] for k, v in t["items"].items()]}
    if kind in ("tuple", "list"):
        return {"kind": kind, "items": [_encode_template(v) for v in t["items"]]}
    return {"kind": kind, "value": _plain(t["value"], "output")} if kind == "const" else dict(t)


def _decode_template(value: Any, where: str) -> dict[str, Any]:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "edge":
        return {"kind": kind, "name": text(record(value, where, "kind", "name")["name"], where)}
    if kind == "const":
        constant = _rich(record(value, where, "kind", "value")["value"])
        if not isinstance(constant, str | int | float | None):
            raise ArtifactError("a constant output is not a scalar", where=where, got=brief(constant))
        return {"kind": kind, "value": constant}
    if kind not in ("tuple", "list", "dict"):
        raise ArtifactError("unknown structure", where=where, got=brief(kind), allowed="edge, tuple, list, dict, const")
    items = array(record(value, where, "kind", "items")["items"], where)
    if kind != "dict":
        return {"kind": kind, "items": [_decode_template(v, where) for v in items]}
    pairs = [array(p, where) for p in items]
    if any(len(p) != 2 for p in pairs) or len({text(p[0], where) for p in pairs}) != len(pairs):
        raise ArtifactError("malformed dict", where=where, allowed="pairs of distinct names and structures")
    return {"kind": kind, "items": {k: _decode_template(v, where) for k, v in pairs}}


def _decode_signature(value: Any) -> Signature:
    pairs = [array(p, "signature") for p in array(value, "signature")]
    if any(len(p) != 2 for p in pairs):
        raise ArtifactError("malformed signature", where="signature", allowed="pairs of a name and a structure")
    return Signature(tuple(text(n, "signature") for n, _ in pairs),
                     tuple(_decode_template(t, "signature") for _, t in pairs))


# -- values -------------------------------------------------------------------------------------


def _plain(value: Any, where: str) -> Any:
    """A value as JSON; a number that JSON does not have as ``{"float": "inf"}``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value) and set(value) != {"float"}:
        return {k: _plain(v, f"{where}.{k}") for k, v in value.items()}
    raise ArtifactError("a value cannot be stored as JSON", where=where, got=brief(value),
                        allowed="numbers, text, lists, dicts by name", fix="keep plain data only")


def _rich(value: Any) -> Any:
    """The inverse of :func:`_plain`."""
    if isinstance(value, list):
        return [_rich(v) for v in value]
    if isinstance(value, dict):
        if set(value) == {"float"}:
            if not isinstance(value["float"], str) or value["float"] not in _NOT_FINITE:
                raise ArtifactError("unknown number", got=brief(value["float"]), allowed=", ".join(_NOT_FINITE))
            return _NOT_FINITE[value["float"]]
        return {k: _rich(v) for k, v in value.items()}
    return value


def _rich_fields(value: Any, where: str) -> dict[str, Any]:
    return {k: _rich(v) for k, v in record(value, where).items()}


def _guard(where: str, make: Any, *args: Any) -> Any:
    """``make(*args)``, its error as an ArtifactError that says where."""
    try:
        return make(*args)
    except IntactError as e:
        raise ArtifactError(e.what, where=where, got=e.got, allowed=e.allowed) from None


def _take(left: Tensors, name: str, where: str) -> Tensor:
    if name not in left:
        raise ArtifactError("a tensor is missing, or is used twice", where=where, got=brief(name))
    return left.pop(name)


def _at(table: list[QParams], index: Any, where: str) -> QParams:
    return table[number(index, where, low=0, high=len(table) - 1)]
