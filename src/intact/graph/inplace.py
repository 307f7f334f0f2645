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

#: results that share memory with their operand, of operations whose schema does not say so
_VIEWS = re.compile(r"^aten\.(_unsafe_view|dropout|feature_dropout|alpha_dropout|feature_alpha_dropout)\.")


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
        if _writes(node) and not (mutates(target) and _alone(node) and _keeps_its_type(node)):
            return False
        if functional(target) not in HANDLERS and not _stays(node):
            return False
    return True


def _stays(node: fx.Node) -> bool:
    """Whether torch's rewriting would leave the operation: a core one, or another name of one."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.core in tags or bool(BITWISE.match(str(node.target)))


def _writes(node: fx.Node) -> bool:
    """Whether the operation overwrites an operand, the first one or another (``out=``, running statistics)."""
    schema = getattr(node.target, "_schema", None)
    return mutates(str(node.target)) or (schema is not None and bool(schema.is_mutable))


def _is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an operand that it leaves as it is."""
    schema = getattr(node.target, "_schema", None)
    shares = schema is not None and any(r.alias_info is not None for r in schema.returns)
    return not _writes(node) and (shares or bool(_VIEWS.match(str(node.target))))


def _alone(node: fx.Node) -> bool:
    """The overwritten operand is fresh memory, and nobody has a view of it under any of its names."""
    source = node.args[0]
    while isinstance(source, fx.Node):
        if source.op != "call_function" or source.target is operator.getitem or _is_view(source):
            return False
        if any(_is_view(user) for user in source.users):
            return False
        if not mutates(str(source.target)):
            return True
        source = source.args[0]  # a chain of in-place operations on one tensor
    return False


def _keeps_its_type(node: fx.Node) -> bool:
    """Whether the functional form has the dtype of the overwritten operand: no other operand is wider."""
    values = [a.meta.get("val") for a in node.all_input_nodes]
    return len({v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}) <= 1
