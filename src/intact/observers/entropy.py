"""The range whose codes tell most of the distribution: least Kullback-Leibler divergence."""

from __future__ import annotations

from typing import final

import torch

from intact.arithmetic import Rounding, round_to_int
from intact.observers.density import Density
from intact.observers.histogram_observer import HistogramObserver
from intact.observers.ranges import affine_parameters
from intact.types import Free

__all__ = ["Entropy"]

_BINS = 2048  # as TensorRT
_CANDIDATES = 128


@final
class Entropy(HistogramObserver):
    """The threshold ``T``, applied to both signs, whose codes lose least of the distribution.

    For each of 128 thresholds: ``P`` is the distribution of the values clamped to ``[-T, T]``,
    ``Q`` that of the values within, each share spread evenly over the used bins of its code; the
    least ``sum(P * log(P / Q))`` wins, the widest of equals. Zeros are left out. (S. Migacz, "8-bit
    Inference with TensorRT", GTC 2017; here with the codes of the encoding asked for.)

    >>> from intact.types import INT8
    >>> o = Entropy()
    >>> o.update(torch.cat([torch.randn(100000, generator=torch.Generator().manual_seed(0)),
    ...                     torch.tensor([50.0])]))
    >>> o.range(Free(INT8, symmetric=True))[1] < 10
    True
    """

    def _best(self, density: Density, spec: Free) -> tuple[float, float]:
        low, high = density.range
        if low == high:
            return low, high
        d = density.coarse(_BINS)
        share = torch.arange(_CANDIDATES, 0, -1, dtype=torch.float64) / _CANDIDATES
        top = max(-low, high) * share
        lows, highs = -top.clamp(max=-low), top.clamp(max=high)
        cost = _divergence(d, lows, highs, spec)
        i = int((cost <= cost.min() + 1e-12).nonzero()[0])
        return float(lows[i]), float(highs[i])


def _divergence(
    d: Density, low: torch.Tensor, high: torch.Tensor, spec: Free
) -> torch.Tensor:
    """``KL(P, Q)`` for each candidate range; float64, ``(candidates,)``."""
    scale, zero = affine_parameters(low, high, spec.qtype, spec.symmetric, spec.power_of_two)
    centres = ((d.edges[1:] + d.edges[:-1]) / 2).expand(len(low), -1)
    used = (d.mass > 0).expand_as(centres)
    inside = (centres >= low[:, None]) & (centres <= high[:, None]) & used
    raw = torch.where(inside, d.mass, 0.0)
    codes = round_to_int(centres / scale.double()[:, None], Rounding.HALF_EVEN)
    codes = codes.add_(zero[:, None]).clamp_(spec.qtype.qmin, spec.qtype.qmax).sub_(spec.qtype.qmin)
    # codes of used bins only matter; number them per row by where the code changes
    group = (codes[:, 1:] != codes[:, :-1]).long().cumsum(1)
    group = torch.cat([group.new_zeros(len(low), 1), group], dim=1)
    sums = torch.zeros_like(raw).scatter_add_(1, group, raw)
    bins = torch.zeros_like(raw).scatter_add_(1, group, inside.double())
    q = torch.where(inside, (sums / bins.clamp(min=1.0)).gather(1, group), 0.0)
    p = _with_outliers(raw, d.mass, inside)
    p, q = (t / t.sum(1, keepdim=True).clamp(min=1e-300) for t in (p, q))
    terms = torch.where(inside, p * (p / q.clamp(min=1e-300)).clamp(min=1e-300).log(), 0.0)
    return torch.where(inside.any(1), terms.sum(1), torch.inf)


def _with_outliers(raw: torch.Tensor, mass: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """``raw`` plus the mass beyond each end, on the outermost used bin of that end."""
    rows = torch.arange(len(raw))
    first = inside.long().argmax(1)
    last = inside.shape[1] - 1 - inside.flip(1).long().argmax(1)
    sums = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    p = raw.clone()
    p[rows, first] += sums[first]
    p[rows, last] += sums[-1] - sums[last + 1]
    return p
