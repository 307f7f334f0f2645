"""Where the target requantizes by shifts: every scale is a power of two, calibrated, trained, floored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import intact
from intact.errors import PlanError
from intact.observers import OBSERVERS, next_power_of_two, weight_qparams
from intact.planning import Quant, Recipe
from intact.types import INT8_NARROW, PerChannel, QParams


def powers(q: intact.QModel) -> bool:
    weights = [b.weight.qparams for b in q.bindings.values() if b.weight is not None]
    every: list[QParams] = [*q.qparams.values(), *weights]
    return all(bool((torch.frexp(p.scale).mantissa == 0.5).all()) for p in every)


class Net(nn.Module):
    """Everything that has a ratio of scales, and two means."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.a(x)))
        z = self.b(y)
        y = torch.cat([y * torch.sigmoid(z), (y - z) + y], 1)
        return self.head(nn.functional.avg_pool2d(y, 3).mean((2, 3)))  # type: ignore[no-any-return]


X = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def same(qfloat: intact.QFloatModel, q: intact.QModel) -> bool:
    ours, theirs = qfloat.codes(X), q.codes(X)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k].int(), theirs[k].int()) for k in ours)


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_the_next_power_of_two(scale: float) -> None:
    found = float(next_power_of_two(torch.tensor(scale)))
    assert math.frexp(found)[0] == 0.5 and found / 2 < scale <= found


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 16)])
def test_calibrated_scales(observer: str, weights: int, activations: int) -> None:
    torch.manual_seed(0)
    fm = intact.capture(Net(), X)
    recipe = Recipe(default=Quant(weights, activations, activation_observer=observer))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, "power_of_two", recipe)), [X])
    q = intact.convert(qfloat)
    assert powers(q) and same(qfloat, q)
    assert "power of two" in q.plan


def test_a_scale_that_a_large_bias_raises_is_one_too() -> None:
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.mul_(1e-6)
        layer.bias.fill_(3e6)
    q = intact.quantize(layer, [X.flatten()[:300].reshape(100, 3)], target="power_of_two")
    assert powers(q)


@pytest.mark.parametrize("quantizer", ["observed", "tqt", "dorefa"])
@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_trained_scales(quantizer: str, observer: str) -> None:
    torch.manual_seed(0)
    fm = intact.capture(Net(), X)
    recipe = Recipe(default=Quant(6, 8, activation_observer=observer, weight_quantizer=quantizer,
                                  activation_quantizer=quantizer))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, "power_of_two", recipe)), [X]).train()
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.02)
    for _ in range(4):
        optimizer.zero_grad()
        qfloat(X * 1.3).square().mean().backward()
        optimizer.step()
    q = intact.convert(qfloat.eval())
    assert powers(q) and same(qfloat, q)


@pytest.mark.parametrize("wish", [{"weight_quantizer": "lsq"}, {"activation_quantizer": "lsq+"},
                                  {"activation_quantizer": "pact"}, {"weight_quantizer": "passive"}], ids=str)
def test_scales_that_would_be_none_are_refused_by_the_plan(wish: dict[str, str]) -> None:
    fm = intact.capture(nn.Linear(3, 2), torch.zeros(2, 3))
    with pytest.raises(PlanError, match=r"powers of two.*tqt"):
        intact.plan(fm, "power_of_two", Recipe(default=Quant(**wish)))  # type: ignore[arg-type]
    intact.plan(fm, "fixed_point", Recipe(default=Quant(**wish)))  # type: ignore[arg-type]


def test_the_best_power_of_two_for_weights() -> None:
    """Just above a power of two, clipping a single weight beats a step that is twice as wide."""
    w = torch.linspace(-1.0, 1.0, 999).reshape(1, -1)
    w[0, 0] = -1.02
    coarse = weight_qparams(w, INT8_NARROW, PerChannel(0), method="minmax", power_of_two=True)
    fine = weight_qparams(w, INT8_NARROW, PerChannel(0), method="mse", power_of_two=True)
    assert (float(coarse.scale), float(fine.scale)) == (2.0**-6, 2.0**-7)
    plain = weight_qparams(w, INT8_NARROW, PerChannel(0))
    assert float(plain.scale) <= float(coarse.scale) < 2 * float(plain.scale)


def test_the_accuracy_is_near_that_of_free_scales() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    want = net(X).detach()

    def noise(target: str) -> float:
        error = intact.quantize(net, [X], target=target)(X) - want
        return float(error.square().mean() / want.square().mean())

    assert noise("power_of_two") < 8 * noise("horizon_j6") < 0.05
