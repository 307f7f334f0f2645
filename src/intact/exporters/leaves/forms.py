"""Quantized layers in ONNX: the same steps on the same codes, in the form that ONNX Runtime has kernels for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from intact.arithmetic import ROW_EPSILON
from intact.errors import ExportError
from intact.exporters.builder import Builder, onnx_type, place
from intact.exporters.leaves.weights import (
    LeafWeight,
    block_of,
    integers,
    numbers,
    packed_blocks,
    parameter,
    real,
    real_transposed,
    weight_of,
)
from intact.exporters.onnx.functions import RUNTIME_DOMAIN
from intact.graph import Node
from intact.leaves.how import Dynamic
from intact.types import PerToken

__all__ = ["LEAF_FORMS", "Operand", "Probe", "prepared", "product", "quantized", "reshaped"]


@dataclass(frozen=True)
class Probe:
    """A place in a quantized layer whose integers a certificate compares.

    Args:
        node: of the graph.
        weight: what is multiplied.
        operand: the tensor that is quantized.
        tensors: ``codes``, ``step``, ``low`` or ``zero``, and ``sums0``, ``sums1``, ... of the weight's groups: int32,
            or times the weight's scale in float32.
        settings: of a convolution.
        stacked: the first axis counts the steps of a loop.
    """

    node: Node
    weight: LeafWeight
    operand: str
    tensors: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    stacked: bool = False

    def types(self) -> dict[str, str]:
        """Element types of all tensors that it looks at."""
        integers = "zero" in self.tensors or bool(self.settings)
        found = {self.operand: "float32"}
        for role, name in self.tensors.items():
            codes = role in ("codes", "zero")
            found[name] = "uint8" if codes else "int32" if role.startswith("sums") and integers else "float32"
        return found

    def renamed(self, names: Mapping[str, str]) -> Probe:
        """With other names of tensors."""
        return replace(self, operand=names.get(self.operand, self.operand),
                       tensors={k: names.get(v, v) for k, v in self.tensors.items()})


@dataclass(frozen=True)
class Operand:
    """Codes of a tensor that is quantized at run time.

    Args:
        codes: uint8; per token (rows, columns).
        step: float32; per token (rows, 1).
        low: per token, the lowest value, (rows, 1).
        zero: per tensor, the zero point.
    """

    codes: str
    step: str
    low: str = ""
    zero: str = ""


def quantized(b: Builder, x: str, per_token: bool) -> Operand:
    """The codes of a tensor, made once for all that read it. Per token it has two axes."""
    key = ("quantized", x, per_token)
    if key not in b.shared:
        b.shared[key] = _rows(b, x) if per_token else _whole(b, x)
    found: Operand = b.shared[key]
    return found


def _whole(b: Builder, x: str) -> Operand:
    codes, step, zero = (b.unique(f"{x}:{part}") for part in ("codes", "step", "zero"))
    b.node("DynamicQuantizeLinear", [x], [codes, step, zero])
    return Operand(codes, step, zero=zero)


def _rows(b: Builder, x: str) -> Operand:
    last = numbers(b, [1])
    high = b.op("ReduceMax", [x, last], f"{x}:high", keepdims=1)
    low = b.op("ReduceMin", [x, last], f"{x}:low", keepdims=1)
    span, most = b.op("Sub", [high, low], f"{x}:range"), b.const("number:255", np.array(255.0, np.float32))
    share = b.op("Div", [span, most], f"{x}:share")
    step = b.op("Add", [share, b.const("number:epsilon/255", np.array(ROW_EPSILON / 255.0, np.float32))], f"{x}:step")
    wide = b.op("Add", [span, b.const("number:epsilon", np.array(ROW_EPSILON, np.float32))], f"{x}:wide")
    above = b.op("Mul", [b.op("Sub", [x, low], f"{x}:above"), b.op("Div", [most, wide], f"{x}:inverse")], f"{x}:real")
    # a scale of 1: nothing but rounding
    codes = b.op("QuantizeLinear", [above, b.const("number:1", np.array(1.0, np.float32))], f"{x}:codes")
    return Operand(codes, step, low=low)


def reshaped(b: Builder, y: str, x: str, n: Node, *, rank: int) -> str:
    """A matrix of rows with the leading axes of ``x`` again."""
    shape = n.shape
    if sum(not isinstance(d, int) for d in shape) <= 1:
        return b.op("Reshape", [y, numbers(b, [d if isinstance(d, int) else -1 for d in shape])], f"{n.name}:rows")
    leading = b.op("Shape", [x], f"{n.name}:leading", start=0, end=rank - 1)
    target = b.op("Concat", [leading, numbers(b, [-1])], f"{n.name}:shape", axis=0)
    return b.op("Reshape", [y, target], f"{n.name}:rows")


# -- products -----------------------------------------------------------------------------------


def prepared(b: Builder, w: LeafWeight) -> None:
    """Make what a product needs of a weight here, so that the body of a loop finds it."""
    block = block_of(w)
    if isinstance(w.how, Dynamic):
        integers(b, w)
    elif block is not None:
        packed_blocks(b, w, block)
    else:
        real_transposed(b, w)


def product(b: Builder, n: Node, x: str, w: LeafWeight, bias: str | None) -> str:
    """``x @ w.T + bias``; with activations per token, ``x`` is a matrix."""
    how = w.how
    if isinstance(how, Dynamic):
        return (_token_product if isinstance(how.activation, PerToken) else _tensor_product)(b, n, x, w, bias)
    block = block_of(w)
    if block is None:
        y = b.op("MatMul", [x, real_transposed(b, w)], f"{n.name}:product")
    else:
        # accuracy_level 1: float32 products; else the runtime may quantize activations on its own
        y = b.op("MatMulNBits", [x, *packed_blocks(b, w, block)], f"{n.name}:product", domain=RUNTIME_DOMAIN,
                 K=w.columns, N=w.shape[0], bits=how.bits, block_size=block, accuracy_level=1)  # type: ignore[union-attr]
    return y if bias is None else b.op("Add", [y, bias], f"{n.name}:biased")


def _scales(b: Builder, w: LeafWeight) -> list[str]:
    """Scales of the rows, for each group."""
    scale = w.qweight.derived().row_scale
    if scale.ndim == 1:
        return [b.const(f"{w.scale}:rows", scale)]
    return [b.const(f"{w.scale}:group{i}", scale[:, i].contiguous()) for i in range(scale.shape[1])]


def _parts(b: Builder, codes: str, count: int, size: int) -> list[str]:
    """Columns of every group."""
    if count == 1:
        return [codes]
    names = [b.unique(f"{codes}:group") for _ in range(count)]
    b.node("Split", [codes, numbers(b, [size] * count)], names, axis=-1)
    return names


def _sum(b: Builder, terms: list[str], base: str) -> str:
    total = terms[0]
    for term in terms[1:]:
        total = b.op("Add", [total, term], base)
    return total


def _tensor_product(b: Builder, n: Node, x: str, w: LeafWeight, bias: str | None) -> str:
    """The pattern that becomes DynamicQuantizeMatMul or MatMulIntegerToFloat."""
    q, matrices = quantized(b, x, per_token=False), integers(b, w)
    terms, sums = [], []
    parts = _parts(b, q.codes, len(matrices), w.columns // len(matrices))
    for part, matrix, scale in zip(parts, matrices, _scales(b, w), strict=True):
        acc = b.op("MatMulInteger", [part, matrix, q.zero], f"{n.name}:sums")
        factor = b.op("Mul", [q.step, scale], f"{n.name}:scale")
        terms.append(b.op("Mul", [b.op("Cast", [acc], f"{n.name}:real", to=onnx_type("float32")), factor],
                          f"{n.name}:product"))
        sums.append(acc)
    b.probes.append(Probe(n, w, x, {"codes": q.codes, "step": q.step, "zero": q.zero, **_named(sums)}))
    y = _sum(b, terms, f"{n.name}:sum")
    return y if bias is None else b.op("Add", [y, bias], f"{n.name}:biased")


def _token_product(b: Builder, n: Node, x: str, w: LeafWeight, bias: str | None) -> str:
    """``(codes @ w * scale) * step + (low * offsets + bias)``: the last two operations are one Gemm."""
    q, matrices = quantized(b, x, per_token=True), integers(b, w)
    one = b.const("number:1", np.array(1.0, np.float32))
    parts = _parts(b, q.codes, len(matrices), w.columns // len(matrices))
    terms = [b.op("MatMulIntegerToFloat", [part, matrix, one, scale], f"{n.name}:sums", domain=RUNTIME_DOMAIN)
             for part, matrix, scale in zip(parts, matrices, _scales(b, w), strict=True)]
    b.probes.append(Probe(n, w, x, {"codes": q.codes, "step": q.step, "low": q.low, **_named(terms)}))
    scaled = b.op("Mul", [_sum(b, terms, f"{n.name}:sum"), q.step], f"{n.name}:scaled")
    offsets, left = w.qweight.derived().offsets, q.low
    rows = [offsets] if bias is None else [torch.from_numpy(_array(b, bias)), offsets]
    if bias is not None:
        key = ("with one", q.low)
        if key not in b.shared:  # (rows, 2): 1 for the bias, which comes first, and the lowest value
            b.shared[key] = b.op("Pad", [q.low, numbers(b, [0, 1, 0, 0]), one], f"{q.low}:with_one")
        left = b.shared[key]
    right = b.const(f"{n.name}:offsets", torch.stack(rows))
    return b.op("Gemm", [left, right, scaled], f"{n.name}:biased")


def _array(b: Builder, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = b.params.get(name)
    assert found is not None
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = found.detach().cpu().numpy()
    return array


def _named(sums: list[str]) -> dict[str, str]:
    return {f"sums{i}": name for i, name in enumerate(sums)}


def _product_node(b: Builder, n: Node, xs: list[str]) -> str:
    source = b.graph[n.inputs[0]]
    _check_float(n, source)
    w = weight_of(b, n, (b.params[n.params["codes"]].shape[0], int(source.shape[-1])))
    rank, x = len(source.shape), xs[0]
    per_token = isinstance(w.how, Dynamic) and isinstance(w.how.activation, PerToken)
    if per_token and rank != 2:
        x = _matrix(b, x, w.columns)
    y = product(b, n, x, w, parameter(b, n, "bias"))
    return reshaped(b, y, xs[0], n, rank=rank) if per_token and rank != 2 else y


def _matrix(b: Builder, x: str, columns: int) -> str:
    key = ("matrix", x)
    if key not in b.shared:
        b.shared[key] = b.op("Reshape", [x, numbers(b, [-1, columns])], f"{x}:matrix")
    found: str = b.shared[key]
    return found


def _check_float(n: Node, source: Node) -> None:
    if source.dtype != "float32":
        raise ExportError("a quantized layer is given other numbers than float32", where=place(n), got=source.dtype,
                          fix="convert what it is given with .float()")


# -- rows and convolutions ----------------------------------------------------------------------


def _rows_node(b: Builder, n: Node, xs: list[str]) -> str:
    w = weight_of(b, n, (b.params[n.params["codes"]].shape[0], n.attrs["settings"]["columns"]))
    flat = b.op("Reshape", [xs[0], numbers(b, [-1])], f"{n.name}:indices")
    y, rank = real(b, w, flat), len(n.shape)
    return y if rank == 2 else reshaped(b, y, xs[0], n, rank=rank)


def _conv_node(b: Builder, n: Node, xs: list[str]) -> str:
    s, x, source = n.attrs["settings"], xs[0], b.graph[n.inputs[0]]
    _check_float(n, source)
    w = weight_of(b, n, s["shape"])
    attrs = {"strides": s["stride"], "dilations": s["dilation"], "group": s["groups"], "kernel_shape": s["shape"][2:]}
    bias, axes = parameter(b, n, "bias"), len(s["shape"]) - 2
    if not isinstance(w.how, Dynamic):
        kernel = b.op("Reshape", [real(b, w), numbers(b, s["shape"])], f"{w.codes}:kernel")
        return b.op("Conv", [x, kernel, *([] if bias is None else [bias])], f"{n.name}:conv", **attrs)
    channel = [1, -1, *[1] * axes]
    derived, kernel = w.qweight.derived(), b.const(w.codes, w.qweight.codes)
    scale = b.const(f"{w.scale}:channels", derived.row_scale.reshape(channel))
    if bias is not None:
        bias = b.const(f"{n.params['bias']}:channels", b.params[n.params["bias"]].detach().reshape(channel))
    if isinstance(w.how.activation, PerToken):
        flat = b.op("Flatten", [x], f"{n.name}:flat", axis=1)
        q = quantized(b, flat, per_token=True)
        codes = b.op("Reshape", [q.codes, b.op("Shape", [x], f"{n.name}:shape")], f"{n.name}:codes")
        acc = b.op("ConvInteger", [codes, kernel], f"{n.name}:sums", **attrs)
        b.probes.append(Probe(n, w, flat, {"codes": q.codes, "step": q.step, "low": q.low, "sums0": acc},
                              {**s, "inside": source.shape[1:]}))
        step, low = (b.op("Reshape", [v, numbers(b, [-1, 1, *[1] * axes])], f"{n.name}:{k}")
                     for v, k in ((q.step, "step"), (q.low, "low")))
        y = b.op("Mul", [b.op("Mul", [_real(b, acc, n), scale], f"{n.name}:product"), step], f"{n.name}:scaled")
        offsets = b.const(f"{n.name}:offsets", derived.offsets.reshape(channel))
        base = b.op("Mul", [low, offsets], f"{n.name}:base")
        base = base if bias is None else b.op("Add", [base, bias], f"{n.name}:base")
        return b.op("Add", [y, base], f"{n.name}:biased")
    q = quantized(b, x, per_token=False)
    acc = b.op("ConvInteger", [q.codes, kernel, q.zero], f"{n.name}:sums", **attrs)
    b.probes.append(Probe(n, w, x, {"codes": q.codes, "step": q.step, "zero": q.zero, "sums0": acc},
                          {**s, "inside": source.shape[1:]}))
    y = b.op("Mul", [_real(b, acc, n), b.op("Mul", [q.step, scale], f"{n.name}:scale")], f"{n.name}:product")
    return y if bias is None else b.op("Add", [y, bias], f"{n.name}:biased")


def _real(b: Builder, acc: str, n: Node) -> str:
    return b.op("Cast", [acc], f"{n.name}:real", to=onnx_type("float32"))


#: operation of a captured leaf -> its form
LEAF_FORMS: dict[str, Callable[[Builder, Node, list[str]], str]] = {
    "leaf_product": _product_node, "leaf_rows": _rows_node, "leaf_conv": _conv_node,
}
