"""Element-wise functions of one value: on codes each of them is a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["UNARY_OPS"]


def _scaled_elu(x: Tensor, a: Mapping[str, Any]) -> Tensor:
    """``scale * (max(x, 0) + alpha * (exp(input_scale * min(x, 0)) - 1))``: SELU, CELU, and an ELU with any scales."""
    below: Tensor = a["alpha"] * torch.expm1(a["input_scale"] * x.clamp(max=0.0))
    return (x.clamp(min=0.0) + below) * float(a["scale"])


UNARY_OPS: dict[str, Callable[[Tensor, Mapping[str, Any]], Tensor]] = {
    "relu": lambda x, a: F.relu(x),
    "clamp": lambda x, a: x.clamp(a["low"], a["high"]),
    "leaky_relu": lambda x, a: F.leaky_relu(x, a["slope"]),
    "elu": lambda x, a: F.elu(x, a["alpha"]),
    "scaled_elu": _scaled_elu,
    "hardswish": lambda x, a: F.hardswish(x),
    "hardsigmoid": lambda x, a: F.hardsigmoid(x),
    "sigmoid": lambda x, a: torch.sigmoid(x),
    "silu": lambda x, a: F.silu(x),
    "gelu": lambda x, a: F.gelu(x, approximate=a["approximate"]),
    "tanh": lambda x, a: torch.tanh(x),
    "mish": lambda x, a: F.mish(x),
    "softplus": lambda x, a: F.softplus(x),
    "scaled_softplus": lambda x, a: F.softplus(x, a["beta"], a["threshold"]),
    "log_sigmoid": lambda x, a: F.logsigmoid(x),
    "hardshrink": lambda x, a: F.hardshrink(x, a["bound"]),
    "softshrink": lambda x, a: F.softshrink(x, a["bound"]),
    "tanhshrink": lambda x, a: F.tanhshrink(x),
    "softsign": lambda x, a: F.softsign(x),
    "threshold": lambda x, a: F.threshold(x, a["threshold"], a["value"]),
    "exp": lambda x, a: torch.exp(x),
    "log": lambda x, a: torch.log(x),
    "sqrt": lambda x, a: torch.sqrt(x),
    "rsqrt": lambda x, a: torch.rsqrt(x),
    "reciprocal": lambda x, a: torch.reciprocal(x),
    "abs": lambda x, a: torch.abs(x),
    "neg": lambda x, a: torch.neg(x),
    "sin": lambda x, a: torch.sin(x),
    "cos": lambda x, a: torch.cos(x),
    "erf": lambda x, a: torch.erf(x),
    "add_scalar": lambda x, a: x + a["value"],
    "mul_scalar": lambda x, a: x * a["value"],
    "pow_scalar": lambda x, a: x ** a["value"],
}
