"""The table of ranges against formulas on all data at once, however it is cut into batches."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import intact
from intact.errors import CalibrationError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("parts", [1, 3, 12])
def test_every_row_is_what_the_formula_gives(parts: int) -> None:
    net, x = Net(), torch.randn(12, 3, 6, 6) + 5
    fm = intact.capture(net, x)
    table = intact.statistics(fm, x.tensor_split(parts))
    wanted = {"x": x, "conv": net.relu(net.conv(x)), "head": net(x)}
    for name, value in wanted.items():
        row = table[name]
        assert (row.kind, row.count, row.not_finite) == ("activation", value.numel(), 0)
        for found, right in ((row.low, value.min()), (row.high, value.max()), (row.mean, value.mean()),
                             (row.std, value.std(correction=0))):
            assert found == pytest.approx(float(right.detach()), rel=1e-5, abs=1e-6), name
    assert table.samples == 12
    assert [r.name for r in table.weights] == ["conv.weight", "head.weight"]
    assert table["conv.weight"].low == float(net.conv.weight.detach().min())
    assert {r.name for r in table.activations} == {n.name for n in fm.graph}


def test_the_layers_of_the_user_stay_apart_without_passes() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval(), torch.randn(8, 3)
    apart = intact.statistics(intact.capture(net, x, passes=()), [x])
    assert len(apart.activations) == 4
    assert len(intact.statistics(net, [x]).activations) == 2


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    x = torch.tensor([[1.0, float("inf")], [float("nan"), 3.0]])
    table = intact.statistics(nn.Identity(), [x])
    row = table["input"]
    assert (row.low, row.high, row.mean, row.count, row.not_finite) == (1.0, 3.0, 2.0, 4, 2)
    assert "not finite" in str(table)
    assert intact.statistics(nn.Identity(), [x[:1, 1:]])["input"].high == 0.0


def test_a_model_in_training_has_the_statistics_of_its_present_weights() -> None:
    net, x = nn.Linear(3, 2), torch.randn(8, 3)
    fm = intact.capture(net, x)
    qfloat = intact.prepare(fm, intact.plan(fm))
    with torch.no_grad():
        qfloat.weight.mul_(2)
    assert intact.statistics(qfloat, [x])["weight"].high == 2 * float(net.weight.detach().max())


def test_text_and_json_say_the_same() -> None:
    table = intact.statistics(Net(), [torch.randn(4, 3, 6, 6)])
    assert all(row.name in str(table) for row in table)
    data = json.loads(table.to_json())
    assert [r["high"] for r in data["weights"] + data["activations"]] == [r.high for r in table]
    with pytest.raises(KeyError):
        table["no such layer"]


def test_no_data_and_wrong_data_are_errors() -> None:
    fm = intact.capture(nn.Linear(3, 2), torch.zeros(2, 3))
    with pytest.raises(CalibrationError, match="0 batches"):
        intact.statistics(fm, [])
    with pytest.raises(CalibrationError, match="batch 0"):
        intact.statistics(fm, [torch.zeros(2, 4)])
