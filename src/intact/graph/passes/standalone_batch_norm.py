"""A batch norm that no convolution precedes becomes a depth-wise 1x1 convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from intact.graph.derive import Derived, derivation, evaluate
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.fold_batch_norm import batch_norm_affine, batch_norm_sources, split_sources
from intact.graph.passes.per_channel import per_channel

__all__ = ["StandaloneBatchNorm"]


@derivation("batch_norm_factor")
def _factor(xs: Sequence[torch.Tensor], attrs: Mapping[str, Any]) -> torch.Tensor:
    factor, _ = batch_norm_affine(split_sources(xs, attrs)[1], attrs["eps"])
    return factor.reshape(-1, *[1] * (attrs["rank"] - 1))


@derivation("batch_norm_offset")
def _offset(xs: Sequence[torch.Tensor], attrs: Mapping[str, Any]) -> torch.Tensor:
    return batch_norm_affine(split_sources(xs, attrs)[1], attrs["eps"])[1]


class StandaloneBatchNorm(Pass):
    """``gamma * (x - mean) / sqrt(var + eps) + beta`` is an affine map per channel.

    As a depth-wise convolution it has an integer kernel in every runtime, takes per-channel weight scales,
    and lets a following ReLU be folded. Inputs of shape (batch, channels) get a length axis for it.
    """

    name = "standalone_batch_norm"

    def run(self, model: FloatModel) -> FloatModel:
        """Rewrite every batch norm that is left."""
        params, derived, nodes = dict(model.params), dict(model.derived), []
        renamed: dict[str, str] = {}
        for node in model.graph:
            if node.op != "batch_norm":
                nodes.append(node)
                continue
            nodes.extend(self._convolution(model, node, params, derived))
        graph = model.graph.rewritten(nodes, renamed)
        return model.with_graph(graph, params, derived)

    def ensures(self, model: FloatModel) -> str | None:
        """No batch norm is left."""
        return next((n.name for n in model.graph if n.op == "batch_norm"), None)

    def _convolution(
        self, model: FloatModel, node: Node, params: dict[str, torch.Tensor], derived: dict[str, Derived]
    ) -> list[Node]:
        weight, bias = f"{node.name}.factor", f"{node.name}.offset"
        norm, attrs = batch_norm_sources(model, node)
        for name, rule in ((weight, "batch_norm_factor"), (bias, "batch_norm_offset")):
            derived[name] = Derived(rule, norm, {**attrs, "rank": max(len(node.shape), 3)})
            params[name] = evaluate(derived[name], model.sources or model.params)
        return per_channel(node, node.inputs[0], {"weight": weight, "bias": bias}, params[bias].numel())
