"""Ranges that are next to nothing beside their operands': a multiplier that every kernel has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intact
from intact.errors import PlanError
from tests.exporters.c_tools import differences, needs_gcc
from tests.parity.harness import calibrated, differing, hard_inputs

TARGETS = ("onnxruntime", "litert", "litert_reference", "litert_16x8", "fixed_point", "horizon_j6", "power_of_two")


class Cancelling(nn.Module):
    """Differences of nearly equal numbers, and what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.a(x)
        z = (y * 3 - y) - y * 2
        return [self.b(z), z.mean((2, 3)), self.b(z * y), torch.cat([z, y], 1), F.avg_pool2d(z, 2), z.flatten(1)]


def dead() -> nn.Module:
    """A channel that a folded batch norm has switched off, and one that it has all but switched off."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, 1e-25, 0.0, 1.0]))  # type: ignore[union-attr, operator]
    return net


def bias_only() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
    with torch.no_grad():
        net[0].bias.sub_(1e3)  # type: ignore[union-attr, operator]
    return net


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "cancelling": lambda: (Cancelling(), torch.randn(8, 3, 6, 6)),
    "a channel of 1e-25": lambda: (dead(), torch.randn(8, 3, 6, 6)),
    "nothing but a bias": lambda: (bias_only(), torch.randn(8, 3, 6, 6)),
    "zeros": lambda: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), torch.zeros(8, 3, 6, 6)),
}


@needs_gcc
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_every_target_has_the_multiplier(case: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = CASES[case]()
    bits = 16 if target == "litert_16x8" else 8
    fm = intact.planning.lowered(intact.capture(net.eval(), x), target)
    qfloat = calibrated(fm, [x], intact.Recipe(default=intact.Quant(activation_bits=bits)), target=target)
    q = intact.convert(qfloat)
    inputs = hard_inputs(q, 2)
    assert differing(qfloat, q, inputs) == []
    if target.startswith("litert") or target == "onnxruntime":
        name = "net.onnx" if target == "onnxruntime" else "net.tflite"
        assert intact.export(q, tmp_path / name, data=x[:2]).ok
    else:
        assert differences(q, tmp_path, x[:2], flags=("-O0",)) == []
    with torch.no_grad():
        found, wanted = q(x), net(x)
        found, wanted = (found[3], wanted[3]) if case == "cancelling" else (found, wanted)
        noise = float((found - wanted).square().mean() / wanted.square().mean())
    assert noise < 2e-3


def test_what_was_raised_is_noted() -> None:
    torch.manual_seed(0)
    q = intact.quantize(Cancelling(), [torch.randn(8, 3, 6, 6)], target="litert", progress=False)
    assert any("step of the output raised" in what for _, what in q.info["notes"])
    q = intact.quantize(Cancelling().a, [torch.randn(8, 3, 6, 6)], target="litert", progress=False)
    assert not any("raised" in what for _, what in q.info["notes"])


def test_a_refused_multiplier_names_its_layer() -> None:
    torch.manual_seed(0)
    fm = intact.capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(8, 4))
    qfloat = calibrated(fm, [torch.randn(8, 4)], target="fixed_point")
    bad = intact.types.QParams.per_tensor(2.0**90, 0, intact.types.INT8)
    qfloat._edge_params = lambda: {k: bad if k == "1" else q  # type: ignore[method-assign]
                                   for k, q in intact.QFloatModel._edge_params(qfloat).items()}
    weights = qfloat.bound.weights
    with pytest.raises(PlanError, match=r"where: 1 \(linear\)"):
        qfloat._bind(weights)
