"""Vision transformer, with three ways to write attention."""

import enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionKind(enum.Enum):
    """How the attention is written."""

    SOFTMAX = "softmax"
    SDPA = "sdpa"
    MULTIHEAD = "multihead"


class SoftmaxAttention(nn.Module):
    """Self-attention as matrix products and a softmax (Vaswani et al., NeurIPS 2017)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(batch, tokens, dim)
        x = self.proj(x)
        return x


class FusedAttention(nn.Module):
    """Self-attention by the fused operator, with separate projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """Return `(batch, heads, tokens, dim // heads)` from `(batch, tokens, dim)`."""
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        out: Tensor = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(1, 2).contiguous().view(x.size(0), x.size(1), -1)
        out = self.proj(out)
        return out


class MultiheadAttention(nn.Module):
    """Self-attention by `torch.nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attention(x, x, x, need_weights=False)
        return x


_ATTENTION = {
    AttentionKind.SOFTMAX: SoftmaxAttention,
    AttentionKind.SDPA: FusedAttention,
    AttentionKind.MULTIHEAD: MultiheadAttention,
}


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a GELU network, each with a shortcut."""

    def __init__(self, dim: int, heads: int, attention: AttentionKind) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _ATTENTION[attention](dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021).

    The defaults are DeiT-Tiny (Touvron et al., ICML 2021).

    Args:
        num_classes: number of logits.
        size: height and width of the input, a multiple of `patch`.
        patch: height and width of a patch.
        dim: features of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        attention: how the attention is written.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        size: int = 224,
        patch: int = 16,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        attention: AttentionKind = AttentionKind.SOFTMAX,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, attention) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        cls_token = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((cls_token, x), dim=1)
        x = x + self.pos_embed
        x = self.blocks(x)
        x = self.norm(x)
        x = self.head(x[:, 0])
        return x
