"""Integer operations in ONNX: QDQ groups in the very form that the runtime's default session fuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import TensorProto

from intact.arithmetic import dequantize, quantize
from intact.errors import ExportError
from intact.exporters.builder import Builder
from intact.exporters.onnx_ops import MOVES, UNARY, avg_pool_attrs, conv_attrs, pad, resize_attrs
from intact.exporters.runtime import Array, run_model, wrap
from intact.graph import Node
from intact.kernels import KERNELS, UNARY_OPS, Binding
from intact.kernels.base import activation_codes
from intact.types import QParams

__all__ = ["emit_integer", "emit_table"]

#: functions whose float kernel gives results that depend on the position in the buffer: never left to the runtime
_POSITION_DEPENDENT = frozenset({"elu", "softplus", "mish"})

Emit = Callable[[Builder, Node, Binding], None]


def emit_integer(b: Builder, n: Node, binding: Binding) -> None:
    """Append an integer node; its codes (or its accumulator's value) become those of its edge."""
    if n.op in UNARY_OPS:
        _unary(b, n, binding)
    elif n.op in MOVES:
        _move(b, n, binding)
    elif n.op in _EMIT:
        _EMIT[n.op](b, n, binding)
    else:
        raise ExportError("an integer operation has no ONNX form", where=n.path or n.name, got=n.op)


def _finish(b: Builder, n: Node, binding: Binding, y: str) -> None:
    """Quantize a result and clamp its codes where saturation does not; an accumulator stays a float value."""
    if binding.is_accumulator:
        b.floats[n.name] = y
        return
    codes = b.quantize(y, binding.output, n.name)
    b.codes[n.name] = b.clip_codes(codes, *activation_codes(binding), n.name)


def _conv(b: Builder, n: Node, binding: Binding) -> None:
    y = b.op("Conv", [b.values_of(n.inputs[0]), *b.weight(n, binding)], f"{n.name}:conv", name=n.name,
             **conv_attrs(n.attrs))
    _finish(b, n, binding, y)


def _linear(b: Builder, n: Node, binding: Binding) -> None:
    """Gemm on two axes; more axes are flattened on the codes before, and restored after."""
    x = b.values_of(n.inputs[0])
    flat = len(n.shape) != 2
    if flat:
        codes, q = b.codes_of(n.inputs[0]), binding.inputs[0]
        width = b.graph[n.inputs[0]].shape[-1]
        shape = b.const(f"{n.name}:rows", np.array([-1, width], np.int64))
        x = b.dequantize(b.op("Reshape", [codes, shape], f"{n.name}:flat"), q, n.inputs[0])
    y = b.op("Gemm", [x, *b.weight(n, binding)], f"{n.name}:gemm", name=n.name, transB=1)
    if not flat:
        return _finish(b, n, binding, y)
    back = b.shape_const(n.shape, n.name)
    if binding.is_accumulator:
        b.floats[n.name] = b.op("Reshape", [y, back], f"{n.name}:rows")
        return None
    codes = b.clip_codes(b.quantize(y, binding.output, n.name), *activation_codes(binding), n.name)
    b.codes[n.name] = b.op("Reshape", [codes, back], f"{n.name}:unflat")
    return None


def _binary(kind: str) -> Emit:
    def emit(b: Builder, n: Node, binding: Binding) -> None:
        y = b.op(kind, [b.values_of(i) for i in n.inputs], f"{n.name}:{kind}", name=n.name)
        _finish(b, n, binding, y)

    return emit


def _concat(b: Builder, n: Node, binding: Binding) -> None:
    y = b.op("Concat", [b.values_of(i) for i in n.inputs], f"{n.name}:concat", name=n.name, axis=n.attrs["axis"])
    _finish(b, n, binding, y)


def _avg_pool(b: Builder, n: Node, binding: Binding) -> None:
    y = b.op("AveragePool", [b.values_of(n.inputs[0])], f"{n.name}:pool", name=n.name, **avg_pool_attrs(n.attrs))
    _finish(b, n, binding, y)


def _interpolate(b: Builder, n: Node, binding: Binding) -> None:
    scales = [1.0, 1.0, *(t / s for s, t in zip(n.attrs["source"], n.attrs["size"], strict=True))]
    factors = b.const(f"{n.name}:scales", np.array(scales, np.float32))
    y = b.op("Resize", [b.values_of(n.inputs[0]), "", factors], f"{n.name}:resize", name=n.name,
             **resize_attrs(n.attrs))
    _finish(b, n, binding, y)


def _mean(b: Builder, n: Node, binding: Binding) -> None:
    """GlobalAveragePool over the averaged axes, moved to the end; an accumulator is an exact float sum."""
    source, axes = b.graph[n.inputs[0]], n.attrs["axes"]
    count = int(np.prod([source.shape[a] for a in axes]))
    codes, (q,) = b.codes_of(n.inputs[0]), binding.inputs
    if binding.is_accumulator:
        # integers below 2**24: exact in float32 in whatever order the runtime adds them
        total = b.op("ReduceSum", [b.op("Cast", [codes], f"{n.name}:cast", to=TensorProto.FLOAT),
                                   b.const(f"{n.name}:axes", np.array(axes, np.int64))],
                     f"{n.name}:sum", name=n.name, keepdims=int(n.attrs["keepdim"]))
        if int(q.zero_point):
            offset = b.const(f"{n.name}:offset", np.array(float(count * int(q.zero_point)), np.float32))
            total = b.op("Sub", [total, offset], f"{n.name}:centred")
        b.floats[n.name] = b.op("Mul", [total, b.const(f"{n.name}:factor", binding.output.scale)], f"{n.name}:mean")
        return
    factor = float(q.scale / (binding.output.scale * float(count)))
    if not 2.0**-32 <= factor < 256.0:
        raise ExportError("the runtime refuses this average", where=n.path or n.name, got=f"factor {factor:g}",
                          allowed="from 2**-32 to 256", fix="leave the module in float")
    rank = len(source.shape)
    plain = axes == list(range(2, rank)) and rank > 2
    x = b.values_of(n.inputs[0])
    if not plain:
        kept = [a for a in range(rank) if a not in axes]
        moved = b.op("Transpose", [codes], f"{n.name}:moved", perm=[*kept, *axes])
        shape = [source.shape[0], -1 if len(kept) > 1 else 1, count]
        rows = b.const(f"{n.name}:rows", np.array([-1 if not isinstance(shape[0], int) else shape[0],
                                                   int(np.prod([int(source.shape[a]) for a in kept[1:]])), count],
                                                  np.int64))
        x = b.dequantize(b.op("Reshape", [moved, rows], f"{n.name}:flat"), q, n.inputs[0])
    y = b.op("GlobalAveragePool", [x], f"{n.name}:mean", name=n.name)
    if plain and n.attrs["keepdim"]:
        return _finish(b, n, binding, y)
    pooled = b.clip_codes(b.quantize(y, binding.output, n.name), *activation_codes(binding), n.name)
    b.codes[n.name] = b.op("Reshape", [pooled, b.shape_const(n.shape, n.name)], f"{n.name}:reshaped")


def _pad(b: Builder, n: Node, binding: Binding) -> None:
    """On the codes: the runtime would pad in float between DequantizeLinear and QuantizeLinear."""
    kernel = KERNELS["pad"](binding)
    value = np.array(kernel.value, str(binding.output.qtype.storage).removeprefix("torch."))  # type: ignore[attr-defined]
    b.codes[n.name] = pad(b, n, b.codes_of(n.inputs[0]), value)


def _move(b: Builder, n: Node, binding: Binding) -> None:
    """On the codes themselves: nothing is dequantized, whatever the runtime fuses."""
    b.codes[n.name] = MOVES[n.op](b, n, b.codes_of(n.inputs[0]))


_EMIT: dict[str, Emit] = {
    "conv": _conv, "linear": _linear, "matmul": _binary("MatMul"), "add": _binary("Add"), "sub": _binary("Sub"),
    "mul": _binary("Mul"), "concat": _concat, "avg_pool": _avg_pool, "mean": _mean, "pad": _pad,
    "interpolate": _interpolate,
}


# -- functions of one code: tables ----------------------------------------------------------


def _unary(b: Builder, n: Node, binding: Binding) -> None:
    """The runtime's own float function where it gives the table's code for every code, else the table."""
    if n.op in ("relu", "clamp"):
        return _clamp(b, n, binding)
    if n.op not in _POSITION_DEPENDENT and _gives_the_table(b, n, binding):
        return _finish(b, n, binding, UNARY[n.op](b, n, b.values_of(n.inputs[0])))
    b.codes[n.name] = _gather_table(b, n, binding, b.codes_of(n.inputs[0]))
    return None


def _clamp(b: Builder, n: Node, binding: Binding) -> None:
    """Clamp the codes, then change their scale by a concatenation of one operand.

    A Relu between DequantizeLinear and QuantizeLinear may be removed by the runtime, and the two pairs that are
    left are then merged with other parameters; a concatenation is kept, and runs as a table.
    """
    (q,) = binding.inputs
    low, high = (0.0, float("inf")) if n.op == "relu" else (n.attrs["low"], n.attrs["high"])
    bounds = quantize(torch.tensor([low, high]), q, binding.arithmetic).tolist()
    codes = b.codes_of(n.inputs[0])
    dtype = str(q.qtype.storage).removeprefix("torch.")
    names = [b.const(f"{n.name}:{k}", np.array(int(v), dtype)) for k, v in zip(("low", "high"), bounds, strict=True)]
    kernel, every = KERNELS[n.op](binding), torch.arange(q.qtype.qmin, q.qtype.qmax + 1)
    clipped = dequantize(every.clamp(int(bounds[0]), int(bounds[1])), q)
    if not torch.equal(quantize(clipped, binding.output, binding.arithmetic), kernel.table):  # type: ignore[attr-defined]
        # a bound between two codes of the operand
        b.codes[n.name] = _gather_table(b, n, binding, codes)
        return
    codes = b.op("Clip", [codes, *names], f"{n.name}:clamped")
    y = b.op("Concat", [b.dequantize(codes, q, n.inputs[0])], f"{n.name}:rescaled", name=n.name, axis=0)
    _finish(b, n, binding, y)


def _gather_table(b: Builder, n: Node, binding: Binding, codes: str) -> str:
    kernel = KERNELS[n.op](binding)
    index = b.op("Cast", [codes], f"{n.name}:index", to=TensorProto.INT32)
    table = kernel.stored  # type: ignore[attr-defined]
    qmin = binding.inputs[0].qtype.qmin
    if qmin:
        table = torch.roll(table, qmin)  # Gather takes negative indices from the end
    return b.op("Gather", [b.const(f"{n.name}:table", table), index], f"{n.name}:looked_up", name=n.name)


def emit_table(b: Builder, n: Node, table: torch.Tensor) -> str:
    """A function that stays in float and reads codes: the runtime's own if it gives the table bit for bit."""
    source = n.inputs[0]
    q = b.qparams[source]
    small = Builder(b.graph, b.params, b.qparams, b.bindings)
    storage = str(q.qtype.storage).removeprefix("torch.")
    out = UNARY[n.op](small, n, small.dequantize("x", q, source))
    codes = _every_code(q)
    (found,) = run_model(wrap(small, {"x": (storage, [None])}, {out: ("float32", [None])}), {"x": codes})
    if n.op not in _POSITION_DEPENDENT and np.array_equal(
        found, table.numpy()[codes.astype(np.int64) - q.qtype.qmin], equal_nan=True
    ):
        return UNARY[n.op](b, n, b.values_of(source))
    index = b.op("Cast", [b.codes_of(source)], f"{n.name}:index", to=TensorProto.INT32)
    values = torch.roll(table, q.qtype.qmin) if q.qtype.qmin else table
    return b.op("Gather", [b.const(f"{n.name}:table", values), index], f"{n.name}:looked_up", name=n.name)


def _every_code(q: QParams) -> Array:
    """All codes of an encoding, several times at different positions of the vector units."""
    every = np.arange(q.qtype.qmin, q.qtype.qmax + 1)
    codes = np.concatenate([every, every[:5], every[::-1], every[3:]])
    return codes.astype(str(q.qtype.storage).removeprefix("torch."))


def _gives_the_table(b: Builder, n: Node, binding: Binding) -> bool:
    """Run the float form on every code, at several positions of the vector units, and compare."""
    small = Builder(b.graph, b.params, b.qparams, b.bindings)
    (q,) = binding.inputs
    storage = str(q.qtype.storage).removeprefix("torch.")
    y = UNARY[n.op](small, n, small.dequantize("x", q, n.inputs[0]))
    out = small.clip_codes(small.quantize(y, binding.output, n.name), *activation_codes(binding), n.name)
    codes = _every_code(q)
    result = str(binding.output.qtype.storage).removeprefix("torch.")
    model = wrap(small, {"x": (storage, [None])}, {out: (result, [None])})
    try:
        (found,) = run_model(model, {"x": codes})
    except (onnx.checker.ValidationError, ExportError):
        return False
    table = KERNELS[n.op](binding).stored.numpy()  # type: ignore[attr-defined]
    return bool(np.array_equal(found, table[codes.astype(np.int64) - q.qtype.qmin]))
