"""The arena: one block of memory in which every tensor has its place while it lives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Block", "largest_live", "place_blocks"]

_ALIGNED = 4  # bytes: a block begins where any type of the arena may


@dataclass(frozen=True)
class Block:
    """Bytes that are alive from one step to another, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """True if both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


def largest_live(blocks: Iterable[Block]) -> int:
    """The most bytes that are alive at one step: no arena can be smaller.

    >>> largest_live([Block(8, 0, 1), Block(4, 1, 2), Block(8, 2, 3)])
    12
    """
    found = list(blocks)
    starts = {b.first for b in found}
    return max((sum(b.size for b in found if b.first <= step <= b.last) for step in starts), default=0)


def place_blocks(blocks: Mapping[int, Block]) -> tuple[dict[int, int], int]:
    """Offset of every block, and the size of the arena: greedy best fit, in the best of a few orders.

    Each block goes into the smallest gap that holds it, among the blocks placed already that are alive with it.

    >>> place_blocks({0: Block(8, 0, 1), 1: Block(4, 1, 2), 2: Block(8, 2, 3)})
    ({0: 0, 2: 0, 1: 8}, 12)
    """
    orders = (
        lambda k: (-blocks[k].size, blocks[k].first, k),
        lambda k: (-blocks[k].size * (1 + blocks[k].last - blocks[k].first), blocks[k].first, k),
        lambda k: (blocks[k].first, -blocks[k].size, k),
        lambda k: (blocks[k].first - blocks[k].last, -blocks[k].size, k),
    )
    return min((_in_order(blocks, sorted(blocks, key=order)) for order in orders), key=lambda found: found[1])


def _in_order(blocks: Mapping[int, Block], order: Sequence[int]) -> tuple[dict[int, int], int]:
    placed: dict[int, int] = {}
    for key in order:
        block = blocks[key]
        others = sorted((placed[k], placed[k] + blocks[k].size) for k in placed if blocks[k].meets(block))
        placed[key] = _best_gap(others, block.size)
    return placed, max((placed[k] + blocks[k].size for k in placed), default=0)


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap of at least ``size`` bytes between ranges in ascending order; else the end."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = (start - end, end)
        end = max(end, -(-stop // _ALIGNED) * _ALIGNED)
    return best[1] if best else end
