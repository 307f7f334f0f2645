"""How a layer quantizes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from intact.errors import PlanError
from intact.types import QType

__all__ = ["Options", "Settings"]


class Options(TypedDict, total=False):
    """The arguments of :class:`Settings`, as layers take them."""

    a_bits: int
    w_bits: int
    a_symmetric: bool
    w_symmetric: bool
    per_channel: bool | Literal["L", "C"]
    first_layer: bool
    batch_norm: bool
    bn_momentum: float | None
    bn_eps: float


@dataclass(frozen=True)
class Settings:
    """How a layer quantizes itself.

    Args:
        a_bits, w_bits: of what the layer reads, and of its weight: 2 to 16, or 32: not quantized. A layer with only
            one of them at 32 trains so, and is float when the network is converted; the plan says so.
        a_symmetric: the zero point of what it reads is in the middle (at the bottom if nothing is negative).
        w_symmetric: weights have codes -127 to 127 (at 8 bits) and no zero point; else -128 to 127 and one.
        per_channel: ``True`` or ``"C"``: one weight scale for each output channel; ``False`` or ``"L"``: one in all.
        first_layer: what it reads keeps at least 8 bits.
        batch_norm: a batch norm follows, and is folded into the weight before that is quantized.
        bn_momentum: of its running statistics; 0.01 suits low widths. The first batch is copied.
        bn_eps: added to its variance.

    Raises:
        PlanError: for a width that there is not.

    >>> Settings(a_bits=4, first_layer=True).activation_bits
    8
    """

    a_bits: int = 8
    w_bits: int = 8
    a_symmetric: bool = False
    w_symmetric: bool = True
    per_channel: bool | Literal["L", "C"] = True
    first_layer: bool = False
    batch_norm: bool = False
    bn_momentum: float | None = 0.1
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("a_bits", "w_bits"):
            bits = getattr(self, name)
            if bits == 1:
                raise PlanError("binary networks are not affine codes", where=name, got=1, allowed="2 to 16, or 32",
                                fix="take 2 bits, or 32 to leave it in float")
            if isinstance(bits, bool) or not isinstance(bits, int) or not (2 <= bits <= 16 or bits == 32):
                raise PlanError(f"{name} is out of range", got=bits, allowed="2 to 16, or 32 (float)")
        if self.per_channel not in (True, False, "L", "C"):
            raise PlanError("no such level", where="per_channel", got=self.per_channel, allowed="'C' or 'L'")

    @property
    def activation_bits(self) -> int:
        """Bits of what the layer reads."""
        return max(8, self.a_bits) if self.first_layer else self.a_bits

    @property
    def by_channel(self) -> bool:
        """Whether each output channel has a weight scale."""
        return self.per_channel in (True, "C")

    @property
    def activation_type(self) -> QType | None:
        """Encoding of what the layer reads; None for float."""
        return None if self.a_bits == 32 else QType(self.activation_bits, signed=False)

    @property
    def weight_type(self) -> QType | None:
        """Encoding of the weight; None for float."""
        return None if self.w_bits == 32 else QType(self.w_bits, signed=True, narrow=self.w_symmetric)
