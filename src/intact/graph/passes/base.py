"""What a pass is, and the check that it changed no output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from intact.errors import CaptureError
from intact.graph.float_model import FloatModel
from intact.graph.ir import Graph
from intact.graph.shapes import infer_shapes

__all__ = ["Pass", "transform"]

#: largest change of an output, relative to its largest magnitude, that reordering float sums explains
TOLERANCE = 1e-4
_SAMPLES = 2


class Pass(ABC):
    """A transformation of the float graph that keeps its outputs."""

    #: for messages
    name: str

    @abstractmethod
    def run(self, model: FloatModel) -> FloatModel:
        """The transformed model; notes say what was and what was not changed, and why."""

    @abstractmethod
    def ensures(self, model: FloatModel) -> str | None:
        """None if the pass did its work on ``model``, else what is left of it."""


def transform(model: FloatModel, passes: Sequence[Pass]) -> FloatModel:
    """Apply passes in order; outputs on the example inputs must stay.

    Raises:
        CaptureError: naming the pass that changed an output or left its work undone.
    """
    before = _outputs(model)
    result = model
    for step in passes:
        result = step.run(result)
        left = step.ensures(result)
        if left is not None:
            raise CaptureError(f"pass {step.name} left its work undone", where=left)
    result = result.with_graph(infer_shapes(result))
    worst = _difference(before, _outputs(result))
    if worst > TOLERANCE:
        _name_the_culprit(model, passes, before)
    note = ("", f"{len(passes)} passes checked on the example inputs: largest relative change {worst:.1e}")
    return replace(result, notes=(*result.notes, note), folded={**model.folded, **_folded(model.graph, result.graph)})


def _folded(before: Graph, after: Graph) -> dict[str, str]:
    """Module paths of which nothing is left, and the module before them that took them in."""
    kept, index = {n.path for n in after if n.path}, before.index
    found = {}
    for node in before:
        source = node
        while source.inputs and source.path not in kept:
            source = index[source.inputs[0]]
        if node.path and node.path not in kept and source.path in kept:
            found[node.path] = source.path
    return found


def _name_the_culprit(model: FloatModel, passes: Sequence[Pass], before: list[Tensor]) -> None:
    for step in passes:
        model = step.run(model)
        worst = _difference(before, _outputs(model))
        if worst > TOLERANCE:
            raise CaptureError(f"pass {step.name} changes the model's output", got=f"{worst:.2e}",
                               allowed=f"{TOLERANCE:.0e} relative", fix="report this model")


def _outputs(model: FloatModel) -> list[Tensor]:
    return list(_tensors(model.run(model.small_example(_SAMPLES))))


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not a.is_floating_point() or not a.numel() or not bool(torch.isfinite(a).all()):
            continue  # non-finite outputs are found, and named, in calibration
        scale = float(a.abs().max()) + torch.finfo(torch.float32).tiny
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst
