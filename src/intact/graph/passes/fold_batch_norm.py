"""Batch norm after a convolution or a linear layer becomes part of its weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass

__all__ = ["FoldBatchNorm", "batch_norm_affine"]


def batch_norm_affine(model: FloatModel, node: Node) -> tuple[Tensor, Tensor]:
    """Factor and offset per channel, in float64: ``gamma / sqrt(var + eps)``, ``beta - mean * factor``."""
    p = {role: model.params[name].to(torch.float64) for role, name in node.params.items()}
    factor = torch.rsqrt(p["var"] + node.attrs["eps"])
    if "weight" in p:
        factor = factor * p["weight"]
    offset = p.get("bias", torch.zeros_like(factor)) - p["mean"] * factor
    return factor, offset


class FoldBatchNorm(Pass):
    """``bn(conv(x)) = conv'(x)`` where the batch norm is the only reader of the convolution.

    The weights are scaled per output channel: axis 0, but axis 1 (within each group) of a transposed
    convolution. A weight that several layers share is copied, and the note says so.
    """

    name = "fold_batch_norm"

    def run(self, model: FloatModel) -> FloatModel:
        """Fold every batch norm that follows its producer alone."""
        index, users = model.graph.index, model.graph.consumers()
        outputs = set(model.graph.outputs)
        params = dict(model.params)
        uses: dict[str, int] = {}
        for node in model.graph:
            for name in node.params.values():
                uses[name] = uses.get(name, 0) + 1
        replaced: dict[str, Node] = {}
        renamed: dict[str, str] = {}
        notes = []
        for bn in model.graph:
            producer = index.get(bn.inputs[0]) if bn.op == "batch_norm" else None
            if producer is None or producer.op not in ("conv", "linear", "conv_transpose"):
                continue
            if producer.op == "linear" and len(producer.shape) != 2:
                continue  # the channels of the batch norm are axis 1, those of the linear layer the last
            if len(users[producer.name]) > 1 or producer.name in outputs or producer.name in replaced:
                notes.append((bn.path, "batch norm not folded: its input has other readers"))
                continue
            shared = [r for r in ("weight", "bias") if r in producer.params and uses[producer.params[r]] > 1]
            if shared:
                notes.append((producer.path, f"shared {', '.join(shared)} copied to fold batch norm '{bn.path}'"))
            replaced[producer.name] = _fold(model, producer, bn, params, uses)
            renamed[bn.name] = producer.name
        nodes = [replaced.get(n.name, n) for n in model.graph if n.name not in renamed]
        graph = model.graph.rewritten(nodes, renamed)
        return replace(model.with_graph(graph, params), notes=(*model.notes, *notes))

    def ensures(self, model: FloatModel) -> str | None:
        """No batch norm is left behind a producer that it alone reads."""
        index, users = model.graph.index, model.graph.consumers()
        for node in model.graph:
            if node.op == "batch_norm":
                source = index[node.inputs[0]]
                alone = len(users[source.name]) == 1 and source.name not in model.graph.outputs
                if alone and source.op in ("conv", "conv_transpose"):
                    return node.name
        return None


def _fold(model: FloatModel, conv: Node, bn: Node, params: dict[str, Tensor], uses: dict[str, int]) -> Node:
    factor, offset = batch_norm_affine(model, bn)
    weight = model.params[conv.params["weight"]].to(torch.float64)
    if conv.op == "conv_transpose":
        groups = conv.attrs["groups"]
        split = weight.unflatten(0, (groups, -1))  # (groups, in / groups, out / groups, ...)
        shape = (groups, 1, -1, *[1] * (weight.ndim - 2))
        folded = (split * factor.reshape(shape)).flatten(0, 1)
    else:
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    bias = model.params[conv.params["bias"]].to(torch.float64) if "bias" in conv.params else 0.0
    roles = {}
    for role, value in (("weight", folded), ("bias", bias * factor + offset)):
        name = conv.params.get(role) or f"{conv.params['weight'].rpartition('.')[0]}.{role}".lstrip(".")
        taken = uses.get(name, 0) > (1 if role in conv.params else 0)
        name = f"{name}@{conv.name}" if taken else name
        params[name] = value.to(torch.float32)
        roles[role] = name
    return replace(conv, params=roles)
