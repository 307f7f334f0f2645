"""A batch norm that no convolution precedes becomes a depth-wise 1x1 convolution."""

from __future__ import annotations

from dataclasses import replace

import torch

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.fold_batch_norm import batch_norm_affine

__all__ = ["StandaloneBatchNorm"]


class StandaloneBatchNorm(Pass):
    """``gamma * (x - mean) / sqrt(var + eps) + beta`` is an affine map per channel.

    As a depth-wise convolution it has an integer kernel in every runtime, takes per-channel weight scales,
    and lets a following ReLU be folded. Inputs of shape (batch, channels) get a length axis for it.
    """

    name = "standalone_batch_norm"

    def run(self, model: FloatModel) -> FloatModel:
        """Rewrite every batch norm that is left."""
        params, nodes = dict(model.params), []
        renamed: dict[str, str] = {}
        for node in model.graph:
            if node.op != "batch_norm":
                nodes.append(node)
                continue
            nodes.extend(self._convolution(model, node, params))
        graph = model.graph.rewritten(nodes, renamed)
        return model.with_graph(graph, params)

    def ensures(self, model: FloatModel) -> str | None:
        """No batch norm is left."""
        return next((n.name for n in model.graph if n.op == "batch_norm"), None)

    def _convolution(self, model: FloatModel, node: Node, params: dict[str, torch.Tensor]) -> list[Node]:
        factor, offset = batch_norm_affine(model, node)
        rank = max(len(node.shape), 3)
        spatial = rank - 2
        weight, bias = f"{node.name}.factor", f"{node.name}.offset"
        params[weight] = factor.to(torch.float32).reshape(-1, *[1] * (rank - 1))
        params[bias] = offset.to(torch.float32)
        attrs = {"stride": [1] * spatial, "pad_begin": [0] * spatial, "pad_end": [0] * spatial,
                 "dilation": [1] * spatial, "groups": int(factor.numel())}
        conv = replace(node, op="conv", params={"weight": weight, "bias": bias}, attrs=attrs)
        if len(node.shape) > 2:
            return [conv]
        wide, flat = f"{node.name}/wide", f"{node.name}/conv"
        return [
            replace(node, name=wide, op="reshape", params={}, attrs={"shape": [*node.shape, 1]}),
            replace(conv, name=flat, inputs=(wide,)),
            replace(node, op="reshape", inputs=(flat,), params={}, attrs={"shape": list(node.shape)}),
        ]
