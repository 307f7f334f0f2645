"""Layers that say themselves how they are to be quantized, and what they have learned about their ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Hint", "Hinted", "hints_of", "in_float"]


@dataclass(frozen=True, eq=False)
class Hint:
    """What a quantized layer says about itself.

    Args:
        weight_bits, activation_bits: of the weight and of what the layer reads; 32 for float.
        per_channel: one weight scale for each output channel.
        weight_symmetric, activation_symmetric: zero point 0, or in the middle.
        input_range: lowest and highest value that it has learned to read; None before training.
        output_range: the same of what it makes.
        weight_scale, weight_zero: of its weight with its batch norm folded, shape ``(channels,)`` or ``()``.
        batch_norm: its own batch norm, by its name in the layer; "" for none.
    """

    weight_bits: int
    activation_bits: int
    per_channel: bool
    weight_symmetric: bool
    activation_symmetric: bool
    input_range: tuple[float, float] | None = None
    output_range: tuple[float, float] | None = None
    weight_scale: Tensor | None = None
    weight_zero: Tensor | None = None
    batch_norm: str = ""


class Hinted(nn.Module):
    """A layer with settings of its own; capture takes it as the float layer that it is while ``in_float``."""

    in_float = False

    def hint(self) -> Hint:
        """Settings and ranges."""
        raise NotImplementedError


def hints_of(model: nn.Module) -> Mapping[str, Hint]:
    """What the layers of a model say, by each of their paths."""
    modules = model.named_modules(remove_duplicate=False)
    return {path: module.hint() for path, module in modules if isinstance(module, Hinted)}


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Inside, such layers compute in float."""
    layers = [m for m in model.modules() if isinstance(m, Hinted)]
    before = [m.in_float for m in layers]
    for layer in layers:
        layer.in_float = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.in_float = value
