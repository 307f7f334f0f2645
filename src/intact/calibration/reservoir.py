"""A few samples, spread evenly over data of unknown length."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from intact.graph import Graph
from intact.graph.free import free_symbols, resized, sample_axis
from intact.graph.signature import check_inputs
from intact.types.dims import BATCH

__all__ = ["Reservoir"]


class Reservoir:
    """Reservoir sampling (Vitter's algorithm R): every sample has the same chance to be kept.

    Which samples are kept depends on their number and order, not on how they are batched; the choice is seeded.

    >>> import torch
    >>> from intact.graph import capture
    >>> r = Reservoir(capture(torch.nn.Linear(1, 1), torch.zeros(2, 1)).graph, 2)
    >>> r.add({"input": torch.arange(10.0).reshape(10, 1)})
    >>> r.samples()["input"].shape
    torch.Size([2, 1])
    """

    def __init__(self, graph: Graph, size: int) -> None:
        self.graph, self.size, self.seen = graph, size, 0
        self.batched = {n.name: axis for n in graph.inputs if (axis := sample_axis(n)) is not None}
        self.kept: list[dict[str, Tensor]] = []
        self.others: dict[str, Tensor] = {}
        self.random = random.Random(0)

    def add(self, inputs: Mapping[str, Tensor]) -> None:
        """Take in a batch of named inputs."""
        if not self.batched:
            self.others = dict(inputs)
            return
        self.others = {k: v for k, v in inputs.items() if k not in self.batched}
        for i in range(check_inputs(self.graph, inputs)[BATCH]):
            place = len(self.kept) if self.seen < self.size else self.random.randrange(self.seen + 1)
            self.seen += 1
            if place < self.size:
                sample = {name: inputs[name].narrow(axis, i, 1).detach().clone() for name, axis in self.batched.items()}
                self.kept[place : place + 1] = [sample]

    def samples(self) -> dict[str, Tensor]:
        """The samples as named inputs."""
        kept = self.kept
        if kept and free_symbols(self.graph):
            kept = self._alike(kept)
        return {**{n: torch.cat([s[n] for s in kept], axis) for n, axis in self.batched.items()}, **self.others}

    def _alike(self, kept: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Samples of free sizes, cut or repeated to the sizes that most of them have."""
        sizes = [tuple(sorted(check_inputs(self.graph, {**s, **self.others}).items())) for s in kept]
        chosen = dict(max(Counter(sizes).items(), key=lambda pair: (pair[1], pair[0]))[0])
        return [resized(self.graph, {**s, **self.others}, chosen) for s in kept]
