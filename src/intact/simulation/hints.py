"""Where a QFloat model starts that was captured from layers which have trained their ranges already."""

from __future__ import annotations

from intact.graph import FloatModel, Hint, Node
from intact.observers import range_to_qparams
from intact.planning import Plan
from intact.types import Free, Joined, QParams, Shared

__all__ = ["trained_edges", "trained_weights"]


def trained_edges(model: FloatModel, plan: Plan) -> tuple[dict[str, QParams], dict[str, QParams]]:
    """Parameters of edges that a trained layer reads; and of those that it makes and has seen, but not rounded."""
    read: dict[str, tuple[float, float]] = {}
    made: dict[str, tuple[float, float]] = {}
    for name, hint in _in_force(model, plan).items():
        if hint.output_range is not None and _is_the_layer(model, model.graph[name], hint):
            made[name] = hint.output_range
        if hint.input_range is not None:
            edge = model.graph[name].inputs[0]
            while isinstance(spec := plan.edges.get(edge), Shared):
                edge = spec.source
            low, high = read.get(edge, hint.input_range)
            read[edge] = min(low, hint.input_range[0]), max(high, hint.input_range[1])
    made = {edge: ends for edge, ends in made.items() if edge not in read}
    return _qparams(read, plan), _qparams(made, plan)


def _qparams(ranges: dict[str, tuple[float, float]], plan: Plan) -> dict[str, QParams]:
    found = {}
    for edge, ends in ranges.items():
        spec = plan.edges.get(edge)
        if isinstance(spec, (Free, Joined)):
            found[edge] = range_to_qparams(*ends, spec.own if isinstance(spec, Joined) else spec)
    return found


def trained_weights(model: FloatModel, plan: Plan) -> dict[str, QParams]:
    """Parameters of weights whose layers have trained them."""
    found = {}
    for name, hint in _in_force(model, plan).items():
        weight = model.graph[name].params.get("weight", "")
        spec = plan.weights.get(weight)
        whole = _is_the_layer(model, model.graph[name], hint)
        if whole and spec is not None and spec.quantizer == "passive" and hint.weight_scale is not None:
            assert hint.weight_zero is not None
            found[weight] = QParams(hint.weight_scale, hint.weight_zero, spec.qtype, spec.granularity)
    return found


def _is_the_layer(model: FloatModel, node: Node, hint: Hint) -> bool:
    """Whether what a node holds and makes is what the layer does: its own batch norm folded, and no other."""
    expr = model.expr(node.params.get("weight", ""))
    if isinstance(expr, str) or not hint.batch_norm:
        return isinstance(expr, str) and not hint.batch_norm
    own = f"{node.path}.{hint.batch_norm}".lstrip(".")
    return expr.rule == "batch_norm_weight" and isinstance(expr.sources[0], str) and expr.attrs["path"] == own


def _in_force(model: FloatModel, plan: Plan) -> dict[str, Hint]:
    """Hints that no rule has overruled; ranges of channels that were equalized since mean nothing any more."""
    if model.equalization or model.smoothing:
        return {}
    return {name: hint for name, hint in plan.hinted.items() if plan.decisions[name].integer}
