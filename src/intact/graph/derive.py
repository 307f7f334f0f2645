"""How the parameters of the canonical graph are made from the user's: as data, and differentiable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intact.errors import CaptureError

__all__ = ["Derived", "Expr", "derivation", "evaluate", "leaves"]

Rule = Callable[[Sequence[Tensor], Mapping[str, Any]], Tensor]

_RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Derived:
    """A parameter computed from others.

    Args:
        rule: name of a registered derivation.
        sources: the user's parameters by name, or derived ones.
        attrs: JSON values that the rule needs.
    """

    rule: str
    sources: tuple[Expr, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


Expr = str | Derived


def derivation(name: str) -> Callable[[Rule], Rule]:
    """Register ``rule(sources, attrs) -> tensor``; it is given and gives float64, and must be differentiable."""

    def register(rule: Rule) -> Rule:
        if name in _RULES:
            raise CaptureError("a derivation is registered twice", where=name)
        _RULES[name] = rule
        return rule

    return register


def evaluate(expr: Expr, sources: Mapping[str, Tensor]) -> Tensor:
    """The value of a parameter: the user's own, or derived in float64 and rounded once to float32.

    >>> evaluate("w", {"w": torch.tensor([1.0])})
    tensor([1.])
    """
    if isinstance(expr, str):
        return sources[expr]
    return _exact(expr, sources).to(torch.float32)


def _exact(expr: Expr, sources: Mapping[str, Tensor]) -> Tensor:
    if isinstance(expr, str):
        return sources[expr].to(torch.float64)
    return _RULES[expr.rule]([_exact(s, sources) for s in expr.sources], expr.attrs)


def leaves(expr: Expr) -> Iterator[str]:
    """Names of the user's parameters that an expression reads.

    >>> list(leaves(Derived("r", ("a", Derived("s", ("b",))))))
    ['a', 'b']
    """
    if isinstance(expr, str):
        yield expr
    else:
        for source in expr.sources:
            yield from leaves(source)
