"""What every observer is: streaming statistics that can be merged and that yield parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self, cast, final

import torch

from intact.errors import ArtifactError, CalibrationError, NonFiniteError
from intact.observers.ranges import range_to_qparams
from intact.types import Free, QParams

__all__ = ["Observer", "flat_view"]


def flat_view(x: torch.Tensor) -> torch.Tensor:
    """All elements of ``x`` on one axis, in any order; a view wherever the memory is dense.

    >>> x = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    >>> flat_view(x).data_ptr() == x.data_ptr()
    True
    """
    x = x.detach()
    if not x.is_contiguous():
        by_stride = x.permute(sorted(range(x.ndim), key=x.stride, reverse=True))
        x = by_stride if by_stride.is_contiguous() else x
    return x.reshape(-1)


class Observer(ABC):
    """Statistics of one tensor over all calibration batches, in constant memory.

    A subclass keeps its numbers and says how to take in data, to merge and to name a range; this
    class checks what comes in. Values are float32 (others are converted). The sums must not depend
    on how data is cut or ordered, unless the definition says so (a moving average).
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """Elements seen."""

    @property
    @abstractmethod
    def config(self) -> tuple[float, ...]:
        """The settings; two observers merge only if these are equal."""

    @abstractmethod
    def _accumulate(self, flat: torch.Tensor, low: float, high: float) -> None:
        """Take in ``flat`` (any real dtype, not empty), whose float32 extremes are finite."""

    @abstractmethod
    def _merge(self, other: Self) -> None:
        """Take in the statistics of ``other``, which is of the same kind, configured alike."""

    @abstractmethod
    def _range(self, spec: Free) -> tuple[float, float]:
        """The range to encode; asked only after data was seen."""

    @abstractmethod
    def _tensors(self) -> dict[str, torch.Tensor]:
        """The statistics as plain tensors, whose shapes never change."""

    @abstractmethod
    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what :meth:`_tensors` gave; dtypes and shapes are checked already."""

    @final
    def update(self, x: torch.Tensor, *, where: str = "", batch: int = 0) -> None:
        """Take in one batch.

        Args:
            x: real tensor of any shape and layout; the first axis is the batch.
            where: module path, for messages.
            batch: number of the batch, for messages.

        Raises:
            NonFiniteError: if a value is NaN or infinite in float32. The state stays as it was.
            CalibrationError: if ``x`` is empty or complex.

        >>> from intact.observers import MinMax
        >>> o = MinMax()
        >>> o.update(torch.tensor([[1.0, -2.0]]))
        >>> o.count
        2
        """
        if x.numel() == 0 or x.is_complex():
            raise CalibrationError(
                "an observer was given no real number", where=where,
                got=f"{x.dtype} of shape {tuple(x.shape)} in batch {batch}",
                fix="check the calibration data for empty batches",
            )
        flat = flat_view(x)
        if flat.dtype == torch.bool:
            flat = flat.to(torch.uint8)
        ends = torch.aminmax(flat)  # passes a NaN on, so finite ends mean finite values
        low, high = float(ends.min.to(torch.float32)), float(ends.max.to(torch.float32))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~torch.isfinite(flat.to(torch.float32))).sum())
            raise NonFiniteError(
                "a value is not finite", where=where,
                got=f"{bad} of {flat.numel()} values are NaN or infinite in batch {batch}",
                fix="run the float model on this batch, or leave the site in float",
            )
        self._accumulate(self._sample(x, flat), low, high)

    def _sample(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """The values of ``x`` that are accumulated; all of them unless a subclass says otherwise."""
        return flat

    @final
    def merge(self, other: Observer) -> None:
        """Take in what ``other`` has seen; ``other`` is left alone.

        Associative and commutative, so that workers may be merged in any order.

        Raises:
            CalibrationError: if the kinds or the settings differ.
        """
        if type(self) is not type(other) or self.config != other.config:
            raise CalibrationError(
                "two observers of different kinds or settings cannot be merged",
                got=f"{type(other).__name__}{other.config}",
                allowed=f"{type(self).__name__}{self.config}",
            )
        if other.count:
            self._merge(cast(Self, other))

    @final
    def range(self, spec: Free, *, where: str = "") -> tuple[float, float]:
        """The range that this observer would have encoded under ``spec``: ``(low, high)``.

        Raises:
            CalibrationError: if no data was seen.
        """
        if self.count == 0:
            raise CalibrationError(
                f"{where or 'an observer'} saw no data", where=where,
                fix="calibrate with data that reaches it, or leave the site in float",
            )
        return self._range(spec)

    @final
    def qparams(self, spec: Free, *, where: str = "") -> QParams:
        """Scale and zero point for ``spec``, from everything seen.

        Raises:
            CalibrationError: if no data was seen; names ``where``.
            PlanError: if the spec is not per tensor, or its clip leaves 0 out.

        >>> from intact.observers import MinMax
        >>> from intact.types import UINT8
        >>> o = MinMax()
        >>> o.update(torch.tensor([0.0, 51.0]))
        >>> float(o.qparams(Free(UINT8)).scale)
        0.20000000298023224
        """
        low, high = self.range(spec, where=where)
        return range_to_qparams(low, high, spec)

    @final
    def state(self) -> dict[str, torch.Tensor]:
        """The settings and everything seen, as plain CPU tensors of fixed size."""
        config = torch.tensor(self.config, dtype=torch.float64)
        return {"config": config, **{k: v.clone() for k, v in self._tensors().items()}}

    @final
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replace everything seen by a saved :meth:`state`.

        Raises:
            ArtifactError: if a tensor is missing, superfluous, of the wrong shape or dtype, or the
                settings are not this observer's.
        """
        own = self.state()
        wrong = sorted(own.keys() ^ state.keys())
        wrong += sorted(
            k for k in own.keys() & state.keys()
            if own[k].dtype != state[k].dtype or own[k].shape != state[k].shape
        )
        if not wrong and not torch.equal(own["config"], state["config"].cpu()):
            wrong = ["config"]
        if wrong:
            raise ArtifactError(
                f"this is not the state of a {type(self).__name__}{self.config}", got=wrong,
                allowed={k: (str(v.dtype), tuple(v.shape)) for k, v in own.items()},
            )
        self._load({k: v.detach().cpu().clone() for k, v in state.items()})
