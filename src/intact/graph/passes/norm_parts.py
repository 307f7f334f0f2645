"""Values divided by the root of their mean square, in steps that keep what they can in 8 bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from intact.graph.float_model import FloatModel
from intact.graph.ir import Dim, Node

__all__ = ["Parts"]

_LEAST = 1e-12  # for an eps of 0


class Parts:
    """Nodes that a norm is made of; each gets codes of its own.

    Args:
        node: the norm, whose path and name they have.
        axes: over which it is taken.
    """

    #: operations that occur
    operations = frozenset({"abs", "mean", "mul", "mul_scalar", "add", "add_scalar", "rsqrt"})

    def __init__(self, node: Node, axes: Sequence[int]) -> None:
        self.node, self.axes = node, list(axes)
        self.kept: tuple[Dim, ...] = tuple(1 if i in axes else d for i, d in enumerate(node.shape))
        self.nodes: list[Node] = []

    def emit(self, what: str, op: str, inputs: tuple[str, ...], shape: tuple[Dim, ...] | None = None,
             **attrs: Any) -> str:
        """Append a node; its edge."""
        self.nodes.append(replace(self.node, name=f"{self.node.name}/{what}", op=op, inputs=inputs, params={},
                                  attrs=attrs, shape=self.node.shape if shape is None else shape))
        return self.nodes[-1].name

    def normalised(self, x: str, eps: float) -> str:
        """``x * rsqrt(mean(x**2) + eps)``, as ``u * rsqrt(mean(u**2) + eps * r**2)`` with ``u = x * r``.

        That holds for every positive ``r``. A variance spans the square of what sizes span: in 8 bits a sample of a
        tenth of the usual size would be left with two codes. ``r = rsqrt(mean(abs(x)) + sqrt(eps))``, a function of
        the size itself, makes samples more alike first; what its codes round off, the second step puts right.
        (``1 / size`` would leave nearly all codes to samples of zeros; here both factors give them ``eps ** -0.25``.)
        """
        root = math.sqrt(max(eps, _LEAST))
        size = self.emit("size", "mean", (self.emit("magnitude", "abs", (x,)),), self.kept, axes=self.axes,
                         keepdim=True)
        first = self.emit("first", "rsqrt", (self.emit("size raised", "add_scalar", (size,), self.kept, value=root),),
                          self.kept)
        alike = self.emit("alike", "mul", (x, first))
        square = self.emit("square", "mul", (alike, alike))
        variance = self.emit("variance", "mean", (square,), self.kept, axes=self.axes, keepdim=True)
        if eps:
            squared = self.emit("first squared", "mul", (first, first), self.kept)
            least = self.emit("least", "mul_scalar", (squared,), self.kept, value=eps)
            variance = self.emit("raised", "add", (variance, least), self.kept)
        return self.emit("normal", "mul", (alike, self.emit("second", "rsqrt", (variance,), self.kept)))

    def scaled(self, model: FloatModel, params: Mapping[str, str]) -> list[Node]:
        """All nodes, after the last one was multiplied by ``weight``, and ``bias`` added; it has the norm's name."""
        result = self.nodes[-1].name
        for role, name in params.items():
            number = self.emit(role, "constant", (), tuple(model.params[name].shape))
            self.nodes[-1] = replace(self.nodes[-1], params={"value": name})
            op, what = ("mul", "by weight") if role == "weight" else ("add", "with bias")
            result = self.emit(what, op, (result, number))
        self.nodes[-1] = replace(self.nodes[-1], name=self.node.name)
        return self.nodes
