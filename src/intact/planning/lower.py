"""What a target has no kernel for, rewritten as what it has kernels for."""

from __future__ import annotations

from intact.graph import FloatModel, Node
from intact.graph.passes import (
    FuseActivation,
    JoinRMSNorm,
    Pass,
    SplitGroupNorm,
    SplitLayerNorm,
    SplitPReLU,
    SplitRMSNorm,
    transform,
)
from intact.targets import Target, TargetLike, get_target

__all__ = ["lowered"]


def lowered(model: FloatModel, target: TargetLike) -> FloatModel:
    """The model with norms and PReLUs split, where the target computes no floats and has kernels for the parts only.

    Where it has floats, an RMS norm that the model writes itself becomes one operation, in float like torch's own.

    Raises:
        CaptureError: if an output would change.

    >>> import torch
    >>> from intact.graph import capture
    >>> fm = capture(torch.nn.LayerNorm(8), torch.randn(2, 8))
    >>> [[n.op for n in lowered(fm, t).graph][1:3] for t in ("onnxruntime", "litert")]
    [['layer_norm'], ['mean', 'sub']]
    """
    where = get_target(target)
    if where.float_operations:
        return transform(model, [JoinRMSNorm()]) if JoinRMSNorm().fitting(model) else model
    known = where.rules.keys()
    splits_norms = SplitLayerNorm.parts <= known
    if SplitPReLU.parts <= known:
        model = _without(model, SplitPReLU(), where)
    if SplitGroupNorm.parts <= known | ({"layer_norm"} if splits_norms else set()):
        model = _without(model, SplitGroupNorm(), where)
    rms = SplitRMSNorm("layer_norm" in known)
    if rms.parts <= known and rms.found(model):
        model = transform(model, [rms])
    if splits_norms:
        refused = {n.name for n in model.graph if n.op == SplitLayerNorm.op and not _runs(n, model, where)}
        model = _without(model, SplitLayerNorm(refused), where)
    return model


def _runs(node: Node, model: FloatModel, target: Target) -> bool:
    rule = target.rules.get(node.op)
    return rule is not None and rule.check(node, model.graph) is None


def _without(model: FloatModel, split: SplitPReLU | SplitGroupNorm | SplitLayerNorm, target: Target) -> FloatModel:
    """The model after a pass, if it has something to split; what follows may have become part of a convolution."""
    if split.op in target.rules and not isinstance(split, SplitLayerNorm):
        return model
    if not any(split.fits(n) for n in model.graph):
        return model
    fused: list[Pass] = [FuseActivation()] if isinstance(split, SplitGroupNorm) else []
    return transform(model, [split, *fused])
