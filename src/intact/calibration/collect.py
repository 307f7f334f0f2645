"""What is collected from one batch: ranges of edges as far as they matter, and means of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from intact.errors import CalibrationError
from intact.graph import Graph, Node
from intact.graph.masks import MASK, added_inputs
from intact.simulation import QFloatModel

__all__ = ["Collector", "masked_operands"]


def masked_operands(graph: Graph) -> dict[str, tuple[str, str]]:
    """Edges that only an addition with a folded ReLU reads: edge to (addition, other operand)."""
    users, outputs, found = graph.consumers(), set(graph.outputs), {}
    for node in graph:
        bounds = node.attrs.get("activation")
        if node.op != "add" or bounds is None or bounds[0] != 0.0 or not math.isinf(bounds[1]):
            continue
        a, b = node.inputs
        if graph[a].shape != node.shape or graph[b].shape != node.shape or a == b:
            continue
        for edge, other in ((a, b), (b, a)):
            if len(users[edge]) == 1 and edge not in outputs and graph[edge].op in ("conv", "linear", "matmul"):
                found[edge] = (node.name, other)
    return found


class Collector:
    """Sees every edge of one batch and shows it to its observer.

    An operand ``y`` of ``relu(y + d)`` matters only where the sum is positive: any value up to ``-d`` gives the
    same zero. It is observed as ``max(y, -max(d, 0))``, so that no code is spent on what the ReLU removes.
    """

    def __init__(self, qfloat: QFloatModel, batch: int) -> None:
        self.observers, self.batch, self.sums = qfloat.observers, batch, qfloat.channel_sums
        graph = qfloat.plan.graph
        self.masked = {e: v for e, v in masked_operands(graph).items() if e in self.observers}
        self.held: dict[str, Tensor] = {}
        self.wanted = {e for edge, (_, other) in self.masked.items() for e in (edge, other)}
        self.by_addition: dict[str, list[str]] = {}
        for edge, (addition, _) in self.masked.items():
            self.by_addition.setdefault(addition, []).append(edge)
        self.layers: dict[str, str] = {}
        for node in graph:
            if qfloat.plan.decisions[node.name].integer and "weight" in node.params and "bias" in node.params:
                self.layers.setdefault(node.inputs[0], node.op)
        self.graph = graph
        #: inputs that would take all codes for themselves if they were masks
        self.additive = frozenset() if qfloat.plan.target.float_operations else added_inputs(graph)

    def __call__(self, node: Node, value: Tensor) -> None:
        """Observe one edge."""
        name = node.name
        if name in self.additive and float(value.min()) <= MASK:
            raise CalibrationError("an input that is added to scores holds a mask", where=name, got=float(value.min()),
                                   allowed=f"numbers above {MASK:g}, or a boolean mask",
                                   fix="let forward take a boolean mask, for masked_fill or where")
        if name in self.layers:
            self._add_means(name, value)
        if name in self.wanted:
            self.held[name] = value
        if name in self.observers and name not in self.masked and (self.batch == 0 or node.op != "constant"):
            self.observers[name].update(value, where=node.path or name, batch=self.batch)
        for edge in self.by_addition.get(name, ()):
            other = self.held[self.masked[edge][1]]
            seen = torch.maximum(self.held[edge], other.clamp(min=0).neg_())
            self.observers[edge].update(seen, where=self.graph[edge].path or edge, batch=self.batch)
        if name in self.by_addition:
            for operand in node.inputs:
                if operand in self.masked:
                    self.held.pop(operand, None)

    def _add_means(self, name: str, value: Tensor) -> None:
        axis = value.ndim - 1 if self.layers[name] == "linear" else 1
        axes = [a for a in range(value.ndim) if a != axis]
        # float32 within a batch, float64 across batches
        total = value.mean(axes, dtype=torch.float32).to(torch.float64) * (value.numel() // value.shape[axis])
        old, count = self.sums.get(name, (torch.zeros_like(total), 0))
        self.sums[name] = (old + total, count + value.numel() // value.shape[axis])
