"""Integer operations in ONNX: QDQ groups in the very form that the runtime's default session fuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from onnx import TensorProto

from intact.errors import ExportError
from intact.exporters.builder import Builder, place
from intact.exporters.onnx.ops import MOVES, avg_pool_attrs, conv_attrs, pad, resize
from intact.exporters.onnx.tables import emit_unary
from intact.exporters.onnx.wide import WIDE, is_wide
from intact.graph import Node
from intact.kernels import KERNELS, UNARY_OPS, Binding

__all__ = ["emit_integer"]

Emit = Callable[[Builder, Node, Binding], None]


def emit_integer(b: Builder, n: Node, binding: Binding) -> None:
    """Append an integer node; its codes (or its accumulator's value) become those of its edge."""
    if n.op in UNARY_OPS:
        emit_unary(b, n, binding)
    elif n.op in WIDE and is_wide(binding):
        WIDE[n.op](b, n, binding)
    elif n.op in MOVES:
        _move(b, n, binding)
    elif n.op in _EMIT:
        _EMIT[n.op](b, n, binding)
    else:
        raise ExportError("an integer operation has no ONNX form", where=place(n))


def _finish(b: Builder, n: Node, binding: Binding, y: str) -> None:
    """Quantize a result; an accumulator stays a float value."""
    if binding.is_accumulator:
        b.floats[n.name] = y
    else:
        b.codes[n.name] = b.result_codes(y, binding, n.name)


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
    codes = b.result_codes(y, binding, n.name)
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
    y = resize(b, n, b.values_of(n.inputs[0]))
    _finish(b, n, binding, y)


def _mean(b: Builder, n: Node, binding: Binding) -> None:
    """GlobalAveragePool over the averaged axes, moved to the end; an accumulator is an exact float sum."""
    source, axes = b.graph[n.inputs[0]], n.attrs["axes"]
    free = any(not isinstance(source.shape[a], int) for a in axes)  # then one window may be a single value
    count = 1 if free else int(np.prod([source.shape[a] for a in axes]))
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
        raise ExportError("the runtime refuses this average", where=place(n), got=f"factor {factor:g}",
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
    pooled = b.result_codes(y, binding, n.name)
    b.codes[n.name] = b.op("Reshape", [pooled, b.shape_const(n.shape, n.name)], f"{n.name}:reshaped")


def _pad(b: Builder, n: Node, binding: Binding) -> None:
    """On the codes: the runtime would pad in float between DequantizeLinear and QuantizeLinear."""
    kernel = KERNELS["pad"](binding)
    value = np.array(kernel.value, str(binding.output.qtype.storage).removeprefix("torch."))  # type: ignore[attr-defined]
    if binding.output.qtype.storage != torch.int16:
        b.codes[n.name] = pad(b, n, b.codes_of(n.inputs[0]), value)
    else:
        b.codes[n.name] = b.within(b.codes_of(n.inputs[0]), "int16", "int32",
                                   lambda x: pad(b, n, x, value.astype(np.int32)), n.name)


def _move(b: Builder, n: Node, binding: Binding) -> None:
    """On the codes themselves: nothing is dequantized, whatever the runtime fuses."""
    codes = b.codes_of(n.inputs[0])
    if n.op in ("max_pool", "interpolate_nearest") and binding.output.qtype.storage == torch.int16:
        # the runtime has neither for 16 bits; float32 holds every code
        b.codes[n.name] = b.within(codes, "int16", "float32", lambda x: MOVES[n.op](b, n, x), n.name)
    else:
        b.codes[n.name] = MOVES[n.op](b, n, codes)


_EMIT: dict[str, Emit] = {
    "conv": _conv, "linear": _linear, "matmul": _binary("MatMul"), "add": _binary("Add"), "sub": _binary("Sub"),
    "mul": _binary("Mul"), "concat": _concat, "avg_pool": _avg_pool, "mean": _mean, "pad": _pad,
    "interpolate": _interpolate,
}
