"""What watches over training: losses that are not finite or jump, scales that collapse; each with its layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intact.errors import TrainingError
from intact.simulation import QFloatModel

__all__ = ["Watch"]

_EVERY = 50  # steps between looks at the scales
_JUMP = 20.0
_PATIENCE = 5


class Watch:
    """Sees every loss.

    Args:
        qfloat: the model in training.
    """

    def __init__(self, qfloat: QFloatModel) -> None:
        self.qfloat = qfloat
        self.best = math.inf
        self.mean = math.nan
        self.high = 0

    def __call__(self, step: int, loss: float, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at one step.

        Raises:
            TrainingError: naming the layer.
        """
        if not math.isfinite(loss):
            raise TrainingError("the loss is not finite", where=self._first_bad(args, kwargs), got=loss,
                                fix="lower the learning rate, or clip gradients; go back to your last checkpoint")
        self.mean = loss if math.isnan(self.mean) else self.mean + 0.1 * (loss - self.mean)
        self.best = min(self.best, self.mean)
        self.high = self.high + 1 if loss > _JUMP * max(self.best, 1e-3) else 0
        if self.high >= _PATIENCE:
            raise TrainingError("the loss has jumped and stays high", where=self._worst(args, kwargs),
                                got=f"{loss:.4g} at step {step}", allowed=f"about {self.best:.4g}, as before",
                                fix="lower the learning rate")
        if step % _EVERY == 0:
            self._check_scales()

    def _check_scales(self) -> None:
        for quantizer in self.qfloat.edge_quantizers.values():
            if quantizer.known:
                quantizer.qparams()
        for name, weights in self.qfloat.weight_quantizers.items():
            collapsed = weights.collapsed()
            if collapsed:
                raise TrainingError("a learned scale has collapsed", where=name, got=f"{collapsed} channel(s)",
                                    fix="lower the learning rate of the scales")

    def _first_bad(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The first parameter or edge that is not finite."""
        for name, tensor in self.qfloat.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                return f"parameter {name}"
        found: list[str] = []

        def tap(name: str, value: Tensor) -> None:
            if not found and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                found.append(f"edge {name}")

        self.qfloat.look(args, kwargs, tap)
        return found[0] if found else "the loss itself: every edge is finite"

    def _worst(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The edge with the largest share of clipped values."""
        shares: dict[str, float] = {}

        def tap(name: str, value: Tensor) -> None:
            quantizer = self.qfloat.edge_quantizers.get(name)
            if quantizer is not None and value.numel():
                top = value.detach().abs().max()
                shares[name] = float((value.abs() >= top).float().mean()) if float(top) > 0 else 1.0

        self.qfloat.look(args, kwargs, tap)
        worst = max(shares, key=lambda k: shares[k], default="")
        return f"edge {worst} ({shares[worst]:.0%} of its values at one end)" if worst else ""
