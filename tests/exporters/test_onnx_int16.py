"""Activations of 16 bits in ONNX: sums that are exact without an integer kernel, and codes that do not differ."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import intact
from intact.errors import PlanError
from intact.exporters.onnx.wide import digits_of
from intact.planning import Quant, Recipe, Rule, path
from intact.targets import EXACT_FLOAT
from tests.parity.cases import CASES, Case
from tests.parity.harness import calibrated, certified, differing, hard_inputs, integer_ops

WIDE = Recipe(default=Quant(activation_bits=16, activation_observer="minmax"))
#: an operation each that is written in another way than with 8 bits; the others are run with the slow tests
QUICK = {"conv2d with groups", "linear over more axes", "matrix products", "add, channels", "mul between convolutions, "
         "same shape", "cat of two and three", "max pool", "average pool", "mean", "clamp", "elu", "pad", "log",
         "nearest interpolation", "bilinear interpolation", "attention"}


@pytest.mark.parametrize("case", [c if c.name in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
                         ids=lambda c: c.name)
def test_codes_equal_the_runtime(case: Case, tmp_path: Path) -> None:
    """Whatever the scales, and whatever the zero points; simulation, integers and runtime."""
    torch.manual_seed(1)
    xs = tuple(torch.randn(4, *s) for s in case.shapes)
    fm = intact.capture(case.build(), xs)
    for kind in ("dyadic", "wild"):
        qfloat = calibrated(fm, xs, WIDE, kind=kind)
        q = intact.convert(qfloat)
        assert case.covers & q.target.rules.keys() <= integer_ops(q)
        assert any(p.qtype.bits == 16 and p.qtype.signed for p in q.qparams.values())
        inputs = hard_inputs(q, 3)
        assert differing(qfloat, q, inputs) == []
        certificate = certified(q, tmp_path, inputs)
        assert (certificate.codes_differ, certificate.first_difference) == (0, None), kind
        assert certificate.outputs_differ == 0 and not certificate.kernels_planned


class Large(nn.Module):
    """All weights at the end of their range: sums beyond 2**31, where four digits are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(512, 2, 3), nn.Linear(4096, 3)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.conv.weight[1] *= -1.0
            self.head.weight.fill_(0.5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.conv(x)), self.head(y).relu()


def test_sums_that_no_32_bits_hold(tmp_path: Path) -> None:
    x, y = torch.ones(2, 512, 3, 3), torch.ones(2, 4096)
    y[0], x[1, :, 1] = -1.0, 0.37
    q = intact.quantize(intact.capture(Large(), (x, y)), [(x, y)],
                        recipe=Recipe(default=WIDE.default, quantized_outputs=True))
    codes = next(b.weight.codes for b in q.bindings.values() if b.op == "conv" and b.weight is not None)
    assert digits_of(2**15, codes) == (4, 4) and int(codes.long().abs().sum()) * 2**15 > 2**31
    certificate = intact.export(q, tmp_path / "net.onnx", data=(x, y))
    assert certificate.codes_differ == certificate.outputs_differ == 0
    with pytest.raises(PlanError, match=r"accumulator of 32 bits can overflow.*conv"):
        intact.plan(intact.capture(Large(), (x, y)), "fixed_point", WIDE)


@given(st.integers(1, 2**16), st.lists(st.integers(-127, 127), min_size=1, max_size=12), st.integers(1, 10**5))
def test_digits_hold_every_code_and_every_sum(reach: int, row: list[int], times: int) -> None:
    """By the very steps of the file: exact quotients, rounded; no digit passes half its range, no sum 2**24."""
    weights = torch.tensor([row]) * times
    found = digits_of(reach, weights)
    most = int(weights.abs().sum())
    if found is None:
        assert most * 4 >= 2**24  # eight digits of two bits would not do
        return
    parts, bits = found
    x = torch.tensor([-reach, -reach + 1, -1, 0, 1, reach // 2, reach - 1, reach], dtype=torch.float32)
    digits, rest = [], x
    for _ in range(parts - 1):
        higher = (rest / 2.0**bits).round()
        digits.append(rest - higher * 2.0**bits)
        rest = higher
    digits.append(rest)
    assert torch.equal(sum(d.double() * 2.0 ** (bits * i) for i, d in enumerate(digits)), x.double())
    largest = max(float(d.abs().max()) for d in digits)
    assert largest * most < 2**24
    assert all(math.isfinite(float(d.sum())) for d in digits)


def test_what_cannot_be_exact_is_refused() -> None:
    assert digits_of(2**15, torch.tensor([[2**24]])) is None


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3))


def test_eight_and_sixteen_bits_side_by_side(tmp_path: Path) -> None:
    """Only what has more than 8 bits leaves the integer kernels; plan and certificate say so."""
    data = [torch.randn(4, 3, 16, 16)]
    recipe = Recipe(rules=(Rule(path("2"), Quant(activation_bits=16)),))
    q = intact.quantize(small(), data, recipe=recipe)
    assert str(q.plan).count(EXACT_FLOAT) == 2  # what makes codes of 16 bits, and what reads them
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert certificate.clean and certificate.kernels_actual == {"QLinearConv": 1}
    assert 0 < certificate.integer_mac_share < 1
    kinds = {t.data_type for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert onnx.TensorProto.INT16 in kinds  # zero points


def test_int4_weights_and_int16_activations_in_codes(tmp_path: Path) -> None:
    data = [torch.randn(4, 3, 16, 16)]
    recipe = Recipe(default=Quant(weight_bits=4, activation_bits=16), quantized_outputs=True)
    q = intact.quantize(small(), data, recipe=recipe)
    intact.save(q, tmp_path / "net.intact")
    again = intact.load(tmp_path / "net.intact")
    certificate = intact.export(again, tmp_path / "net.onnx", inputs="codes", outputs="codes", data=data[0])
    assert certificate.codes_differ == 0
    model = onnx.load(tmp_path / "net.onnx")
    kinds = [i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)]
    assert kinds == [onnx.TensorProto.INT16] * 2
    assert sum(t.data_type == onnx.TensorProto.INT4 for t in model.graph.initializer) == 3


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_mean_over_free_axes(tmp_path: Path) -> None:
    """Its count is known when it is run; the certificate runs several sizes."""
    x = torch.randn(4, 2, 7, 9)
    q = intact.quantize(intact.capture(Pooled(), x, dynamic={2: "height", 3: "width"}), [x], recipe=WIDE)
    assert "mean" in {q.graph[name].op for name in q.bindings}
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert certificate.codes_differ == certificate.outputs_differ == 0 and len(certificate.sizes["height"]) > 1


def test_processors_that_saturate_pairs_keep_to_8_bits() -> None:
    with pytest.raises(PlanError, match="16-bit activation"):
        intact.plan(intact.capture(small(), torch.randn(2, 3, 16, 16)), "x86_avx2", WIDE)
