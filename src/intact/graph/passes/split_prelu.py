"""A PReLU with a slope for each channel becomes two functions and a depth-wise convolution."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from intact.graph.derive import Derived
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.per_channel import channel_params, made_of_others, per_channel

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
        def made(node: Node, params: dict[str, Tensor], derived: dict[str, Derived]) -> list[Node]:
            roles = channel_params(model, node, params, derived)
            above, below, scaled = (f"{node.name}/{part}" for part in ("positive", "negative", "scaled"))
            plain = replace(node, params={}, attrs={})
            return [
                replace(plain, name=above, op="relu"),
                replace(plain, name=below, op="clamp", attrs={"low": -math.inf, "high": 0.0}),
                *per_channel(plain, below, roles, model.params[node.params["weight"]].numel(), scaled),
                replace(plain, op="add", inputs=(above, scaled)),
            ]

        return made_of_others(model, self.fits, made)

    def ensures(self, model: FloatModel) -> str | None:
        """What is left has too few or too many axes."""
        return next((n.name for n in model.graph if self.fits(n)), None)

    def fits(self, node: Node) -> bool:
        """Whether it is a PReLU that this pass splits."""
        return node.op == self.op and len(node.shape) in _RANKS
