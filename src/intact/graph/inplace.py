"""In-place operations of an exported graph, where they can be read as functional ones without torch's rewriting.

``ExportedProgram.run_decompositions`` makes any graph functional, and takes most of the time of a capture. Networks
use in-place operations in the plainest way, ``relu_`` of what a convolution just made; then it is enough to read
``y = x.relu_()`` as ``y = x.relu()`` and every later ``x`` as ``y``.
"""

from __future__ import annotations

import operator
import re

import torch
from torch import fx

from intact.graph.converter import BITWISE, HANDLERS, functional

__all__ = ["is_plain", "mutates"]

#: results that share memory with their operand
_VIEWS = re.compile(
    r"^aten\.(view|reshape|_unsafe_view|flatten|unflatten|squeeze|unsqueeze|permute|transpose|t|numpy_T|expand|slice|"
    r"select|split|split_with_sizes|chunk|tensor_split|unbind|unfold|alias|detach|contiguous|to|narrow|diagonal|dropout|"
    r"feature_dropout)\."
)


def mutates(target: str) -> bool:
    """Whether an aten operation overwrites its first operand."""
    return functional(target) != target


def is_plain(graph: fx.Graph) -> bool:
    """Whether every operation has a canonical form, and nothing that is overwritten is seen under another name."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        target = str(node.target)
        if target.startswith("aten.sym_size"):
            continue
        if mutates(target) and not _alone(node):
            return False
        if functional(target) not in HANDLERS and not _stays(node):
            return False
    return True


def _stays(node: fx.Node) -> bool:
    """Whether torch's rewriting would leave the operation: a core one, or another name of one."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.core in tags or bool(BITWISE.match(str(node.target)))


def _alone(node: fx.Node) -> bool:
    """The overwritten operand is fresh memory, and no earlier reader kept a view of it."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_function" or source.target is operator.getitem:
        return False
    while mutates(str(source.target)):  # a chain of in-place operations on one tensor
        previous = source.args[0]
        if not isinstance(previous, fx.Node) or any(_VIEWS.match(str(u.target)) for u in previous.users):
            return False
        source = previous
    if source.op != "call_function" or source.target is operator.getitem:
        return False
    return not _VIEWS.match(str(source.target)) and not any(_VIEWS.match(str(u.target)) for u in source.users)
