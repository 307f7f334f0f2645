"""An optimizer of the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import intact
from intact.errors import TrainingError


def test_an_optimizer_of_the_float_network_is_refused_and_one_of_the_model_moves_it() -> None:
    net, x, y = nn.Linear(6, 3), torch.randn(32, 6), torch.randint(0, 3, (32,))
    fm = intact.capture(net, x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    with pytest.raises(TrainingError, match=r"qfloat\.parameters"):
        intact.train(qfloat, [(x, y)], optimizer=torch.optim.Adam(net.parameters()))
    before, weight = qfloat.weight.detach().clone(), net.weight.detach().clone()
    seen = []
    history = intact.train(qfloat, [(x, y)], epochs=2, optimizer=torch.optim.Adam(qfloat.parameters(), lr=1e-3),
                           on_epoch=lambda epoch: seen.append((epoch, qfloat.training)))
    assert seen == [(epoch, False) for epoch in history.epochs]
    assert not torch.equal(before, qfloat.weight)
    assert torch.equal(weight, net.weight)
    assert [round(e.lr, 6) for e in history.epochs] == [1e-3, 5e-4]
