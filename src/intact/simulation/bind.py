"""From calibrated parameters and float weights to bound kernels: the one place where weights become codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from intact.arithmetic import Arithmetic, accumulator_bounds, quantize_kernel_weight, quantize_weight
from intact.arithmetic.layer_norm import normalized_limit
from intact.arithmetic.limits import smallest_multiplier
from intact.errors import CalibrationError, IntactError
from intact.graph import Graph, Node
from intact.kernels import KERNELS, Binding, Kernel, operand_scale
from intact.observers import next_power_of_two
from intact.planning import Plan
from intact.simulation.steps import with_coarse_steps
from intact.types import INT32, Accumulator, PerChannel, PerTensor, QParams, QTensor

__all__ = ["Bound", "bind"]

_BIAS_LIMIT = 2.0**30  # a bias code stays below it, which leaves as much for the accumulator
_SMALLEST = 2.0**-120  # products of scales stay normal float32 numbers


@dataclass(frozen=True, eq=False)
class Bound:
    """Kernels, parameters of every edge, tables that float nodes look rows up in, and what had to be adjusted."""

    kernels: Mapping[str, Kernel]
    qparams: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    tables: Mapping[str, QTensor]
    notes: tuple[tuple[str, str], ...] = field(default=())


def bind(
    plan: Plan,
    params: Mapping[str, Tensor],
    qparams: Mapping[str, QParams],
    means: Mapping[str, Tensor] | None = None,
    shifts: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, QTensor] | None = None,
    trained: Mapping[str, QParams] | None = None,
    nearest: bool = False,
) -> Bound:
    """Quantize weights and biases and bind every integer kernel.

    Args:
        plan: the decisions.
        params: float parameters by name.
        qparams: parameters of every edge but the accumulators.
        weights: quantized weights, if they are known already.
        shifts: what else is to be taken off the bias, by node.
        means: mean of each channel (axis 1; the last one for linear layers) of the edges that layers read; with
            them the bias takes up the mean error of the rounded weights.
        trained: parameters of weights that training has found, by name.
        nearest: round every weight to the nearest code, as training does.

    Raises:
        CalibrationError: if a bias or a weight cannot be expressed.
    """
    graph, known = plan.graph, {**qparams, **_zero_constants(plan.graph, params, qparams)}
    notes: list[tuple[str, str]] = []
    if weights is None:
        weights = _quantized_weights(plan, params, known, notes, trained or {}, nearest)
    known = with_coarse_steps(plan, known, weights, notes)
    kernels: dict[str, Kernel] = {}
    for node in graph:
        if not plan.decisions[node.name].integer:
            continue
        inputs = tuple(known[i] for i in node.inputs)
        weight = weights[node.params["weight"]] if "weight" in node.params else None
        if isinstance(plan.edges[node.name], Accumulator):
            known[node.name] = _accumulator_params(graph, node, inputs, weight)
        shift = None
        if weight is not None and means and plan.weights[node.params["weight"]].bias_correction:
            shift = _mean_error(node, params[node.params["weight"]].detach(), weight, means.get(node.inputs[0]))
        if shifts and node.name in shifts:
            shift = shifts[node.name] if shift is None else shift + shifts[node.name]
        bias = _bias_codes(node, params, inputs[0], weight, notes, plan.target.arithmetic, shift)
        binding = Binding(node.op, node.attrs, inputs, known[node.name], plan.target.arithmetic, weight, bias,
                          where=node.path or node.name)
        kernels[node.name] = _kernel(binding)
    tables = {n.name: weights[n.params["weight"]] for n in graph if plan.is_table(n)}
    return Bound(kernels, known, weights, tables, tuple(notes))


def _kernel(binding: Binding) -> Kernel:
    """The kernel of a node; what it refuses is refused by the node's name."""
    try:
        return KERNELS[binding.op](binding)
    except IntactError as error:
        if error.where:
            raise
        raise type(error)(error.what, where=f"{binding.where} ({binding.op})", got=error.got, allowed=error.allowed,
                          fix=error.fix) from None


def _zero_constants(
    graph: Graph, params: Mapping[str, Tensor], qparams: Mapping[str, QParams]
) -> dict[str, QParams]:
    """Constants of nothing but zeros on their readers' grid: any scale holds them, but not every one has a kernel."""
    found = {}
    for name, readers in graph.consumers().items():
        node = graph[name]
        if node.op != "constant" or name not in qparams or bool(params[node.params["value"]].any()):
            continue
        scales = [qparams[r.name].scale for r in readers if r.name in qparams]
        if scales:
            found[name] = replace(qparams[name], scale=torch.stack(scales).min())
    return found


def _quantized_weights(
    plan: Plan, params: Mapping[str, Tensor], qparams: Mapping[str, QParams], notes: list[tuple[str, str]],
    trained: Mapping[str, QParams], nearest: bool,
) -> dict[str, QTensor]:
    """One quantized tensor for each storage, whose scales suit every layer that reads it."""
    readers: dict[str, list[Node]] = {}
    for node in plan.graph:
        if plan.is_table(node):
            readers.setdefault(node.params["weight"], [])
        elif plan.decisions[node.name].integer and "weight" in node.params:
            readers.setdefault(node.params["weight"], []).append(node)
    result = {}
    for name, nodes in readers.items():
        spec, weight = plan.weights[name], params[name].detach()
        ends = torch.aminmax(weight) if weight.numel() else None  # eight times as fast as to look at each number
        if ends is not None and not math.isfinite(float(ends.min) + float(ends.max)):
            raise CalibrationError("a weight is not finite", where=name,
                                   got=f"{int((~torch.isfinite(weight)).sum())} values")
        found = trained.get(name) or spec.qparams(weight)
        floor = _scale_floor(nodes, params, qparams, found, plan.target.arithmetic, spec.power_of_two)
        raised = found.scale < floor
        if bool(raised.any()):
            notes.append((name, f"scale of {int(raised.sum())} channel(s) raised so that the bias and the "
                                "multiplier can be expressed"))
            found = replace(found, scale=torch.maximum(found.scale, floor))
        kernels = not nearest and bool(nodes) and all(n.op == "conv" for n in nodes)
        result[name] = quantize_kernel_weight(weight, found) if kernels else quantize_weight(weight, found)
    return result


def _scale_floor(
    nodes: list[Node], params: Mapping[str, Tensor], qparams: Mapping[str, QParams], found: QParams,
    arithmetic: Arithmetic, powers: bool,
) -> Tensor:
    """The smallest weight scale with which bias codes take half an accumulator, and products of scales are normal."""
    floor = torch.zeros_like(found.scale)
    for node in nodes:
        room = arithmetic.accumulator_limit(qparams[node.inputs[0]].qtype.bits) / 2
        limit = _BIAS_LIMIT if node.op == "layer_norm" else min(_BIAS_LIMIT, room)
        sx = operand_scale(node.op, node.attrs, qparams[node.inputs[0]]).to(torch.float64)
        sy = qparams[node.name].scale.to(torch.float64) if node.name in qparams else torch.tensor(1.0)
        need = torch.full(found.scale.shape, _SMALLEST, dtype=torch.float64) * torch.clamp(sy, min=1.0) / sx
        need = need.clamp(min=float(smallest_multiplier(arithmetic) * sy / sx))
        if "bias" in node.params:
            bias = params[node.params["bias"]].detach().to(torch.float64).abs()
            bias = bias if found.scale.ndim else bias.max()
            need = torch.maximum(need, bias / (sx * limit))
        # one part in a million above, so that rounding to float32 cannot fall below
        floor = torch.maximum(floor, (need * (1 + 1e-6)).to(torch.float32))
    floor = floor.clamp(min=torch.finfo(torch.float32).tiny)
    return next_power_of_two(floor) if powers else floor


def _bias_codes(
    node: Node, params: Mapping[str, Tensor], qx: QParams, weight: QTensor | None, notes: list[tuple[str, str]],
    arithmetic: Arithmetic, shift: Tensor | None = None,
) -> Tensor | None:
    """int32 codes of the bias with scale float32(s_x * s_w), half to even in float64."""
    if "bias" not in node.params or weight is None:
        return None
    bias = params[node.params["bias"]].detach()
    if shift is not None:
        bias = (bias.to(torch.float64) - shift).to(torch.float32)
    if not bool(torch.isfinite(bias).all()):
        raise CalibrationError("a bias is not finite", where=node.params["bias"])
    scale = operand_scale(node.op, node.attrs, qx) * weight.qparams.scale
    if not bool(torch.isfinite(scale).all()):
        raise CalibrationError("input scale times weight scale overflows float32", where=node.path or node.name,
                               got=float(scale.max()), fix="leave this layer in float")
    granularity = PerChannel(0) if scale.ndim else PerTensor()
    q = QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), INT32, granularity)
    limit = arithmetic.accumulator_limit(qx.qtype.bits)
    if node.op == "layer_norm":  # no accumulator of products: its sums have 32 bits everywhere
        bounds, limit = weight.codes.to(torch.float64).abs() * normalized_limit(weight.codes.numel()), 2.0**31
    else:
        bounds = accumulator_bounds(weight.centred(), int(qx.zero_point), qx.qtype.qmin, qx.qtype.qmax)
    room = (limit - 1 - bounds).clamp(min=0.0, max=2.0**31 - 1)
    codes = quantize_weight(bias, q).codes.to(torch.float64)
    limited = codes.clamp(min=-room, max=room)
    if not torch.equal(limited, codes):
        notes.append((node.params["bias"], f"{int((limited != codes).sum())} bias code(s) limited to "
                                             f"what {min(32, arithmetic.accumulator_width(qx.qtype.bits))} bits leave"))
    return limited.to(torch.int32)


def _mean_error(node: Node, weight: Tensor, quantized: QTensor, mean: Tensor | None) -> Tensor | None:
    """Mean over the data of ``(w_q - w) * x`` for each output channel (padding left out of account), float64."""
    if mean is None:
        return None
    error = quantized.dequantize().to(torch.float64) - weight.to(torch.float64)
    if node.op == "linear":
        return error @ mean
    groups = node.attrs["groups"]
    per_input = error.flatten(2).sum(2)  # (out, in / groups)
    grouped = per_input.unflatten(0, (groups, -1)) * mean.reshape(groups, 1, -1)
    total: Tensor = grouped.sum(2).flatten()
    return total


def _accumulator_params(graph: Graph, node: Node, inputs: tuple[QParams, ...], weight: QTensor | None) -> QParams:
    """Parameters of an output that is the int32 accumulator."""
    if weight is not None:
        scale = inputs[0].scale * weight.qparams.scale
        granularity = PerChannel(len(node.shape) - 1) if scale.ndim else PerTensor()
    elif node.op == "matmul":
        scale, granularity = inputs[0].scale * inputs[1].scale, PerTensor()
    else:  # mean
        source = graph[node.inputs[0]]
        count = 1
        for axis in node.attrs["axes"]:
            count *= int(source.shape[axis])
        scale, granularity = inputs[0].scale / float(count), PerTensor()
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int32), INT32, granularity)
