"""Float, QFloat, Q under MegEngine's names: presets, switches, and the faults that must not occur."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import CalibrationError, PlanError, TrainingError
from intact.qat import QConfig
from intact.simulation import QFloatModel

PRESETS = {
    "min_max": intact.min_max_fakequant_qconfig, "ema": intact.ema_fakequant_qconfig,
    "ema_lowbit": intact.ema_lowbit_fakequant_qconfig, "sync_ema": intact.sync_ema_fakequant_qconfig,
    "calibration": intact.calibration_qconfig, "tqt": intact.tqt_qconfig, "lsq": intact.lsq_qconfig,
    "passive": intact.passive_qconfig, "easyquant": intact.easyquant_qconfig,
}
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 4),
    )


def qat(config: QConfig = intact.ema_fakequant_qconfig, **options: object) -> QFloatModel:
    return intact.quantize_qat(net(), config, example_inputs=X[:2], **options)  # type: ignore[arg-type]


def train(qfloat: QFloatModel, steps: int = 3, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = intact.parameter_groups(qfloat, 1e-3) if qfloat.calibrated else qfloat.parameters()
    opt = torch.optim.SGD(groups, lr=1e-3)
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        loss = qfloat(x).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()


def same_codes(qfloat: QFloatModel, q: intact.QModel, x: Tensor = X) -> None:
    mine, theirs = qfloat.codes(x), q.codes(x)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert torch.equal(qfloat(x), q(x))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_and_gives_the_codes_that_it_trained_with(name: str) -> None:
    qfloat = qat(PRESETS[name])
    assert qfloat.training
    train(qfloat)
    intact.enable_fake_quant(qfloat)
    q = intact.quantize(qfloat)
    assert not qfloat.training
    same_codes(qfloat, q)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_calibrates(name: str) -> None:
    qfloat = intact.calibrate(qat(PRESETS[name]), [X])
    intact.enable_fake_quant(qfloat)
    same_codes(qfloat.eval(), intact.quantize(qfloat))


@pytest.mark.parametrize("granularity", [intact.PerTensor(), intact.PerChannel(0)])
def test_granularity_of_weights(granularity: intact.PerTensor | intact.PerChannel) -> None:
    qfloat = qat(QConfig(weight_granularity=granularity))
    train(qfloat)
    for quantizer in qfloat.weight_quantizers.values():
        assert len(quantizer.shape) == isinstance(granularity, intact.PerChannel)
    same_codes(qfloat.eval(), intact.quantize(qfloat))


def test_what_the_presets_say() -> None:
    low = qat(intact.ema_lowbit_fakequant_qconfig).plan
    assert {s.qtype.bits for s in low.weights.values()} == {4}
    assert all(s.qtype.narrow for s in qat().plan.weights.values())
    assert "trained by tqt" in str(qat(intact.tqt_qconfig).plan)
    train(tqt := qat(intact.tqt_qconfig))
    scales = [float(q.qparams().scale) for q in tqt.edge_quantizers.values()]
    assert all(torch.frexp(torch.tensor(s)).mantissa == 0.5 for s in scales)


def test_a_config_is_immutable_and_refuses_what_is_not_there() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        intact.ema_fakequant_qconfig.act_observer = "mse"  # type: ignore[misc]
    with pytest.raises(PlanError, match="not affine codes yet"):
        QConfig(weight_dtype="qint1")
    with pytest.raises(PlanError, match="did you mean 'qint8'"):
        QConfig(act_dtype="qint_8")
    with pytest.raises(PlanError, match="signed dtype"):
        QConfig(weight_dtype="quint8")
    with pytest.raises(PlanError, match="no such dtype"):
        QConfig(act_dtype="qint8_narrow")
    with pytest.raises(PlanError, match="unknown activation observer"):
        QConfig(act_observer="ema")
    with pytest.raises(PlanError, match="passive"):
        QConfig(weight_observer="passive", weight_fake_quant="lsq")


def test_dtypes() -> None:
    ends = {n: (t.qmin, t.qmax) for n, t in intact.types.names.DTYPES.items()}
    assert ends == {
        "quint8": (0, 255), "qint8": (-128, 127), "qint8_narrow": (-127, 127), "quint4": (0, 15), "qint4": (-8, 7),
        "qint32": (-(2**31), 2**31 - 1),
    }
    assert intact.qtype("qint8") is intact.qint8


def test_the_observer_of_several_processes_can_be_disabled() -> None:
    qfloat = qat(intact.sync_ema_fakequant_qconfig)
    train(qfloat, 2)
    intact.disable_observer(qfloat)
    before = {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()}
    train(qfloat, 2, seed=5)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} == before
    intact.enable_observer(qfloat)
    train(qfloat, 2, seed=6)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} != before


def test_training_mode_observes_and_evaluation_mode_does_not() -> None:
    qfloat = qat()
    train(qfloat, 2)
    before = {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()}
    qfloat.eval()(X * 100)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} == before
    intact.enable_observer(qfloat)
    qfloat(X * 100)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} != before
    before = {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()}
    qfloat.eval()(X * 1000)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} == before
    intact.enable_observer(qfloat, "3")
    qfloat(X * 1000)
    assert [n for n, q in qfloat.edge_quantizers.items() if float(q.qparams().scale) != before[n]] == ["4"]


def test_the_histogram_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from intact.observers import Mse

    searches = []
    monkeypatch.setattr(Mse, "_best", lambda self, d, s, own=Mse._best: searches.append(s) or own(self, d, s))
    qfloat = qat(intact.calibration_qconfig).eval()
    intact.enable_observer(qfloat)
    for part in X.split(4):
        qfloat(part)
    assert not searches
    intact.enable_fake_quant(qfloat)
    qfloat.eval()
    for part in X.split(4):
        qfloat(part)
    edges = len(qfloat.edge_quantizers)
    assert len(searches) == edges
    qfloat.train()
    train(qfloat, 2)
    assert len(searches) == edges


def test_calibration_by_forward_passes_sees_all_batches_and_moves_nothing() -> None:
    qfloat = qat(intact.calibration_qconfig)
    weights = {k: v.clone() for k, v in qfloat.named_parameters()}
    buffers = {k: v.clone() for k, v in qfloat.named_buffers() if "running" in k}
    model = net().eval()
    with torch.no_grad():
        for part in X.split(4):
            assert torch.allclose(qfloat(part), model(part), atol=1e-6)
    intact.enable_fake_quant(qfloat)
    intact.quantize(qfloat)
    reference = intact.calibrate(qat(intact.calibration_qconfig), X.split(4))
    found, wanted = qfloat.edge_quantizers, reference.edge_quantizers
    assert float(found["input"].qparams().scale) == float(wanted["input"].qparams().scale)
    assert all(torch.equal(v, weights[k]) for k, v in qfloat.named_parameters())
    assert all(torch.equal(v, buffers[k]) for k, v in qfloat.named_buffers() if k in buffers)


def test_ties_go_to_even_in_training_and_in_integers() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    qfloat = intact.quantize_qat(layer, intact.passive_qconfig, example_inputs=torch.zeros(2, 1))
    qfloat.edge_quantizers["input"].initialise(intact.types.QParams.per_tensor(1.0, 128, intact.quint8))
    x = torch.tensor([[-2.5], [-1.5], [-0.5], [0.5], [1.5], [2.5]])
    even = torch.tensor([[-2.0], [-2.0], [0.0], [0.0], [2.0], [2.0]])
    assert torch.equal((qfloat(x) / qfloat(torch.ones(1, 1))), even)
    q = intact.quantize(qfloat)
    assert torch.equal(q.codes(x)["input"].to(torch.int32), even.to(torch.int32) + 128)


def test_passive_parameters_stay() -> None:
    qfloat = qat(intact.passive_qconfig)
    train(qfloat, 1)
    edges = {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()}
    weights = {n: w.raw().clone() for n, w in qfloat.weight_quantizers.items()}  # type: ignore[attr-defined]
    train(qfloat, 3, seed=9)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} == edges
    assert all(torch.equal(w.raw(), weights[n]) for n, w in qfloat.weight_quantizers.items())  # type: ignore[attr-defined]


def test_reset_qconfig_keeps_parameters() -> None:
    qfloat = qat()
    train(qfloat)
    new = intact.reset_qconfig(qfloat, intact.lsq_qconfig)
    assert new.training and not new.calibrated
    own = dict(qfloat.named_parameters())
    assert all(torch.equal(own[k], v) for k, v in new.named_parameters() if not k.startswith("_quantizers"))
    train(new)
    same_codes(new.eval(), intact.quantize(new))


def test_disable_quantize_leaves_the_rest_as_it_was() -> None:
    qfloat = qat()
    train(qfloat)
    new = intact.disable_quantize(qfloat, "7")
    assert {r.path for r in new.plan.rejections} >= {"7"} and new.calibrated
    for name, quantizer in new.edge_quantizers.items():
        assert float(quantizer.qparams().scale) == float(qfloat.edge_quantizers[name].qparams().scale)
    same_codes(new.eval(), intact.quantize(new))
    model = qfloat.float_copy()
    whole = intact.disable_quantize(qfloat).eval()
    assert not whole.plan.edges
    assert torch.allclose(whole(X), model(X), atol=1e-5)


def test_mapping_by_path() -> None:
    qfloat = qat(mapping={"0": intact.ema_lowbit_fakequant_qconfig, "3": None})
    assert qfloat.plan.weights["0.weight"].qtype.bits == 4
    assert "3" in {r.path for r in qfloat.plan.rejections}
    with pytest.raises(PlanError, match="matches nothing"):
        qat(mapping={"layer9": None})


def test_switches_by_path() -> None:
    qfloat = qat()
    intact.disable_fake_quant(qfloat, "3")
    assert [n for n, q in qfloat.edge_quantizers.items() if not q.enabled] == ["4"]
    assert [n for n, q in qfloat.weight_quantizers.items() if not q.enabled] == ["3.weight"]
    train(qfloat)
    with pytest.raises(CalibrationError, match="fake quantization is switched off"):
        intact.quantize(qfloat)
    intact.enable_fake_quant(qfloat, "3")
    same_codes(qfloat, intact.quantize(qfloat))
    intact.disable_observer(qfloat, "0")
    assert sum(not q.observing for q in qfloat.edge_quantizers.values()) == 1


@pytest.mark.parametrize("verb", [intact.enable_observer, intact.disable_fake_quant, intact.disable_quantize])
def test_a_pattern_that_matches_nothing_names_the_nearest(verb: object) -> None:
    with pytest.raises(PlanError, match=r"matches nothing.*33"):
        verb(qat(), "33")  # type: ignore[operator]
    with pytest.raises(TrainingError, match="QFloat model"):
        verb(net())  # type: ignore[operator]


def test_quantize_of_a_qfloat_model() -> None:
    qfloat = qat()
    with pytest.raises(CalibrationError, match="ranges that nothing has trained"):
        intact.quantize(qfloat)
    with pytest.raises(PlanError, match="planned already"):
        intact.quantize(qfloat, target="reference")
    same_codes(qfloat, intact.quantize(qfloat, [X]))
    with pytest.raises(CalibrationError, match="there is no data"):
        intact.quantize(net())


def test_a_gathered_range_survives_a_checkpoint() -> None:
    qfloat = qat(intact.calibration_qconfig)
    qfloat(X)
    other = qat(intact.calibration_qconfig)
    other.load_state_dict(qfloat.state_dict())
    for model in (qfloat, other):
        intact.enable_fake_quant(model)
    assert torch.equal(qfloat.eval()(X), other.eval()(X))


def test_free_axes_of_a_trained_network() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    qfloat = intact.quantize_qat(net, example_inputs=torch.randn(4, 2, 12), dynamic={2: "length"})
    for length in (12, 30):
        qfloat(torch.randn(4, 2, length)).square().mean().backward()
    q = intact.quantize(qfloat)
    assert q(torch.randn(1, 2, 17)).shape == (1, 2, 13)
    fm = intact.capture(net, torch.randn(4, 2, 12))
    for call in (lambda: intact.quantize_qat(fm, dynamic={2: "length"}),
                 lambda: intact.quantize(fm, [torch.randn(4, 2, 12)], dynamic={2: "length"})):
        with pytest.raises(intact.CaptureError, match="has its free axes"):
            call()
