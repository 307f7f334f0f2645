"""Meters against formulas on all data at once, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intact.analysis import Accuracy, Agreement, Cosine, Mean, Sqnr, sqnr_db
from intact.analysis.metrics import energy
from intact.errors import IntactError


def data(rows: int = 37, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 10) * scale
    return x, x + 0.1 * scale * torch.randn(rows, 10)


@pytest.mark.parametrize("parts", [1, 3, 37])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e25])
def test_sqnr_and_cosine_equal_the_formula_however_the_data_is_split(parts: int, scale: float) -> None:
    x, y = data(scale=scale)
    sqnr, cosine = Sqnr(), Cosine()
    for a, b in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        sqnr.update(a, b)
        cosine.update(a, b)
    u, v, noise = x.double(), y.double(), (y - x).double()
    assert sqnr.db == pytest.approx(float(10 * torch.log10((u**2).sum() / (noise**2).sum())), abs=1e-9)
    assert sqnr.noise_rms == pytest.approx(float((noise**2).mean().sqrt()), rel=1e-9)
    assert cosine.value == pytest.approx(float((u * v).sum() / (u.norm() * v.norm())), abs=1e-12)


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 100_000])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20, 1e30])
def test_energy_of_long_tensors_is_that_of_float64(count: int, scale: float) -> None:
    x = torch.randn(count) * scale
    assert energy(x) == pytest.approx(float((x.double() ** 2).sum()), rel=1e-5)
    assert energy(x.reshape(1, -1).t()) == energy(x)
    assert energy(torch.zeros(count)) == 0.0
    assert energy(torch.zeros(0)) == 0.0


def test_one_large_value_among_tiny_ones_and_tiny_ones_alone_are_not_lost() -> None:
    x = torch.full((8192,), 1e-24)
    assert energy(x) == pytest.approx(8192e-48, rel=1e-5)
    x[5000] = 1e24
    assert energy(x) == pytest.approx(1e48, rel=1e-5)


@pytest.mark.parametrize(("signal", "noise", "db"), [
    (1.0, 0.0, math.inf), (0.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (1.0, math.inf, -math.inf),
    (1e300, 1e-300, 6000.0), (100.0, 1.0, 20.0),
])
def test_sqnr_corners(signal: float, noise: float, db: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(db)


def test_equal_infinities_are_no_noise_and_others_are_infinite_noise() -> None:
    a = torch.tensor([1.0, math.inf, -math.inf])
    meter = Sqnr()
    meter.update(a, a.clone())
    assert (meter.db, meter.signal) == (math.inf, 1.0)
    for bad in (math.nan, math.inf):
        meter = Sqnr()
        meter.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad]))
        assert meter.db == -math.inf


def test_cosine_corners() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    for a, b, value in ((zero, zero, 1.0), (zero, one, 0.0), (one, -one, -1.0), (one, one, 1.0)):
        meter = Cosine()
        meter.update(a, b)
        assert meter.value == value


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.integers(1, 7))
def test_accuracy_and_agreement_count(pairs: list[tuple[int, int]], size: int) -> None:
    accuracy, agreement = Accuracy(), Agreement()
    for i in range(0, len(pairs), size):
        found, right = (torch.tensor(side) for side in zip(*pairs[i : i + size], strict=True))
        outputs, wanted = (torch.nn.functional.one_hot(t, 5).float() for t in (found, right))
        accuracy.update(outputs, right)
        agreement.update(outputs, wanted)
    share = sum(a == b for a, b in pairs) / len(pairs)
    assert accuracy.value == pytest.approx(share)
    assert agreement.value == pytest.approx(share)


@pytest.mark.parametrize("meter", [Mean(), Accuracy(), Agreement()])
def test_nothing_has_no_mean(meter: Mean | Accuracy | Agreement) -> None:
    with pytest.raises(IntactError, match="nothing"):
        _ = meter.value
