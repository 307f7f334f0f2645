"""Tables of static models as codes: kept once, saved, exported, trained, and left alone where the recipe says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import intact
from intact.arithmetic import dequantize
from intact.engine.validate import check
from intact.errors import ArtifactError
from intact.types import INT8, PerChannel, QParams, QTensor


class Bag(nn.Module):
    """Words and places (which are constants here), normed in float; the head may be the table of words."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(40, 16), nn.Embedding(8, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 40, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1]))))


DATA = [torch.randint(0, 40, (16, 5)) for _ in range(2)]


def quantized(tied: bool, recipe: intact.Recipe | None = None) -> tuple[nn.Module, intact.QModel]:
    torch.manual_seed(0)
    net = Bag(tied)
    with torch.no_grad():
        net.words.weight[:20] *= 100.0  # rows of another magnitude keep their own scale
    return net, intact.quantize(net, DATA, recipe=recipe)


def test_rows_have_scales_of_their_own() -> None:
    net, q = quantized(tied=False)
    table = q.tables["words"]
    weight = net.get_parameter("words.weight")
    assert table.codes.dtype == torch.int8 and table.qparams.scale.shape == (40,)
    error = (dequantize(table.codes, table.qparams) - weight).abs().amax(1)
    assert bool((error <= weight.abs().amax(1) / 127 * 0.501).all())
    assert "words.weight" not in q.float_params


def test_the_plan_says_it() -> None:
    fm = intact.capture(Bag(False), DATA[0])
    plan = intact.plan(fm)
    lines = str(plan).splitlines()
    at = next(i for i, line in enumerate(lines) if "words [embedding] rows of codes" in line)
    assert "weight words.weight: " in lines[at + 1] and "per channel" in lines[at + 1]
    assert plan.coverage.weight_share > 0.98


def test_a_tied_table_is_one_copy(tmp_path: Path) -> None:
    _, q = quantized(tied=True)
    assert q.tables["words"] is q.bindings["head"].weight
    again = intact.load(intact.save(q, tmp_path / "net.intact"))
    assert again.tables["words"] is again.bindings["head"].weight
    assert torch.equal(again(DATA[0]), q(DATA[0]))
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert certificate.codes_differ == 0
    tables = [t for t in onnx.load(tmp_path / "net.onnx").graph.initializer if list(t.dims) == [40, 16]]
    assert [t.data_type for t in tables] == [onnx.TensorProto.INT8]


def test_the_recipe_may_keep_it_in_float() -> None:
    rule = intact.Rule(intact.path("words"), intact.FLOAT)
    for tied in (False, True):
        net, q = quantized(tied, intact.Recipe(rules=(rule,)))
        assert set(q.tables) == set()
        assert torch.equal(q.float_params["words.weight"], net.get_parameter("words.weight"))


def test_low_widths_leave_tables_at_eight_bits() -> None:
    _, q = quantized(False, intact.Recipe(default=intact.Quant(weight_bits=4, activation_bits=4)))
    assert q.tables["words"].qparams.qtype.bits == 8 and q.bindings["head"].weight is not None
    assert q.bindings["head"].weight.qparams.qtype.bits == 4


BAD = {
    "codes out of range": lambda t: QTensor(torch.full_like(t.codes, -128), t.qparams),
    "scales for other rows": lambda t: QTensor(t.codes, QParams(
        torch.ones(39), torch.zeros(39, dtype=torch.int32), INT8, PerChannel(0))),
    "scales for columns": lambda t: QTensor(t.codes, QParams(
        torch.ones(16), torch.zeros(16, dtype=torch.int32), INT8, PerChannel(1))),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused(case: str) -> None:
    _, q = quantized(tied=False)
    check(q)
    try:
        bad = BAD[case](q.tables["words"])
    except intact.IntactError:
        return
    with pytest.raises(ArtifactError):
        check(replace(q, tables={**q.tables, "words": bad}))


def test_a_table_that_nothing_reads_is_refused() -> None:
    _, q = quantized(tied=False)
    with pytest.raises(ArtifactError, match="no node looks up rows"):
        check(replace(q, tables={**q.tables, "head": q.tables["words"]}))
