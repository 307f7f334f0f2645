"""Functions of one value in LiteRT's operators: native ones where they give the same codes, else tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intact.arithmetic.litert_functions import hard_swish_fits, scalar_code
from intact.exporters.litert.build import Builder, Perm
from intact.graph import Node
from intact.kernels import KERNELS, Binding
from intact.kernels.base import activation_codes
from intact.kernels.elementwise import unary_table
from intact.reference.litert.elementwise import relu
from intact.reference.litert.quant import Activation, Quant
from intact.reference.litert.tables import hard_swish, logistic, logistic_int16, lut_int8, tanh, tanh_int16
from intact.types import QParams

__all__ = ["emit_function", "emit_square", "rescaled_codes"]

Array = npt.NDArray[Any]


def _entries(b: Builder, codes: torch.Tensor, q: QParams) -> Array:
    """A table of every code of an encoding as one of all codes of the type; those that never occur hold 0."""
    low, high = b.dialect.codes
    table = np.zeros(high - low + 1, b.dialect.dtype)
    table[q.qtype.qmin - low: q.qtype.qmax - low + 1] = codes.numpy().astype(b.dialect.dtype)
    return table


def emit_function(b: Builder, node: Node, binding: Binding) -> None:
    """A function of one operand."""
    perm, x = b.where(node.inputs[0])
    table = unary_table(binding)
    name = _native(b, node, binding, table)
    if name:
        b.op(name, [x], b.made(node.name, perm))
    elif b.dialect.bits == 16 and node.op in ("relu", "clamp"):
        own = b.made(node.name, perm)
        scaled = rescaled_codes(b, x, binding.inputs[0], binding.output)
        b.clamp_codes(scaled, own, int(table.min()), int(table.max()), binding.output)
    elif b.dialect.bits == 16 and (scalar := scalar_code(node.op, node.attrs)) is not None:
        number = b.const(f"{node.name}:number", np.array([scalar[0]], np.int16), q=scalar[1])
        code, options = ("MUL", {}) if node.op == "mul_scalar" else ("ADD", {"potScaleInt16": False})
        b.clamped(code, [x, number], b.made(node.name, perm), binding, **options)
    else:
        b.look_up(x, _entries(b, table, binding.inputs[0]), b.made(node.name, perm))


def emit_square(b: Builder, x: str, node: Node, perm: Perm, binding: Binding) -> bool:
    """A table instead of MUL of a tensor by itself, where XNNPACK, which runs a square, gives other codes."""
    (qx, _), qy = binding.inputs, binding.output
    if b.dialect.formulas != "delegated":
        return False
    every = torch.arange(qx.qtype.qmin, qx.qtype.qmax + 1, dtype=torch.float32)
    table = KERNELS["mul"](binding)([every, every], {})
    operand, out = (Quant(float(q.scale), int(q.zero_point)) for q in (qx, qy))
    theirs = lut_int8(np.square, operand, out, kernels="delegated")[qx.qtype.qmin + 128: qx.qtype.qmax + 129]
    if np.array_equal(theirs.clip(*activation_codes(binding)), table.numpy()):
        return False
    b.look_up(x, _entries(b, table, qx), b.made(node.name, perm))
    return True


def rescaled_codes(b: Builder, x: str, q: QParams, out: QParams, table: torch.Tensor | None = None) -> str:
    """Codes in another encoding: of 16 bits by QUANTIZE, of 8 by a table; the same tensor for the same encoding."""
    if q.same_as(out):
        return x
    own = b.add(b.unique(f"{x}:rescaled"), b.dialect.dtype, b.tensors[x].shape, out)
    return b.op("QUANTIZE", [x], own) if table is None else b.look_up(x, _entries(b, table, q), own)


def _native(b: Builder, node: Node, binding: Binding, table: torch.Tensor) -> str:
    """The operator that gives the same codes for every code there is; "" if there is none."""
    (qx,), qy = binding.inputs, binding.output
    bits = b.dialect.bits
    x, y = (Quant(float(q.scale), int(q.zero_point), bits) for q in (qx, qy))
    every, kernels = np.arange(qx.qtype.qmin, qx.qtype.qmax + 1), b.dialect.formulas
    bounds = {"relu": (0.0, math.inf), "clamp": (node.attrs.get("low"), node.attrs.get("high"))}.get(node.op)
    found: Array
    if bits == 16 and node.op in _WIDE:
        name, function = _WIDE[node.op]
        found = function(every, x, kernels=kernels)
    elif node.op == "hardswish" and bits == 8 and hard_swish_fits(qx, qy):
        name, found = "HARD_SWISH", hard_swish(every, x, y)
    elif bits == 8 and node.op == "sigmoid" and (y.scale, y.zero_point) == (2.0**-8, -128):
        name, found = "LOGISTIC", logistic(every, x, y, kernels=kernels)
    elif bits == 8 and node.op == "tanh" and (y.scale, y.zero_point) == (2.0**-7, 0):
        name, found = "TANH", tanh(every, x, y, kernels=kernels)
    elif bounds in _RELUS and (bits == 8 or node.op == "relu"):
        name, activation = _RELUS[bounds]
        found = relu(every, x, y, activation)
    else:
        return ""
    return name if np.array_equal(found, table.numpy()) else ""


_WIDE: dict[str, tuple[str, Callable[..., Array]]] = {
    "sigmoid": ("LOGISTIC", logistic_int16), "tanh": ("TANH", tanh_int16)}
_RELUS: dict[tuple[Any, Any] | None, tuple[str, Activation]] = {
    (0.0, math.inf): ("RELU", "RELU"), (0.0, 6.0): ("RELU6", "RELU6"), (-1.0, 1.0): ("RELU_N1_TO_1", "RELU_N1_TO_1"),
}
