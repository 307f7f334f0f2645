"""What sums of products can reach, from weights and encodings alone: proven before any data is read.

The weights of the plan's model are what is looked at. Training moves them; then the integer model is checked again when
it is bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intact.arithmetic import (
    PRODUCT_LIMIT,
    PoolRule,
    accumulator_bounds,
    pairs_saturate,
    quantize_kernel_weight,
    quantize_weight,
)
from intact.errors import PlanError
from intact.graph import FloatModel, Node
from intact.graph.free import limits_of
from intact.planning.plan import Decision, WeightSpec
from intact.planning.recipe import How, Quant
from intact.targets import Target
from intact.types import Fixed, Free, Joined, QSpec, QType, Shared
from intact.types.dims import resolve_dim

__all__ = ["check_accumulators", "check_products", "without_saturation"]

_SHOWN = 3  # layers in a message


@dataclass(frozen=True)
class _Layer:
    """A node that sums products, and the encodings of its operands."""

    node: Node
    operands: tuple[tuple[QType, tuple[int, ...]], ...]  # encoding and the zero points that bound all it may have

    @property
    def where(self) -> str:
        return self.node.path or self.node.name

    @property
    def bits(self) -> int:
        """Bits of the widest operand."""
        return max(qtype.bits for qtype, _ in self.operands)

    def reach(self, i: int = 0) -> int:
        """Largest magnitude of a code of an operand, counted from any zero point that it may have."""
        qtype, zeros = self.operands[i]
        return max(max(qtype.qmax - z, z - qtype.qmin) for z in zeros)


def _zero_points(edges: Mapping[str, QSpec], name: str) -> tuple[QType, tuple[int, ...]]:
    """Encoding of an edge, and the extremes of its zero point: bounds are convex in it, so that no other is worse."""
    spec = edges[name]
    while isinstance(spec, Shared):
        spec = edges[spec.source]
    if isinstance(spec, Fixed):
        return spec.qparams.qtype, (int(spec.qparams.zero_point),)
    if isinstance(spec, Joined):
        own, group = spec.own, edges[spec.group]
        if own.clip is None and isinstance(group, Free):
            return own.qtype, tuple({*_own_zeros(own), *_own_zeros(group)})
        spec = own
    assert isinstance(spec, Free)
    return spec.qtype, _own_zeros(spec)


def _own_zeros(spec: Free) -> tuple[int, ...]:
    q = spec.qtype
    if spec.symmetric:
        return (0,) if q.signed else (q.qmin, (q.qmax + 1) // 2)
    if spec.clip is not None and spec.clip[0] >= 0.0:
        return (q.qmin,)
    return (q.qmin, q.qmax)


def _layers(
    model: FloatModel, decisions: Mapping[str, Decision], edges: Mapping[str, QSpec], target: Target
) -> Iterator[_Layer]:
    summing = {"conv", "linear", "matmul", "mean"}
    if target.arithmetic.average_pool is PoolRule.SUM:
        summing.add("avg_pool")
    yield from _nodes(model, decisions, edges, summing)


def _nodes(
    model: FloatModel, decisions: Mapping[str, Decision], edges: Mapping[str, QSpec], ops: Set[str]
) -> Iterator[_Layer]:
    for node in model.graph:
        if decisions[node.name].integer and node.op in ops:
            yield _Layer(node, tuple(_zero_points(edges, i) for i in node.inputs))


def _codes(model: FloatModel, name: str, spec: WeightSpec, op: str) -> list[Tensor]:
    """Weight codes, counted from their zero point, as calibration and as training round them."""
    weight = model.params[name].detach()
    qparams = spec.qparams(weight, name)
    nearest = quantize_weight(weight, qparams).centred()
    return [nearest, quantize_kernel_weight(weight, qparams).centred()] if op == "conv" else [nearest]


def _finite(model: FloatModel, name: str) -> bool:
    return bool(torch.isfinite(model.params[name]).all())  # if not, binding says so


def _bound(layer: _Layer, model: FloatModel, weights: Mapping[str, WeightSpec], limit: float) -> float:
    """Largest magnitude of any partial sum; from the codes' range alone where that is below the limit."""
    node = layer.node
    if node.op in ("conv", "linear"):
        name = node.params["weight"]
        spec, count = weights[name], model.params[name][0].numel()
        q = spec.qtype
        trivial = float(count) * layer.reach() * (max(q.qmax, -q.qmin) if spec.symmetric else q.qmax - q.qmin)
        if trivial < limit or not _finite(model, name):
            return 0.0
        qtype, zeros = layer.operands[0]
        found = [float(accumulator_bounds(codes, z, qtype.qmin, qtype.qmax).max())
                 for codes in _codes(model, name, spec, node.op) for z in zeros]
        return max(found)
    shape = model.graph[node.inputs[0]].shape
    axes = {"matmul": [-1], "mean": node.attrs.get("axes", [])}.get(node.op)
    sizes = node.attrs["kernel"] if axes is None else [shape[a] for a in axes]
    # a free axis at its smallest: how long it may become is limited when the model is converted
    lowest = {name: low for name, (low, _) in limits_of(model.graph).items()}
    length = float(math.prod(resolve_dim(n, lowest) for n in sizes))
    return length * math.prod(layer.reach(i) for i in range(len(node.inputs)))


def check_accumulators(
    model: FloatModel, decisions: Mapping[str, Decision], edges: Mapping[str, QSpec],
    weights: Mapping[str, WeightSpec], target: Target,
) -> None:
    """Prove that no partial sum of any layer, in any order, overflows the target's accumulator.

    What is summed is ``w * (x - zero_point)``; the bias does not count, because it is limited to the room that is left.

    Raises:
        PlanError: names the layers, what they can reach, and the widths that fit.
    """
    rules, found = target.arithmetic, []
    for layer in _layers(model, decisions, edges, target):
        limit = rules.accumulator_limit(layer.bits)
        bound = _bound(layer, model, weights, limit)
        if bound >= limit:
            found.append((layer, bound))
    if not found:
        return
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    bits = found[0][0].bits
    limit = rules.accumulator_limit(bits)
    way_out = _fitting(found[0][0], model, weights, target, limit)
    raise PlanError(
        f"the accumulator of {rules.accumulator_width(bits)} bits can overflow",
        where=", ".join(layer.where for layer, _ in found[:_SHOWN]) + more,
        got=", ".join(f"{bound:,.0f}" for _, bound in found[:_SHOWN]) + more, allowed=f"below {limit:,.0f}",
        fix=way_out)


def check_products(
    model: FloatModel, decisions: Mapping[str, Decision], edges: Mapping[str, QSpec], target: Target
) -> None:
    """Prove that every product of two activations can be requantized in 64 bits, where that is done in integers.

    Two codes of 16 bits, each less a zero point at the end of its range, make a product of 32 bits without sign; times
    a multiplier of 31 bits it passes 63.

    Raises:
        PlanError: names the layers, what they can reach, and what fits.
    """
    if not target.arithmetic.integer_only:
        return
    layers = [(layer, layer.reach(0) * layer.reach(1)) for layer in _nodes(model, decisions, edges, {"mul"})]
    found = [(layer, bound) for layer, bound in layers if bound >= PRODUCT_LIMIT]
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise PlanError(
            "a product of two activations can pass 32 bits",
            where=", ".join(layer.where for layer, _ in found[:_SHOWN]) + more,
            got=", ".join(f"{bound:,}" for _, bound in found[:_SHOWN]) + more, allowed=f"below {PRODUCT_LIMIT:,}",
            fix="make one operand symmetric (activation_symmetric=True in the rule of its readers, or symmetric_from = "
                "16 in the target), or give it 15 bits")


def _fitting(
    layer: _Layer, model: FloatModel, weights: Mapping[str, WeightSpec], target: Target, limit: float
) -> str:
    """The widest weights that fit, or else what remains."""
    name = layer.node.params.get("weight")
    if name is not None:
        spec = weights[name]
        for bits in sorted(target.weight_bits, reverse=True):
            narrower = replace(spec, qtype=replace(spec.qtype, bits=bits))
            if bits < spec.qtype.bits and _bound(layer, model, {**weights, name: narrower}, limit) < limit:
                return f"give it weights of {bits} bits: Rule(path({layer.where!r}), Quant(weight_bits={bits}, ...))"
    rest = "leave it in float" if target.float_operations else "split it, or choose a target with a wider accumulator"
    return f"give it activations of fewer bits, {rest}"


def without_saturation(
    model: FloatModel, decisions: Mapping[str, Decision], edges: Mapping[str, QSpec],
    weights: Mapping[str, WeightSpec], hows: Mapping[str, How], target: Target,
) -> tuple[dict[str, WeightSpec], tuple[tuple[str, str], ...]]:
    """Specs with fewer bits for the weights whose products could saturate in pairs, and notes that say so.

    Products of two activations are not concerned where both are unsigned: the instruction takes one signed operand, so
    that kernels widen such codes to 16 bits first, and add in 32.

    Raises:
        PlanError: for a weight at risk whose scales are given, so that it cannot have fewer bits; for a product of
            activations with signed codes that could saturate.
    """
    chosen, notes = dict(weights), []
    if target.arithmetic.pair_bits != 16:
        return chosen, ()
    readers: dict[str, list[_Layer]] = {}
    for layer in _layers(model, decisions, edges, target):
        if layer.node.op == "matmul":
            _check_product(layer)
        if "weight" in layer.node.params:
            readers.setdefault(layer.node.params["weight"], []).append(layer)
    for name, layers in readers.items():
        spec, where = chosen[name], layers[0].where
        at_risk = _channels_at_risk(model, name, spec, layers)
        if not at_risk:
            continue
        if spec.quantizer == "passive":
            raise PlanError("two products can saturate their sum of 16 bits, and the scales of this weight are given",
                            where=where, got=f"{spec.qtype}, {at_risk} channels", fix="train it with 7 bits")
        found = next(s for s in _narrower(spec, hows[layers[0].node.name])
                     if s.qtype.bits == 2 or not _channels_at_risk(model, name, s, layers))
        chosen[name] = found
        reach = max(layer.operands[0][0].qmax - layer.operands[0][0].qmin for layer in layers)
        notes.append((where, f"weights of {found.qtype.bits} bits instead of {spec.qtype.bits}: in {at_risk} of "
                             f"{len(model.params[name])} channels two products with codes up to {reach} can exceed 16 "
                             "bits, where this target saturates"))
    return chosen, tuple(notes)


def _check_product(layer: _Layer) -> None:
    (a, _), (b, _) = layer.operands
    if b.signed and 2 * (a.qmax - a.qmin) * -b.qmin >= 2**15:
        raise PlanError("two products of activations can saturate their sum of 16 bits", where=layer.where,
                        got=f"{a} and {b}", fix="give one of them fewer bits, or leave this product in float")


def _narrower(spec: WeightSpec, how: How) -> Iterator[WeightSpec]:
    """With fewer bits, one by one; the observer is that of the new width where the recipe left it open."""
    open_ = isinstance(how, Quant) and how.weight_observer == "auto"
    for bits in range(spec.qtype.bits - 1, 1, -1):
        yield replace(spec, qtype=replace(spec.qtype, bits=bits),
                      observer="mse" if open_ and bits < 8 else spec.observer)


def _channels_at_risk(model: FloatModel, name: str, spec: WeightSpec, layers: list[_Layer]) -> int:
    """Channels of which two products could saturate, whatever the data."""
    q = spec.qtype
    count = 0
    for layer in layers:
        operand = layer.operands[0][0]
        reach = operand.qmax - operand.qmin
        if 2 * max(q.qmax, -q.qmin) * reach < 2**15 or not _finite(model, name):
            continue
        for codes in _codes(model, name, spec, layer.node.op):
            count = max(count, int(pairs_saturate(codes, reach).sum()))
    return count
