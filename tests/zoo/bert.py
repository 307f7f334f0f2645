"""A small BERT-like encoder: token ids and a mask in, a dict out; written in the ways that such models are written."""

from __future__ import annotations

import enum
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Encoder", "MaskKind", "tokens", "with_outliers"]


class MaskKind(enum.Enum):
    """How padding is kept out of attention."""

    ADDED_MIN = "(1 - mask) * finfo.min, added to the scores"
    ADDED_WHERE = "where(mask, 0, finfo.min), added by the fused operator"
    BOOL = "a boolean mask for the fused operator"
    FILLED = "masked_fill with -inf"
    MULTIHEAD = "key_padding_mask of nn.MultiheadAttention, with its weights"
    NONE = "not at all"


class Attention(nn.Module):
    """Self-attention with separate projections."""

    def __init__(self, dim: int, heads: int, kind: MaskKind) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        if kind is MaskKind.MULTIHEAD:
            self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
            return
        self.query, self.key, self.value, self.dense = (nn.Linear(dim, dim) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.kind is MaskKind.MULTIHEAD:
            y: Tensor = self.attention(x, x, x, key_padding_mask=mask == 0)[0]
            return y
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        y = self.mixed(q, k, v, mask[:, None, None, :])
        y = self.dense(y.transpose(1, 2).reshape(x.shape))
        return y

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        low = torch.finfo(torch.float32).min
        if self.kind is MaskKind.BOOL:
            return F.scaled_dot_product_attention(q, k, v, mask.bool())
        if self.kind is MaskKind.ADDED_WHERE:
            added = torch.where(mask.bool(), torch.tensor(0.0), torch.tensor(low))
            return F.scaled_dot_product_attention(q, k, v, added)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.kind is MaskKind.ADDED_MIN:
            scores = scores + (1.0 - mask.to(torch.float32)) * low
        elif self.kind is MaskKind.FILLED:
            scores = scores.masked_fill(mask == 0, -math.inf)
        return scores.softmax(-1) @ v


class Layer(nn.Module):
    """Attention and a GELU network, each with a shortcut and a norm behind it (Devlin et al., BERT, 2019)."""

    def __init__(self, dim: int, heads: int, kind: MaskKind) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(dim, heads, kind), nn.LayerNorm(dim)
        self.wide, self.narrow, self.norm2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        y: Tensor = self.norm2(x + self.narrow(F.gelu(self.wide(x))))
        return y


class Encoder(nn.Module):
    """Embeddings, layers, and the first token's pooled vector."""

    def __init__(self, kind: MaskKind = MaskKind.ADDED_WHERE, vocabulary: int = 50, length: int = 12, dim: int = 48,
                 depth: int = 2, heads: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, dim), nn.Parameter(torch.randn(1, length, dim))
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(Layer(dim, heads, kind) for _ in range(depth))
        self.pooler = nn.Linear(dim, dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.words(input_ids) + self.places)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return {"last_hidden_state": x, "pooler_output": torch.tanh(self.pooler(x[:, 0]))}


def with_outliers(net: Encoder) -> Encoder:
    """The same with what trained encoders have: one channel that a neuron drives, for the first token alone."""
    with torch.no_grad():
        net.words.weight[1, 5] = 12.0  # the first token
        for layer in net.layers:
            assert isinstance(layer, Layer)
            layer.norm1.weight[5] = 6.0
            layer.wide.weight[7], layer.wide.bias[7] = 0.0, -2.0
            layer.wide.weight[7, 5] = 1.5
            layer.narrow.weight[9, 7] = 3.0
    return net


def tokens(batch: int, seed: int = 0, length: int = 12, vocabulary: int = 50) -> dict[str, Tensor]:
    """Sentences of 3 tokens and more, padded; the first token is always the same."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocabulary, (batch, length), generator=g)
    ids[:, 0] = 1
    lengths = torch.randint(3, length + 1, (batch, 1), generator=g)
    mask = (torch.arange(length) < lengths).to(torch.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}
