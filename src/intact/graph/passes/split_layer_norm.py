"""A layer norm becomes means, products and a reciprocal root, for runtimes without a kernel of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from intact.graph.float_model import FloatModel
from intact.graph.ir import Dim, Node
from intact.graph.passes.base import Pass

__all__ = ["SplitLayerNorm"]


class SplitLayerNorm(Pass):
    """``(x - mean(x)) * rsqrt(mean((x - mean(x))**2) + eps) * weight + bias``, a node for each step.

    The last node keeps the layer norm's name. Each step gets codes of its own.

    Args:
        only: names of the layer norms to split; by default all.
    """

    name = "split_layer_norm"
    op = "layer_norm"
    #: operations of the parts
    parts = frozenset({"mean", "sub", "mul", "add", "add_scalar", "rsqrt"})

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
    rank, count = len(node.shape), len(node.attrs["shape"])
    axes = list(range(rank - count, rank))
    kept: tuple[Dim, ...] = (*node.shape[:-count], *(1 for _ in axes))
    nodes: list[Node] = []

    def emit(what: str, op: str, inputs: tuple[str, ...], shape: tuple[Dim, ...], **attrs: Any) -> str:
        nodes.append(replace(node, name=f"{node.name}/{what}", op=op, inputs=inputs, params={}, attrs=attrs,
                             shape=shape))
        return nodes[-1].name

    (x,) = node.inputs
    centre = emit("mean", "mean", (x,), kept, axes=axes, keepdim=True)
    centred = emit("centred", "sub", (x, centre), node.shape)
    square = emit("square", "mul", (centred, centred), node.shape)
    variance = emit("variance", "mean", (square,), kept, axes=axes, keepdim=True)
    raised = emit("raised", "add_scalar", (variance,), kept, value=float(node.attrs["eps"]))
    inverse = emit("inverse", "rsqrt", (raised,), kept)
    result = emit("normal", "mul", (centred, inverse), node.shape)
    for role, op in (("weight", "mul"), ("bias", "add")):
        if role in node.params:
            name = f"{node.name}/{role}"
            shape = tuple(model.params[node.params[role]].shape)
            nodes.append(replace(node, name=name, op="constant", inputs=(), params={"value": node.params[role]},
                                 attrs={}, shape=shape))
            result = emit(f"by {role}" if op == "mul" else f"with {role}", op, (result, name), node.shape)
    nodes[-1] = replace(nodes[-1], name=node.name)
    return nodes
