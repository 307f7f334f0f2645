"""What was done to a captured model before it was planned, done again to hold it against the integer model."""

from __future__ import annotations

from intact.engine import QModel
from intact.graph import FloatModel
from intact.graph.passes import EqualizeChannels, SmoothChannels, transform
from intact.graph.passes.smooth_channels import smoothable
from intact.planning import lowered

__all__ = ["as_quantized"]


def as_quantized(model: FloatModel, q: QModel) -> FloatModel:
    """A captured model, equalized, lowered and smoothed as ``q`` was; what was done to it already is not done again.

    Raises:
        CaptureError: if it is another model.
    """
    steps, smoothing = q.info.get("equalization", {}), q.info.get("smoothing", {})
    if steps and not model.equalization:
        model = transform(model, [EqualizeChannels(steps=steps)])
    if smoothing and not model.smoothing:
        if not smoothing.keys() <= smoothable(model).keys():  # some of its norms are there once it is lowered
            model = lowered(model, q.target)
        model = transform(model, [SmoothChannels(smoothing)])
    return lowered(model, q.target)
