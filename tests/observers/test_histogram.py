from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from intact.errors import PlanError
from intact.observers import Density, Histogram

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def histogram(values: list[float], bins: int = 64) -> Histogram:
    h = Histogram(bins)
    if values:
        x = torch.tensor(values, dtype=torch.float32)
        h.add(x, float(x.min()), float(x.max()))
    return h


@given(st.lists(FINITE, min_size=1, max_size=40))
def test_counts_are_those_of_exact_arithmetic(values: list[float]) -> None:
    h = histogram(values)
    expected: dict[int, int] = {}
    for v in values:
        index = math.trunc(math.ldexp(v, -h._k))  # float64: exact
        expected[index] = expected.get(index, 0) + 1
    found = {i - h.bins: int(n) for i, n in enumerate(h.tensors()["counts"]) if n}
    assert found == expected
    assert h.zeros == sum(v == 0.0 for v in values)
    assert (h.low, h.high, h.count) == (min(values), max(values), len(values))


@given(st.lists(FINITE, min_size=1, max_size=30), st.lists(FINITE, max_size=30))
def test_growing_and_merging_give_the_same_counts(a: list[float], b: list[float]) -> None:
    whole = histogram(a + b)
    grown = histogram(a)
    for v in b:
        x = torch.tensor([v], dtype=torch.float32)
        grown.add(x, v, v)
    merged = histogram(a)
    if b:
        merged.merge(histogram(b))
    for other in (grown, merged):
        assert all(torch.equal(v, other.tensors()[k]) for k, v in whole.tensors().items())


@pytest.mark.parametrize("data", ["two-sided", "positive", "negative", "relu"])
def test_at_least_half_of_the_bins_span_the_range(data: str) -> None:
    x = torch.randn(1000)
    x = {"two-sided": x, "positive": x.abs(), "negative": -x.abs(), "relu": x.relu()}[data]
    h = histogram(x.tolist(), 4096)
    low, high = min(h.low, 0.0), max(h.high, 0.0)
    assert 2048 - 2 <= (high - low) / h.width <= 4096


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000).relu()
    whole = histogram(x.tolist()).tensors()
    monkeypatch.setattr("intact.observers.histogram._CHUNK", {"cpu": 77})
    chunked = histogram(x.tolist()).tensors()
    assert all(torch.equal(whole[k], chunked[k]) for k in whole)


@pytest.mark.parametrize("bins", [0, 8, 100, -16])
def test_the_number_of_bins_is_a_power_of_two(bins: int) -> None:
    with pytest.raises(PlanError, match="bins"):
        Histogram(bins)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40))
@example([1e-45])
@example([-1e-45])
@example([2.0])
@example([-2.0, 0.0])
@example([0.99999994, 1.0])
def test_the_density_keeps_mass_and_range(values: list[float]) -> None:
    h = histogram(values)
    d = h.density()
    assert d.total == len(values) and d.zeros == h.zeros
    assert d.range == (min(h.low, 0.0), max(h.high, 0.0))
    assert bool((d.edges.diff() > 0).all()) and bool((d.mass >= 0).all())
    for n in (1, 2, 7):
        coarse = d.coarse(n)
        assert coarse.total == pytest.approx(d.total)
        assert coarse.range == d.range and len(coarse.mass) <= n
        assert bool((coarse.edges.diff() > 0).all())


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.floats(-120, 0, width=32),
    st.one_of(st.just(math.inf), st.floats(0.125, 120, width=32)),
)
def test_a_clipped_density_keeps_mass_and_stays_within(
    values: list[float], low: float, high: float
) -> None:
    d = histogram(values).density().clipped((low, high))
    assert d.total == pytest.approx(len(values))
    assert bool((d.edges.diff() > 0).all()) and bool((d.mass >= -1e-9).all())
    assert d.range[0] >= low and d.range[1] <= high
    ends = torch.stack([d.edges[0] - 1, d.edges[-1] + 1])
    assert d.below(ends).tolist() == [0.0, pytest.approx(len(values) - d.zeros)]


def test_clip_moves_what_is_beyond_to_the_edge() -> None:
    d = histogram([-5.0, -4.0, 1.0, 8.0, 9.0], 4096).density().clipped((-2.0, 4.0))
    points = torch.tensor([-2.1, -1.9, 0.5, 2.0, 3.9, 4.1], dtype=torch.float64)
    assert d.below(points).tolist() == [0.0, 2.0, 2.0, 3.0, 3.0, 5.0]
    empty = Density(torch.tensor([0.0, 1.0]).double(), torch.zeros(1).double(), 3.0)
    assert empty.range == (0.0, 0.0) and empty.total == 3.0
