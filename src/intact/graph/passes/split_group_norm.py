"""A group norm becomes a layer norm of its groups, and a factor and an offset for each channel."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from intact.graph.derive import Derived
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.per_channel import channel_params, made_of_others, per_channel

__all__ = ["SplitGroupNorm"]

_RANKS = (2, 3, 4, 5)


class SplitGroupNorm(Pass):
    """Reshape to (batch, groups, values), layer norm, reshape back, a depth-wise 1x1 convolution.

    Instance norms are group norms. Left: free sizes besides the batch, and inputs of more than 5 axes.
    """

    name = "split_group_norm"
    op = "group_norm"
    #: operations of the parts
    parts = frozenset({"reshape", "layer_norm", "conv"})

    def run(self, model: FloatModel) -> FloatModel:
        """Split every group norm that can be."""
        def made(node: Node, params: dict[str, Tensor], derived: dict[str, Derived]) -> list[Node]:
            if "weight" not in node.params:
                return _normalised(node, node.name)
            normal, roles = f"{node.name}/normal", channel_params(model, node, params, derived)
            return [*_normalised(node, normal), *per_channel(node, normal, roles, int(node.shape[1]))]

        return made_of_others(model, self.fits, made)

    def ensures(self, model: FloatModel) -> str | None:
        """What is left has free sizes or too many axes."""
        return next((n.name for n in model.graph if self.fits(n)), None)

    def fits(self, node: Node) -> bool:
        """Whether it is a group norm that this pass splits."""
        return node.op == self.op and len(node.shape) in _RANKS and all(isinstance(d, int) for d in node.shape[1:])


def _normalised(node: Node, name: str) -> list[Node]:
    """Nodes up to the normalised values."""
    groups = node.attrs["groups"]
    values = math.prod(int(d) for d in node.shape[1:]) // groups
    plain, shape = replace(node, params={}, attrs={}), (node.shape[0], groups, values)
    apart, normal = f"{node.name}/groups", f"{node.name}/norm"
    return [
        replace(plain, name=apart, op="reshape", attrs={"shape": list(shape)}, shape=shape),
        replace(plain, name=normal, op="layer_norm", inputs=(apart,), shape=shape,
                attrs={"shape": [values], "eps": node.attrs["eps"]}),
        replace(plain, name=name, op="reshape", inputs=(normal,), attrs={"shape": list(node.shape)}),
    ]
