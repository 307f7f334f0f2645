"""Attention masks where there are no floats: operands of the softmax, the same codes in every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intact
from intact.engine.validate import check
from intact.errors import ArtifactError, CalibrationError, PlanError
from intact.graph.masks import MASK_CODES
from intact.reference import integer as mirror
from intact.types import Fixed
from tests.exporters.c_tools import differences, needs_gcc
from tests.parity.test_attention_forms import FORMS
from tests.reference.test_integer import encoding

N, D = 6, 8
KEEP = torch.ones(N, N, dtype=torch.bool).tril()


class Attends(nn.Module):
    """Heads of attention, one for each form; a form says how a mask gets to the scores."""

    def __init__(self, forms: Mapping[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.forms = nn.Linear(D, 3 * D), forms

    def forward(self, x: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        masks = () if keep is None else (keep,)
        return {name: form(scores, *masks).softmax(-1) @ v for name, form in self.forms.items()}


def added(low: float) -> Tensor:
    return torch.zeros(N, N).masked_fill(~KEEP, low)


CONSTANT: dict[str, Callable[..., Tensor]] = {
    "added, infinite": lambda s: s + added(-torch.inf),
    "added, -1e4": lambda s: added(-1e4) + s,
    "added, lowest number": lambda s: s + added(torch.finfo(torch.float32).min)[None],
    "filled": lambda s: s.masked_fill(~KEEP, -torch.inf),
    "filled, then scaled": lambda s: s.masked_fill(KEEP == 0, -torch.inf) / D**0.5,
    "where": lambda s: torch.where(KEEP, s, -1e9),
    "two": lambda s: (s + added(-1e9)).masked_fill(torch.arange(N) == 3, -torch.inf),
}
INPUT: dict[str, Callable[..., Tensor]] = {
    "filled": lambda s, m: s.masked_fill(~m[:, None, :], -torch.inf),
    "where, kept": lambda s, m: torch.where(m[:, None], s, torch.finfo(torch.float32).min),
    "added where": lambda s, m: s + torch.where(m, 0.0, -1e9)[:, None],
    "turned twice": lambda s, m: s.masked_fill(~(~(~m)).unsqueeze(1), -torch.inf),
    "and a constant": lambda s, m: s.masked_fill(~(m[:, None, :] & KEEP), -torch.inf),
    "or a constant": lambda s, m: s.masked_fill(~m[:, None, :] | ~KEEP, -torch.inf),
    "added masks": lambda s, m: s + (added(-1e9) + torch.where(m[:, None], 0.0, -1e9)),
    "added, moved": lambda s, m: s + (added(-1e9)[None] + torch.where(m[:, None], 0.0, -1e9)).reshape(-1, N, N),
    "product": lambda s, m: s.masked_fill(~(m[:, None, :] & m[:, :, None]), -torch.inf),
}


def padding(batch: int, seed: int = 1) -> Tensor:
    keep = torch.rand(batch, N, generator=torch.Generator().manual_seed(seed)) > 0.3
    keep[:, 0] = True
    return keep


def quantized(forms: Mapping[str, Callable[..., Tensor]], given: bool, target: str = "fixed_point"
              ) -> tuple[intact.QFloatModel, intact.QModel]:
    torch.manual_seed(1)
    data = [torch.randn(8, N, D) for _ in range(4)]
    batches = [(x, padding(8)) for x in data] if given else data
    fm = intact.capture(Attends(forms).eval(), batches[0])
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, target)), batches)
    return qfloat, intact.convert(qfloat)


def _only(forms: Mapping[str, Callable[..., Tensor]], name: str) -> Mapping[str, Callable[..., Tensor]]:
    return {"": forms[name]}


def call(given: bool, batch: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    return (torch.randn(batch, N, D), padding(batch, 5)) if given else (torch.randn(batch, N, D),)


@needs_gcc
@pytest.mark.parametrize("forms, given", [(CONSTANT, False), (INPUT, True)], ids=["constants", "inputs"])
def test_every_form_is_close_and_the_same_everywhere(
    forms: Mapping[str, Callable[..., Tensor]], given: bool, tmp_path: Path
) -> None:
    qfloat, q = quantized(forms, given)
    x = call(given)
    found = q(*x)
    with torch.no_grad():
        floats = Attends(forms)(*x)
    for name, wanted in floats.items():
        live = wanted.isfinite()
        error = (found[name] - wanted)[live]
        assert float(error.square().mean()) < 0.003 * float(wanted[live].square().mean()), name
    codes = qfloat.codes(*x)
    assert all(torch.equal(c, q.codes(*x)[edge]) for edge, c in codes.items())
    _mirrored(q, codes, len(forms))
    intact.save(q, tmp_path / "net.intact")
    again = intact.load(tmp_path / "net.intact").codes(*x)
    assert all(torch.equal(c, again[edge]) for edge, c in codes.items())
    assert differences(q, tmp_path, x if given else x[0]) == []


def _mirrored(q: intact.QModel, codes: dict[str, Tensor], count: int) -> None:
    nodes = [n for n in q.graph if n.op == "softmax"]
    assert len(nodes) == count
    for node in nodes:
        b, (x, *masks) = q.bindings[node.name], (codes[i].numpy() for i in node.inputs)
        hidden = np.zeros(x.shape, bool)
        for mask, code in zip(masks, node.attrs["hidden"], strict=True):
            hidden = hidden | (mask == code)
        assert hidden.any()
        found = mirror.softmax(x, node.attrs["axis"], encoding(b.inputs[0]), 8, encoding(b.output), hidden)
        assert np.array_equal(found, codes[node.name].numpy())
        assert (found[hidden] == int(b.output.zero_point)).all()


def test_masks_are_no_ranges_and_the_plan_says_what_they_are() -> None:
    fm = intact.capture(Attends(_only(CONSTANT, "added, infinite")).eval(), torch.randn(2, N, D))
    plan = intact.plan(fm, "fixed_point")
    (mask,) = [n.name for n in plan.graph if n.op == "constant"]
    spec = plan.edges[mask]
    assert isinstance(spec, Fixed) and spec.qparams.same_as(MASK_CODES)
    assert not any(n.op == "add" for n in plan.graph) and "1 mask(s) as codes" in str(plan)
    other = intact.plan(fm, "onnxruntime")  # is as it was
    assert any(n.op == "add" for n in other.graph)


def test_what_is_hidden_has_no_influence_at_all() -> None:
    """Not one code of what is kept depends on what is hidden, however large it is."""
    _, q = quantized(_only(INPUT, "filled"), True)
    x, keep = call(True)
    other = torch.where(keep[..., None], x, 100.0 * x)
    kept = keep[..., None].expand(x.shape)
    assert torch.equal(q(x, keep)[""][kept], q(other, keep)[""][kept])


@needs_gcc
def test_a_row_of_which_all_is_hidden_is_zero(tmp_path: Path) -> None:
    qfloat, q = quantized(_only(INPUT, "filled"), True)
    x, keep = torch.randn(3, N, D), torch.zeros(3, N, dtype=torch.bool)
    assert float(q(x, keep)[""].abs().max()) == 0.0
    assert torch.equal(qfloat(x, keep)[""], q(x, keep)[""])
    assert differences(q, tmp_path, (x, keep)) == []


@needs_gcc
@pytest.mark.parametrize("target", ["horizon_j6", "power_of_two"])
def test_other_targets(target: str, tmp_path: Path) -> None:
    qfloat, q = quantized(_only(INPUT, "and a constant"), True, target)
    x = call(True)
    assert all(torch.equal(c, q.codes(*x)[edge]) for edge, c in qfloat.codes(*x).items())
    assert differences(q, tmp_path, x) == []


@needs_gcc
@pytest.mark.parametrize("name", ["encoder, boolean", "encoder, padding", "decoder, all masks", "grouped, causal"])
def test_forms_of_torch(name: str, tmp_path: Path) -> None:
    """nn.TransformerEncoder, nn.TransformerDecoder, and attention with fewer heads for keys."""
    torch.manual_seed(0)
    data: Any = {"x": torch.randn(4, 6, 16)}
    if "padding" in name or "all" in name:
        data["padding"] = ~padding(4)
    net = FORMS[name]().eval()
    q = intact.quantize(net, [data], target="fixed_point")
    assert differences(q, tmp_path, data) == []


def test_training_sees_the_masks_too() -> None:
    qfloat, _ = quantized(_only(INPUT, "filled"), True)
    x, keep = call(True)
    x.requires_grad_()
    qfloat.train()
    qfloat(x, keep)[""].square().sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
    qfloat.eval()
    q = intact.convert(qfloat)
    assert all(torch.equal(c, q.codes(x, keep)[edge]) for edge, c in qfloat.codes(x, keep).items())


@pytest.mark.parametrize("form", [
    lambda s: s + torch.where(KEEP, 0.5, -1e9),  # a mask and a bias in one constant
    lambda s: (s + added(-1e9)).relu(),  # the mask is not for the softmax
])
def test_other_masks_are_refused_by_name(form: Callable[..., Tensor]) -> None:
    fm = intact.capture(Attends({"": form}).eval(), torch.randn(2, N, D))
    with pytest.raises(PlanError, match="adds the mask"):
        intact.plan(fm, "fixed_point")


@pytest.mark.parametrize("low", [-1e9, -torch.inf])
def test_a_mask_of_numbers_is_refused_and_a_bias_is_not(low: float) -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return (x @ x.mT + bias[:, None]).softmax(-1) @ x

    x, bias = torch.randn(4, N, D), torch.randn(4, N)
    assert intact.quantize(Added(), [(x, bias)], target="fixed_point")(x, bias).shape == x.shape
    with pytest.raises(CalibrationError, match="boolean mask"):
        intact.quantize(Added(), [(x, bias.masked_fill(bias > 0, low))], target="fixed_point")


def test_a_model_with_masks_is_not_for_targets_with_floats() -> None:
    qfloat, q = quantized(_only(INPUT, "filled"), True)
    with pytest.raises(PlanError, match="capture the model anew"):
        intact.plan(qfloat.float_model, "onnxruntime")
    assert intact.plan(qfloat.float_model, "fixed_point").graph == q.graph  # once is enough
    (name,) = [n.name for n in q.graph if n.op == "softmax"]
    b = q.bindings[name]
    other = replace(b, inputs=(b.inputs[0], b.inputs[0]))
    bad = replace(q, bindings={**q.bindings, name: other}, qparams={**q.qparams, "reshape": b.inputs[0]})
    with pytest.raises(ArtifactError):
        check(bad)


def test_the_mask_of_sdpa_is_one() -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    fm = intact.capture(Causal(), torch.randn(2, 2, N, D))
    assert [n.op for n in intact.plan(fm, "fixed_point").graph].count("softmax") == 1
