"""Knowledge distillation from the float model: of its outputs, and of its features by layer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intact.errors import TrainingError
from intact.graph import FloatModel, Graph, Node

__all__ = ["Distill", "Teacher", "distillation_loss"]


@dataclass(frozen=True)
class Distill:
    """How much the float model teaches.

    Args:
        weight: of the outputs' loss; labels get ``1 - weight`` (and nothing where there are none).
        temperature: softens both sides of the Kullback-Leibler divergence (Hinton et al., "Distilling the knowledge
            in a neural network", 2015); its square multiplies the loss.
        loss: ``"kl"`` for logits whose classes are on axis 1, as in ``torch``'s cross-entropy (a mean over samples and,
            in maps of shape (N, classes, H, W), over places); ``"mse"`` for any other outputs.
        features: edge or module path to the weight of its mean squared error, relative to the teacher's power.

    Raises:
        TrainingError: for weights or temperatures that make no sense.
    """

    weight: float = 1.0
    temperature: float = 2.0
    loss: Literal["kl", "mse"] = "kl"
    features: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0 or not self.temperature > 0.0 or self.loss not in ("kl", "mse"):
            raise TrainingError("impossible distillation", got=f"weight={self.weight}, temperature={self.temperature}, "
                                f"loss={self.loss!r}", allowed="weight in [0, 1], temperature above 0, 'kl' or 'mse'")


def feature_edges(features: Mapping[str, float], graph: Graph) -> dict[str, float]:
    """Edge name to weight; a module path stands for the last edge made in it.

    Raises:
        TrainingError: for a name that is neither; names the nearest.
    """
    found = {}
    for name, weight in features.items():
        edges = [n.name for n in graph if n.name == name or n.path == name]
        if not edges:
            known = sorted({n.name for n in graph} | {n.path for n in graph if n.path})
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
            raise TrainingError("no such layer to take features from", where=name,
                                allowed=f"nearest: {', '.join(near)}")
        found[name if name in edges else edges[-1]] = float(weight)
    return found


class Teacher:
    """The float model, evaluated without gradients.

    Args:
        model: a captured model (which can give features), or any module in evaluation mode.
        features: edges whose values are wanted.
    """

    def __init__(self, model: FloatModel | nn.Module, features: Mapping[str, float]) -> None:
        if features and not isinstance(model, FloatModel):
            raise TrainingError("features need a captured teacher", got=type(model).__name__,
                                fix="pass teacher=intact.capture(net, example_inputs), or none")
        self.model, self.features = model, features
        if isinstance(model, nn.Module):
            model.eval()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """Outputs, and values of the wanted edges."""
        seen: dict[str, Tensor] = {}

        def tap(node: Node, value: Tensor) -> None:
            if node.name in self.features:
                seen[node.name] = value

        with torch.no_grad():
            if isinstance(self.model, FloatModel):
                return self.model.run(self.model.signature.bind(args, kwargs), tap), seen
            return self.model(*args, **kwargs), seen


def _pairs(student: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
    if isinstance(student, Tensor):
        return [(student, teacher)] if student.is_floating_point() else []
    if isinstance(student, Mapping):
        return [p for k in student for p in _pairs(student[k], teacher[k])]
    if isinstance(student, (tuple, list)):
        return [p for a, b in zip(student, teacher, strict=True) for p in _pairs(a, b)]
    return []


def distillation_loss(how: Distill, student: Any, teacher: Any, features: Mapping[str, Tensor],
                      wanted: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Loss of the outputs plus weighted losses of the features."""
    total: Tensor | None = None
    for ours, theirs in _pairs(student, teacher):
        part = _divergence(ours, theirs, how.temperature) if how.loss == "kl" else _relative(ours, theirs)
        total = part if total is None else total + part
    if total is None:
        raise TrainingError("the model gives no real tensor to distil", got=type(student).__name__)
    total = total * how.weight
    for name, weight in weights.items():
        total = total + weight * _relative(features[name], wanted[name])
    return total


def _divergence(ours: Tensor, theirs: Tensor, t: float) -> Tensor:
    """Kullback-Leibler divergence of softened classes, a mean over everything but the classes."""
    if ours.ndim < 2 or ours.shape[1] < 2:
        raise TrainingError("these are no logits of classes", got=tuple(ours.shape), allowed="(samples, classes, ...)",
                            fix="pass distill=Distill(loss='mse')")
    found = F.kl_div(F.log_softmax(ours.float() / t, 1), F.log_softmax(theirs.float() / t, 1), reduction="sum",
                     log_target=True)
    return found * (t * t * ours.shape[1] / ours.numel())


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared error over the teacher's power."""
    power = theirs.float().square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return (ours.float() - theirs.float()).square().mean() / power
