"""The scale, near that of the extremes, whose codes point most nearly in the direction of the values."""

from __future__ import annotations

from typing import final

import torch

from intact.arithmetic import Rounding, round_to_int
from intact.observers.density import Density
from intact.observers.histogram_observer import HistogramObserver
from intact.observers.ranges import affine_parameters
from intact.types import Free, QType

__all__ = ["EasyQuant", "alignment"]

_LEAST, _MOST, _STEPS = 0.8, 1.2, 40
_TIE = 1e-9  # cosines this close are equal: what float64 leaves of a constant, whose bin is narrow


def alignment(density: Density, scale: torch.Tensor, zero_point: torch.Tensor, qtype: QType) -> torch.Tensor:
    """Cosine between the values and their codes, for many parameters at once, up to a common factor.

    With ``u = x / s`` and ``n = clamp(rint(u), qmin - z, qmax - z)``, the products ``n * u`` and ``n * n`` have the
    continuous antiderivatives ``n * u**2 / 2 - n * (4 * n**2 - 1) / 24`` and ``n**2 * (u - n) + n**3 / 3 + n / 6``,
    inside the range and beyond it: exact for a bin of uniform density, at one evaluation an edge.

    Args:
        density: the values.
        scale: float32, ``(candidates,)``.
        zero_point: int32, ``(candidates,)``.
        qtype: the encoding.

    Returns:
        ``sum(x * q) / sqrt(sum(q * q))``, float64, ``(candidates,)``; 0 where every code is 0.

    >>> d = Density(torch.tensor([0.9, 1.1]).double(), torch.tensor([10.0]).double())
    >>> alignment(d, torch.tensor([1.0, 9.0]), torch.tensor([0, 0]).int(), QType(2, signed=False))
    tensor([3.1623, 0.0000], dtype=torch.float64)
    """
    height = density.mass / density.edges.diff()
    flat = height.new_zeros(1)
    weight = torch.cat([flat, height]) - torch.cat([height, flat])
    used = weight.nonzero().squeeze(1)
    s = scale.to(torch.float64)
    u = density.edges[used] / s[:, None]
    n = round_to_int(u, Rounding.HALF_EVEN)
    n.clamp_(min=(qtype.qmin - zero_point).double()[:, None])
    n.clamp_(max=(qtype.qmax - zero_point).double()[:, None])
    cube = n * n * n
    mixed = (n * u * u / 2 - (4 * cube - n) / 24) @ weight[used]
    square = (n * n * (u - n) + cube / 3 + n / 6) @ weight[used]
    safe = torch.where(square > 0, square, torch.ones_like(square))
    return torch.where(square > 0, mixed * s / safe.sqrt() * s.sqrt(), torch.zeros_like(square))


@final
class EasyQuant(HistogramObserver):
    """Cosine search over 40 scales between 0.8 and 1.2 times that of the extremes, and that one.

    Wu et al., "EasyQuant: Post-training quantization via scale optimization", 2020, section 3.1, for one tensor. The
    search is made once, when the range is asked for.

    >>> from intact.types import UINT8
    >>> o = EasyQuant()
    >>> o.update(torch.linspace(-1.0, 1.0, 1001))
    >>> low, high = o.range(Free(UINT8))
    >>> 0.8 <= high <= 1.2 and low == -high
    True
    """

    def _best(self, density: Density, spec: Free) -> tuple[float, float]:
        low, high = density.range
        if low == high:
            return low, high
        grid = torch.linspace(_LEAST, _MOST, _STEPS, dtype=torch.float64)
        grid = torch.cat([grid.new_ones(1), grid])
        scale, zero = affine_parameters(low * grid, high * grid, spec.qtype, spec.symmetric, spec.power_of_two)
        found = alignment(density, scale, zero, spec.qtype)
        good = found >= found.max() * (1 - _TIE)
        distance = torch.where(good, (grid - 1).abs(), torch.full_like(grid, torch.inf))
        factor = float(grid[int(distance.argmin())])
        return low * factor, high * factor
