"""Shapes of every edge, with the batch left free: the graph is run on the meta device at two batch sizes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from intact.errors import CaptureError
from intact.graph.float_model import FloatModel, execute, run_node
from intact.graph.ir import Dim, Graph, Node, resolve_shape

__all__ = ["infer_shapes"]

_SMALL, _LARGE = 2, 3


def infer_shapes(model: FloatModel) -> Graph:
    """The graph with ``shape`` and ``dtype`` of every node filled in.

    Raises:
        CaptureError: if a size is not a multiple of the batch size.
    """
    first, second = _run(model, _SMALL), _run(model, _LARGE)
    nodes = []
    for node in model.graph:
        a, b = first[node.name], second[node.name]
        shape = tuple(_dim(node, x, y) for x, y in zip(a.shape, b.shape, strict=True))
        nodes.append(replace(node, shape=shape, dtype=str(a.dtype).removeprefix("torch.")))
    return Graph(tuple(nodes), model.graph.output)


def _dim(node: Node, small: int, large: int) -> Dim:
    if small == large:
        return small
    step = large - small
    if step <= 0 or small != step * _SMALL:
        raise CaptureError("a size is not a multiple of the batch size", where=node.name, got=(small, large))
    return "batch" if step == 1 else f"{step}*batch"


def _run(model: FloatModel, batch: int) -> dict[str, Tensor]:
    """Every edge as a meta tensor."""
    meta = replace(model, params={k: v.to("meta") for k, v in model.params.items()})
    inputs = {
        n.name: torch.empty(resolve_shape(n.shape, batch), dtype=getattr(torch, n.dtype), device="meta")
        for n in model.graph.inputs
    }
    seen: dict[str, Tensor] = {}

    def step(node: Node, xs: list[Tensor]) -> Tensor:
        if node.op == "opaque":
            shape = resolve_shape(node.attrs["shape"], batch)
            return torch.empty(shape, dtype=getattr(torch, node.dtype), device="meta")
        return run_node(meta, node, xs, batch).to("meta")  # also what the model makes itself, on the CPU

    execute(model.graph, inputs, step, lambda n, x: seen.__setitem__(n.name, x))
    return seen
