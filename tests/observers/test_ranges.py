from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from intact.arithmetic import dequantize, quantize
from intact.errors import CalibrationError, PlanError
from intact.observers import range_to_qparams, saturates
from intact.types import INT8, UINT8, Free, QType

QTYPES = st.one_of(
    st.builds(QType, st.integers(2, 16), st.just(False)),
    st.builds(QType, st.integers(2, 16), st.just(True), st.booleans()),
)
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
MAGNITUDES = st.floats(2.0**-70, 2.0**70, width=32)


@given(FLOATS, FLOATS, QTYPES, st.booleans())
def test_zero_is_exact_and_both_ends_are_within_half_a_step(
    a: float, b: float, qtype: QType, symmetric: bool
) -> None:
    p = range_to_qparams(min(a, b), max(a, b), Free(qtype, symmetric=symmetric))
    x = torch.tensor([0.0, a, b])
    codes = quantize(x, p)
    back = dequantize(codes, p)
    assert float(back[0]) == 0.0
    assert float((back - x).abs().max()) <= float(p.scale) * 0.515


@given(MAGNITUDES, QTYPES, st.booleans())
def test_a_one_sided_range_uses_every_code(high: float, qtype: QType, symmetric: bool) -> None:
    p = range_to_qparams(0.0, high, Free(qtype, symmetric=symmetric))
    assert int(quantize(torch.tensor(high), p)) == qtype.qmax
    expected = 0 if symmetric and qtype.signed else qtype.qmin
    assert int(p.zero_point) == expected
    if not symmetric:
        p = range_to_qparams(-high, 0.0, Free(qtype))
        assert int(quantize(torch.tensor(-high), p)) == qtype.qmin
        assert int(p.zero_point) == qtype.qmax


@given(QTYPES, MAGNITUDES)
def test_symmetric_zero_points(qtype: QType, high: float) -> None:
    p = range_to_qparams(-high, high, Free(qtype, symmetric=True))
    assert int(p.zero_point) == (0 if qtype.signed else (qtype.qmax + 1) // 2)
    codes = quantize(torch.tensor([-high, high]), p) - int(p.zero_point)
    assert float(codes[0]) == -float(codes[1])
    assert int(codes[1]) + int(p.zero_point) == qtype.qmax


@given(QTYPES, FLOATS, FLOATS)
def test_a_folded_relu_has_the_zero_point_qmin(qtype: QType, a: float, b: float) -> None:
    spec = Free(qtype, clip=(0.0, math.inf))
    p = range_to_qparams(min(a, b), max(a, b), spec)
    assert int(p.zero_point) == qtype.qmin
    assert saturates(p, (0.0, math.inf))


@given(QTYPES, MAGNITUDES, st.floats(0.0, 1024.0, width=32), FLOATS, FLOATS)
@example(QType(8, False), 1.0, 1.0, -1.0, 1.0)  # 127.5 steps each side: a tie
@example(QType(8, False), 1.0, 126.5 / 128.5, -1.0, 1.0)  # a tie at an even number
@example(QType(8, False), 6.0, 0.0, 0.0, 0.0)  # no data but zeros
@example(QType(8, False), 6.0, 0.0, -5.0, -1.0)
@example(QType(8, False), 2.0**28, 0.0, 0.0, 2.0**-117)  # the scale is at its floor
def test_a_folded_clamp_is_done_by_saturation(
    qtype: QType, high: float, ratio: float, a: float, b: float
) -> None:
    low = float(torch.tensor(-high * ratio))
    spec = Free(qtype, clip=(low, high))
    p = range_to_qparams(min(a, b), max(a, b), spec)
    assert saturates(p, (low, high))
    edges = torch.tensor([low, high], dtype=torch.float32)
    steps = (edges / p.scale).double().clamp(-1e9, 1e9)
    bottom, top = (half_even(float(s)) + int(p.zero_point) for s in steps)
    assert bottom <= qtype.qmin and top >= qtype.qmax
    x = torch.tensor([a, b]).clamp(low, high)
    # the data is not clipped any more than half a step
    assert float((dequantize(quantize(x, p), p) - x).abs().max()) <= float(p.scale) * 0.515


def half_even(x: float) -> int:
    return round(x)  # Python's own rounding is half to even: independent of the code under test


def test_every_tie_of_eight_bits() -> None:
    for steps in range(1, 255):
        for step in (0.1, 1 / 3, 0.037):
            low, high = torch.tensor([(0.5 - steps) * step, (255.5 - steps) * step]).tolist()
            p = range_to_qparams(low, high, Free(UINT8, clip=(low, high)))
            assert saturates(p, (low, high))


def test_a_symmetric_signed_encoding_keeps_its_zero_point_under_a_clip() -> None:
    p = range_to_qparams(-3.0, 9.0, Free(INT8, symmetric=True, clip=(0.0, 6.0)))
    assert int(p.zero_point) == 0 and float(p.scale) == float(torch.tensor(6 / 127))
    assert not saturates(p, (0.0, 6.0))
    p = range_to_qparams(-3.0, 9.0, Free(UINT8, symmetric=True, clip=(0.0, 6.0)))
    assert int(p.zero_point) == 0 and saturates(p, (0.0, 6.0))
    p = range_to_qparams(-3.0, 9.0, Free(INT8, symmetric=True, clip=(-1.0, 1.0)))
    assert int(p.zero_point) == 0 and saturates(p, (-1.0, 1.0))


def test_zero_tiny_and_huge_ranges() -> None:
    assert float(range_to_qparams(0.0, 0.0, Free(UINT8)).scale) == 1.0
    assert float(range_to_qparams(0.0, 1e-40, Free(UINT8)).scale) == 2.0**-100
    top = float(torch.finfo(torch.float32).max)
    for qtype in (QType(2, True), QType(2, False), INT8):
        for symmetric in (False, True):
            p = range_to_qparams(-top, top, Free(qtype, symmetric=symmetric))
            assert math.isfinite(float(p.scale))


@pytest.mark.parametrize("ends", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)])
def test_what_is_no_range(ends: tuple[float, float]) -> None:
    with pytest.raises(CalibrationError, match="not an interval"):
        range_to_qparams(*ends, Free(UINT8))


@pytest.mark.parametrize("clip", [(1.0, 6.0), (-6.0, -1.0), (0.0, 0.0), (6.0, 0.0)])
def test_a_clip_that_cannot_be_folded(clip: tuple[float, float]) -> None:
    with pytest.raises(PlanError, match="folded"):
        range_to_qparams(0.0, 1.0, Free(UINT8, clip=clip))
