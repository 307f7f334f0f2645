"""A network in C under construction: tensors, constants, and one call for each layer."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

import torch
from torch import Tensor

from intact.arithmetic import Multiplier, Requantize, quantize
from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.c.arithmetic import arithmetic_snippets, arithmetic_words
from intact.exporters.c.four_bits import FOUR_BIT_SNIPPETS
from intact.exporters.c.kernels import KERNEL_SNIPPETS
from intact.exporters.c.layout import Stored, collapse
from intact.exporters.c.moves import MOVE_SNIPPETS
from intact.exporters.c.names import Names, comment
from intact.exporters.c.norms import NORM_SNIPPETS
from intact.graph import Node
from intact.types import QParams
from intact.types.dims import BATCH, resolve_shape

__all__ = ["CTYPES", "Axes", "Buffer", "CBuilder", "Step", "at", "c_type", "wrapped"]

#: short name -> C type
CTYPES = {"s8": "int8_t", "u8": "uint8_t", "s16": "int16_t", "s32": "int32_t"}
_SHORT = {torch.int8: "s8", torch.uint8: "u8", torch.int16: "s16"}
_BYTES = {"s8": 1, "u8": 1, "s16": 2, "s32": 4}
_WIDTH = 118


@dataclass(frozen=True)
class Axes:
    """Values for all axes, the last ones; those in front are filled up when it is known how many there are."""

    values: Sequence[int | str]
    front: int | str


@dataclass
class Buffer:
    """Memory of one tensor.

    Args:
        ctype: of the elements.
        count: number of elements.
        where: ``arena``, or the expression in C of an input, an output or a constant.
    """

    ctype: str
    count: int
    where: str = "arena"

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.count * _BYTES[self.ctype]


@dataclass
class Step:
    """One call.

    Args:
        text: in C, with ``@3@`` in the place of buffer 3.
        node: whose operation it is part of.
        remark: a comment before it.
        buffers: that it reads or writes.
        edge: whose codes are complete after it.
        over: buffers of operands that its result may overwrite, if nothing reads them later.
        result: the buffer that it makes.
    """

    text: str
    node: str
    remark: str
    buffers: tuple[int, ...]
    edge: str | None = None
    over: tuple[int, ...] = ()
    result: int | None = None


@dataclass
class CBuilder:
    """What the emitters of the operations write to.

    Args:
        q: the integer model.
        names: identifiers of the file.
    """

    q: QModel
    names: Names
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    stored: dict[str, Stored] = field(default_factory=dict)
    declarations: list[str] = field(default_factory=list)
    structs: list[tuple[str, str, Mapping[str, object]]] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)
    constant_bytes: int = 0
    weight_bytes: int = 0
    axes: int = 1
    node: Node | None = None
    _arrays: dict[tuple[str, str], str] = field(default_factory=dict)
    _constants: dict[int, Tensor] = field(default_factory=dict)
    _arranged: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Stored] = field(default_factory=dict)

    # -- tensors ----------------------------------------------------------------------------

    def shape(self, node: Node) -> tuple[int, ...]:
        """Sizes for one sample."""
        return tuple(resolve_shape(node.shape, {BATCH: 1}))

    def buffer(self, ctype: str, count: int, where: str = "arena") -> int:
        """A new buffer."""
        self.buffers.append(Buffer(ctype, count, where))
        return len(self.buffers) - 1

    def operand(self, edge: str, order: Sequence[int] | None = None) -> Stored:
        """A tensor that an operation reads, with its axes in a certain order in memory."""
        if edge not in self.stored:
            self.stored[edge] = self._constant(edge)
        found = self.stored[edge]
        return found if order is None else self.arranged(found, tuple(order))

    def arranged(self, x: Stored, order: tuple[int, ...]) -> Stored:
        """The same tensor in another order: itself, a constant written so, or a copy made by a step."""
        if x.lies_as(order):
            return Stored(x.buffer, x.shape, order, x.ctype)
        key = (x.buffer, x.shape, tuple(a for a in order if x.shape[a] != 1))
        if key not in self._arranged:
            if x.buffer in self._constants:
                values = self._constants[x.buffer].reshape(x.shape)
                self._arranged[key] = self._written(values, order, x.ctype, "constant")
            else:
                y = Stored(self.buffer(x.ctype, x.size), x.shape, order, x.ctype)
                self.copy(x, y, [x.shape[a] for a in order], [x.steps[a] for a in order],
                          [y.steps[a] for a in order], "in another order of the axes")
                self._arranged[key] = y
        return self._arranged[key]

    def result(self, order: Sequence[int] | None = None) -> Stored:
        """The tensor that the current operation makes."""
        assert self.node is not None
        shape = self.shape(self.node)
        ctype = c_type(self.q.qparams[self.node.name], self.node)
        order = range(len(shape)) if order is None else order
        found = Stored(self.buffer(ctype, math.prod(shape)), shape, tuple(order), ctype)
        self.stored[self.node.name] = found
        return found

    def alias(self, x: Stored, order: Sequence[int]) -> None:
        """The current operation's result is the memory of its operand."""
        assert self.node is not None
        self.stored[self.node.name] = Stored(x.buffer, self.shape(self.node), tuple(order), x.ctype)
        self.steps.append(Step("", self.node.name, "the same memory", (x.buffer,), self.node.name))

    def copy(self, x: Stored, y: Stored, size: Sequence[int], source: Sequence[int], target: Sequence[int],
             remark: str = "", *, start: int = 0, to: int = 0, edge: bool = False) -> None:
        """A step that moves elements; ``start`` and ``to`` are where the first of them lies."""
        sizes, (a, b) = collapse(size, source, target)
        p = self.struct("copy", size=self.per_axis(sizes, 1), **{"from": self.per_axis(a), "to": self.per_axis(b)})
        self.call("copy_$x", {"x": x.ctype}, f"&{p}", at(x, start), at(y, to), buffers=(x, y), remark=remark,
                  edge=edge)

    # -- text -------------------------------------------------------------------------------

    def per_axis(self, values: Sequence[int | str], front: int | str = 0) -> Axes:
        """A field with a value for each axis."""
        self.axes = max(self.axes, len(values))
        return Axes(tuple(values), front)

    def array(self, what: str, values: Tensor, ctype: str) -> str:
        """A constant array; equal ones are written once."""
        flat = values.contiguous().flatten().to(torch.int64)
        digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
        if (ctype, digest) not in self._arrays:
            name = self.names.new(f"{self.label()}_{what}")
            self.constant_bytes += flat.numel() * _BYTES[ctype]
            self.weight_bytes += flat.numel() * _BYTES[ctype] if what == "weight" else 0
            body = wrapped(", ".join("-2147483647 - 1" if v == -(2**31) else str(v) for v in flat.tolist()))
            self.declarations.append(f"static const {CTYPES[ctype]} {name}[{flat.numel()}] = {{\n{body}\n}};")
            self._arrays[ctype, digest] = name
        return self._arrays[ctype, digest]

    def drop_unread(self) -> None:
        """Forget constants that no step reads: those that were written in another order of their axes too."""
        read = {self.buffers[k].where for step in self.steps for k in step.buffers}
        read.update(str(v) for _, _, fields in self.structs for v in _flat(fields))
        for number, codes in self._constants.items():
            buffer = self.buffers[number]
            start = f"static const {CTYPES[buffer.ctype]} {buffer.where}["
            found = [d for d in self.declarations if d.startswith(start)]
            if found and buffer.where not in read:
                self.declarations.remove(found[0])
                self.constant_bytes -= codes.numel() * _BYTES[buffer.ctype]

    def struct(self, kind: str, **fields: object) -> str:
        """Constant parameters of a step."""
        named = kind in ("copy", "gather", "rescale", "hide")
        name = self.names.new(f"{self.label()}_{kind}" if named else self.label())
        self.structs.append((kind, name, fields))
        self.declarations.append(f"@struct {len(self.structs) - 1}")
        return name

    def call(self, function: str, types: Mapping[str, str], *arguments: str, buffers: Sequence[Stored],
             remark: str = "", edge: bool = True, over: Sequence[Stored] = (), scratch: Sequence[int] = ()) -> None:
        """A step; ``function`` has ``$words`` for the types."""
        assert self.node is not None
        name = self.need(function, types)
        numbers = (*(b.buffer for b in buffers), *scratch)
        text, complete = f"{name}({', '.join(arguments)});", self.node.name if edge else None
        self.steps.append(Step(text, self.node.name, remark, numbers, complete, tuple(b.buffer for b in over),
                               buffers[-1].buffer))

    def need(self, function: str, types: Mapping[str, str]) -> str:
        """The function's name, after it and all that it needs were added to the file."""
        arithmetic = self.q.target.arithmetic
        known = {**arithmetic_snippets(arithmetic), **FOUR_BIT_SNIPPETS, **KERNEL_SNIPPETS, **MOVE_SNIPPETS,
                 **NORM_SNIPPETS}
        words = {**arithmetic_words(arithmetic), **types,
                 **{k.upper(): CTYPES[v] for k, v in types.items() if v in CTYPES}}
        name = Template(function).substitute(words)
        if name not in self.functions:
            snippet = known[function if function in known else name]
            for other in snippet.needs:
                self.need(other, types)
            self.functions[name] = Template(snippet.text).substitute(words).strip("\n")
        return name

    def label(self) -> str:
        """What the current node is called in C: its module path, and the operation where that says more."""
        n = self.node
        assert n is not None
        return n.path if n.path and n.op in ("conv", "linear") else f"{n.path}_{n.op}"

    def describe(self, node: Node) -> str:
        """A node in words: where it stands, what it does, shapes."""
        where = node.path or "the model itself"
        shapes = [str(self.shape(self.q.graph[i])) for i in node.inputs]
        return comment(f"{where}: {node.op} {', '.join(shapes)} -> {self.shape(node)}")

    def multiplier(self, by: Multiplier, channels: int = 0, *, average: bool = False) -> dict[str, object]:
        """Fields ``m0`` and ``shift``: one number, or an array for so many channels.

        Where scales are powers of two, ``shift`` alone; but for an average.
        """
        assert by.m0 is not None and by.shift is not None
        m0, shift = by.m0.reshape(-1).cpu(), by.shift.reshape(-1).cpu()
        alone = self.q.target.arithmetic.requantize is Requantize.SHIFT and not average
        if alone:  # m0 is a power of two
            shift = shift - torch.tensor([int(v).bit_length() - 1 for v in m0])
        fields: dict[str, object] = {"m0": int(m0[0]), "shift": int(shift[0])}
        if alone:
            del fields["m0"]
        if channels:
            arrays = {"m0": (m0, "s32"), "shift": (shift, "s8")}
            fields = {k: self.array(k, arrays[k][0].expand(channels), arrays[k][1]) for k in fields}
        return fields

    # -- constants --------------------------------------------------------------------------

    def _constant(self, edge: str) -> Stored:
        node = self.q.graph[edge]
        q = self.q.qparams[edge]
        value = self.q.float_params[node.params["value"]].detach()
        codes = quantize(value, q, self.q.target.arithmetic).to(torch.int64).reshape(self.shape(node))
        return self._written(codes, tuple(range(codes.ndim)), c_type(q, node), "constant")

    def _written(self, codes: Tensor, order: tuple[int, ...], ctype: str, what: str) -> Stored:
        number = self.buffer(ctype, codes.numel(), "")
        self.buffers[number].where = self.array(what, codes.permute(order), ctype)
        self._constants[number] = codes
        return Stored(number, tuple(codes.shape), order, ctype)


def _flat(fields: Mapping[str, object]) -> Iterator[object]:
    for value in fields.values():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif isinstance(value, Axes):
            yield from value.values
        else:
            yield value


def at(x: Stored, start: int = 0) -> str:
    """An argument: a tensor's elements from one on."""
    return f"@{x.buffer}+{start}@" if start else f"@{x.buffer}@"


def c_type(q: QParams, node: Node) -> str:
    """Short name of the type of an edge's codes.

    Raises:
        ExportError: for codes that no operation in C takes.
    """
    if q.qtype.storage not in _SHORT or q.qtype.bits > 16:
        raise ExportError("codes of this type have no C form", where=place(node), got=str(q.qtype),
                          allowed="signed codes of up to 16 bits, unsigned ones of up to 15")
    return _SHORT[q.qtype.storage]


def wrapped(text: str, indent: str = "    ") -> str:
    """Numbers in lines."""
    lines, line = [], indent
    for item in re.split(r"(?<=,) ", text):
        if len(line) + len(item) > _WIDTH:
            lines.append(line.rstrip())
            line = indent
        line += item + " "
    return "\n".join([*lines, line.rstrip()])
