"""A piecewise uniform density: what a histogram knows, in the form that searches need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Density"]


@dataclass(frozen=True, eq=False)
class Density:
    """``mass[j]`` values spread evenly over ``[edges[j], edges[j + 1]]``; ``zeros`` values at 0.

    Args:
        edges: float64, ``(n + 1,)``, strictly increasing.
        mass: float64, ``(n,)``, not negative.
        zeros: how many values are exactly 0; they have a code of their own, so no error ever.
    """

    edges: torch.Tensor
    mass: torch.Tensor
    zeros: float = 0.0

    @staticmethod
    def of(
        edges: torch.Tensor, mass: torch.Tensor, zeros: float, low: float, high: float
    ) -> Density:
        """Drop the empty bins at both ends and cut the outermost ones to the exact extremes."""
        used = mass.nonzero()
        if used.numel() == 0:
            return Density(edges[:2], mass[:1], zeros)
        first, last = int(used[0]), int(used[-1])
        edges, mass = edges[first : last + 2].clone(), mass[first : last + 1]
        # all of a bin may sit on its edge (a constant, a clamp): leave it a sliver, not no width
        sliver = _sliver(edges)
        low, high = max(float(edges[0]), low), min(float(edges[-1]), high)
        if len(mass) == 1 and high - low < sliver:
            if high > 0:
                low = max(high - sliver, 0.0)  # towards 0, not past it
            else:
                high = min(low + sliver, 0.0)
        sliver = min(sliver, (high - low) / 4)
        edges[1:-1] = edges[1:-1].clamp(low + sliver, high - sliver)
        edges[0], edges[-1] = low, high
        return Density(edges, mass, zeros)

    @property
    def total(self) -> float:
        """How many values there are, zeros included."""
        return float(self.mass.sum()) + self.zeros

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value, and 0."""
        if not bool(self.mass.any()):
            return 0.0, 0.0
        return min(float(self.edges[0]), 0.0), max(float(self.edges[-1]), 0.0)

    def clipped(self, clip: tuple[float, float] | None) -> Density:
        """The density of ``x.clamp(*clip)``; what is moved to an edge sits in a sliver there.

        >>> d = Density(torch.tensor([-1.0, 1.0, 2.0]).double(), torch.tensor([4.0, 3.0]).double())
        >>> c = d.clipped((0.0, float("inf")))
        >>> c.edges.tolist(), c.mass.tolist(), c.zeros
        ([0.0, 1.0, 2.0], [2.0, 3.0], 2.0)
        """
        if clip is None:
            return self
        return self._raised(clip[0])._mirrored()._raised(-clip[1])._mirrored()

    def _mirrored(self) -> Density:
        return Density(-self.edges.flip(0), self.mass.flip(0), self.zeros)

    def _raised(self, floor: float) -> Density:
        """The density of ``x.clamp(min=floor)``, ``floor <= 0``."""
        if floor <= float(self.edges[0]):
            return self
        sliver = _sliver(self.edges)
        start = floor + sliver if floor else 0.0
        j = int((self.edges <= start).sum()) - 1  # start is in bin j, or past them all
        if j < len(self.mass):
            left, right = float(self.edges[j]), float(self.edges[j + 1])
            kept = self.mass[j:].clone()
            kept[0] *= (right - start) / (right - left)
            edges = torch.cat([self.edges.new_tensor([start]), self.edges[j + 1 :]])
        else:
            kept, edges = self.mass.new_zeros(1), self.edges.new_tensor([start, start + sliver])
        moved = float(self.mass.sum() - kept.sum())
        if floor == 0.0:
            return Density(edges, kept, self.zeros + moved)
        edges = torch.cat([edges.new_tensor([floor]), edges])
        return Density(edges, torch.cat([kept.new_tensor([moved]), kept]), self.zeros)

    def coarse(self, bins: int) -> Density:
        """Neighbouring bins merged, so that at most ``bins`` are left."""
        step = -(-len(self.mass) // bins)
        if step == 1:
            return self
        extra = -len(self.mass) % step
        mass = torch.cat([self.mass, self.mass.new_zeros(extra)]).reshape(-1, step).sum(1)
        return Density(torch.cat([self.edges[:-1:step], self.edges[-1:]]), mass, self.zeros)

    def below(self, points: torch.Tensor) -> torch.Tensor:
        """How many values other than zeros lie below each point (float64, any shape).

        >>> edges, mass = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([4.0, 2.0])
        >>> d = Density(edges.double(), mass.double())
        >>> d.below(torch.tensor([-1.0, 0.5, 1.5, 9.0]).double()).tolist()
        [0.0, 2.0, 5.0, 6.0]
        """
        sums = torch.cat([self.mass.new_zeros(1), self.mass.cumsum(0)])
        j = torch.searchsorted(self.edges, points.contiguous(), right=True) - 1
        j = j.clamp(0, len(self.mass) - 1)
        share = (points - self.edges[j]) / (self.edges[j + 1] - self.edges[j])
        return sums[j] + self.mass[j] * share.clamp(0, 1)


def _sliver(edges: torch.Tensor) -> float:
    """A width that is nothing beside that of a bin, and still exact in float64."""
    return float(edges.diff().max()) / 1024
