"""Measures of likeness, as small accumulators: sums in float64, so that any split into batches gives the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from intact.errors import IntactError

__all__ = ["Accuracy", "Agreement", "Cosine", "Mean", "Sqnr", "energy", "sqnr_db"]


#: elements whose squares are summed in float32 before float64 takes over: a relative error below 1e-5
_RUN = 4096
#: sums of squares within which float32 neither overflows nor loses small terms
_SAFE = (1e-25, 1e30)


def energy(x: Tensor) -> float:
    """Sum of squares of a tensor of any shape: runs in float32, their sums in float64.

    >>> energy(torch.tensor([3.0, -4.0])), energy(torch.tensor([1e-30, 1e-30])) > 0.0
    (25.0, True)
    """
    flat = x.reshape(-1)
    whole = flat.numel() - flat.numel() % _RUN
    if x.dtype == torch.float32 and whole:
        runs = torch.linalg.vector_norm(flat[:whole].view(-1, _RUN), dim=1)
        total = _squares(runs) + _squares(flat[whole:])
        if _SAFE[0] < total < _SAFE[1]:
            return total
    return _squares(flat)


def _squares(x: Tensor) -> float:
    return float(x.to(torch.float64).square_().sum() if x.dtype != torch.float64 else x.square().sum())


def sqnr_db(signal: float, noise: float) -> float:
    """Signal to quantization noise ratio in decibels, ``10 log10(signal / noise)``, of two energies.

    Returns:
        ``inf`` without noise (exact), ``-inf`` for noise without signal.

    >>> sqnr_db(1000.0, 1.0), sqnr_db(1.0, 0.0), sqnr_db(0.0, 1.0)
    (30.0, inf, -inf)
    """
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or not math.isfinite(noise):
        return -math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise))


class Sqnr:
    """Signal and noise of one tensor, over batches.

    >>> meter = Sqnr()
    >>> meter.update(torch.tensor([10.0, 0.0]), torch.tensor([9.0, 0.0]))
    >>> meter.update(torch.tensor([10.0, 0.0]), torch.tensor([11.0, 0.0]))
    >>> meter.db, meter.noise_rms
    (20.0, 0.7071067811865476)
    """

    def __init__(self) -> None:
        self.count, self.signal, self.noise = 0, 0.0, 0.0

    def update(self, reference: Tensor, value: Tensor) -> None:
        """Add a batch: what is right, and what was found, of one shape.

        Equal infinities are no noise; a NaN, or an infinity on one side, is infinite noise.
        """
        noise, signal = energy(value - reference), energy(reference)
        if not (math.isfinite(noise) and math.isfinite(signal)):
            noise = energy((value - reference).masked_fill(value == reference, 0.0))
            noise = noise if math.isfinite(noise) else math.inf
            signal = energy(reference.masked_fill(~torch.isfinite(reference), 0.0))
        self.count += reference.numel()
        self.signal += signal
        self.noise += noise

    @property
    def db(self) -> float:
        """The ratio in decibels; see :func:`sqnr_db`."""
        return sqnr_db(self.signal, self.noise)

    @property
    def signal_rms(self) -> float:
        """Root mean square of the reference; 0.0 if nothing was seen."""
        return math.sqrt(self.signal / self.count) if self.count else 0.0

    @property
    def noise_rms(self) -> float:
        """Root mean square of the difference; 0.0 if nothing was seen."""
        return math.sqrt(self.noise / self.count) if self.count else 0.0


class Cosine:
    """Cosine of the angle between two tensors, over batches. Two zero tensors are alike: 1.0.

    >>> meter = Cosine()
    >>> meter.update(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
    >>> round(meter.value, 12)
    0.6
    """

    def __init__(self) -> None:
        self.dot, self.left, self.right = 0.0, 0.0, 0.0

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch of two tensors of one shape; elements that are not finite in both are left out."""
        x, y = a.flatten().to(torch.float64), b.flatten().to(torch.float64)
        finite = torch.isfinite(x) & torch.isfinite(y)
        if not bool(finite.all()):
            x, y = x[finite], y[finite]
        self.dot += float(torch.dot(x, y))
        self.left += energy(x)
        self.right += energy(y)

    @property
    def value(self) -> float:
        """Between -1 and 1; 0.0 if only one of the two is zero."""
        if self.left == 0.0 or self.right == 0.0:
            return 1.0 if self.left == self.right else 0.0
        cosine = self.dot / (math.sqrt(self.left) * math.sqrt(self.right))
        return max(-1.0, min(1.0, cosine))


class Mean:
    """A weighted mean.

    >>> meter = Mean()
    >>> meter.update(1.0, 3)
    >>> meter.update(0.0, 1)
    >>> meter.value
    0.75
    """

    def __init__(self) -> None:
        self.total, self.weight = 0.0, 0

    def update(self, value: float, weight: int) -> None:
        """Add a value that stands for ``weight`` samples."""
        self.total += value * weight
        self.weight += weight

    @property
    def value(self) -> float:
        """The mean.

        Raises:
            IntactError: if nothing was added.
        """
        if not self.weight:
            raise IntactError("a mean of nothing was asked for", fix="give data with at least one sample")
        return self.total / self.weight


class Agreement:
    """Share of samples for which two outputs (N, C) have their largest value at the same place.

    >>> meter = Agreement()
    >>> meter.update(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    >>> meter.value
    0.5
    """

    def __init__(self) -> None:
        self._share = Mean()

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch of outputs, both (N, C)."""
        self._share.update(_share_of(a.argmax(1) == b.argmax(1)), len(a))

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self._share.value


class Accuracy:
    """Top-1 accuracy: share of samples whose largest output is that of the label.

    >>> meter = Accuracy()
    >>> meter.update(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([1, 1]))
    >>> meter.value
    0.5
    """

    def __init__(self) -> None:
        self._share = Mean()

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add outputs (N, C) and integer class labels (N,)."""
        self._share.update(_share_of(outputs.argmax(1) == labels.to(outputs.device)), len(outputs))

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self._share.value


def _share_of(hits: Tensor) -> float:
    return int(hits.sum()) / max(1, len(hits))
