"""Every operation in C against its kernel: random bindings side by side in one network, under every arithmetic."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import intact
from intact.arithmetic import Arithmetic, Requantize, Rounding
from intact.engine import QModel
from intact.errors import PlanError
from intact.exporters.c.ops import C_OPS
from intact.graph import Graph, Node
from intact.graph.signature import Signature
from intact.kernels import KERNELS, UNARY_OPS, Binding
from intact.targets import get_target
from intact.types import QParams, QType
from tests.kernels import drawn

from .c_tools import differences, needs_gcc

pytestmark = needs_gcc
FIXED = get_target("fixed_point")
ARITHMETICS = [replace(FIXED.arithmetic, requantize=r, rounding=rounding, zero_inside=inside)
               for r, rounding, inside in itertools.product(
                   (Requantize.FIXED_POINT, Requantize.FIXED_POINT_TWICE, Requantize.SHIFT), Rounding, (False, True))]
#: powers of two give ties, and are all that shifts can express
DYADIC = st.integers(-12, -3).map(lambda k: 2.0**k)
MOST = 8  # nodes in a network


def params(draw: drawn.Draw, bits: list[int]) -> QParams:
    """As :func:`drawn.draw_params`; wide codes as the target has them, signed and symmetric."""
    width = draw(st.sampled_from(bits))
    qtype = QType(width, width > 8 or draw(st.booleans()))
    zero = 0 if width > 8 else draw(st.one_of(st.sampled_from([qtype.qmin, qtype.qmax]),
                                              st.integers(qtype.qmin, qtype.qmax)))
    return QParams.per_tensor(draw(drawn.scales), zero, qtype)


@contextmanager
def drawing(arithmetic: Arithmetic, bits: tuple[int, ...]) -> Iterator[None]:
    scales = DYADIC if arithmetic.requantize is Requantize.SHIFT else st.one_of(DYADIC, drawn.scales)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "rules", lambda draw: (arithmetic, bits))
        patch.setattr(drawn, "summing_rules", lambda draw: (arithmetic, bits))
        patch.setattr(drawn, "scales", scales)
        patch.setattr(drawn, "draw_fixed", lambda draw: arithmetic)
        patch.setattr(drawn, "draw_params", params)
        weight = drawn.draw_weight
        patch.setattr(drawn, "draw_weight", lambda draw, shape, bits, axis=0: weight(draw, shape, (2, 4, 8), axis))
        yield


def network(cases: list[tuple[Binding, list[Tensor], int]], arithmetic: Arithmetic) -> tuple[QModel, dict[str, Tensor]]:
    """Operations side by side, each with inputs of its own, at a fixed batch."""
    nodes, bindings, qparams, inputs = [], {}, {}, {}
    for i, (binding, xs, batch) in enumerate(cases):
        names = [f"x{i}.{k}" for k in range(len(xs))]
        for name, x, q in zip(names, xs, binding.inputs, strict=True):
            nodes.append(Node(name, "input", shape=tuple(x.shape)))
            qparams[name], inputs[name] = q, (x.double() - int(q.zero_point)).float() * q.scale
        y = KERNELS[binding.op](binding)(xs, {"batch": batch})
        if binding.op in ("reshape", "expand"):
            binding = replace(binding, attrs={"shape": list(y.shape)})
        name = f"{binding.op}@{i}"
        nodes.append(Node(name, binding.op, tuple(names), {}, binding.attrs, f"path.{i}", tuple(y.shape)))
        bindings[name], qparams[name] = binding, binding.output
    output = {"kind": "tuple", "items": [{"kind": "edge", "name": n} for n in bindings]}
    signature = Signature(tuple(inputs), tuple({"kind": "edge", "name": n} for n in inputs))
    target = replace(FIXED, arithmetic=arithmetic)
    return QModel(Graph(tuple(nodes), output), signature, target, bindings, qparams, {}), inputs


def one(data: st.DataObject, op: str) -> tuple[Binding, list[Tensor], int] | None:
    """A drawn case; None if the target would refuse it, or it has three spatial axes."""
    try:
        binding, xs, batch = drawn.DRAWN[op](data.draw)
        KERNELS[op](binding)(xs, {"batch": batch})
    except PlanError:
        return None
    spatial = op in ("conv", "max_pool", "avg_pool") and xs[0].ndim > 4
    return None if spatial or binding.is_accumulator else (binding, xs, batch)


def test_every_operation_of_the_target_has_c_form_and_is_drawn() -> None:
    ops = {op for op in FIXED.rules if op in C_OPS}
    assert ops == set(FIXED.rules) & set(KERNELS)
    assert ops <= set(drawn.DRAWN)


@functools.cache
def names() -> list[str]:
    others = [op for op in drawn.DRAWN if op in C_OPS and op not in UNARY_OPS]
    return ["conv"] * 4 + ["linear"] * 2 + others + ["relu", "silu", "clamp", "exp"]


@pytest.mark.parametrize("bits", [(2, 4, 8), (8, 13, 16)], ids=["narrow", "wide"])
@pytest.mark.parametrize("rule", [Requantize.FIXED_POINT, Requantize.FIXED_POINT_TWICE, Requantize.SHIFT],
                         ids=lambda r: r.value)
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_operations_give_the_codes_of_their_kernels(
    rule: Requantize, bits: tuple[int, ...], data: st.DataObject
) -> None:
    arithmetic = data.draw(st.sampled_from([a for a in ARITHMETICS if a.requantize is rule]))
    with drawing(arithmetic, bits):
        ops = data.draw(st.lists(st.sampled_from(names()), min_size=MOST, max_size=MOST))
        cases = [c for op in ops if (c := one(data, op)) is not None]
    q, inputs = network(cases, arithmetic)
    with tempfile.TemporaryDirectory() as folder:
        assert differences(q, Path(folder), inputs) == []


@settings(max_examples=1, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_all_operations_in_one_network(data: st.DataObject) -> None:
    with drawing(FIXED.arithmetic, (8,)):
        cases = [c for op in sorted(C_OPS) if (c := one(data, op)) is not None]
    q, inputs = network(cases, FIXED.arithmetic)
    with tempfile.TemporaryDirectory() as folder:
        certificate = intact.export(q, Path(folder) / "all.c", data=inputs)
    assert certificate.clean and certificate.edges == len(cases)
