"""The operand that broadcasts goes to the right: runtimes compute a + b and b + a differently when one broadcasts."""

from __future__ import annotations

from dataclasses import replace

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass

__all__ = ["OrderOperands"]


def _reversed(node: Node, model: FloatModel) -> bool:
    if node.op not in ("add", "mul"):
        return False
    first, second = (model.graph[i].shape for i in node.inputs)
    return first != node.shape and second == node.shape


class OrderOperands(Pass):
    """``small + full`` becomes ``full + small``; addition and multiplication of floats commute exactly."""

    name = "order_operands"

    def run(self, model: FloatModel) -> FloatModel:
        """Swap where the first operand broadcasts and the second does not."""
        nodes = [replace(n, inputs=tuple(reversed(n.inputs))) if _reversed(n, model) else n for n in model.graph]
        return model.with_graph(model.graph.rewritten(nodes))

    def ensures(self, model: FloatModel) -> str | None:
        """No such operand is left."""
        return next((n.name for n in model.graph if _reversed(n, model)), None)
