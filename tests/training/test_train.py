"""The small training loop: labels, distillation, what watches over it, and several processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import intact
from intact import Distill, IntactError, TrainingError
from intact.training.distill import distillation_loss
from tests.training.nets import convolutional, data, prepared, same_codes, steps

WORKER = Path(__file__).with_name("ddp_worker.py")


def batches(labels: bool = True) -> list:
    x, y = data()
    return [(x[i : i + 16], y[i : i + 16]) if labels else x[i : i + 16] for i in range(0, 48, 16)]


def test_it_learns_from_labels():
    qfloat = prepared()
    seen = []
    history = intact.train(
        qfloat, batches(), epochs=15, lr=1e-2, validate=lambda m: float(seen.append(m.training) or 1)
    )
    assert history.epochs[-1].loss < 0.8 * history.epochs[0].loss
    assert not any(seen) and not qfloat.training
    assert len(history.epochs) == 15 and "epoch  15" in str(history)
    x, _ = data()
    assert same_codes(qfloat.codes(x), intact.convert(qfloat).codes(x))


def test_it_learns_from_the_float_model_alone():
    x, _ = data()
    net = convolutional()
    steps(net, 20)
    net.eval()
    qfloat = prepared(net, bits=2)
    with torch.no_grad():
        wanted = net(x)
    before = float((qfloat(x) - wanted).square().mean())
    how = Distill(loss="mse", features={"3": 0.1, "5": 0.1})
    intact.train(qfloat, batches(labels=False), epochs=20, lr=1e-2, distill=how)
    assert float((qfloat(x) - wanted).square().mean()) < 0.5 * before


def test_maps_are_taught_as_labels_are():
    """A mean over places and samples, so that the two losses are of like size."""
    ours, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, 3) for t in (ours, theirs)]
    for how in (Distill(), Distill(temperature=4.0)):
        whole = distillation_loss(how, {"map": ours}, {"map": theirs}, {}, {}, {})
        assert torch.allclose(whole, distillation_loss(how, *rows, {}, {}, {}))
    for shape in ((6,), (6, 1)):
        with pytest.raises(TrainingError, match="no logits"):
            distillation_loss(Distill(), torch.randn(shape), torch.randn(shape), {}, {}, {})


def test_any_module_teaches():
    teacher = convolutional(seed=3)
    history = intact.train(prepared(), batches(), epochs=2, teacher=teacher, distill=Distill(weight=0.5))
    assert len(history.epochs) == 2


@pytest.mark.parametrize(("change", "message"), [
    ({"epochs": 0}, "nothing"), ({"lr": 0.0}, "nothing"), ({"data": torch.zeros(3)}, "not an iterable"),
    ({"data": []}, "no training data"), ({"distill": Distill(features={"nowhere": 1.0})}, "no such layer"),
    ({"data": (b for b in batches()), "epochs": 2}, "generator"),
    ({"teacher": convolutional(), "distill": Distill(features={"3": 1.0})}, "captured teacher"),
    ({"data": [torch.zeros(4, 3, 6, 6)]}, "nothing to learn from"),
])
def test_settings_that_cannot_work(change, message):
    settings = {"data": batches(), "epochs": 1, **change}
    with pytest.raises(TrainingError, match=message):
        intact.train(prepared(), settings.pop("data"), **settings)
    with pytest.raises(TrainingError):
        Distill(temperature=0.0)
    with pytest.raises(TrainingError, match="two learning rates"):
        qfloat = prepared()
        intact.train(qfloat, batches(), lr=0.1, optimizer=torch.optim.SGD(qfloat.parameters(), lr=0.1))
    with pytest.raises(TrainingError, match="not calibrated"):
        intact.train(prepared(calibrated=False), batches())


def test_a_loss_that_is_not_finite_names_its_layer():
    qfloat = prepared()
    with torch.no_grad():
        dict(qfloat.named_parameters())["3.weight"][0, 0, 0, 0] = float("nan")
    qfloat.calibrated  # noqa: B018
    with pytest.raises(TrainingError, match=r"not finite.*3\.weight"):
        intact.train(qfloat, batches())
    x, y = data()
    with pytest.raises(IntactError, match=r"not finite.*where: input"):
        intact.train(prepared(), [(x * float("nan"), y)])


def test_a_scale_that_collapses_is_named():
    qfloat = prepared()
    with torch.no_grad():
        qfloat.edge_quantizers["2"].gain.fill_(-11.0)
    with pytest.raises(TrainingError, match=r"collapsed.*where: 2\b"):
        qfloat.eval().codes(data()[0])
    qfloat = prepared()
    with torch.no_grad():
        qfloat.weight_quantizers["3.weight"].gain[1] = -20.0
    with pytest.raises(TrainingError, match=r"collapsed.*3\.weight"):
        intact.convert(qfloat)


@pytest.mark.parametrize("seed", range(3))
def test_two_bits_survive_two_hundred_steps(seed):
    survive(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_two_bits_survive_on_twenty_seeds(seed):
    survive(seed)


def survive(seed: int) -> None:
    """No NaN, no layer whose weights or outputs are all one code."""
    torch.manual_seed(seed)
    qfloat = prepared(convolutional(seed), bits=2)
    optimizer = torch.optim.SGD(intact.parameter_groups(qfloat, 0.02), lr=0.02, momentum=0.9)
    losses = steps(qfloat, 200, optimizer=optimizer)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[0]
    x, _ = data()
    q = intact.convert(qfloat.eval())
    for name, binding in q.bindings.items():
        if binding.weight is not None:
            assert len(binding.weight.codes.unique()) > 1, name
    for name, codes in q.codes(x).items():
        assert len(codes.unique()) > 1, name


def worker(quantizer: str, out: Path, *more: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(WORKER), quantizer, str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("quantizer", ["observed", "lsq"])
def test_two_processes_are_one(quantizer, tmp_path):
    """The same ranges, and the same losses but for the order of float sums."""
    found = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        done = worker(quantizer, out, processes=processes)
        assert out.exists(), done.stderr[-2000:]
        found.append(json.loads(out.read_text()))
    one, two = found
    assert two["ranges"] == one["ranges"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["trained"] == pytest.approx(one["trained"], rel=1e-4)
    assert two["mean"] == pytest.approx(one["mean"], abs=1e-6)


def test_processes_with_different_plans_are_refused(tmp_path):
    done = worker("lsq", tmp_path / "x.json", "other", processes=2)
    assert done.returncode != 0
    assert "different plans" in done.stderr


def test_alone_distribution_does_nothing():
    from intact import dist

    x = torch.tensor([-1.0, 2.0])
    assert dist.world_size() == 1 and dist.rank() == 0
    assert dist.extremes(x) is x and dist.sum_with_gradient(x) is x
    assert dist.gather({"x": x})[0]["x"] is x
    dist.check_same("plan", "text")


def test_a_plain_loop_over_a_loader():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=16, shuffle=True)
    assert len(intact.train(prepared(), loader, epochs=2).epochs) == 2
    optimizer_of = prepared()
    optimizer = torch.optim.SGD(optimizer_of.parameters(), lr=0.1)
    intact.train(optimizer_of, loader, optimizer=optimizer, loss=nn.functional.cross_entropy)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)
