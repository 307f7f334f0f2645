"""Averages of weights (torch.optim.swa_utils) are evaluated as the trained models that they are."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import intact
from tests.training.nets import PAIRS, data, prepared, same_codes, steps


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize(("edges", "weights"), PAIRS)
def test_an_average_follows_what_is_known(edges, weights, use_buffers, calibrated):
    x, _ = data()
    qfloat = prepared(edges=edges, weights=weights, calibrated=calibrated)
    average = AveragedModel(qfloat, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    for _ in range(3):
        steps(qfloat, 1)
        average.update_parameters(qfloat)
    mean = average.module.eval()
    assert mean.exact
    q = intact.convert(mean)
    assert same_codes(mean.codes(x), q.codes(x))
    assert torch.equal(average(x), q(x))


def test_an_average_of_one_model_is_that_model():
    """The same rounding of weights, and frozen ranges stay frozen."""
    x, _ = data()
    qfloat = prepared(edges="lsq", weights="lsq")
    average = AveragedModel(qfloat, multi_avg_fn=get_ema_multi_avg_fn(0.0))
    steps(qfloat, 2)
    qfloat.freeze_ranges()
    steps(qfloat, 2)
    average.update_parameters(qfloat)
    qfloat.eval()
    assert same_codes(average.module.eval().codes(x), qfloat.codes(x))
    again = prepared(calibrated=False)
    again.load_state_dict(average.module.state_dict())
    assert same_codes(again.codes(x), qfloat.codes(x))
