"""From a graph, a target and a recipe to a plan: a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from intact.arithmetic import Requantize, SoftmaxRule
from intact.arithmetic.layer_norm import GAMMA_BITS
from intact.errors import PlanError
from intact.graph import PASSIVE_OPS, FloatModel, Graph, Hint, Node
from intact.graph.attention import attention_softmaxes, scores
from intact.graph.masks import MASK, mask_edges, masks_as_operands
from intact.planning.hints import hints_by_node, how_of
from intact.planning.macs import macs_of, weights_of
from intact.planning.overflow import check_accumulators, check_products, without_saturation
from intact.planning.plan import Coverage, Decision, Plan, Rejection, WeightSpec
from intact.planning.recipe import Float, How, Quant, Recipe, match_rules
from intact.planning.specs import bits_of, edge_specs
from intact.targets import EXACT_FLOAT, Output, Target, TargetLike, get_target
from intact.types import PerChannel, PerTensor, QSpec, QType

__all__ = ["plan"]

#: what a float node does that looks up rows of codes
_TABLE = "rows of codes"
_OPERAND = "its operand '{}' is float"
_SPLIT = ("; norms and PReLUs of fixed sizes and at most 5 axes are split by intact.planning.lowered(model, target), "
          "which intact.quantize calls")
_SPLITS = frozenset({"layer_norm", "group_norm", "prelu"})
_NUMBERS = ("; a boolean mask can be an input of numbers instead: multiply by 0 and 1 (masked_fill with 0), "
            "add 0 and -30 to scores")
_STRUCTURE = frozenset({"input", "constant"})


def plan(model: FloatModel, target: TargetLike = "onnxruntime", recipe: Recipe | None = None) -> Plan:
    """Decide what runs in integers, with which encodings, and say why the rest does not.

    Reads no data and changes nothing; the same arguments give the same plan.

    Args:
        model: a captured model.
        target: a runtime: its name, a TOML file (``"npu.toml"``), or a value.
        recipe: rules; by default 8-bit weights per channel and 8-bit activations everywhere, or the widest that the
            target has where it has no 8 bits.

    Raises:
        PlanError: if a rule matches nothing, rules contradict each other on a shared weight, or the target
            cannot run what a rule asks for.

    >>> import torch
    >>> from intact.graph import capture
    >>> p = plan(capture(torch.nn.Linear(3, 2), torch.zeros(2, 3)))
    >>> p.coverage.mac_share
    1.0
    """
    if not isinstance(model, FloatModel):
        raise PlanError("plan takes a captured model", got=type(model).__name__,
                        fix="call intact.capture(model, example_inputs) first")
    if recipe is not None and not isinstance(recipe, Recipe):
        raise PlanError("this is not a recipe", got=type(recipe).__name__, fix="write Recipe(rules=(...,))")
    where = get_target(target)
    wish = recipe or _default(where)
    if not where.float_operations and where.arithmetic.softmax is SoftmaxRule.TABLES:
        model = masks_as_operands(model)
    elif masks := mask_edges(model.graph):
        raise PlanError("masks are operands of a softmax, as targets of integers only have them",
                        where=", ".join(sorted(masks)[:3]), got=f"target '{where.name}'", fix="capture the model anew")
    graph = model.graph
    hints = hints_by_node(model)
    wishes = {name: how_of(hint) for name, hint in hints.items()}
    hows = match_rules(wish, graph, model.folded, wishes)
    _check_hows(graph, hows, where)
    hinted = {name: hint for name, hint in hints.items() if hows[name] is wishes[name]}
    reasons = _rejected(model, where, hows, wish)
    tables = _tables(model, hows, where)
    decisions = {
        n.name: Decision(False, _TABLE if n.name in tables else "", reasons[n.name]) if n.name in reasons
        else Decision(n.op not in _STRUCTURE, _kernel_name(n, where))
        for n in graph
    }
    edges = edge_specs(graph, decisions, hows, where, wish)
    decisions = _kernels(graph, decisions, edges, where)
    rejections = tuple(
        Rejection(n.name, n.path, n.op, reasons[n.name]) for n in graph if n.name in reasons and n.op not in _STRUCTURE
    )
    weights = {**{graph[n].params["weight"]: spec for n, spec in tables.items()},
               **_weights(model, decisions, hows, where)}
    weights, narrowed = without_saturation(model, decisions, edges, weights, hows, where)
    check_accumulators(model, decisions, edges, weights, where)
    check_products(model, decisions, edges, where)
    notes = (*model.notes, *_hint_notes(graph, hinted), *_coarser(graph, weights, hows, where), *narrowed,
             *_not_exported(graph, decisions, where))
    return Plan(where, graph, decisions, edges, weights, rejections, _coverage(model, decisions), notes, wish, hinted)


def _default(target: Target) -> Recipe:
    """What holds where the user has no wish: 8 bits, or the widest codes of a target that has none of 8."""
    weights, activations = (8 if 8 in bits else max(bits) for bits in (target.weight_bits, target.activation_bits))
    return Recipe(default=Quant(weight_bits=weights, activation_bits=activations))


def _hint_notes(graph: Graph, hinted: Mapping[str, Hint]) -> dict[tuple[str, str], None]:
    """Which layers are treated as they say themselves."""
    return dict.fromkeys(
        (graph[name].path, f"as the layer says: W{hint.weight_bits}A{hint.activation_bits}, "
                           f"{'trained' if hint.input_range is not None else 'not trained yet'}")
        for name, hint in hinted.items()
    )


def _coarser(
    graph: Graph, weights: Mapping[str, WeightSpec], hows: Mapping[str, How], target: Target
) -> list[tuple[str, str]]:
    """A note on the layers whose weights were to have a scale for each channel, and have one."""
    layers = [] if target.per_channel else [
        n.path or n.name for n in graph if n.op in ("conv", "linear") and n.params["weight"] in weights
        and isinstance(how := hows[n.name], Quant) and isinstance(how.weight_granularity, PerChannel)]
    if not layers:
        return []
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return [("", f"one scale for each weight instead of one per channel, in {', '.join(layers[:3])}{more}: target "
                 f"'{target.name}' has per_channel = false")]


def _not_exported(graph: Graph, decisions: Mapping[str, Decision], target: Target) -> list[tuple[str, str]]:
    """A note for every node that the exporter will refuse: better now than after the data was read."""
    notes = []
    for node in graph:
        name = str(node.attrs.get("target", node.op))
        if target.exported is not None and not decisions[node.name].integer and name not in target.exported:
            what = "a module that was not captured" if node.op == "opaque" else name
            notes.append((node.path or "the model itself",
                          f"{what} runs in float in Python; it has no ONNX form yet: export will refuse it"))
    return list(dict.fromkeys(notes))


def _kernel_name(node: Node, target: Target) -> str:
    return target.rules[node.op].kernel if node.op in target.rules else ""


def _kernels(
    graph: Graph, decisions: Mapping[str, Decision], edges: Mapping[str, QSpec], target: Target
) -> dict[str, Decision]:
    """The same, but exact float sums where codes have more bits than the runtime's kernel takes."""
    def wide(node: Node) -> bool:
        limit = target.rules[node.op].kernel_bits
        return any(limit < bits_of(edges, name) <= 16 for name in (*node.inputs, node.name))

    return {n.name: replace(d, kernel=EXACT_FLOAT) if d.integer and d.kernel and wide(n) else d
            for n in graph for d in (decisions[n.name],)}


def _check_hows(graph: Graph, hows: Mapping[str, How], target: Target) -> None:
    """Refuse what the target cannot run, naming the layer."""
    for node in graph:
        how = hows[node.name]
        if isinstance(how, Float) or node.op not in target.rules:
            continue
        for what, bits, allowed in (("weight", how.weight_bits, target.weight_bits),
                                    ("activation", how.activation_bits, target.activation_bits),
                                    ("output", how.output_bits or how.activation_bits, target.activation_bits)):
            if bits not in allowed:
                raise PlanError(f"target '{target.name}' cannot run {bits}-bit {what}s",
                                where=node.path or node.name, got=bits, allowed=", ".join(map(str, allowed)),
                                fix=f"choose {'fewer' if bits > max(allowed) else 'other'} bits, or "
                                    "target='reference' to simulate")
        if target.arithmetic.requantize is Requantize.SHIFT:
            _check_powers(node, how, target)
        if not isinstance(how.weight_granularity, (PerChannel, PerTensor)):
            raise PlanError(f"target '{target.name}' has no such granularity for static weights",
                            where=node.path or node.name, got=str(how.weight_granularity),
                            allowed="PerTensor or PerChannel(0)")
        if not how.weight_symmetric and not target.asymmetric_weights:
            raise PlanError(f"target '{target.name}' runs symmetric weights only", where=node.path or node.name,
                            fix="set weight_symmetric=True (w_symmetric=True in a layer of intact.nn)")


def _check_powers(node: Node, how: Quant, target: Target) -> None:
    """Scales that training moves freely, or that are given, are no powers of two."""
    for what, quantizer in (("weight", how.weight_quantizer), ("activation", how.activation_quantizer)):
        if quantizer in ("lsq", "lsq+", "pact", "passive"):
            raise PlanError(f"target '{target.name}' requantizes by shifts, so that scales are powers of two",
                            where=node.path or node.name, got=f"{what}_quantizer='{quantizer}'",
                            allowed="tqt, observed, dorefa, gathered", fix=f"set {what}_quantizer='tqt'")


def _rejected(model: FloatModel, target: Target, hows: Mapping[str, How], wish: Recipe) -> dict[str, str]:
    """Every node that stays in float, with its reason."""
    graph = model.graph
    reasons: dict[str, str] = {}
    to_softmax = scores(graph) if target.float_operations else {}
    masks = mask_edges(graph)
    for node in graph:
        how = hows[node.name]
        reason = how.reason or _said(node, graph, wish) if isinstance(how, Float) and node.op not in _STRUCTURE else \
            _own_reason(node, model, target, masks)
        if reason is None and node.name in to_softmax:
            reason = f"on the way to '{to_softmax[node.name]}': scores and masks stay as they are"
        if reason is not None:
            reasons[node.name] = reason
    if not target.float_operations:
        _refuse_floats(graph, reasons, target)
        return reasons
    users, outputs = graph.consumers(), set(graph.outputs)
    causes: dict[str, str] = {}  # node that is float because of an operand -> the first one to be float
    light = [n for n in graph if n.op not in _STRUCTURE and n.op in target.rules and not target.rules[n.op].macs]
    kept = _accumulators(graph, target) if attention_softmaxes(graph) else {}
    changed = True
    while changed:  # a light operation is quantized only between integer operations
        changed = False
        for node in light:
            if node.name in reasons:
                continue
            ends = target.rules[node.op].output is Output.FREE
            reason = _light_reason(node, graph, reasons, users[node.name], node.name in outputs, ends)
            if reason is None and kept and node.name not in outputs:
                reason = _beside_attention(node, graph, kept, all(u.name in reasons for u in users[node.name]))
            if reason is not None:
                source = next((i for i in node.inputs if i in reasons), None)
                if source is not None and reason == _OPERAND.format(source):
                    first = causes[node.name] = causes.get(source, source)
                    reason += f": {reasons[first]}" if first == source else f", since '{first}' is: {reasons[first]}"
                reasons[node.name] = reason
                changed = True
    return reasons


def _refuse_floats(graph: Graph, reasons: Mapping[str, str], target: Target) -> None:
    """Every operation must have an integer kernel."""
    found = [f"{n.path or n.name} ({n.attrs.get('target', n.op)}): {reasons[n.name]}"
             for n in graph if n.name in reasons]
    if found:
        raise PlanError(f"target '{target.name}' has no floats, and {len(found)} operation(s) would need them",
                        where="; ".join(found[:5]) + ("; ..." if len(found) > 5 else ""),
                        allowed=", ".join(sorted(target.rules)),
                        fix="replace them, cut them off the model, or choose target='onnxruntime'"
                            + _SPLIT * any(n.op in _SPLITS and n.name in reasons for n in graph)
                            + _NUMBERS * any(n.name in reasons and _is_boolean(n, graph) for n in graph))


def _is_boolean(node: Node, graph: Graph) -> bool:
    """Whether it makes or reads a mask."""
    return "bool" in node.dtype or any("bool" in graph[i].dtype for i in node.inputs)


def _said(node: Node, graph: Graph, wish: Recipe) -> str:
    """Which rule wants it in float."""
    rule = next((r for r in wish.rules if r.where.contains(node, graph)), None)
    return f"the recipe says float ({'its default' if rule is None else rule.where.text})"


def _own_reason(node: Node, model: FloatModel, target: Target, masks: frozenset[str]) -> str | None:
    if node.op in _STRUCTURE or (node.name in masks and node.op in target.rules):
        return None
    if node.op == "opaque":
        return next((text for p, text in model.notes if p == node.path), "could not be captured")
    if not node.dtype.startswith("float"):
        return f"computes {node.dtype}, not real numbers"
    if node.op == "embedding":
        return "its table is kept as codes; the rows that it looks up are float"
    if node.op not in target.rules:
        return f"target '{target.name}' has no integer kernel for {node.attrs.get('target', node.op)}"
    masked = _adds_mask(node, model)
    if masked:
        return masked
    reason = target.rules[node.op].check(node, model.graph)
    if reason is None and any(not model.graph[i].dtype.startswith("float") for i in node.inputs if i not in masks):
        reason = "an operand is not a float tensor"
    return reason


def _adds_mask(node: Node, model: FloatModel) -> str | None:
    """An additive mask (-1e4 and below) would take all codes for itself."""
    for name in node.inputs if node.op in ("add", "sub") else ():
        source = model.graph[name]
        if source.op == "constant":
            value = model.params[source.params["value"]]
            if value.is_floating_point() and value.numel() and float(value.min()) <= MASK:
                return f"adds the mask '{name}'"
    return None


def _light_reason(node: Node, graph: Graph, reasons: Mapping[str, str], users: list[Node], is_output: bool,
                  loses: bool) -> str | None:
    """Why an operation without multiply-accumulates is better left in float, or None.

    ``loses``: its output would be rounded to codes; moved codes and an exact sum lose nothing.
    """
    sources = [graph[i] for i in node.inputs]
    if all(s.op == "constant" for s in sources):
        return "computed from constants"
    floats = [s.name for s in sources if s.name in reasons]
    if floats:
        return _OPERAND.format(floats[0])
    if is_output and loses:
        return "makes an output: nothing after it multiplies, so codes would only lose precision"
    if loses and all(u.name in reasons for u in users):
        return "only float operations read it"
    return None


def _accumulators(graph: Graph, target: Target) -> dict[str, str]:
    """Edges that hold what a product left in its accumulator, moved or not, and that product."""
    found: dict[str, str] = {}
    for node in graph:
        rule = target.rules.get(node.op)
        if rule is not None and rule.macs and rule.output is Output.FREE_OR_ACCUMULATOR:
            found[node.name] = node.name
        elif node.op in PASSIVE_OPS and node.inputs[0] in found:
            found[node.name] = found[node.inputs[0]]
    return found


def _beside_attention(node: Node, graph: Graph, kept: Mapping[str, str], read_in_float: bool) -> str | None:
    """Why an operation on the sums of products stays in float in a model with attention, or None.

    8 bits between a product and its activation function, and 8 more behind it, cost more there than all the products
    together. A factor only changes the scale, so it may stay.
    """
    sources = [i for i in node.inputs if graph[i].op != "constant"]
    if node.op == "mul_scalar" or not all(i in kept for i in sources):
        return None
    if node.op in PASSIVE_OPS and not read_in_float:
        return None
    return f"takes the sums of '{kept[sources[0]]}' as they are: a model with attention loses too much in 8 bits"


def _weights(
    model: FloatModel, decisions: Mapping[str, Decision], hows: Mapping[str, How], target: Target
) -> dict[str, WeightSpec]:
    specs: dict[str, tuple[WeightSpec, str]] = {}
    powers = target.arithmetic.requantize is Requantize.SHIFT
    for node in model.graph:
        how = hows[node.name]
        if not decisions[node.name].integer or "weight" not in node.params or isinstance(how, Float):
            continue
        if node.op == "layer_norm":
            factor = WeightSpec(QType(GAMMA_BITS, signed=True, narrow=True), PerTensor(), "minmax",
                                bias_correction=False, power_of_two=powers)
            specs.setdefault(node.params["weight"], (factor, node.path or node.name))
            continue
        qtype = QType(how.weight_bits, signed=True, narrow=how.weight_symmetric)
        granularity = how.weight_granularity if target.per_channel else PerTensor()
        if isinstance(granularity, PerChannel) and granularity.axis != 0:
            raise PlanError("weights are per output channel", where=node.path, got=str(granularity),
                            allowed="PerChannel(0)")
        # of powers of two the next one above the largest weight may be twice too coarse
        chosen: Literal["minmax", "mse"] = "minmax" if how.weight_bits >= 8 and not powers else "mse"
        if how.weight_observer != "auto":
            chosen = how.weight_observer
        single = model.params[node.params["weight"]][0].numel() == 1  # one weight a channel: nothing is rounded
        spec = WeightSpec(qtype, granularity, "minmax" if single else chosen, how.bias_correction,
                          how.weight_symmetric, "observed" if single else how.weight_quantizer, powers)
        name = node.params["weight"]
        if name in specs and specs[name][0] != spec:
            raise PlanError("two rules contradict each other on a shared weight", where=name,
                            got=f"'{specs[name][1]}' says {specs[name][0]}, '{node.path or node.name}' says {spec}",
                            fix="give both layers the same rule")
        specs[name] = (spec, node.path or node.name)
    return {name: spec for name, (spec, _) in specs.items()}


def _tables(model: FloatModel, hows: Mapping[str, How], target: Target) -> dict[str, WeightSpec]:
    """Nodes that look up float rows: their table is kept as 8-bit codes, with a scale for each row.

    One that an integer layer reads too is kept once, with that layer's codes.
    """
    table = WeightSpec(QType(8, signed=True, narrow=True), PerChannel(0), "minmax", bias_correction=False)
    return {node.name: table for node in model.graph
            if node.op == "embedding" and isinstance(hows[node.name], Quant) and 8 in target.weight_bits
            and model.params[node.params["weight"]].dtype == torch.float32}


def _coverage(model: FloatModel, decisions: Mapping[str, Decision]) -> Coverage:
    macs = integer = 0
    weights: dict[str, int] = {}
    kept: set[str] = set()
    for node in model.graph:
        count, is_integer = macs_of(node, model), decisions[node.name].integer
        macs += count
        integer += count if is_integer else 0
        for name in weights_of(node, model):
            weights[name] = model.params[name].numel() * model.params[name].element_size()
            if is_integer or decisions[node.name].kernel == _TABLE:
                kept.add(name)
    return Coverage(macs, integer, sum(weights.values()), sum(weights[n] for n in kept))
