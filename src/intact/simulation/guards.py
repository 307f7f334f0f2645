"""What is refused before it can do harm: parameters that are not float32, names that are taken."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from intact.errors import CalibrationError, CaptureError

__all__ = ["check_float32", "check_names"]

_OURS = ("_quantizers", "_extra_state")


def check_float32(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Parameters by name.

    Raises:
        CalibrationError: naming the first that is of another floating dtype.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CalibrationError("a parameter is not float32", where=name, got=tensor.dtype,
                                   fix="keep the QFloat model in float32; use torch.autocast for mixed precision")


def check_names(names: Iterable[str]) -> None:
    """Dotted names of the user's parameters and modules.

    Raises:
        CaptureError: if one stands where the state of the quantizers stands.
    """
    for name in names:
        if name.split(".")[0] in _OURS:
            raise CaptureError("a name is taken", where=name, allowed=f"any but {' and '.join(_OURS)}",
                               fix="rename it: the state of the quantizers stands there")
