"""What attention looks like in a graph: a softmax whose result multiplies another activation."""

from __future__ import annotations

from collections.abc import Mapping

from intact.graph.ir import MAC_OPS, PASSIVE_OPS, Graph, Node

__all__ = ["attention_softmaxes", "scores"]


def attention_softmaxes(graph: Graph) -> tuple[str, ...]:
    """Softmaxes that a matrix product of two activations reads, moves of values in between left out of account.

    >>> attention_softmaxes(Graph((Node("x", "input"), Node("y", "softmax", ("x",))), {"kind": "edge", "name": "y"}))
    ()
    """
    users = graph.consumers()
    return tuple(n.name for n in graph if n.op == "softmax" and _multiplied(n.name, users))


def scores(graph: Graph) -> dict[str, str]:
    """What lies between products and such a softmax: scaled scores, and the masks that are added to them.

    Edge to softmax. Masks reach down to -1e4 and to the lowest number of all, so none of this can have 8-bit codes.

    >>> scores(Graph((Node("x", "input"), Node("y", "softmax", ("x",))), {"kind": "edge", "name": "y"}))
    {}
    """
    index, found = graph.index, {}
    for softmax in attention_softmaxes(graph):
        waiting = list(index[softmax].inputs)
        while waiting:
            node = index[waiting.pop()]
            if node.name not in found and node.op not in MAC_OPS | {"input", "constant"}:
                found[node.name] = softmax
                waiting += node.inputs
    return found


def _multiplied(edge: str, users: Mapping[str, list[Node]]) -> bool:
    return any(u.op == "matmul" or (u.op in PASSIVE_OPS and _multiplied(u.name, users)) for u in users[edge])
