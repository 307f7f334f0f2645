"""The inputs of an exported program: names, structure, tensors, and the batch that it was exported with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intact.graph.signature import Signature, collect, has_edges

__all__ = ["example_tensors", "fixed_batch_of", "program_signature"]


def program_signature(program: torch.export.ExportedProgram, model: nn.Module | None = None) -> Signature:
    """How the program is called; arguments that are no tensors are part of the program.

    Args:
        program: an exported program.
        model: the module that it was exported from, for the names of its positional arguments.
    """
    args, kwargs = _templates(program)
    names = _positional_names(args, model)
    pairs = [(n, t) for n, t in zip([*names, *kwargs], [*args, *kwargs.values()], strict=True) if has_edges(t)]
    return Signature(tuple(n for n, _ in pairs), tuple(t for _, t in pairs))


def example_tensors(
    program: torch.export.ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors among arguments that the program was exported with, by input edge."""
    found: dict[str, Tensor] = {}
    templates, named = _templates(program)
    for i, (template, value) in enumerate(zip(templates, args, strict=True)):
        collect(template, value, f"argument {i}", found)
    for name, template in named.items():
        collect(template, kwargs[name], name, found)
    return found


def fixed_batch_of(program: torch.export.ExportedProgram) -> int | None:
    """The first size of the first input, if it is not free.

    >>> fixed_batch_of(torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(4, 3),)))
    4
    """
    names = [str(n) for n in program.graph_signature.user_inputs]
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in names and isinstance(value, Tensor) and value.ndim:
            size: int | torch.SymInt = value.shape[0]
            return size if isinstance(size, int) else None
    return None


def _templates(program: torch.export.ExportedProgram) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    names = [str(n) for n in program.graph_signature.user_inputs]
    args, kwargs = program.call_spec.in_spec.unflatten(names)
    # what is no tensor has no placeholder that carries one, though it has a name
    tensors = {n.name for n in program.graph.nodes
               if n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor)}
    live = set(names) & tensors
    return [_template(a, live) for a in args], {str(k): _template(v, live) for k, v in kwargs.items()}


def _template(value: Any, names: set[str]) -> dict[str, Any]:
    if isinstance(value, str):
        return {"kind": "edge", "name": value} if value in names else {"kind": "const", "value": None}
    if isinstance(value, Mapping):
        return {"kind": "dict", "items": {str(k): _template(v, names) for k, v in value.items()}}
    if isinstance(value, (tuple, list)):
        return {"kind": "tuple", "items": [_template(v, names) for v in value]}
    return {"kind": "const", "value": None}


def _positional_names(args: Sequence[Mapping[str, Any]], model: nn.Module | None) -> list[str]:
    """The parameters' names; of ``*xs`` (and where no module is known) the name of the input edge, or a number."""
    names: list[str] = []
    if model is not None:
        for p in inspect.signature(model.forward).parameters.values():
            if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                break
            names.append(p.name)
    rest = [a["name"] if a["kind"] == "edge" else f"arg{i}" for i, a in enumerate(args)]
    return [*names[: len(args)], *rest[len(names) :]]
