"""The captured graph: frozen nodes over named edges. An edge is named after the node that makes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from intact.errors import CaptureError
from intact.kernels import MOVES
from intact.types.dims import Dim

__all__ = ["MAC_OPS", "PASSIVE_OPS", "Dim", "Graph", "Node"]

#: operations that only move values: they give an output code for an input code unchanged
PASSIVE_OPS = frozenset({*MOVES, "pad"})
#: operations whose cost is multiply-accumulates
MAC_OPS = frozenset({"conv", "conv_transpose", "linear", "matmul"})


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        name: unique; also the name of its output edge.
        op: canonical operation, e.g. ``conv``, ``add``, ``max_pool`` (see :mod:`intact.graph.float_ops`).
        inputs: edges consumed, in operand order.
        params: role (``weight``, ``bias``, ``value`` ...) to parameter name.
        attrs: JSON values: strides, axes, a folded activation ``[low, high]`` ...
        path: module path in the user's model ("" is the model itself).
        shape: output shape; dynamic dimensions are expressions such as ``"batch"`` or ``"length + 1"``.
        dtype: output dtype, e.g. ``float32``.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    shape: tuple[Dim, ...] = ()
    dtype: str = "float32"

    def with_attrs(self, **attrs: Any) -> Node:
        """A copy with some attributes set."""
        return replace(self, attrs={**self.attrs, **attrs})


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and the template of the outputs.

    ``output`` is a nested list / dict of edge names: ``{"kind": "edge", "name": ...}``,
    ``{"kind": "tuple"|"list", "items": [...]}``, ``{"kind": "dict", "items": {...}}`` or
    ``{"kind": "const", "value": ...}``.
    """

    nodes: tuple[Node, ...]
    output: Mapping[str, Any]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        try:
            return self.index[name]
        except KeyError:
            raise CaptureError("no such edge in the graph", where=name) from None

    @property
    def index(self) -> dict[str, Node]:
        """Nodes by name."""
        return {n.name: n for n in self.nodes}

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes that stand for the model's inputs."""
        return tuple(n for n in self.nodes if n.op == "input")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Edges that the model returns, in order, each once."""
        return tuple(dict.fromkeys(_edges_of(self.output)))

    def consumers(self) -> dict[str, list[Node]]:
        """For each edge the nodes that read it (a node appears once for each operand)."""
        users: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node)
        return users

    def validate(self) -> Graph:
        """Self, if every edge is defined before it is read and every name is unique."""
        seen: set[str] = set()
        for node in self.nodes:
            missing = [i for i in node.inputs if i not in seen]
            if missing or node.name in seen:
                raise CaptureError("malformed graph", where=node.name, got=missing or "name twice")
            seen.add(node.name)
        lost = [o for o in self.outputs if o not in seen]
        if lost:
            raise CaptureError("an output has no producer", got=lost)
        return self

    def rewritten(self, nodes: Iterable[Node], renamed: Mapping[str, str] | None = None) -> Graph:
        """New nodes, with edges renamed in operands and outputs; dead nodes are dropped."""
        names = dict(renamed or {})

        def final(name: str) -> str:
            while name in names:
                name = names[name]
            return name

        moved = [replace(n, inputs=tuple(final(i) for i in n.inputs)) for n in nodes]
        output = _map_edges(self.output, final)
        alive = set(_edges_of(output))
        kept: list[Node] = []
        for node in reversed(moved):
            if node.name in alive or node.op == "input":
                alive.update(node.inputs)
                kept.append(node)
        return Graph(tuple(reversed(kept)), output).validate()


def _edges_of(template: Mapping[str, Any]) -> Iterator[str]:
    kind = template["kind"]
    if kind == "edge":
        yield template["name"]
    elif kind in ("tuple", "list"):
        for item in template["items"]:
            yield from _edges_of(item)
    elif kind == "dict":
        for item in template["items"].values():
            yield from _edges_of(item)


def _map_edges(template: Mapping[str, Any], rename: Any) -> Mapping[str, Any]:
    kind = template["kind"]
    if kind == "edge":
        return {"kind": "edge", "name": rename(template["name"])}
    if kind in ("tuple", "list"):
        return {"kind": kind, "items": [_map_edges(i, rename) for i in template["items"]]}
    if kind == "dict":
        return {"kind": kind, "items": {k: _map_edges(v, rename) for k, v in template["items"].items()}}
    return template


def fill_template(template: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """The user's output structure with each edge replaced by its value."""
    kind = template["kind"]
    if kind == "edge":
        return values[template["name"]]
    if kind == "tuple":
        return tuple(fill_template(i, values) for i in template["items"])
    if kind == "list":
        return [fill_template(i, values) for i in template["items"]]
    if kind == "dict":
        return {k: fill_template(v, values) for k, v in template["items"].items()}
    return template["value"]
