"""Linear layers on codes."""

from __future__ import annotations

from typing import Self, cast

from torch import Tensor, nn

from intact.leaves.base import Leaf, MakeWeight, constant
from intact.leaves.how import LeafHow
from intact.leaves.product import product
from intact.leaves.weight import QWeight

__all__ = ["QLinear"]


class QLinear(Leaf):
    """``nn.Linear``, or the ``Conv1D`` of Hugging Face models (a Linear whose weight is stored transposed).

    >>> import torch, intact
    >>> q = intact.quantize_dynamic(torch.nn.Linear(2, 3))
    >>> q(torch.randn(5, 2)).shape
    torch.Size([5, 3])
    """

    bias: Tensor | None

    def __init__(self, qweight: QWeight, bias: Tensor | None, how: LeafHow, transposed: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = qweight.shape
        self.how, self.transposed = how, transposed
        self.qweight = qweight
        self.register_parameter("bias", constant(bias))

    @classmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of a Linear or a Conv1D."""
        weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
        transposed = not isinstance(module, nn.Linear)
        return cls(make(weight.t() if transposed else weight, "weight", product=True), bias, how, transposed)

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, made anew: for code that looks at it."""
        weight = self.qweight.real()
        return weight.t() if self.transposed else weight

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``."""
        # not by way of Module.__getattr__, which takes as long as a small operation
        return product(input, cast(QWeight, self._modules["qweight"]), self._parameters["bias"])

    def extra_repr(self) -> str:
        """Sizes and encoding."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.how}"
