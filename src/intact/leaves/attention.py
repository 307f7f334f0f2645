"""``nn.MultiheadAttention`` with its projections on codes."""

from __future__ import annotations

import math
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intact.errors import IntactError
from intact.leaves.base import Leaf, MakeWeight, constant
from intact.leaves.how import LeafHow
from intact.leaves.product import product

__all__ = ["QAttention"]


class QAttention(Leaf):
    """``nn.MultiheadAttention``: four projections on codes; scores, softmax and their product with values in float.

    >>> import torch, intact
    >>> q = intact.quantize_dynamic(torch.nn.MultiheadAttention(8, 2, batch_first=True))
    >>> x = torch.randn(3, 5, 8)
    >>> y, weights = q(x, x, x)
    >>> y.shape, weights.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    in_proj_bias: Tensor | None
    out_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(self, module: nn.MultiheadAttention, how: LeafHow, make: MakeWeight) -> None:
        super().__init__()
        self.how, self.embed_dim, self.num_heads = how, module.embed_dim, module.num_heads
        self.kdim, self.vdim, self.head_dim = module.kdim, module.vdim, module.head_dim
        self.batch_first, self.dropout, self.add_zero_attn = module.batch_first, module.dropout, module.add_zero_attn
        self._qkv_same_embed_dim = False  # nn.TransformerEncoderLayer then leaves its fused float operation alone
        joint = cast("Tensor | None", module.in_proj_weight)
        apart = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = apart if joint is None else joint.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            make(w, f"{name}_proj", product=True) for name, w in zip("qkv", weights, strict=True))
        self.out_proj = make(module.out_proj.weight, "out_proj.weight", product=True)
        for name, bias in (("in_proj_bias", module.in_proj_bias), ("out_proj_bias", module.out_proj.bias),
                           ("bias_k", module.bias_k), ("bias_v", module.bias_v)):
            self.register_parameter(name, constant(bias))

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of attention."""
        return cls(cast(nn.MultiheadAttention, module), how, make)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as the float layer does it: outputs, and the weights if they are asked for.

        Raises:
            IntactError: for a mask of another shape or of integers, and for ``is_causal`` without a mask.
        """
        single = query.ndim == 2
        if is_causal and attn_mask is None:
            raise IntactError("is_causal is a hint for a mask, which is missing", where="attn_mask",
                              fix="pass attn_mask too, as the float layer wants it")
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, key.shape[1], k.shape[2] - key.shape[1])
        p = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, p) if p else weights
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, p)
        out = product(out.transpose(1, 2).flatten(2), self.out_proj, self.out_proj_bias)
        if single:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (batch, heads, length, features of a head)."""
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q = product(query, self.q_proj, biases[0])
        k = product(key, self.k_proj, biases[1])
        v = product(value, self.v_proj, biases[2])
        batch = q.shape[0]  # len() would fix the size of a captured batch
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat((t, b.expand(batch, 1, -1)), 1) for t, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (torch.cat((t, t.new_zeros(batch, 1, t.shape[2])), 1) for t in (k, v))
        q, k, v = (t.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        return q, k, v

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, length: int, extra: int
    ) -> Tensor | None:
        """What is added to scores (batch, heads, queries, keys); the ``extra`` keys at the end are never masked."""
        mask: Tensor | None = None
        batch, heads, queries, _ = q.shape
        if attn_mask is not None:
            whole = (batch * heads, queries, length)
            mask = _additive(attn_mask, q.dtype, whole if attn_mask.ndim == 3 else whole[1:], "attn_mask")
            if mask.ndim == 3:
                mask = mask.unflatten(0, (batch, heads))
        if padding is not None:
            keys = _additive(padding, q.dtype, (batch, length), "key_padding_mask").reshape(batch, 1, 1, length)
            mask = keys if mask is None else mask + keys
        return mask if mask is None or not extra else F.pad(mask, (0, extra))

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, {self.how}"


def _additive(mask: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(mask.shape) != shape or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise IntactError("a mask does not fit the attention", where=name, got=f"{mask.dtype}, {tuple(mask.shape)}",
                          allowed=f"booleans or real numbers, {shape}")
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)
