"""Static bounds of accumulators: in which carrier a sum of products of codes is exact."""

from __future__ import annotations

import torch

__all__ = ["FLOAT32_EXACT", "INT16_MAX", "INT32_MAX", "accumulator_bounds", "carrier_for", "pairs_saturate"]

FLOAT32_EXACT = 2**24  # every integer up to here, and so every partial sum below it, is a float32
INT16_MAX = 2**15 - 1
INT32_MAX = 2**31 - 1


def accumulator_bounds(
    weight_codes: torch.Tensor, zero_point: int, qmin: int, qmax: int, axis: int = 0
) -> torch.Tensor:
    """Largest magnitude of any partial sum, in any order, for each output channel (float64).

    A partial sum of ``w * (x - zero_point)`` lies between the sum of the products' minima below
    zero and the sum of their maxima above zero, so the two are bounded apart.

    Args:
        weight_codes: integers, output channels along ``axis``.
        zero_point: of the activation.
        qmin: its lowest code.
        qmax: its highest code.
        axis: of the output channels.

    >>> accumulator_bounds(torch.tensor([[1, -2]]), 0, 0, 255)
    tensor([510.], dtype=torch.float64)
    """
    w = weight_codes.to(torch.float64).movedim(axis, 0).flatten(1)
    positive, negative = w.clamp(min=0).sum(1), -w.clamp(max=0).sum(1)
    above, below = float(max(qmax - zero_point, 0)), float(max(zero_point - qmin, 0))
    return torch.maximum(positive * above + negative * below, positive * below + negative * above)


def pairs_saturate(weight_codes: torch.Tensor, reach: int, axis: int = 0) -> torch.Tensor:
    """Per output channel, whether two products ``w * x`` can leave 16 bits when they are added, for x in [0, reach].

    Which two weights a kernel adds depends on the library, the layout and the tail of the reduction. So any two of a
    channel are taken for neighbours: its two largest, or its two smallest.

    Args:
        weight_codes: integers, output channels along ``axis``.
        reach: highest code of the activation, counted from its lowest (kernels shift signed codes to unsigned ones).
        axis: of the output channels.

    >>> pairs_saturate(torch.tensor([[100, 28, -3], [100, 29, -3]]), 255)
    tensor([False,  True])
    """
    w = weight_codes.to(torch.int64).movedim(axis, 0).flatten(1)
    count = min(2, w.shape[1])
    above = w.clamp(min=0).topk(count).values.sum(1) * reach
    below = w.clamp(max=0).topk(count, largest=False).values.sum(1) * reach
    return (above > INT16_MAX) | (below < -INT16_MAX - 1)


def carrier_for(bound: float) -> torch.dtype:
    """The float dtype in which every integer up to ``bound`` is exact."""
    return torch.float32 if bound < FLOAT32_EXACT else torch.float64
