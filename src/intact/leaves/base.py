"""What makes a leaf: a module of the user's model and how its weights are encoded."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, Self

from torch import Tensor, nn

from intact.leaves.how import LeafHow
from intact.leaves.weight import QWeight

__all__ = ["Leaf", "MakeWeight", "constant"]


class MakeWeight(Protocol):
    """The codes of a float weight of a module, by its name there; tied weights give one and the same object.

    ``product`` says that inputs are multiplied with the weight and nothing else happens to it.
    """

    def __call__(self, weight: Tensor, name: str, *, product: bool = False) -> QWeight:
        """The codes."""


class Leaf(nn.Module):
    """A layer whose weights are codes; it takes and gives what the float layer takes and gives."""

    how: LeafHow

    @classmethod
    @abstractmethod
    def from_float(cls, module: nn.Module, how: LeafHow, make: MakeWeight) -> Self:
        """The leaf in the place of a float layer, which is not changed."""

    @staticmethod
    def refusal(module: nn.Module, how: LeafHow) -> str | None:
        """Why the layer cannot be such a leaf; None if it can."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def constant(value: Tensor | None) -> nn.Parameter | None:
    """A copy of a parameter that is not trained."""
    return None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
