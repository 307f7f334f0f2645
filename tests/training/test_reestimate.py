"""Batch norm statistics written by training or re-estimation reach the integer model, however often it was bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import intact
from intact.errors import TrainingError


def calibrated(x: torch.Tensor) -> intact.QFloatModel:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    fm = intact.capture(net, x)
    return intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])


def test_reestimated_statistics_replace_those_that_the_model_was_bound_with() -> None:
    x = torch.randn(16, 3, 8, 8)
    qfloat = calibrated(x)
    before = qfloat(x)
    intact.reestimate_batch_norm(qfloat, [3 * x])
    after = qfloat(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, intact.convert(qfloat)(x))
    again = calibrated(x)
    again.load_state_dict(qfloat.state_dict())
    assert torch.equal(after, again(x))


def test_a_step_that_moves_only_running_statistics_is_seen() -> None:
    x = torch.randn(16, 3, 8, 8)
    qfloat = calibrated(x)
    before = qfloat(x)
    with torch.no_grad():
        qfloat.train()(3 * x)
    assert not torch.equal(before, qfloat.eval()(x))


def test_the_mean_is_that_of_all_batches_and_data_is_needed() -> None:
    x = torch.randn(16, 3, 8, 8)
    qfloat = calibrated(x)
    parts = [intact.reestimate_batch_norm(qfloat, [b]).state_dict()["1.running_mean"].clone() for b in x.split(4)]
    intact.reestimate_batch_norm(qfloat, x.split(4))
    assert torch.allclose(qfloat.state_dict()["1.running_mean"], torch.stack(parts).mean(0), atol=1e-6)
    with pytest.raises(TrainingError, match="0 batches"):
        intact.reestimate_batch_norm(qfloat, [])
