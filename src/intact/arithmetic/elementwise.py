"""Additions and multiplications of two quantized operands, as each runtime computes them."""

from __future__ import annotations

import torch

from intact.arithmetic.arithmetic import Arithmetic, BinaryRule
from intact.arithmetic.fixed_point import rounded_shift, shared_fixed_point
from intact.arithmetic.litert import tflite_product, tflite_sum, xnnpack_product, xnnpack_sum
from intact.arithmetic.quantize import dequantize, quantize
from intact.arithmetic.requantize import multiplier, requantize
from intact.arithmetic.rounding import round_to_int
from intact.types import QParams

__all__ = ["add_codes", "fma_float32", "mul_codes", "sub_codes"]


def fma_float32(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``a * b + c`` of float32 tensors with one rounding, as a fused multiply-add gives it.

    The product of two float32 is exact in float64. Its sum with ``c`` is rounded to odd there, so
    that the final rounding to float32 is right (Boldo and Melquiond, "Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd", IEEE TC 2008).

    >>> x = torch.tensor([1.0 + 2.0**-12])
    >>> bool(fma_float32(x, x, -x * x) != 0), bool(x * x - x * x == 0)
    (True, True)
    """
    product = a.to(torch.float64) * b.to(torch.float64)
    addend = c.to(torch.float64)
    total = product + addend
    # TwoSum (Knuth): total + error is the exact sum
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.contiguous().view(torch.int64)
    odd = (bits & 1).to(torch.bool)
    outward = (error > 0) == (total > 0)
    step = torch.where(outward, torch.ones_like(bits), -torch.ones_like(bits))
    inexact = (error != 0) & ~odd & torch.isfinite(total) & (total != 0)
    return torch.where(inexact, bits + step, bits).view(torch.float64).to(torch.float32)


def _wide(*qparams: QParams) -> bool:
    """Fused kernels take 8 bits; the runtime then computes with dequantized values."""
    return any(q.qtype.bits > 8 for q in qparams)


def add_codes(
    a: torch.Tensor, b: torch.Tensor, qa: QParams, qb: QParams, out: QParams, arith: Arithmetic
) -> torch.Tensor:
    """Unclamped-by-activation output codes of ``a + b`` (integer-valued float32 in and out).

    FUSED is ONNX Runtime's ``QLinearAdd`` on x86 with FMA: with ``ra = s_a/s_y``, ``rb = s_b/s_y``,
    ``c = z_y - fma(ra, z_a, rb*z_b)``: ``round(fma(a, ra, fma(b, rb, c)))``.
    """
    if arith.add in _SUMS:
        return _SUMS[arith.add](a, b, qa, qb, out, arith, 1)
    if arith.add is BinaryRule.DEQUANTIZED or _wide(qa, qb, out):
        return quantize(dequantize(a, qa) + dequantize(b, qb), out, arith)
    ra, rb = qa.scale / out.scale, qb.scale / out.scale
    za, zb, zy = (q.zero_point.to(torch.float32) for q in (qa, qb, out))
    c = zy - fma_float32(ra, za, rb * zb)
    ra, rb, c = (t.to(a.device) for t in (ra, rb, c))
    y = fma_float32(a, ra, fma_float32(b, rb, c))
    return round_to_int(y, arith.rounding).clamp_(out.qtype.qmin, out.qtype.qmax)


def _weighted_sum(
    a: torch.Tensor, b: torch.Tensor, qa: QParams, qb: QParams, out: QParams, arith: Arithmetic, sign: int
) -> torch.Tensor:
    """``round((a - z_a) * s_a/s_y + sign * (b - z_b) * s_b/s_y) + z_y``: two multipliers of one shift, one rounding."""
    ratios = torch.stack([qa.scale, qb.scale]).to(torch.float64) / out.scale.to(torch.float64)
    m0, shift = shared_fixed_point(ratios)
    left = (a.to(torch.int64) - int(qa.zero_point)) * int(m0[0])
    right = (b.to(torch.int64) - int(qb.zero_point)) * int(m0[1])
    zero = int(out.zero_point)
    total = rounded_shift(left + sign * right, shift.to(a.device), arith.rounding, zero if arith.zero_inside else 0)
    return total.add_(zero).clamp_(out.qtype.qmin, out.qtype.qmax).to(torch.float32)


_SUMS = {BinaryRule.INTEGER: _weighted_sum, BinaryRule.TFLITE: tflite_sum, BinaryRule.XNNPACK: xnnpack_sum}


def sub_codes(
    a: torch.Tensor, b: torch.Tensor, qa: QParams, qb: QParams, out: QParams, arith: Arithmetic
) -> torch.Tensor:
    """Output codes of ``a - b``: on dequantized values, unless additions are on codes."""
    if arith.add in _SUMS:
        return _SUMS[arith.add](a, b, qa, qb, out, arith, -1)
    return quantize(dequantize(a, qa) - dequantize(b, qb), out, arith)


def mul_codes(
    a: torch.Tensor, b: torch.Tensor, qa: QParams, qb: QParams, out: QParams, arith: Arithmetic
) -> torch.Tensor:
    """Output codes of ``a * b`` (integer-valued float32 in and out).

    FUSED is ONNX Runtime's ``QLinearMul`` on x86: ``round((a-z_a)(b-z_b) * (s_a*s_b/s_y) + z_y)``,
    the zero point inside the rounding.
    """
    if arith.mul in (BinaryRule.TFLITE, BinaryRule.XNNPACK):
        product = (a.to(torch.int64) - int(qa.zero_point)) * (b.to(torch.int64) - int(qb.zero_point))
        return (tflite_product if arith.mul is BinaryRule.TFLITE else xnnpack_product)(product, qa, qb, out)
    if arith.mul is BinaryRule.INTEGER:
        by = multiplier(qa.scale, qb.scale, out.scale, arith).to(a.device)
        product = (a.to(torch.int64) - int(qa.zero_point)) * (b.to(torch.int64) - int(qb.zero_point))
        return requantize(product, by, int(out.zero_point), out.qtype.qmin, out.qtype.qmax, arith)
    if arith.mul is BinaryRule.DEQUANTIZED or _wide(qa, qb, out):
        return quantize(dequantize(a, qa) * dequantize(b, qb), out, arith)
    ratio = ((qa.scale * qb.scale) / out.scale).to(a.device)
    product = (a - int(qa.zero_point)) * (b - int(qb.zero_point))
    y = product * ratio + int(out.zero_point)
    return round_to_int(y, arith.rounding).clamp_(out.qtype.qmin, out.qtype.qmax)
