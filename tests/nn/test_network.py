"""A network built by hand, trained in eager mode: captured, converted and exported like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import intact
from intact.errors import CalibrationError, PlanError
from intact.nn import QuantConv2d, QuantLinear

IMAGES = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(7))
LABELS = torch.arange(32) % 4


def conv(inputs: int, outputs: int, kernel: int, **options: object) -> list[nn.Module]:
    layer = QuantConv2d(inputs, outputs, kernel, padding=kernel // 2, batch_norm=True, bn_momentum=0.01,
                        **options)  # type: ignore[arg-type]
    return [layer, nn.ReLU()]


def nin(bits: int = 8, **options: object) -> nn.Module:
    """Network in network, small."""
    torch.manual_seed(0)
    given = {"a_bits": bits, "w_bits": bits, **options}
    return nn.Sequential(
        *conv(3, 8, 5, first_layer=True, **given), *conv(8, 8, 1, **given), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.1),
        *conv(8, 12, 3, **given), *conv(12, 12, 1, **given), nn.AvgPool2d(3, 2, 1),
        *conv(12, 12, 3, **given), *conv(12, 4, 1, **given), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )


def train(net: nn.Module, steps: int = 20) -> list[float]:
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    net.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(IMAGES), LABELS)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("level", ["C", "L"])
def test_trained_converted_exported(bits: int, level: str, tmp_path: Path) -> None:
    net = nin(bits, per_channel=level)
    losses = train(net)
    assert losses[-1] < losses[0]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    fm = intact.capture(net, IMAGES[:4])
    qfloat = intact.prepare(fm, intact.plan(fm))
    assert qfloat.plan.coverage.mac_share == 1.0
    unknown = [n for n, e in qfloat.edge_quantizers.items() if not e.known]
    assert unknown == ["15"]  # the last average: no layer reads it
    q = intact.convert(intact.calibrate(qfloat, [IMAGES]))
    mine, theirs = qfloat.codes(IMAGES), q.codes(IMAGES)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not net.get_submodule("0").in_float
    eager, integer = net.eval()(IMAGES).detach(), q(IMAGES)
    assert float((eager - integer).norm() / eager.norm()) < {8: 0.05, 4: 0.5}[bits]
    assert torch.equal(intact.quantize(net, [IMAGES])(IMAGES), q(IMAGES))
    with pytest.raises(CalibrationError, match="1 ranges that nothing has trained: 15"):
        intact.quantize(net, example_inputs=IMAGES[:4])


def with_head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *conv(3, 8, 3, first_layer=True), nn.MaxPool2d(2), *conv(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        QuantLinear(8, 4),
    )


def test_where_every_range_was_trained_no_calibration_is_needed(tmp_path: Path) -> None:
    net = with_head()
    train(net)
    fm = intact.capture(net, IMAGES[:4])
    qfloat = intact.prepare(fm, intact.plan(fm))
    q = intact.convert(qfloat)
    mine, theirs = qfloat.codes(IMAGES), q.codes(IMAGES)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0
    assert torch.equal(intact.quantize(net, example_inputs=IMAGES[:4])(IMAGES), q(IMAGES))
    calibrated = intact.quantize(net, [IMAGES])
    assert [n for n, p in q.qparams.items() if not p.same_as(calibrated.qparams[n])] == ["4"]
    intact.save(q, tmp_path / "net.intact")
    assert torch.equal(intact.load(tmp_path / "net.intact")(IMAGES), q(IMAGES))


def test_it_starts_from_the_trained_ranges() -> None:
    net = with_head()
    train(net, 5)
    fm = intact.capture(net, IMAGES[:4])
    qfloat = intact.prepare(fm, intact.plan(fm))
    first = net.get_submodule("0")
    assert isinstance(first, QuantConv2d)
    low, high = first.input_range.ends or (0.0, 0.0)
    scale = float(qfloat.edge_quantizers["input"].qparams().scale)
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    for name, weights in qfloat.weight_quantizers.items():
        layer = net.get_submodule(name.rpartition(".")[0])
        assert isinstance(layer, QuantConv2d | QuantLinear)
        assert torch.equal(weights.raw(), layer.hint().weight_scale)  # type: ignore[attr-defined]
    read = qfloat.edge_quantizers.keys() - {"4"}  # what the average reads is no layer's
    before = {n: float(qfloat.edge_quantizers[n].qparams().scale) for n in read}
    intact.calibrate(qfloat, [IMAGES * 10])
    assert {n: float(qfloat.edge_quantizers[n].qparams().scale) for n in read} == before
    qfloat.train()
    qfloat(IMAGES).sum().backward()
    intact.quantize(qfloat)


def test_the_eager_codes_are_the_deployed_codes() -> None:
    """One layer: what it reads and its weight, on the same grids."""
    torch.manual_seed(0)
    layer = QuantLinear(8, 4)
    x = torch.randn(16, 8)
    layer(x)
    q = intact.quantize(layer, [x])
    layer.eval()
    exact = nn.functional.linear(layer._rounded_input(x).double(), layer._rounded_weight({}).double())
    assert torch.allclose(q(x).double(), exact + layer.bias.double(), atol=1e-3, rtol=0)
    p = q.qparams["x"]
    assert torch.equal(q.codes(x)["x"].float(), (layer._rounded_input(x) / p.scale).round() + p.zero_point)


def test_an_untrained_network_is_float_until_it_is_calibrated() -> None:
    net = nin()
    with pytest.raises(CalibrationError):
        intact.quantize(net, example_inputs=IMAGES[:4])
    q = intact.quantize(net, [IMAGES])
    assert q.plan.count("uint8 per tensor affine, moving_average") > 5
    plain = intact.capture(net, IMAGES[:4])
    with torch.no_grad():
        assert torch.allclose(plain(IMAGES), net.eval()(IMAGES), atol=1e-5)


def test_rules_come_before_layers_and_layers_before_the_default() -> None:
    net = nin(4)
    train(net, 2)
    fm = intact.capture(net, IMAGES[:4])
    recipe = intact.Recipe(rules=(intact.Rule(intact.path("2"), intact.Quant(weight_bits=6, activation_bits=6)),))
    plan = intact.plan(fm, recipe=recipe)
    bits = {name: spec.qtype.bits for name, spec in plan.weights.items()}
    assert bits["2.weight"] == 6 and bits["0.weight"] == 4
    assert "2" not in {fm.graph[n].path for n in plan.hinted}
    assert ("6", "as the layer says: W4A4, trained") in plan.notes
    qfloat = intact.prepare(fm, plan)
    assert not qfloat.calibrated
    q = intact.convert(intact.calibrate(qfloat, [IMAGES]))
    assert torch.equal(q(IMAGES), qfloat(IMAGES))


def test_only_one_of_the_two_at_32_is_float_with_its_reason() -> None:
    net = nn.Sequential(QuantConv2d(3, 4, 3, w_bits=4, a_bits=32), nn.ReLU(), QuantConv2d(4, 4, 3), nn.Flatten(),
                        QuantLinear(576, 2, w_bits=32))
    net(IMAGES)
    fm = intact.capture(net, IMAGES[:4])
    reasons = {r.path: r.reason for r in intact.plan(fm).rejections}
    assert reasons["0"] == "the layer says W4A32: an integer layer needs codes of both"
    assert reasons["4"].startswith("the layer says W32A8")
    assert intact.quantize(net, [IMAGES])(IMAGES).shape == (32, 2)


def test_asymmetric_weights_need_a_target_that_has_them() -> None:
    net = nn.Sequential(QuantLinear(8, 4, w_symmetric=False, a_symmetric=True))
    x = torch.randn(16, 8)
    net(x)
    with pytest.raises(PlanError, match="symmetric weights only"):
        intact.quantize(net, [x])
    q = intact.quantize(net, [x], target="reference")
    with torch.no_grad():
        assert float((q(x) - net.eval()(x)).abs().max()) < 1e-3


def test_a_batch_norm_that_is_not_the_layers_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(QuantConv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), QuantLinear(6 * 196, 4))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([50.0, -20.0, 0.01, 1.0, 2.0, -0.1]))
    for _ in range(30):
        net(IMAGES)
    q = intact.quantize(net, example_inputs=IMAGES[:4])
    calibrated = intact.quantize(net, [IMAGES])
    with torch.no_grad():
        wanted = net.eval()(IMAGES)
    for found in (q, calibrated):
        assert float((found(IMAGES) - wanted).norm() / wanted.norm()) < 0.03


def test_reset_qconfig_replaces_what_the_layers_said() -> None:
    net = with_head()
    train(net, 3)
    qfloat = intact.quantize_qat(net, example_inputs=IMAGES[:4])
    assert qfloat.calibrated and qfloat.plan.weights["0.weight"].quantizer == "passive"
    qfloat(IMAGES).sum().backward()
    new = intact.reset_qconfig(qfloat, intact.lsq_qconfig)
    assert {w.quantizer for w in new.plan.weights.values()} == {"lsq"} and not new.plan.hinted
    floating = intact.disable_quantize(qfloat, "0")
    assert floating.plan.weights["3.weight"].quantizer == "passive"


def test_a_shared_layer_and_a_residual() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.fc = QuantConv2d(3, 3, 3, padding=1), QuantLinear(768, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(self.one(x).relu())
            return self.fc((x + y).flatten(1))

    net = Net()
    train(net, 3)
    qfloat = intact.prepare(fm := intact.capture(net, IMAGES[:4]), intact.plan(fm))
    q = intact.quantize(net, [IMAGES])
    assert qfloat.calibrated == (not [n for n, e in qfloat.edge_quantizers.items() if not e.known])
    assert torch.equal(q(IMAGES), intact.convert(intact.calibrate(qfloat, [IMAGES]))(IMAGES))


def test_a_checkpoint_of_the_network_loads_strictly() -> None:
    net, other = nin(), nin()
    train(net, 3)
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(other.eval()(IMAGES), net.eval()(IMAGES))
    assert torch.equal(intact.quantize(other, [IMAGES])(IMAGES), intact.quantize(net, [IMAGES])(IMAGES))
