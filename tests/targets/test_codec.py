"""Targets as data: there and back again, files of users, and everything that can be wrong in them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import intact
from intact import Quant, Recipe
from intact.arithmetic import (
    Arithmetic,
    BinaryRule,
    FunctionRule,
    MatMulRule,
    MeanRule,
    PoolRule,
    Requantize,
    ResizeRule,
    Rounding,
    SoftmaxRule,
)
from intact.errors import ArtifactError, PlanError
from intact.targets import BUILT_IN, TARGETS, Target, describe, get_target, load_target, parse_target, target_to_toml
from intact.targets.catalog.fixed_point import INTEGER_RULES
from intact.targets.codec import rules_of
from intact.types import PerTensor

#: LiteRT's have rules in Python
DESCRIBED = sorted(n for n in BUILT_IN if TARGETS[n].arithmetic.integer_only and TARGETS[n].exported is None
                   and not n.startswith("litert"))


def mine(name: str = "fixed_point") -> Target:
    return replace(get_target(name), name="mine", arithmetic=replace(get_target(name).arithmetic, name="mine"))


def same(a: Target, b: Target) -> bool:
    """Equal, down to the numbers of prescribed outputs (parameters are compared by ``same_as``)."""
    bare = [replace(t, rules={op: replace(r, fixed={}) for op, r in t.rules.items()}) for t in (a, b)]
    fixed = [{(op, bits): p for op, r in t.rules.items() for bits, p in r.fixed.items()} for t in (a, b)]
    return bare[0] == bare[1] and fixed[0].keys() == fixed[1].keys() and all(
        p.same_as(fixed[1][k]) for k, p in fixed[0].items())


def written(text: str, folder: Path) -> Path:
    path = folder / "npu.toml"
    path.write_text(text)
    return path


# -- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_target_of_the_catalogue_comes_back(name: str, tmp_path: Path) -> None:
    target = mine(name)
    again = load_target(written(target_to_toml(target), tmp_path))
    assert same(again, target)
    assert target_to_toml(again) == target_to_toml(target)


#: sums and products without floats
WHOLE = (BinaryRule.INTEGER, BinaryRule.TFLITE)
widths = st.sets(st.integers(2, 16), min_size=1).map(lambda s: tuple(sorted(s)))


@given(st.data())
def test_any_target_comes_back(data: st.DataObject) -> None:
    requantize = data.draw(st.sampled_from(Requantize))
    whole = requantize is not Requantize.FLOAT
    arithmetic = Arithmetic(
        "t", rounding=data.draw(st.sampled_from(Rounding)), requantize=requantize,
        add=data.draw(st.sampled_from(WHOLE if whole else BinaryRule)),
        mul=data.draw(st.sampled_from(WHOLE if whole else BinaryRule)),
        average_pool=data.draw(st.sampled_from([PoolRule.SUM, PoolRule.CODES] if whole else PoolRule)),
        mean=data.draw(st.sampled_from([MeanRule.SUM, MeanRule.TFLITE] if whole else MeanRule)),
        resize=data.draw(st.sampled_from(ResizeRule)),
        softmax=data.draw(st.sampled_from([SoftmaxRule.TABLES, SoftmaxRule.TFLITE] if whole else SoftmaxRule)),
        matmul=data.draw(st.sampled_from([MatMulRule.ACCUMULATOR, MatMulRule.TFLITE] if whole else MatMulRule)),
        functions=data.draw(st.sampled_from(FunctionRule)),
        zero_inside=requantize not in (Requantize.FIXED_POINT_TWICE, Requantize.FIXED_POINT_16)
        and data.draw(st.booleans()),
        zero_inside_pool=data.draw(st.booleans()), reciprocal=data.draw(st.booleans()),
        accumulator_bits=data.draw(st.integers(8, 32)), wide_accumulator_bits=data.draw(st.integers(8, 32)),
        pair_bits=data.draw(st.sampled_from([16, 32])))
    known = rules_of(arithmetic)
    ops = data.draw(st.lists(st.sampled_from(sorted(INTEGER_RULES)), min_size=1, unique=True))
    signed, symmetric, symmetric_from = (data.draw(s) for s in (st.booleans(), st.booleans(), st.integers(2, 32)))
    rules = {op: known[op] for op in ops}
    target = Target("t", data.draw(st.integers(1, 99)), arithmetic, rules, data.draw(widths),
                    data.draw(widths), signed, symmetric, symmetric_from, *(data.draw(st.booleans()) for _ in "123"),
                    signed_from=data.draw(st.integers(2, 32)))
    assert same(parse_target(describe(target)), target)


def test_prescribed_outputs_come_back(tmp_path: Path) -> None:
    text = target_to_toml(mine()) + "\n[operations.outputs.tanh]\n8 = { scale = 0.0078125, zero_point = -3 }\n"
    target = load_target(written(text, tmp_path))
    fixed = target.rules["tanh"].fixed[8]
    assert (float(fixed.scale), int(fixed.zero_point), str(fixed.qtype)) == (2.0**-7, -3, "int8")
    again = load_target(written(target_to_toml(target), tmp_path))
    assert same(again, target) and again.rules["tanh"].fixed[8].same_as(fixed)


def test_rules_in_python_are_not_described() -> None:
    with pytest.raises(PlanError, match="cannot be described"):
        describe(get_target("onnxruntime"))


# -- in use -------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))  # type: ignore[no-any-return]


def test_a_file_is_taken_wherever_a_target_is(tmp_path: Path) -> None:
    path = written(target_to_toml(mine("horizon_j6")), tmp_path)
    x = torch.randn(16, 6)
    for target in (path, str(path), load_target(path)):
        q = intact.quantize(Net(), [x], target=target)
        assert q.target.name == "mine" and all(int(p.zero_point) == 0 for p in q.qparams.values())
    assert intact.plan(intact.capture(Net(), x), target=str(path)).target.symmetric_activations
    assert intact.quantize_qat(Net(), example_inputs=x, target=str(path)).plan.target.name == "mine"


def test_a_saved_model_carries_its_target(tmp_path: Path) -> None:
    text = target_to_toml(mine("horizon_j6")) + "\n[operations.outputs.tanh]\n8 = { scale = 0.0078125, zero_point = 0 }"
    q = intact.quantize(Net(), [torch.randn(16, 6)], target=str(written(text, tmp_path)))
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    path = intact.save(q, tmp_path / "net.intact")
    (tmp_path / "npu.toml").unlink()
    code = ("import intact, torch, sys; q = intact.load(sys.argv[1]); "
            "print(q(torch.linspace(-1, 1, 12).reshape(2, 6)).tolist(), q.target.name); intact.save(q, sys.argv[2])")
    out = subprocess.run([sys.executable, "-c", code, path, tmp_path / "again.intact"], capture_output=True, text=True,
                         check=True).stdout
    assert out.strip() == f"{q(x).tolist()} mine"
    assert (tmp_path / "again.intact").read_bytes() == path.read_bytes()


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    from tests.engine.artifact_tools import join, split

    q = intact.quantize(Net(), [torch.randn(16, 6)], target=mine())
    path = intact.save(q, tmp_path / "net.intact")
    parts = split(path.read_bytes())
    described = parts.document["target"]["description"]
    for change in ({"description": {**described, "extra": 1}}, {"description": 3}, {"name": "other"}, {"version": 7},
                   {"description": {**described, "name": "onnxruntime"}, "name": "onnxruntime"},
                   {"description": {**described, "arithmetic": {**described["arithmetic"], "rounding": ["half_up"]}}}):
        document = {**parts.document, "target": {**parts.document["target"], **change}}
        path.write_bytes(join(replace(parts, document=document)))
        with pytest.raises(ArtifactError, match="target"):
            intact.load(path)


def test_weights_have_one_scale_where_the_target_has_no_more() -> None:
    q = intact.quantize(Net(), [torch.randn(16, 6)], target=replace(mine(), per_channel=False))
    assert {b.weight.qparams.scale.ndim for b in q.bindings.values() if b.weight is not None} == {0}
    assert "one scale for each weight instead of one per channel" in q.plan
    wanted = Recipe(default=Quant(weight_granularity=PerTensor()))
    fm = intact.capture(Net(), torch.randn(2, 6))
    assert "instead of one per channel" not in str(intact.plan(fm, replace(mine(), per_channel=False), wanted))
    assert "instead of one per channel" not in str(intact.plan(fm, mine()))


# -- what is wrong ------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]

WRONG: dict[str, tuple[Change, str, str]] = {
    "missing": (lambda d: d["arithmetic"].pop("rounding"), "missing", r"arithmetic\.rounding"),
    "no arithmetic": (lambda d: d.pop("arithmetic"), "missing", "arithmetic"),
    "no widths": (lambda d: d["weights"].pop("bits"), "missing", r"weights\.bits"),
    "unknown": (lambda d: d["activations"].update(symetric=True), "unknown field", "did you mean 'symmetric'"),
    "unknown at the top": (lambda d: d.update(arithmetics={}), "unknown field", "did you mean 'arithmetic'"),
    "no such rounding": (lambda d: d["arithmetic"].update(rounding="half_evn"), "rounding", "did you mean 'half_even'"),
    "no text": (lambda d: d["arithmetic"].update(rounding=7), "rounding", "'half_away'"),
    "a number for a flag": (lambda d: d["weights"].update(per_channel=1), r"per_channel", "true or false"),
    "text for a number": (lambda d: d["arithmetic"].update(accumulator_bits="32"), "accumulator_bits", "8 to"),
    "a flag for a number": (lambda d: d.update(version=True), "version", "1 to"),
    "width 1": (lambda d: d["weights"].update(bits=[1, 8]), r"weights\.bits", "2 to 16"),
    "no list": (lambda d: d["weights"].update(bits=8), r"weights\.bits", "a list"),
    "twice": (lambda d: d["weights"].update(bits=[8, 8]), r"weights\.bits", "once"),
    "operation": (lambda d: d["operations"].update(run=["conv", "liner"]), "unknown operation",
                  "did you mean 'linear'"),
    "operation twice": (lambda d: d["operations"].update(run=["conv", "conv"]), "twice", "conv"),
    "no operations": (lambda d: d["operations"].update(run=[]), r"operations\.run", "list"),
    "a name": (lambda d: d.update(name="../x"), "name", "letters"),
    "taken": (lambda d: d.update(name="onnxruntime"), "comes with Intact", "another name"),
    "floats in an addition": (lambda d: d["arithmetic"].update(add="fused"), "no floats", "'integer'"),
    "floats in a pool": (lambda d: d["arithmetic"].update(average_pool="dequantized"), "no floats", "'sum'"),
    "a wide accumulator": (lambda d: d["arithmetic"].update(accumulator_bits=40), "at most 32 bits", "8 to 32"),
    "two roundings and the zero inside": (
        lambda d: d["arithmetic"].update(requantize="fixed_point_twice", zero_inside=True), "zero point", "false"),
    "outputs of what only moves": (lambda d: d["operations"].update(outputs={"reshape": {}}), "unknown field",
                                   "reshape"),
    "outputs of a width it lacks": (lambda d: d["operations"].update(outputs={"tanh": {"17": {}}}), "unknown field",
                                    "tanh.17"),
    "a scale of 0": (lambda d: d["operations"].update(outputs={"tanh": {"8": {"scale": 0, "zero_point": 0}}}),
                     r"tanh\.8\.scale", "positive"),
    "a zero point without code": (
        lambda d: d["operations"].update(outputs={"tanh": {"8": {"scale": 1.0, "zero_point": 128}}}),
        r"tanh\.8\.zero_point", "-128 to 127"),
    "a zero point of a symmetric width": (
        lambda d: d["operations"].update(outputs={"tanh": {"16": {"scale": 1.0, "zero_point": 1}}}), "symmetric", "0"),
    "no power of two": (
        lambda d: (d["arithmetic"].update(requantize="shift"),
                   d["operations"].update(outputs={"tanh": {"8": {"scale": 0.3, "zero_point": 0}}})),
        "powers of two", "0.5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    change, what, way_out = WRONG[case]
    description = describe(mine())
    change(description)
    with pytest.raises(PlanError, match=what) as caught:
        parse_target(description, "npu.toml")
    assert "npu.toml" in str(caught.value) and re.search(way_out, str(caught.value))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6),
       st.sampled_from(["", "name", "version", "arithmetic", "activations", "weights", "operations", "operations.run",
                        "operations.outputs", "weights.bits", "arithmetic.add", "activations.symmetric_from"]))
def test_nothing_but_a_plan_error(value: Any, path: str) -> None:
    description: Any = describe(mine())
    if not path:
        description = value
    else:
        *tables, last = path.split(".")
        table = description
        for name in tables:
            table = table[name]
        table[last] = value
    try:
        parse_target(description)
    except PlanError:
        return
    assert path


@pytest.mark.parametrize(("text", "message"), [("name = ", "not TOML"), ("", "missing"), ("a = 1", "unknown field")])
def test_files_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        intact.plan(intact.capture(nn.Linear(2, 2), torch.zeros(2, 2)), target=str(written(text, tmp_path)))
    assert "npu.toml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.toml", tmp_path, "gone.toml", "a\0b.toml"):
        with pytest.raises(PlanError, match="cannot be read"):
            get_target(path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="UTF-8"):
        get_target(tmp_path / "x.toml")
