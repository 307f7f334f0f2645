"""Scale and zero point of a constant tensor."""

from __future__ import annotations

from typing import Literal

import torch

from intact.arithmetic import Rounding, round_to_int
from intact.errors import NonFiniteError, PlanError
from intact.observers.ranges import affine_parameters
from intact.types import Granularity, PerChannel, PerTensor, QParams, QType

__all__ = ["weight_qparams"]

_CHUNK = 1 << 15  # elements at a time: in cache, and summed in one order for any number of threads
_COARSE, _FINE = 8, 5  # shrink factors tried, then tried around the best


def weight_qparams(
    weight: torch.Tensor,
    qtype: QType,
    granularity: Granularity,
    *,
    method: Literal["minmax", "mse"] = "minmax",
    symmetric: bool = True,
    power_of_two: bool = False,
    where: str = "",
) -> QParams:
    """Parameters of a weight, from its values.

    Args:
        weight: real tensor of any shape; computed with in float32.
        qtype: the encoding.
        granularity: ``PerTensor()`` or ``PerChannel(axis)``.
        method: ``minmax`` reaches the largest weight of each channel; ``mse`` shrinks that range by
            the factor which gives the channel the least squared error (13 factors tried).
        symmetric: zero point 0 (the middle code of an unsigned type).
        power_of_two: scales are powers of two; ``mse`` then chooses among those.
        where: name of the weight, for messages.

    Returns:
        Scale and zero point on the weight's device; scale 1.0 for a channel of zeros, and never
        below 2**-100.

    Raises:
        PlanError: for another granularity or method, an axis that is not there, an empty weight.
        NonFiniteError: if a weight is NaN or infinite.

    >>> from intact.types import INT8_NARROW
    >>> w = torch.tensor([[0.5, -1.27], [0.0, 0.0]])
    >>> weight_qparams(w, INT8_NARROW, PerChannel(0)).scale
    tensor([0.0100, 1.0000])
    """
    if method not in ("minmax", "mse"):
        raise PlanError("no such method", where=where, got=method, allowed=("minmax", "mse"))
    rows = _rows(weight.detach(), granularity, where)
    ends = torch.aminmax(rows, dim=1)
    if not bool((torch.isfinite(ends.min) & torch.isfinite(ends.max)).all()):
        bad = int((~torch.isfinite(rows)).sum())
        raise NonFiniteError("a weight is not finite", where=where, got=f"{bad} of {rows.numel()}")
    low, high = ends.min.double().clamp(max=0.0), ends.max.double().clamp(min=0.0)
    if method == "mse":
        factor = _best_factor(rows, low, high, qtype, symmetric, power_of_two)
        low, high = low * factor, high * factor
    scale, zero = affine_parameters(low, high, qtype, symmetric, power_of_two)
    if isinstance(granularity, PerTensor):
        return QParams(scale[0], zero[0], qtype)
    return QParams(scale, zero, qtype, granularity)


def _rows(weight: torch.Tensor, granularity: Granularity, where: str) -> torch.Tensor:
    """The weight in float32 as one row for each scale."""
    if weight.numel() == 0 or weight.is_complex():
        raise PlanError("no real number to quantize", where=where, got=tuple(weight.shape))
    if isinstance(granularity, PerTensor):
        return weight.reshape(1, -1).to(torch.float32)
    if not isinstance(granularity, PerChannel):
        raise PlanError(
            "weights have one scale per tensor or per channel", where=where, got=str(granularity)
        )
    if not -weight.ndim <= granularity.axis < weight.ndim:
        raise PlanError(
            "the weight has no such axis", where=where, got=granularity.axis,
            allowed=f"{-weight.ndim} to {weight.ndim - 1}",
        )
    channels = weight.shape[granularity.axis]
    return weight.movedim(granularity.axis, 0).reshape(channels, -1).to(torch.float32)


def _best_factor(
    rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor, qtype: QType, symmetric: bool,
    power_of_two: bool = False,
) -> torch.Tensor:
    """The shrink factor of each row with the least squared error; the largest of equals."""
    # many bits never gain from much clipping: a normal channel of any size stays above these
    least = {2: 0.15, 3: 0.25, 4: 0.35, 5: 0.45, 6: 0.55, 7: 0.65}.get(qtype.bits, 0.75)
    if power_of_two:  # the next scale below is a half: whatever the range is, it must be within reach
        least = min(least, 0.49)
    best = torch.ones_like(low)
    grid = torch.linspace(1.0, least, _COARSE, dtype=torch.float64, device=rows.device)
    fine = (grid[0] - grid[1]) * torch.linspace(1.0, -1.0, _FINE + 2, device=rows.device)[1:-1]
    least_cost = torch.full_like(low, torch.inf)
    for around in (None, fine):
        start = best.clone()
        for f in grid if around is None else around:
            factor = f.expand_as(low) if around is None else (start + f).clamp(max=1.0)
            cost = _errors(rows, low * factor, high * factor, qtype, symmetric, power_of_two)
            better = cost < least_cost
            best = torch.where(better, factor, best)
            least_cost = torch.where(better, cost, least_cost)
    return best


def _errors(
    rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor, qtype: QType, symmetric: bool,
    power_of_two: bool = False,
) -> torch.Tensor:
    """Squared error of each row in units of its own scale before clipping, in float64."""
    scale, zero = affine_parameters(low, high, qtype, symmetric, power_of_two)
    bottom, top = (edge - zero.to(torch.float32)[:, None] for edge in (qtype.qmin, qtype.qmax))
    width = min(rows.shape[1], _CHUNK)
    height = max(1, _CHUNK // width)
    total = torch.zeros_like(low)
    divisor = scale[:, None]
    for i in range(0, len(rows), height):
        part = slice(i, i + height)
        for block in rows[part].split(width, dim=1):
            u = block / divisor[part]
            n = round_to_int(u, Rounding.HALF_EVEN).clamp_(bottom[part], top[part])
            r = u.sub_(n)
            total[part] += torch.linalg.vector_norm(r, dim=1).double().square()
    return total * scale.double().square()
