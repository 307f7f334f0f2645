"""The spec of every edge: whose parameters its codes have, and within which range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from intact.arithmetic import Requantize
from intact.graph import PASSIVE_OPS, Graph, Node
from intact.graph.attention import attention_softmaxes
from intact.graph.masks import MASK_CODES, mask_edges
from intact.planning.plan import Decision
from intact.planning.recipe import How, Quant, Recipe
from intact.targets import Output, Target
from intact.types import Accumulator, Fixed, Free, Joined, QSpec, Shared

__all__ = ["bits_of", "edge_specs"]


def edge_specs(
    graph: Graph, decisions: Mapping[str, Decision], hows: Mapping[str, How], target: Target, recipe: Recipe
) -> dict[str, QSpec]:
    """Edge name to spec, for every edge whose codes something makes or reads."""
    users, outputs = graph.consumers(), set(graph.outputs)
    settings = _with_observers(graph, _settings(graph, decisions, hows, users), users)
    specs: dict[str, QSpec] = {}
    masks = mask_edges(graph)
    for node in graph:
        integer = decisions[node.name].integer
        read = any(decisions[u.name].integer for u in users[node.name])
        if not target.float_operations and node.name in outputs:  # an input or a constant: what leaves has codes
            read = True
        if not integer:
            if read and node.name in masks:
                specs[node.name] = Fixed(MASK_CODES)
            elif read:
                specs[node.name] = _free(node, settings[node.name], target)
            continue
        rule = target.rules[node.op]
        if rule.output is Output.SHARED:
            specs[node.name] = Shared(node.inputs[0])
        elif (prescribed := target.prescribed(node.op, settings[node.name].activation_bits)) is not None:
            specs[node.name] = Fixed(prescribed)
        elif target.float_operations and _keeps_accumulator(
                graph, node, rule.output, read, node.name in outputs, recipe):
            specs[node.name] = Accumulator()
        else:
            specs[node.name] = _free(node, settings[node.name], target)
    return _joined(graph, specs, users, outputs)


def bits_of(edges: Mapping[str, QSpec], name: str) -> int:
    """Bits of an edge's codes; 32 of an accumulator."""
    spec = edges[name]
    if isinstance(spec, Shared):
        return bits_of(edges, spec.source)
    if isinstance(spec, Joined):
        return spec.own.qtype.bits
    if isinstance(spec, Fixed):
        return spec.qparams.qtype.bits
    return spec.qtype.bits if isinstance(spec, Free) else 32


def _keeps_accumulator(graph: Graph, node: Node, output: Output, read: bool, is_output: bool, recipe: Recipe) -> bool:
    """The accumulator is kept where no integer operation reads it and no activation is folded into it."""
    if output is not Output.FREE_OR_ACCUMULATOR or read or "activation" in node.attrs:
        return False
    if node.op == "mean" and any(not isinstance(graph[node.inputs[0]].shape[a], int) for a in node.attrs["axes"]):
        return False  # its scale is that of the sum divided by a count that is not known
    return not (is_output and recipe.quantized_outputs)


def _settings(
    graph: Graph, decisions: Mapping[str, Decision], hows: Mapping[str, How], users: Mapping[str, list[Node]]
) -> dict[str, Quant]:
    """How each edge is encoded: as its integer readers want it; of several the one with more bits."""
    found: dict[str, Quant] = {}
    for node in reversed(graph.nodes):
        wishes = []
        for user in users[node.name]:
            how = hows[user.name]
            if decisions[user.name].integer and isinstance(how, Quant):
                moves = user.op in PASSIVE_OPS
                wishes.append(found[user.name] if moves and user.name in found else how)
        own = hows[node.name]
        default = own if isinstance(own, Quant) else Quant()
        if isinstance(own, Quant) and own.output_bits is not None and decisions[node.name].integer:
            found[node.name] = replace(own, activation_bits=own.output_bits)
            continue
        found[node.name] = max(wishes, key=lambda q: q.activation_bits) if wishes else default
    return found


def _with_observers(graph: Graph, settings: Mapping[str, Quant], users: Mapping[str, list[Node]]) -> dict[str, Quant]:
    """The same, with an observer where the choice was left to the plan.

    ``mse``; but what linear layers and products read in a model with attention keeps its extremes at 8 bits and more:
    they are few, and the model hangs on them (the first token's channels, a hundred times the others).
    """
    attends = bool(attention_softmaxes(graph))

    def multiplied(edge: str) -> bool:
        return any(u.op in ("linear", "matmul") or (u.op in PASSIVE_OPS | {"mul_scalar"} and multiplied(u.name))
                   for u in users[edge])

    return {
        name: how if how.activation_observer != "auto" else replace(
            how, activation_observer="minmax" if attends and how.activation_bits >= 8 and multiplied(name) else "mse")
        for name, how in settings.items()
    }


def _free(node: Node, how: Quant, target: Target) -> Free:
    bounds = node.attrs.get("activation")
    clip = None
    if bounds is not None:
        clip = (float(bounds[0]), float(bounds[1]))
    elif node.op in ("relu", "clamp", "sigmoid", "hardsigmoid"):
        low, high = {"relu": (0.0, math.inf), "clamp": (node.attrs.get("low", 0.0), node.attrs.get("high", 0.0))}.get(
            node.op, (0.0, 1.0)
        )
        clip = (low, high) if low <= 0.0 <= high and low < high else None
    qtype = target.activation_type(how.activation_bits)
    symmetric = (
        how.activation_symmetric or how.activation_quantizer in ("tqt", "pact")  # their zero point is fixed
        or target.symmetric_activations or how.activation_bits >= target.symmetric_from
    )
    return Free(qtype, symmetric=symmetric, observer=how.activation_observer, clip=clip,
                quantizer=how.activation_quantizer,
                power_of_two=target.arithmetic.requantize is Requantize.SHIFT)


def _joined(
    graph: Graph, specs: dict[str, QSpec], users: Mapping[str, list[Node]], outputs: set[str]
) -> dict[str, QSpec]:
    """Operands of a concatenation that nothing else reads may take its parameters."""
    result = dict(specs)
    for node in graph:
        group = specs.get(node.name)
        if node.op != "concat" or not isinstance(group, Free):
            continue
        for name in dict.fromkeys(node.inputs):
            own = result.get(name)
            alone = len({u.name for u in users[name]}) == 1 and name not in outputs
            if isinstance(own, Free) and alone and own.qtype == group.qtype and graph[name].op != "constant":
                result[name] = Joined(node.name, own)
    return result
