"""An exponential moving average of each batch's smallest and largest value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import torch

from intact.errors import PlanError
from intact.observers.base import Observer
from intact.types import Free

__all__ = ["MovingAverage"]


@final
class MovingAverage(Observer):
    """``range = (1 - momentum) * range + momentum * batch range``; the first batch is copied.

    By definition the result depends on the order and on the size of the batches: later ones weigh
    more. So it suits training, whose ranges drift, and not calibration. Merging takes the mean
    weighted by the number of batches, in float64 (associative up to its last bits).

    Args:
        momentum: weight of the newest batch, in (0, 1].

    Raises:
        PlanError: if the momentum is out of range.

    >>> from intact.types import UINT8
    >>> o = MovingAverage(momentum=0.5)
    >>> for top in (4.0, 2.0):
    ...     o.update(torch.tensor([0.0, top]))
    >>> o.range(Free(UINT8))
    (0.0, 3.0)
    """

    def __init__(self, momentum: float = 0.1) -> None:
        if not 0.0 < momentum <= 1.0:
            raise PlanError("no such momentum", got=momentum, allowed="(0, 1]")
        self._momentum = momentum
        self._count, self._batches, self._low, self._high = 0, 0, 0.0, 0.0

    @property
    def count(self) -> int:
        """Elements seen."""
        return self._count

    @property
    def config(self) -> tuple[float, ...]:
        """The momentum."""
        return (self._momentum,)

    def _take(self, low: float, high: float, weight: float) -> None:
        """Move by ``weight`` towards the range given; exact where the two agree."""
        self._low += weight * (low - self._low)
        self._high += weight * (high - self._high)

    def _accumulate(self, flat: torch.Tensor, low: float, high: float) -> None:
        self._take(low, high, self._momentum if self._batches else 1.0)
        self._count += flat.numel()
        self._batches += 1

    def _merge(self, other: Self) -> None:
        total = self._batches + other._batches
        mine, theirs = self._batches / total, other._batches / total
        self._low = mine * self._low + theirs * other._low
        self._high = mine * self._high + theirs * other._high
        self._count, self._batches = self._count + other._count, total

    def _range(self, spec: Free) -> tuple[float, float]:
        return self._low, self._high

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            "count": torch.tensor([self._count, self._batches]),
            "range": torch.tensor([self._low, self._high], dtype=torch.float64),
        }

    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        self._count, self._batches = (int(n) for n in state["count"])
        self._low, self._high = state["range"].tolist()
