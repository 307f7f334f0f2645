"""What a model may return: tensors and plain values in tuples, lists, dicts and data classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from intact.graph.tree import leaves

__all__ = ["plain_outputs", "plain_result"]

_PLAIN = (Tensor, int, float, str, bool, type(None))


def plain_result(value: Any, lost: dict[str, str] | None = None) -> Any:
    """A result as captured models give it: data classes are dicts, and what has no tensors of its own is None.

    A result that is so already is the same object.

    Args:
        value: what a model returned.
        lost: gets the place and the type of what became None.

    >>> lost = {}
    >>> plain_result({"y": 1, "cache": object(), "all": (2, object())}, lost), lost
    ({'y': 1, 'cache': None, 'all': (2, None)}, {'cache': 'object', 'all[1]': 'object'})
    """
    if all(isinstance(x, _PLAIN) for x in leaves(value)):
        return value
    return _plain(value, "", {} if lost is None else lost)


def _plain(value: Any, place: str, lost: dict[str, str]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, (Mapping, type)):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{place}.{k}" if place else str(k), lost) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_plain(v, f"{place}[{i}]", lost) for i, v in enumerate(value)]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, _PLAIN):
        return value
    lost[place or "the result"] = type(value).__name__
    return None


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[dict[str, str]]:
    """Inside, a model returns what :func:`plain_result` makes of its results; yields what became None."""
    lost: dict[str, str] = {}
    hook = model.register_forward_hook(lambda module, args, result: plain_result(result, lost))
    try:
        yield lost
    finally:
        hook.remove()
