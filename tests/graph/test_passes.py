"""Passes of the float graph keep its outputs: float against float, so with a tolerance."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.graph.passes import DEFAULT_PASSES, EqualizeChannels, FoldBatchNorm, TransposedConv, repeated_passes

LAYERS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), nn.BatchNorm2d, (4, 7, 7)),
    "conv without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d, (4, 7, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), nn.BatchNorm1d, (4, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d, (4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d, (6, 7, 7)),
    "linear": (lambda: nn.Linear(5, 6), nn.BatchNorm1d, (5,)),
    "linear without bias": (lambda: nn.Linear(5, 6, bias=False), nn.BatchNorm1d, (5,)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d, (4, 5, 5)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d, (4, 5, 5)),
}
NORMS: dict[str, dict[str, Any]] = {
    "default": {}, "eps": {"eps": 0.1}, "tiny eps": {"eps": 1e-12}, "no affine": {"affine": False},
    "tiny variance": {"var": 1e-9}, "no variance": {"var": 0.0},
}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm_is_folded(layer: str, norm: str) -> None:
    make, kind, shape = LAYERS[layer]
    options = dict(NORMS[norm])
    variance = options.pop("var", None)
    bn = kind(6, **options)
    bn.running_mean = torch.randn(6)
    bn.running_var = torch.rand(6) + 0.1
    if variance is not None:
        bn.running_var[2:4] = variance
    if bn.affine:
        with torch.no_grad():
            bn.weight.copy_(torch.randn(6))
            bn.bias.copy_(torch.randn(6))
    net = nn.Sequential(make(), bn).eval()
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(3, *shape)
    fm = intact.capture(net, x, passes=[FoldBatchNorm()])
    assert [n.op for n in fm.graph if n.op == "batch_norm"] == []
    with torch.no_grad():
        # variance far below eps multiplies rounding errors with all else: still float against float
        assert relative(fm(x), net(x)) < 1e-4
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Shared(nn.Module):
    """One convolution with two batch norms, and one whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        for i, bn in enumerate(self.norms):
            bn.running_var = torch.rand(4) + 0.1 + i

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.conv(x)) + self.norms[1](self.conv(x + 1.0))
        z = self.other(y)
        return self.norms[2](z) + z


def test_batch_norm_of_shared_layers() -> None:
    net, x = Shared().eval(), torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        assert relative(intact.capture(net, x, passes=[FoldBatchNorm()])(x), net(x)) < 1e-5
        assert relative(intact.capture(net, x)(x), net(x)) < 1e-5
    q = intact.quantize(net, [x])
    assert q(x).shape == x.shape


def transposed() -> list[tuple[int, int, int, int, int]]:
    """A spread sample over (kernel, stride, padding, output padding, groups)."""
    every = [(k, s, p, op, g) for k, s, p, op, g in
             itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1, 2), (1, 2))
             if op < s and 4 * s - s - 2 * p + k + op > 0]
    return every[::6]


@pytest.mark.parametrize(("kernel", "stride", "padding", "more", "groups"), transposed())
def test_a_transposed_convolution_is_a_convolution(kernel: int, stride: int, padding: int, more: int,
                                                   groups: int) -> None:
    net = nn.ConvTranspose2d(4, 6, kernel, stride, padding, more, groups).eval()
    x = torch.randn(2, 4, 4, 5)
    with torch.no_grad():
        want = net(x)
        fm = intact.capture(net, x, passes=[TransposedConv()])
        assert "conv_transpose" not in {n.op for n in fm.graph}
        assert fm(x).shape == want.shape
        assert relative(fm(x), want) < 1e-5
    assert intact.plan(fm).coverage.mac_share == 1.0


def uneven() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight.mul_(torch.logspace(-1.5, 0.5, 8).reshape(-1, 1, 1, 1))
    return net


PASSES = (*DEFAULT_PASSES[:3], EqualizeChannels(), *DEFAULT_PASSES[3:])


def test_equalized_channels_keep_the_outputs() -> None:
    net, x = uneven(), torch.randn(8, 3, 12, 12)
    before = copy.deepcopy(net.state_dict())
    fm = intact.capture(net, x, passes=PASSES)
    assert fm.equalization
    with torch.no_grad():
        fresh = torch.randn(5, 3, 12, 12)
        assert relative(fm(fresh), net(fresh)) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    plain = intact.capture(net, x)
    assert not torch.equal(fm.params["0.weight"], plain.params["0.weight"])


def test_an_equalization_can_be_repeated() -> None:
    net, x = uneven(), torch.randn(8, 3, 12, 12)
    fm = intact.capture(net, x, passes=PASSES)
    again = intact.capture(net, torch.randn(2, 3, 12, 12), passes=repeated_passes(fm.equalization))
    assert all(torch.equal(fm.params[k], again.params[k]) for k in fm.params)
    assert repeated_passes({}) == DEFAULT_PASSES


def test_the_users_model_is_unchanged_by_all_passes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6(),
                        nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4), nn.Hardswish()).train()
    before, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net]
    x = torch.randn(4, 3, 8, 8)
    fm = intact.capture(net, x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [type(m) for m in net] == kinds and net.training
    with torch.no_grad():
        assert relative(fm(x), net.eval()(x)) < 1e-5
