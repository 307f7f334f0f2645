"""One LiteRT graph under construction: tensors, operators, and in which order of axes each edge lies in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from intact.arithmetic import Arithmetic, quantize
from intact.exporters.litert.file import LiteRTOp, LiteRTTensor, schema
from intact.exporters.litert.run import LiteRTKernels
from intact.graph import Graph
from intact.kernels import Binding
from intact.kernels.base import activation_codes
from intact.reference.litert.quant import Activation, Kernels, Quant, activation_range
from intact.types import QParams
from intact.types.dims import Sizes, resolve_shape

__all__ = ["Builder", "Dialect", "Perm", "channels_last"]

Array = npt.NDArray[Any]
Perm = tuple[int, ...]
_ACTIVATIONS: tuple[Activation, ...] = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")


@dataclass(frozen=True)
class Dialect:
    """What differs between the sets of kernels that a file is written for.

    Args:
        kernels: the interpreter's set.
        formulas: its name in :mod:`intact.reference.litert`.
        linear_as_conv: a linear layer is a 1x1 convolution.
        bits: of activations, in the file.
    """

    kernels: LiteRTKernels
    formulas: Kernels
    linear_as_conv: bool
    bits: int = 8

    @property
    def dtype(self) -> str:
        """Of activations' codes."""
        return f"int{self.bits}"

    @property
    def bias(self) -> str:
        """Type of a bias: with 16-bit activations 64 bits."""
        return "int32" if self.bits == 8 else "int64"

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code of the type."""
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1


def channels_last(rank: int) -> Perm:
    """The order of axes of an image in memory: batch, space, channels.

    >>> channels_last(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1)


@dataclass
class Builder:
    """Collects tensors and operators.

    An edge lies in memory as ``edge.permute(perm)``, in as many orders as something asks for; a permutation of the
    graph only renames axes.

    Args:
        graph: the canonical graph.
        params: float parameters by name.
        qparams: parameters of every edge that has codes.
        bindings: integer nodes.
        arithmetic: the target's number rules.
        dialect: the set of kernels.
        sizes: of the free axes, the batch among them, in the file.
        tensors, ops: what the file will hold.
        places: of every edge so far, by order of axes.
        reserved: names of the file's inputs and outputs.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    qparams: Mapping[str, QParams]
    bindings: Mapping[str, Binding]
    arithmetic: Arithmetic
    dialect: Dialect
    sizes: Sizes
    tensors: dict[str, LiteRTTensor] = field(default_factory=dict)
    ops: list[LiteRTOp] = field(default_factory=list)
    places: dict[str, dict[Perm, str]] = field(default_factory=dict)
    reserved: frozenset[str] = frozenset()
    _origins: dict[str, str] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    # -- tensors ----------------------------------------------------------------------------------

    def unique(self, base: str) -> str:
        """A free tensor name."""
        name, n = base, 1
        while name in self.reserved or name in self.tensors:
            n += 1
            name = f"{base}~{n}"
        return name

    def add(self, name: str, dtype: str, shape: Sequence[int], q: QParams | None = None) -> str:
        """A tensor that is computed, or given by the caller."""
        scales, zeros = ((float(q.scale),), (int(q.zero_point),)) if q is not None else ((), ())
        self.tensors[name] = LiteRTTensor(name, dtype, tuple(int(d) for d in shape), scales, zeros)
        return name

    def const(self, base: str, data: Array, *, q: QParams | None = None, scales: Sequence[float] = (), axis: int = 0
              ) -> str:
        """A constant; the same numbers under the same base name are stored once."""
        data = np.ascontiguousarray(data)
        quant = (float(q.scale), int(q.zero_point)) if q is not None else tuple(scales)
        key = ("const", base, str(data.dtype), data.shape, data.tobytes(), quant, axis)
        if key not in self._made:
            name = self._made[key] = self.unique(base)
            values = (float(q.scale),) if q is not None else tuple(float(s) for s in scales)
            zeros = (int(q.zero_point),) if q is not None else ()
            self.tensors[name] = LiteRTTensor(name, str(data.dtype), data.shape, values, zeros, axis, data)
        return self._made[key]

    def shape(self, edge: str) -> tuple[int, ...]:
        """Sizes of an edge, in the graph's order."""
        return tuple(resolve_shape(self.graph[edge].shape, self.sizes))

    # -- operators --------------------------------------------------------------------------------

    def op(self, code: str, inputs: Sequence[str], output: str, **options: Any) -> str:
        """An operator with one output, which exists as a tensor."""
        if "activation" in options:
            options["fusedActivationFunction"] = getattr(schema().ActivationFunctionType, options.pop("activation"))
        self.ops.append(LiteRTOp(code, tuple(inputs), (output,), options))
        return output

    def like(self, source: str, base: str, shape: Sequence[int]) -> str:
        """A new tensor with the type and encoding of another."""
        t, name = self.tensors[source], self.unique(base)
        self.tensors[name] = LiteRTTensor(name, t.dtype, tuple(int(d) for d in shape), t.scales, t.zero_points)
        return name

    def reshape(self, source: str, shape: Sequence[int], base: str = "") -> str:
        """RESHAPE; no operator where the shape is the same, the same tensor for the same question."""
        shape = tuple(int(d) for d in shape)
        for name in (source, self._origins.get(source)):
            if name is not None and self.tensors[name].shape == shape:
                return name
        key = ("reshape", source, shape)
        if key not in self._made:
            to = self.const(":shape", np.array(shape, np.int32))
            self._made[key] = self.op("RESHAPE", [source, to], self.like(source, base or f"{source}:reshaped", shape),
                                      newShape=np.array(shape, np.int32))
            self._origins[self._made[key]] = source
        return self._made[key]

    def transpose(self, source: str, axes: Sequence[int], base: str = "") -> str:
        """``source.permute(axes)``: nothing, RESHAPE where only axes of size 1 move, or TRANSPOSE."""
        shape = self.tensors[source].shape
        new = tuple(shape[a] for a in axes)
        moving = [a for a in axes if shape[a] != 1]
        if moving == sorted(moving):
            return self.reshape(source, new, base)
        key = ("transpose", source, tuple(axes))
        if key not in self._made:
            order = self.const(":axes", np.array(axes, np.int32))
            self._made[key] = self.op("TRANSPOSE", [source, order],
                                      self.like(source, base or f"{source}:transposed", new))
        return self._made[key]

    # -- edges ------------------------------------------------------------------------------------

    def put(self, edge: str, perm: Perm, name: str) -> None:
        """An edge lies in this tensor, in this order."""
        self.places.setdefault(edge, {})[perm] = name

    def made(self, edge: str, perm: Perm) -> str:
        """A new tensor of an edge's own encoding, named after it, registered as its place."""
        shape = self.shape(edge)
        name = self.add(self.unique(edge), self.dialect.dtype, [shape[p] for p in perm], self.qparams[edge])
        self.put(edge, perm, name)
        return name

    def where(self, edge: str) -> tuple[Perm, str]:
        """The first place of an edge."""
        if edge not in self.places:
            self.get(edge, tuple(range(len(self.shape(edge)))))
        return next(iter(self.places[edge].items()))

    def get(self, edge: str, perm: Perm) -> str:
        """The tensor of an edge in an order of axes."""
        if self.graph[edge].op == "constant":
            return self.constant(edge, len(perm), perm)
        places = self.places[edge]
        if perm not in places:
            have, name = self.where(edge)
            places[perm] = self.transpose(name, [have.index(p) for p in perm])
        return places[perm]

    def plain(self, edge: str) -> str:
        """The tensor of an edge in the graph's order."""
        return self.get(edge, tuple(range(len(self.shape(edge)))))

    def constant(self, edge: str, rank: int, perm: Perm) -> str:
        """A constant operand's codes, with axes of size 1 in front up to a rank."""
        q = self.qparams[edge]
        value = self.params[self.graph[edge].params["value"]].detach()
        codes = quantize(value, q, self.arithmetic).numpy().astype(self.dialect.dtype)
        codes = codes.reshape((1,) * (rank - codes.ndim) + codes.shape).transpose(perm)
        name = self.const(f"{edge}:codes", codes, q=q)
        if rank == value.ndim:
            self.put(edge, perm, name)
        return name

    def operand(self, edge: str, perm: Perm) -> str:
        """An operand that broadcasts: with axes of size 1 in front up to the rank of ``perm``, in that order."""
        shape, rank = self.shape(edge), len(perm)
        if self.graph[edge].op == "constant":
            return self.constant(edge, rank, perm)
        if len(shape) == rank:
            return self.get(edge, perm)
        return self.transpose(self.reshape(self.plain(edge), (1,) * (rank - len(shape)) + shape), perm)

    def image(self, edge: str) -> str:
        """An edge as [batch, height, width, channels]; a signal of one axis has height 1."""
        shape = self.shape(edge)
        name = self.get(edge, channels_last(len(shape)))
        return name if len(shape) == 4 else self.reshape(name, (shape[0], 1, shape[2], shape[1]))

    def image_result(self, edge: str) -> tuple[str, str]:
        """(tensor to compute into, the edge's own tensor): one and the same where the edge has two spatial axes."""
        shape = self.shape(edge)
        own = self.made(edge, channels_last(len(shape)))
        if len(shape) == 4:
            return own, own
        return self.like(own, f"{edge}:image", (shape[0], 1, shape[2], shape[1])), own

    # -- clamps -----------------------------------------------------------------------------------

    def fused(self, binding: Binding) -> Activation | None:
        """The fused activation that clamps as the kernel does; None if there is none."""
        q = binding.output
        quant = Quant(float(q.scale), int(q.zero_point), self.dialect.bits)
        want = activation_codes(binding)
        return next((a for a in _ACTIVATIONS if activation_range(quant, a, self.dialect.formulas) == want), None)

    def clamped(self, code: str, inputs: Sequence[str], output: str, binding: Binding, **options: Any) -> str:
        """An operator with a fused activation, or with MAXIMUM and MINIMUM behind it."""
        activation = self.fused(binding)
        if activation is not None:
            return self.op(code, inputs, output, activation=activation, **options)
        inner = self.like(output, f"{output}:unclamped", self.tensors[output].shape)
        return self.clamp(self.op(code, inputs, inner, **options), output, binding)

    def clamp(self, source: str, output: str, binding: Binding) -> str:
        """MAXIMUM and MINIMUM with the bounds of the kernel."""
        return self.clamp_codes(source, output, *activation_codes(binding), binding.output)

    def clamp_codes(self, source: str, output: str, low: int, high: int, q: QParams) -> str:
        """MAXIMUM and MINIMUM with two codes."""
        bounds = [self.const(f"{output}:{n}", np.array([v], self.dialect.dtype), q=q)
                  for n, v in (("low", low), ("high", high))]
        inner = self.op("MAXIMUM", [source, bounds[0]],
                        self.like(output, f"{output}:raised", self.tensors[output].shape))
        return self.op("MINIMUM", [inner, bounds[1]], output)

    def finish(self, source: str, output: str) -> None:
        """The edge's own tensor from the one that was computed into."""
        if source != output:
            shape = self.tensors[output].shape
            self.op("RESHAPE", [source, self.const(":shape", np.array(shape, np.int32))], output,
                    newShape=np.array(shape, np.int32))
            self._origins[output] = source

    def pruned(self, outputs: Sequence[str]) -> list[LiteRTOp]:
        """The operators that something needs."""
        needed, kept = set(outputs), []
        for op in reversed(self.ops):
            if needed & set(op.outputs):
                needed.update(op.inputs)
                kept.append(op)
        return kept[::-1]

    # -- tables -----------------------------------------------------------------------------------

    def look_up(self, source: str, table: Array, output: str) -> str:
        """``table[code - lowest]`` by GATHER; the table has an entry for each code of the type."""
        key = ("index", source)
        if key not in self._made:
            shape = self.tensors[source].shape
            types = schema().TensorType
            wide = self.op("CAST", [source], self.add(self.unique(f"{source}:wide"), "int32", shape),
                           inDataType=getattr(types, self.dialect.dtype.upper()), outDataType=types.INT32)
            offset = self.const(":offset", np.array([-self.dialect.codes[0]], np.int32))
            self._made[key] = self.op("ADD", [wide, offset], self.add(self.unique(f"{source}:index"), "int32", shape))
        t = self.tensors[output]
        name = self.unique(f"{output}:table")
        table = table.astype(self.dialect.dtype)
        self.tensors[name] = LiteRTTensor(name, self.dialect.dtype, table.shape, t.scales, t.zero_points, 0, table)
        return self.op("GATHER", [name, self._made[key]], output, axis=0)

    def gather(self, source: str, axis: int, index: Sequence[int], output: str = "") -> str:
        """``source`` with the given places of one axis."""
        shape = list(self.tensors[source].shape)
        shape[axis] = len(index)
        places = self.const(":places", np.array(index, np.int32))
        return self.op("GATHER", [source, places], output or self.like(source, f"{source}:gathered", shape), axis=axis)
