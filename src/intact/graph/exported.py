"""torch.export, with the axes that stay free, and quiet."""

from __future__ import annotations

import inspect
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn

from intact.errors import CaptureError
from intact.graph.dynamic import export_shapes, symbols_in
from intact.graph.inplace import is_plain
from intact.graph.tree import first_tensor
from intact.private import causal_only_where_said

__all__ = ["FixedAxis", "exported", "functional"]


class FixedAxis(CaptureError):
    """An axis that shall be free is not."""


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Any
             ) -> torch.export.ExportedProgram:
    """The model as a program of torch.export.

    Args:
        model: in evaluation mode.
        args: example inputs.
        kwargs: likewise, by name.
        axes: ``(args, kwargs)`` with the free axes in place of every tensor.

    Raises:
        CaptureError: if an axis that shall be free is not, or there is nothing to tell the batch from.
    """
    first = first_tensor((args, kwargs))
    if first is None:
        raise CaptureError("no tensor among the example inputs", fix="pass a batch of inputs")
    shapes, named = export_shapes((args, dict(kwargs)), axes, first.shape[0])
    try:
        with _quiet(), causal_only_where_said():
            program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=_by_parameter(model, shapes, named))
            return functional(program)
    except (RuntimeError, ValueError, AssertionError) as error:
        if "Constraints violated" in str(error) and symbols_in((args, dict(kwargs)), axes):
            raise _fixed_axis(error) from error
        raise


def _fixed_axis(error: BaseException) -> FixedAxis:
    """Why an axis cannot be free, from what torch.export says."""
    text = " ".join(line.strip() for line in str(error).splitlines()[1:] if line.strip().startswith("-"))
    places = re.findall(r"L\['(\w+)'\]((?:\[[^\]]*\])*)\.size\(\)\[(\d+)\]", str(error).splitlines()[0])
    where = ", ".join(f"axis {axis} of '{name}{rest}'" for name, rest, axis in places)
    fixed = re.search(r"specialized it to be a constant \((\d+)\)", text)
    reason = f"the model works with size {fixed[1]} only" if fixed else text[:300] or str(error).splitlines()[0][:300]
    return FixedAxis("an axis cannot be left free", where=where or None, got=reason, fix=
                     "leave this axis out of dynamic, or let forward read its size from the input")


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What belongs to each argument, as torch.export wants it: ``*xs`` is one tuple."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), None)
    if at is not None:
        args = (*args[:at], tuple(args[at:]))
    if not kwargs:
        return args
    unnamed = sorted(kwargs.keys() - {p.name for p in parameters})
    if unnamed:
        raise CaptureError("an input has no name in the signature of forward", got=", ".join(unnamed),
                           allowed=", ".join(p.name for p in parameters if p.kind is not p.VAR_KEYWORD),
                           fix="wrap the model in a module whose forward names its inputs (torch.export cannot keep "
                               "the batch of **kwargs free)")
    return {**dict(zip([p.name for p in parameters], args, strict=False)), **kwargs}


def functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program in which no in-place operation matters."""
    if is_plain(program.graph) and not program.graph_signature.buffers_to_mutate:
        return program
    functional: torch.export.ExportedProgram = program.run_decompositions({})
    return functional


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints at length about modules that it refuses; we report the reason."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(said):
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*isinstance.treespec.*")
            warnings.filterwarnings("ignore", category=UserWarning, message=".*_flat_weights.* assigned during export")
            yield
        sys.stderr.write(said.getvalue())  # nothing was refused: it is the model that speaks
    finally:
        logging.disable(disabled)
