"""Activations of torch.nn, each a function of one value: captured as one, and the same codes on every target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.exporters.litert.export import build_litert, compare_litert
from tests.exporters.c_tools import differences, needs_gcc
from tests.parity.harness import hard_inputs

ACTIVATIONS: dict[str, nn.Module] = {
    "scaled_elu": nn.SELU(), "scaled_elu of celu": nn.CELU(0.5), "log_sigmoid": nn.LogSigmoid(),
    "hardshrink": nn.Hardshrink(0.3), "softshrink": nn.Softshrink(0.3), "tanhshrink": nn.Tanhshrink(),
    "softsign": nn.Softsign(), "threshold": nn.Threshold(0.1, -0.5), "leaky_relu": nn.RReLU(),
    "scaled_softplus": nn.Softplus(2.0, 10.0),
}


class Each(nn.Module):
    """A layer, every activation of it, and a layer after each if need be."""

    def __init__(self, after: bool = False) -> None:
        super().__init__()
        self.layer, self.of = nn.Linear(6, 6), nn.ModuleList(ACTIVATIONS.values())
        self.after = nn.ModuleList(nn.Linear(6, 3) if after else nn.Identity() for _ in self.of)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = 2 * self.layer(x)
        return [g(f(y)) for f, g in zip(self.of, self.after, strict=True)]


def network(after: bool = False) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return Each(after).eval(), [torch.randn(64, 6) for _ in range(4)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_is_one_function(name: str) -> None:
    x = torch.randn(64, 6) * 4
    fm = intact.capture(ACTIVATIONS[name], x)
    assert [n.op for n in fm.graph] == ["input", name.partition(" ")[0]]
    torch.testing.assert_close(fm(x), ACTIVATIONS[name].eval()(x))


def test_what_only_looks_like_one_is_left() -> None:
    class Others(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x + 1
            return y - torch.tanh(x), torch.tanh(x) - x, x / (1 + y.abs()), x / (2 + x.abs()), x * (1 + x.abs())

    x = torch.randn(4, 5)
    fm = intact.capture(Others(), x)
    assert not {n.op for n in fm.graph} & {"softsign", "tanhshrink"}
    for ours, theirs in zip(fm(x), Others()(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def signal_to_noise(net: nn.Module, q: intact.QModel, x: Tensor) -> list[float]:
    """dB for each output."""
    with torch.no_grad():
        pairs = list(zip(net(x), q(x), strict=True))
    return [float(10 * torch.log10(y.square().mean() / (y - z).square().mean())) for y, z in pairs]


@needs_gcc
@pytest.mark.parametrize("target", ["fixed_point", "litert", "litert_16x8", "power_of_two", "horizon_j6"])
def test_targets_of_integers_only(target: str, tmp_path: Path) -> None:
    net, data = network()
    q = intact.quantize(net, data, target=target, progress=False)
    worst = min(signal_to_noise(net, q, data[0]))
    assert worst > (30 if "16x8" in target else 15), worst
    if target.startswith("litert"):
        file = build_litert(q)
        assert compare_litert(q, file, build_litert(q, edges=True), hard_inputs(q, 2)).clean
    else:
        assert differences(q, tmp_path) == []


def test_onnx_in_codes_and_in_float(tmp_path: Path) -> None:
    net, data = network(after=True)
    q = intact.quantize(net, data, progress=False)
    assert {n.op for n in q.graph if n.name not in q.bindings} == {"input"}
    assert intact.export(q, tmp_path / "net.onnx").clean
    intact.save(q, tmp_path / "net.intact")
    again = intact.load(tmp_path / "net.intact")
    assert all(torch.equal(a, b) for a, b in zip(q(data[0]), again(data[0]), strict=True))
    net, data = network()
    found = intact.export(intact.quantize(net, data, progress=False), tmp_path / "net.onnx")
    assert found.ok and found.codes_differ == 0 and found.outputs_largest_difference < 1e-5
