"""Tables of rows that are looked up, as codes."""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intact.errors import IntactError
from intact.leaves.base import Leaf, MakeWeight
from intact.leaves.how import LeafHow
from intact.leaves.recording import call, recording
from intact.leaves.weight import QWeight

__all__ = ["QEmbedding", "QEmbeddingBag", "look_up"]


def look_up(index: Tensor, weight: QWeight) -> Tensor:
    """Rows of a table in float32, (*shape of index, columns)."""
    if recording():
        result: Tensor = call("leaf_rows", weight, index, columns=weight.shape[1])
        return result
    return weight.rows(index.reshape(-1)).reshape(*index.shape, weight.shape[1])


class _Table(Leaf):
    """What both kinds of tables share."""

    qweight: QWeight

    @property
    def weight(self) -> Tensor:
        """The table that the codes stand for, made anew."""
        return self.qweight.real()


class QEmbedding(_Table):
    """``nn.Embedding``; only the rows that are asked for become float.

    >>> import torch, intact
    >>> intact.quantize_dynamic(torch.nn.Embedding(10, 4))(torch.tensor([3, 3])).shape
    torch.Size([2, 4])
    """

    def __init__(self, table: nn.Embedding, qweight: QWeight, how: LeafHow) -> None:
        super().__init__()
        self.how, self.num_embeddings, self.embedding_dim = how, table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self.qweight = qweight

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of an embedding."""
        table = cast(nn.Embedding, module)
        return cls(table, make(table.weight, "weight"), how)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table."""
        return look_up(input, self.qweight)

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.how}"


class QEmbeddingBag(_Table):
    """``nn.EmbeddingBag``: sums, means or maxima of rows.

    >>> import torch, intact
    >>> q = intact.quantize_dynamic(torch.nn.EmbeddingBag(10, 4))
    >>> q(torch.tensor([1, 2, 3]), torch.tensor([0, 2])).shape
    torch.Size([2, 4])
    """

    def __init__(self, table: nn.EmbeddingBag, qweight: QWeight, how: LeafHow) -> None:
        super().__init__()
        self.how, self.num_embeddings, self.embedding_dim = how, table.num_embeddings, table.embedding_dim
        self.mode, self.padding_idx = table.mode, table.padding_idx
        self.include_last_offset = table.include_last_offset
        self.qweight = qweight

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of an embedding bag."""
        table = cast(nn.EmbeddingBag, module)
        return cls(table, make(table.weight, "weight"), how)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """One row for each bag."""
        if recording():
            return self._matrix(input, offsets, per_sample_weights)
        flat = input.reshape(-1)
        rows = self.qweight.rows(flat)
        place = torch.arange(flat.numel(), dtype=flat.dtype, device=flat.device)
        padding = None
        if self.padding_idx is not None:  # its entries do not count: send them all to one row behind the others
            padding = flat.numel()
            place = torch.where(flat == self.padding_idx, padding, place)
            rows = torch.cat([rows, rows.new_zeros(1, self.embedding_dim)])
        return F.embedding_bag(
            place.reshape(input.shape), rows, offsets, mode=self.mode, per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset, padding_idx=padding)

    def _matrix(self, input: Tensor, offsets: Tensor | None, factors: Tensor | None) -> Tensor:
        """The same in operations that a capture knows, for bags that are the rows of a matrix."""
        if offsets is not None or input.ndim != 2:
            raise IntactError("bags of different sizes cannot be captured", got=f"{input.ndim} axis and offsets",
                              fix="give bags of one size as the rows of a matrix, filled up with padding_idx")
        rows = look_up(input, self.qweight)
        keep = torch.ones_like(input) if self.padding_idx is None else (input != self.padding_idx).to(input.dtype)
        keep = keep.unsqueeze(-1).to(rows.dtype)
        count = keep.sum(1)
        if self.mode == "max":
            return (rows - (1.0 - keep) * torch.finfo(rows.dtype).max).amax(1) * count.clamp(max=1.0)
        total = (rows * (keep if factors is None else keep * factors.unsqueeze(-1))).sum(1)
        return total / count.clamp(min=1.0) if self.mode == "mean" else total

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}, {self.how}"
