"""The smallest and the largest value seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import torch

from intact.observers.base import Observer
from intact.types import Free

__all__ = ["MinMax"]


@final
class MinMax(Observer):
    """Encodes everything seen, outliers included; no clipping error, the coarsest step.

    >>> from intact.types import UINT8
    >>> o = MinMax()
    >>> o.update(torch.tensor([-1.0, 3.0]))
    >>> o.range(Free(UINT8))
    (-1.0, 3.0)
    """

    def __init__(self) -> None:
        self._count, self._low, self._high = 0, 0.0, 0.0

    @property
    def count(self) -> int:
        """Elements seen."""
        return self._count

    @property
    def config(self) -> tuple[float, ...]:
        """No settings."""
        return ()

    def _take(self, count: int, low: float, high: float) -> None:
        seen = self._count > 0
        self._low = min(self._low, low) if seen else low
        self._high = max(self._high, high) if seen else high
        self._count += count

    def _accumulate(self, flat: torch.Tensor, low: float, high: float) -> None:
        self._take(flat.numel(), low, high)

    def _merge(self, other: Self) -> None:
        self._take(other._count, other._low, other._high)

    def _range(self, spec: Free) -> tuple[float, float]:
        return self._low, self._high

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            "count": torch.tensor(self._count),
            "range": torch.tensor([self._low, self._high], dtype=torch.float64),
        }

    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        self._count = int(state["count"])
        self._low, self._high = state["range"].tolist()
