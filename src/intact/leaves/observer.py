"""The observer of eager models: a module that lets its input pass and keeps its extremes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from intact.errors import CalibrationError, NonFiniteError, PlanError
from intact.observers import affine_parameters
from intact.types import QType

__all__ = ["Observer"]

_DTYPES = {"qint8": True, "int8": True, "quint8": False, "uint8": False}  # signed?
_SCHEMES = {"per_tensor_affine": (False, False), "per_tensor_symmetric": (False, True),
            "per_channel_affine": (True, False), "per_channel_symmetric": (True, True)}


class Observer(nn.Module):
    """Passes its input through, and keeps the smallest and the largest value of **all** calls.

    Args:
        dtype: ``torch.quint8`` or ``torch.qint8`` (or ``torch.uint8``, ``torch.int8``, or their names).
        qscheme: ``torch.per_tensor_affine``, ``per_tensor_symmetric``, ``per_channel_affine`` or
            ``per_channel_symmetric``, or their names; ``"per_tensor"`` and ``"per_channel"`` are affine.
        axis: of the channels.

    Raises:
        PlanError: for another dtype or scheme.

    >>> obs = Observer(torch.quint8, torch.per_tensor_affine)
    >>> x = obs(torch.tensor([-1.0, 1.0])); x = obs(torch.tensor([0.0, 1.55]))
    >>> obs.calculate_qparams()
    (tensor([0.0100]), tensor([100], dtype=torch.int32))
    """

    min_val: Tensor
    max_val: Tensor

    def __init__(self, dtype: Any = torch.quint8, qscheme: Any = torch.per_tensor_affine, axis: int = 0) -> None:
        super().__init__()
        kind = str(dtype).removeprefix("torch.")
        scheme = str(qscheme).removeprefix("torch.")
        scheme = f"{scheme}_affine" if scheme in ("per_tensor", "per_channel") else scheme
        if kind not in _DTYPES:
            raise PlanError("an observer has no such dtype", got=dtype, allowed=", ".join(_DTYPES))
        if scheme not in _SCHEMES:
            raise PlanError("an observer has no such scheme", got=qscheme, allowed=", ".join(_SCHEMES))
        self.dtype, self.qscheme, self.axis = dtype, qscheme, axis
        self.qtype = QType(8, signed=_DTYPES[kind])
        self.per_channel, self.symmetric = _SCHEMES[scheme]
        self.register_buffer("min_val", torch.empty(0))
        self.register_buffer("max_val", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """The input as it is, after its extremes were taken in.

        Raises:
            NonFiniteError: for a NaN or an infinity.
            CalibrationError: for another number of channels than before.
        """
        if x.numel() == 0:
            return x
        seen = x.detach().to(torch.float32)
        rows = seen.movedim(self.axis, 0).flatten(1) if self.per_channel else seen.reshape(1, -1)
        low, high = rows.amin(1), rows.amax(1)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise NonFiniteError("an observer saw a value that is not finite", got=tuple(x.shape))
        if self.min_val.numel() == 0:
            self.min_val, self.max_val = low, high
        elif self.min_val.shape != low.shape:
            raise CalibrationError("the number of channels has changed", got=low.numel(),
                                   allowed=self.min_val.numel())
        else:
            self.min_val = torch.minimum(self.min_val, low)
            self.max_val = torch.maximum(self.max_val, high)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) of the range, stretched to 0: one each, or one for each channel.

        Raises:
            CalibrationError: if nothing was seen.
        """
        if self.min_val.numel() == 0:
            raise CalibrationError("the observer saw no data", fix="run the model before asking for parameters")
        low, high = self.min_val.double().clamp(max=0.0), self.max_val.double().clamp(min=0.0)
        return affine_parameters(low, high, self.qtype, self.symmetric)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("min_val", "max_val"):  # their size is that of what was seen
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].detach().clone())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Encoding and scheme."""
        return f"dtype={self.dtype}, qscheme={self.qscheme}"
