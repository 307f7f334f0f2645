"""An RMS norm that a model writes itself becomes one operation, as torch's own is."""

from __future__ import annotations

from dataclasses import replace

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.split_rms_norm import RMS_NORM, SplitRMSNorm

__all__ = ["JoinRMSNorm"]


class JoinRMSNorm(Pass):
    """``x * rsqrt(mean(x**2) + eps) * weight`` -> ``rms_norm``.

    For targets with floats: squares and their means in 8 bits leave nothing of small tokens (-2 dB where tokens differ
    in size by a factor of two; in float 22).
    """

    name = "join_rms_norm"

    def run(self, model: FloatModel) -> FloatModel:
        """Join every one that is found."""
        found = self.fitting(model)
        nodes: list[Node] = []
        for node in model.graph:
            norm = found.get(node.name)
            if norm is None:
                nodes.append(node)
                continue
            x, shape, eps, weight = norm
            args = [{"input": 0}, list(shape), None if weight is None else {"param": "arg0"}, eps]
            nodes.append(replace(node, op="aten", inputs=(x,), params={} if weight is None else {"arg0": weight},
                                 attrs={"target": RMS_NORM, "args": args, "kwargs": {}, "index": None}))
        return model.with_graph(model.graph.rewritten(nodes))

    def ensures(self, model: FloatModel) -> str | None:
        """None is left."""
        return next(iter(self.fitting(model)), None)

    def fitting(self, model: FloatModel) -> dict[str, tuple[str, tuple[int, ...], float, str | None]]:
        """Edge, shape, eps and weight of each, by the node that gives its result; torch's own are none."""
        index, found = model.graph.index, SplitRMSNorm().found(model)
        return {name: (n.x, n.shape, n.eps, n.weight) for name, n in found.items() if index[name].op != "aten"
                and (n.weight is None or model.params[n.weight].shape == n.shape)}
