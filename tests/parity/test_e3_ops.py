"""E2 and E3 for every operation that the target runs in integers: no code differs, whatever the scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import intact
from tests.parity.cases import CASES, Case
from tests.parity.harness import calibrated, certified, differing, hard_inputs, integer_ops

RECIPE = intact.Recipe(default=intact.Quant(activation_observer="minmax"))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_codes_equal_the_runtime(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(1)
    xs = tuple(torch.randn(4, *s) for s in case.shapes)
    fm = intact.capture(case.build(), xs)
    for kind in ("as calibrated", "dyadic", "wild"):
        qfloat = calibrated(fm, xs, RECIPE, kind=kind)
        q = intact.convert(qfloat)
        assert case.covers & q.target.rules.keys() <= integer_ops(q)
        inputs = hard_inputs(q, 5)
        assert differing(qfloat, q, inputs) == []
        certificate = certified(q, tmp_path, inputs)
        assert (certificate.codes_differ, certificate.first_difference) == (0, None), kind
        assert certificate.outputs_differ == 0, kind
        assert bool(certificate.not_fused) == bool(case.unfused), certificate.not_fused
