"""Plans: a pure function of model, target and recipe; recipes that mean what they say; whole models of odd widths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import intact
from intact import FLOAT, PerTensor, PlanError, Quant, Recipe, Rule, first, last, op, path
from intact.planning import Plan
from intact.types import Free, QType
from tests.parity.harness import certified, differing, hard_inputs
from tests.zoo import ZOO


class Block(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.conv(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.layer2 = Block(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1))


def data(batch: int = 16) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fm() -> intact.FloatModel:
    torch.manual_seed(0)
    return intact.capture(Net().eval(), data(4))


def integer_at(plan: Plan, inside: str) -> list[bool]:
    found = [plan.decisions[n.name].integer for n in plan.graph if n.path == inside or n.path.startswith(inside + ".")]
    assert found
    return found


MIXED = Recipe(rules=(Rule(path("layer1.0"), FLOAT), Rule(op("linear"), Quant(weight_bits=4))))


# -- the plan as a value -----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [None, MIXED])
def test_the_same_question_has_the_same_answer(fm: intact.FloatModel, recipe: Recipe | None) -> None:
    before = {k: v.clone() for k, v in fm.params.items()}
    a, b = (intact.plan(fm, recipe=recipe) for _ in range(2))
    assert str(a) == str(b)
    assert (a.decisions, a.edges, a.weights, a.rejections, a.coverage) == (b.decisions, b.edges, b.weights,
                                                                        b.rejections, b.coverage)
    assert all(torch.equal(v, fm.params[k]) for k, v in before.items())


@pytest.mark.parametrize("name", ["resnet18", "vit_softmax", "detector_fcos", "unet_bilinear", "mobilenet_v3_large"])
def test_every_node_is_decided_once(name: str) -> None:
    entry = ZOO[name]
    fm = intact.capture(entry.build(), entry.example(2))
    plan = intact.plan(fm)
    operations = [n for n in fm.graph if n.op not in ("input", "constant")]
    rejected = [r.name for r in plan.rejections]
    assert len(rejected) == len(set(rejected))
    for node in operations:
        decision = plan.decisions[node.name]
        assert decision.integer == (node.name not in rejected)
        assert node.name in plan.edges or not decision.integer
        assert bool(decision.reason) == (not decision.integer)
        if decision.integer:
            assert all(i in plan.edges for i in node.inputs)
            if "weight" in node.params:
                assert node.params["weight"] in plan.weights
    assert set(rejected) == {n.name for n in operations if not plan.decisions[n.name].integer}
    assert all(r.reason for r in plan.rejections)
    grouped = [n for region in plan.regions for n in region]
    assert sorted(grouped) == sorted(n for n, d in plan.decisions.items() if d.integer)
    assert set(plan.weights) == {n.params["weight"] for n in operations
                                 if plan.decisions[n.name].integer and "weight" in n.params}


def test_coverage_adds_up(fm: intact.FloatModel) -> None:
    whole = intact.plan(fm).coverage
    assert whole.macs == whole.integer_macs == 64 * 27 * 8 + 3 * 64 * 72 * 8 + 40
    assert whole.weight_bytes == whole.integer_weight_bytes == 4 * (27 * 8 + 3 * 72 * 8 + 40)
    assert whole.mac_share == whole.weight_share == 1.0
    part = intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer1"), FLOAT),))).coverage
    assert part.macs - part.integer_macs == 2 * 64 * 72 * 8
    assert part.weight_bytes - part.integer_weight_bytes == 4 * 2 * 72 * 8
    none = intact.plan(fm, recipe=Recipe(default=FLOAT))
    assert none.coverage.integer_macs == none.coverage.integer_weight_bytes == 0
    assert not none.edges and not none.regions


# -- rules -------------------------------------------------------------------------------------------


def test_a_rule_without_match_names_the_nearest_paths(fm: intact.FloatModel) -> None:
    with pytest.raises(PlanError, match="matches nothing") as caught:
        intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer3"), FLOAT),)))
    text = str(caught.value)
    assert "path('layer3')" in text and ("layer2" in text or "layer1" in text)
    with pytest.raises(PlanError, match="linear"):
        intact.plan(fm, recipe=Recipe(rules=(Rule(op("liner"), FLOAT),)))


def test_first_and_last_are_layers(fm: intact.FloatModel) -> None:
    plan = intact.plan(fm, recipe=Recipe(rules=(Rule(first() | last(), FLOAT),)))
    assert [n.path for n in fm.graph if n.op in ("conv", "linear") and not plan.decisions[n.name].integer] \
        == ["stem", "head"]
    plan = intact.plan(fm, recipe=Recipe(rules=(Rule(~last(2) & op("conv"), FLOAT),)))
    assert [n.path for n in fm.graph if n.op in ("conv", "linear") and plan.decisions[n.name].integer] \
        == ["layer2.conv", "head"]


def test_a_parent_excludes_its_children(fm: intact.FloatModel) -> None:
    plan = intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer1"), FLOAT),)))
    assert not any(integer_at(plan, "layer1"))
    assert all(plan.decisions[n.name].integer for n in fm.graph if n.op == "conv" and "layer1" not in n.path)
    assert {r.reason for r in plan.rejections if r.op == "conv"} == {"the recipe says float (path('layer1'))"}
    globbed = intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer*.0"), FLOAT),)))
    assert not any(integer_at(globbed, "layer1.0")) and any(integer_at(globbed, "layer1.1"))


def test_the_first_rule_wins(fm: intact.FloatModel) -> None:
    rules = (Rule(path("layer1.1"), Quant(weight_bits=4)), Rule(path("layer1"), FLOAT))
    plan = intact.plan(fm, recipe=Recipe(rules=rules))
    assert not any(integer_at(plan, "layer1.0"))
    assert plan.weights["layer1.1.conv.weight"].qtype.bits == 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_rules_may_not_contradict_each_other_on_a_tied_weight() -> None:
    fm = intact.capture(Tied(), torch.randn(4, 6))
    assert len(intact.plan(fm).weights) == 1
    with pytest.raises(PlanError, match="contradict") as caught:
        intact.plan(fm, recipe=Recipe(rules=(Rule(path("a"), Quant(weight_bits=4)),)))
    assert "a.weight" in str(caught.value) and "'a'" in str(caught.value) and "'b'" in str(caught.value)
    one = intact.plan(fm, recipe=Recipe(rules=(Rule(path("a"), FLOAT),)))
    assert list(one.weights) == ["a.weight"]


@pytest.mark.parametrize("quant", [Quant(weight_bits=9), Quant(activation_bits=12), Quant(weight_symmetric=False)])
def test_the_target_refuses_what_it_cannot_run(fm: intact.FloatModel, quant: Quant) -> None:
    with pytest.raises(PlanError, match="onnxruntime"):
        intact.plan(fm, recipe=Recipe(default=quant))
    with pytest.raises(PlanError, match="onnxruntime") as caught:
        intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer2.conv"), quant),)))
    assert "layer2.conv" in str(caught.value)
    intact.plan(fm, target="reference", recipe=Recipe(default=quant))


@pytest.mark.parametrize("bits", [0, 1, 17, 32, 4.0])
def test_widths_that_no_code_has(bits: int) -> None:
    with pytest.raises(PlanError, match="2 to 16"):
        Quant(weight_bits=bits)


def test_activation_bits_follow_the_reader(fm: intact.FloatModel) -> None:
    plan = intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer2.conv"), Quant(activation_bits=4)),)))
    (reader,) = (n for n in fm.graph if n.op == "conv" and n.path == "layer2.conv")
    spec = plan.edges[reader.inputs[0]]
    # the addition of the block reads the edge too, and wants 8
    assert isinstance(spec, Free) and spec.qtype == QType(8, signed=False)
    rest = path("layer2") | path("pool") | path("head")
    plan = intact.plan(fm, recipe=Recipe(rules=(Rule(rest, Quant(activation_bits=4)),)))
    spec = plan.edges[reader.inputs[0]]
    assert isinstance(spec, Free) and spec.qtype == QType(4, signed=False)


def test_activation_bits_hold_for_what_an_addition_reads(fm: intact.FloatModel) -> None:
    """Quant: "activation settings hold for what the nodes read"; the mean after layer2 wants 8 of another edge."""
    plan = intact.plan(fm, recipe=Recipe(rules=(Rule(path("layer2"), Quant(activation_bits=4)),)))
    (reader,) = (n for n in fm.graph if n.op == "conv" and n.path == "layer2.conv")
    spec = plan.edges[reader.inputs[0]]
    assert isinstance(spec, Free) and spec.qtype == QType(4, signed=False)


# -- what the recipe says is what runs: E2 and E3 -----------------------------------------------------


RECIPES = {
    "per tensor": Recipe(default=Quant(weight_granularity=PerTensor())),
    "4-bit weights": Recipe(default=Quant(weight_bits=4)),
    "2-bit weights": Recipe(default=Quant(weight_bits=2)),
    "4-bit activations": Recipe(default=Quant(activation_bits=4)),
    "2-bit activations": Recipe(default=Quant(activation_bits=2)),
    "2 and 2": Recipe(default=Quant(weight_bits=2, activation_bits=2)),
    "4 and 8": Recipe(rules=(Rule(path("layer1"), Quant(weight_bits=4, activation_bits=4)),)),
    "symmetric": Recipe(default=Quant(activation_symmetric=True)),
    "integer outputs": Recipe(quantized_outputs=True),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_width_is_exact(fm: intact.FloatModel, recipe: Recipe, tmp_path: Path) -> None:
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, recipe=recipe)), [data()])
    q = intact.convert(qfloat)
    assert differing(qfloat, q, hard_inputs(q, 5)) == []
    for name, binding in q.bindings.items():
        if binding.weight is None:
            continue
        w = binding.weight.qparams.qtype
        assert w.qmin <= int(binding.weight.codes.min()) and int(binding.weight.codes.max()) <= w.qmax, name
        if isinstance(recipe.default, Quant) and not recipe.rules:
            assert w.bits == recipe.default.weight_bits
            assert binding.inputs[0].qtype.bits == recipe.default.activation_bits
            assert isinstance(binding.weight.qparams.granularity, type(recipe.default.weight_granularity))
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert certificate.codes_differ == 0 and certificate.codes_compared > 0
    assert certified(q, tmp_path, hard_inputs(q, 5)).codes_differ == 0


@pytest.mark.parametrize("quant", [Quant(16, 16), Quant(8, 16), Quant(16, 8), Quant(12, 5), Quant(3, 13)], ids=str)
def test_the_reference_target_simulates_every_width(fm: intact.FloatModel, quant: Quant) -> None:
    plan = intact.plan(fm, target="reference", recipe=Recipe(default=quant))
    qfloat = intact.calibrate(intact.prepare(fm, plan), [data()])
    q = intact.convert(qfloat)
    assert differing(qfloat, q, hard_inputs(q, 5)) == []
    assert torch.equal(q(data(3)), qfloat(data(3)))
    if quant.weight_bits == quant.activation_bits == 16:
        exact = fm(data())
        assert float((q(data()) - exact).norm() / exact.norm()) < 1e-3


def test_a_plan_of_another_model_is_refused(fm: intact.FloatModel) -> None:
    other = intact.capture(nn.Linear(3, 2), torch.zeros(2, 3))
    with pytest.raises(PlanError, match="another model"):
        intact.prepare(other, intact.plan(fm))


def test_the_default_recipe_keeps_the_scores_of_a_detector() -> None:
    """Boxes reach to 64, scores to 1: one scale for both would leave nothing of the scores."""
    entry = ZOO["detector"]
    net, x = entry.build(), entry.example(16)
    q = intact.quantize(net, [x])
    fresh = entry.example(8, seed=7)
    with torch.no_grad():
        want = net(fresh)
    found = q(fresh)
    a, b = want[:, 4:], found[:, 4:]
    assert 10 * torch.log10(a.pow(2).mean() / (a - b).pow(2).mean()) > 25.0


LAYERS = ["stem", "layer1.0.conv", "layer1.0", "layer1.1.conv", "layer1.1.act", "layer2", "layer2.conv", "pool", "head"]


def test_any_subset_may_stay_float(fm: intact.FloatModel, tmp_path: Path) -> None:
    @settings(max_examples=10)
    @given(st.sets(st.sampled_from(LAYERS), max_size=5), st.booleans())
    def run(chosen: set[str], outputs: bool) -> None:
        runs_exactly(fm, chosen, outputs, tmp_path / "net.onnx")

    run()


def runs_exactly(fm: intact.FloatModel, chosen: set[str], outputs: bool, file: Path) -> None:
    known = {".".join(n.path.split(".")[:i]) for n in fm.graph if n.path for i in range(1, 9)}
    rules = tuple(Rule(path(p), FLOAT) for p in sorted(chosen & known))
    plan = intact.plan(fm, recipe=Recipe(rules=rules, quantized_outputs=outputs))
    for node in fm.graph:
        if any(node.path == p or node.path.startswith(p + ".") for p in chosen & known):
            assert not plan.decisions[node.name].integer
    qfloat = intact.calibrate(intact.prepare(fm, plan), [data()])
    q = intact.convert(qfloat)
    assert differing(qfloat, q, hard_inputs(q, 3)) == []
    assert torch.equal(q(data(1)), qfloat(data(1)))
    assert intact.export(q, file).ok


def test_a_plan_is_frozen(fm: intact.FloatModel) -> None:
    plan = intact.plan(fm)
    with pytest.raises(AttributeError):
        plan.notes = ()  # type: ignore[misc]
    assert replace(plan, notes=()).decisions == plan.decisions


class Spread(nn.Module):
    """Operations without weights after a layer that may stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pool(self.act(self.bn(self.stem(x)))) * 2.0
        return self.head(y.flatten(2).unflatten(2, (3, 3)))


def spread() -> intact.FloatModel:
    return intact.capture(Spread(), torch.randn(2, 3, 8, 8))


def test_a_float_operand_names_the_first_cause() -> None:
    recipe = Recipe(rules=(Rule(path("stem"), FLOAT),))
    reasons = {r.op: r.reason for r in intact.plan(spread(), recipe=recipe).rejections}
    assert reasons["conv"] == "the recipe says float (path('stem'))"
    assert reasons["max_pool"] == "its operand 'act' is float: the recipe says float (path('stem'))"
    assert reasons["reshape"].endswith(" is float, since 'act' is: the recipe says float (path('stem'))")


def test_a_folded_module_is_found_again() -> None:
    fm = spread()
    assert fm.folded == {"bn": "stem", "act": "stem"}
    with pytest.raises(PlanError, match=r"'bn', folded into 'stem'.*name 'stem'"):
        intact.plan(fm, recipe=Recipe(rules=(Rule(path("bn"), FLOAT),)))
    # a folded activation still gives the edge its name
    assert intact.plan(fm, recipe=Recipe(rules=(Rule(path("act"), FLOAT),))).rejections[0].path == "stem"


@pytest.mark.parametrize(("where", "words"), [
    (op("conv2d"), "did you mean 'conv'"), (op("Conv"), "did you mean 'conv'"),
    (op("maxpool", "xyz"), "did you mean 'max_pool'"), (path("haed"), "did you mean 'head'"),
    (op("attention"), "the model has conv, max_pool, mul_scalar, reshape"),
    (path("zzz"), "the model has head, pool, stem"),
    (~path("*") & op("conv2d"), "did you mean"),
])
def test_what_was_meant(where: Any, words: str) -> None:
    with pytest.raises(PlanError, match="matches nothing") as caught:
        intact.plan(spread(), recipe=Recipe(rules=(Rule(where, FLOAT),)))
    assert words in str(caught.value)


@pytest.mark.parametrize(("name", "meant"), [("onnx_runtime", "onnxruntime"), ("refrence", "reference"),
                                             ("tensorrt", None), ("x", None)])
def test_targets_that_are_none(name: str, meant: str | None) -> None:
    with pytest.raises(PlanError, match="unknown target") as caught:
        intact.plan(spread(), name)
    assert ("did you mean" in str(caught.value)) == (meant is not None)
    assert meant is None or f"did you mean '{meant}'" in str(caught.value)


def test_recurrent_layers_in_float_count() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, h = self.gru(x)
            return self.head(y), h

    plan = intact.plan(intact.capture(Net().eval(), torch.randn(2, 5, 8)))
    assert plan.coverage.macs == 5 * 3 * 16 * (8 + 16) + 5 * 16 * 4
    assert plan.coverage.integer_macs == 5 * 16 * 4
    assert plan.coverage.weight_bytes == 4 * (3 * 16 * (8 + 16) + 16 * 4)
    assert plan.coverage.integer_weight_bytes == 4 * 16 * 4


def test_what_is_not_captured_is_not_called_covered() -> None:
    class Branch(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    x = torch.randn(4, 8)
    q = intact.quantize(nn.Sequential(Branch(8, 8)), [x])
    assert "no multiply-accumulates" in q.plan and "not counted" in q.plan and "%" not in str(q) + q.plan
    assert "not counting" in str(intact.quantize(nn.Sequential(nn.Linear(8, 8), Branch(8, 8)), [x]))
