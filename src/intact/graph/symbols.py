"""torch's symbols for the sizes that stay free, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx

from intact.errors import CaptureError
from intact.graph.dynamic import by_tensor, default_name
from intact.graph.tree import leaves
from intact.types.dims import BATCH, line, renamed, symbols_of

__all__ = ["limits_of_program", "names_of_axes", "sizes_of_program", "symbols_of_inputs"]


def names_of_axes(tensors: Mapping[str, Tensor], example: Any, axes: Any) -> dict[str, Mapping[int, str]]:
    """Names of the free axes of every input edge."""
    said = {} if axes is None else {id(x): own.names for x, own in by_tensor(example, axes)}
    return {edge: said[id(x)] for edge, x in tensors.items() if id(x) in said}


def symbols_of_inputs(inputs: Sequence[fx.Node], names: Mapping[str, Mapping[int, str]]
             ) -> tuple[dict[str, str], dict[str, str]]:
    """Our name of each of torch's symbols; and of a name that turned out to be another's, that other one."""
    symbols: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for node in inputs:
        shape = getattr(node.meta.get("val"), "shape", ())
        for i, dim in enumerate(shape):
            if isinstance(dim, int):
                continue
            (symbol,) = symbols_of(str(dim)) if len(symbols_of(str(dim))) == 1 else ("",)
            told = line(names.get(node.name, {}).get(i, ""  if i else BATCH) or default_name(len(shape), i))
            if not symbol or told is None or line(str(dim)) is None:
                raise CaptureError("a free axis is no multiple of a size", where=node.name, got=f"axis {i}: {dim}")
            own = told[0]
            if symbol not in symbols:
                given = i in names.get(node.name, {}) or i == 0
                while not given and own in symbols.values():
                    own += "_"
                symbols[symbol] = own
            if own != symbols[symbol]:
                aliases[own] = symbols[symbol]
    return symbols, aliases


def limits_of_program(program: torch.export.ExportedProgram, symbols: Mapping[str, str]) -> dict[str, list[int | None]]:
    """The range of every free size but the batch, as torch.export found it."""
    found: dict[str, list[int | None]] = {}
    for symbol, span in program.range_constraints.items():
        name = symbols.get(str(symbol))
        if name is not None and name != BATCH:
            low, high = (int(v) if str(v).lstrip("-").isdigit() else None for v in (span.lower, span.upper))
            old = found.get(name, [1, None])
            highs = [h for h in (high, old[1]) if h is not None and h < 2**31]
            low = 1 if low in (None, 2) else low  # torch never tries 1; we do, before it is believed
            found[name] = [max(low, old[0] or 1), min(highs) if highs else None]
    return found


def sizes_of_program(program: torch.export.ExportedProgram, symbols: Mapping[str, str]) -> list[str]:
    """Every size in the program that is no number, in our words."""
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        for value in leaves(node.meta.get("val")):
            for dim in getattr(value, "shape", ()):
                if not isinstance(dim, int):
                    with suppress(CaptureError):
                        found.setdefault(renamed(str(dim), symbols))
    return list(found)
