"""What a target of integers only has no kernel for, made of what it has kernels for: the same codes everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import PlanError
from intact.exporters.litert.export import build_litert, compare_litert
from tests.exporters.c_tools import differences, needs_gcc
from tests.parity.harness import differing, hard_inputs

IMAGE = (3, 8, 9)


def network(layer: nn.Module) -> nn.Module:
    """The layer between convolutions, before a ReLU; its parameters are any numbers."""
    for p in layer.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "prelu": lambda: nn.PReLU(8), "group": lambda: nn.GroupNorm(2, 8), "one group": lambda: nn.GroupNorm(1, 8),
    "group without factors": lambda: nn.GroupNorm(4, 8, affine=False),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True), "instance without factors": lambda: nn.InstanceNorm2d(8),
}


class Written(nn.Module):
    """An RMS norm as models write it; the ways differ in how the reciprocal root and the weight stand."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way, self.weight = way, nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 0:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        if self.way == 1:
            return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.weight
        return x * (1e-6 + (x * x).mean(2, keepdim=True)) ** -0.5


def tokens(layer: nn.Module) -> nn.Module:
    """The layer between linear ones."""
    for p in layer.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return nn.Sequential(nn.Linear(16, 32, bias=False), layer, nn.Linear(32, 8)).eval()


RMS: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: nn.RMSNorm(32), "torch without weight": lambda: nn.RMSNorm(32, 1e-5, elementwise_affine=False),
    **{f"written {way}": lambda way=way: Written(way) for way in range(3)},  # type: ignore[misc]
}


def data(spread: float = 0.0) -> list[Tensor]:
    """Batches, of samples whose sizes differ by the exponential of a normal number."""
    torch.manual_seed(0)
    return [torch.randn(16, *IMAGE) * (spread * torch.randn(16, 1, 1, 1)).exp() for _ in range(3)]


def decibels(net: nn.Module, q: intact.QModel, x: Tensor) -> float:
    """Signal to noise."""
    with torch.no_grad():
        y = net(x)
    return float(10 * torch.log10(y.square().mean() / (y - q(x)).square().mean()))


@needs_gcc
@pytest.mark.parametrize("name", LAYERS)
def test_codes_are_the_same_everywhere(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net, xs = network(LAYERS[name]()), data()
    for target, least in (("fixed_point", 30), ("litert", 29), ("litert_16x8", 42)):
        fm = intact.planning.lowered(intact.capture(net, xs[0]), target)
        torch.testing.assert_close(fm(xs[0]), net(xs[0]), rtol=1e-4, atol=1e-4)
        qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, target)), xs)
        q = intact.convert(qfloat)
        assert decibels(net, q, xs[0]) > least, target
        assert q(xs[0][:5]).shape == (5, 4, 6, 7)
        assert differing(qfloat, q, hard_inputs(q, 2)) == []
        if target == "fixed_point":
            assert differences(q, tmp_path) == []
        else:
            assert compare_litert(q, build_litert(q), build_litert(q, edges=True), hard_inputs(q, 2)).clean
    assert intact.compare(net, q, [xs[0]], latency=False).samples == 16


@needs_gcc
@pytest.mark.parametrize("name", RMS)
def test_rms_norms(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = tokens(RMS[name]())
    x = torch.randn(64, 9, 16) * (0.7 * torch.randn(64, 9, 1)).exp() * (torch.rand(64, 9, 1) > 0.1)
    for target, least in (("fixed_point", 15), ("litert", 13), ("litert_16x8", 40)):  # 8 bits of x alone give 18
        fm = intact.planning.lowered(intact.capture(net, x), target)
        torch.testing.assert_close(fm(x), net(x), rtol=1e-4, atol=1e-4)
        assert ("layer_norm" in {n.op for n in fm.graph}) == (target == "fixed_point")
        qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, target)), [x])
        q = intact.convert(qfloat)
        assert decibels(net, q, x) > least, target
        assert differing(qfloat, q, hard_inputs(q, 2)) == []
        if target == "fixed_point":
            assert differences(q, tmp_path) == []
        else:
            assert compare_litert(q, build_litert(q), build_litert(q, edges=True), hard_inputs(q, 2)).clean


def test_what_is_no_rms_norm_is_left() -> None:
    class Others(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            y = x + 1
            return [y * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6),
                    x * torch.rsqrt((x * y).mean(-1, keepdim=True) ** 2 + 1e-6),
                    x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-6),
                    x * torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)]

    fm = intact.capture(Others(), torch.randn(4, 5, 6))
    assert intact.planning.lowered(fm, "fixed_point").graph == fm.graph


def test_samples_of_all_sizes_keep_their_codes() -> None:
    """Variances in 8 bits would leave 4 dB."""
    torch.manual_seed(0)
    x = torch.randn(64, 9, 32) * (0.7 * torch.randn(64, 9, 1)).exp()
    for layer in (nn.LayerNorm(32), Written(0)):
        q = intact.quantize(layer, [x], target="litert", progress=False)
        assert decibels(layer, q, x) > 14


def test_where_floats_are_allowed_nothing_changes() -> None:
    for build in LAYERS.values():
        fm = intact.capture(build(), torch.randn(2, 8, 6, 6))
        assert intact.planning.lowered(fm, "onnxruntime") is fm
        assert fm.graph.nodes[-1].op in ("prelu", "group_norm")


def test_running_statistics_fold_into_the_convolution() -> None:
    net = network(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
    assert [n.op for n in intact.capture(net, data()[0]).graph] == ["input", "conv", "conv"]


@pytest.mark.parametrize("shape", [(8,), (8, 5), (8, 5, 6), (8, 3, 4, 2)])
def test_axes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, *shape)
    for layer in (nn.PReLU(8), nn.GroupNorm(2, 8)):
        layer.weight.data = torch.randn(8)
        q = intact.quantize(layer, [x], target="fixed_point", progress=False)
        assert decibels(layer, q, x) > 30
        assert q(x[:3]).shape == (3, *shape)


def test_what_cannot_be_split_is_named() -> None:
    x = torch.randn(4, 2, 2, 2, 2, 2)
    for layer, op in ((nn.PReLU(2), "prelu"), (nn.GroupNorm(2, 2), "group_norm")):
        with pytest.raises(PlanError, match=f"has no integer kernel for {op}"):
            intact.quantize(nn.Sequential(layer), [x], target="fixed_point", progress=False)
    fm = intact.capture(nn.GroupNorm(2, 4), torch.randn(2, 4, 9), dynamic={2: "length"})
    with pytest.raises(PlanError, match="has no integer kernel for group_norm"):
        intact.plan(intact.planning.lowered(fm, "fixed_point"), "fixed_point")


def test_norms_of_more_values_than_the_kernel_takes_are_split_further() -> None:
    torch.manual_seed(0)
    net, x = nn.GroupNorm(1, 2), torch.randn(4, 2, 100, 100)
    q = intact.quantize(net, [x], target="fixed_point", progress=False)
    assert "rsqrt" in {n.op for n in q.graph} and decibels(net, q, x) > 30


@pytest.mark.parametrize("way", range(3))
def test_a_written_rms_norm_stays_float_where_there_are_floats(way: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = tokens(Written(way)), torch.randn(64, 9, 16) * (0.7 * torch.randn(64, 9, 1)).exp()
    q = intact.quantize(net, [x], progress=False)
    assert [n.op for n in q.graph] == ["input", "linear", "aten", "linear"]
    assert decibels(net, q, x) > 20  # -2 with squares in 8 bits
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0
    qfloat = intact.quantize_qat(net, example_inputs=x)
    qfloat(x).square().mean().backward()
    grads = {name: p.grad for name, p in qfloat.named_parameters()}
    assert way == 2 or next(g for name, g in grads.items() if name.endswith("1.weight")) is not None
