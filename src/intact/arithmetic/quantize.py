"""Real numbers to codes and back."""

from __future__ import annotations

import torch

from intact.arithmetic.arithmetic import REFERENCE, Arithmetic
from intact.arithmetic.rounding import round_to_int
from intact.types import QParams, QTensor

__all__ = ["dequantize", "quantize", "quantize_weight"]

_PART = 1 << 15  # numbers of a weight at a time


def quantize(
    x: torch.Tensor, qparams: QParams, arithmetic: Arithmetic = REFERENCE
) -> torch.Tensor:
    """Codes of ``x`` as integer-valued float32: ``clamp(round(x / scale) + zero_point)``.

    True division and the zero point outside the rounding (ONNX ``QuantizeLinear``), unless the arithmetic says
    otherwise. Infinities saturate: the clamp comes before any cast. A NaN stays NaN and is for the caller to refuse.

    >>> from intact.types import UINT8
    >>> quantize(torch.tensor([0.25, 0.75, 1e9]), QParams.per_tensor(0.5, 3, UINT8))
    tensor([  3.,   5., 255.])
    """
    scale, zero = qparams.broadcast(x.ndim)
    scale, zero = scale.to(x.device), zero.to(x.device)
    real = x * scale.reciprocal() if arithmetic.reciprocal else x / scale
    if arithmetic.zero_inside:
        codes = round_to_int(real.add_(zero), arithmetic.rounding, inplace=True)
    else:
        codes = round_to_int(real, arithmetic.rounding, inplace=True).add_(zero)
    return codes.clamp_(qparams.qtype.qmin, qparams.qtype.qmax)


def dequantize(codes: torch.Tensor, qparams: QParams) -> torch.Tensor:
    """``(q - zero_point) * scale`` in float32 for codes in any carrier; one rounding, the product.

    >>> from intact.types import UINT8
    >>> dequantize(torch.tensor([3.0, 5.0]), QParams.per_tensor(0.5, 3, UINT8))
    tensor([0., 1.])
    """
    scale, zero = qparams.broadcast(codes.ndim)
    zero = zero.to(codes.device)
    if codes.is_floating_point():
        centred = (codes - zero.to(codes.dtype)).to(torch.float32)
    else:
        wide = torch.int64 if codes.dtype == torch.int64 else torch.int32
        centred = (codes.to(wide) - zero).to(torch.float32)
    return centred * scale.to(codes.device)


def quantize_weight(weight: torch.Tensor, qparams: QParams) -> QTensor:
    """Codes of a constant tensor, in storage dtype; rounded half to even, in float64.

    float64 division makes the codes independent of the target: they are data, not arithmetic.
    """
    scale, zero = qparams.broadcast(weight.ndim)
    w, scale, storage = weight.detach(), scale.to(torch.float64), qparams.qtype.storage

    def codes(part: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        wide = part.to(torch.float64, copy=True).div_(scale).round_().add_(zero)
        return wide.clamp_(qparams.qtype.qmin, qparams.qtype.qmax).to(storage)

    rows = max(1, _PART * len(w) // w.numel()) if w.ndim and w.numel() else 1
    if not w.ndim or len(w) <= rows:
        return QTensor(codes(w, scale, zero), qparams)
    found = torch.empty_like(w, dtype=storage)
    for start in range(0, len(w), rows):  # what several passes touch stays in a core's cache: seven times as fast
        part = slice(start, start + rows)
        found[part] = codes(w[part], *(p[part] if p.ndim and len(p) == len(w) else p for p in (scale, zero)))
    return QTensor(found, qparams)
