"""The central share of the values; the rest is clipped."""

from __future__ import annotations

from typing import final

import torch

from intact.errors import PlanError
from intact.observers.density import Density
from intact.observers.histogram_observer import HistogramObserver
from intact.types import Free

__all__ = ["Percentile"]

_ZERO = torch.tensor([0.0, 5e-324], dtype=torch.float64)  # before and after the exact zeros


@final
class Percentile(HistogramObserver):
    """Clips ``100 - percent`` per cent of the values, exact zeros included, whatever the encoding.

    Affine: half of them at each end. Symmetric: those largest in magnitude. Within a bin the
    quantile is interpolated.

    Args:
        percent: the share to keep, in (0, 100].
        bins: of the histogram.

    Raises:
        PlanError: if the share is out of range.

    >>> from intact.types import UINT8
    >>> o = Percentile(90.0)
    >>> o.update(torch.linspace(-1.0, 1.0, 100001))
    >>> [round(v, 3) for v in o.range(Free(UINT8))]
    [-0.9, 0.9]
    """

    def __init__(self, percent: float = 99.99, bins: int = 4096) -> None:
        if not 0.0 < percent <= 100.0:
            raise PlanError("no such percentile", got=percent, allowed="(0, 100]")
        super().__init__(bins)
        self._percent = percent

    @property
    def settings(self) -> tuple[float, ...]:
        """The share to keep."""
        return (self._percent,)

    def _best(self, density: Density, spec: Free) -> tuple[float, float]:
        keep = self._percent / 100
        if spec.symmetric:
            points = torch.cat([density.edges.abs(), _ZERO]).unique()
            inside = density.below(points) - density.below(-points)
            top = _crossing(points, inside, keep * density.total)
            low, high = density.range
            return max(low, -top), min(high, top)
        points = torch.cat([density.edges, _ZERO]).unique()
        total, tail = density.total, (1 - keep) / 2 * density.total
        high = _crossing(points, density.below(points), total - tail)
        low = -_crossing(-points.flip(0), total - density.below(points).flip(0), total - tail)
        return min(low, high), max(low, high)


def _crossing(points: torch.Tensor, sums: torch.Tensor, wanted: float) -> float:
    """Where the rising broken line through ``(points, sums)`` reaches ``wanted``."""
    j = min(int((sums < wanted).sum()), len(points) - 1)
    if j == 0 or float(sums[j]) <= wanted:
        return float(points[j])
    share = (wanted - float(sums[j - 1])) / float(sums[j] - sums[j - 1])
    return float(points[j - 1] + share * (points[j] - points[j - 1]))
