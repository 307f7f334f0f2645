"""Collects ONNX nodes and initializers; names follow the edges, and every node keeps its module path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from intact.arithmetic import quantize
from intact.graph import Graph, Node
from intact.kernels import Binding
from intact.kernels.base import activation_codes
from intact.types import PerChannel, QParams, QTensor, QType
from intact.types.dims import Dim, line, tree_of

__all__ = ["IR_VERSION", "OPSET", "Builder", "onnx_type", "place"]

OPSET = 21
IR_VERSION = 10

_TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64, "int32": TensorProto.INT32, "int16": TensorProto.INT16, "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL, "bfloat16": TensorProto.BFLOAT16,
}


def onnx_type(dtype: str) -> int:
    """The ONNX element type of a torch dtype name."""
    return int(_TYPES[dtype])


def place(n: Node) -> str:
    """Where a node stands in the user's model, for an error.

    >>> place(Node("aten@2", "aten", attrs={"target": "aten.kthvalue.default"}))
    'the model itself (aten.kthvalue.default)'
    """
    return f"{n.path or 'the model itself'} ({n.attrs.get('target', n.op)})"


@dataclass
class Builder:
    """One ONNX graph under construction.

    Args:
        graph: the canonical graph.
        params: float parameters by name.
        qparams: parameters of every edge that has codes.
        bindings: integer nodes.
        tables: codes of the tables that float nodes look up rows in, by node.
        floats, codes, dequantized: tensors of an edge's value, codes, and value of the codes.
        path: module path that new nodes get.
        shared: what several nodes use, by what it is made of.
        probes: where a certificate looks into quantized layers.
        inside: make what probes look at visible in loops.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    qparams: Mapping[str, QParams]
    bindings: Mapping[str, Binding]
    tables: Mapping[str, QTensor] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    dequantized: dict[str, str] = field(default_factory=dict)
    path: str = ""
    shared: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    probes: list[Any] = field(default_factory=list)
    inside: bool = False
    _names: set[str] = field(default_factory=set)
    _sizes: dict[str, str] = field(default_factory=dict)
    _shapes: dict[tuple[Dim, ...], str] = field(default_factory=dict)

    def body(self) -> Builder:
        """A builder of a loop's body: what this one has made can be read there; its nodes are its own."""
        return replace(self, nodes=[], shared=dict(self.shared), probes=[])

    # -- primitives -------------------------------------------------------------------------

    def unique(self, base: str) -> str:
        """A free tensor name."""
        name, n = base, 1
        while name in self._names:
            n += 1
            name = f"{base}~{n}"
        self._names.add(name)
        return name

    def const(self, base: str, value: npt.ArrayLike | Tensor, dtype: Any = None) -> str:
        """An initializer; the same name and bytes are stored once."""
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
            return self._bfloat16(base, value)
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        array = np.ascontiguousarray(array if dtype is None else array.astype(dtype))
        if array.shape != np.shape(value):
            array = array.reshape(np.shape(value))
        return self._stored(onnx.numpy_helper.from_array(array, base), base)

    def _bfloat16(self, base: str, value: Tensor) -> str:
        raw = value.detach().cpu().contiguous().view(torch.int16).numpy().tobytes()
        return self._stored(helper.make_tensor(base, TensorProto.BFLOAT16, list(value.shape), raw, raw=True), base)

    def _stored(self, tensor: onnx.TensorProto, base: str) -> str:
        if self.initializers.get(base) == tensor:
            return base
        tensor.name = self.unique(base)  # the name may be another tensor's, or that of a node's output
        self.initializers[tensor.name] = tensor
        return tensor.name

    def op(self, kind: str, inputs: Sequence[str], base: str, *, name: str | None = None, output: int = 0,
           **attrs: Any) -> str:
        """A node of which one output is read; returns that output's name."""
        others = [self.unique(f"{base}:unread") for _ in range(output)]
        output_name = self.unique(base)
        outputs = [*others, output_name]
        if kind == "TopK" and output == 0:  # both outputs are mandatory
            outputs.append(self.unique(f"{base}:unread"))
        self.node(kind, inputs, outputs, name=name or output_name, **attrs)
        return output_name

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, name: str | None = None, **attrs: Any
             ) -> None:
        """A node with outputs of these names; it is named after the last one."""
        node = helper.make_node(kind, list(inputs), list(outputs), name=name or outputs[-1],
                                **{k: v for k, v in attrs.items() if v is not None})
        if self.path and not kind.endswith("eLinear"):
            node.metadata_props.add(key="module_path", value=self.path)
        self.nodes.append(node)

    # -- quantization -----------------------------------------------------------------------

    def qparam_names(self, q: QParams, base: str) -> tuple[str, str]:
        """Initializers of scale and zero point."""
        zero = q.zero_point.numpy().astype(str(q.qtype.storage).removeprefix("torch."))
        return self.const(f"{base}:scale", q.scale), self.const(f"{base}:zero_point", zero)

    def quantize(self, x: str, q: QParams, base: str) -> str:
        """QuantizeLinear of a float tensor."""
        return self.op("QuantizeLinear", [x, *self.qparam_names(q, base)], f"{base}:codes")

    def dequantize(self, codes: str, q: QParams, base: str) -> str:
        """DequantizeLinear of codes, per tensor or per channel."""
        axis = q.granularity.axis if isinstance(q.granularity, PerChannel) else None
        return self.op("DequantizeLinear", [codes, *self.qparam_names(q, base)], f"{base}:values", axis=axis)

    def codes_of(self, edge: str) -> str:
        """The tensor of an edge's codes; quantized on first demand."""
        if edge not in self.codes:
            node = self.graph[edge]
            if node.op == "constant":
                q = self.qparams[edge]
                value = quantize(self.params[node.params["value"]].detach(), q).to(q.qtype.storage)
                self.codes[edge] = self.const(f"{edge}:codes", value)
            else:
                self.codes[edge] = self.quantize(self.floats[edge], self.qparams[edge], edge)
                low, high = self.qparams[edge].qtype.qmin, self.qparams[edge].qtype.qmax
                self.codes[edge] = self.clip_codes(self.codes[edge], low, high, edge)
        return self.codes[edge]

    def values_of(self, edge: str) -> str:
        """Dequantized codes of an edge: the operand of an integer operation."""
        if edge not in self.dequantized:
            self.dequantized[edge] = self.dequantize(self.codes_of(edge), self.qparams[edge], edge)
        return self.dequantized[edge]

    def float_of(self, edge: str) -> str:
        """The float value of an edge: as computed, or dequantized."""
        return self.floats[edge] if edge in self.floats else self.values_of(edge)

    def clip_codes(self, codes: str, low: int, high: int, edge: str) -> str:
        """Clamp codes where the storage type's own saturation does not do it."""
        q = self.qparams[edge].qtype
        info = torch.iinfo(q.storage)
        if low <= info.min and high >= info.max:
            return codes
        return self.clip(codes, low, high, q, edge)

    def clip(self, codes: str, low: int, high: int, q: QType, base: str) -> str:
        """Clamp codes; the runtime has no Clip of 16 bits."""
        dtype = str(q.storage).removeprefix("torch.")

        def clipped(x: str, dtype: str) -> str:
            bounds = [self.const(f"{base}:{n}", np.array(v, dtype)) for n, v in (("low", low), ("high", high))]
            return self.op("Clip", [x, *bounds], f"{base}:clamped")

        if dtype != "int16":
            return clipped(codes, dtype)
        return self.within(codes, dtype, "int32", lambda x: clipped(x, "int32"), base)

    def within(self, codes: str, dtype: str, wider: str, function: Callable[[str], str], base: str) -> str:
        """What a function makes of codes in a wider type, as codes again."""
        x = self.op("Cast", [codes], f"{base}:wider", to=onnx_type(wider))
        return self.op("Cast", [function(x)], f"{base}:codes", to=onnx_type(dtype))

    def result_codes(self, y: str, binding: Binding, edge: str) -> str:
        """Codes of an integer operation's result, clamped where saturation does not do it."""
        return self.clip_codes(self.quantize(y, binding.output, edge), *activation_codes(binding), edge)

    def size(self, dim: Dim) -> str:
        """A size as a list of one integer, read from the inputs at run time."""
        if isinstance(dim, int):
            return self.const(f"size:{dim}", np.array([dim], np.int64))
        if dim not in self._sizes:
            self._sizes[dim] = self._computed(tree_of(dim)) if not dim.isidentifier() else self._symbol(dim)
        return self._sizes[dim]

    def _symbol(self, name: str) -> str:
        source, axis, step, base = next((n, i, told[1], told[2]) for n in self.graph.inputs
                                        for i, d in enumerate(n.shape) if (told := line(d)) and told[0] == name)
        tensor = self.floats[source.name] if source.name in self.floats else self.codes[source.name]
        size = self.op("Shape", [tensor], f"size:{name}:axis", start=axis, end=axis + 1)
        size = self.op("Sub", [size, self.size(base)], f"size:{name}:rest") if base else size
        return self.op("Div", [size, self.size(step)], f"size:{name}") if step > 1 else size

    def _computed(self, tree: Any) -> str:
        if not isinstance(tree, tuple):
            return self.size(tree)
        kind, left, right = tree[0], self._computed(tree[1]), self._computed(tree[2])
        if kind == "//":  # ONNX rounds towards zero, Mod as Python does
            left = self.op("Sub", [left, self.op("Mod", [left, right], "size:mod")], "size:whole")
        return self.op({"+": "Add", "-": "Sub", "*": "Mul", "//": "Div"}[kind], [left, right], "size:computed")

    def shape_const(self, shape: Sequence[Dim], base: str) -> str:
        """A reshape target; a single dynamic dimension becomes -1."""
        if sum(not isinstance(d, int) for d in shape) > 1:
            return self.dynamic_shape(shape, base)
        return self.const(f"{base}:shape", np.array([d if isinstance(d, int) else -1 for d in shape], np.int64))

    def dynamic_shape(self, shape: Sequence[Dim], base: str) -> str:
        """A shape tensor whose dynamic dimensions are read from the inputs at run time."""
        if all(isinstance(d, int) for d in shape):
            return self.const(f"{base}:shape", np.array(shape, np.int64))
        key = tuple(shape)
        if key not in self._shapes:
            self._shapes[key] = self.op("Concat", [self.size(d) for d in shape], "shape", axis=0)
        return self._shapes[key]

    def weight_codes(self, w: QTensor, name: str) -> str:
        """Codes as int8; those of at most 4 bits stand in the file two a byte.

        The session folds the cast when it opens the file, so that the integer kernels see int8. A DequantizeLinear of
        int4 would fold to float weights, and the layer would run in float.
        """
        if w.qparams.qtype.bits > 4 or not w.qparams.qtype.signed:
            return self.const(f"{name}:codes", w.codes)
        flat = w.codes.detach().cpu().numpy().reshape(-1).astype(np.uint8) & 15
        flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
        raw = (flat[0::2] | flat[1::2] << 4).tobytes()
        packed = helper.make_tensor(f"{name}:int4", TensorProto.INT4, list(w.codes.shape), raw, raw=True)
        return self.op("Cast", [self._stored(packed, packed.name)], f"{name}:codes", to=TensorProto.INT8)

    def weight(self, node: Node, binding: Binding) -> list[str]:
        """Dequantized weight and bias of an integer node; the bias scale is float32(s_x * s_w)."""
        assert binding.weight is not None
        w, name = binding.weight, node.params["weight"]
        codes = self.weight_codes(w, name)
        if node.op == "conv" and not bool(w.qparams.zero_point.any()):
            # a zero point of zeros may be left out, but not for Gemm, which would then run in float
            axis = 0 if w.qparams.scale.ndim else None
            scales = self.const(f"{name}:scale", w.qparams.scale)
            operands = [self.op("DequantizeLinear", [codes, scales], f"{name}:values", axis=axis)]
        else:
            operands = [self.dequantize(codes, w.qparams, name)]
        if binding.bias is not None:
            scale = binding.inputs[0].scale * w.qparams.scale
            base = f"{node.name}:bias"
            names = [self.const(f"{base}:codes", binding.bias), self.const(f"{base}:scale", scale)]
            axis = 0 if scale.ndim else None
            operands.append(self.op("DequantizeLinear", names, f"{base}:values", axis=axis))
        return operands
