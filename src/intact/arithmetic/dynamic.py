"""Activations to codes with a range that is found at run time, in as few passes over memory as possible."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["quantize_rows", "quantize_tensor", "tensor_range"]

_TINY = 2.0**-100  # a row that varies less is constant


def quantize_rows(x: Tensor, scratch: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes of every row, from its lowest value up: ``code = rint((x - low) / step)``, ``x = code * step + low``.

    A real number as the origin makes use of all codes for a row of any sign: on the activations of a transformer the
    error is less than half of that of codes around 0. A row with a NaN or an infinity has such a step or origin, so
    that what is computed from it is not finite either.

    Args:
        x: float32 (rows, columns), at least one column.
        scratch: float32, the shape of ``x``; overwritten.

    Returns:
        Codes, uint8, the shape of ``x``; step (a 255th of the range) and lowest value, float32, (rows, 1).

    >>> codes, step, low = quantize_rows(torch.tensor([[0.0, 1.0, 2.55], [3.0, 3.0, 3.0]]))
    >>> codes.tolist(), step.flatten(), low.flatten()
    ([[0, 100, 255], [0, 0, 0]], tensor([1.0000e-02, 7.8886e-31]), tensor([0., 3.]))
    """
    # two reductions of one result each are ten times as fast as aminmax, or as a norm, along an axis (torch 2.13)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = high.sub_(low).mul_(1.0 / 255.0).clamp_(min=_TINY)
    # float32 subtraction is monotonic: x - low is in [0, high - low], and codes are in [0, 255] without clamping.
    # By way of int16, because torch converts floats to uint8 four times as slowly
    # A true division, as ONNX QuantizeLinear has it: the same codes in a runtime
    real = torch.sub(x, low, out=scratch).div_(step).round_()
    return real.to(torch.int16).to(torch.uint8), step, low


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
    return (x / scale).round_().add_(zero).clamp_(0.0, 255.0).to(torch.int16).to(torch.uint8)
