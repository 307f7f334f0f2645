"""Ranges that follow what training shows them, kept in buffers, so that a checkpoint continues them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from intact import dist
from intact.errors import NonFiniteError

__all__ = ["AveragedRange", "GlobalRange"]


class _Range(nn.Module):
    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @property
    def known(self) -> bool:
        """Whether anything was seen."""
        return bool(self.batches)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lowest and highest value of all channels; None if nothing was seen."""
        return (float(self.low.min()), float(self.high.max())) if self.known else None


@final
class AveragedRange(_Range):
    """``r = (1 - momentum) * r + momentum * x`` of a tensor's extremes; the first batch (of all processes) is copied.

    >>> r = AveragedRange()
    >>> r.update(torch.tensor([0.0, 1.0])); r.update(torch.tensor([-1.0, 2.0]))
    >>> [round(v, 4) for v in r.ends]
    [-0.1, 1.1]
    """

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__(())
        self.momentum = momentum

    def update(self, x: Tensor, where: str = "") -> None:
        """Follow a batch.

        Raises:
            NonFiniteError: if a value is NaN or infinite; the range stays as it was.
        """
        ends = dist.extremes(torch.stack(torch.aminmax(x.detach().to(torch.float32))))
        if not bool(torch.isfinite(ends).all()):
            raise NonFiniteError("a value is not finite", where=where, got=ends.tolist(),
                                 fix="lower the learning rate, or mend the data")
        momentum = self.momentum if self.known else 1.0
        self.low.lerp_(ends[0], momentum)
        self.high.lerp_(ends[1], momentum)
        self.batches.add_(1)


@final
class GlobalRange(_Range):
    """The smallest minimum and the largest maximum of each channel (axis 0) that was ever seen.

    >>> r = GlobalRange(1)
    >>> r.update(torch.tensor([[0.5, 3.0]])); r.update(torch.tensor([[-1.0, 2.0]]))
    >>> r.ends
    (-1.0, 3.0)
    """

    def __init__(self, channels: int) -> None:
        super().__init__((channels,))

    def update(self, weight: Tensor, where: str = "") -> None:
        """Take in a weight.

        Raises:
            NonFiniteError: if a value is NaN or infinite; the range stays as it was.
        """
        low, high = torch.aminmax(weight.detach().to(torch.float32).flatten(1), dim=1)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise NonFiniteError("a weight is not finite", where=where, fix="lower the learning rate")
        if self.known:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low.copy_(low)
        self.high.copy_(high)
        self.batches.add_(1)
