"""What the encoding of an edge must be, decided by the plan before any data is read."""

from __future__ import annotations

from dataclasses import dataclass

from intact.types.granularity import Granularity, PerTensor
from intact.types.qparams import QParams
from intact.types.qtype import QType

__all__ = ["Accumulator", "Fixed", "Free", "Joined", "QSpec", "Shared"]


@dataclass(frozen=True)
class Free:
    """Parameters of its own, found by an observer.

    ``clip`` bounds the range to be encoded: an activation function folded into the producer (ReLU
    gives ``(0, inf)``) makes the codes outside it useless. ``quantizer`` says what moves the
    parameters in training. ``power_of_two``: the scale is one, because the target requantizes by shifts.
    """

    qtype: QType
    granularity: Granularity = PerTensor()
    symmetric: bool = False
    observer: str = "mse"
    clip: tuple[float, float] | None = None
    quantizer: str = "observed"
    power_of_two: bool = False

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        within = f" within [{self.clip[0]:g}, {self.clip[1]:g}]" if self.clip else ""
        known = {"observed": "", "gathered": ", over all batches"}
        powers = ", scale a power of two" if self.power_of_two else ""
        learned = known.get(self.quantizer, f", trained by {self.quantizer}")
        return f"{self.qtype} {self.granularity} {kind}, {self.observer}{within}{learned}{powers}"


@dataclass(frozen=True)
class Joined:
    """The parameters of ``group`` if the own range is at least ``1 / max_ratio`` of the group's, else its own.

    For the operands of a concatenation: one scale saves a rounding, but must never swallow a small
    operand (boxes in [0, 640] beside scores in [0, 1]).
    """

    group: str
    own: Free
    max_ratio: float = 2.0

    def __str__(self) -> str:
        return f"{self.own}; joins '{self.group}' if its range is at least 1/{self.max_ratio:g} of it"


@dataclass(frozen=True)
class Shared:
    """Exactly the parameters of another edge: the operation moves codes and changes none."""

    source: str

    def __str__(self) -> str:
        return f"shared with '{self.source}'"


@dataclass(frozen=True)
class Accumulator:
    """The int32 accumulator itself: scale is input scale times weight scale; nothing is rounded away."""

    def __str__(self) -> str:
        return "int32 accumulator"


@dataclass(frozen=True)
class Fixed:
    """Parameters that the target prescribes."""

    qparams: QParams

    def __str__(self) -> str:
        p = self.qparams
        return f"{p.qtype} fixed scale {float(p.scale):g} zero point {int(p.zero_point)}"


QSpec = Free | Joined | Shared | Accumulator | Fixed
