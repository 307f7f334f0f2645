"""A network as a sequence of calls in C, every tensor with its place in memory."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from string import Template

from intact.arithmetic import REFERENCE, Requantize
from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.c import passive, transform
from intact.exporters.c.arithmetic import arithmetic_snippets, check_arithmetic
from intact.exporters.c.builder import Buffer, CBuilder, Step, c_type
from intact.exporters.c.four_bits import FOUR_BIT_SNIPPETS
from intact.exporters.c.kernels import KERNEL_SNIPPETS
from intact.exporters.c.layout import Stored
from intact.exporters.c.memory import Block, largest_live, place_blocks
from intact.exporters.c.moves import MOVE_SNIPPETS
from intact.exporters.c.names import Names, identifier
from intact.exporters.c.norms import NORM_SNIPPETS
from intact.exporters.c.ops import C_OPS
from intact.exporters.onnx.build import output_names
from intact.graph import Node

__all__ = ["CProgram", "Port", "build_program"]

_REGISTERED = (passive, transform)  # importing them registers their operations

_ANY_FIXED = replace(REFERENCE, requantize=Requantize.FIXED_POINT)


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Args:
        name: in C.
        title: in the model.
        edge: whose codes it holds, in the model's own order.
        ctype: of the codes.
        shape: for one call.
    """

    name: str
    title: str
    edge: str
    ctype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of codes."""
        return Stored(0, self.shape, (), self.ctype).size


@dataclass(frozen=True, eq=False)
class CProgram:
    """All that the files hold.

    Args:
        builder: calls, constants and functions.
        prefix: of what is visible outside of the file.
        inputs, outputs: of the function that runs the network.
        offsets: place in the arena, by buffer; buffers of one place share it.
        roots: of every buffer the one whose place it takes.
        arena: bytes.
        live: the most bytes alive at one step.
    """

    builder: CBuilder
    prefix: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    offsets: dict[int, int]
    roots: dict[int, int]
    arena: int
    live: int

    @property
    def traced(self) -> list[tuple[str, Stored]]:
        """Edges whose codes a traced build gives, in order."""
        return [(s.edge, self.builder.stored[s.edge]) for s in self.builder.steps if s.edge is not None]


def build_program(q: QModel, stem: str) -> CProgram:
    """The whole network in memory.

    Args:
        q: an integer model.
        stem: name of the file without suffix.

    Raises:
        ExportError: naming the operations that have no C form.
    """
    check_arithmetic(q.target.arithmetic, q.target.name)
    _refuse_unknown(q)
    b = CBuilder(q, Names(_reserved(stem)))
    inputs = _inputs(b)
    for node in q.graph:
        if node.name in q.bindings:
            b.node = node
            C_OPS[node.op](b, node, q.program.kernels[node.name])
    outputs = _outputs(b)
    b.drop_unread()
    roots = _in_place(b)
    last = _last_uses(b.steps, roots)
    blocks = {k: Block(buffer.bytes, _first_use(b.steps, roots, k), last[k]) for k, buffer in enumerate(b.buffers)
              if buffer.where == "arena" and roots[k] == k and k in last}
    offsets, arena = place_blocks(blocks)
    return CProgram(b, identifier(stem), inputs, outputs, offsets, roots, arena, largest_live(blocks.values()))


def _refuse_unknown(q: QModel) -> None:
    bad = [n for n in q.graph if n.op not in ("input", "constant") and (n.name not in q.bindings or n.op not in C_OPS)]
    bad += [n for n in q.graph if n.name in q.bindings and q.bindings[n.name].is_accumulator]
    if bad:
        why = {n.name: "float" if n.name not in q.bindings else "integer" for n in bad}
        raise ExportError("the model has operations without C form", where=place(bad[0]),
                          got="; ".join(f"{place(n)}, {n.op}, {why[n.name]}" for n in bad[:5]),
                          allowed=", ".join(sorted(C_OPS)), fix="exclude these modules from the exported part")


def _reserved(stem: str) -> list[str]:
    """What the file may define itself."""
    types = [{"x": x, "y": y, "a": x, "b": y, "wide": w} for x, y in itertools.product(("s8", "u8", "s16"), repeat=2)
             for w in ("", "_wide")]
    types += [{**t, "four": "4"} for t in types] + [{**t, "four": ""} for t in types]
    functions = [*KERNEL_SNIPPETS, *FOUR_BIT_SNIPPETS, *MOVE_SNIPPETS, *NORM_SNIPPETS, *arithmetic_snippets(_ANY_FIXED)]
    made = {Template(f).safe_substitute(t) for f in functions for t in types}
    others = ["finish", "dot_2x2", "dot4_2x2", "low_half", "high_half",
              "place", "next", "axes", "arena", "edge", "separate", "power", "square_root"]
    prefix = identifier(stem)
    return [*sorted(made), prefix, f"{prefix}_run", f"{prefix}_trace", *others]


def _inputs(b: CBuilder) -> tuple[Port, ...]:
    ports = []
    read = {i for n in b.q.graph for i in n.inputs} | set(b.q.graph.outputs)
    for node in b.q.graph.inputs:
        if node.name not in b.q.qparams:
            if node.name in read:
                raise ExportError("an input has no codes", where=node.name, got=node.dtype, allowed="quantized inputs")
            continue
        ports.append(_port(b, node, node.name, node.name))
        shape = ports[-1].shape
        number = b.buffer(ports[-1].ctype, ports[-1].size, ports[-1].name)
        b.stored[node.name] = Stored(number, shape, tuple(range(len(shape))), ports[-1].ctype)
    return tuple(ports)


def _port(b: CBuilder, node: Node, title: str, edge: str) -> Port:
    if 0 in b.shape(node):
        raise ExportError("an input or output is empty", where=title, got=b.shape(node), allowed="at least one element")
    return Port(b.names.new(title), title, edge, c_type(b.q.qparams[edge], node), b.shape(node))


def _outputs(b: CBuilder) -> tuple[Port, ...]:
    """The caller's memory takes the place of a buffer, where its order is the model's own; else it gets a copy."""
    ports = []
    for title, edge in output_names(b.q.graph):
        node = b.q.graph[edge]
        if edge not in b.q.qparams:
            raise ExportError("an output has no codes", where=title, fix="quantize for a target of integers only")
        port, x = _port(b, node, title, edge), b.operand(edge)
        ports.append(port)
        if x.plain and b.buffers[x.buffer].where == "arena":
            b.buffers[x.buffer].where = port.name
            continue
        b.node = node
        order = tuple(range(len(x.shape)))
        y = Stored(b.buffer(x.ctype, x.size, port.name), x.shape, order, x.ctype)
        b.copy(x, y, x.shape, x.steps, y.steps, f"output '{title}'")
    return tuple(ports)


def _last_uses(steps: list[Step], roots: dict[int, int]) -> dict[int, int]:
    return {roots[k]: i for i, step in enumerate(steps) for k in step.buffers}


def _first_use(steps: list[Step], roots: dict[int, int], key: int) -> int:
    return next(i for i, step in enumerate(steps) if any(roots[k] == key for k in step.buffers))


def _in_place(b: CBuilder) -> dict[int, int]:
    """Results that take the place of an operand that is not read again; everything else has a place of its own."""
    roots = {k: k for k in range(len(b.buffers))}
    for i, step in enumerate(b.steps):
        result = step.result
        if result is None or not step.over or b.buffers[result].where != "arena":
            continue
        last = _last_uses(b.steps, roots)
        used = Counter(roots[k] for k in step.buffers if k != result)
        for k in step.over:
            root = roots[k]
            mine = sum(roots[o] == root for o in step.over)
            if _same_place(b.buffers[root], b.buffers[result]) and last[root] == i and used[root] == mine:
                roots = {key: root if value == result else value for key, value in roots.items()}
                break
    return roots


def _same_place(a: Buffer, b: Buffer) -> bool:
    return a.where == b.where == "arena" and a.bytes == b.bytes
