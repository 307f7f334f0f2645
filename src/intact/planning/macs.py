"""Multiply-accumulates of operations: what a plan's share of integers is a share of."""

from __future__ import annotations

import math

from intact.graph import FloatModel, Node
from intact.types.dims import resolve_dim, resolve_shape

__all__ = ["macs_of", "weights_of"]

#: recurrent layers, which stay one operation
_RECURRENT = frozenset({"aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"})


def macs_of(node: Node, model: FloatModel) -> int:
    """Multiply-accumulates of a node for one sample, of the size of the example where sizes are free."""
    shape = resolve_shape(node.shape, model.sample)
    if node.op == "aten" and node.attrs["target"] in _RECURRENT:
        return _recurrent_macs(node, model)
    if node.op == "matmul":
        return math.prod(shape) * resolve_dim(model.graph[node.inputs[0]].shape[-1], model.sample)
    if node.op not in ("conv", "conv_transpose", "linear"):
        return 0
    weight = model.params[node.params["weight"]]
    if node.op == "conv_transpose":
        source = resolve_shape(model.graph[node.inputs[0]].shape, model.sample)
        return math.prod(source) * math.prod(weight.shape[1:])
    return math.prod(shape) * math.prod(weight.shape[1:])


def _recurrent_macs(node: Node, model: FloatModel) -> int:
    """Every matrix times every step, for the first of the nodes that the results of one call are."""
    first = next(n for n in model.graph if (n.op, n.inputs, n.params) == (node.op, node.inputs, node.params))
    if first.name != node.name:
        return 0
    steps = math.prod(resolve_shape(model.graph[node.inputs[0]].shape[:-1], model.sample))
    return steps * sum(model.params[name].numel() for name in weights_of(node, model))


def weights_of(node: Node, model: FloatModel) -> list[str]:
    """Names of the parameters that a node multiplies with."""
    if node.op == "aten" and node.attrs["target"] in _RECURRENT:
        return [name for name in node.params.values() if model.params[name].ndim == 2]
    return [node.params["weight"]] if "weight" in node.params else []
