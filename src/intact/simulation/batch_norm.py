"""Batch norm while training: statistics of the (global) batch, running ones kept for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intact import dist
from intact.graph import FloatModel, Node
from intact.graph.derive import Derived, Expr
from intact.graph.passes import split_sources

__all__ = ["BatchNormSite", "batch_norm_site", "normalise"]


@dataclass(frozen=True)
class BatchNormSite:
    """A layer whose parameters have a batch norm folded into them.

    Args:
        weight: the layer's own weight; None for a batch norm that stands alone.
        bias: the layer's own bias, if it has one.
        roles: ``mean`` and ``var``, ``weight`` and ``bias`` of the batch norm, as expressions.
        eps: added to the variance.
        momentum: of the running statistics; None for a plain mean over all batches.
        path: module path of the batch norm.
    """

    weight: Expr | None
    bias: Expr | None
    roles: Mapping[str, Expr]
    eps: float
    momentum: float | None
    path: str


def batch_norm_site(model: FloatModel, node: Node) -> BatchNormSite | None:
    """The batch norm that was folded into a layer last; None if there is none, or more was done to the weight."""
    weight = model.expr(node.params.get("weight", ""))
    bias = model.expr(node.params.get("bias", ""))
    if not isinstance(weight, Derived) or not isinstance(bias, Derived):
        return None
    attrs: Mapping[str, Any] = weight.attrs
    if weight.rule == "batch_norm_weight" and node.op in ("conv", "linear") and "transposed_groups" not in attrs:
        (own,), roles = split_sources(weight.sources, attrs)
        before, _ = split_sources(bias.sources, attrs)
        return BatchNormSite(own, before[0] if before else None, roles, attrs["eps"], attrs["momentum"], attrs["path"])
    if weight.rule == "batch_norm_factor":
        _, roles = split_sources(weight.sources, attrs)
        return BatchNormSite(None, None, roles, attrs["eps"], attrs["momentum"], attrs["path"])
    return None


class Again:
    """Makes the output of a batch norm once more from its input, which is kept for the backward anyway."""

    def __init__(self, x: Tensor, y: Tensor, factor: Tensor, offset: Tensor) -> None:
        shape = [1, -1] + [1] * (x.ndim - 2)
        self.x, self.factor, self.offset = x, factor.reshape(shape), offset.reshape(shape)
        self.place, self.shape = y.data_ptr(), y.shape

    def pack(self, t: Tensor) -> Tensor | Again:
        """Keep nothing in place of the output."""
        return self if t.data_ptr() == self.place and t.shape == self.shape else t

    @staticmethod
    def unpack(kept: Tensor | Again) -> Tensor:
        """The tensor that was kept, or the output."""
        if isinstance(kept, Tensor):
            return kept
        return torch.addcmul(kept.offset, kept.x, kept.factor)


def normalise(
    x: Tensor, p: Mapping[str, Tensor], eps: float, momentum: float, training: bool
) -> tuple[Tensor, Again | None]:
    """``gamma * (x - mean) / sqrt(var + eps) + beta`` over axis 1; running statistics updated while training.

    Returns:
        The output, and what makes it once more in the backward.
    """
    if dist.world_size() == 1 and training and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        y, mean, inverse = torch.native_batch_norm(
            x, p.get("weight"), p.get("bias"), p["mean"], p["var"], training, momentum, eps)
        factor = inverse * p["weight"].detach() if "weight" in p else inverse
        offset = p["bias"].detach() - mean * factor if "bias" in p else -mean * factor
        return y, Again(x.detach(), y, factor.detach(), offset.detach())
    return _normalise(x, p, eps, momentum, training), None


def _normalise(x: Tensor, p: Mapping[str, Tensor], eps: float, momentum: float, training: bool) -> Tensor:
    if not training or dist.world_size() == 1:
        return F.batch_norm(x, p["mean"], p["var"], p.get("weight"), p.get("bias"), training, momentum, eps)
    axes = [a for a in range(x.ndim) if a != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = x.numel() // x.shape[1]
    local = torch.cat([x.sum(axes), x.new_tensor([float(count)])])
    total = dist.sum_with_gradient(local)
    count_all = total[-1].detach()
    mean = total[:-1] / count_all
    centred = x - mean.reshape(shape)
    var = dist.sum_with_gradient((centred * centred).sum(axes)) / count_all
    with torch.no_grad():
        p["mean"].lerp_(mean, momentum)
        p["var"].lerp_(var * (count_all / (count_all - 1).clamp(min=1)), momentum)
    y = centred * torch.rsqrt(var + eps).reshape(shape)
    y = y * p["weight"].reshape(shape) if "weight" in p else y
    return y + p["bias"].reshape(shape) if "bias" in p else y
