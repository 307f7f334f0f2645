"""Functions of one code that LiteRT computes with an integer kernel of its own, as tables.

The kernels are those of :mod:`intact.reference.litert`, which were held against the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intact.arithmetic.arithmetic import REFERENCE
from intact.arithmetic.litert import tflite_product, tflite_sum
from intact.reference.litert.elementwise import requantize
from intact.reference.litert.quant import Quant
from intact.reference.litert.tables import hard_swish, logistic_int16, tanh_int16
from intact.types import INT16, QParams

__all__ = ["function_codes", "hard_swish_fits", "scalar_code"]


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

    HARD_SWISH where both have at most 8 bits; where both have 16 and zero point 0, RELU and clamps (requantized, then
    bounded by the caller), MUL and ADD of a number, as :func:`scalar_code` has it, and LOGISTIC and TANH, which give
    1/32768 and nothing else.

    >>> from intact.types import INT8, INT16
    >>> x, y = QParams.per_tensor(2.0**-12, 0, INT16), QParams.per_tensor(2.0**-15, 0, INT16)
    >>> function_codes("sigmoid", {}, x, y)[[0, 32768, 36864]].tolist()
    [11.0, 16384.0, 23956.0]
    """
    codes = np.arange(operand.qtype.qmin, operand.qtype.qmax + 1)
    widths, zeros = {operand.qtype.bits, out.qtype.bits}, {int(operand.zero_point), int(out.zero_point)}
    if max(widths) <= 8:
        if op != "hardswish" or not hard_swish_fits(operand, out):
            return None
        found = hard_swish(codes, _as_quant(operand, 8), _as_quant(out, 8))
    elif widths != {16} or zeros != {0}:
        return None
    elif op in ("sigmoid", "tanh"):
        if float(out.scale) != 2.0**-15:
            return None
        found = (logistic_int16 if op == "sigmoid" else tanh_int16)(codes, _as_quant(operand, 16))
    elif op in ("relu", "clamp"):
        found = requantize(codes, _as_quant(operand, 16), _as_quant(out, 16))
    elif (scalar := scalar_code(op, attrs)) is not None:
        code, q = scalar
        x = torch.from_numpy(codes)
        if op == "add_scalar":
            return tflite_sum(x, torch.tensor(code), operand, q, out, REFERENCE, 1)
        return tflite_product((x - int(operand.zero_point)) * code, operand, q, out)
    else:
        return None
    return torch.from_numpy(found).to(torch.float32)


def scalar_code(op: str, attrs: Mapping[str, Any]) -> tuple[int, QParams] | None:
    """The number that is added or multiplied with as a 16-bit code, exactly; None for another function, and for 0.

    Multiplied, it is the code 1 or -1, so that the product has no more bits than the operand; added, a large one, so
    that both scales are alike.

    >>> code, q = scalar_code("mul_scalar", {"value": -0.5})
    >>> code, float(q.scale)
    (-1, 0.5)
    """
    if op not in ("add_scalar", "mul_scalar"):
        return None
    code = 1 if op == "mul_scalar" else 2**14
    size = abs(float(np.float32(attrs["value"])))
    if not 2.0**-100 <= size <= 2.0**100:
        return None
    return code if attrs["value"] > 0 else -code, QParams.per_tensor(size / code, 0, INT16)
