"""Encoders with masks: what runs in integers, what is observed, and the three equalities."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import intact
from intact.graph.attention import attention_softmaxes
from intact.types import Free
from tests.parity.harness import certified, differing
from tests.zoo.bert import Encoder, MaskKind, tokens, with_outliers

KINDS = list(MaskKind)
HUGE = 1e4


@functools.cache
def encoder(kind: MaskKind) -> Encoder:
    torch.manual_seed(0)
    return with_outliers(Encoder(kind)).eval()


@functools.cache
def quantized(kind: MaskKind) -> tuple[intact.QFloatModel, intact.QModel]:
    torch.set_num_threads(1)
    data = [tokens(16, seed) for seed in (1, 2)]
    fm = intact.smooth(intact.capture(encoder(kind), data[0]), data)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), data)
    return qfloat, intact.convert(qfloat)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_runs_in_integers(kind: MaskKind) -> None:
    plan = quantized(kind)[0].plan
    assert plan.coverage.mac_share == 1.0
    assert len(attention_softmaxes(plan.graph)) == 2
    for softmax in attention_softmaxes(plan.graph):
        assert not plan.decisions[softmax].integer
        assert plan.edges.get(plan.graph[softmax].inputs[0]) is None  # scores and masks have no codes


@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_is_observed(kind: MaskKind) -> None:
    qfloat, q = quantized(kind)
    assert all(o.count for o in qfloat.observers.values())
    observed = {name for name, spec in qfloat.plan.edges.items() if isinstance(spec, Free)}
    reach = {name: max(abs(q.qparams[name].qtype.qmin - int(q.qparams[name].zero_point)),
                       q.qparams[name].qtype.qmax - int(q.qparams[name].zero_point)) * float(q.qparams[name].scale)
             for name in observed}
    assert max(reach.values()) < HUGE


@pytest.mark.parametrize("kind", KINDS)
def test_the_integer_model_is_close(kind: MaskKind) -> None:
    x = tokens(32, 5)
    keep = x["attention_mask"].bool()
    with torch.no_grad():
        wanted, got = encoder(kind)(**x), quantized(kind)[1](**x)
    assert got.keys() == wanted.keys()
    assert cosine(wanted["last_hidden_state"][keep], got["last_hidden_state"][keep]) > 0.9985


@pytest.mark.parametrize("kind", KINDS)
def test_simulation_equals_integers(kind: MaskKind) -> None:
    qfloat, q = quantized(kind)
    for batch in (1, 3, 17):
        assert differing(qfloat, q, tokens(batch, 7)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_integers_equal_the_runtime(kind: MaskKind, tmp_path: Path) -> None:
    c = certified(quantized(kind)[1], tmp_path, tokens(17, 3))
    assert (c.codes_differ, c.first_difference) == (0, None)
    assert c.ok and c.codes_compared > 5_000
    assert c.integer_mac_share >= 0.95
    assert c.not_fused == ()


def test_scales_are_those_without_a_mask() -> None:
    data = {**tokens(16, 4), "attention_mask": torch.ones(16, 12, dtype=torch.int64)}

    def scales(kind: MaskKind) -> list[float]:
        torch.manual_seed(0)
        net = Encoder(kind).eval()
        fm = intact.capture(net, data)
        q = intact.convert(intact.calibrate(intact.prepare(fm, intact.plan(fm)), [data]))
        return [float(p.scale) for p in q.qparams.values() if p.qtype.bits == 8]

    for kind in (MaskKind.ADDED_MIN, MaskKind.FILLED):
        assert scales(kind) == pytest.approx(scales(MaskKind.NONE), rel=1e-5)


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min, -1e4])
def test_a_mask_that_is_given_is_never_a_code(low: float) -> None:
    """It comes in as numbers, so that nothing but its use says what it is; here read by two layers, and moved."""

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            mask = mask[:, None, :].expand(-1, 6, -1)
            for layer in (self.first, self.second):
                x = (layer(x) @ x.transpose(-2, -1) + mask).reshape(-1, 36).reshape(-1, 6, 6).softmax(-1) @ x
            return x

    mask = torch.zeros(16, 6)
    mask[:, 4:] = low
    net, x = Given().eval(), torch.randn(16, 6, 8)
    q = intact.quantize(net, [{"x": x, "mask": mask}])
    coded = {n.name for n in q.graph if n.name in q.qparams and q.qparams[n.name].qtype.bits == 8}
    assert not coded & {"mask", "expand"}
    assert max(float(q.qparams[n].scale) for n in coded) < 1.0
    with torch.no_grad():
        assert cosine(net(x, mask), q(x=x, mask=mask)) > 0.999


def test_a_mask_that_is_not_a_number_is_named() -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((6, 6), torch.nan))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = (self.dense(x) @ x.transpose(-2, -1) + self.mask).softmax(-1) @ x
            return y

    with pytest.raises(intact.NonFiniteError, match="mask"):
        intact.quantize(Broken(), [torch.randn(4, 6, 4)])
