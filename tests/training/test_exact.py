"""In evaluation mode a QFloat model gives the integer model's codes, at any point of training."""

import copy

import pytest
import torch
from torch import nn

import intact
from intact import CalibrationError, Quant, Recipe
from intact.graph.passes import DEFAULT_PASSES
from tests.training.nets import PAIRS, Dense, convolutional, data, prepared, same_codes, steps


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("edges", "weights"), PAIRS)
def test_codes_are_the_integer_models_codes_all_along(edges, weights, bits, tmp_path):
    qfloat = prepared(bits=bits, edges=edges, weights=weights)
    x, _ = data()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))
    for count in (1, 5):
        steps(qfloat, count)
        qfloat.eval()
        q = intact.convert(qfloat)
        assert same_codes(qfloat.codes(x), q.codes(x))
        assert torch.equal(qfloat(x), q(x))
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0


def test_at_step_zero_it_is_the_calibrated_model():
    x, _ = data()
    net = convolutional()
    q = intact.quantize(net, [x])
    fm = intact.capture(net, x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    qfloat.train()
    qfloat.eval()
    assert same_codes(qfloat.codes(x), q.codes(x))
    assert torch.equal(qfloat(x), q(x))


@pytest.mark.parametrize("granularity", [intact.PerTensor(), intact.PerChannel(0)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("edges_symmetric", [True, False])
@pytest.mark.parametrize("quantizer", ["observed", "lsq"])
def test_granularities_and_symmetries(granularity, symmetric, edges_symmetric, quantizer):
    x, _ = data()
    how = Quant(4, 6, weight_granularity=granularity, weight_symmetric=symmetric, activation_symmetric=edges_symmetric,
                weight_quantizer=quantizer, activation_quantizer=quantizer)
    fm = intact.capture(convolutional(), x)
    qfloat = intact.prepare(fm, intact.plan(fm, target="reference", recipe=Recipe(default=how)))
    intact.calibrate(qfloat, [x])
    before = float(nn.functional.mse_loss(qfloat(x), fm(x)))
    assert before < float(fm(x).var())
    steps(qfloat, 3)
    qfloat.eval()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


@pytest.mark.parametrize("net", [convolutional, Dense])
def test_training_sees_what_evaluation_gives(net):
    """With batch norms frozen, the training forward differs by the rounding of biases and float sums only."""
    x, _ = data()
    qfloat = prepared(net(), bits=8, edges="observed", weights="observed")
    steps(qfloat, 3)
    qfloat.eval()
    exact = qfloat(x)
    seen = {}
    qfloat.look((x,), {}, lambda name, value: seen.__setitem__(name, value))
    simulated = seen[qfloat.plan.graph.outputs[0]]
    noise = (simulated - exact).square().mean() / exact.square().mean()
    assert float(noise) < 1e-3
    for name, value in seen.items():
        if name in qfloat.edge_quantizers and qfloat.plan.decisions[name].integer:
            grid = value / qfloat.edge_quantizer(name).current_scale()
            assert float((grid - grid.round()).abs().max()) < 1e-3


def test_a_changed_parameter_is_never_evaluated_with_old_codes():
    qfloat = prepared()
    x, _ = data()
    before = qfloat(x)
    with torch.no_grad():
        next(p for n, p in qfloat.named_parameters() if n == "8.weight").mul_(2.0)
    assert not torch.equal(qfloat(x), before)
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


def test_a_copy_is_a_model_of_its_own():
    qfloat = prepared()
    x, _ = data()
    twin = copy.deepcopy(qfloat)
    before = twin.codes(x)
    steps(qfloat, 2)
    qfloat.eval()
    assert same_codes(twin.codes(x), before)
    steps(twin, 2)
    twin.eval()
    assert same_codes(twin.codes(x), qfloat.codes(x))


def test_converting_in_training_mode_or_before_calibration_is_refused():
    with pytest.raises(CalibrationError, match="not calibrated"):
        intact.convert(prepared(calibrated=False))
    with pytest.raises(CalibrationError, match="training mode"):
        intact.convert(prepared().train())


def test_trains_from_nothing():
    """Without calibration the first batch sets the ranges."""
    qfloat = prepared(calibrated=False, edges="observed", weights="observed")
    steps(qfloat, 2)
    qfloat.eval()
    x, _ = data()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


def test_the_users_names_stand_in_the_state():
    net = convolutional()
    names = {k for k in net.state_dict() if not k.endswith("num_batches_tracked")}
    own = {k for k in prepared(net).state_dict() if not k.startswith("_quantizers") and k != "_extra_state"}
    assert own == names


def test_names_of_the_users_may_be_ours():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plan, self.codes = nn.Linear(3, 4), nn.Linear(4, 4)
            self.program = nn.Sequential(nn.Linear(4, 2))

        def forward(self, x):
            return self.program(torch.relu(self.codes(torch.relu(self.plan(x)))))

    x = torch.randn(8, 3)
    fm = intact.capture(Odd(), x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    assert "plan.weight" in qfloat.state_dict()
    qfloat.train()(x).sum().backward()
    qfloat.eval()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


def test_the_users_model_is_not_trained():
    net = convolutional()
    before = copy.deepcopy(net.state_dict())
    steps(prepared(net), 2)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing
def test_compiled_and_mixed_precision():
    x, y = data()
    plain, compiled = prepared(), prepared()
    fast = torch.compile(compiled, backend="aot_eager")
    losses = steps(plain, 3)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.05, momentum=0.9)
    assert steps(fast, 3, optimizer=optimizer) == pytest.approx(losses, rel=1e-4)
    compiled.eval()
    assert torch.equal(fast.eval()(x), intact.convert(compiled)(x))
    plain.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(plain(x).float(), y)
    loss.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in plain.parameters())
    plain.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(x), intact.convert(plain)(x))


def test_a_module_that_cannot_be_captured_trains_too():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight if float(x.detach().sum()) > 1e9 else x + self.weight

    net = nn.Sequential(nn.Linear(3, 4), Gate(), nn.Linear(4, 2))
    x = torch.randn(16, 3)
    fm = intact.capture(net, x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    qfloat.train()(x).square().sum().backward()
    assert dict(qfloat.named_parameters())["1.weight"].grad is not None
    qfloat.eval()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))
    assert torch.equal(net[1].weight, torch.ones(4))


def test_equalized_and_transposed_models_train():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.ConvTranspose2d(6, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(8, 3, 6, 6)
    for passes in (DEFAULT_PASSES, (*DEFAULT_PASSES[:3], intact.graph.passes.EqualizeChannels(), *DEFAULT_PASSES[3:])):
        fm = intact.capture(net, x, passes=passes)
        qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
        qfloat.train()(x).square().mean().backward()
        assert all(p.grad is not None for p in qfloat.parameters())
        torch.optim.SGD(qfloat.parameters(), lr=0.1).step()
        qfloat.eval()
        assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))
