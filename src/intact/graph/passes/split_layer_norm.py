"""A layer norm becomes means, products and a reciprocal root, for runtimes without a kernel of its own."""

from __future__ import annotations

from collections.abc import Collection

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.norm_parts import Parts

__all__ = ["SplitLayerNorm"]


class SplitLayerNorm(Pass):
    """``x - mean(x)``, divided by the root of the mean of its squares (:class:`Parts`), times weight, plus bias.

    The last node keeps the layer norm's name. Each step gets codes of its own.

    Args:
        only: names of the layer norms to split; by default all.
    """

    name = "split_layer_norm"
    op = "layer_norm"
    #: operations of the parts
    parts = frozenset({"sub"}) | Parts.operations

    def __init__(self, only: Collection[str] | None = None) -> None:
        self.only = only

    def run(self, model: FloatModel) -> FloatModel:
        """Split the layer norms."""
        nodes: list[Node] = []
        for node in model.graph:
            nodes.extend(_split(node, model) if self.fits(node) else [node])
        return model.with_graph(model.graph.rewritten(nodes))

    def ensures(self, model: FloatModel) -> str | None:
        """No layer norm is left."""
        return next((n.name for n in model.graph if self.fits(n)), None)

    def fits(self, node: Node) -> bool:
        """Whether it is a layer norm that this pass splits."""
        return node.op == self.op and (self.only is None or node.name in self.only)


def _split(node: Node, model: FloatModel) -> list[Node]:
    count = len(node.attrs["shape"])
    parts = Parts(node, list(range(len(node.shape) - count, len(node.shape))))
    centre = parts.emit("mean", "mean", node.inputs, parts.kept, axes=parts.axes, keepdim=True)
    centred = parts.emit("centred", "sub", (node.inputs[0], centre))
    parts.normalised(centred, float(node.attrs["eps"]))
    return parts.scaled(model, {role: node.params[role] for role in ("weight", "bias") if role in node.params})
