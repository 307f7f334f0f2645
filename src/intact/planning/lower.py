"""What a target has no kernel for, rewritten as what it has kernels for."""

from __future__ import annotations

from intact.graph import FloatModel
from intact.graph.passes import SplitLayerNorm, transform
from intact.targets import TargetLike, get_target

__all__ = ["lowered"]


def lowered(model: FloatModel, target: TargetLike) -> FloatModel:
    """The model with its layer norms split, where the target computes no floats and has kernels for the parts only.

    Raises:
        CaptureError: if an output would change.

    >>> import torch
    >>> from intact.graph import capture
    >>> fm = capture(torch.nn.LayerNorm(8), torch.randn(2, 8))
    >>> [[n.op for n in lowered(fm, t).graph][1:3] for t in ("onnxruntime", "litert")]
    [['layer_norm'], ['mean', 'sub']]
    """
    where = get_target(target)
    known = where.rules.keys()
    if where.float_operations or "layer_norm" in known or not SplitLayerNorm.parts <= known:
        return model
    if all(n.op != "layer_norm" for n in model.graph):
        return model
    return transform(model, [SplitLayerNorm()])
