"""Integer codes with the parameters that give them meaning."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from intact.errors import PlanError
from intact.types.qparams import QParams

__all__ = ["QTensor"]


@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes of any shape in the storage dtype of their encoding, with their :class:`QParams`.

    >>> from intact.types import UINT8
    >>> t = QTensor(torch.tensor([3, 5], dtype=torch.uint8), QParams.per_tensor(0.5, 3, UINT8))
    >>> t.dequantize()
    tensor([0., 1.])
    """

    codes: torch.Tensor
    qparams: QParams

    def __post_init__(self) -> None:
        if self.codes.dtype != self.qparams.qtype.storage:
            raise PlanError(
                "codes are stored in the wrong dtype", got=self.codes.dtype,
                allowed=self.qparams.qtype.storage,
            )

    def centred(self) -> torch.Tensor:
        """Codes minus zero point: the codes themselves where that is 0, else in a wider integer dtype."""
        if not bool(self.qparams.zero_point.any()):
            return self.codes
        wide = torch.int16 if self.qparams.qtype.bits <= 14 else torch.int32
        return self.codes.to(wide) - self.qparams.broadcast(self.codes.ndim)[1].to(wide)

    def dequantize(self) -> torch.Tensor:
        """``(q - zero_point) * scale`` in float32, one rounding (the product)."""
        scale, zero = self.qparams.broadcast(self.codes.ndim)
        return (self.codes.to(torch.int32) - zero).to(torch.float32) * scale
