"""What training refuses, keeps or leaves alone."""

import copy

import pytest
import torch
from torch import nn

import intact
from intact import CalibrationError, CaptureError, IntactError, Quant, Recipe, Schedule, TrainingError
from tests.training.nets import PAIRS, convolutional, data, prepared, same_codes, steps


def test_frozen_parameters_stay_frozen():
    net = convolutional()
    net[0].weight.requires_grad_(False)
    net[1].requires_grad_(False)
    x, y = data()
    qfloat = prepared(net)
    still = {"0.weight", "1.weight", "1.bias"}
    assert {n for n, p in qfloat.named_parameters() if not p.requires_grad} == still
    steps(qfloat, 3)
    state = qfloat.state_dict()
    assert all(torch.equal(state[n], net.state_dict()[n]) for n in still)
    assert not torch.equal(state["3.weight"], net[3].weight)
    dict(qfloat.named_parameters())["1.bias"].requires_grad_()
    again = intact.qat.reset_qconfig(qfloat, intact.ema_fakequant_qconfig)
    assert {n for n, p in again.named_parameters() if not p.requires_grad} == still - {"1.bias"}
    frozen = prepared(net.requires_grad_(False), edges="observed", weights="observed")
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        intact.train(frozen, [(x, y)])


@pytest.mark.parametrize("edges", [edges for edges, _ in PAIRS])
def test_an_input_that_is_no_number_moves_nothing(edges):
    x, _ = data()
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    qfloat = prepared(edges=edges)
    before = copy.deepcopy(qfloat.state_dict())
    for mode in (True, False):
        with pytest.raises(IntactError, match=r"an input is not finite.*where: input"):
            qfloat.train(mode)(bad)
    with pytest.raises(IntactError, match="an input is not finite"):
        qfloat.codes(bad)
    assert all(torch.equal(v, before[k]) for k, v in qfloat.state_dict().items())


def test_an_input_without_codes_may_be_infinite():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(4, 4)

        def forward(self, x, mask):
            return torch.softmax(torch.log_softmax(self.score(x), 1) + mask, 1)

    x, mask = torch.randn(8, 4), torch.zeros(8, 4)
    fm = intact.capture(Masked(), (x, mask))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [(x, mask)])
    mask[:, 0] = -torch.inf
    assert torch.equal(qfloat(x, mask)[:, 0], torch.zeros(8))
    assert torch.equal(intact.convert(qfloat)(x, mask), qfloat(x, mask))
    assert bool(torch.isfinite(qfloat.train()(x, mask)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", [True, False])
def test_other_dtypes_are_refused(dtype, mode):
    x, _ = data()
    with pytest.raises(CalibrationError, match="a parameter is not float32"):
        prepared().to(dtype).train(mode)(x)


def test_a_batch_norm_refuses_one_value_for_each_channel():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    fm = intact.capture(net, x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x]).train()
    with pytest.raises(TrainingError, match=r"more than one value of each channel.*where: 1"):
        qfloat(x[:1])
    assert all(bool(torch.isfinite(b.float()).all()) for b in qfloat.buffers())
    qfloat.freeze_batch_norm()
    assert qfloat(x[:1]).shape == (1, 2)


def test_a_plain_mean_counts_the_batches_that_moved_it():
    x, _ = data()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
    reference = copy.deepcopy(net).train()
    qfloat = prepared(net, schedule=Schedule(quantize_from=100)).train()
    qfloat.freeze_batch_norm()
    qfloat(x)
    qfloat.freeze_batch_norm(False)
    for part in x.split(16):
        qfloat(part)
        reference(part)
    assert torch.allclose(qfloat.state_dict()["1.running_mean"], reference[1].running_mean, rtol=1e-5, atol=1e-6)


def test_attributes_and_modules_may_share_names():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self._float, self.schedule = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.samples, self._bound = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.relu(self._float(torch.relu(self.step(x)))) + self.samples
            return self._bound(torch.relu(self.schedule(x)))

    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    fm = intact.capture(Odd(), x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    intact.train(qfloat, [(x, y)], epochs=2, schedule=Schedule(freeze_ranges_at=1))
    assert qfloat.step == 2
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))
    again = intact.prepare(fm, intact.plan(fm))
    again.load_state_dict(qfloat.state_dict())
    assert same_codes(again.codes(x), qfloat.codes(x))


@pytest.mark.parametrize("name", ["_quantizers", "_extra_state"])
def test_a_name_that_is_taken_is_refused(name):
    net = nn.Sequential()
    net.add_module(name, nn.Linear(3, 2))
    fm = intact.capture(net, torch.randn(4, 3))
    with pytest.raises(CaptureError, match="a name is taken"):
        intact.prepare(fm, intact.plan(fm))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(("edges", "weights"), PAIRS)
def test_wide_codes_train_at_the_learning_rate_of_narrow_ones(edges, weights, bits):
    x, _ = data()
    how = Quant(bits, bits, weight_quantizer=weights, activation_quantizer=edges)
    fm = intact.capture(convolutional(), x)
    plan = intact.plan(fm, target="reference", recipe=Recipe(default=how))
    qfloat = intact.calibrate(intact.prepare(fm, plan), [x])
    steps(qfloat, 5, lr=0.01)
    qfloat.eval()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


@pytest.mark.parametrize(("edges", "weights"), PAIRS)
def test_the_default_dtype_does_not_matter(edges, weights):
    x, y = data()
    net = convolutional()
    torch.set_default_dtype(torch.float64)
    try:
        how = Quant(4, 4, weight_quantizer=weights, activation_quantizer=edges)
        fm = intact.capture(net, x)
        qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, recipe=Recipe(default=how))), [x])
        intact.train(qfloat, [(x, y)])
        assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))
    finally:
        torch.set_default_dtype(torch.float32)
