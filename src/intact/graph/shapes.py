"""Shapes of every edge, with free axes left free: the graph is run on the meta device with inputs of several sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from intact.errors import CaptureError
from intact.graph.float_model import FloatModel, execute, run_node
from intact.graph.free import Limits, limits_of, sizes_near
from intact.graph.ir import Graph, Node
from intact.graph.signature import check_inputs
from intact.types.dims import BATCH, Sizes, fit, is_dim, resolve_shape

__all__ = ["infer_shapes"]


def infer_shapes(model: FloatModel, known: Iterable[str] = (), *, batch_only: bool = False) -> Graph:
    """The graph with ``shape`` and ``dtype`` of every node filled in.

    Args:
        model: a float model with example inputs.
        known: expressions that sizes may be, besides those that the graph has already and ``k*symbol + c``.
        batch_only: other free sizes as in the example, where it is not known yet which sizes the model takes.

    Raises:
        CaptureError: if a size is none of these.
    """
    graph = model.graph
    limits = limits_of(graph)
    sizes = check_inputs(graph, model.example)
    said = dict.fromkeys((*_expressions(graph), *known))
    points = list(sizes_near(sizes, limits))[: 5 if len(limits) > 1 and not batch_only else 2]
    if batch_only:
        points = [{**sizes, BATCH: point[BATCH]} for point in points]
    elif step := max(map(_step, said), default=1) - 1:
        points.append(_further(sizes, limits, step + 1))
    meta = replace(model, params={k: v.to("meta") for k, v in model.params.items()})
    runs = [_run(meta, point) for point in points]
    nodes = []
    for node in graph:
        shapes = [tuple(run[node.name].shape) for run in runs]
        dims = tuple(fit(values, points, said) for values in zip(*shapes, strict=True))
        if None in dims:
            raise CaptureError("a size is not a multiple of the batch size" if len(limits) < 2 else
                               "a size depends on the input in a way that is not supported", where=node.path or
                               node.name, got=" and ".join(map(str, shapes)))
        nodes.append(replace(node, shape=tuple(d for d in dims if d is not None),
                             dtype=str(runs[0][node.name].dtype).removeprefix("torch.")))
    return Graph(tuple(nodes), graph.output)


def _expressions(graph: Graph) -> Iterable[str]:
    """What sizes are called so far."""
    for node in graph:
        for d in (*node.shape, *node.attrs.get("shape", ()), *node.attrs.get("size", ())):
            if is_dim(d):
                yield str(d)


def _step(text: str) -> int:
    """How far a symbol may go until an expression changes, at most."""
    return math.prod(int(divisor) for divisor in re.findall(r"//(\d+)", text.replace(" ", "")))


def _further(sizes: Sizes, limits: Limits, step: int) -> dict[str, int]:
    """Sizes so far away that what is a quotient of them is another number there."""
    point = dict(sizes)
    for k, (name, (low, high)) in enumerate((n, v) for n, v in limits.items() if n != BATCH):
        away = (2 * k + 1) * step + k
        point[name] += away if high is None or point[name] + away <= high else -min(away, point[name] - low)
    return point


def _run(meta: FloatModel, sizes: Sizes) -> dict[str, Tensor]:
    """Every edge as a meta tensor; layers that are alike are run once, as an operation takes a millisecond there."""
    inputs = {
        n.name: torch.empty(resolve_shape(n.shape, sizes), dtype=getattr(torch, n.dtype), device="meta")
        for n in meta.graph.inputs
    }
    seen: dict[str, Tensor] = {}
    known: dict[Any, Tensor] = {}

    def step(node: Node, xs: list[Tensor]) -> Tensor:
        if node.op == "opaque":
            shape = resolve_shape(node.attrs["shape"], sizes)
            return torch.empty(shape, dtype=getattr(torch, node.dtype), device="meta")
        params = tuple((role, _form(meta.params[name])) for role, name in node.params.items())
        like = node.op, repr(node.attrs), params, tuple(map(_form, xs))
        if like not in known:  # to meta: also what the model makes itself, on the CPU
            known[like] = run_node(meta, node, xs, sizes).to("meta")
        return known[like]

    execute(meta.graph, inputs, step, lambda n, x: seen.__setitem__(n.name, x))
    return seen


def _form(x: Tensor) -> tuple[Any, ...]:
    """All that there is of a meta tensor."""
    return x.dtype, tuple(x.shape), x.stride()
