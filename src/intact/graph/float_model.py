"""The captured float model: a canonical graph, its parameters under the user's names, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from intact.graph.derive import Derived, Expr, evaluate, leaves
from intact.graph.float_ops import run_float
from intact.graph.free import first_samples
from intact.graph.generic import run_aten
from intact.graph.hints import Hint
from intact.graph.ir import Graph, Node, fill_template
from intact.graph.opaque import OpaqueCall
from intact.graph.signature import Signature, check_inputs
from intact.types.dims import BATCH, Sizes

__all__ = ["FloatModel", "execute", "last_uses", "run_node"]

Tap = Callable[[Node, Tensor], None]


@dataclass(frozen=True, eq=False)
class FloatModel:
    """A float model as a graph of canonical operations.

    Args:
        graph: nodes over named edges.
        params: tensors by the user's parameter names; a tied parameter stands here once.
        signature: names and structure of the inputs.
        example: a small batch of real inputs, to check transformations on.
        opaque: calls of submodules that could not be captured, each run as one float call.
        notes: what capture and the passes have to tell (path, sentence).
        equalization: by how many quarter octaves each channel of an edge was enlarged.
        smoothing: by how many quarter octaves each channel of an edge was made smaller, and which were copied.
        sources: the user's own parameters and buffers, from which ``params`` are made.
        derived: how those parameters are made that are not simply the user's.
        buffers: names among the sources that no optimizer may touch.
        frozen: parameters that the user's model does not train (``requires_grad=False``).
        dropouts: edges that a dropout follows in training: probability, and whether it drops whole channels.
        folded: module path of what became part of another layer (batch norm, activation), and that layer's path.
        hints: module path of a layer that says itself how it is to be quantized.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    signature: Signature
    example: Mapping[str, Tensor]
    opaque: Mapping[str, OpaqueCall] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    equalization: Mapping[str, Sequence[int]] = field(default_factory=dict)
    smoothing: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    dropouts: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, Hint] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the captured model gives, in float."""
        return self.run(self.signature.bind(args, kwargs))

    def run(self, inputs: Mapping[str, Tensor], tap: Tap | None = None) -> Any:
        """Outputs for named inputs; ``tap`` sees every edge as it is made, which is then let go."""
        sizes = check_inputs(self.graph, inputs)
        values = execute(self.graph, inputs, lambda n, xs: run_node(self, n, xs, sizes), tap)
        return fill_template(self.graph.output, values)

    @cached_property
    def sample(self) -> Sizes:
        """What the symbols are for one sample of the example."""
        return {**check_inputs(self.graph, self.example), BATCH: 1}

    def small_example(self, samples: int) -> dict[str, Tensor]:
        """The first samples of the example inputs."""
        return first_samples(self.graph, self.example, samples)

    def with_graph(
        self, graph: Graph, params: Mapping[str, Tensor] | None = None, derived: Mapping[str, Derived] | None = None
    ) -> FloatModel:
        """A copy with another graph, without parameters that nothing reads.

        Args:
            graph: the new graph.
            params: its parameters; a changed value that ``derived`` does not explain becomes a source of its own.
            derived: how parameters are made from the sources.
        """
        table = self.params if params is None else params
        rules = self.derived if derived is None else derived
        used = {name for node in graph for name in node.params.values()}
        sources = dict(self.sources or self.params)
        changed = {k for k in used - rules.keys() if sources.get(k) is not table[k]}
        changed |= {k for k in used & rules.keys() if derived is None and table[k] is not self.params.get(k)}
        rules = {k: v for k, v in rules.items() if k in used - changed}
        sources.update((k, table[k]) for k in changed)
        needed = {leaf for name in used for leaf in leaves(rules.get(name, name))}
        return replace(self, graph=graph, params={k: v for k, v in table.items() if k in used},
                       sources={k: v for k, v in sources.items() if k in needed}, derived=rules)

    def with_sources(self, sources: Mapping[str, Tensor]) -> FloatModel:
        """A copy with other values of the user's parameters."""
        params = {name: evaluate(self.derived.get(name, name), sources) for name in self.params}
        return replace(self, params=params, sources=dict(sources))

    def expr(self, name: str) -> Expr:
        """How a parameter of the graph is made from the user's."""
        return self.derived.get(name, name)


def run_node(model: FloatModel, node: Node, xs: list[Tensor], sizes: Sizes) -> Tensor:
    """One node in float, with the model's parameters."""
    params = {role: model.params[name] for role, name in node.params.items()}
    if node.op == "aten":
        return run_aten(xs, params, node.attrs, sizes)
    if node.op == "opaque":
        return model.opaque[node.attrs["module"]].output(xs, sizes, node.attrs["index"])
    return run_float(node.op, xs, params, node.attrs, sizes)


def last_uses(graph: Graph) -> dict[str, list[str]]:
    """For each node the edges that nothing reads after it (and that are no outputs)."""
    last: dict[str, str] = {}
    for node in graph:
        last[node.name] = node.name
        for name in node.inputs:
            last[name] = node.name
    kept = set(graph.outputs)
    dying: dict[str, list[str]] = {}
    for edge, node_name in last.items():
        if edge not in kept:
            dying.setdefault(node_name, []).append(edge)
    return dying


def execute(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    step: Callable[[Node, list[Tensor]], Tensor],
    tap: Tap | None = None,
) -> dict[str, Tensor]:
    """Run all nodes; intermediate values are freed after their last use."""
    values: dict[str, Tensor] = {}
    dying = last_uses(graph)
    with torch.no_grad():
        for node in graph:
            value = inputs[node.name] if node.op == "input" else step(node, [values[i] for i in node.inputs])
            values[node.name] = value
            if tap is not None:
                tap(node, value)
            for name in dying.get(node.name, ()):
                del values[name]
    return values
