"""Functions as straight lines between knots: never more than a code off, the same numbers from all who compute them."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import intact
from intact.arithmetic import Arithmetic, Rounding
from intact.arithmetic.curve import FRACTION, Curve
from intact.kernels import KERNELS, UNARY_OPS, Binding
from intact.kernels.elementwise import unary_table
from intact.reference import integer as mirror
from intact.targets import get_target
from intact.types import INT8, INT16, QParams, QType
from tests.exporters.c_tools import differences, needs_gcc

FIXED = get_target("fixed_point").arithmetic
ATTRS = {"low": -0.5, "high": 0.75, "slope": 0.1, "alpha": 1.0, "value": 2.0, "approximate": "none",
         "scale": 1.1, "input_scale": 0.7, "beta": 2.0, "threshold": 0.3, "bound": 0.4}
#: knots for operands from -8 to 8 and an output that just fits
KNOTS = {"sigmoid": 513, "gelu": 513, "silu": 513, "hardswish": 513, "softplus": 257, "tanh": 2049, "exp": 2049}


def binding(op: str, reach: float, arithmetic: Arithmetic = FIXED, out: QType = INT16) -> Binding:
    """A function over [-reach, reach], with an output scale that just fits."""
    x = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
    most = float(torch.nan_to_num(UNARY_OPS[op](x, ATTRS), posinf=0, neginf=0).abs().max())
    scale = min(max(most, 1e-6), 1e6) / out.qmax
    return Binding(op, ATTRS, (QParams.per_tensor(reach / 32767, 0, INT16),), QParams.per_tensor(scale, 0, out),
                   arithmetic)


@pytest.mark.parametrize("op", sorted(KNOTS))
def test_the_usual_functions_take_few_knots(op: str) -> None:
    b = binding(op, 8.0)
    kernel = KERNELS[op](b)
    assert len(kernel.curve.knots) == KNOTS[op]  # type: ignore[attr-defined]
    off = (kernel.table - unary_table(b)).abs()  # type: ignore[attr-defined]
    assert 0 < float(off.max()) <= 1


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(UNARY_OPS)), st.floats(0.01, 100), st.sampled_from(Rounding),
       st.sampled_from([8, 13, 16]), st.floats(0.05, 1.0))
def test_no_code_is_more_than_one_away_from_the_full_table(
    op: str, reach: float, rounding: Rounding, bits: int, share: float
) -> None:
    """Saturating outputs too: a corner where they begin is inside a line."""
    b = binding(op, reach, replace(FIXED, rounding=rounding), QType(bits, signed=True))
    b = replace(b, output=QParams.per_tensor(float(b.output.scale) * share, 0, b.output.qtype))
    off = KERNELS[op](b).table - unary_table(b)  # type: ignore[attr-defined]
    assert float(off.abs().max()) <= 1
    if op in ("relu", "clamp"):
        assert not off.any()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_mirror_gives_the_same_codes(data: st.DataObject) -> None:
    """From any knots, those at the limits of 31 bits among them."""
    bits, rounding = data.draw(st.sampled_from([9, 12, 16])), data.draw(st.sampled_from(Rounding))
    step = data.draw(st.integers(4, bits - 5))
    kind = QType(bits, signed=True, narrow=data.draw(st.booleans()))
    count = -(-(kind.qmax - kind.qmin + 1) >> step << step >> step) + 2
    values = data.draw(st.lists(st.one_of(st.integers(-(2**30), 2**30), st.integers(-(2**24), 2**24)), min_size=1,
                                max_size=9))
    knots = torch.tensor((values * count)[:count])
    index = torch.arange(kind.qmax - kind.qmin + 1)
    found = Curve(knots, step).codes(index, rounding, -32768, 32767)
    out = mirror.Codes(1.0, 0, -32768, 32767)
    want = mirror.curve((index + kind.qmin).numpy(), knots.numpy(), step, mirror.Codes(1.0, 0, kind.qmin, kind.qmax),
                        out, rounding.value)  # type: ignore[arg-type]
    assert np.array_equal(found.numpy(), want)


@pytest.mark.parametrize("op, function", [("tanh", math.tanh), ("exp", math.exp),
                                          ("sigmoid", lambda x: 1 / (1 + math.exp(-x)))])
def test_the_mirror_places_the_same_knots(op: str, function: object) -> None:
    b = binding(op, 8.0)
    curve = KERNELS[op](b).curve  # type: ignore[attr-defined]
    q, out = (mirror.Codes(float(p.scale), 0, -32768, 32767) for p in (b.inputs[0], b.output))
    found = mirror.knots(function, q, out, curve.step)  # type: ignore[arg-type]
    assert np.abs(found - curve.knots.numpy()).max() <= 1  # two libraries' functions, rounded
    assert (found == curve.knots.numpy()).mean() > 0.99


def test_eight_bits_and_other_targets_have_full_tables() -> None:
    b = binding("tanh", 4.0)
    assert KERNELS["tanh"](replace(b, inputs=(QParams.per_tensor(1 / 32, 0, INT8),))).curve is None  # type: ignore[attr-defined]
    other = replace(b, arithmetic=get_target("horizon_j6").arithmetic)
    kernel = KERNELS["tanh"](other)
    assert torch.equal(kernel.table, unary_table(other)) and kernel.curve is None  # type: ignore[attr-defined]
    assert KERNELS["log"](binding("log", 4.0)).curve is None  # type: ignore[attr-defined]
    assert FRACTION == 8  # as the text of the C kernel says


class Functions(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.sigmoid(x), torch.tanh(x), nn.functional.gelu(x), nn.functional.silu(x), torch.exp(x)


@needs_gcc
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.floats(0.5, 12), st.sampled_from(Rounding), st.booleans())
def test_c_gives_every_code(reach: float, rounding: Rounding, inside: bool) -> None:
    """Every one of the 65,536 codes of five functions, under the sanitizers."""
    target = get_target("fixed_point")
    target = replace(target, arithmetic=replace(target.arithmetic, rounding=rounding, zero_inside=inside))
    x = torch.linspace(-reach, reach, 65536).reshape(1, -1)
    recipe = intact.Recipe(default=intact.Quant(activation_bits=16, activation_observer="minmax"))
    q = intact.quantize(Functions(), [x.repeat(2, 1)], target=target, recipe=recipe)
    assert len(torch.unique(q.codes(x)["x"])) > 65000
    with tempfile.TemporaryDirectory() as folder:
        assert differences(q, Path(folder), x) == []
        text = (Path(folder) / "net.c").read_text()
    assert text.count("curve_s16_s16(") == 6 and "table_s16" not in text


@needs_gcc
def test_the_flash_is_small(tmp_path: Path) -> None:
    recipe = intact.Recipe(default=intact.Quant(activation_bits=16, activation_observer="minmax"))
    x = torch.linspace(-8, 8, 64).reshape(1, -1)
    sizes = [intact.export(intact.quantize(nn.Sigmoid(), [x.repeat(2, 1)], target=t, recipe=recipe),
                           tmp_path / "net.c").memory["constants"] for t in ("fixed_point", "horizon_j6")]
    assert sizes == [513 * 4, 131072]
