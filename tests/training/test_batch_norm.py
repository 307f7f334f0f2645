"""Batch norms while training: as in the float model, whatever they were folded into."""

import copy

import pytest
import torch
from torch import nn

import intact
from intact import Schedule, TrainingError
from tests.training.nets import Dense, convolutional, data, prepared, same_codes, steps


def float_training(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net)
    steps(twin, 4)
    return twin


@pytest.mark.parametrize("make", [convolutional, Dense])
def test_without_fake_quantization_it_is_float_training(make):
    """Statistics, losses and weights of the float model: a conv bias is counted once, nothing is folded too early."""
    net = make()
    twin = copy.deepcopy(net)
    losses = steps(twin, 4)
    qfloat = prepared(net, edges="observed", weights="observed", schedule=Schedule(quantize_from=1000))
    assert steps(qfloat, 4) == pytest.approx(losses, rel=1e-4)
    expected = twin.state_dict()
    for name, value in qfloat.state_dict().items():
        if name in expected:
            assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-4), name


def test_momentum_none_averages_all_batches():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(144, 4))
    twin = copy.deepcopy(net)
    qfloat = prepared(net, edges="observed", weights="observed", schedule=Schedule(quantize_from=1000))
    steps(twin, 3)
    steps(qfloat, 3)
    assert torch.allclose(qfloat.state_dict()["1.running_var"], twin.state_dict()["1.running_var"], rtol=1e-3)


def test_evaluation_moves_nothing():
    qfloat = prepared()
    steps(qfloat, 2)
    qfloat.eval()
    before = copy.deepcopy(qfloat.state_dict())
    for seed in (5, 6):
        qfloat(data(seed=seed)[0] * 10)
    assert all(torch.equal(v, before[k]) for k, v in qfloat.state_dict().items())


def test_a_channel_whose_factor_is_zero_can_come_alive():
    net = convolutional()
    nn.init.zeros_(net[1].weight)  # type: ignore[arg-type]
    qfloat = prepared(net, edges="observed", weights="observed")
    steps(qfloat, 5)
    assert bool((qfloat.state_dict()["1.weight"] != 0).any())
    qfloat.eval()
    x, _ = data()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


def test_statistics_freeze_and_are_measured_anew():
    qfloat = prepared(schedule=Schedule(freeze_batch_norm_at=2))
    steps(qfloat, 2)
    kept = qfloat.state_dict()["1.running_var"].clone()
    steps(qfloat, 2)
    assert torch.equal(qfloat.state_dict()["1.running_var"], kept)
    x, _ = data()
    qfloat.eval()
    intact.reestimate_batch_norm(qfloat, [x[:24], x[24:]])
    assert not torch.equal(qfloat.state_dict()["1.running_var"], kept)
    assert not qfloat.training
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))
    again = qfloat.state_dict()["1.running_var"].clone()
    intact.reestimate_batch_norm(qfloat, [x[:24], x[24:]])
    assert torch.allclose(qfloat.state_dict()["1.running_var"], again)
    with pytest.raises(TrainingError, match="no data"):
        intact.reestimate_batch_norm(qfloat, [])


def test_momentum_of_the_schedule():
    slow, fast = (prepared(schedule=Schedule(batch_norm_momentum=m)) for m in (0.01, 0.5))
    start = slow.state_dict()["1.running_mean"].clone()
    steps(slow, 1)
    steps(fast, 1)
    moved = [(m.state_dict()["1.running_mean"] - start).abs().sum() for m in (slow, fast)]
    assert float(moved[1] / moved[0]) == pytest.approx(50.0, rel=1e-3)
