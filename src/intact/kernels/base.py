"""What a kernel is bound to, and the two carriers in which it runs: integers, or floats that hold integers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intact.arithmetic import Arithmetic, quantize
from intact.arithmetic.layer_norm import normalized_bits
from intact.errors import PlanError
from intact.types import QParams, QTensor
from intact.types.dims import Sizes

__all__ = ["KERNELS", "Binding", "Kernel", "activation_codes", "kernel", "operand_scale", "to_carrier"]


@dataclass(frozen=True, eq=False)
class Binding:
    """Everything that is fixed before a kernel runs.

    Args:
        op: canonical operation.
        attrs: its attributes.
        inputs: parameters of the operands' codes.
        output: parameters of the output's codes; int32 with scale s_x * s_w if it is the accumulator.
        arithmetic: the target's number rules.
        weight: integer codes and per-channel scales.
        bias: int32 codes with scale s_x * s_w, shape (out channels,).
        where: module path, for messages.
    """

    op: str
    attrs: Mapping[str, Any]
    inputs: tuple[QParams, ...]
    output: QParams
    arithmetic: Arithmetic
    weight: QTensor | None = None
    bias: Tensor | None = None
    where: str = ""

    @property
    def is_accumulator(self) -> bool:
        """True if the output is the int32 accumulator itself."""
        return self.output.qtype.bits == 32


class Kernel(ABC):
    """One operation on codes.

    ``kernel(xs, sizes)`` takes integer codes or integer-valued floats and gives the output codes in the same kind
    of carrier; both carriers give the same numbers (E1).
    """

    def __init__(self, binding: Binding) -> None:
        self.binding = binding

    @abstractmethod
    def __call__(self, xs: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Output codes."""


KERNELS: dict[str, type[Kernel]] = {}


def kernel(*ops: str) -> Callable[[type[Kernel]], type[Kernel]]:
    """Register a kernel class for canonical operations."""

    def register(cls: type[Kernel]) -> type[Kernel]:
        for op in ops:
            if op in KERNELS:
                raise PlanError("a kernel is registered twice", where=op)
            KERNELS[op] = cls
        return cls

    return register


def operand_scale(op: str, attrs: Mapping[str, Any], operand: QParams) -> Tensor:
    """Scale of what the weight codes of a kernel are multiplied with: the operand's, or that of normalized values."""
    if op == "layer_norm":
        return torch.tensor(2.0 ** -normalized_bits(math.prod(attrs["shape"])))
    return operand.scale


def to_carrier(codes: Tensor, like: Tensor, binding: Binding) -> Tensor:
    """Integer-valued floats as they are, or in the storage dtype if the operands were integers."""
    if like.is_floating_point():
        return codes
    return codes.to(binding.output.qtype.storage)


def activation_codes(binding: Binding) -> tuple[int, int]:
    """Lowest and highest output code once the folded activation has clamped."""
    q = binding.output.qtype
    bounds = binding.attrs.get("activation")
    if bounds is None:
        return q.qmin, q.qmax
    low, high = quantize(torch.tensor([bounds[0], bounds[1]]), binding.output, binding.arithmetic).tolist()
    return int(low), int(high)
