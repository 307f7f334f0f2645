"""Bias correction: the estimate by hand, and what it does to a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import intact
from intact.algorithms.bias_correction_core import systematic_error
from tests.parity.harness import differing, hard_inputs
from tests.zoo import ZOO


def every(error: Tensor) -> Tensor:
    return torch.ones_like(error, dtype=torch.bool)


def test_a_constant_error_is_found_whole() -> None:
    error = torch.tensor([[[1.0, 1.0], [-2.0, -2.0]], [[1.0, 1.0], [-2.0, -2.0]]])  # (batch, channels, positions)
    assert systematic_error(error, every(error), 1).tolist() == [1.0, -2.0]
    assert systematic_error(error, every(error), 1).dtype == torch.float64


def test_noise_is_left_alone_and_what_lies_between_is_shrunk() -> None:
    # channel 0: means 3 and 1: mean 2, variance 2, squared error of the mean 1, factor 1 - 1/4
    # channel 1: means 1 and -1: mean 0; channel 2: means 3 and -1: mean 1, variance 8, factor below 0
    error = torch.tensor([[3.0, 1.0, 3.0], [1.0, -1.0, -1.0]])
    assert systematic_error(error, every(error), 1).tolist() == [1.5, 0.0, 0.0]


def test_only_counted_positions_take_part() -> None:
    error = torch.tensor([[[1.0, 100.0]], [[1.0, 1.0]], [[50.0, 50.0]]])
    counted = torch.tensor([[[True, False]], [[True, True]], [[False, False]]])
    assert systematic_error(error, counted, 1).tolist() == [1.0]
    assert systematic_error(error, torch.zeros_like(counted), 1).tolist() == [0.0]


def test_one_sample_proves_nothing() -> None:
    error = torch.full((1, 3, 5), 2.0)
    assert systematic_error(error, every(error), 1).tolist() == [0.0, 0.0, 0.0]


def test_the_channels_of_a_linear_layer_are_last() -> None:
    error = torch.zeros(4, 5, 2)
    error[..., 1] = 0.5
    assert systematic_error(error, every(error), 2).tolist() == [0.0, 0.5]


def sqnr(net: torch.nn.Module, model: object, x: Tensor) -> float:
    with torch.no_grad():
        want = net(x)
    assert callable(model)
    return float(10 * torch.log10(want.pow(2).sum() / (model(x) - want).pow(2).sum()))


# At 8 bits, data other than what it was corrected on may lose: resnet20 42.25 -> 41.85 dB, nin 44.19 -> 44.08 dB.
@pytest.mark.parametrize(("name", "bits"), [("resnet18", 4), ("resnet18", 8), ("resnet20", 4), ("nin", 4)])
def test_correction_helps_and_stays_exact(name: str, bits: int) -> None:
    entry = ZOO[name]
    net, x, fresh = entry.build(), entry.example(32), entry.example(32, seed=9)
    fm = intact.capture(net, x)
    recipe = intact.Recipe(default=intact.Quant(weight_bits=bits))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, recipe=recipe)), [x])
    before = sqnr(net, qfloat, fresh)
    plain = {k: v.clone() for k, v in fm.params.items()}
    assert intact.correct_bias(qfloat, {fm.graph.inputs[0].name: x}) is qfloat
    assert sqnr(net, qfloat, fresh) >= before
    assert all(torch.equal(v, fm.params[k]) for k, v in plain.items())
    q = intact.convert(qfloat)
    assert differing(qfloat, q, hard_inputs(q, 3)) == []
    assert torch.equal(qfloat(fresh), q(fresh))


def test_a_recipe_can_forbid_it() -> None:
    x = torch.randn(32, 6)
    fm = intact.capture(torch.nn.Linear(6, 4), x)
    recipe = intact.Recipe(default=intact.Quant(weight_bits=2, bias_correction=False))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, recipe=recipe)), [x])
    before = qfloat(x)
    intact.correct_bias(qfloat, {fm.graph.inputs[0].name: x})
    assert torch.equal(qfloat(x), before)


def test_it_needs_a_calibrated_model() -> None:
    x = torch.randn(4, 3)
    fm = intact.capture(torch.nn.Linear(3, 2), x)
    prepared = intact.prepare(fm, intact.plan(fm))
    for model in (prepared, fm, torch.nn.Linear(3, 2)):
        with pytest.raises(intact.CalibrationError):
            intact.correct_bias(model, {fm.graph.inputs[0].name: x})  # type: ignore[arg-type]
