"""Activations to codes with a range that is found at run time, in as few passes over memory as possible."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from intact.private import ROW_MARGIN, fused_rows

__all__ = ["ROW_EPSILON", "quantize_rows", "quantize_tensor", "tensor_range"]

ROW_EPSILON = 1e-8  #: added to the range of a row, so that a constant one has a finite reciprocal


def quantize_rows(x: Tensor, *, fast: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes of every row, from its lowest value up: ``code = rint((x - low) * (255 / (high - low + 1e-8)))``.

    Back: ``x = code * step + low``. A real number as the origin makes use of all codes for a row of any sign: on the
    activations of a transformer the error is less than half of that of codes around 0. A row with a NaN or an
    infinity has such a step or origin, so that what is computed from it is not finite either. The formula is that of
    fbgemm's row-wise codes, which torch has as one kernel: five times as fast as one operation after the other.

    Args:
        x: float32 (rows, columns), at least one column.
        fast: allow the kernel.

    Returns:
        Codes, uint8, the shape of ``x``, or from the kernel with 8 more columns of any value: give a product that
        many rows of zeros rather than copy. Step and lowest value, float32, (rows, 1).

    >>> codes, step, low = quantize_rows(torch.tensor([[0.0, 1.0, 2.55], [3.0, 3.0, 3.0]]))
    >>> codes[:, :3].tolist(), step.flatten(), low.flatten()
    ([[0, 100, 255], [0, 0, 0]], tensor([1.0000e-02, 3.9216e-11]), tensor([0., 3.]))
    """
    # the kernel takes a NaN for the lowest value; a sum passes it on, and costs least of all that does
    if (fast and x.device.type == "cpu" and not torch.compiler.is_compiling() and _fused_is_exact()
            and math.isfinite(float(x.sum()))):
        codes, span, low = fused_rows(x)
        return codes, span.add(ROW_EPSILON / 255.0), low
    # two reductions of one result each are ten times as fast as aminmax, or as a norm, along an axis (torch 2.13)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    span = high.sub_(low)
    inverse = torch.full_like(span, 255.0).div_(span + ROW_EPSILON)
    # float32 subtraction is monotonic: x - low is in [0, high - low], and codes are in [0, 255] without clamping.
    # By way of int16, because torch converts floats to uint8 four times as slowly
    codes = torch.sub(x, low).mul_(inverse).round_().to(torch.int16).to(torch.uint8)
    return codes, span.div_(255.0).add_(ROW_EPSILON / 255.0), low


@lru_cache(maxsize=1)
def _fused_is_exact() -> bool:
    """Whether the kernel exists here and gives the codes of the formula, on ties, constant rows and odd sizes too."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((1, 1), (3, 2), (5, 7), (4, 8), (17, 33), (9, 100), (64, 257), (33, 768)):
        for size in (1e-12, 1e-3, 1.0, 1e30):
            x = size * (torch.randn(rows, columns, generator=generator) + torch.randn(rows, 1, generator=generator))
            x[0] = x[0, 0]
            if rows > 1:
                x[1] = torch.randint(0, 1021, (columns,), generator=generator) / 4.0
            wanted = quantize_rows(x, fast=False)
            try:
                codes, span, low = fused_rows(x)
            except (RuntimeError, AttributeError):  # gone from this version of torch
                return False
            found = codes[:, :columns], span.add(ROW_EPSILON / 255.0), low
            if codes.shape[1] != columns + ROW_MARGIN or not all(map(torch.equal, found, wanted)):
                return False
    return True


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
