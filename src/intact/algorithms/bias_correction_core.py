"""The systematic part of an error, channel by channel, as far as a few samples prove it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["systematic_error"]


def systematic_error(error: Tensor, counted: Tensor, axis: int) -> Tensor:
    """Mean error of each channel, shrunk by what the spread over samples leaves uncertain.

    The mean over samples of each sample's mean, times ``max(0, 1 - se^2 / mean^2)`` with the standard error se of
    that mean (positive-part James-Stein estimate): a channel whose errors are mere noise is left alone.

    Args:
        error: (batch, ...) errors.
        counted: bool, the shape of ``error``: positions that take part.
        axis: of the channels.

    Returns:
        One number per channel, float64.

    >>> e = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    >>> systematic_error(e, torch.ones_like(e, dtype=torch.bool), 1)
    tensor([1., 0.], dtype=torch.float64)
    """
    axes = [a for a in range(error.ndim) if a not in (0, axis)]
    # float32 within a feature map, float64 across samples
    kept, count = error * counted, counted.to(torch.float32)
    total, number = (kept.sum(axes), count.sum(axes)) if axes else (kept, count)
    total, number = total.to(torch.float64), number.to(torch.float64)
    seen = number > 0
    means = torch.where(seen, total / number.clamp(min=1.0), torch.zeros_like(total))
    samples = seen.sum(0).to(torch.float64)
    mean = means.sum(0) / samples.clamp(min=1.0)
    spread = torch.where(seen, (means - mean) ** 2, torch.zeros_like(means)).sum(0)
    error_of_mean = spread / (samples.clamp(min=2.0) - 1.0) / samples.clamp(min=1.0)
    shrink = 1.0 - error_of_mean / (mean**2).clamp(min=1e-300)
    return torch.where(samples > 1, mean * shrink.clamp(0.0, 1.0), torch.zeros_like(mean))
