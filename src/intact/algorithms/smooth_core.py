"""By how much each channel of an activation is divided: what gives the layers that read it the least error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intact.arithmetic import Rounding, dequantize, quantize, quantize_weight, round_to_int
from intact.graph.passes.smooth_channels import STEPS, divisors, split_columns
from intact.observers import range_to_qparams, weight_qparams
from intact.types import INT8_NARROW, UINT8, Free, PerChannel, QType

__all__ = ["Seen", "candidates", "choose", "outliers", "output_error", "telling_rows"]

#: migration strengths: how much of the spread of the activations' ranges (in the logarithm) moves into the weights
STRENGTHS = (0.5, 0.65, 0.8, 0.9)
#: or only channels that reach beyond so many times the median range are brought down to it
LIMITS = (4.0, 3.0, 2.0, 1.5, 1.0)
#: the most that a channel is divided by, or multiplied with, in octaves
LARGEST = 12
#: a weight this many times the others of its row is worth copies of its channel
_DWARFS, _RANK = 2.0, 8
#: copies of one channel, and of all as a share of the channels
_MOST, _SHARE = 32, 1 / 32
#: copies cost a little time: they have to earn it
_WORTH = 0.9
#: outputs of a layer that errors are measured on, and how many of these are the largest
_OUTPUTS, _FURTHEST = 192, 16


@dataclass(eq=False)
class Seen:
    """What was seen of an activation: extremes of each channel, and some rows.

    Args:
        low: (channels,), smallest value of each.
        high: (channels,), largest value.
        rows: (rows, channels), the rows that errors are measured on.
    """

    low: Tensor
    high: Tensor
    rows: list[Tensor] = field(default_factory=list)

    @property
    def largest(self) -> Tensor:
        """Largest magnitude of each channel."""
        return torch.maximum(-self.low, self.high)


def candidates(largest: Tensor, weights: Sequence[Tensor]) -> list[list[int]]:
    """Steps that are worth trying, nothing first.

    With ``a`` the largest magnitude of a channel and ``w`` that of the weights which read it, strength ``m`` divides
    by ``a**m / w**(1 - m)`` (Xiao et al., SmoothQuant, 2022, equation 4), up to a common factor.

    >>> candidates(torch.tensor([1.0, 1.0, 16.0]), [torch.ones(1, 3)])[-1]
    [0, 0, 16]
    """
    activation = largest.to(torch.float64).clamp(min=1e-6)
    weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0).to(torch.float64).clamp(min=1e-6)
    found = [torch.zeros_like(activation)]
    for strength in STRENGTHS:
        octaves = strength * activation.log2() - (1 - strength) * weight.log2()
        found.append(octaves - octaves.mean())
    found += [(activation / (limit * activation.median())).log2().clamp(min=0.0) for limit in LIMITS]
    steps = [round_to_int(o.clamp(-LARGEST, LARGEST) * STEPS, Rounding.HALF_EVEN) for o in found]
    return [s.to(torch.int64).tolist() for s in steps]


def outliers(weight: Tensor) -> list[int]:
    """Channels to be given once more, each as often as that makes its weights ordinary in their rows.

    Args:
        weight: (out, in), of all readers, as it would be quantized.

    >>> outliers(torch.cat([torch.ones(1, 127), torch.tensor([[4.0]])], 1))
    [127, 127, 127]
    """
    magnitude, channels = weight.abs(), weight.shape[1]
    if channels <= _RANK:
        return []
    ordinary = magnitude.topk(_RANK, dim=1).values[:, -1:].clamp(min=1e-12)
    excess = (magnitude / ordinary).amax(0)
    budget, found = int(channels * _SHARE), []
    for channel in excess.argsort(descending=True, stable=True).tolist():
        ratio = float(excess[channel])
        if ratio < _DWARFS or not budget:
            break
        more = min(2 ** math.ceil(math.log2(min(ratio, _MOST))) - 1, budget)
        found += [channel] * more
        budget -= more
    return sorted(found)


def telling_rows(weight: Tensor, largest: Tensor) -> Tensor:
    """Enough rows of a weight (out, in) to know its error by: those that reach furthest, and some of the others.

    >>> telling_rows(torch.ones(1000, 4), torch.ones(4)).shape
    torch.Size([192, 4])
    """
    if len(weight) <= _OUTPUTS:
        return weight
    order = (weight.abs() * largest).amax(1).argsort(descending=True, stable=True)
    rest = order[_FURTHEST:]
    some = rest[torch.arange(_OUTPUTS - _FURTHEST) * len(rest) // (_OUTPUTS - _FURTHEST)]
    return weight[torch.cat([order[:_FURTHEST], some])]


def output_error(
    seen: Seen, weights: Sequence[Tensor], steps: Sequence[int], copies: Sequence[int] = (),
    activation: QType = UINT8, weight: QType = INT8_NARROW, wanted: Sequence[Tensor] | None = None,
) -> float:
    """Error of the layers' outputs in integers, as a share of their power, averaged over rows.

    Each row by itself: a normalisation that follows divides each by its own power, so that the one row in a hundred
    whose values are a hundred times larger says no more than the others. What is the same in every row is left out,
    for the bias takes it up. ``wanted`` is ``rows @ w.T`` of each weight, if it is known.
    """
    factor, rows = divisors(steps), torch.cat(seen.rows)
    low, high = (seen.low / factor).min(), (seen.high / factor).max()
    params = range_to_qparams(float(low), float(high), Free(activation))
    codes = dequantize(quantize((rows / factor).to(torch.float32), params), params)
    index = torch.tensor(list(copies), dtype=torch.int64)
    codes = torch.cat([codes, codes.index_select(1, index)], 1)
    total = 0.0
    for w, exact in zip(weights, wanted or [rows @ w.t() for w in weights], strict=True):
        wide = split_columns((w * factor).to(torch.float32), copies)
        rounded = quantize_weight(wide, weight_qparams(wide, weight, PerChannel(0))).dequantize()
        error = codes @ rounded.t() - exact
        error = error - error.mean(0)
        power = exact.square().sum(1)
        total += float((error.square().sum(1) / power.clamp(min=float(power.mean()) * 1e-6 + 1e-30)).mean())
    return total


def choose(seen: Seen, weights: Sequence[Tensor], copied: bool, activation: QType = UINT8,
           weight: QType = INT8_NARROW) -> tuple[list[int], list[int], float]:
    """The steps and the copies with the least error, and that error as a share of what it is without.

    Args:
        seen: the activation.
        weights: (out, in) of each layer that reads it.
        copied: whether channels may be given more than once.
        activation: encoding of the activation.
        weight: encoding of the weights.
    """
    steps_tried = candidates(seen.largest, weights)
    weights = [telling_rows(w, seen.largest) for w in weights]
    rows = torch.cat(seen.rows)
    wanted = [rows @ w.t() for w in weights]
    tried = [(output_error(seen, weights, steps, (), activation, weight, wanted), steps) for steps in steps_tried]
    error, steps = min(tried, key=lambda t: t[0])
    best: tuple[list[int], list[int], float] = (steps, [], error)
    for _, steps in sorted(tried, key=lambda t: t[0])[:3] if copied else ():
        copies = outliers(torch.cat([w * divisors(steps) for w in weights]))
        error = output_error(seen, weights, steps, copies, activation, weight, wanted) if copies else math.inf
        if error < best[2] * _WORTH:
            best = steps, copies, error
    before = tried[0][0]
    return best[0], best[1], best[2] / before if before > 0.0 else 1.0
