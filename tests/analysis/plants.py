"""Faults planted into an integer model: each returns the model with one fault and leaves the original as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

import torch

from intact.engine import QModel
from intact.kernels import MOVES, Binding
from intact.types import QParams, QTensor

Plant = Callable[[QModel, str, Random], QModel]


def with_bindings(q: QModel, changed: Mapping[str, Binding], qparams: Mapping[str, QParams] | None = None) -> QModel:
    return replace(q, bindings={**q.bindings, **changed}, qparams={**q.qparams, **(qparams or {})})


def garbage_weights(q: QModel, name: str, rng: Random) -> QModel:
    """The codes of one layer in another order."""
    b = q.bindings[name]
    assert b.weight is not None
    order = torch.randperm(b.weight.codes.numel(), generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
    codes = b.weight.codes.flatten()[order].reshape(b.weight.codes.shape)
    return with_bindings(q, {name: replace(b, weight=QTensor(codes, b.weight.qparams))})


def outlier_scale(q: QModel, name: str, rng: Random) -> QModel:
    """Weights as coarse as one outlier 30 times their size makes them."""
    b = q.bindings[name]
    assert b.weight is not None
    coarse = torch.floor(b.weight.codes.double() / 30 + 0.5)
    return with_bindings(q, {name: replace(b, weight=QTensor((coarse * 30).clamp(-127, 127).to(torch.int8),
                                                             b.weight.qparams))})


def zeroed_bias(q: QModel, name: str, rng: Random) -> QModel:
    """One layer's bias lost."""
    b = q.bindings[name]
    assert b.bias is not None
    return with_bindings(q, {name: replace(b, bias=torch.zeros_like(b.bias))})


def wrong_output_zero(q: QModel, name: str, rng: Random) -> QModel:
    """One kernel writes codes with another zero point than its readers take."""
    b = q.bindings[name]
    return with_bindings(q, {name: replace(b, output=_shifted(b.output, rng))})


def wrong_input_zero(q: QModel, name: str, rng: Random) -> QModel:
    """One kernel reads codes with another zero point than its producer writes."""
    b = q.bindings[name]
    return with_bindings(q, {name: replace(b, inputs=(_shifted(b.inputs[0], rng), *b.inputs[1:]))})


def halved_range(q: QModel, name: str, rng: Random) -> QModel:
    """Half the range for one edge, in its producer and in all that read it or move its codes."""
    old = q.qparams[name]
    new = QParams(old.scale / 2, old.zero_point, old.qtype, old.granularity)
    table = {edge: new if p is old else p for edge, p in q.qparams.items()}
    changed = {}
    for node in q.graph:
        b = q.bindings.get(node.name)
        if b is None or not any(p is old for p in (*b.inputs, b.output)):
            continue
        # a bias has the scale of its input: the same bias has twice the code
        bias = b.bias * 2 if b.bias is not None and b.inputs[0] is old else b.bias
        output = new if b.output is old else b.output
        if b.is_accumulator:  # its scale is the product of its inputs' scales
            halved = sum(p is old for p in b.inputs)
            output = table[node.name] = replace(output, scale=output.scale * 0.5**halved)
        inputs = tuple(new if p is old else p for p in b.inputs)
        changed[node.name] = replace(b, inputs=inputs, output=output, bias=bias)
    return with_bindings(q, changed, table)


def sites(q: QModel, plant: Plant) -> list[str]:
    """Where a fault of this kind can be planted so that exactly one edge is to blame."""
    real = [n for n in q.graph if n.name in q.bindings and n.op not in (*MOVES, "pad")]
    weighted = [n.name for n in real if n.op in ("conv", "linear")]
    if plant in (garbage_weights, outlier_scale, wrong_input_zero):
        return weighted
    if plant is zeroed_bias:
        # a bias that matters: at least a step of the output in most channels
        return [n for n in weighted if (b := q.bindings[n]).bias is not None and bool(
            (b.bias.abs() * b.inputs[0].scale * b.weight.qparams.scale).median() > 0.05)]
    users: dict[int, int] = {}
    for node in real:
        users[id(q.qparams[node.name])] = users.get(id(q.qparams[node.name]), 0) + 1
    free = [n.name for n in real if not q.bindings[n.name].is_accumulator]
    if plant is halved_range:
        # of a concatenation and operands that joined it, all would be halved
        return [n for n in free if users[id(q.qparams[n])] == 1]
    return free


def _shifted(p: QParams, rng: Random) -> QParams:
    shift = rng.choice([30, 40, 50])
    zero = int(p.zero_point)
    moved = zero + shift if zero + shift <= p.qtype.qmax else zero - shift
    return QParams(p.scale, torch.tensor(moved, dtype=torch.int32), p.qtype, p.granularity)
