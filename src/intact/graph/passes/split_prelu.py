"""A PReLU with a slope for each channel becomes two functions and a depth-wise convolution."""

from __future__ import annotations

import math
from dataclasses import replace

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.per_channel import channel_params, per_channel

__all__ = ["SplitPReLU"]

_RANKS = (2, 3, 4, 5)


class SplitPReLU(Pass):
    """``max(x, 0) + slope * min(x, 0)``, for inputs of 2 to 5 axes; what has others is left."""

    name = "split_prelu"
    op = "prelu"
    #: operations of the parts
    parts = frozenset({"relu", "clamp", "conv", "add"})

    def run(self, model: FloatModel) -> FloatModel:
        """Split every PReLU that can be."""
        nodes: list[Node] = []
        params, derived = dict(model.params), dict(model.derived)
        for node in model.graph:
            if not self.fits(node):
                nodes.append(node)
                continue
            roles = channel_params(model, node, params, derived)
            above, below, scaled = (f"{node.name}/{part}" for part in ("positive", "negative", "scaled"))
            plain = replace(node, params={}, attrs={})
            nodes.append(replace(plain, name=above, op="relu"))
            nodes.append(replace(plain, name=below, op="clamp", attrs={"low": -math.inf, "high": 0.0}))
            nodes += per_channel(plain, below, roles, model.params[node.params["weight"]].numel(), scaled)
            nodes.append(replace(plain, op="add", inputs=(above, scaled)))
        return model.with_graph(model.graph.rewritten(nodes), params, derived)

    def ensures(self, model: FloatModel) -> str | None:
        """What is left has too few or too many axes."""
        return next((n.name for n in model.graph if self.fits(n)), None)

    def fits(self, node: Node) -> bool:
        """Whether it is a PReLU that this pass splits."""
        return node.op == self.op and len(node.shape) in _RANKS
