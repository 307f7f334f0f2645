"""The border between float and integers as users of eager quantization mark it."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DeQuantStub", "QuantStub"]


class QuantStub(nn.Module):
    """Identity: where float becomes integer. No model needs it: borders are found.

    Capturing a model takes it for the identity that it is; dynamic quantization leaves it where it is.

    >>> import torch
    >>> QuantStub()(torch.ones(1))
    tensor([1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


class DeQuantStub(nn.Module):
    """Identity: where integer becomes float again. See :class:`QuantStub`.

    >>> import torch
    >>> DeQuantStub()(torch.ones(1))
    tensor([1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x
