"""Whole networks, from one call: simulation, integers and runtime give the same codes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

import intact
from tests.parity.harness import certified, differing
from tests.zoo import ZOO

#: networks whose certificate is not clean, and why. Float kernels of torch and of the runtime may differ in the last
#: bit; codes of the integer operations are equal all the same. Take a name out when it becomes exact.
NOT_CLEAN = {
    "vit_softmax": "softmax and layer norm stay in float",
    "vit_sdpa": "softmax and layer norm stay in float",
    "vit_multihead": "softmax and layer norm stay in float",
    "detector": "the sigmoid of its outputs stays in float",
    "detector_fcos": "the sigmoid of its outputs stays in float",
    "detector_dict": "the sigmoid of its outputs stays in float",
}
#: networks with planned kernels that the runtime does not run as planned, and why
NOT_FUSED: dict[str, str] = {}


@lru_cache(maxsize=1)
def models(name: str) -> tuple[intact.QFloatModel, intact.QModel]:
    net, x = ZOO[name].build(), ZOO[name].example(17)
    fm = intact.capture(net, x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    return qfloat, intact.convert(qfloat)


@pytest.mark.parametrize("name", ZOO)
def test_simulation_equals_integers(name: str) -> None:
    qfloat, q = models(name)
    x = ZOO[name].example(17, seed=1) * 1.5  # beyond what calibration saw
    (edge,) = q.graph.inputs
    for batch in (1, 3, 17):
        assert differing(qfloat, q, {edge.name: x[:batch]}) == []


@pytest.mark.parametrize("name", ZOO)
def test_integers_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    _, q = models(name)
    x = ZOO[name].example(17, seed=2)
    whole = q.codes(x)
    for i in (0, 16):
        alone = q.codes(x[i : i + 1])
        assert alone.keys() == whole.keys()
        # an edge whose first axis is k * batch holds k rows of every sample
        part = {k: v[i * len(a) : (i + 1) * len(a)] if len(v) != len(a) else v for k, a in alone.items()
                for v in [whole[k]]}
        assert [k for k in alone if not torch.equal(alone[k], part[k])] == []


@pytest.mark.parametrize("name", ZOO)
def test_integers_equal_the_runtime(name: str, tmp_path: Path) -> None:
    _, q = models(name)
    (edge,) = q.graph.inputs
    c = certified(q, tmp_path, {edge.name: ZOO[name].example(17, seed=3)})  # runs batches of 17, 3 and 1
    assert c.ok
    assert (c.codes_differ, c.first_difference) == (0, None)
    assert c.codes_compared > 10_000 and c.edges >= 5
    assert c.integer_mac_share >= 0.95
    assert bool(c.not_fused) == (name in NOT_FUSED), c.not_fused
    assert c.clean == (name not in NOT_CLEAN | NOT_FUSED), c


def test_one_call_is_the_steps_in_a_row() -> None:
    entry = ZOO["keyword"]
    x = entry.example(17)
    _, steps = models("keyword")
    one = intact.quantize(entry.build(), [x]).codes(x)
    other = steps.codes(x)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
