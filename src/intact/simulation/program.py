"""A graph of bound kernels and float operations, run on integer codes or on floats that hold integers."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from intact.arithmetic import Arithmetic, dequantize, quantize
from intact.graph import Graph, Node
from intact.graph.float_model import last_uses
from intact.graph.ir import fill_template
from intact.graph.signature import Signature, check_inputs
from intact.kernels import UNARY_OPS, Kernel
from intact.kernels.elementwise import look_up, value_table
from intact.kernels.table import rows
from intact.types import QParams, QTensor
from intact.types.dims import Sizes

__all__ = ["Program", "State", "value_tables"]

FloatStep = Callable[[Node, list[Tensor], Sizes], Tensor]


@dataclass(frozen=True, eq=False)
class Program:
    """What QFloat and Q have in common: the same kernels, bound to the same numbers.

    Args:
        graph: nodes over named edges.
        signature: how the model is called.
        kernels: bound kernels by node name; nodes without one run in float.
        qparams: parameters of every edge that has codes.
        arithmetic: the target's number rules.
        float_step: runs a node in float.
        rows_of: tables of codes that float nodes look up rows in, by node.
        coded_outputs: what leaves is codes, also where it came in as numbers: the target has no floats.
    """

    graph: Graph
    signature: Signature
    kernels: Mapping[str, Kernel]
    qparams: Mapping[str, QParams]
    arithmetic: Arithmetic
    float_step: FloatStep
    rows_of: Mapping[str, QTensor] = field(default_factory=dict)
    coded_outputs: bool = False

    def in_float(self, node: Node, values: list[Tensor], sizes: Sizes) -> Tensor:
        """A node that stays in float."""
        if node.name in self.rows_of:
            return rows(self.rows_of[node.name], values[0])
        return self.float_step(node, values, sizes)

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """float32 tables of the functions that stay in float and read codes."""
        return value_tables(self.graph, self.kernels, self.qparams)

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, integer: bool) -> Any:
        """Outputs in the user's structure, in float."""
        inputs = self.signature.bind(args, kwargs)
        return fill_template(self.graph.output, self.values(inputs, integer=integer))

    def codes(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, integer: bool) -> dict[str, Tensor]:
        """Codes of every edge that has them, in storage dtype."""
        return self.codes_from(self.signature.bind(args, kwargs), integer=integer)

    def codes_from(self, inputs: Mapping[str, Tensor], *, integer: bool) -> dict[str, Tensor]:
        """:meth:`codes` for named inputs."""
        found: dict[str, Tensor] = {}

        def tap(name: str, codes: Tensor) -> None:
            wide = self.qparams[name].qtype.bits == 32 and self._sums_wide(name)
            found[name] = codes.to(torch.int64 if wide else self.qparams[name].qtype.storage)

        self.values(inputs, integer=integer, tap=tap)
        return found

    def _sums_wide(self, name: str) -> bool:
        """Whether the sums of an accumulator may need more than 32 bits."""
        kernel = self.kernels[name]
        return getattr(kernel, "wide", False) or any(q.qtype.bits > 8 for q in kernel.binding.inputs)

    def values(self, inputs: Mapping[str, Tensor], *, integer: bool,
               tap: Callable[[str, Tensor], None] | None = None) -> dict[str, Tensor]:
        """Float value of every output edge, for named inputs; ``tap`` sees the codes of every edge."""
        sizes = check_inputs(self.graph, inputs)
        state = State(self, integer, tap)
        dying = last_uses(self.graph)
        with torch.no_grad(), _plain_arithmetic(inputs):
            for node in self.graph:
                if node.op == "input":
                    state.floats[node.name] = inputs[node.name]
                elif node.name in self.kernels:
                    xs = [state.codes_of(i) for i in node.inputs]
                    state.store(node.name, self.kernels[node.name](xs, sizes))
                elif node.name in self.tables:
                    state.floats[node.name] = state.look_up(node.name, node.inputs[0])
                else:
                    values = [state.float_of(i) for i in node.inputs]
                    state.floats[node.name] = self.in_float(node, values, sizes)
                if tap is not None and node.name in self.qparams:
                    state.codes_of(node.name)
                for name in dying.get(node.name, ()):
                    state.free(name)
            leaving = state.leaving if self.coded_outputs else state.float_of
            return {name: leaving(name) for name in self.graph.outputs}


@contextmanager
def _plain_arithmetic(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """float32 means float32: no autocast, and no tf32, which rounds codes of more than 11 bits."""
    device = next((x.device.type for x in inputs.values()), "cpu")
    with torch.autocast(device, enabled=False):
        if device != "cuda":
            yield
            return
        allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def value_tables(
    graph: Graph, integer: Container[str], qparams: Mapping[str, QParams]
) -> dict[str, Tensor]:
    """Tables of float functions whose operand comes in codes of at most 8 bits from an integer operation.

    What such a function gives depends on the code alone, so it can be the same number on every machine.
    """
    found = {}
    for node in graph:
        if node.op in UNARY_OPS and node.name not in integer and node.inputs[0] in integer:
            q = qparams[node.inputs[0]]
            if q.qtype.bits <= 8:
                found[node.name] = value_table(node.op, node.attrs, q)
    return found


class State:
    """Values of one run: an edge has codes, a float value, or both once somebody asked."""

    def __init__(self, program: Program, integer: bool, tap: Callable[[str, Tensor], None] | None) -> None:
        self.program, self.integer, self.tap = program, integer, tap
        self.floats: dict[str, Tensor] = {}
        self.codes: dict[str, Tensor] = {}

    def codes_of(self, name: str) -> Tensor:
        """Codes of an edge, quantized on first demand."""
        if name not in self.codes:
            q = self.program.qparams[name]
            codes = quantize(self.floats[name], q, self.program.arithmetic)
            self.store(name, codes.to(q.qtype.storage) if self.integer else codes)
        return self.codes[name]

    def float_of(self, name: str) -> Tensor:
        """Float value of an edge, dequantized on first demand."""
        if name not in self.floats:
            # in one order in memory, whatever the kernel's: the last bits of a float operation depend on it
            self.floats[name] = dequantize(self.codes[name].contiguous(), self.program.qparams[name])
        return self.floats[name]

    def leaving(self, name: str) -> Tensor:
        """Float value of the codes of an edge, if it has codes."""
        q = self.program.qparams.get(name)
        return self.float_of(name) if q is None else dequantize(self.codes_of(name), q)

    def look_up(self, name: str, source: str) -> Tensor:
        """Value of a tabulated function."""
        codes, qmin = self.codes_of(source).contiguous(), self.program.qparams[source].qtype.qmin
        return look_up(self.program.tables[name].to(codes.device), codes.to(torch.int32) - qmin)

    def store(self, name: str, codes: Tensor) -> None:
        """Keep the codes that an operation made."""
        self.codes[name] = codes
        if self.tap is not None:
            self.tap(name, codes)

    def free(self, name: str) -> None:
        """Let go of an edge."""
        self.floats.pop(name, None)
        self.codes.pop(name, None)
