"""Attention masks as operands of a softmax: what they hide is left out of it, and no number stands for "minus a lot".

A target without floats cannot add -1e4 to scores of 8 bits. It need not: a mask says of every score whether it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from intact.graph.float_model import FloatModel
from intact.graph.ir import PASSIVE_OPS, Graph, Node
from intact.types import INT8, QParams

__all__ = ["LOWEST", "MASK", "MASK_CODES", "added_inputs", "mask_edges", "masks_as_operands"]

#: a constant that reaches below this is an additive attention mask
MASK = -1e4
#: encoding of every mask: an additive one is 0 or the lowest code, a boolean one 0 or 1
MASK_CODES = QParams.per_tensor(1.0, 0, INT8)
#: the code of what an additive mask hides
LOWEST = INT8.qmin

_NOT = frozenset({"aten.bitwise_not.default", "aten.logical_not.default"})
#: the value of the result in which both operands have that value, or hide on their own
_BOTH = {"aten.bitwise_and.Tensor": 0, "aten.logical_and.default": 0, "aten.bitwise_or.Tensor": 1,
         "aten.logical_or.default": 1}


@dataclass(frozen=True)
class _Mask:
    """An edge, and the code of it that hides."""

    edge: str
    hidden: int


def mask_edges(graph: Graph) -> frozenset[str]:
    """Edges that a softmax reads as masks, moved or not.

    >>> x, m = Node("x", "input"), Node("m", "input", dtype="bool")
    >>> sorted(mask_edges(Graph((x, m, Node("y", "softmax", ("x", "m"))), {"kind": "edge", "name": "y"})))
    ['m']
    """
    index = graph.index
    found = {i for n in graph if n.op == "softmax" for i in n.inputs[1:]}
    waiting = list(found)
    while waiting:
        node = index[waiting.pop()]
        waiting += [i for i in node.inputs if i not in found]
        found.update(node.inputs)
    return frozenset(found)


def added_inputs(graph: Graph) -> frozenset[str]:
    """Inputs that are added to what a softmax reads, moved or not: they may be masks given as numbers.

    >>> x, m = Node("x", "input"), Node("m", "input")
    >>> nodes = x, m, Node("y", "add", ("x", "m")), Node("z", "softmax", ("y",))
    >>> sorted(added_inputs(Graph(nodes, {"kind": "edge", "name": "z"})))
    ['m', 'x']
    """
    index = graph.index
    found: set[str] = set()
    waiting = [n.inputs[0] for n in graph if n.op == "softmax"]
    while waiting:
        node = index[waiting.pop()]
        if node.op in ("add", "mul_scalar", *PASSIVE_OPS):
            waiting += node.inputs
        for edge in node.inputs if node.op == "add" else ():
            source = index[edge]
            while source.op in PASSIVE_OPS:
                source = index[source.inputs[0]]
            found.update({source.name} if source.op == "input" else ())
    return frozenset(found)


def masks_as_operands(model: FloatModel) -> FloatModel:
    """The model with every mask on the way to a softmax as an operand of that softmax.

    Found are ``scores + mask`` with a constant of zeros and of numbers up to -1e4, ``where`` and ``masked_fill`` with a
    boolean input or constant, either turned round, moved, or joined by "and", "or" and "+". A positive factor may
    stand between. Where all scores of a row are hidden, the probabilities are 0.

    Args:
        model: a captured model; not changed. Other masks stay as they are.

    >>> import torch
    >>> from intact.graph import capture
    >>> class Causal(torch.nn.Module):
    ...     def forward(self, x):
    ...         return (x @ x.mT + torch.full((3, 3), -torch.inf).triu(1)).softmax(-1)
    >>> [n.op for n in masks_as_operands(capture(Causal(), torch.zeros(2, 3, 3))).graph]
    ['input', 'permute', 'matmul', 'constant', 'softmax']
    """
    search = _Search(model)
    for node in model.graph:
        if node.op == "softmax" and len(node.inputs) == 1:
            search.softmax(node)
    if not search.changed:
        return model
    nodes: list[Node] = []
    for node in model.graph:
        nodes += [search.changed.get(node.name, node), *search.added.get(node.name, ())]
    notes = {(model.graph[name].path, f"{len(node.inputs) - 1} mask(s) as codes: what they hide is left out of the "
                                      "softmax; where all is hidden, its results are 0"): None
             for name, node in search.changed.items()}
    changed = model.with_graph(model.graph.rewritten(nodes, search.renamed))
    return replace(changed, notes=(*model.notes, *notes))


class _Search:
    """Masks of one model, and the nodes that are to be changed, added and renamed."""

    def __init__(self, model: FloatModel) -> None:
        self.params, self.index = model.params, model.graph.index
        self.users, self.outputs = model.graph.consumers(), set(model.graph.outputs)
        self.changed: dict[str, Node] = {}
        self.added: dict[str, list[Node]] = {}
        self.renamed: dict[str, str] = {}
        self.moved: dict[tuple[str, str], str] = {}

    def softmax(self, softmax: Node) -> None:
        """Take the masks off the way to a softmax."""
        masks: list[_Mask] = []
        renamed: dict[str, str] = {}
        edge = softmax.inputs[0]
        while len(self.users[edge]) == 1 and edge not in self.outputs:
            node = self.index[edge]
            if node.op == "mul_scalar" and node.attrs["value"] > 0:
                edge = node.inputs[0]
                continue
            found = self._sink(node)
            if found is None or self.index[found[0]].shape != softmax.shape:
                break
            renamed[edge] = edge = found[0]
            masks += found[1]
        if masks:
            self.renamed |= renamed
            inputs = (softmax.inputs[0], *(m.edge for m in masks))
            self.changed[softmax.name] = replace(softmax, inputs=inputs).with_attrs(hidden=[m.hidden for m in masks])

    def _sink(self, node: Node) -> tuple[str, list[_Mask]] | None:
        """Scores and masks, if a node puts masks on scores."""
        if node.op == "add" and "activation" not in node.attrs:
            for scores, mask in (node.inputs, reversed(node.inputs)):
                found = self._additive(mask)
                if found is not None:
                    return scores, found
        if node.op == "where":
            condition, a, b = node.inputs
            for value, scores, hidden in ((a, b, 1), (b, a, 0)):
                found = self._boolean(condition, hidden) if self._holds(value, _low) else None
                if found is not None:
                    return scores, found
        return None

    def _additive(self, edge: str) -> list[_Mask] | None:
        """The masks that a float edge of zeros and very low numbers is made of."""
        node = self.index[edge]
        if node.op == "constant":
            hides = self._holds(edge, lambda v: (v == 0) | _low(v)) and not self._holds(edge, lambda v: v == 0)
            return [_Mask(edge, LOWEST)] if hides else None
        if node.op == "add" and "activation" not in node.attrs:
            left, right = (self._additive(i) for i in node.inputs)
            return None if left is None or right is None else left + right
        if node.op == "where":
            condition, a, b = node.inputs
            for low, zero, hidden in ((a, b, 1), (b, a, 0)):
                if self._holds(low, _low) and self._holds(zero, lambda v: v == 0):
                    return self._boolean(condition, hidden)
            return None
        return self._move(node, self._additive(node.inputs[0])) if node.op in PASSIVE_OPS else None

    def _boolean(self, edge: str, hidden: int) -> list[_Mask] | None:
        """The masks that a condition is made of, if it hides where it has the value ``hidden``."""
        node = self._node(edge)
        if node.dtype != "bool":
            return None
        if node.op in ("input", "constant"):
            return [_Mask(edge, hidden)]
        target = node.attrs.get("target") if node.op == "aten" else None
        if target in _NOT:
            return self._boolean(node.inputs[0], 1 - hidden)
        if _BOTH.get(str(target)) == hidden:
            left, right = (self._boolean(i, hidden) for i in self._operands(node))
            return None if left is None or right is None else left + right
        return self._move(node, self._boolean(node.inputs[0], hidden)) if node.op in PASSIVE_OPS else None

    def _operands(self, node: Node) -> list[str]:
        """Edges of a call of torch; a constant among its arguments becomes one."""
        found = []
        for arg in node.attrs["args"]:
            if "param" not in arg:
                found.append(node.inputs[arg["input"]])
                continue
            value, name = self.params[node.params[arg["param"]]], f"{node.name}/{arg['param']}"
            made = Node(name, "constant", (), {"value": node.params[arg["param"]]}, {}, node.path, tuple(value.shape),
                        str(value.dtype).removeprefix("torch."))
            if made not in self.added.setdefault(node.name, []):
                self.added[node.name].append(made)
            found.append(name)
        return found

    def _move(self, node: Node, masks: list[_Mask] | None) -> list[_Mask] | None:
        """The same move of every mask, repeated first as far as what was moved is."""
        if masks is None or node.op == "pad":
            return None
        return [replace(m, edge=self._moved(node, self._repeated(node.inputs[0], m.edge))) for m in masks]

    def _moved(self, node: Node, edge: str) -> str:
        return node.name if edge == node.inputs[0] else self._made(node, edge, node)

    def _repeated(self, like: str, edge: str) -> str:
        source = self.index[like]
        if self._node(edge).shape == source.shape:
            return edge
        wide = replace(source, op="expand", params={}, attrs={"shape": list(source.shape)})
        return self._made(source, edge, wide)

    def _made(self, place: Node, edge: str, pattern: Node) -> str:
        """A node like another that reads a mask, put behind a place; made once."""
        if (place.name, edge) not in self.moved:
            number = 1 + sum(name == place.name for name, _ in self.moved)
            name = f"{place.name}/mask" if number == 1 else f"{place.name}/mask@{number}"
            dtype = self._node(edge).dtype
            self.added.setdefault(place.name, []).append(replace(pattern, name=name, inputs=(edge,), dtype=dtype))
            self.moved[place.name, edge] = name
        return self.moved[place.name, edge]

    def _node(self, edge: str) -> Node:
        made = {n.name: n for some in self.added.values() for n in some}
        return made[edge] if edge in made else self.index[edge]

    def _holds(self, edge: str, test: Callable[[Tensor], Tensor]) -> bool:
        """Whether all numbers of a constant, moved or not, pass a test."""
        node = self.index[edge]
        while node.op in PASSIVE_OPS - {"pad"}:
            node = self.index[node.inputs[0]]
        if node.op != "constant":
            return False
        value = self.params[node.params["value"]]
        return value.is_floating_point() and bool(value.numel()) and bool(test(value).all())


def _low(value: Tensor) -> Tensor:
    return value <= MASK
