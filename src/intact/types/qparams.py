"""Scale and zero point of one tensor, with its encoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from intact.errors import PlanError
from intact.types.granularity import Granularity, PerChannel, PerTensor
from intact.types.qtype import QType

__all__ = ["QParams"]


@dataclass(frozen=True, eq=False)
class QParams:
    """How the codes of a tensor stand for real numbers: ``x = (q - zero_point) * scale``.

    Args:
        scale: float32, shape ``()`` per tensor or ``(channels,)`` per channel; finite, positive, normal.
        zero_point: int32, the shape of ``scale``; each within ``[qmin, qmax]``, so that 0.0 has a code.
        qtype: the encoding.
        granularity: which elements share a scale.

    Raises:
        PlanError: if a scale is not a positive normal float32 or a zero point has no code.

    >>> from intact.types import UINT8
    >>> p = QParams.per_tensor(0.5, 3, UINT8)
    >>> float(p.scale), int(p.zero_point)
    (0.5, 3)
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    qtype: QType
    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        if self.scale.dtype != torch.float32 or self.zero_point.dtype != torch.int32:
            raise PlanError(
                "scale must be float32 and zero point int32",
                got=f"{self.scale.dtype}, {self.zero_point.dtype}",
            )
        want = 1 if isinstance(self.granularity, PerChannel) else 0
        if self.scale.ndim != want or self.scale.shape != self.zero_point.shape:
            raise PlanError(
                "scale and zero point have the wrong shape", allowed=f"{want}-d, equal",
                got=f"{tuple(self.scale.shape)}, {tuple(self.zero_point.shape)}",
            )
        tiny = torch.finfo(torch.float32).tiny
        if not bool((torch.isfinite(self.scale) & (self.scale >= tiny)).all()):
            raise PlanError(
                "a scale is not a positive normal float32", got=self.scale.flatten()[:8].tolist(),
                fix="recalibrate with data that has a finite, non-constant range",
            )
        low, high = self.qtype.qmin, self.qtype.qmax
        if not bool(((self.zero_point >= low) & (self.zero_point <= high)).all()):
            raise PlanError(
                "a zero point has no code", got=self.zero_point.flatten()[:8].tolist(),
                allowed=f"[{low}, {high}]",
            )

    @staticmethod
    def per_tensor(scale: float, zero_point: int, qtype: QType) -> QParams:
        """One scale and zero point for a whole tensor."""
        return QParams(
            torch.tensor(scale, dtype=torch.float32),
            torch.tensor(zero_point, dtype=torch.int32),
            qtype,
        )

    def broadcast(self, ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point shaped to broadcast against a tensor of ``ndim`` axes."""
        if isinstance(self.granularity, PerChannel):
            shape = [1] * ndim
            shape[self.granularity.axis] = -1
            return self.scale.reshape(shape), self.zero_point.reshape(shape)
        return self.scale, self.zero_point

    def same_as(self, other: QParams) -> bool:
        """True if both give every code the same meaning."""
        return (
            self.qtype == other.qtype
            and self.granularity == other.granularity
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )
