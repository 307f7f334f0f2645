"""Batch norm statistics of the quantized network, measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from intact.calibration import batches
from intact.errors import TrainingError
from intact.simulation import QFloatModel

__all__ = ["reestimate_batch_norm"]


def reestimate_batch_norm(
    qfloat: QFloatModel, data: Iterable[Any], *, steps: int | None = None, progress: bool | None = None
) -> QFloatModel:
    """Replace the running statistics by their plain mean over batches, with everything else held still.

    Running averages lag behind weights that move, the more so at low widths; a few dozen batches mend that.

    Args:
        qfloat: a calibrated or trained model; left in the mode it was in.
        data: batches, as for :func:`intact.calibrate`.
        steps: at most so many batches.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        The same model.

    Raises:
        TrainingError: if there is no data.

    >>> import torch, intact
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> x = torch.randn(32, 3)
    >>> fm = intact.capture(net, x)
    >>> qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    >>> bool(reestimate_batch_norm(qfloat, [x]).state_dict()["1.running_mean"].any())
    True
    """
    if not qfloat.calibrated:
        raise TrainingError("batch norms are re-estimated on a calibrated QFloat model", got=type(qfloat).__name__,
                            fix="call intact.prepare and intact.calibrate first")
    seen = 0
    with torch.no_grad():
        for args, kwargs in islice(batches(data, qfloat.input_names, "batch norm", progress), steps):
            qfloat.accumulate_statistics(args, kwargs, 1.0 / (seen + 1))
            seen += 1
    if not seen:
        raise TrainingError("there is no data to re-estimate batch norms on", got="0 batches")
    return qfloat
