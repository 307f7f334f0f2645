"""Which elements of a tensor share one scale: a sum type, never flags."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Granularity", "PerChannel", "PerGroup", "PerTensor", "PerToken"]


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def __str__(self) -> str:
        return "per tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of ``axis``."""

    axis: int = 0

    def __str__(self) -> str:
        return f"per channel (axis {self.axis})"


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of ``size`` elements along ``axis``."""

    axis: int
    size: int

    def __str__(self) -> str:
        return f"per group of {self.size} (axis {self.axis})"


@dataclass(frozen=True)
class PerToken:
    """One scale for each row of the last axis, found at run time."""

    def __str__(self) -> str:
        return "per token"


Granularity = PerTensor | PerChannel | PerGroup | PerToken
