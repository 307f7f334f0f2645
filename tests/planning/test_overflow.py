"""Accumulators are proven before data is read: no false alarm, no overflow, and a way out that works."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import intact
from intact.errors import ArtifactError, PlanError
from intact.planning import Quant, Recipe, Rule, path
from intact.planning.overflow import _bound, _layers
from intact.simulation import QFloatModel
from intact.targets import Target, get_target


def target(bits: int, name: str = "horizon_j6", **changes: object) -> Target:
    base = get_target(name)
    arithmetic = replace(base.arithmetic, name=f"acc{bits}", accumulator_bits=bits)
    return replace(base, name=f"acc{bits}", arithmetic=arithmetic, **changes)  # type: ignore[arg-type]


def linear(rows: list[list[float]]) -> intact.FloatModel:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return intact.capture(layer, torch.zeros(2, len(rows[0])))


def worst_partial_sum(codes: Tensor, qmin: int, qmax: int, zeros: tuple[int, ...]) -> int:
    """By brute force: over zero points, corners of the input, and subsets of the products."""
    worst = 0
    for row, zero in itertools.product(codes.tolist(), zeros):
        for x in itertools.product((qmin, qmax), repeat=len(row)):
            products = [w * (v - zero) for w, v in zip(row, x, strict=True)]
            for taken in itertools.product((0, 1), repeat=len(row)):
                worst = max(worst, abs(sum(p for p, t in zip(products, taken, strict=True) if t)))
    return worst


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(-127, 127), min_size=3, max_size=3), min_size=1, max_size=2),
       st.integers(14, 18), st.booleans())
def test_the_verdict_is_exact(codes: list[list[int]], bits: int, symmetric: bool) -> None:
    """Refused if, and only if, some input within the encoding makes some partial sum leave the accumulator."""
    for row in codes:
        row[0] = 127  # so that the scale is 1 and the codes are the weights
    where = target(bits, symmetric_activations=symmetric)
    fm = linear([[float(w) for w in row] for row in codes])
    reached = worst_partial_sum(torch.tensor(codes), -128, 127, (0,) if symmetric else (-128, 127))
    if reached >= 2 ** (bits - 1):
        with pytest.raises(PlanError, match=f"accumulator of {bits} bits can overflow"):
            intact.plan(fm, where)
    else:
        plan = intact.plan(fm, where)
        (layer,) = _layers(fm, plan.decisions, plan.edges, where)
        assert _bound(layer, fm, plan.weights, 0.0) == reached


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(torch.relu(self.stem(x)))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def net() -> intact.FloatModel:
    torch.manual_seed(0)
    return intact.capture(Net(), torch.randn(4, 2, 8, 8))


def test_the_layers_are_named_and_the_fix_works() -> None:
    fm = net()
    where = target(16, weight_bits=tuple(range(2, 9)), activation_bits=tuple(range(2, 9)))
    with pytest.raises(PlanError, match=r"of 16 bits.*where: stem, wide, head.*below 32,768.*bits") as caught:
        intact.plan(fm, where)
    assert "Rule(path('stem'), Quant(weight_bits=" in str(caught.value)
    narrow = Recipe((Rule(path("stem"), Quant(4, 8)), Rule(path("wide"), Quant(3, 8))), default=Quant(4, 8))
    assert intact.plan(fm, where, narrow).coverage.mac_share == 1.0
    intact.plan(fm, target(24))
    with pytest.raises(PlanError, match=r"where: avg_pool.*524,288"):  # 16 values of 16 bits
        intact.plan(intact.capture(nn.AvgPool2d(4), torch.zeros(2, 1, 8, 8)), target(16, activation_bits=(16,)),
                    Recipe(default=Quant(8, 16)))


def test_products_of_activations_and_averages_count() -> None:
    class Product(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    fm = intact.capture(Product(), (torch.zeros(2, 3, 5), torch.zeros(2, 5, 4)))
    assert 5 * 128 * 128 == 81920
    intact.plan(fm, target(18))
    with pytest.raises(PlanError, match="81,920"):
        intact.plan(fm, target(17))
    mean = intact.capture(nn.AdaptiveAvgPool2d(1), torch.zeros(2, 3, 16, 16))
    intact.plan(mean, target(17))
    with pytest.raises(PlanError, match="32,768"):
        intact.plan(mean, target(16))


def test_int16_activations_pass_or_are_named() -> None:
    wide = Recipe(default=Quant(8, 16))
    torch.manual_seed(0)
    fine = intact.capture(nn.Linear(1000, 4), torch.zeros(2, 1000))  # by its range alone it might overflow
    intact.plan(fine, "fixed_point", wide)
    with pytest.raises(PlanError, match=r"32 bits can overflow.*where: linear.*4,161,536,000"):
        intact.plan(linear([[1.0] * 1000]), "fixed_point", wide)


@pytest.mark.parametrize("bits", [16, 24])
def test_what_is_planned_never_overflows(bits: int) -> None:
    """Inputs that reach the bound, bias included, run in the narrow accumulator; the bias gives way."""
    torch.manual_seed(1)
    layer = nn.Linear(40, 6)
    with torch.no_grad():
        layer.bias.mul_(200 if bits == 16 else 1)
    x = torch.randn(64, 40)
    weight_bits = 4 if bits == 16 else 8
    recipe = Recipe(default=Quant(weight_bits, 8))
    qfloat = _calibrated(layer, x, target(bits), recipe)
    q = intact.convert(qfloat)
    (binding,) = q.bindings.values()
    assert binding.weight is not None and binding.bias is not None
    codes = binding.weight.codes.to(torch.int64)
    p = binding.inputs[0]
    reached = 0
    for row, bias in zip(codes, binding.bias.tolist(), strict=True):
        for sign in (1, -1):
            x_worst = torch.where(row * sign > 0, p.qtype.qmax, p.qtype.qmin)
            sums = (row * x_worst).cumsum(0)
            reached = max(reached, int(sums.abs().max()), int((sums + bias).abs().max()))
    assert reached < 2 ** (bits - 1)
    if bits == 16:
        assert reached > 2**14  # not by leaving the accumulator empty
        assert any("bias" in text for _, text in qfloat.bound.notes)


def _calibrated(layer: nn.Module, x: Tensor, where: Target, recipe: Recipe) -> QFloatModel:
    fm = intact.capture(layer, x)
    return intact.calibrate(intact.prepare(fm, intact.plan(fm, where, recipe)), [x])


def test_a_file_that_could_overflow_is_not_written(tmp_path: object) -> None:
    x = torch.randn(16, 40)
    q = intact.quantize(nn.Linear(40, 6), [x], target=target(32))
    narrow = target(16).arithmetic
    bad = replace(q, target=target(16), bindings={k: replace(b, arithmetic=narrow) for k, b in q.bindings.items()})
    with pytest.raises(ArtifactError, match="16 bits can overflow"):
        intact.save(bad, f"{tmp_path}/net.intact")


def test_training_that_outgrows_the_accumulator_is_caught() -> None:
    fm = linear([[1.0, 0.01, 0.01, 0.01]])
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, target(16))), [torch.randn(8, 4)])
    with torch.no_grad():
        next(p for p in qfloat.parameters() if p.ndim == 2).fill_(1.0)
    with pytest.raises(PlanError, match="16 bits can overflow"):
        qfloat(torch.randn(2, 4))


# -- pairs in 16 bits ---------------------------------------------------------------------------


def test_seven_bits_cannot_saturate() -> None:
    """Every pair of 7-bit weights with every pair of extreme codes, and the first wider pair that can."""
    for w1, w2 in itertools.product((-64, -63, 0, 63), repeat=2):
        for x1, x2 in itertools.product((0, 255), repeat=2):
            assert -(2**15) <= w1 * x1 + w2 * x2 < 2**15
    assert 64 * 255 + 64 * 255 < 2**15 <= 64 * 255 + 65 * 255


def test_only_layers_at_risk_get_seven_bits() -> None:
    fm = linear([[1.0, 0.005, -1.0, 0.0]])  # two large weights of opposite signs: their products never add up
    plan = intact.plan(fm, "x86_avx2")
    assert plan.weights["weight"].qtype.bits == 8 and not any("instead of" in text for _, text in plan.notes)
    risky = intact.plan(linear([[1.0, 0.02, -1.0, 0.0]]), "x86_avx2")
    assert risky.weights["weight"].qtype.bits == 7
    assert "weights of 7 bits instead of 8: in 1 of 1 channels two products" in str(risky)
    narrow = Recipe(default=Quant(8, 7))  # codes of 7 bits leave room
    assert intact.plan(linear([[1.0, 1.0]]), "x86_avx2", narrow).weights["weight"].qtype.bits == 8
    assert intact.plan(linear([[1.0, 1.0]]), "onnxruntime").weights["weight"].qtype.bits == 8


@settings(max_examples=40)
@given(st.lists(st.integers(-127, 127), min_size=2, max_size=5))
def test_pairs_by_brute_force(row: list[int]) -> None:
    row[0] = 127
    plan = intact.plan(linear([[float(w) for w in row]]), "x86_avx2")
    sums = [w1 * x1 + w2 * x2 for w1, w2 in itertools.combinations(row, 2)
            for x1, x2 in itertools.product((0, 255), repeat=2)]
    saturates = max(sums) > 32767 or min(sums) < -32768
    assert plan.weights["weight"].qtype.bits == (7 if saturates else 8)


def test_weights_that_training_makes_risky_are_refused() -> None:
    fm = linear([[1.0, 0.005, -1.0, 0.0]])
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, "x86_avx2")), [torch.randn(8, 4)])
    with torch.no_grad():
        next(p for p in qfloat.parameters() if p.ndim == 2).fill_(1.0)
    with pytest.raises(PlanError, match=r"saturate.*weight_bits=7"):
        qfloat(torch.randn(2, 4))
