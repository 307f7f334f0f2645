"""Rows of a table of codes, looked up by integers: only what is asked for becomes float."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from intact.arithmetic import dequantize
from intact.types import PerChannel, PerTensor, QTensor

__all__ = ["rows"]


def rows(table: QTensor, ids: Tensor) -> Tensor:
    """``(code - zero_point) * scale`` of some rows, in float32: what :func:`intact.arithmetic.dequantize` gives.

    Args:
        table: codes (rows, width), with one scale for each row or one for all.
        ids: integers of any shape, from 0 to the number of rows.

    Returns:
        Values (*ids, width).

    Raises:
        IndexError: if there is no such row.

    >>> from intact.types import INT8, QParams
    >>> q = QParams(torch.tensor([0.5, 2.0]), torch.tensor([0, 0], dtype=torch.int32), INT8, PerChannel(0))
    >>> rows(QTensor(torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), q), torch.tensor([1, 0]))
    tensor([[6.0000, 8.0000],
            [0.5000, 1.0000]])
    """
    q, flat = table.qparams, ids.reshape(-1).to(torch.int64)
    codes = F.embedding(flat, table.codes.to(ids.device))
    if q.granularity != PerTensor():
        q = replace(q, scale=q.scale.to(ids.device)[flat], zero_point=q.zero_point.to(ids.device)[flat],
                    granularity=PerChannel(0))
    return dequantize(codes, q).reshape(*ids.shape, table.codes.shape[1])
