"""One generic torch operation on its way to ONNX: its arguments by name, as tensors of the dtype that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from intact.errors import ExportError
from intact.exporters.builder import Builder, onnx_type, place
from intact.graph import Node
from intact.graph.generic import declared
from intact.graph.ir import Dim

__all__ = ["ATEN", "Call", "aten", "call"]

#: aten overload name -> how it is written in ONNX
ATEN: dict[str, Callable[[Call], str]] = {}


def aten(*targets: str) -> Callable[[Callable[[Call], str]], Callable[[Call], str]]:
    """Register the ONNX form of torch operations such as ``amax.default``."""

    def register(function: Callable[[Call], str]) -> Callable[[Call], str]:
        ATEN.update({f"aten.{t}": function for t in targets})
        return function

    return register


@dataclass(frozen=True)
class Call:
    """A generic node and the tensors of its operands."""

    b: Builder
    n: Node
    xs: Sequence[str]

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Argument templates by torch's names, defaults filled in."""
        schema = declared(self.n.attrs["target"])
        names = [a.name for a in schema.arguments]
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        return {**defaults, **dict(zip(names, self.n.attrs["args"], strict=False)), **self.n.attrs["kwargs"]}

    @property
    def dtype(self) -> str:
        """Dtype of the result."""
        return self.n.dtype

    def __getitem__(self, name: str) -> Any:
        """An argument template; None if torch does not know it."""
        return self.arguments.get(name)

    def refuse(self, what: str, got: object = None) -> ExportError:
        """An error about this operation."""
        return ExportError(what, where=place(self.n), got=got,
                           fix="exclude the module from the exported part")

    # -- operands ---------------------------------------------------------------------------

    def _edge(self, value: Any) -> Node | None:
        return self.b.graph[self.n.inputs[value["input"]]] if isinstance(value, Mapping) and "input" in value else None

    def shape(self, name: str) -> tuple[Dim, ...]:
        """Shape of a tensor argument."""
        return self.shape_of(self[name])

    def shape_of(self, value: Any) -> tuple[Dim, ...]:
        """Shape of a tensor template; a number has none."""
        edge = self._edge(value)
        if edge is not None:
            return edge.shape
        if isinstance(value, Mapping):
            return tuple(self.b.params[self.n.params[value["param"]]].shape)
        return ()

    def dtype_of(self, value: Any) -> str:
        """Dtype of a tensor template."""
        edge = self._edge(value)
        if edge is not None:
            return edge.dtype
        return str(self.b.params[self.n.params[value["param"]]].dtype).removeprefix("torch.")

    def tensor(self, name: str, dtype: str | None = None) -> str:
        """An argument as a tensor of a dtype; a number becomes a constant."""
        return self.tensor_of(self[name], dtype, name)

    def tensor_of(self, value: Any, dtype: str | None = None, name: str = "operand") -> str:
        """A template as a tensor of a dtype."""
        if isinstance(value, Mapping) and "input" in value:
            x = self.xs[value["input"]]
        elif isinstance(value, Mapping) and "dim" in value:
            size = self.op("Squeeze", self.b.size(value["dim"]))
            return size if dtype == "int64" else self.cast(size, dtype or self.dtype)
        elif isinstance(value, Mapping):
            x = self.b.const(self.n.params[value["param"]], self.b.params[self.n.params[value["param"]]])
        else:
            return self.number(value, dtype or self.dtype, name)
        return x if dtype in (None, self.dtype_of(value)) else self.cast(x, str(dtype))

    def number(self, value: Any, dtype: str = "float32", name: str = "number") -> str:
        """A constant of rank 0."""
        return self.b.const(f"{self.n.name}:{name}", np.array(value, dtype))

    def integers(self, values: Sequence[int], name: str) -> str:
        """A constant list of integers."""
        return self.b.const(f"{self.n.name}:{name}", np.array(values, np.int64))

    def common(self, *names: str) -> str:
        """The dtype that torch computes in: of tensors and numbers together."""
        def example(value: Any) -> Any:
            if not isinstance(value, Mapping):
                return value
            if "dim" in value:
                return 1
            return torch.empty([1] * len(self.shape_of(value)), dtype=getattr(torch, self.dtype_of(value)))

        first, *rest = (example(self[n]) for n in names)
        found = torch.result_type(first, rest[0]) if rest else first.dtype
        return str(found).removeprefix("torch.")

    # -- nodes ------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, output: int = 0, **attrs: Any) -> str:
        """A node; returns its output's name."""
        return self.b.op(kind, inputs, f"{self.n.name}:{kind}", output=output, **attrs)

    def cast(self, x: str, dtype: str) -> str:
        """A tensor in another dtype."""
        return self.op("Cast", x, to=onnx_type(dtype))

    def axes(self, name: str = "dim", of: str = "self") -> list[int]:
        """Axes of an argument from 0; all of them if none is given."""
        value, rank = self[name], len(self.shape(of))
        if value is None or value == []:
            return list(range(rank))
        return sorted(a % max(rank, 1) for a in ([value] if isinstance(value, int) else value)) if rank else []

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdim: bool = False) -> str:
        """A reduction over axes; over none it is the tensor itself."""
        return self.op(kind, x, self.integers(axes, "axes"), keepdims=int(keepdim)) if axes else x


def call(b: Builder, n: Node, xs: Sequence[str]) -> str:
    """The ONNX form of a generic node."""
    return ATEN[n.attrs["target"]](Call(b, n, xs))
