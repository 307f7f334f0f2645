"""Functions of one or two codes: tables, built once from the arithmetic's formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from intact.arithmetic import (
    PRODUCT_LIMIT,
    BinaryRule,
    Curve,
    FunctionRule,
    add_codes,
    dequantize,
    fitted_curve,
    mul_codes,
    quantize,
    sub_codes,
)
from intact.arithmetic.limits import largest_ratio
from intact.arithmetic.litert_functions import function_codes
from intact.errors import PlanError
from intact.kernels.base import Binding, Kernel, activation_codes, kernel, to_carrier
from intact.kernels.functions import UNARY_OPS
from intact.types import QParams
from intact.types.dims import Sizes

__all__ = ["BinaryKernel", "LookupKernel", "all_codes", "look_up", "unary_curve", "unary_table", "value_table"]

_BINARY = {"add": add_codes, "sub": sub_codes, "mul": mul_codes}
_TABLE_BITS = 16  # two 8-bit operands: 65,536 entries, which stay in the second-level cache


def all_codes(qparams: QParams) -> Tensor:
    """Every code of an encoding, ascending, as integer-valued float32."""
    return torch.arange(qparams.qtype.qmin, qparams.qtype.qmax + 1, dtype=torch.float32)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` for an int32 index of any shape."""
    return torch.index_select(table, 0, index.reshape(-1)).reshape(index.shape)


def unary_table(binding: Binding) -> Tensor:
    """Output code of every input code: the function in float64, rounded to float32, quantized; or the runtime's own."""
    (qx,) = binding.inputs
    if binding.arithmetic.functions is FunctionRule.LITERT:
        codes = function_codes(binding.op, binding.attrs, qx, binding.output)
        if codes is not None:
            return codes.clamp_(*_bounds(binding))
    x = dequantize(all_codes(qx), qx).to(torch.float64)
    y = UNARY_OPS[binding.op](x, binding.attrs).to(torch.float32)
    low, high = activation_codes(binding)
    return quantize(torch.nan_to_num(y), binding.output, binding.arithmetic).clamp_(low, high)


def unary_curve(binding: Binding) -> Curve | None:
    """The function as straight lines, where the arithmetic has such functions and one is close enough.

    What only clamps needs no table, and a corner would cost it its exactness.
    """
    if binding.arithmetic.functions is not FunctionRule.INTERPOLATED or binding.op in ("relu", "clamp"):
        return None
    (qx,), out = binding.inputs, binding.output

    def values(codes: Tensor) -> Tensor:
        x = (codes - int(qx.zero_point)) * float(qx.scale)
        y = torch.nan_to_num(UNARY_OPS[binding.op](x, binding.attrs))
        return y / float(out.scale) + int(out.zero_point)

    return fitted_curve(values, qx.qtype, out.qtype, *activation_codes(binding))


def _bounds(binding: Binding) -> tuple[int, int]:
    """Codes between which a function lies: a clamp's own bounds, and those of a folded activation."""
    low, high = activation_codes(binding)
    own = {"relu": (0.0, math.inf), "clamp": (binding.attrs.get("low"), binding.attrs.get("high"))}.get(binding.op)
    if own is None:
        return low, high
    first, last = quantize(torch.tensor(own), binding.output, binding.arithmetic).tolist()
    return max(low, min(int(first), high)), min(high, max(int(last), low))


def value_table(op: str, attrs: Mapping[str, Any], qx: QParams) -> Tensor:
    """float32 value of a function at every code: exact, where float kernels differ in the last bits."""
    x = dequantize(all_codes(qx), qx).to(torch.float64)
    return UNARY_OPS[op](x, attrs).to(torch.float32)


class LookupKernel(Kernel):
    """A function of one operand: a table of all codes, written out from the curve where the arithmetic has one."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        (qx,) = binding.inputs
        self.curve = unary_curve(binding)
        if self.curve is None:
            self.table = unary_table(binding)
        else:
            index = torch.arange(qx.qtype.qmax - qx.qtype.qmin + 1)
            self.table = self.curve.codes(index, binding.arithmetic.rounding, *activation_codes(binding))
        self.stored = self.table.to(binding.output.qtype.storage)
        self.qmin = qx.qtype.qmin

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes, element by element."""
        (x,) = xs
        index = x.to(torch.int32) - self.qmin
        table = self.table if x.is_floating_point() else self.stored
        return look_up(table.to(x.device), index)


for _op in UNARY_OPS:
    kernel(_op)(LookupKernel)


def _check_product(binding: Binding) -> None:
    """The plan proves this of all zero points that may be chosen; a model from a file has not seen it."""
    zeros = [int(q.zero_point) for q in binding.inputs]
    a, b = (max(q.qtype.qmax - z, z - q.qtype.qmin) for q, z in zip(binding.inputs, zeros, strict=True))
    if a * b >= PRODUCT_LIMIT:
        raise PlanError("a product of two activations can pass 32 bits", where=binding.where, got=f"{a * b:,}",
                        allowed=f"below {PRODUCT_LIMIT:,}", fix="give one operand the zero point 0, or fewer bits")


@kernel("add", "sub", "mul")
class BinaryKernel(Kernel):
    """A function of two operands that broadcast; a table where both have at most 8 bits."""

    def __init__(self, binding: Binding) -> None:
        super().__init__(binding)
        qa, qb = binding.inputs
        self.low, self.high = activation_codes(binding)
        self._check_ratios()
        self.table: Tensor | None = None
        if binding.op == "mul" and binding.arithmetic.integer_only:
            _check_product(binding)
        if qa.qtype.bits + qb.qtype.bits <= _TABLE_BITS:
            self.width = qb.qtype.qmax - qb.qtype.qmin + 1
            self.offset = qa.qtype.qmin * self.width + qb.qtype.qmin
            a, b = torch.meshgrid(all_codes(qa), all_codes(qb), indexing="ij")
            self.table = self._formula(a.reshape(-1), b.reshape(-1))
            self.stored = self.table.to(binding.output.qtype.storage)

    def _check_ratios(self) -> None:
        """Steps of operands against the output's, as far as the runtime has a kernel for them.

        Where XNNPACK has none, it hands the operator back to one that wraps at 16 bits, in blocks of the tensor. TFLite
        ends the process: the sum's multiplier must be below 1.
        """
        (qa, qb), sy, b = self.binding.inputs, self.binding.output.scale, self.binding
        rule = b.arithmetic.mul if b.op == "mul" else b.arithmetic.add
        if rule is not BinaryRule.XNNPACK and (rule is not BinaryRule.TFLITE or b.op == "mul"):
            return
        limit = int(largest_ratio(b.op, b.arithmetic, b.output.qtype.bits))
        ratio = float(max([(qa.scale * qb.scale) / sy] if b.op == "mul" else [qa.scale / sy, qb.scale / sy]))
        if ratio >= limit:
            name = "XNNPACK" if rule is BinaryRule.XNNPACK else "TFLite"
            other = ", or take target='litert_reference'" if rule is BinaryRule.XNNPACK else ""
            raise PlanError(f"an operand's step is {limit} of the output's and more, for which {name} has no kernel",
                            where=b.where or b.op, got=f"{ratio:g}", allowed=f"below {limit}",
                            fix=f"look at the ranges of the operands and of the output{other}")

    def _formula(self, a: Tensor, b: Tensor) -> Tensor:
        (qa, qb), out = self.binding.inputs, self.binding.output
        codes = _BINARY[self.binding.op](a, b, qa, qb, out, self.binding.arithmetic)
        return codes.clamp_(self.low, self.high)

    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Codes, element by element."""
        a, b = xs
        if self.table is None:
            codes = self._formula(*torch.broadcast_tensors(a.to(torch.float32), b.to(torch.float32)))
            return to_carrier(codes, a, self.binding)
        if a.is_floating_point():
            # below 2**24, so exact in float32; one conversion instead of two
            index = (a * self.width + b).to(torch.int32)
            table = self.table
        else:
            index = a.to(torch.int32) * self.width + b.to(torch.int32)
            table = self.stored
        return look_up(table.to(a.device), index - self.offset if self.offset else index)
