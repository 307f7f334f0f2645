"""Axes that are left free: the range of every symbol, and inputs of other sizes made from given ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from intact.graph.ir import Graph, Node
from intact.types.dims import BATCH, Sizes, resolve_dim, symbols_of

__all__ = ["Limits", "free_symbols", "limits_of", "resized", "sizes_near"]

#: smallest and largest value of each symbol; None where there is no largest
Limits = Mapping[str, tuple[int, int | None]]


def limits_of(graph: Graph) -> dict[str, tuple[int, int | None]]:
    """The range of every symbol that the inputs have."""
    found: dict[str, tuple[int, int | None]] = {}
    for node in graph.inputs:
        said = node.attrs.get("limits", {})
        for dim in node.shape:
            for name in sorted(symbols_of(dim)):
                low, high = said.get(name, (1, None))
                found.setdefault(name, (low, high))
    return found


def free_symbols(graph: Graph) -> tuple[str, ...]:
    """The symbols of axes other than the batch, in the order of the inputs."""
    return tuple(name for name in limits_of(graph) if name != BATCH)


def resized(graph: Graph, inputs: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The inputs with other sizes along their free axes: cut, or repeated from the start.

    >>> from intact.graph.ir import Node
    >>> graph = Graph((Node("x", "input", shape=("batch", "length")),), {"kind": "edge", "name": "x"})
    >>> resized(graph, {"x": torch.tensor([[1, 2, 3]])}, {"batch": 1, "length": 5})["x"]
    tensor([[1, 2, 3, 1, 2]])
    """
    found = {}
    for node in graph.inputs:
        x = inputs[node.name]
        for axis, dim in enumerate(node.shape):
            size = resolve_dim(dim, {**sizes})
            if size != x.shape[axis]:
                x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
        found[node.name] = x
    return found


def first_samples(graph: Graph, inputs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The inputs with at most so many samples, whichever of their axes counts them.

    >>> from intact.graph.ir import Node
    >>> graph = Graph((Node("h", "input", shape=(2, "batch")),), {"kind": "edge", "name": "h"})
    >>> first_samples(graph, {"h": torch.tensor([[1, 2], [3, 4]])}, 1)["h"]
    tensor([[1],
            [3]])
    """
    found = {}
    for node in graph.inputs:
        x = inputs[node.name]
        axis = sample_axis(node)
        found[node.name] = x if axis is None else x.narrow(axis, 0, min(count, x.shape[axis]))
    return found


def sample_axis(node: Node) -> int | None:
    """The axis that counts the samples; None if none does."""
    return node.shape.index(BATCH) if BATCH in node.shape else None


def sizes_near(sizes: Sizes, limits: Limits) -> Iterator[dict[str, int]]:
    """Five sets of sizes around given ones, in which no symbol goes the way of another.

    Args:
        sizes: of inputs that the model is known to take.
        limits: the range of every symbol.
    """
    steps = {BATCH: (2, 3, 5, 4, 7)}
    others = ((0, 1, 3, 6, 14), (0, 3, 1, 10, 5), (0, 5, 9, 1, 7), (0, 2, 7, 5, 12))
    free = [name for name in limits if name != BATCH]
    for i in range(5):
        point = dict(sizes)
        if BATCH in limits:
            point[BATCH] = steps[BATCH][i]
        for k, name in enumerate(free):
            low, high = limits[name]
            offset = others[k % len(others)][i] + (k // len(others)) * i
            value = sizes[name] + offset
            if high is not None and value > high:
                value = max(low, min(high, sizes[name]) - offset)
            point[name] = value
        yield point
