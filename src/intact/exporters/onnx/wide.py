"""Sums of products of 16-bit codes in ONNX, where the runtime has no integer kernel: float operations that are exact.

A float32 convolution gives the integer sum of products of integers if every partial sum, in any order, stays below
2**24. Codes of 16 bits are therefore written as digits, ``x = d0 + 2**p * d1 + ...`` with ``|d| <= 2**(p - 1)``, as few
as the weights allow; every digit has a convolution of its own, and their sums are put together as int64. Matrix
products run in float64, which holds sums below 2**53. What is then done is what the kernel does: float32 of the sum,
times the multiplier, rounded half to even.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from intact.arithmetic.accumulate import FLOAT32_EXACT
from intact.errors import ExportError
from intact.exporters.builder import Builder, onnx_type, place
from intact.exporters.onnx.ops import conv_attrs
from intact.graph import Node
from intact.kernels import KERNELS, Binding
from intact.kernels.base import activation_codes
from intact.types import QParams

__all__ = ["WIDE", "digits_of", "is_wide"]

FLOAT64_EXACT = 2.0**53
_PARTS = (1, 2, 3, 4, 6, 8)


def is_wide(binding: Binding) -> bool:
    """Whether codes have more bits than the runtime's integer kernels take."""
    return any(8 < q.qtype.bits <= 16 for q in (*binding.inputs, binding.output))


def _cast(b: Builder, x: str, dtype: str, base: str) -> str:
    return b.op("Cast", [x], f"{base}:{dtype}", to=onnx_type(dtype))


def _finish(b: Builder, n: Node, binding: Binding, total: str, real: Tensor | str, shape: Sequence[int]
            ) -> None:
    """Codes of an exact sum: float32 of it, times the multiplier, clamped, rounded; or the value of the accumulator.

    ``real``: multipliers, or the tensor that holds one. ``shape``: theirs, where there is one for each channel.
    """
    out, value = binding.output, _cast(b, total, "float32", f"{n.name}:sum")
    if binding.is_accumulator:
        scale = out.scale.reshape(shape if out.scale.ndim else ())
        b.floats[n.name] = b.op("Mul", [value, b.const(f"{n.name}:scale", scale)], f"{n.name}:value", name=n.name)
        return
    by = real if isinstance(real, str) else b.const(
        f"{n.name}:multiplier", real.to(torch.float32).reshape(shape if real.ndim else ()))
    y = b.op("Mul", [value, by], f"{n.name}:scaled", name=n.name)
    low, high = activation_codes(binding)
    info, zero = torch.iinfo(out.qtype.storage), int(out.zero_point)
    if low > info.min or high < info.max:  # the bounds are integers: rounding keeps them
        bounds = [b.const(f"{n.name}:{k}", np.array(v - zero, np.float32)) for k, v in (("low", low), ("high", high))]
        y = b.op("Clip", [y, *bounds], f"{n.name}:clamped")
    b.codes[n.name] = b.quantize(y, QParams.per_tensor(1.0, zero, out.qtype), n.name)


def _with_bias(b: Builder, n: Node, binding: Binding, total: str, dtype: str, shape: Sequence[int]) -> str:
    if binding.bias is None:
        return total
    bias = b.const(f"{n.name}:bias", binding.bias.reshape(list(shape)))
    return b.op("Add", [total, _cast(b, bias, dtype, f"{n.name}:bias")], f"{n.name}:biased")


# -- convolution --------------------------------------------------------------------------------


def digits_of(reach: int, weights: Tensor) -> tuple[int, int] | None:
    """How many digits of how many bits make every partial sum of a convolution exact in float32; None if none do.

    Args:
        reach: largest magnitude of ``x - zero_point``.
        weights: integer codes, output channels first.

    >>> digits_of(2**15, torch.full((1, 1000), 100))
    (2, 8)
    >>> digits_of(2**15, torch.full((1, 1), 100))
    (1, 16)
    """
    most = float(weights.to(torch.float64).abs().flatten(1).sum(1).max())
    if reach * most < FLOAT32_EXACT:
        return 1, 16
    for parts in _PARTS[1:]:
        bits = math.ceil((math.log2(reach) + 1) / parts)
        if 2.0 ** (bits - 1) * most < FLOAT32_EXACT:
            return parts, bits
    return None


def _digits(b: Builder, base: str, x: str, parts: int, bits: int) -> list[str]:
    """The lowest digit first. Every step is exact: powers of two, differences of integers below 2**17."""
    found, step = [], b.const(f"digit:{bits}", np.array(2.0**bits, np.float32))
    for _ in range(parts - 1):
        higher = b.op("Round", [b.op("Div", [x, step], f"{base}:quotient")], f"{base}:higher")
        found.append(b.op("Sub", [x, b.op("Mul", [higher, step], f"{base}:whole")], f"{base}:digit"))
        x = higher
    return [*found, x]


def _conv(b: Builder, n: Node, binding: Binding) -> None:
    (q,), kernel = binding.inputs, KERNELS["conv"](binding)
    codes: Tensor = kernel.codes  # type: ignore[attr-defined]
    zero = int(q.zero_point)
    split = digits_of(max(q.qtype.qmax - zero, zero - q.qtype.qmin), codes)
    if split is None:
        raise ExportError("no float32 convolution of parts of these codes would be exact", where=place(n),
                          got=f"weights that add up to {float(codes.double().abs().flatten(1).sum(1).max()):,.0f}",
                          fix="give the layer 8-bit activations, or leave it in float")
    x = _cast(b, b.codes_of(n.inputs[0]), "float32", n.inputs[0])
    if zero:
        x = b.op("Sub", [x, b.const(f"{n.inputs[0]}:zero", np.array(zero, np.float32))], f"{n.inputs[0]}:centred")
    assert binding.weight is not None
    weight = _cast(b, b.weight_codes(binding.weight, n.params["weight"]), "float32", n.params["weight"])
    (parts, bits), total = split, ""
    for i, digit in enumerate(_digits(b, n.name, x, parts, bits)):
        y = b.op("Conv", [digit, weight], f"{n.name}:conv", **conv_attrs(n.attrs))
        y = _cast(b, y, "int64", f"{n.name}:part")
        if i:
            y = b.op("Mul", [y, b.const(f"place:{bits * i}", np.array(1 << bits * i, np.int64))], f"{n.name}:placed")
        total = b.op("Add", [total, y], f"{n.name}:total") if i else y
    shape = [-1, *[1] * (codes.ndim - 2)]
    _finish(b, n, binding, _with_bias(b, n, binding, total, "int64", shape), kernel.multiplier.real,  # type: ignore[attr-defined]
            shape)


# -- products and means -------------------------------------------------------------------------


def _doubles(b: Builder, edge: str, q: QParams) -> str:
    x = _cast(b, b.codes_of(edge), "float64", edge)
    zero = float(int(q.zero_point))
    return b.op("Sub", [x, b.const(f"{edge}:wide_zero", np.array(zero))], f"{edge}:centred") if zero else x


def _linear(b: Builder, n: Node, binding: Binding) -> None:
    kernel, w = KERNELS["linear"](binding), binding.weight
    assert w is not None
    weight = _cast(b, b.weight_codes(w, n.params["weight"]), "float64", n.params["weight"])
    if bool(w.qparams.zero_point.any()):
        raise ExportError("weights with a zero point have no exact form here", where=place(n))
    turned = b.op("Transpose", [weight], f"{n.params['weight']}:turned", perm=[1, 0])
    total = b.op("MatMul", [_doubles(b, n.inputs[0], binding.inputs[0]), turned], f"{n.name}:product")
    total = _with_bias(b, n, binding, total, "float64", [-1])
    _finish(b, n, binding, total, kernel.multiplier.real, [-1])  # type: ignore[attr-defined]


def _matmul(b: Builder, n: Node, binding: Binding) -> None:
    kernel = KERNELS["matmul"](binding)
    length = b.graph[n.inputs[0]].shape[-1]
    bound = kernel.bound(length if isinstance(length, int) else 2**21)  # type: ignore[attr-defined]
    if bound >= FLOAT64_EXACT:
        raise ExportError("a product of matrices would not be exact in float64", where=place(n), got=f"{bound:,.0f}",
                          allowed=f"below {FLOAT64_EXACT:,.0f}", fix="give it 8-bit activations")
    operands = [_doubles(b, i, q) for i, q in zip(n.inputs, binding.inputs, strict=True)]
    _finish(b, n, binding, b.op("MatMul", operands, f"{n.name}:product"), kernel.multiplier.real, [])  # type: ignore[attr-defined]


def _mean(b: Builder, n: Node, binding: Binding) -> None:
    (q,), axes = binding.inputs, list(n.attrs["axes"])
    total = b.op("ReduceSum", [_doubles(b, n.inputs[0], q), b.const(f"{n.name}:axes", np.array(axes, np.int64))],
                 f"{n.name}:whole", keepdims=int(n.attrs["keepdim"]))
    sizes = [b.graph[n.inputs[0]].shape[a] for a in axes]
    if all(isinstance(s, int) for s in sizes):
        real = q.scale / (binding.output.scale * float(math.prod(int(s) for s in sizes)))
        return _finish(b, n, binding, total, real, [])
    count = b.op("ReduceProd", [b.op("Concat", [b.size(s) for s in sizes], f"{n.name}:sizes", axis=0)],
                 f"{n.name}:count", keepdims=0)
    below = b.op("Mul", [b.const(f"{n.name}:scale", binding.output.scale), _cast(b, count, "float32", n.name)],
                 f"{n.name}:below")
    above = b.const(f"{n.inputs[0]}:scale", q.scale)
    return _finish(b, n, binding, total, b.op("Div", [above, below], f"{n.name}:multiplier"), [])


#: operations that sum; the others are exact between DequantizeLinear and QuantizeLinear
WIDE: dict[str, Callable[[Builder, Node, Binding], None]] = {
    "conv": _conv, "linear": _linear, "matmul": _matmul, "mean": _mean,
}
