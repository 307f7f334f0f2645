"""Layers that quantize themselves: their numbers, their ranges, their checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intact.errors import NonFiniteError, PlanError
from intact.nn import AveragedRange, GlobalRange, QuantConv2d, QuantLinear, Settings

X = torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(3))


def conv(**options: object) -> QuantConv2d:
    torch.manual_seed(0)
    return QuantConv2d(4, 6, 3, **options)  # type: ignore[arg-type]


def steps(found: Tensor, scale: Tensor) -> Tensor:
    return (found / scale).round().unique()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("level", ["C", "L"])
@pytest.mark.parametrize("make", [conv, lambda **o: QuantLinear(9, 5, **o)])
def test_the_weight_has_as_many_codes_as_its_width(make: object, level: str, symmetric: bool, bits: int) -> None:
    layer = make(w_bits=bits, w_symmetric=symmetric, per_channel=level)  # type: ignore[operator]
    layer(X)
    weight = layer._rounded_weight({}).detach()
    scale, zero = layer._weight_parameters({})
    assert scale.shape == ((len(weight),) if level == "C" else ())
    shape = (-1, *[1] * (weight.ndim - 1)) if level == "C" else ()
    codes = weight / scale.reshape(shape) + zero.reshape(shape)
    assert torch.allclose(codes, codes.round(), atol=2e-3 if bits > 8 else 1e-4)
    low = -(2 ** (bits - 1)) + symmetric
    assert low <= float(codes.round().min()) and float(codes.round().max()) <= 2 ** (bits - 1) - 1
    assert float((weight - layer.weight.detach()).abs().max()) <= 0.51 * float(scale.max())


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_read_is_rounded_to_its_width(symmetric: bool) -> None:
    layer = conv(a_bits=4, a_symmetric=symmetric, w_bits=32)
    y = layer(X)
    rounded = layer._rounded_input(X)
    assert len(rounded.unique()) <= 16
    assert torch.equal(y, F.conv2d(rounded, layer.weight, layer.bias))


def test_32_is_the_identity_and_1_is_refused() -> None:
    layer = conv(a_bits=32, w_bits=32)
    assert torch.equal(layer(X), F.conv2d(X, layer.weight, layer.bias))
    for name in ("a_bits", "w_bits"):
        with pytest.raises(PlanError, match="binary networks"):
            conv(**{name: 1})
        for bad in (0, 17, 31, 64, 4.0):
            with pytest.raises(PlanError, match="out of range"):
                conv(**{name: bad})
    with pytest.raises(PlanError, match="per_channel"):
        Settings(per_channel="G")  # type: ignore[arg-type]


def test_the_first_layer_reads_at_least_8_bits() -> None:
    assert conv(a_bits=2, first_layer=True).settings.activation_bits == 8
    assert conv(a_bits=12, first_layer=True).settings.activation_bits == 12
    assert conv(a_bits=2).settings.activation_bits == 2


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"])
def test_padding_is_that_of_torch(mode: str, padding: object) -> None:
    options = {"padding": padding, "padding_mode": mode}
    layer = QuantConv2d(4, 6, (3, 5), a_bits=32, w_bits=32, **options)  # type: ignore[arg-type]
    plain = nn.Conv2d(4, 6, (3, 5), **options)  # type: ignore[arg-type]
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    assert torch.equal(layer(X), plain(X))


def test_gradients_pass_straight_through() -> None:
    layer = conv(batch_norm=True)
    layer(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in layer.named_parameters() if n != "bias")


class TestRanges:
    def test_the_global_range_does_not_forget(self) -> None:
        seen = GlobalRange(2)
        seen.update(torch.tensor([[5.0, -1.0], [0.0, 2.0]]))
        seen.update(torch.tensor([[1.0, -3.0], [0.0, 1.0]]))
        seen.update(torch.zeros(2, 2))
        assert (seen.low.tolist(), seen.high.tolist()) == ([-3.0, 0.0], [5.0, 2.0])

    def test_it_is_no_view_of_the_weight(self) -> None:
        layer = conv(w_symmetric=False)
        layer(X)
        before = layer.weight_range.high.clone()
        with torch.no_grad():
            layer.weight.mul_(0.1)
        assert torch.equal(layer.weight_range.high, before)
        layer(X)
        assert torch.equal(layer.weight_range.high, before)

    def test_the_averaged_range_copies_the_first_batch(self) -> None:
        seen = AveragedRange()
        for top in (10.0, 20.0, 0.0):
            seen.update(torch.tensor([-1.0, top]))
        assert seen.ends == (-1.0, pytest.approx((10.0 * 0.9 + 20.0 * 0.1) * 0.9))

    def test_ranges_do_not_move_in_evaluation(self) -> None:
        layer = conv(batch_norm=True)
        layer(X)
        before = {k: v.clone() for k, v in layer.state_dict().items()}
        layer.eval()(X * 100)
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())

    def test_a_tensor_of_zeros_has_a_finite_scale(self) -> None:
        layer = conv()
        with torch.no_grad():
            layer.weight.zero_()
        y = layer(torch.zeros_like(X))
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(layer._weight_parameters({})[0]).all())

    def test_a_checkpoint_loads_strictly_and_ranges_go_on(self) -> None:
        layer, other = conv(batch_norm=True), conv(batch_norm=True)
        for factor in (1.0, 2.0):
            layer(X * factor)
        assert all(isinstance(v, Tensor) for v in layer.state_dict().values())
        fresh = {k: v.shape for k, v in other.state_dict().items()}
        assert {k: v.shape for k, v in layer.state_dict().items()} == fresh
        other.load_state_dict(layer.state_dict(), strict=True)
        assert torch.equal(other.eval()(X), layer.eval()(X))
        layer.train()(X * 3)
        other.train()(X * 3)
        assert other.input_range.ends == layer.input_range.ends
        assert math.isclose(layer.input_range.ends[1], float(X.max()) * (1.1 * 0.9 + 0.3), rel_tol=1e-5)

    def test_what_is_not_finite_is_an_error_and_changes_nothing(self) -> None:
        layer = conv()
        layer(X)
        before = layer.input_range.ends
        bad = X.clone()
        bad[0, 0, 0, 0] = math.nan
        with pytest.raises(NonFiniteError, match="not finite"):
            layer(bad)
        assert layer.input_range.ends == before


class TestBatchNorm:
    def plain(self, layer: QuantConv2d) -> nn.Sequential:
        net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
        net[0].load_state_dict({"weight": layer.weight, "bias": layer.bias})
        return net

    def test_it_is_conv_and_batch_norm_and_the_bias_counts_once(self) -> None:
        layer = conv(a_bits=16, w_bits=16, batch_norm=True)
        with torch.no_grad():
            layer.bias.fill_(3.0)
        net = self.plain(layer)
        for _ in range(3):
            assert torch.allclose(layer(X), net(X), atol=2e-3)
        layer.eval()
        layer.batch_norm.load_state_dict(net[1].state_dict())
        assert torch.allclose(layer(X), net.eval()(X), atol=2e-3)

    def test_the_first_batch_is_copied_into_the_statistics(self) -> None:
        layer = conv(a_bits=32, w_bits=32, batch_norm=True, bn_momentum=0.01)
        layer(X)
        y = F.conv2d(X, layer.weight, layer.bias)
        assert torch.allclose(layer.batch_norm.running_var, y.var((0, 2, 3)), rtol=1e-4)
        assert torch.allclose(layer.batch_norm.running_mean, y.mean((0, 2, 3)), atol=1e-5)
        before = layer.batch_norm.running_var.clone()
        layer(X * 2)
        expected = 0.99 * before + 0.01 * F.conv2d(X * 2, layer.weight, layer.bias).var((0, 2, 3))
        assert torch.allclose(layer.batch_norm.running_var, expected, rtol=1e-4)

    @pytest.mark.parametrize("level", ["C", "L"])
    def test_the_range_of_the_weight_follows_the_factor(self, level: str) -> None:
        layer = conv(batch_norm=True, per_channel=level)
        layer(X * 100)
        layer(X * 100)
        norm = layer._norm()
        folded = layer.weight * layer._factor(norm).reshape(-1, 1, 1, 1)
        scale, _ = layer._weight_parameters(norm)
        top = folded.abs().flatten(1).amax(1) if level == "C" else folded.abs().max()
        assert torch.allclose(scale * 127, top, rtol=1e-5)

    def test_a_negative_factor_turns_an_asymmetric_range_around(self) -> None:
        layer = conv(batch_norm=True, w_symmetric=False)
        with torch.no_grad():
            layer.weight.abs_()
            layer.batch_norm.weight.fill_(-1.0)
        layer(X)
        norm = layer._norm()
        assert float((layer._rounded_weight(norm) / layer.weight - 1).detach().abs().max()) < 0.5
