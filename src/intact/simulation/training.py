"""The forward pass of training: the graph in floats, every edge and weight on the grid of its codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intact import dist
from intact.errors import TrainingError
from intact.graph import PASSIVE_OPS, FloatModel, Graph, Node
from intact.graph.derive import Expr, evaluate
from intact.graph.float_model import last_uses
from intact.graph.float_ops import run_float
from intact.graph.generic import run_aten
from intact.graph.masks import mask_edges
from intact.planning import Plan
from intact.simulation.batch_norm import Again, BatchNormSite, batch_norm_site, normalise
from intact.simulation.quantizer import EdgeQuantizer
from intact.simulation.ste import fake_quantize
from intact.simulation.weight_quantizer import WeightQuantizer
from intact.types import Accumulator, Fixed, Free, Joined, QParams, Shared
from intact.types.dims import Sizes

__all__ = ["Layout", "TrainingPass"]


class Layout:
    """What does not change from step to step: which quantizer an edge has, which layer a batch norm."""

    def __init__(self, model: FloatModel, plan: Plan) -> None:
        self.graph: Graph = model.graph
        self.model = model
        self.dying = last_uses(model.graph)
        self.integer = {n.name: plan.decisions[n.name].integer for n in model.graph}
        self.sites: dict[str, BatchNormSite] = {}
        #: attributes without an activation that the quantizer of the output clamps
        self.attrs: dict[str, Mapping[str, Any]] = {}
        #: edges whose values are on a grid as soon as they are made
        self.rounded: set[str] = set()
        for node in model.graph:
            site = batch_norm_site(model, node) if "weight" in node.params else None
            if site is not None:
                self.sites[node.name] = site
            spec = plan.edges.get(node.name)
            made = self.integer[node.name] and spec is not None
            if made:
                self.rounded.add(node.name)
            clamps = made and isinstance(spec, (Free, Joined))
            self.attrs[node.name] = {k: v for k, v in node.attrs.items() if not (clamps and k == "activation")}
        users = model.graph.consumers()
        #: only where one operation reads the edge: of several, only some may have read what the dropout left
        self.dropouts = {e: how for e, how in model.dropouts.items() if len(users.get(e, ())) == 1}
        self.moved = {e for e, s in plan.edges.items() if isinstance(s, (Shared, Accumulator))}
        #: computed, not moved, and put on the grid of another edge
        self.borrowed = {n.name: _lender(n.name, plan) for n in model.graph
                         if n.name in self.moved and isinstance(plan.edges[n.name], Shared) and n.op not in PASSIVE_OPS}
        self.masks = mask_edges(model.graph)
        self.fixed = {e: s.qparams for e, s in plan.edges.items() if isinstance(s, Fixed)}
        self.weights = {
            n.name: n.params["weight"] for n in model.graph
            if (self.integer[n.name] or plan.is_table(n)) and n.params.get("weight") in plan.weights
        }


@dataclass(eq=False)
class TrainingPass:
    """One forward pass.

    Args:
        layout: of the model.
        sources: the user's parameters and buffers, by name.
        edge: quantizer of an edge.
        weights: quantizers by parameter name.
        sizes: what the symbols of dynamic shapes are.
        observe: ranges follow this batch.
        quantize: values are put on their grids.
        batch_statistics: batch norms use this batch, and update their running statistics.
        drop: dropouts drop.
        momentum: of those, from the batch norm's own.
        tap: sees the value of every edge.
    """

    layout: Layout
    sources: Mapping[str, Tensor]
    edge: Callable[[str], EdgeQuantizer]
    weights: Mapping[str, WeightQuantizer]
    sizes: Sizes
    observe: bool
    quantize: bool
    batch_statistics: bool
    drop: bool
    momentum: Callable[[float | None], float]
    tap: Callable[[str, Tensor], None] | None = None

    def __post_init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.on_grid: dict[str, Tensor] = {}
        self.rounded_weights: dict[str, Tensor] = {}
        self.params: dict[str, Tensor] = {}
        #: of the batch norm that has just run
        self.again: Again | None = None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Value of every output edge."""
        layout, outputs = self.layout, set(self.layout.graph.outputs)
        for node in layout.graph:
            name = node.name
            if node.op == "input":
                self.values[name] = inputs[name]
            elif layout.integer[name]:
                self.values[name] = self._integer(node)
            else:
                operands = [self.values[i] for i in node.inputs]
                self.values[name] = self._float(node, operands, quantize=node.op == "embedding")
            if self.drop and name in layout.dropouts:
                self.values[name] = _dropped(self.values[name], *layout.dropouts[name])
            if self.tap is not None:
                self.tap(name, self.values[name])
            for dead in layout.dying.get(name, ()):
                self.values.pop(dead, None)
                self.on_grid.pop(dead, None)
        return {name: self.values[name] for name in outputs}

    def _operand(self, name: str) -> Tensor:
        """The value of an edge as an integer operation reads it."""
        if name in self.layout.rounded or name in self.layout.masks:
            return self.values[name]
        if name not in self.on_grid:
            self.on_grid[name] = self._round(name, self.values[name])
        return self.on_grid[name]

    def _round(self, name: str, value: Tensor) -> Tensor:
        rounded: Tensor = self.edge(name)(value, self.observe, self.quantize)
        return rounded

    def _integer(self, node: Node) -> Tensor:
        self._no_batch_norm()
        value = self._float(node, [self._operand(i) for i in node.inputs], quantize=True)
        name = self.layout.borrowed.get(node.name, node.name)
        if name in self.layout.moved:
            return value
        if name in self.layout.fixed:
            return _on_fixed_grid(value, self.layout.fixed[name]) if self.quantize else value
        if name != node.name:
            grid: Tensor = self.edge(name)(value, False, self.quantize)
            return grid
        again: Again | None = self.again
        if again is None:
            return self._round(node.name, value)
        with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
            return self._round(node.name, value)

    def _no_batch_norm(self) -> None:
        self.again = None

    def _float(self, node: Node, xs: list[Tensor], quantize: bool) -> Tensor:
        site = self.layout.sites.get(node.name)
        if site is not None:
            return self._batch_norm(node, site, xs, quantize)
        if node.op == "opaque":
            return self.layout.model.opaque[node.attrs["module"]].output(xs, self.sizes, node.attrs["index"])
        params = {role: self._param(name) for role, name in node.params.items()}
        if quantize and self.quantize and node.name in self.layout.weights:
            params["weight"] = self._rounded_weight(self.layout.weights[node.name], params["weight"], None)
        if node.op == "aten":
            return run_aten(xs, params, node.attrs, self.sizes)
        return run_float(node.op, xs, params, self.layout.attrs[node.name], self.sizes)

    def _rounded_weight(self, name: str, weight: Tensor, factor: Tensor | None) -> Tensor:
        if name not in self.rounded_weights:
            self.rounded_weights[name] = self.weights[name](weight, factor)
        return self.rounded_weights[name]

    def _batch_norm(self, node: Node, site: BatchNormSite, xs: list[Tensor], quantize: bool) -> Tensor:
        """The layer with its weight such that the folded one is on its grid, then the batch norm."""
        norm = {role: self._source(expr) for role, expr in site.roles.items()}
        y = xs[0]
        if site.weight is not None:
            weight = self._source(site.weight)
            if quantize and self.quantize and node.name in self.layout.weights:
                name = self.layout.weights[node.name]
                weight = self._rounded_weight(name, weight, folded_factor(norm, site.eps))
            params = {"weight": weight}
            if site.bias is not None:
                params["bias"] = self._source(site.bias)
            plain = {k: v for k, v in node.attrs.items() if k != "activation"}
            y = run_float(node.op, xs, params, plain, self.sizes)
        if self.batch_statistics and y.numel() == y.shape[1] and dist.world_size() == 1:
            raise TrainingError("a batch norm needs more than one value of each channel", where=site.path,
                                got=tuple(y.shape), fix="leave such batches out (drop_last=True), or freeze the batch "
                                "norms: qfloat.freeze_batch_norm()")
        y, self.again = normalise(y, norm, site.eps, self.momentum(site.momentum), self.batch_statistics)
        bounds = self.layout.attrs[node.name].get("activation")
        return y if bounds is None else y.clamp(bounds[0], bounds[1])

    def _source(self, expr: Expr) -> Tensor:
        """The tensor itself where it is the user's own, so that running statistics can be written."""
        return self.sources[expr] if isinstance(expr, str) else evaluate(expr, self.sources)

    def _param(self, name: str) -> Tensor:
        if name not in self.params:
            self.params[name] = self._source(self.layout.model.expr(name))
        return self.params[name]


def _lender(edge: str, plan: Plan) -> str:
    """The edge whose parameters a shared one has."""
    while isinstance(spec := plan.edges.get(edge), Shared):
        edge = spec.source
    return edge


def _dropped(x: Tensor, p: float, whole_channels: bool) -> Tensor:
    """Values beyond the grid, as after any dropout; evaluation knows none of it."""
    return (F.dropout1d if x.ndim == 3 else F.dropout2d)(x, p) if whole_channels else F.dropout(x, p)


def folded_factor(norm: Mapping[str, Tensor], eps: float) -> Tensor:
    """What folding multiplies each channel by; 1 where that would be 0, so that a dead channel can come alive."""
    factor = torch.rsqrt(norm["var"] + eps)
    if "weight" in norm:
        factor = factor * norm["weight"].detach()
    return torch.where(factor == 0, torch.ones_like(factor), factor)


def _on_fixed_grid(value: Tensor, q: QParams) -> Tensor:
    zero = float(q.zero_point)
    return fake_quantize(value, q.scale.to(value.device), q.qtype.qmin - zero, q.qtype.qmax - zero)
