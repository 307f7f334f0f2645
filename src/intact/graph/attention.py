"""What attention looks like in a graph: a softmax whose result multiplies another activation."""

from __future__ import annotations

from collections.abc import Mapping

from intact.graph.ir import PASSIVE_OPS, Graph, Node

__all__ = ["attention_softmaxes"]


def attention_softmaxes(graph: Graph) -> tuple[str, ...]:
    """Softmaxes that a matrix product of two activations reads, moves of values in between left out of account.

    >>> attention_softmaxes(Graph((Node("x", "input"), Node("y", "softmax", ("x",))), {"kind": "edge", "name": "y"}))
    ()
    """
    users = graph.consumers()
    return tuple(n.name for n in graph if n.op == "softmax" and _multiplied(n.name, users))


def _multiplied(edge: str, users: Mapping[str, list[Node]]) -> bool:
    return any(u.op == "matmul" or (u.op in PASSIVE_OPS and _multiplied(u.name, users)) for u in users[edge])
