"""Requantization in C against the tensors' own, over multipliers from 2**-40 to 2**10 and all of int32, with ties."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest
import torch
from torch import Tensor

from intact.arithmetic import Multiplier, Requantize, Rounding, fixed_point, requantize
from intact.errors import ExportError
from intact.exporters.c.arithmetic import arithmetic_snippets, arithmetic_words, check_arithmetic
from intact.targets import get_target

from .c_tools import SANITIZED, STRICT, needs_gcc

FIXED = get_target("fixed_point").arithmetic
LOW, HIGH = -(2**31), 2**31 - 1

_MAIN = """
int main(void)
{
    long long sum, m0, shift, zero;
    while (scanf("%lld %lld %lld %lld", &sum, &m0, &shift, &zero) == 4) {
        printf("%ld\\n", (long)requantize((int32_t)sum, $factor(int32_t)shift, (int32_t)zero, -32768, 32767));
    }
    return 0;
}
"""


def cases(rule: Requantize) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulators, and the multipliers M0 and n for them: ties, their neighbours, extremes, and anything."""
    g = torch.Generator().manual_seed(0)
    powers = torch.arange(-40, 11)
    real = 2.0 ** powers.repeat_interleave(20).double()
    if rule is not Requantize.SHIFT:
        real = torch.cat([real, torch.exp2(torch.rand(1000, generator=g, dtype=torch.float64) * 50 - 40)])
    m0, shift = fixed_point(real, power_of_two=rule is Requantize.SHIFT)
    codes = torch.randint(-40000, 40000, real.shape, generator=g)
    ties = ((codes.double() + 0.5) / real).round()
    anything = torch.randint(LOW, HIGH + 1, real.shape, generator=g)
    sums = [ties, ties + 1, ties - 1, torch.full_like(ties, LOW), torch.full_like(ties, HIGH), anything]
    return torch.cat([s.clamp(LOW, HIGH).to(torch.int64) for s in sums]), m0.repeat(6), shift.repeat(6)


@needs_gcc
@pytest.mark.parametrize("rule, rounding, inside", list(itertools.product(
    (Requantize.FIXED_POINT, Requantize.FIXED_POINT_TWICE, Requantize.SHIFT), Rounding, (False, True))))
def test_requantize(rule: Requantize, rounding: Rounding, inside: bool, tmp_path: Path) -> None:
    arithmetic = replace(FIXED, requantize=rule, rounding=rounding, zero_inside=inside)
    known, words = arithmetic_snippets(arithmetic), arithmetic_words(arithmetic)
    text: dict[str, str] = {}

    def need(name: str) -> None:
        for other in known[name].needs:
            need(other)
        text[name] = Template(known[name].text).substitute(words)

    need("requantize")
    main = Template(_MAIN).substitute(factor="" if rule is Requantize.SHIFT else "(int32_t)m0, ")
    main = main if rule is not Requantize.SHIFT else main.replace("int32_t)shift", "int32_t)(shift + 0 * m0)")
    (tmp_path / "a.c").write_text("#include <stdint.h>\n#include <stdio.h>\n" + "".join(text.values()) + main)
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", *STRICT, *SANITIZED, "a.c", "-o", "a"],
                   cwd=tmp_path, check=True)
    sums, m0, shift = cases(rule)
    for zero in (0, 3, -7):
        by = Multiplier(m0.double() * torch.exp2(-shift.double()), m0, shift)
        want = requantize(sums, by, zero, -32768, 32767, arithmetic)
        given = shift - m0.double().log2().round().long() if rule is Requantize.SHIFT else shift
        rows = torch.stack([sums, m0, given, torch.full_like(sums, zero)], 1).tolist()
        lines = "\n".join(" ".join(map(str, row)) for row in rows)
        done = subprocess.run([tmp_path / "a"], input=lines, capture_output=True, text=True, check=True)
        assert torch.equal(torch.tensor([float(v) for v in done.stdout.split()]), want)


def test_arithmetic_that_needs_floats_is_refused() -> None:
    check_arithmetic(FIXED, "fixed_point")
    for name in ("onnxruntime", "reference"):
        with pytest.raises(ExportError, match="not one of integers"):
            check_arithmetic(get_target(name).arithmetic, name)
