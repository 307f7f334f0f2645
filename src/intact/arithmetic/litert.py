"""Sums, products and means of codes as LiteRT's kernels compute them: those of TFLite, and those of XNNPACK.

The specification is :mod:`intact.reference.litert`, in NumPy; docs/litert.md says how it was measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intact.arithmetic.arithmetic import Arithmetic, MeanRule, ResizeRule
from intact.arithmetic.fixed_point import gemmlowp_multiplier, scaled_twice
from intact.types import QParams

__all__ = ["code_mean", "mean_codes", "mix_codes", "resize_places", "tflite_product", "tflite_sum", "xnnpack_product",
           "xnnpack_sum"]


def _finish(whole: Tensor, out: QParams) -> Tensor:
    """Add the zero point to integers, clamp; integer-valued float32."""
    return (whole + int(out.zero_point)).clamp(out.qtype.qmin, out.qtype.qmax).to(torch.float32)


def tflite_sum(a: Tensor, b: Tensor, qa: QParams, qb: QParams, out: QParams, arith: Arithmetic, sign: int) -> Tensor:
    """``a + sign * b``: both on the grid of twice the larger scale, widened by 20 bits (16-bit codes: 15).

    >>> from intact.arithmetic.arithmetic import REFERENCE
    >>> from intact.types import INT8
    >>> one, half = (QParams.per_tensor(s, 0, INT8) for s in (1.0, 0.5))
    >>> tflite_sum(torch.tensor([1, 2, 3]), torch.tensor([1, 1, 2]), one, half, one, REFERENCE, 1)
    tensor([2., 3., 4.])
    """
    left = 20 if out.qtype.bits <= 8 else 15
    scales = [q.scale.to(torch.float64) for q in (qa, qb, out)]
    twice = 2.0 * torch.maximum(scales[0], scales[1])

    def widened(codes: Tensor, q: QParams) -> Tensor:
        m0, shift = (t.to(codes.device) for t in gemmlowp_multiplier(q.scale.to(torch.float64) / twice))
        return scaled_twice((codes.to(torch.int64) - int(q.zero_point)) << left, m0, shift)

    total = widened(a, qa) + sign * widened(b, qb)
    m0, shift = gemmlowp_multiplier(twice / (float(1 << left) * scales[2]))
    return _finish(scaled_twice(total, m0.to(total.device), shift.to(total.device)), out)


def xnnpack_sum(a: Tensor, b: Tensor, qa: QParams, qb: QParams, out: QParams, arith: Arithmetic, sign: int) -> Tensor:
    """``a + sign * b``: multipliers of 21 bits on one shift, one rounding half up; for ratios below 256.

    >>> from intact.arithmetic.arithmetic import REFERENCE
    >>> from intact.types import INT8
    >>> one, half = (QParams.per_tensor(s, 0, INT8) for s in (1.0, 0.5))
    >>> xnnpack_sum(torch.tensor([1, 2]), torch.tensor([1, -1]), one, half, one, REFERENCE, 1)
    tensor([2., 2.])
    """
    ratios = torch.stack([qa.scale / out.scale, qb.scale / out.scale])
    shift = 21 - int(torch.frexp(ratios.max()).exponent)
    ma, mb = (int(m) for m in (ratios * 2.0**shift).round())
    total = (a.to(torch.int64) - int(qa.zero_point)) * ma + (b.to(torch.int64) - int(qb.zero_point)) * (sign * mb)
    return _finish((total + (1 << (shift - 1))) >> shift, out)


def _ratio(qa: QParams, qb: QParams, out: QParams) -> Tensor:
    """``s_a * s_b / s_y`` in float32, in this order."""
    return (qa.scale * qb.scale) / out.scale


def tflite_product(product: Tensor, qa: QParams, qb: QParams, out: QParams) -> Tensor:
    """From an int64 product of codes without zero points: 31 bits of the float32 ratio, rounded twice."""
    m0, shift = (t.to(product.device) for t in gemmlowp_multiplier(_ratio(qa, qb, out)))
    return _finish(scaled_twice(product, m0, shift), out)


def xnnpack_product(product: Tensor, qa: QParams, qb: QParams, out: QParams) -> Tensor:
    """From an int64 product of codes without zero points: times the float32 ratio, half to even."""
    real = product.to(torch.float32) * _ratio(qa, qb, out).to(product.device)
    return real.round_().add_(int(out.zero_point)).clamp_(out.qtype.qmin, out.qtype.qmax)


def mean_codes(total: Tensor, count: int, operand: QParams, out: QParams, rule: MeanRule) -> Tensor:
    """Codes of a mean from the exact sum of ``code - zero point`` over ``count`` codes; integer-valued float32.

    TFLite: the multiplier s_x / s_y, floor(log2 count) bits longer, is divided by the count. XNNPACK: with
    S = s_x / s_y / count in float32, ``sum of codes * S + (z_y - count * z_x * S)``, each step rounded.

    >>> from intact.types import INT8
    >>> one, half = (QParams.per_tensor(s, 0, INT8) for s in (1.0, 0.5))
    >>> [mean_codes(torch.tensor([11]), 4, one, half, r).item() for r in (MeanRule.TFLITE, MeanRule.XNNPACK)]
    [6.0, 6.0]
    """
    zero_x, zero_y = int(operand.zero_point), int(out.zero_point)
    total = total.to(torch.int64)
    if rule is MeanRule.XNNPACK:
        scale = (operand.scale / out.scale / float(count)).to(total.device)
        offset = torch.tensor(float(-count * zero_x), device=scale.device) * scale + float(zero_y)
        real = (total + count * zero_x).to(torch.float32) * scale + offset
        return real.round_().clamp_(out.qtype.qmin, out.qtype.qmax)
    m0, shift = gemmlowp_multiplier(operand.scale.to(torch.float64) / out.scale.to(torch.float64))
    more = min(count.bit_length() - 1, 32, 62 - int(shift))
    m0, shift = (m0 << more) // count, shift + more
    return _finish(scaled_twice(total, m0.to(total.device), shift.to(total.device)), out)


def code_mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean of codes from their sum, ``(|sum| + n // 2) // n`` with the sum's sign; int64.

    >>> code_mean(torch.tensor([5, -5, 7, 4]), torch.tensor(2))
    tensor([ 3, -3,  4,  2])
    """
    size, count = total.to(torch.int64).abs(), count.to(torch.int64)
    return torch.div(size + torch.div(count, 2, rounding_mode="floor"), count, rounding_mode="floor") * total.sign()


def resize_places(size: int, new: int, corners: bool, rule: ResizeRule) -> tuple[Tensor, Tensor, Tensor]:
    """Lower neighbour, upper neighbour and the upper one's share of each new index, int64.

    The share counts in 1024ths (TFLite) or 2048ths (XNNPACK).

    >>> [t.tolist() for t in resize_places(2, 4, False, ResizeRule.TFLITE)]
    [[0, 0, 0, 1], [0, 1, 1, 1], [-256, 256, 768, 256]]
    """
    if rule is ResizeRule.XNNPACK:
        less = int(corners and new != 1)
        step = torch.tensor(float(size - less)) / float(new - less)
        place = torch.arange(new, dtype=torch.float32) * step
        if not corners:
            place = (place + (0.5 * step - 0.5)).clamp(0.0, float(size - 1))
        lower = place.to(torch.int64)
        share = ((place - lower.to(torch.float32)) * 2048.0).round().to(torch.int64)
        return lower, (lower + 1).clamp(max=size - 1), share
    if corners and new > 1:
        whole = (1024 * (size - 1) + (new - 1) // 2) // (new - 1)
    else:
        whole = (1024 * size + new // 2) // new
    at = torch.arange(new) * whole + (0 if corners else whole // 2 - 512)
    low = torch.div(at, 1024, rounding_mode="trunc").clamp(min=0)
    return low, torch.div(at + 1023, 1024, rounding_mode="trunc").clamp(max=size - 1), at - 1024 * low


def mix_codes(codes: Tensor, axes: tuple[tuple[Tensor, Tensor, Tensor], ...], rule: ResizeRule) -> Tensor:
    """Bilinear interpolation of int64 codes along the last two axes, with :func:`resize_places` of each.

    >>> places = resize_places(1, 1, False, ResizeRule.TFLITE), resize_places(2, 4, False, ResizeRule.TFLITE)
    >>> mix_codes(torch.tensor([[0, 4]]), places, ResizeRule.TFLITE)
    tensor([[0, 1, 3, 4]])
    """
    bits = 10 if rule is ResizeRule.TFLITE else 11
    for axis, shape, (low, high, share) in zip((-2, -1), ((-1, 1), (-1,)), axes, strict=True):
        to_high = share.to(codes.device).reshape(shape)
        codes = codes.index_select(axis, low.to(codes.device)) * (2**bits - to_high) \
            + codes.index_select(axis, high.to(codes.device)) * to_high
    if rule is ResizeRule.TFLITE:
        return code_mean(codes, torch.tensor(2**20, device=codes.device))
    return (codes + 2**21) >> 22
