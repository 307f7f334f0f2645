"""The range that minimises the expected squared quantization error."""

from __future__ import annotations

from typing import final

import torch

from intact.arithmetic import Rounding, round_to_int
from intact.observers.density import Density
from intact.observers.histogram_observer import HistogramObserver
from intact.observers.ranges import affine_parameters
from intact.types import Free, QType

__all__ = ["Mse", "best_range", "expected_error"]

_TIE = 1e-9  # costs this close are equal: last bits of sums may differ between thread counts
_OCTAVES = 9.0  # the search goes down to 1/512 of the extremes


def expected_error(
    density: Density, scale: torch.Tensor, zero_point: torch.Tensor, qtype: QType
) -> torch.Tensor:
    """Sum of the squared errors of quantizing the values, for many parameters at once.

    With ``u = x / s``, ``n = clamp(rint(u), qmin - z, qmax - z)`` and ``r = u - n``, the squared
    error ``s**2 * r**2`` has the continuous antiderivative ``s**3 * (n / 12 + r**3 / 3)`` (a whole
    step contributes 1/12), inside the range and beyond it. So the error of a bin of uniform density
    is exact for any number of bits, and costs one evaluation an edge.

    Args:
        density: the values.
        scale: float32, ``(candidates,)``.
        zero_point: int32, ``(candidates,)``.
        qtype: the encoding.

    Returns:
        float64, ``(candidates,)``.

    >>> d = Density(torch.tensor([0.0, 1.0]).double(), torch.tensor([12.0]).double())
    >>> zero = torch.tensor([0, 0]).int()
    >>> expected_error(d, torch.tensor([1 / 3, 1 / 255]), zero, QType(8, signed=False))
    tensor([1.1111e-01, 1.5379e-05], dtype=torch.float64)
    """
    height = density.mass / density.edges.diff()
    flat = height.new_zeros(1)
    weight = torch.cat([flat, height]) - torch.cat([height, flat])
    used = weight.nonzero().squeeze(1)  # sparse where outliers stretch the range
    s = scale.to(torch.float64)
    u = density.edges[used] / s[:, None]
    n = round_to_int(u, Rounding.HALF_EVEN)
    n.clamp_(min=(qtype.qmin - zero_point).double()[:, None])
    n.clamp_(max=(qtype.qmax - zero_point).double()[:, None])
    r = u.sub_(n)
    total = (r * r).mul_(r).mul_(4.0).add_(n) @ weight[used]
    return (total * s.pow(3) / 12).clamp(min=0.0)


def _pick(density: Density, low: torch.Tensor, high: torch.Tensor, spec: Free) -> int:
    """The first of the best candidates."""
    scale, zero = affine_parameters(low, high, spec.qtype, spec.symmetric, spec.power_of_two)
    cost = expected_error(density, scale, zero, spec.qtype)
    return int((cost <= cost.min() * (1 + _TIE)).nonzero()[0])


def _candidates(
    low: float, high: float, a: torch.Tensor, b: torch.Tensor, spec: Free
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges at ``2**-a`` of the low, ``2**-b`` of the high end (``a`` for both if symmetric)."""
    a, b = a.clamp(min=0.0), b.clamp(min=0.0)
    if spec.symmetric:
        top = max(-low, high) * torch.exp2(-a)
        return -top.clamp(max=-low), top.clamp(max=high)
    return low * torch.exp2(-a), high * torch.exp2(-b)


def best_range(density: Density, spec: Free) -> tuple[float, float]:
    """The range with the least :func:`expected_error`, searched from coarse to fine.

    A grid over both ends in octaves, on few bins; then ever finer grids around the best, on more.

    Args:
        density: the values, clamped to ``spec.clip``.
        spec: encoding and symmetry.

    Returns:
        ``(low, high)``, within the extremes.
    """
    low, high = density.range
    if low == high:
        return low, high
    two = low < 0.0 < high and not spec.symmetric
    step = 0.5 if two else 0.125
    few, some = density.coarse(512), density.coarse(1024)
    axis = torch.arange(0.0, _OCTAVES + step, step, dtype=torch.float64)
    best = (0.0, 0.0)
    for stage in (few, some, some, density):
        grid = torch.cartesian_prod(axis, axis) if two else axis[:, None].expand(-1, 2)
        a, b = best[0] + grid[:, 0], best[1] + grid[:, 1]
        i = _pick(stage, *_candidates(low, high, a, b, spec), spec)
        best = max(float(a[i]), 0.0), max(float(b[i]), 0.0)
        axis = torch.linspace(-step, step, 7, dtype=torch.float64)
        step /= 3
    ends = torch.tensor([best, (0.0, 0.0)], dtype=torch.float64)
    lows, highs = _candidates(low, high, ends[:, 0], ends[:, 1], spec)
    i = _pick(density, lows, highs, spec)  # never worse than the extremes
    return float(lows[i]), float(highs[i])


@final
class Mse(HistogramObserver):
    """Minimises the mean squared error of what was seen; the default.

    The range follows from the encoding: many bits keep the outliers, few bits clip them.

    >>> from intact.types import UINT8
    >>> o = Mse()
    >>> o.update(torch.linspace(-1.0, 1.0, 1001))
    >>> o.update(torch.tensor([4.0]))
    >>> [round(v, 1) for v in o.range(Free(UINT8))]
    [-1.0, 4.0]
    >>> [round(v, 1) for v in o.range(Free(QType(3, signed=False)))]
    [-0.9, 1.2]
    """

    def _best(self, density: Density, spec: Free) -> tuple[float, float]:
        return best_range(density, spec)
