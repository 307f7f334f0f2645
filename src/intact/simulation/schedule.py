"""When training observes, quantizes and freezes: a value, stored with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from intact.errors import TrainingError

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Steps (forward passes in training mode) at which something starts or stops.

    Args:
        quantize_from: fake quantization starts; before it the model trains in float.
        observe_from: ranges that follow the data start to move.
        observe_until: they stop; ``None``: never before ``freeze_ranges_at``.
        freeze_ranges_at: every scale and zero point of an edge is fixed, learned ones too.
        freeze_batch_norm_at: batch norms use their running statistics from here on.
        batch_norm_momentum: instead of the batch norms' own (0.01 suits low widths).

    Raises:
        TrainingError: if the schedule contradicts itself.

    >>> Schedule(freeze_batch_norm_at=1000).quantizes(0)
    True
    """

    quantize_from: int = 0
    observe_from: int = 0
    observe_until: int | None = None
    freeze_ranges_at: int | None = None
    freeze_batch_norm_at: int | None = None
    batch_norm_momentum: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "batch_norm_momentum":
                good = value is None or (isinstance(value, (int, float)) and 0 < value <= 1)
                allowed = "above 0, at most 1, or None"
            else:
                optional = f.name not in ("quantize_from", "observe_from")
                whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
                good, allowed = whole or (optional and value is None), "a number of steps"
            if not good:
                raise TrainingError("a schedule has an impossible entry", where=f.name, got=value, allowed=allowed)
        if self.observe_until is not None and self.observe_until < self.observe_from:
            self._contradiction("observe_until", "observe_from")
        if self.freeze_ranges_at is not None:
            for name in ("observe_from", "observe_until", "quantize_from"):
                if (getattr(self, name) or 0) > self.freeze_ranges_at:
                    self._contradiction("freeze_ranges_at", name)

    def _contradiction(self, name: str, other: str) -> None:
        raise TrainingError("the schedule contradicts itself", where=name, got=getattr(self, name),
                            allowed=f"at least {other} = {getattr(self, other)}")

    def observes(self, step: int) -> bool:
        """Whether ranges follow the data at a step."""
        late = self.observe_until is not None and step >= self.observe_until
        return step >= self.observe_from and not late and not self.freezes_ranges(step)

    def quantizes(self, step: int) -> bool:
        """Whether values are fake-quantized at a step."""
        return step >= self.quantize_from

    def freezes_ranges(self, step: int) -> bool:
        """Whether ranges are fixed at a step."""
        return self.freeze_ranges_at is not None and step >= self.freeze_ranges_at

    def freezes_batch_norm(self, step: int) -> bool:
        """Whether batch norms use running statistics at a step."""
        return self.freeze_batch_norm_at is not None and step >= self.freeze_batch_norm_at

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From plain data.

        Raises:
            TrainingError: for an unknown or impossible entry.
        """
        unknown = sorted(data.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise TrainingError("a schedule has unknown entries", got=unknown)
        return cls(**data)
