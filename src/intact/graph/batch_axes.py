"""Which axis of every input counts the samples: the first, or another one of the same size, found by trying it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from intact.errors import CaptureError, IntactError
from intact.graph.dynamic import Axes, by_tensor, paired
from intact.graph.tree import first_tensor, map_leaves
from intact.types.dims import BATCH

__all__ = ["at_least_two", "batch_of", "with_batch", "with_samples"]

_MOST = 64  # ways to try


def batch_of(value: Any, axes: Any) -> int:
    """Samples in the inputs: the size of the axis that is named so, or of the first axis of the first tensor."""
    for x, own in by_tensor(value, axes):
        for axis, name in own.names.items():
            if name == BATCH:
                return int(x.shape[axis])
    first = first_tensor(value)
    return 0 if first is None else int(first.shape[0])


def _axis(x: Tensor, own: Axes, size: int) -> int | None:
    """The axis of a tensor that counts the samples; None if none does."""
    named = next((axis for axis, name in own.names.items() if name == BATCH), None)
    if named is not None or 0 in own.names or not x.ndim:
        return named
    return 0 if x.shape[0] == size else None


def with_samples(value: Any, axes: Any, count: int) -> Any:
    """The inputs with another number of samples: cut, or repeated from the start."""
    size = batch_of(value, axes)

    def sized(x: Tensor, own: Axes) -> Tensor:
        axis = _axis(x, own, size)
        if axis is None or not size:
            return x
        if count <= size:
            return x.narrow(axis, 0, count)
        return x.index_select(axis, torch.arange(count, device=x.device) % size)

    return paired(value, axes, sized)


def at_least_two(value: Any, axes: Any) -> Any:
    """Tensors with a batch of one, doubled: torch.export takes a size of 1 for one that never changes.

    Raises:
        CaptureError: if a tensor is empty.
    """
    def doubled(x: Tensor, own: Axes) -> Tensor:
        if not x.ndim:
            return x
        if x.shape[0] == 0:
            raise CaptureError("an example input is empty", got=tuple(x.shape), fix="give at least one sample")
        first = x.shape[0] == 1 and BATCH not in own.names.values()
        return torch.cat([x, x]) if first else x.detach()

    return paired(value, axes, doubled)


def with_batch(model: nn.Module, value: tuple[tuple[Any, ...], dict[str, Any]], axes: Any,
               failures: tuple[type[Exception], ...]) -> Any:
    """The axes, with that of the samples named where it is not the first: states are (layers, samples, features).

    Where another axis than the first has as many numbers as there are samples, the model is called with one sample
    more, until it takes it; what is right at the first try, or never, is left as it is.

    Args:
        model: in evaluation mode.
        value: example inputs, by position and by name.
        axes: the free axes of every tensor.
        failures: what a model raises that does not take its inputs.
    """
    pairs, size = list(by_tensor(value, axes)), batch_of(value, axes)
    if any(BATCH in own.names.values() for _, own in pairs) or not pairs or 0 in pairs[0][1].names:
        return axes  # it was said
    first = first_tensor(value)
    choices: list[list[int | None]] = [
        [None, *(a for a in range(1, x.ndim) if x is not first and x.shape[a] == size and a not in own.names)]
        for x, own in pairs]
    caught: tuple[type[Exception], ...] = (*failures, IntactError)
    if size and max(map(len, choices)) > 1:
        for choice in islice(product(*choices), _MOST):
            found = _named(axes, choice)
            args, kwargs = with_samples(value, found, size + 1)
            try:
                model(*args, **kwargs)
            except caught:
                continue
            return found
    return axes


def _named(axes: Any, choice: tuple[int | None, ...]) -> Any:
    places = iter(choice)

    def named(own: Axes | None) -> Axes | None:
        if own is None:
            return None
        axis = next(places)
        return own if axis is None else replace(own, names={**own.names, axis: BATCH})

    return map_leaves(axes, named)
