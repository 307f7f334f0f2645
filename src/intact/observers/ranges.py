"""From a range of real numbers to scale and zero point: the one place where that is decided."""

from __future__ import annotations

import math

import torch

from intact.arithmetic import Rounding, quantize, round_to_int
from intact.errors import CalibrationError, PlanError
from intact.types import Free, PerTensor, QParams, QType

__all__ = ["SCALE_FLOOR", "affine_parameters", "clipped_range", "next_power_of_two", "range_to_qparams", "saturates"]

SCALE_FLOOR = 2.0**-100  # far above the smallest normal float32: products of two scales stay usable
_HALF = 0.51  # half a step, and what a few float32 steps of the scale add up to in 16 bits


def affine_parameters(
    low: torch.Tensor, high: torch.Tensor, qtype: QType, symmetric: bool, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of many ranges at once.

    Affine: ``scale = (high - low) / (qmax - qmin)``, ``zero = qmin + rint(-low / scale)`` (Jacob et
    al., "Quantization and Training of Neural Networks", CVPR 2018, section 3). Symmetric: zero
    point 0 (the middle code of an unsigned type if the range is signed, else its qmin) and the
    smallest scale that reaches both ends.

    Args:
        low: float64, any shape, each ``<= 0``.
        high: float64, the shape of ``low``, each ``>= 0``.
        qtype: the encoding.
        symmetric: True to fix the zero point.
        power_of_two: the scale is the next power of two above, for targets that requantize by shifts.

    Returns:
        Scale (float32; 1.0 for an all-zero range, never below ``SCALE_FLOOR``), zero point (int32).

    >>> s, z = affine_parameters(torch.tensor([-1.0]).double(), torch.tensor([3.0]).double(),
    ...                          QType(2, signed=False), symmetric=False)
    >>> s, z
    (tensor([1.3333]), tensor([1], dtype=torch.int32))
    """
    qmin, qmax = float(qtype.qmin), float(qtype.qmax)
    middle = 0.0 if qtype.signed else float((qtype.qmax + 1) // 2)
    if symmetric:
        negative = (low < 0) | torch.tensor(qtype.signed, device=low.device)
        zero = torch.where(negative, middle, qmin).to(torch.float64)
        # below is 0 only where low is 0 too: any divisor will do
        wide = torch.maximum(high / (qmax - zero), -low / (zero - qmin).clamp(min=1.0))
    else:
        zero, wide = low, (high - low) / (qmax - qmin)
    scale = wide.to(torch.float32).clamp(min=SCALE_FLOOR)
    scale = torch.where((low == 0) & (high == 0), torch.ones_like(scale), scale)
    if power_of_two:
        scale = next_power_of_two(scale)
    if not symmetric:
        steps = round_to_int(-low / scale.to(torch.float64), Rounding.HALF_EVEN)
        zero = (steps + qmin).clamp(qmin, qmax)
    return scale, zero.to(torch.int32)


def next_power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is not below each (positive, normal) scale; at most 2**127.

    >>> next_power_of_two(torch.tensor([0.5, 0.51, 3.0]))
    tensor([0.5000, 1.0000, 4.0000])
    """
    fraction, exponent = torch.frexp(scale)
    above = torch.ldexp(torch.ones_like(scale), exponent.clamp(max=127))
    return torch.where(fraction == 0.5, scale, above)


def clipped_range(
    low: float, high: float, clip: tuple[float, float] | None
) -> tuple[float, float]:
    """The part of ``[low, high]`` that must be encoded: within ``clip``, and always with 0.

    Raises:
        CalibrationError: if the range is not finite or is reversed.
        PlanError: if ``clip`` is reversed or leaves 0 out (0.0 must have a code).

    >>> clipped_range(0.5, 9.0, (0.0, 6.0)), clipped_range(-2.0, -1.0, None)
    ((0.0, 6.0), (-2.0, 0.0))
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise CalibrationError(
            "a range is not an interval of finite numbers", got=(low, high), allowed="low <= high"
        )
    if clip is not None:
        if not (clip[0] <= 0.0 <= clip[1] and clip[0] < clip[1]):
            raise PlanError(
                "an activation that does not let 0 pass cannot be folded into a range", got=clip,
                allowed="low <= 0 <= high, low < high",
                fix="keep the activation as an operation of its own",
            )
        low, high = max(low, clip[0]), min(high, clip[1])
    return min(low, 0.0), max(high, 0.0)


def saturates(qparams: QParams, clip: tuple[float, float]) -> bool:
    """True if saturation of the codes alone does what clamping to ``clip`` would do.

    That is ``rint(clip_low / scale) + zero <= qmin`` and ``rint(clip_high / scale) + zero >= qmax``
    (for the finite edges). A symmetric signed encoding cannot stand in for a ReLU: then a kernel
    has to clamp codes at the code of the edge.

    >>> from intact.types import INT8, UINT8
    >>> saturates(QParams.per_tensor(6 / 255, 0, UINT8), (0.0, 6.0))
    True
    >>> saturates(QParams.per_tensor(6 / 127, 0, INT8), (0.0, 6.0))
    False
    """
    edges = torch.tensor(clip, dtype=torch.float32)
    codes = quantize(edges, qparams)
    below = math.isinf(clip[0]) or int(codes[0]) == qparams.qtype.qmin
    above = math.isinf(clip[1]) or int(codes[1]) == qparams.qtype.qmax
    return below and above


def _within_clip(qparams: QParams, low: float, high: float, spec: Free) -> QParams:
    """Parameters a hair finer, if that makes saturation do the clamp at no loss of range.

    Rounding the zero point or the scale can push an end code half a step past the edge (a tie, as
    for [-1, 1] in 255 steps). A scale that is a few float32 steps smaller settles it.
    """
    clip = spec.clip
    if clip is None or spec.power_of_two or saturates(qparams, clip):
        return qparams
    qtype, zero = qparams.qtype, int(qparams.zero_point)
    edges = (clip[1], qtype.qmax - zero), (-clip[0], zero - qtype.qmin)
    limits = [float(qparams.scale), *(edge / (steps - 0.5) for edge, steps in edges if steps > 0)]
    scale = torch.tensor(max(min(limits), SCALE_FLOOR), dtype=torch.float32)
    zeros = [zero] if spec.symmetric or low == 0.0 else [zero, zero + 1, zero - 1]
    for _ in range(8):
        value = float(scale)
        for z in (z for z in zeros if qtype.qmin <= z <= qtype.qmax):
            finer = QParams.per_tensor(value, z, qtype)
            above, below = qtype.qmax - z + _HALF, z - qtype.qmin + _HALF
            if above * value >= high and below * value >= -low and saturates(finer, clip):
                return finer
        scale = torch.nextafter(scale, torch.zeros_like(scale)).clamp(min=SCALE_FLOOR)
    return qparams


def range_to_qparams(low: float, high: float, spec: Free) -> QParams:
    """Scale and zero point that encode ``[low, high]``.

    The range is first cut to ``spec.clip`` and stretched to 0, so that 0.0 has a code exactly. Both
    ends are then at most half a step from a code. With ``spec.clip`` (an activation folded into the
    producer) saturation does the clamp: ``clip=(0, inf)`` gives the zero point qmin. The exception
    is a symmetric encoding whose zero point does not fit the clip: it keeps its zero point (see
    :func:`saturates`).

    Args:
        low: smallest value to encode.
        high: largest value to encode.
        spec: encoding, symmetry and clip; per tensor.

    Raises:
        CalibrationError: if the range is not finite or is reversed.
        PlanError: if the spec is not per tensor, or its clip leaves 0 out.

    >>> from intact.types import UINT8
    >>> p = range_to_qparams(-3.0, 5.1, Free(UINT8, clip=(0.0, float("inf"))))
    >>> round(float(p.scale), 6), int(p.zero_point)
    (0.02, 0)
    """
    if not isinstance(spec.granularity, PerTensor):
        raise PlanError("an observer gives one scale per tensor", got=str(spec.granularity))
    low, high = clipped_range(low, high, spec.clip)
    ends = torch.tensor([low, high], dtype=torch.float64)
    scale, zero = affine_parameters(ends[0], ends[1], spec.qtype, spec.symmetric, spec.power_of_two)
    return _within_clip(QParams(scale, zero, spec.qtype), low, high, spec)
