"""Networks in C at the edges of what can be said: outputs that nothing computes, odd names, data that is no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intact
from intact.errors import ExportError, IntactError
from tests.exporters.c_tools import differences, needs_compiler, needs_gcc


class Outputs(nn.Module):
    """Outputs that are an input, a constant, the same twice; constants that are read in another order only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.register_buffer("constant", torch.randn(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [x, self.constant, y, y, F.adaptive_avg_pool2d(y, (3, 2)), y.clamp(0.0, 0.0), y.clamp(0.2, 0.2)]


def quantized(net: nn.Module, *shape: int) -> intact.QModel:
    torch.manual_seed(0)
    return intact.quantize(net.eval(), [torch.randn(8, *shape)], target="fixed_point")


@needs_gcc
def test_every_output_has_codes_whatever_it_is(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Outputs()
    q = quantized(net, 2, 7, 8)
    x = torch.randn(3, 2, 7, 8)
    for got, wanted in zip(q(x), net(x), strict=True):
        assert float((got - wanted.detach()).abs().mean()) < 0.03
    assert not torch.equal(q(x)[0], x)  # what leaves the device is codes
    assert differences(q, tmp_path, x) == []


@needs_gcc
def test_a_network_that_computes_nothing(tmp_path: Path) -> None:
    assert differences(quantized(nn.Identity(), 3), tmp_path, torch.randn(3, 3)) == []


@needs_gcc
def test_modules_named_like_what_the_file_has(tmp_path: Path) -> None:
    assert differences(quantized(Named("run", "trace", "hide", "arena"), 4), tmp_path, torch.randn(3, 4)) == []


class Named(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.net = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
        self.add_module("strlen", nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net.values():
            x = layer(x)
        y: Tensor = self.strlen(x)
        return y


def test_data_that_is_no_number_is_refused(tmp_path: Path) -> None:
    q = quantized(nn.Linear(4, 2), 4)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(IntactError, match="not finite"):
            intact.export(q, tmp_path / "net.c", data=torch.full((2, 4), bad))
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_huge_numbers_are_clamped(tmp_path: Path) -> None:
    q = quantized(nn.Linear(4, 2), 4)
    data = torch.tensor([[1e38, -1e38, 3.4e38, 1e-45]])
    assert intact.export(q, tmp_path / "net.c", data=data).outputs_differ == 0


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="shorter name"):
        intact.export(quantized(nn.Linear(4, 2), 4), tmp_path / f"{'n' * 300}.c")


def test_an_empty_output_is_refused(tmp_path: Path) -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[:, :0], x.relu()]

    q = quantized(Empty(), 4)
    assert q(torch.zeros(2, 4))[0].shape == (2, 0)
    with pytest.raises(ExportError, match="empty"):
        intact.export(q, tmp_path / "net.c")


def test_what_was_adjusted_is_said() -> None:
    net = nn.Linear(4, 2)
    nn.init.constant_(net.bias, 1e6)
    assert "raised" in str(quantized(net, 4))
