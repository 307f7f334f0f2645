"""Element-wise functions of one value: on codes each of them is a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["UNARY_OPS"]

UNARY_OPS: dict[str, Callable[[Tensor, Mapping[str, Any]], Tensor]] = {
    "relu": lambda x, a: F.relu(x),
    "clamp": lambda x, a: x.clamp(a["low"], a["high"]),
    "leaky_relu": lambda x, a: F.leaky_relu(x, a["slope"]),
    "elu": lambda x, a: F.elu(x, a["alpha"]),
    "hardswish": lambda x, a: F.hardswish(x),
    "hardsigmoid": lambda x, a: F.hardsigmoid(x),
    "sigmoid": lambda x, a: torch.sigmoid(x),
    "silu": lambda x, a: F.silu(x),
    "gelu": lambda x, a: F.gelu(x, approximate=a["approximate"]),
    "tanh": lambda x, a: torch.tanh(x),
    "mish": lambda x, a: F.mish(x),
    "softplus": lambda x, a: F.softplus(x),
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
