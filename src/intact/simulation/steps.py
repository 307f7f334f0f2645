"""Outputs whose step is finer than their kernel can have it: raised, and noted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from intact.arithmetic import Arithmetic, Requantize, accumulator_bounds
from intact.arithmetic.limits import largest_ratio
from intact.graph import Node
from intact.kernels import operand_scale
from intact.observers import next_power_of_two
from intact.planning import Plan
from intact.types import Free, Joined, QParams, QTensor, Shared

__all__ = ["with_coarse_steps"]

_ABOVE = 1 + 1e-5  # rounding to float32 must not fall below


def with_coarse_steps(
    plan: Plan, qparams: Mapping[str, QParams], weights: Mapping[str, QTensor], notes: list[tuple[str, str]]
) -> dict[str, QParams]:
    """Parameters of which none asks for a multiplier that its kernel does not have.

    Such a step comes of a range that is next to nothing beside the operands': of differences of equal numbers, dead
    channels, inputs that were zero in calibration. Edges that share parameters still do after.

    Args:
        plan: the decisions.
        qparams: parameters of every edge but the accumulators; not changed.
        weights: quantized weights.
        notes: what was raised is added.
    """
    known = dict(qparams)
    roots = {name: _root(plan, known, name) for name in plan.edges if name in known}
    for _ in range(len(plan.edges)):  # a coarser operand may ask for a coarser result
        raised = False
        for node in plan.graph:
            if not plan.decisions[node.name].integer or not isinstance(plan.edges[node.name], (Free, Joined)):
                continue
            finest = _finest(plan, node, known, weights)
            if float(known[node.name].scale) >= finest or _clamped_below(node, known[node.name], finest):
                continue
            raised, scale = True, torch.tensor(finest * _ABOVE, dtype=torch.float32)
            scale = next_power_of_two(scale) if _powers(plan, node.name) else scale
            notes.append((node.path or node.name, f"step of the output raised from {float(known[node.name].scale):.3g} "
                                                  f"to {float(scale):.3g}, the finest that its kernel has"))
            root = roots[node.name]
            known.update({k: replace(q, scale=scale) for k, q in known.items() if roots.get(k) == root})
        if not raised:
            break
    return known


def _clamped_below(node: Node, q: QParams, finest: float) -> bool:
    """Whether the model itself clamps to so little that codes would be lost: the kernel refuses that, by name."""
    low, high = node.attrs.get("activation") or (-math.inf, math.inf)
    return bool(high - low < finest * (q.qtype.qmax - q.qtype.qmin))


def _root(plan: Plan, known: Mapping[str, QParams], name: str) -> str:
    """The edge whose parameters an edge has."""
    spec = plan.edges[name]
    if isinstance(spec, Shared):
        return _root(plan, known, spec.source)
    if isinstance(spec, Joined) and spec.group != name and known[name].same_as(known[spec.group]):
        return _root(plan, known, spec.group)
    return name


def _powers(plan: Plan, name: str) -> bool:
    spec = plan.edges[name]
    return (spec.own if isinstance(spec, Joined) else spec).power_of_two  # type: ignore[union-attr]


def _finest(plan: Plan, node: Node, known: Mapping[str, QParams], weights: Mapping[str, QTensor]) -> float:
    """The smallest step that the node's output may have."""
    arithmetic, inputs = plan.target.arithmetic, [known[i] for i in node.inputs]
    scales = [float(q.scale) for q in inputs]
    bits = known[node.name].qtype.bits
    if node.op in ("add", "sub"):
        step, bound = max(scales), 2.0**31
    elif node.op in ("mul", "matmul"):
        step, bound = scales[0] * scales[1], 2.0**31
        if node.op == "mul":
            bound = math.prod(_reach(q) for q in inputs)
    elif node.op in ("mean", "avg_pool"):
        step, bound = _averaged(plan, node, inputs[0])
    elif "weight" in node.params:
        step, bound = _weighted(node, inputs[0], weights[node.params["weight"]], arithmetic)
    else:
        return 0.0
    most = largest_ratio(node.op, arithmetic, bits, bound)
    return 0.0 if math.isinf(most) else step / most


def _reach(q: QParams) -> float:
    return float(max(q.qtype.qmax - int(q.zero_point), int(q.zero_point) - q.qtype.qmin))


def _averaged(plan: Plan, node: Node, q: QParams) -> tuple[float, float]:
    shape = plan.graph[node.inputs[0]].shape
    sizes = [shape[a] for a in node.attrs["axes"]] if node.op == "mean" else node.attrs["kernel"]
    count = math.prod(n for n in sizes if isinstance(n, int))
    return float(q.scale) / (count if node.op == "mean" else 1), count * _reach(q)


def _weighted(node: Node, q: QParams, weight: QTensor, arithmetic: Arithmetic) -> tuple[float, float]:
    step: Tensor = operand_scale(node.op, node.attrs, q) * weight.qparams.scale
    if node.op == "layer_norm" or arithmetic.requantize is not Requantize.FIXED_POINT_TWICE:
        return float(step.max()), 2.0**31
    bounds = accumulator_bounds(weight.centred(), int(q.zero_point), q.qtype.qmin, q.qtype.qmax)
    return float(step.max()), 2 * float(bounds.max())  # a bias takes at most as much again
