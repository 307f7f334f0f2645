"""Checkpoints resume exactly; those of another plan are refused by name."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from intact import ArtifactError, Schedule, TrainingError
from tests.training.nets import PAIRS, convolutional, data, prepared, same_codes, steps


@pytest.mark.parametrize(("edges", "weights"), PAIRS)
def test_training_resumes_exactly(edges, weights, tmp_path):
    straight = prepared(edges=edges, weights=weights)
    first = torch.optim.Adam(straight.parameters(), lr=1e-3)
    steps(straight, 3, optimizer=first)
    save_file(straight.state_dict(), tmp_path / "model.safetensors")
    kept = copy.deepcopy(first.state_dict())
    steps(straight, 3, optimizer=first)

    resumed = prepared(convolutional(seed=9), edges=edges, weights=weights, calibrated=False)
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    second = torch.optim.Adam(resumed.parameters(), lr=1e-3)
    second.load_state_dict(kept)
    steps(resumed, 3, optimizer=second)
    state = straight.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, state[name]), name
    x, _ = data()
    assert same_codes(resumed.eval().codes(x), straight.eval().codes(x))


def test_a_calibrated_model_resumes_with_its_corrections():
    model, other = prepared(edges="observed", weights="observed"), prepared(calibrated=False, edges="observed",
                                                                            weights="observed")
    other.load_state_dict(model.state_dict())
    x, _ = data()
    assert same_codes(other.codes(x), model.codes(x))


def test_the_schedule_and_its_step_are_part_of_it():
    model = prepared(schedule=Schedule(freeze_ranges_at=2))
    steps(model, 3)
    other = prepared(calibrated=False)
    other.load_state_dict(model.state_dict())
    assert other.schedule == Schedule(freeze_ranges_at=2)
    assert other.step == 3
    assert all(q.frozen for q in other.edge_quantizers.values())


def test_another_plan_is_refused_and_named():
    state = prepared(bits=4).state_dict()
    other = prepared(bits=3)
    x, _ = data()
    before = other.codes(x)
    with pytest.raises(ArtifactError, match=r"another plan.*edge 2"):
        other.load_state_dict(state)
    assert same_codes(other.codes(x), before)


def test_a_float_state_is_no_checkpoint_unless_asked():
    qfloat = prepared()
    state = convolutional(seed=7).state_dict()
    with pytest.raises(ArtifactError, match="strict=False"):
        qfloat.load_state_dict(state)
    qfloat.load_state_dict(state, strict=False)
    assert torch.equal(qfloat.state_dict()["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    "state", [torch.zeros(4, dtype=torch.uint8), "text", torch.tensor([123, 125], dtype=torch.uint8)]
)
def test_damaged_state_is_refused(state):
    qfloat = prepared()
    with pytest.raises(ArtifactError, match="cannot be read"):
        qfloat.load_state_dict({**qfloat.state_dict(), "_extra_state": state})


@pytest.mark.parametrize("bad", [
    {"observe_from": 5, "observe_until": 2}, {"freeze_ranges_at": 1, "quantize_from": 3},
    {"freeze_ranges_at": 1, "observe_until": 3}, {"quantize_from": -1}, {"batch_norm_momentum": 0.0},
    {"freeze_batch_norm_at": 1.5},
])
def test_a_schedule_that_contradicts_itself(bad):
    with pytest.raises(TrainingError):
        Schedule(**bad)


def test_a_schedule_is_data():
    schedule = Schedule(2, 1, 5, 7, 9, 0.01)
    assert Schedule.from_json(schedule.to_json()) == schedule
    with pytest.raises(TrainingError, match="unknown"):
        Schedule.from_json({"freeze": 3})


def test_frozen_ranges_stay_whatever_the_optimizer_does():
    qfloat = prepared(schedule=Schedule(freeze_ranges_at=3))
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    steps(qfloat, 4, optimizer=optimizer)
    edges = {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()}
    steps(qfloat, 4, optimizer=optimizer)
    assert {n: float(q.qparams().scale) for n, q in qfloat.edge_quantizers.items()} == edges


def test_observers_follow_their_schedule():
    qfloat = prepared(edges="observed", weights="observed", schedule=Schedule(observe_until=2))
    x, _ = data()
    scale = {}
    for step in range(4):
        qfloat.train()(x * (1 + step))
        scale[step] = float(qfloat.edge_quantizers["2"].qparams().scale)
    assert scale[0] != scale[1]
    assert scale[1] == scale[2] == scale[3]
