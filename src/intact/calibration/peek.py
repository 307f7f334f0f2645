"""A look at the first batches of data that is still to be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from operator import length_hint
from typing import Any

from torch import nn

from intact.errors import CalibrationError, CaptureError, IntactError
from intact.graph import FloatModel
from intact.graph.dynamic import differing_axes
from intact.graph.signature import Parameters

__all__ = ["about_batch", "first_inputs", "fixed", "noted"]

#: where a note is about
_FIXED = "sizes that differ among the batches"
#: batches that are looked at for axes of different sizes
_LOOKED_AT = 8


def first_inputs(model: nn.Module, data: Iterable[Any]
                 ) -> tuple[Any, tuple[Any, ...], tuple[str, ...], Iterable[Any]]:
    """Inputs of the first batch, the axes whose sizes differ in the next few, and data that still holds all.

    The axes come in two ways: each on its own, and those that are always of one size as one. There are none where no
    size differs.

    Before the data, optional parameters of ``forward`` that could be meant by what of the batch is taken for labels.

    Raises:
        CalibrationError: if there is no data, or no inputs in the first batch.

    >>> import torch
    >>> data = [torch.zeros(2, 5), torch.zeros(2, 7)]
    >>> example, axes, spare, data = first_inputs(torch.nn.ReLU(), data)
    >>> axes, [len(x) for x in data]
    ((({1: True},), ({1: 'length'},)), [2, 2])
    """
    iterator = iter(data)
    head = list(itertools.islice(iterator, _LOOKED_AT))
    if not head:
        raise CalibrationError("there is no data", got="0 batches",
                               fix="pass a non-empty iterable; a generator can be consumed only once")
    parameters = Parameters.of(model)
    args, kwargs = parameters.split(head[0])
    rest = itertools.chain(head, iterator) if iterator is data else _Peeked(data, head, iterator)
    spare, ways = parameters.spare(head[0]), []
    with suppress(IntactError):  # a batch that does not fit is named when it is its turn
        given = [a or k for a, k in map(parameters.split, head)]
        ways = [differing_axes(given[0], given, named=named) for named in (False, True)]
    return args or kwargs, tuple(way for way in ways if way is not None), spare, rest


def noted(fm: FloatModel, spare: tuple[str, ...]) -> FloatModel:
    """A model that says which of its inputs were not taken from the batches (see :func:`first_inputs`)."""
    if not spare:
        return fm
    names = ", ".join(f"'{name}'" for name in spare)
    text = (f"what follows the first {len(fm.graph.inputs)} of a batch was taken for labels; if it is {names} of "
            "forward, yield dicts with the names of the inputs")
    return replace(fm, notes=(*fm.notes, (spare[0], text)))


def fixed(fm: FloatModel, error: CaptureError) -> FloatModel:
    """A model captured with fixed sizes, that says why no axis besides the batch is free though the batches differ."""
    return replace(fm, notes=(*fm.notes, (_FIXED, f"{error.what}: {error.got or error.where}")))


def about_batch(error: IntactError, number: int, model: FloatModel) -> CalibrationError:
    """What is wrong with a batch, and its number; where its sizes could not be left free, also why."""
    reason = next((text for place, text in model.notes if place == _FIXED), None)
    fix = f"{reason}; give all batches one size" if reason is not None and "shape" in error.what else error.fix
    return CalibrationError(f"batch {number}: {error.what}", where=error.where, got=error.got, allowed=error.allowed,
                            fix=fix)


class _Peeked:
    """Data of which the first batches were looked at: they are not loaded again."""

    def __init__(self, data: Iterable[Any], head: list[Any], rest: Iterator[Any]) -> None:
        self.data, self.pending = data, itertools.chain(head, rest)

    def __iter__(self) -> Iterator[Any]:
        pending, self.pending = self.pending, itertools.chain()
        started = False
        for item in pending:
            started = True
            yield item
        if not started:
            yield from self.data

    def __length_hint__(self) -> int:
        return length_hint(self.data)
