"""Functions of one code that LiteRT computes with an integer kernel of its own, as tables.

The kernels are those of :mod:`intact.reference.litert`, which were held against the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intact.arithmetic.litert import tflite_product
from intact.reference.litert.elementwise import requantize
from intact.reference.litert.quant import Quant
from intact.reference.litert.tables import hard_swish, logistic_int16, tanh_int16
from intact.types import QParams

__all__ = ["function_codes", "hard_swish_fits", "scalar_scale"]


def hard_swish_fits(operand: QParams, out: QParams) -> bool:
    """Whether HARD_SWISH takes these scales: ``s_x / (128 * s_y)`` must be below 1.

    >>> from intact.types import INT8
    >>> hard_swish_fits(QParams.per_tensor(0.1, 0, INT8), QParams.per_tensor(0.05, 0, INT8))
    True
    """
    return bool(operand.scale * (1.0 / 128.0) / out.scale < 1.0)


def _as_quant(q: QParams, bits: int) -> Quant:
    return Quant(float(q.scale), int(q.zero_point), bits)


def function_codes(op: str, attrs: Mapping[str, Any], operand: QParams, out: QParams) -> Tensor | None:
    """Output code of every code of the operand, ascending, as integer-valued float32; None without such a kernel.

    HARD_SWISH of 8 bits; of 16 bits LOGISTIC, TANH, RELU and clamps (requantized, then bounded by the caller), and
    multiplication by a number (MUL by the code 1 or -1 of its magnitude as scale).

    >>> from intact.types import INT8, INT16
    >>> x, y = QParams.per_tensor(2.0**-12, 0, INT16), QParams.per_tensor(2.0**-15, 0, INT16)
    >>> function_codes("sigmoid", {}, x, y)[[0, 32768, 36864]]
    tensor([   11., 16384., 23956.])
    """
    codes = np.arange(operand.qtype.qmin, operand.qtype.qmax + 1)
    if out.qtype.bits <= 8:
        if op != "hardswish" or not hard_swish_fits(operand, out):
            return None
        found = hard_swish(codes, _as_quant(operand, 8), _as_quant(out, 8))
    elif op in ("sigmoid", "tanh"):
        found = (logistic_int16 if op == "sigmoid" else tanh_int16)(codes, _as_quant(operand, 16))
    elif op in ("relu", "clamp"):
        found = requantize(codes, _as_quant(operand, 16), _as_quant(out, 16))
    elif op == "mul_scalar" and scalar_scale(attrs["value"]) is not None:
        return _times(attrs["value"], torch.from_numpy(codes), operand, out)
    else:
        return None
    return torch.from_numpy(found).to(torch.float32)


def scalar_scale(value: float) -> float | None:
    """The scale whose code 1 or -1 a number is; None where that is no normal float32.

    >>> scalar_scale(-0.5), scalar_scale(0.0)
    (0.5, None)
    """
    size = abs(float(np.float32(value)))
    return size if 2.0**-100 <= size <= 2.0**100 else None


def _times(value: float, codes: Tensor, operand: QParams, out: QParams) -> Tensor:
    factor = QParams.per_tensor(abs(value), 0, out.qtype)
    product = (codes - int(operand.zero_point)) * (1 if value > 0 else -1)
    return tflite_product(product, operand, factor, out)
