"""Fixed-point requantization in float32, for the channels where it was shown to give every code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intact.arithmetic.arithmetic import Arithmetic, Requantize
from intact.arithmetic.requantize import Multiplier, parts_in_cache, requantize

__all__ = ["Quick", "quick_multiplier", "requantize_quickly"]

_MOST_CODES = 256  # of which each has a threshold
_MOST_CHANNELS, _CHANNELS = 8192, 256  # in all, and at a time
_WINDOW = (-1, 0, 1, 2)  # integers around a threshold, one of which is the first with its code
_NUDGES = (0, 1, -1, 2, -2, 3, -3, 4, -4)  # float32 neighbours of the multiplier
_ONE_ROUNDING = (Requantize.FIXED_POINT, Requantize.SHIFT)  # of two, float32 has no likeness


@dataclass(frozen=True, eq=False)
class Quick:
    """What float32 accumulators are multiplied with, and the channels that need the long way.

    Args:
        factor: float32, one, or one for each channel.
        half: ``floor(x + 0.5)`` instead of rounding half to even.
        others: channels of which some accumulator would get another code, int64.
    """

    factor: Tensor
    half: bool
    others: Tensor


def quick_multiplier(
    by: Multiplier, zero_point: int, low: int, high: int, arithmetic: Arithmetic, bound: float
) -> Quick | None:
    """Float32 multipliers that give the codes of fixed point for every accumulator, or None if most channels have none.

    Both ways are monotonic in the accumulator. So they are equal for all of them if they are equal on either side of
    each threshold, where fixed point goes from one code to the next: at most 255 for each channel, and all are tried.

    Args:
        by: one multiplier, or one for each channel.
        zero_point: of the output.
        low: lowest code.
        high: highest code.
        arithmetic: the target's number rules.
        bound: of the accumulators; below 2**24.

    >>> from intact.arithmetic import Arithmetic, multiplier
    >>> rules = Arithmetic("a", requantize=Requantize.FIXED_POINT)
    >>> by = multiplier(torch.tensor(0.01), torch.tensor([0.2, 0.3]), torch.tensor(1.0), rules, 1e5)
    >>> quick_multiplier(by, 0, -128, 127, rules, 1e5).others
    tensor([], dtype=torch.int64)
    """
    if (by.m0 is None or by.shift is None or arithmetic.requantize not in _ONE_ROUNDING or high - low >= _MOST_CODES
            or bound >= 2**24 or not 0 < by.real.numel() <= _MOST_CHANNELS):
        return None
    factors: dict[bool, list[Tensor]] = {False: [], True: []}
    right: dict[bool, list[Tensor]] = {False: [], True: []}
    values = torch.arange(low + 1, high + 1, dtype=torch.float64) - zero_point
    for m0, shift, real in zip(*(t.reshape(-1, 1).split(_CHANNELS) for t in (by.m0, by.shift, by.real)), strict=True):
        points = _around_thresholds(real, values, int(bound))
        own = Multiplier(real, m0, shift, by.small, by.room)
        wanted = requantize(points.to(torch.float32), own, zero_point, low, high, arithmetic)
        if not _thresholds_inside(points, wanted, low, int(bound)):
            return None
        for half in (False, True):
            found = _factors(points.to(torch.float32), wanted, real.to(torch.float32), zero_point, low, high, half)
            factors[half].append(found[0])
            right[half].append(found[1])
    half = sum(int(r.sum()) for r in right[True]) > sum(int(r.sum()) for r in right[False])
    factor, done = torch.cat(factors[half]), torch.cat(right[half])
    if 2 * int(done.sum()) < len(done):
        return None
    return Quick(factor if by.real.ndim else factor[0], half, (~done).nonzero().flatten())


def _around_thresholds(real: Tensor, values: Tensor, bound: int) -> Tensor:
    """Integers (channels, thresholds * window), float64, within the bound."""
    at = ((values - 0.5) / real).floor().clamp(-bound - 8, bound + 8)
    return (at[..., None] + torch.tensor(_WINDOW, dtype=torch.float64)).clamp(-bound, bound).flatten(1)


def _thresholds_inside(points: Tensor, wanted: Tensor, low: int, bound: int) -> bool:
    """Whether every code's first accumulator is in its window, or there is none within the bound."""
    ends, found = (t.unflatten(1, (-1, len(_WINDOW)))[..., :: len(_WINDOW) - 1].unbind(-1) for t in (points, wanted))
    codes = low + 1 + torch.arange(ends[0].shape[1])
    return bool(((found[0] < codes) | (ends[0] == -bound)).all() and ((found[1] >= codes) | (ends[1] == bound)).all())


def _factors(
    accumulators: Tensor, wanted: Tensor, real: Tensor, zero_point: int, low: int, high: int, half: bool
) -> tuple[Tensor, Tensor]:
    """For each channel the first multiplier that gives all codes, and whether there is one."""
    factor, right = real.flatten().clone(), torch.zeros(len(real), dtype=torch.bool)
    for nudge in _NUDGES:
        left = (~right).nonzero().flatten()
        if not len(left):
            break
        # the bits of positive floats are in the order of the numbers
        tried = (real[left].view(torch.int32) + nudge).view(torch.float32)
        codes = _rounded(accumulators[left].mul_(tried), half, zero_point, low, high)
        equal = (codes == wanted[left]).all(1)
        factor[left[equal]], right[left[equal]] = tried.flatten()[equal], True
    return factor, right


def _rounded(x: Tensor, half: bool, zero_point: int, low: int, high: int) -> Tensor:
    """Codes of real numbers, in place."""
    x = x.add_(0.5).floor_() if half else x.round_()
    return (x.add_(zero_point) if zero_point else x).clamp_(low, high)


def requantize_quickly(
    accumulator: Tensor, quick: Quick, by: Multiplier, zero_point: int, low: int, high: int, arithmetic: Arithmetic,
    axis: int,
) -> Tensor:
    """As :func:`requantize`, for a float32 accumulator, which is overwritten.

    Args:
        accumulator: integers within the bound that ``quick`` was made for.
        quick: of ``by``.
        by: one multiplier, or one for each channel.
        zero_point: of the output.
        low: lowest code.
        high: highest code.
        arithmetic: the target's number rules.
        axis: of the channels.
    """
    shape = [1] * accumulator.ndim
    shape[axis] = -1
    others, long = quick.others.to(accumulator.device), None
    if len(others):
        some = by.of_channels(quick.others).to(accumulator.device).reshape(*shape)
        long = requantize(accumulator.index_select(axis, others), some, zero_point, low, high, arithmetic)
    factor = quick.factor.to(accumulator.device)
    factor = factor.reshape(shape) if factor.ndim else factor
    for part, _, own in parts_in_cache(accumulator, accumulator, factor):
        _rounded(part.mul_(own), quick.half, zero_point, low, high)
    return accumulator if long is None else accumulator.index_copy_(axis, others, long)
