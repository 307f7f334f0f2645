"""Q: the integer model. Codes between operations, int32 inside them, floats only where the plan says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from intact.graph import FloatModel, Graph, Node
from intact.graph.float_model import run_node
from intact.graph.opaque import OpaqueCall
from intact.graph.signature import Signature, check_finite
from intact.kernels import KERNELS, Binding
from intact.simulation import Program
from intact.targets import Target
from intact.types import QParams, QTensor
from intact.types.dims import Sizes

__all__ = ["QModel"]

_SHOWN = 10  # operations in float


@dataclass(frozen=True, eq=False)
class QModel:
    """An integer model.

    Args:
        graph: nodes over named edges.
        signature: how the model is called.
        target: the runtime whose codes it gives.
        bindings: what each integer node is bound to: attributes, parameters, weight and bias codes.
        qparams: parameters of every edge that has codes.
        float_params: parameters of the nodes that stay in float, by the user's names.
        opaque: calls of submodules that could not be captured; a model with any cannot be saved or exported.
        info: plain data about its making: plan, coverage, notes, versions.
        example: a small batch of inputs, kept in memory for checks; not saved.
        tables: codes of the tables that float nodes look up rows in, by node; one that a layer reads too is its weight.
    """

    graph: Graph
    signature: Signature
    target: Target
    bindings: Mapping[str, Binding]
    qparams: Mapping[str, QParams]
    float_params: Mapping[str, Tensor]
    opaque: Mapping[str, OpaqueCall] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Tensor] | None = None
    tables: Mapping[str, QTensor] = field(default_factory=dict)
    _cache: dict[str, Program] = field(default_factory=dict, repr=False, init=False)

    @property
    def program(self) -> Program:
        """The kernels, bound once."""
        if "program" not in self._cache:
            kernels = {name: KERNELS[b.op](b) for name, b in self.bindings.items()}
            holder = FloatModel(self.graph, self.float_params, self.signature, {}, self.opaque)

            def step(node: Node, xs: list[Tensor], sizes: Sizes) -> Tensor:
                return run_node(holder, node, xs, sizes)

            self._cache["program"] = Program(self.graph, self.signature, kernels, self.qparams,
                                             self.target.arithmetic, step, self.tables,
                                             not self.target.float_operations)
        return self._cache["program"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the float model gives, computed in integers; the user's structure of float tensors.

        Raises:
            IntactError: if an input is missing, has the wrong shape or dtype, or is not finite (but for masks,
                which have no codes).
        """
        check_finite(self.signature.bind(args, kwargs), self.qparams)
        return self.program.run(args, kwargs, integer=True)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Codes of every edge, by name."""
        check_finite(self.signature.bind(args, kwargs), self.qparams)
        return self.program.codes(args, kwargs, integer=True)

    @property
    def plan(self) -> str:
        """The plan that it was made by, as text; empty if it was made by hand."""
        return str(self.info.get("plan", ""))

    def __repr__(self) -> str:
        return (f"QModel(target={self.target.name!r}, {len(self.bindings)} integer nodes, "
                f"{len(self.graph.nodes) - len(self.bindings)} others)")

    def __str__(self) -> str:
        return _describe(self)


def _describe(q: QModel) -> str:
    """Target, coverage, size of the weights, and what stays in float, a line each."""
    lines = [f"Integer model for target '{q.target.name}' (version {q.target.version})"]
    cover = q.info.get("coverage") or {}
    if cover.get("macs"):
        share = math.floor(1000 * cover["integer_macs"] / cover["macs"]) / 10  # never rounded up to 100 %
        beside = ", not counting what could not be captured" if q.opaque else ""
        lines.append(f"  in integers: {share:.1f}% of {cover['macs']:,} multiply-accumulates{beside}")
    stored = [*(b.weight for b in q.bindings.values() if b.weight is not None), *q.tables.values()]
    weights = {id(w): w.codes for w in stored}
    codes = sum(w.numel() * w.element_size() for w in weights.values())
    floats = sum(w.numel() * w.element_size() for w in q.float_params.values())
    was = 4 * sum(w.numel() for w in weights.values()) + floats
    lines.append(f"  weights: {codes:,} bytes of codes and {floats:,} of float parameters ({was:,} in float)")
    rest = [n for n in q.graph if n.name not in q.bindings and n.op not in ("input", "constant")]
    reasons = {name: reason for name, _, _, reason in q.info.get("rejections", ())}
    lines.append(f"  in float: {len(rest)} of {len(rest) + len(q.bindings)} operations")
    lines += [f"    {n.path or n.name} ({n.op}): {reasons.get(n.name, 'no reason is known')}" for n in rest[:_SHOWN]]
    if len(rest) > _SHOWN:
        lines.append(f"    and {len(rest) - _SHOWN} more; print(q.plan) has all")
    found = [f"{where}: {text}" for where, text in q.info.get("notes", ()) if text not in q.plan]
    lines += ["  adjusted to what the target can express:", *(f"    {n}" for n in found)] if found else []
    return "\n".join(lines)
