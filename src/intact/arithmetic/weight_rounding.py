"""Rounding of convolution weights whose errors cancel within each kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from intact.arithmetic.quantize import quantize_weight
from intact.types import QParams, QTensor

__all__ = ["quantize_kernel_weight"]


def quantize_kernel_weight(weight: Tensor, qparams: QParams) -> QTensor:
    """Codes of a convolution weight (out, in, *kernel) with the rounding errors of each kernel summing to about 0.

    Neighbouring positions of a feature map are alike, so what the taps of one kernel do to the output is close to
    the sum of their errors times one value. Where that sum reaches half a step, the codes whose own errors are
    largest in its direction are rounded the other way, as many as the sum has steps (Guo et al., "SQuant:
    On-the-fly data-free quantization via diagonal Hessian approximation", 2022, kernel-wise part).

    >>> from intact.types import INT8
    >>> w = torch.tensor([[[0.4, 0.45, 0.4]]])
    >>> quantize_kernel_weight(w, QParams.per_tensor(1.0, 0, INT8)).codes.tolist()
    [[[0, 1, 0]]]
    """
    nearest = quantize_weight(weight, qparams)
    taps = weight[0, 0].numel() if weight.ndim > 2 else 1
    if taps < 2:
        return nearest
    scale, zero = qparams.broadcast(weight.ndim)
    exact = weight.detach().to(torch.float64) / scale.to(torch.float64) + zero
    codes = nearest.codes.to(torch.float32).flatten(2)
    error = (codes - exact.flatten(2)).to(torch.float32)
    error = torch.where(error.abs() <= 0.5, error, torch.zeros_like(error))  # clipped codes take no part
    steps = error.sum(2, keepdim=True).round()
    direction = steps.sign()
    directed = error * direction
    for step in range(int(steps.abs().max())):  # a few rounds: the sum of n errors is about sqrt(n / 12)
        worst = directed.argmax(2, keepdim=True)
        move = torch.where(steps.abs() > step, direction, torch.zeros_like(direction))
        codes.scatter_add_(2, worst, -move)
        directed.scatter_(2, worst, -1.0)  # each code moves once
    q = qparams.qtype
    moved = codes.clamp(q.qmin, q.qmax).reshape(weight.shape)
    return QTensor(moved.to(q.storage), qparams)
