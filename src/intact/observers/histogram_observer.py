"""The observers that keep a histogram: they differ in the range that they read off it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self, final

import torch

from intact.observers.base import Observer
from intact.observers.density import Density
from intact.observers.histogram import Histogram
from intact.types import Free

__all__ = ["HistogramObserver"]


#: values of one sample that a histogram counts; a range found from that many per sample is as good
LARGEST_SAMPLE = 1 << 14


class HistogramObserver(Observer):
    """Holds one :class:`Histogram`; a subclass names the range to encode.

    Of large samples (feature maps) evenly spaced values are counted, and the extremes of all values are kept.
    The result does not depend on how data is cut, ordered or spread over workers: not in one bit.

    Args:
        bins: of the histogram; 16 bytes each.
    """

    def __init__(self, bins: int = 4096) -> None:
        self._histogram = Histogram(bins)

    @abstractmethod
    def _best(self, density: Density, spec: Free) -> tuple[float, float]:
        """The range to encode, for values already clamped to ``spec.clip``."""

    @property
    def settings(self) -> tuple[float, ...]:
        """What the subclass adds to the number of bins."""
        return ()

    @property
    @final
    def histogram(self) -> Histogram:
        """Everything seen; to be read, not changed."""
        return self._histogram

    @property
    @final
    def count(self) -> int:
        """Elements seen."""
        return self._histogram.count

    @property
    @final
    def config(self) -> tuple[float, ...]:
        """The number of bins, then the subclass's settings."""
        return (self._histogram.bins, *self.settings)

    def _sample(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """At most about ``LARGEST_SAMPLE`` evenly spaced values of each sample; the extremes are taken from all.

        Which values are counted depends on the shape of one sample alone, not on how samples are batched.
        """
        per = x[0].numel() if x.ndim else 1
        if per <= LARGEST_SAMPLE:
            return flat
        step = -(-per // LARGEST_SAMPLE) | 1  # odd, so that it does not run in step with even rows
        return x.reshape(x.shape[0], -1)[:, ::step].reshape(-1)

    def _accumulate(self, flat: torch.Tensor, low: float, high: float) -> None:
        self._histogram.add(flat, low, high)

    def _merge(self, other: Self) -> None:
        self._histogram.merge(other._histogram)

    def _range(self, spec: Free) -> tuple[float, float]:
        return self._best(self._histogram.density().clipped(spec.clip), spec)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return self._histogram.tensors()

    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        self._histogram.load(state)
