"""A target without floats: everything has an integer kernel, or the plan says what has not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import intact
from intact.errors import PlanError
from intact.types import Accumulator


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0.0)
    return nn.TransformerEncoder(layer, 1).eval()


def test_a_transformer_runs_on_integers_alone():
    net, x = encoder(), [torch.randn(8, 6, 16) for _ in range(2)]
    q = intact.quantize(net, x, target="fixed_point")
    assert {n.op for n in q.graph if n.name not in q.bindings} == {"input"}
    assert all(p.qtype.bits <= 16 for p in q.qparams.values())  # no accumulator is left, outputs have codes
    with torch.no_grad():
        y = net(x[0])
    assert float((q(x[0]) - y).pow(2).mean() / y.pow(2).mean()) < 2e-3


def test_training_ends_in_the_same_codes():
    net, x = encoder(), torch.randn(8, 6, 16)
    fm = intact.capture(net, (x,))
    plan = intact.plan(fm, "fixed_point")
    assert not any(isinstance(e, Accumulator) for e in plan.edges.values())
    qfloat = intact.calibrate(intact.prepare(fm, plan), [x])
    qfloat.train()
    optimizer = torch.optim.Adam(qfloat.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        qfloat(x).square().mean().backward()
        optimizer.step()
    qfloat.eval()
    codes, ours = intact.convert(qfloat).codes(x), qfloat.codes(x)
    assert codes.keys() == ours.keys() and all(torch.equal(codes[k], ours[k]) for k in codes)


class Sorts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x).sort(1).values)


def test_a_boolean_mask_without_integer_form_comes_with_the_way_out():
    class Pool(nn.Module):
        def forward(self, x, keep):
            return x.masked_fill(~keep, 0.0).mean(1) if keep.dtype == torch.bool else (x * keep).mean(1)

    x, keep = torch.randn(8, 6, 4), torch.rand(8, 6, 1) > 0.3
    for target in ("fixed_point", "litert"):
        with pytest.raises(PlanError) as error:
            intact.quantize(Pool(), [(x, keep)], target=target, progress=False)
        assert "input of numbers instead: multiply by 0 and 1" in str(error.value.fix)
        q = intact.quantize(Pool(), [(x, keep.float())], target=target, progress=False)  # which is one
        assert (q(x, keep.float()) - Pool()(x, keep)).abs().max() < 0.1


def test_an_operation_without_integer_kernel_is_named_before_data_is_read():
    def data():
        raise AssertionError("data was read")
        yield

    with pytest.raises(PlanError, match=r"has no floats.*sort") as error:
        intact.quantize(Sorts().eval(), data(), target="fixed_point", example_inputs=torch.zeros(2, 4))
    assert "max_pool" in str(error.value.allowed)
    fm = intact.capture(nn.Linear(3, 2), torch.zeros(2, 3))
    with pytest.raises(PlanError, match="has no floats"):
        intact.plan(fm, "fixed_point", intact.Recipe(default=intact.FLOAT))


def test_another_targets_model_is_not_exported_to_onnx(tmp_path):
    q = intact.quantize(nn.Linear(3, 2), [torch.randn(8, 3)], target="fixed_point")
    with pytest.raises(intact.errors.ExportError, match="another target"):
        intact.export(q, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
