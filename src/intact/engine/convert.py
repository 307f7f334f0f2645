"""QFloatModel -> QModel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from intact.engine.qmodel import QModel
from intact.errors import CalibrationError
from intact.graph import Graph, Node
from intact.graph.free import Limits, limits_of
from intact.kernels import Binding
from intact.planning import macs_of
from intact.simulation import QFloatModel
from intact.types.dims import BATCH, resolve_dim, symbols_of

__all__ = ["convert"]


def convert(qfloat: QFloatModel) -> QModel:
    """The integer model that gives exactly the codes of ``qfloat`` in evaluation mode.

    Raises:
        CalibrationError: if the model is not calibrated.

    >>> import torch
    >>> from intact.calibration import calibrate
    >>> from intact.graph import capture
    >>> from intact.planning import plan
    >>> from intact.simulation import prepare
    >>> fm = capture(torch.nn.Linear(3, 2), torch.zeros(2, 3))
    >>> x = torch.randn(8, 3)
    >>> qfloat = calibrate(prepare(fm, plan(fm)), [x])
    >>> torch.equal(convert(qfloat)(x), qfloat(x))
    True
    """
    if not isinstance(qfloat, QFloatModel):
        raise CalibrationError("convert takes a calibrated QFloat model", got=type(qfloat).__name__,
                               fix="call intact.prepare and intact.calibrate first")
    if qfloat.training:
        raise CalibrationError("the model is in training mode", fix="call qfloat.eval() before convert")
    if qfloat.calibrated and not qfloat.exact:
        off = [n for n, q in (*qfloat.edge_quantizers.items(), *qfloat.weight_quantizers.items()) if not q.enabled]
        raise CalibrationError("fake quantization is switched off", where=", ".join(off[:5]),
                               got=f"{len(off)} quantizers", fix="call intact.enable_fake_quant(qfloat)")
    bound, model = qfloat.bound, qfloat.float_model
    kept = {name for node in model.graph if node.name not in bound.kernels and node.name not in bound.tables
            for name in node.params.values()}
    float_params = {k: v.detach().cpu().clone() for k, v in model.params.items() if k in kept}
    bindings = {name: kernel.binding for name, kernel in bound.kernels.items()}
    graph = _within_int32(model.graph, bindings)
    return QModel(graph, model.signature, qfloat.plan.target, bindings, bound.qparams, float_params,
                  model.opaque, _info(qfloat), qfloat.samples or model.example, bound.tables)


def _within_int32(graph: Graph, bindings: Mapping[str, Binding]) -> Graph:
    """The graph with free axes so limited that no sum over one leaves the runtime's accumulator."""
    limits = limits_of(graph)
    for name, b in bindings.items():
        if b.op not in ("matmul", "mean"):
            continue
        shape, a = graph[graph[name].inputs[0]].shape, b.attrs
        dims = [shape[-1]] if b.op == "matmul" else [shape[axis] for axis in a["axes"]]
        reach = math.prod(max(p.qtype.qmax - int(p.zero_point), int(p.zero_point) - p.qtype.qmin) for p in b.inputs)
        names = sorted({s for d in dims for s in symbols_of(d)} - {BATCH})
        widest = max(p.qtype.bits for p in b.inputs)  # sums of wider codes are kept in 64 bits
        most = (int(min(2.0**31 if widest <= 8 else 2.0**53, b.arithmetic.accumulator_limit(widest))) - 1) // reach
        for symbol in names:
            low, high = limits[symbol]
            share = int(most ** (1 / len(names)))  # each of several axes may be so long
            while math.prod(resolve_dim(d, dict.fromkeys(names, share)) for d in dims) > most:
                share = share * 7 // 8
            limits[symbol] = low, share if high is None else min(high, share)
    nodes = [n.with_attrs(limits=own) if n.op == "input" and (own := _limits_on(n, limits)) else n for n in graph]
    return replace(graph, nodes=tuple(nodes))


def _limits_on(node: Node, limits: Limits) -> dict[str, list[int | None]]:
    return {s: list(limits[s]) for d in node.shape for s in sorted(symbols_of(d)) if s != BATCH}


def _info(qfloat: QFloatModel) -> dict[str, Any]:
    plan, cover = qfloat.plan, qfloat.plan.coverage
    return {
        "plan": str(plan),
        "macs": {n.name: m for n in plan.graph if (m := macs_of(n, qfloat.float_model))},
        "kernels": {n: d.kernel for n, d in plan.decisions.items() if d.integer},
        "rejections": [[r.name, r.path, r.op, r.reason] for r in plan.rejections],
        "coverage": {"macs": cover.macs, "integer_macs": cover.integer_macs, "weight_bytes": cover.weight_bytes,
                     "integer_weight_bytes": cover.integer_weight_bytes},
        "equalization": {k: list(v) for k, v in qfloat.float_model.equalization.items()},
        "smoothing": {k: {n: list(s) for n, s in v.items()} for k, v in qfloat.float_model.smoothing.items()},
        "notes": [list(n) for n in (*plan.notes, *qfloat.bound.notes)],
        "versions": {"torch": torch.__version__.split("+")[0]},
    }
