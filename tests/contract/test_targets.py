"""What every registered target must be: a consistent description, of which every rule is hit by a vector.

Whether a runtime gives the same codes is tests/parity's; that simulation and integers do is asked here of all targets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import FrozenInstanceError

import pytest
import torch

import intact
from intact.arithmetic import PoolRule, Requantize, ResizeRule
from intact.errors import PlanError
from intact.graph import MAC_OPS, PASSIVE_OPS, FloatModel
from intact.kernels import KERNELS
from intact.targets import TARGETS, Output, get_target, register_target
from tests.parity.cases import CASES, Case
from tests.parity.harness import calibrated, differing, hard_inputs, integer_ops

VECTORS = {case.name: case for case in CASES}


@functools.cache
def captured(name: str) -> tuple[FloatModel, tuple[torch.Tensor, ...]]:
    torch.manual_seed(1)
    case = VECTORS[name]
    xs = tuple(torch.randn(4, *s) for s in case.shapes)
    return intact.capture(case.build(), xs), xs


@pytest.mark.parametrize("name", sorted(TARGETS))
class TestEvery:
    def test_schema(self, name: str) -> None:
        target = get_target(name)
        assert target.name == name and target.version >= 1 and TARGETS[name] is target
        for bits in (target.weight_bits, target.activation_bits):
            assert list(bits) == sorted(set(bits)) and bits[0] >= 2 and bits[-1] <= 16
        assert target.rules.keys() <= KERNELS.keys()
        for op, rule in target.rules.items():
            assert rule.macs == (op in MAC_OPS), op
            of_codes = {"avg_pool"} if target.arithmetic.average_pool is PoolRule.CODES else set()
            of_codes |= {"interpolate"} if target.arithmetic.resize is not ResizeRule.PRODUCTS else set()
            assert (rule.output is Output.SHARED) == (op in PASSIVE_OPS | of_codes), op
            assert not rule.fixed or rule.output is Output.FREE, op
        with pytest.raises(FrozenInstanceError):
            target.version = 2  # type: ignore[misc]

    def test_it_is_registered_once(self, name: str) -> None:
        with pytest.raises(PlanError, match="exists"):
            register_target(get_target(name))

    def test_every_rule_has_a_vector(self, name: str) -> None:
        assert set().union(*(c.covers for c in CASES)) >= set(get_target(name).rules)

    def test_widths_that_it_lacks_are_refused(self, name: str) -> None:
        target, (fm, _) = get_target(name), captured("linear")
        for bits in set(range(2, 17)) - set(target.weight_bits):
            with pytest.raises(PlanError, match=name):
                intact.plan(fm, target, intact.Recipe(default=intact.Quant(weight_bits=bits)))
        for bits in set(range(2, 17)) - set(target.activation_bits):
            with pytest.raises(PlanError, match=name):
                intact.plan(fm, target, intact.Recipe(default=intact.Quant(activation_bits=bits)))
        intact.plan(fm, target)  # without a wish, widths that it has


#: vectors with operations that a target without floats refuses, and what it says
_LITERT = {
    "attention": "adds the mask", "conv3d": "three spatial axes", "layer norm and softmax": "layer_norm",
    "max pool": "dilated", "max pool between convolutions": "dilated", "average pool": "leaves out padding",
    "average pool between convolutions": "leaves out padding", "average pool 1-d": "leaves out padding",
}
REFUSED = {name: _LITERT for name in TARGETS if name.startswith("litert")}


def widest(name: str) -> int:
    """Bits of activations that a target has: 8, or those that it has instead."""
    bits = get_target(name).activation_bits
    return 8 if 8 in bits else max(bits)


def vectors() -> Iterator[tuple[str, Case]]:
    """All of them for the first target of each set of rules; for its variants enough of them to hit every rule.

    tests/parity runs them on onnxruntime with three kinds of numbers, and against the runtime itself.
    """
    seen = [TARGETS["onnxruntime"].rules.keys()]
    for name, target in TARGETS.items():
        if name == "onnxruntime":
            continue
        if target.rules.keys() not in seen:
            seen.append(target.rules.keys())
            yield from ((name, case) for case in CASES)
            continue
        left = set(target.rules)
        while left:
            case = max((c for c in CASES if c.name not in REFUSED.get(name, {})), key=lambda c: len(c.covers & left))
            assert case.covers & left, left
            left -= case.covers
            yield name, case


@pytest.mark.parametrize(("name", "case"), [pytest.param(n, c, id=f"{c.name}-{n}") for n, c in vectors()])
def test_every_vector_runs_in_integers_exactly(case: Case, name: str) -> None:
    fm, xs = captured(case.name)
    if case.name in REFUSED.get(name, {}):
        with pytest.raises(PlanError, match=REFUSED[name][case.name]):
            intact.plan(fm, name)
        return
    recipe = intact.Recipe(default=intact.Quant(activation_bits=widest(name), activation_observer="minmax"))
    shifts = get_target(name).arithmetic.requantize is Requantize.SHIFT
    qfloat = calibrated(fm, xs, recipe, kind="dyadic" if shifts else "wild", target=name)
    q = intact.convert(qfloat)
    assert case.covers & get_target(name).rules.keys() <= integer_ops(q)
    assert differing(qfloat, q, hard_inputs(q, 3)) == []
