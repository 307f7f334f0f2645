"""Whether leaves compute by themselves, or call operations that a capture keeps as they are."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from intact.leaves.how import how_to_json
from intact.leaves.weight import QWeight

__all__ = ["as_operations", "call", "operands", "recording", "tracing"]


class _State(threading.local):
    on: bool | None = None  # not said: where torch records operations


_STATE = _State()


def recording() -> bool:
    """Whether leaves are to call the operations of :mod:`intact.leaves.operations`: in ``torch.export``, ``jit.trace``.

    >>> recording()
    False
    """
    on = _STATE.on
    if on is not None:
        return on
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]


def tracing() -> bool:
    """Whether ``torch.jit.trace`` is at work.

    >>> tracing()
    False
    """
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]


@contextmanager
def as_operations(on: bool | None = True) -> Iterator[None]:
    """Inside, leaves call operations that ``torch.export`` keeps: one node for each, with the codes as operands."""
    before, _STATE.on = _STATE.on, on
    try:
        yield
    finally:
        _STATE.on = before


def operands(weight: QWeight | None) -> list[Tensor | None]:
    """Codes, scale and zero point; three times None for a weight that is not there."""
    return [None] * 3 if weight is None else [weight.codes, weight.scale, weight.zero_point]


def call(name: str, weight: QWeight, *args: Any, **settings: Any) -> Any:
    """Call an operation of one weight; its settings travel as JSON."""
    op = getattr(torch.ops.intact, name)
    return op(*args[:1], *operands(weight), *args[1:], json.dumps({"how": how_to_json(weight.how), **settings}))
