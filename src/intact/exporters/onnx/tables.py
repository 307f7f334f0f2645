"""Functions of one code in ONNX: the fastest form that gives the table's entry for every code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from onnx import TensorProto

from intact.arithmetic import dequantize, quantize
from intact.errors import ExportError
from intact.exporters.builder import Builder
from intact.exporters.onnx.functions import RUNTIME_DOMAIN
from intact.exporters.onnx.ops import UNARY
from intact.exporters.runtime import Array, run_model, wrap
from intact.graph import Node
from intact.kernels import KERNELS, Binding
from intact.types import QParams

__all__ = ["emit_table", "emit_unary"]

Form = Callable[[Builder, Node, str], str]

#: functions whose own float kernel gives results that depend on the position in the buffer (vector or tail lane)
_POSITION_DEPENDENT = frozenset({"elu", "softplus", "scaled_softplus", "log_sigmoid", "mish", "log", "sin", "cos",
                                 "pow_scalar"})


def _scalar(b: Builder, value: float) -> str:
    return b.const(f"number:{value:g}", np.array(value, np.float32))


def _quick_gelu(b: Builder, n: Node, x: str) -> str:
    """One pass instead of two: the session fuses Sigmoid and Mul by itself, but not behind DequantizeLinear."""
    return b.op("QuickGelu", [x], f"{n.name}:silu", name=n.name, domain=RUNTIME_DOMAIN, alpha=1.0)


def _elu(b: Builder, n: Node, x: str) -> str:
    """``max(x, 0) + alpha * (exp(min(x, 0)) - 1)``; Exp gives the same at every position."""
    e = b.op("Exp", [b.op("Min", [x, _scalar(b, 0.0)], f"{n.name}:negative")], f"{n.name}:exp")
    part = b.op("Sub", [e, _scalar(b, 1.0)], f"{n.name}:less_one")
    if n.attrs["alpha"] != 1.0:
        part = b.op("Mul", [part, _scalar(b, n.attrs["alpha"])], f"{n.name}:scaled")
    positive = b.op("Max", [x, _scalar(b, 0.0)], f"{n.name}:positive")
    return b.op("Add", [positive, part], f"{n.name}:elu", name=n.name)


def _mish(b: Builder, n: Node, x: str) -> str:
    """``x * t / (t + 2)`` with ``t = e * (e + 2)``, ``e = exp(min(x, 20))``: tanh(log(1 + e)) without a logarithm."""
    e = b.op("Exp", [b.op("Min", [x, _scalar(b, 20.0)], f"{n.name}:bounded")], f"{n.name}:exp")
    t = b.op("Mul", [e, b.op("Add", [e, _scalar(b, 2.0)], f"{n.name}:plus_two")], f"{n.name}:product")
    gate = b.op("Div", [t, b.op("Add", [t, _scalar(b, 2.0)], f"{n.name}:below")], f"{n.name}:gate")
    return b.op("Mul", [x, gate], f"{n.name}:mish", name=n.name)


#: forms that are tried before the plain one, fastest first
_FORMS: dict[str, Form] = {"silu": _quick_gelu, "elu": _elu, "mish": _mish}


def _forms(op: str) -> list[Form]:
    plain = [] if op in _POSITION_DEPENDENT else [UNARY[op]]
    return ([_FORMS[op]] if op in _FORMS else []) + plain


def emit_unary(b: Builder, n: Node, binding: Binding) -> None:
    """A float form where it gives the table's code for every code, else the table."""
    if n.op in ("relu", "clamp"):
        return _clamp(b, n, binding)
    table = KERNELS[n.op](binding).stored  # type: ignore[attr-defined]
    for form in _forms(n.op):
        if _gives(b, n, form, table.numpy(), binding):
            b.codes[n.name] = b.result_codes(form(b, n, b.values_of(n.inputs[0])), binding, n.name)
            return None
    b.codes[n.name] = _gather(b, n, b.codes_of(n.inputs[0]), table, binding.inputs[0])
    return None


def emit_table(b: Builder, n: Node, table: torch.Tensor) -> str:
    """A function that stays in float and reads codes: a float form if it gives the table bit for bit."""
    source = n.inputs[0]
    for form in _forms(n.op):
        if _gives(b, n, form, table.numpy(), None):
            return form(b, n, b.values_of(source))
    return _gather(b, n, b.codes_of(source), table, b.qparams[source])


def _clamp(b: Builder, n: Node, binding: Binding) -> None:
    """Clamp the codes, then change their scale by a concatenation of one operand.

    A Relu between DequantizeLinear and QuantizeLinear may be removed by the runtime, and the two pairs that are
    left are then merged with other parameters; a concatenation is kept, and runs as a table.
    """
    (q,) = binding.inputs
    low, high = (0.0, float("inf")) if n.op == "relu" else (n.attrs["low"], n.attrs["high"])
    bounds = quantize(torch.tensor([low, high]), q, binding.arithmetic).tolist()
    codes = b.codes_of(n.inputs[0])
    kernel, every = KERNELS[n.op](binding), torch.arange(q.qtype.qmin, q.qtype.qmax + 1)
    clipped = dequantize(every.clamp(int(bounds[0]), int(bounds[1])), q)
    if not torch.equal(quantize(clipped, binding.output, binding.arithmetic), kernel.table):  # type: ignore[attr-defined]
        # a bound between two codes of the operand
        b.codes[n.name] = _gather(b, n, codes, kernel.stored, q)  # type: ignore[attr-defined]
        return
    codes = b.clip(codes, int(bounds[0]), int(bounds[1]), q.qtype, n.name)
    y = b.op("Concat", [b.dequantize(codes, q, n.inputs[0])], f"{n.name}:rescaled", name=n.name, axis=0)
    b.codes[n.name] = b.result_codes(y, binding, n.name)


def _gather(b: Builder, n: Node, codes: str, table: torch.Tensor, q: QParams) -> str:
    """The table itself: exact, and some five times as slow as a float form."""
    index = b.op("Cast", [codes], f"{n.name}:index", to=TensorProto.INT32)
    if q.qtype.qmin:
        table = torch.roll(table, q.qtype.qmin)  # Gather takes negative indices from the end
    return b.op("Gather", [b.const(f"{n.name}:table", table), index], f"{n.name}:looked_up", name=n.name)


def _every_code(q: QParams) -> Array:
    """All codes of an encoding, several times at different positions of the vector units."""
    every = np.arange(q.qtype.qmin, q.qtype.qmax + 1)
    codes = np.concatenate([every, every[:5], every[::-1], every[3:]])
    return codes.astype(str(q.qtype.storage).removeprefix("torch."))


def _gives(b: Builder, n: Node, form: Form, table: Array, binding: Binding | None) -> bool:
    """Run a form on every code, at several positions of the vector units, and compare codes (or floats)."""
    small, source = Builder(b.graph, b.params, b.qparams, b.bindings), n.inputs[0]
    q = b.qparams[source]
    out = form(small, n, small.dequantize("x", q, source))
    if binding is not None:
        out = small.result_codes(out, binding, n.name)
    codes = _every_code(q)
    try:
        (found,) = run_model(wrap(small, {"x": (str(codes.dtype), [None])}, {out: (str(table.dtype), [None])}),
                             {"x": codes})
    except ExportError:
        return False
    return bool(np.array_equal(found, table[codes.astype(np.int64) - q.qtype.qmin], equal_nan=table.dtype.kind == "f"))
