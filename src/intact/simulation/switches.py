"""What is set on a QFloat model from outside: its mode, what is frozen, and where its parameters start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from intact.simulation.checkpoint import Checkpointed
from intact.types import QParams

__all__ = ["Switched"]


class Switched(Checkpointed):
    """Mode, freezing and starting points."""

    def __init__(self) -> None:
        super().__init__()
        self._starts: dict[str, QParams] = {}
        self._weight_starts: dict[str, QParams] = {}

    def _folded(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def _gauge(self, name: str) -> Tensor | None:
        raise NotImplementedError

    def start(self, edges: Mapping[str, QParams], guesses: Mapping[str, QParams],
              weights: Mapping[str, QParams]) -> None:
        """Take parameters that were trained before. Calibration, if there is one, replaces only the guesses."""
        self._forget()
        self._starts, self._weight_starts = dict(edges), dict(weights)
        for name, found in {**guesses, **edges}.items():
            self.edge_quantizers[name].initialise(found)
        self._start_weights()
        self._trained = all(q.known for q in self.edge_quantizers.values())

    def _start_weights(self) -> None:
        params = self._folded()
        for name, weights in self.weight_quantizers.items():
            weights.initialise(params[name], self._gauge(name), self._weight_starts.get(name))

    def train(self, mode: bool = True) -> Self:
        """Training mode follows the data, evaluation mode does not."""
        for quantizer in self.edge_quantizers.values():
            quantizer.watching = False
        return super().train(mode)

    def freeze_ranges(self) -> None:
        """Fix scale and zero point of every edge and the scales of weights, whatever an optimizer does."""
        for quantizer in self.edge_quantizers.values():
            if quantizer.known and not quantizer.frozen:
                quantizer.freeze()
        for weights in self.weight_quantizers.values():
            if weights.known and not weights.frozen:
                weights.freeze()

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Let batch norms use their running statistics while training, and keep them."""
        self.batch_norm_frozen = frozen

    def _momentum(self, own: float | None) -> float:
        override = self.schedule.batch_norm_momentum
        if override is not None:
            return override
        return own or 1.0 / max(1, self.batches)  # torch gives 0 for a plain mean
