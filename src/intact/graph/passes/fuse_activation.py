"""A ReLU or a clamp after an operation becomes part of its output range."""

from __future__ import annotations

import math
from dataclasses import replace

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass

__all__ = ["FuseActivation"]

_PRODUCERS = frozenset({"conv", "conv_transpose", "linear", "matmul", "add", "mul"})


def _bounds(node: Node) -> list[float] | None:
    if node.op == "relu":
        return [0.0, math.inf]
    low, high = (node.attrs[k] if node.op == "clamp" else 0.0 for k in ("low", "high"))
    if low <= 0.0 <= high and low < high:
        return [low, high]
    return None


class FuseActivation(Pass):
    """``relu(conv(x))`` is a convolution whose output lies in [0, inf).

    With a zero point at the lowest code the saturation of the output is the activation, and costs nothing.
    Only where the activation alone reads its operand. The edge keeps the activation's name.
    """

    name = "fuse_activation"

    def run(self, model: FloatModel) -> FloatModel:
        """Fold every ReLU, ReLU6 and clamp around zero."""
        index, users = model.graph.index, model.graph.consumers()
        outputs = set(model.graph.outputs)
        folded: dict[str, Node] = {}
        for node in model.graph:
            bounds = _bounds(node)
            source = folded.get(node.inputs[0], index[node.inputs[0]]) if bounds else None
            if bounds is None or source is None or source.op not in _PRODUCERS:
                continue
            if len(users[node.inputs[0]]) > 1 or node.inputs[0] in outputs:
                continue
            old = source.attrs.get("activation", [-math.inf, math.inf])
            new = [min(max(b, old[0]), old[1]) for b in bounds]
            folded[node.name] = replace(source.with_attrs(activation=new), name=node.name)
        gone = {index[n].inputs[0] for n in folded}
        nodes = [folded.get(n.name, n) for n in model.graph if n.name not in gone]
        return model.with_graph(model.graph.rewritten(nodes))

    def ensures(self, model: FloatModel) -> str | None:
        """No activation that could be folded is left."""
        users, outputs = model.graph.consumers(), set(model.graph.outputs)
        for node in model.graph:
            alone = _bounds(node) and len(users[node.inputs[0]]) == 1 and node.inputs[0] not in outputs
            if alone and model.graph[node.inputs[0]].op in _PRODUCERS:
                return node.name
        return None
