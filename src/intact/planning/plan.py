"""The decision, as an immutable value that can be printed and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from intact.graph import Graph, Hint, Node
from intact.observers import weight_qparams
from intact.planning.recipe import Recipe
from intact.targets import Target
from intact.types import Granularity, QParams, QSpec, QType

__all__ = ["Coverage", "Decision", "Plan", "Rejection", "WeightSpec"]


@dataclass(frozen=True)
class WeightSpec:
    """How a weight tensor is encoded; one per storage, however many layers read it."""

    qtype: QType
    granularity: Granularity
    observer: Literal["minmax", "mse"] = "mse"
    bias_correction: bool = True
    symmetric: bool = True
    quantizer: str = "observed"
    power_of_two: bool = False

    def qparams(self, weight: Tensor, where: str = "") -> QParams:
        """Scale and zero point for the values of a weight.

        Raises:
            NonFiniteError: if a weight is NaN or infinite.
        """
        return weight_qparams(weight, self.qtype, self.granularity, method=self.observer, symmetric=self.symmetric,
                              power_of_two=self.power_of_two, where=where)

    def __str__(self) -> str:
        corrected = ", mean rounding error taken off the bias" if self.bias_correction else ""
        affine = "" if self.symmetric else " affine"
        learned = {"observed": "", "passive": ", kept"}.get(self.quantizer, f", trained by {self.quantizer}")
        powers = ", scales powers of two" if self.power_of_two else ""
        return f"{self.qtype} {self.granularity}{affine}, {self.observer}{corrected}{learned}{powers}"


@dataclass(frozen=True)
class Decision:
    """What happens to a node: an integer kernel, or float with a reason."""

    integer: bool
    kernel: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Rejection:
    """A node that stays in float, and why."""

    name: str
    path: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or self.name} ({self.op}): {self.reason}"


@dataclass(frozen=True)
class Coverage:
    """Multiply-accumulates for one sample and bytes of weights, in all and in integers."""

    macs: int
    integer_macs: int
    weight_bytes: int
    integer_weight_bytes: int

    @property
    def mac_share(self) -> float:
        """Share of multiply-accumulates that run in integers (1.0 for a model without any)."""
        return self.integer_macs / self.macs if self.macs else 1.0

    @property
    def weight_share(self) -> float:
        """Share of the weights' bytes that are stored as integers (1.0 for a model without any)."""
        return self.integer_weight_bytes / self.weight_bytes if self.weight_bytes else 1.0


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that was decided before data is read.

    Args:
        target: the runtime.
        graph: the graph that it is a plan of.
        decisions: node name to decision.
        edges: edge name to the spec of its codes; edges that only float operations touch are absent.
        weights: parameter name to spec.
        rejections: every node that stays in float.
        coverage: how much runs in integers.
        notes: what capture, passes and planner have to tell.
        recipe: the wish that it answers.
        hinted: nodes that are treated as their layers say themselves.
    """

    target: Target
    graph: Graph
    decisions: Mapping[str, Decision]
    edges: Mapping[str, QSpec]
    weights: Mapping[str, WeightSpec]
    rejections: tuple[Rejection, ...]
    coverage: Coverage
    notes: tuple[tuple[str, str], ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    hinted: Mapping[str, Hint] = field(default_factory=dict)

    def is_table(self, node: Node) -> bool:
        """Whether a float node looks up rows of a table that is kept as codes."""
        return node.op == "embedding" and bool(self.decisions[node.name].kernel)

    @property
    def regions(self) -> tuple[tuple[str, ...], ...]:
        """Connected groups of integer nodes, each in the order of execution."""
        group: dict[str, int] = {}
        members: dict[int, list[str]] = {}
        for i, node in enumerate(self.graph):
            if not self.decisions[node.name].integer:
                continue
            found = {group[e] for e in node.inputs if e in group}
            home = min(found, default=i)
            members.setdefault(home, []).append(node.name)
            group[node.name] = home
            for other in found - {home}:
                members[home].extend(members.pop(other))
                group.update((name, home) for name in members[home])
        order = {n.name: i for i, n in enumerate(self.graph)}
        return tuple(tuple(sorted(m, key=order.__getitem__)) for m in members.values())

    def __str__(self) -> str:
        c = self.coverage
        lines = [
            f"Plan for target '{self.target.name}' (version {self.target.version})",
            f"  integers: {_part(c.mac_share, c.macs, 'multiply-accumulates')}, "
            f"{_part(c.weight_share, c.weight_bytes, 'weight bytes')}, {len(self.regions)} region(s)",
            *(["  not counted: what could not be captured"] if any(n.op == "opaque" for n in self.graph) else []),
            "  edges and kernels:",
        ]
        for node in self.graph:
            decision, spec = self.decisions[node.name], self.edges.get(node.name)
            how = decision.kernel or ("codes moved or looked up" if decision.integer else "float")
            lines.append(f"    {node.name} [{node.op}] {how}; {spec if spec is not None else 'no codes'}")
            if "weight" in node.params and node.params["weight"] in self.weights:
                lines.append(f"      weight {node.params['weight']}: {self.weights[node.params['weight']]}")
        lines.append(f"  in float ({len(self.rejections)}):")
        lines += [f"    {r}" for r in self.rejections] or ["    nothing"]
        if self.notes:
            lines.append("  notes:")
            lines += [f"    {p + ': ' if p else ''}{text}" for p, text in self.notes]
        return "\n".join(lines)


def _part(share: float, whole: int, what: str) -> str:
    """A share of what there is, never rounded up to 100 %."""
    return f"{math.floor(share * 1000) / 10:.1f}% of {whole:,} {what}" if whole else f"no {what}"
