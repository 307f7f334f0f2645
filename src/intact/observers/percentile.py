"""The central share of the values; the rest is clipped."""

from __future__ import annotations

from typing import final

import torch

from intact.errors import PlanError
from intact.observers.density import Density
from intact.observers.histogram_observer import HistogramObserver
from intact.types import Free

__all__ = ["Percentile"]


@final
class Percentile(HistogramObserver):
    """Clips ``100 - percent`` per cent of the values, whatever the encoding.

    Affine: half of them at each end. Symmetric: those largest in magnitude. Within a bin the
    quantile is interpolated. Exact zeros are not counted: they always have a code, and a sparse
    activation must not lose what it has.

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
        total = float(density.mass.sum())
        low, high = density.range
        if total == 0.0:
            return low, high
        keep = self._percent / 100
        if spec.symmetric:
            points = density.edges.abs().unique()
            inside = density.below(points) - density.below(-points)
            top = _crossing(points, inside, keep * total)
            return max(low, -top), min(high, top)
        rest = (1 - keep) / 2 * total
        below = density.below(density.edges)
        high = _crossing(density.edges, below, total - rest)
        low = -_crossing(-density.edges.flip(0), total - below.flip(0), total - rest)
        return low, max(low, high)


def _crossing(points: torch.Tensor, sums: torch.Tensor, wanted: float) -> float:
    """Where the rising broken line through ``(points, sums)`` reaches ``wanted``."""
    j = min(int((sums < wanted).sum()), len(points) - 1)
    if j == 0 or float(sums[j]) <= wanted:
        return float(points[j])
    share = (wanted - float(sums[j - 1])) / float(sums[j] - sums[j - 1])
    return float(points[j - 1] + share * (points[j] - points[j - 1]))
