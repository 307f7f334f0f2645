"""Integer encodings: how many bits, signed or not, the whole range or the symmetric one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from intact.errors import PlanError

__all__ = ["INT8", "INT8_NARROW", "INT16", "INT32", "UINT8", "UINT16", "QType"]


@dataclass(frozen=True)
class QType:
    """An integer encoding.

    Args:
        bits: 2 to 16 for activations and weights, 32 for accumulators and biases.
        signed: two's complement or unsigned.
        narrow: leave out the lowest signed code, so that the range is symmetric.

    Raises:
        PlanError: for a width that no encoding has (1 bit needs binary networks, not affine codes).

    >>> QType(4, signed=True, narrow=True).qmin, QType(4, signed=True).qmax
    (-7, 7)
    >>> str(UINT8), UINT8.storage
    ('uint8', torch.uint8)
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise PlanError(
                "no such integer encoding", got=f"{self.bits} bits", allowed="2 to 16 bits, or 32",
                fix="choose 2 to 16 bits, or leave the layer in float",
            )
        if self.narrow and not self.signed:
            raise PlanError("a narrow range needs a signed type", got=f"unsigned {self.bits} bits")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.narrow else 0)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def storage(self) -> torch.dtype:
        """The torch dtype that holds the codes."""
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        if self.bits <= 15 or (self.bits == 16 and self.signed):
            return torch.int16
        return torch.int32  # torch has hardly any operation on uint16

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}{'_narrow' if self.narrow else ''}"


UINT8 = QType(8, signed=False)
INT8 = QType(8, signed=True)
INT8_NARROW = QType(8, signed=True, narrow=True)
UINT16 = QType(16, signed=False)
INT16 = QType(16, signed=True)
INT32 = QType(32, signed=True)
