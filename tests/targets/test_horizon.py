"""The symmetric integer line: its golden vector, from torch and from NumPy, in both roundings; and whole models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import intact
from intact.arithmetic import multiplier, quantize, requantize
from intact.errors import PlanError
from intact.targets import get_target
from intact.types import INT8, INT16, QParams

GOLDEN = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
CODES = {"horizon_j6": [-2, -2, 0, 0, 2, 2], "horizon_j6_half_up": [-2, -1, 0, 1, 2, 3]}
#: the releases' own words
NUMPY = {"horizon_j6": np.rint, "horizon_j6_half_up": lambda x: np.floor(x + 0.5)}


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("qtype", [INT8, INT16], ids=str)
def test_golden_vector(name: str, qtype: intact.QType) -> None:
    arithmetic = get_target(name).arithmetic
    one = QParams.per_tensor(1.0, 0, qtype)
    assert quantize(torch.tensor(GOLDEN), one, arithmetic).tolist() == CODES[name]
    assert NUMPY[name](np.array(GOLDEN)).tolist() == CODES[name]
    halves = torch.tensor([int(2 * x) for x in GOLDEN], dtype=torch.int32)  # accumulators, times a half
    by = multiplier(torch.tensor(0.5), torch.ones(()), torch.ones(()), arithmetic)
    assert requantize(halves, by, 0, qtype.qmin, qtype.qmax, arithmetic).tolist() == CODES[name]


@pytest.mark.parametrize("name", CODES)
def test_ties_and_the_ends_of_the_range_are_numpys(name: str) -> None:
    x = np.arange(-600, 601, dtype=np.float32) / 4
    q = QParams.per_tensor(0.5, 0, INT8)
    want = np.clip(NUMPY[name](x / np.float32(0.5)), -128, 127)
    assert quantize(torch.from_numpy(x), q, get_target(name).arithmetic).tolist() == want.tolist()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (8, 16)])
def test_a_network_is_symmetric_and_exact(name: str, weights: int, activations: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(),
                        nn.Linear(36, 5))
    x = torch.randn(8, 3, 12, 12)
    fm = intact.capture(net, x)
    recipe = intact.Recipe(default=intact.Quant(weights, activations))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, name, recipe)), [x])
    q = intact.convert(qfloat)
    assert all(int(p.zero_point) == 0 and p.qtype == intact.QType(activations, True) for p in q.qparams.values())
    assert all(b.weight is None or b.weight.qparams.scale.ndim == 1 for b in q.bindings.values())
    codes = qfloat.codes(x)
    assert len(codes) > 4 and all(torch.equal(c.int(), q.codes(x)[k].int()) for k, c in codes.items())


def test_widths_that_the_line_lacks_are_named() -> None:
    fm = intact.capture(nn.Linear(4, 2), torch.zeros(2, 4))
    with pytest.raises(PlanError, match=r"6-bit weights.*4, 8"):
        intact.plan(fm, "horizon_j6", intact.Recipe(default=intact.Quant(6, 8)))
    with pytest.raises(PlanError, match=r"4-bit activations.*8, 16"):
        intact.plan(fm, "horizon_j6", intact.Recipe(default=intact.Quant(8, 4)))
