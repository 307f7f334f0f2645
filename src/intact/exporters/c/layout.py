"""Where the elements of a tensor lie: the order of its axes in memory, steps, views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Stored", "collapse", "steps", "viewed"]


@dataclass(frozen=True)
class Stored:
    """A tensor in a buffer.

    Args:
        buffer: number of the buffer, all of which it fills.
        shape: sizes of the axes, as in the model.
        order: the axes from the outermost in memory to the innermost.
        ctype: type of its elements: ``s8``, ``u8`` or ``s16``.
    """

    buffer: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    ctype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def steps(self) -> tuple[int, ...]:
        """Distance in memory of neighbours along each axis of the model."""
        return steps(self.shape, self.order)

    @property
    def plain(self) -> bool:
        """True if the elements lie in the model's own order."""
        return self.lies_as(range(len(self.shape)))

    def lies_as(self, order: Sequence[int]) -> bool:
        """True if another order of the axes would be the same memory (axes of size 1 do not matter)."""
        return [a for a in self.order if self.shape[a] != 1] == [a for a in order if self.shape[a] != 1]


def steps(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Distance in memory of neighbours along each axis.

    >>> steps((2, 3, 4), (0, 2, 1))
    (12, 1, 3)
    """
    found, size = [0] * len(shape), 1
    for axis in reversed(order):
        found[axis] = size
        size *= shape[axis]
    return tuple(found)


def collapse(sizes: Sequence[int], *tables: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Fewer axes with the same elements: those of size 1 dropped, neighbours merged where every table of steps allows.

    >>> collapse([2, 3, 4], [12, 4, 1], [0, 4, 1])
    ([2, 12], [[12, 1], [0, 1]])
    """
    out: list[int] = []
    found: list[list[int]] = [[] for _ in tables]
    for i, size in enumerate(sizes):
        if size == 1:
            continue
        if out and all(f[-1] == t[i] * size for f, t in zip(found, tables, strict=True)):
            out[-1] *= size
            for f, t in zip(found, tables, strict=True):
                f[-1] = t[i]
        else:
            out.append(size)
            for f, t in zip(found, tables, strict=True):
                f.append(t[i])
    return (out, found) if out else ([1], [[1] for _ in tables])


def viewed(x: Stored, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The order in which the same memory has another shape; None if the elements must be moved.

    >>> channels_last = Stored(0, (1, 8, 4, 5), (0, 2, 3, 1), "s8")
    >>> viewed(channels_last, (1, 8, 20)), viewed(channels_last, (1, 160))
    ((0, 2, 1), None)
    """
    old = [a for a, n in enumerate(x.shape) if n != 1]
    new = [a for a, n in enumerate(shape) if n != 1]
    groups: dict[int, list[int]] = {}  # first old axis of a group -> its new axes
    members: dict[int, list[int]] = {}
    i = j = 0
    while i < len(old):
        first, a, b = old[i], x.shape[old[i]], shape[new[j]]
        members[first], groups[first] = [old[i]], [new[j]]
        while a != b:
            if a < b:
                i += 1
                members[first].append(old[i])
                a *= x.shape[old[i]]
            else:
                j += 1
                groups[first].append(new[j])
                b *= shape[new[j]]
        i, j = i + 1, j + 1
    inner = [a for a in x.order if x.shape[a] != 1]
    order = [a for a, n in enumerate(shape) if n == 1]
    while inner:
        part = members.get(inner[0])
        if part is None or inner[: len(part)] != part:
            return None
        order += groups[inner[0]]
        inner = inner[len(part) :]
    return tuple(order)
