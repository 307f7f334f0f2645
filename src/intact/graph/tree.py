"""Nested arguments and results: tuples, lists, dicts and named tuples of leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["first_tensor", "leaves", "map_leaves"]


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with every leaf changed; mappings become dicts, as torch.export knows them.

    >>> map_leaves((1, [2, {"a": 3}]), lambda x: x * 10)
    (10, [20, {'a': 30}])
    """
    if isinstance(value, Mapping):
        return {k: map_leaves(v, change) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_leaves(v, change) for v in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    """What is neither mapping, tuple nor list, from left to right.

    >>> list(leaves((1, [2, {"a": 3}])))
    [1, 2, 3]
    """
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor with an axis, whose first axis counts samples.

    >>> import torch
    >>> first_tensor((3, {"x": torch.zeros(2, 5)})).shape
    torch.Size([2, 5])
    """
    return next((t for t in leaves(value) if isinstance(t, Tensor) and t.ndim), None)
