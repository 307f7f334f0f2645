"""A factor and an offset for each channel, as a depth-wise 1x1 convolution: what every runtime has a kernel for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from intact.graph.derive import Derived, derivation, evaluate
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node

__all__ = ["channel_params", "made_of_others", "per_channel"]

#: the nodes in the place of one, and what they add to the parameters and to how those are made
Made = Callable[[Node, dict[str, Tensor], dict[str, Derived]], list[Node]]


@derivation("channel_factor")
def _factor(xs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    return xs[0].reshape(-1, *[1] * (attrs["rank"] - 1))


def channel_params(
    model: FloatModel, node: Node, params: dict[str, Tensor], derived: dict[str, Derived]
) -> dict[str, str]:
    """Roles of a depth-wise convolution whose weight holds the node's own (channels,), and whose bias is the node's.

    Args:
        model: the model of the node.
        node: with a ``weight`` (channels,), perhaps with a ``bias``.
        params: of the new graph; the weight is added.
        derived: likewise.
    """
    weight = f"{node.params['weight']}@factor{max(len(node.shape), 3)}"
    derived[weight] = Derived("channel_factor", (model.expr(node.params["weight"]),),
                              {"rank": max(len(node.shape), 3)})
    params[weight] = evaluate(derived[weight], model.sources or model.params)
    return {**node.params, "weight": weight}


def per_channel(
    node: Node, source: str, roles: Mapping[str, str], channels: int, name: str | None = None
) -> list[Node]:
    """Nodes that multiply every channel of an edge by its factor; an edge (batch, channels) gets a length axis for it.

    Args:
        node: what they are made of: its shape, its path, its folded activation, its name.
        source: the edge.
        roles: ``weight`` (channels, 1, 1, ...), perhaps ``bias`` (channels,).
        channels: their number.
        name: of the result, if it is not the node's.
    """
    name, spatial = name or node.name, max(len(node.shape), 3) - 2
    folded = {"activation": node.attrs["activation"]} if "activation" in node.attrs else {}
    attrs = {**folded, "stride": [1] * spatial, "pad_begin": [0] * spatial, "pad_end": [0] * spatial,
             "dilation": [1] * spatial, "groups": channels}
    conv = replace(node, name=name, op="conv", inputs=(source,), params=dict(roles), attrs=attrs)
    if len(node.shape) > 2:
        return [conv]
    wide, flat, plain = f"{name}/wide", f"{name}/conv", replace(node, op="reshape", params={})
    return [
        replace(plain, name=wide, inputs=(source,), attrs={"shape": [*node.shape, 1]}, shape=(*node.shape, 1)),
        replace(conv, name=flat, inputs=(wide,), shape=(*node.shape, 1)),
        replace(plain, name=name, inputs=(flat,), attrs={"shape": list(node.shape)}),
    ]


def made_of_others(model: FloatModel, fits: Callable[[Node], bool], made: Made) -> FloatModel:
    """The model with every node that fits replaced by what is made of it."""
    params, derived = dict(model.params), dict(model.derived)
    nodes = [new for node in model.graph for new in (made(node, params, derived) if fits(node) else [node])]
    return model.with_graph(model.graph.rewritten(nodes), params, derived)
