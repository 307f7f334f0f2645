"""Batch norm after a convolution or a linear layer becomes part of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from intact.graph.derive import Derived, Expr, derivation, evaluate
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass

__all__ = ["BATCH_NORM_ROLES", "FoldBatchNorm", "batch_norm_affine", "batch_norm_sources", "split_sources"]


BATCH_NORM_ROLES = ("weight", "bias", "mean", "var")


def batch_norm_affine(p: Mapping[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Factor and offset per channel: ``gamma / sqrt(var + eps)``, ``beta - mean * factor``.

    Args:
        p: ``mean`` and ``var``, and ``weight`` and ``bias`` if the batch norm has them; float64.
        eps: added to the variance.
    """
    factor = torch.rsqrt(p["var"] + eps)
    if "weight" in p:
        factor = factor * p["weight"]
    offset = p.get("bias", torch.zeros_like(factor)) - p["mean"] * factor
    return factor, offset


def batch_norm_sources(model: FloatModel, bn: Node) -> tuple[tuple[Expr, ...], dict[str, Any]]:
    """The batch norm's parameters as sources of a derivation, and the attributes that say which is which."""
    roles = [r for r in BATCH_NORM_ROLES if r in bn.params]
    attrs = {"roles": roles, "eps": bn.attrs["eps"], "momentum": bn.attrs.get("momentum"), "path": bn.path}
    return tuple(model.expr(bn.params[r]) for r in roles), attrs


def split_sources(xs: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Sources of a derivation that ends in a batch norm's: what comes before them, and those by role."""
    count = len(attrs["roles"])
    return list(xs[: len(xs) - count]), dict(zip(attrs["roles"], xs[len(xs) - count :], strict=True))


@derivation("batch_norm_weight")
def _folded_weight(xs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    (weight,), p = split_sources(xs, attrs)
    factor, _ = batch_norm_affine(p, attrs["eps"])
    groups = attrs.get("transposed_groups")
    if groups:  # (in, out / groups, ...): the channels are axis 1 within each group
        split = weight.unflatten(0, (groups, -1))
        result: Tensor = (split * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)
        return result
    folded: Tensor = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return folded


@derivation("batch_norm_bias")
def _folded_bias(xs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    before, p = split_sources(xs, attrs)
    factor, offset = batch_norm_affine(p, attrs["eps"])
    return before[0] * factor + offset if before else offset


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
        params, derived = dict(model.params), dict(model.derived)
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
            replaced[producer.name] = _fold(model, producer, bn, params, derived, uses)
            renamed[bn.name] = producer.name
        nodes = [replaced.get(n.name, n) for n in model.graph if n.name not in renamed]
        graph = model.graph.rewritten(nodes, renamed)
        dropouts = {renamed.get(edge, edge): how for edge, how in model.dropouts.items()}
        return replace(model.with_graph(graph, params, derived), dropouts=dropouts, notes=(*model.notes, *notes))

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


def _fold(
    model: FloatModel, conv: Node, bn: Node, params: dict[str, Tensor], derived: dict[str, Derived],
    uses: dict[str, int],
) -> Node:
    norm, attrs = batch_norm_sources(model, bn)
    if conv.op == "conv_transpose":
        attrs["transposed_groups"] = conv.attrs["groups"]
    roles = {}
    for role in ("weight", "bias"):
        own = (model.expr(conv.params[role]),) if role in conv.params else ()
        name = conv.params.get(role) or f"{conv.params['weight'].rpartition('.')[0]}.{role}".lstrip(".")
        taken = uses.get(name, 0) > (1 if role in conv.params else 0)
        name = f"{name}@{conv.name}" if taken else name
        derived[name] = Derived(f"batch_norm_{role}", (*own, *norm), attrs)
        params[name] = evaluate(derived[name], model.sources or model.params)
        roles[role] = name
    return replace(conv, params=roles)
