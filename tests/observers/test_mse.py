from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intact.arithmetic import dequantize, quantize
from intact.observers import (
    Density,
    Mse,
    Observer,
    best_range,
    expected_error,
    make_observer,
    range_to_qparams,
)
from intact.types import INT8, UINT8, Free, QParams, QType

SPECS = (
    Free(UINT8),
    Free(QType(4, signed=False)),
    Free(QType(3, signed=True)),
    Free(QType(2, signed=False)),
    Free(INT8, symmetric=True),
    Free(QType(4, signed=True, narrow=True), symmetric=True),
)


def draw(name: str) -> torch.Tensor:
    """20,000 values of a known distribution."""
    torch.manual_seed(1)
    n, x = 20_000, torch.randn(20_000)
    return {
        "normal": lambda: x,
        "shifted": lambda: x + 1.5,
        "uniform": lambda: torch.rand(n),
        "laplace": lambda: torch.distributions.Laplace(0.0, 1.0).sample((n,)),
        "outlier": lambda: torch.cat([x, torch.tensor([100.0])]),
        "half zeros": lambda: x.relu(),
        "gelu": lambda: torch.nn.functional.gelu(x),
        "skewed": lambda: -x.abs().pow(2) + 0.05 * torch.rand(n),
        "pixels": lambda: torch.randint(0, 256, (n,)).float(),
    }[name]()


def squared_error(x: torch.Tensor, p: QParams) -> float:
    return float((x - dequantize(quantize(x, p), p)).double().square().sum())


def brute_force(x: torch.Tensor, spec: Free) -> float:
    """Least squared error over a fine grid of both ends, on the data itself."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)

    def cost(a: float, b: float) -> float:
        ends = low * 2**-a, high * 2**-b
        if spec.symmetric:
            top = max(-low, high) * 2**-a
            ends = max(low, -top), min(high, top)
        return squared_error(x, range_to_qparams(*ends, spec))

    two = low < 0.0 < high and not spec.symmetric
    axis = [i * 0.25 for i in range(29)] if two else [i * 0.05 for i in range(180)]
    starts = itertools.product(axis[::2], axis[::2]) if two else ((a, a) for a in axis)
    ranked = sorted((cost(a, b), a, b) for a, b in starts)[:3]
    for radius in (0.4, 0.15, 0.05, 0.02):
        moves = [radius * i / 2 for i in range(-2, 3)]
        steps = list(itertools.product(moves, moves)) if two else [(m, m) for m in moves]
        ranked = [
            min((cost(a, b), a, b) for a, b in ((max(a + i, 0), max(b + j, 0)) for i, j in steps))
            for _, a, b in ranked
        ]
    return min(ranked)[0]


def seen(x: torch.Tensor, observer: Observer | None = None) -> Observer:
    observer = observer or Mse()
    observer.update(x)
    return observer


NAMES = ["normal", "shifted", "uniform", "laplace", "outlier", "half zeros", "gelu", "skewed"]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_within_two_per_cent_of_brute_force(name: str, spec: Free) -> None:
    x = draw(name)
    found = squared_error(x, seen(x).qparams(spec))
    assert found <= 1.02 * brute_force(x, spec)


@pytest.mark.parametrize("clip", [(0.0, math.inf), (0.0, 1.5), (-1.0, 1.0)])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_clip_is_the_same_as_clamped_data(bits: int, clip: tuple[float, float]) -> None:
    x = draw("normal")
    spec = Free(QType(bits, signed=False), clip=clip)
    clamped = x.clamp(*clip)
    raw = squared_error(clamped, seen(x).qparams(spec))
    assert raw <= 1.02 * squared_error(clamped, seen(clamped).qparams(spec))
    assert raw <= 1.02 * squared_error(clamped, range_to_qparams(*clamped.aminmax(), spec))


def test_integers_keep_their_scale_of_one() -> None:
    p = seen(draw("pixels")).qparams(Free(UINT8))
    assert (float(p.scale), int(p.zero_point)) == (1.0, 0)


def test_half_zeros_cost_nothing() -> None:
    x = draw("normal").abs()
    with_zeros = seen(torch.cat([x, torch.zeros(3 * len(x))]))
    for spec in SPECS:
        assert with_zeros.range(spec) == seen(x).range(spec)


@settings(max_examples=30)
@given(st.integers(2, 16), st.floats(-3, 0), st.floats(0.1, 3), st.integers(0, 2**16))
def test_expected_error_is_the_integral(bits: int, low: float, high: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    edges = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    density = Density(edges, torch.rand(8, generator=g, dtype=torch.float64))
    qtype = QType(bits, signed=False)
    p = range_to_qparams(low, high, Free(qtype))
    found = expected_error(density, p.scale[None], p.zero_point[None], qtype)
    # the midpoint rule on many points of each bin
    n = 50_000
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 0.5
    total = 0.0
    for left, mass in zip(edges[:-1].tolist(), density.mass.tolist(), strict=True):
        u = (x + left) / float(p.scale)
        code = u.round().clamp(qtype.qmin - int(p.zero_point), qtype.qmax - int(p.zero_point))
        total += mass * float((u - code).square().mean()) * float(p.scale) ** 2
    assert float(found) == pytest.approx(total, rel=2e-3)


def test_many_bits_never_clip_much_and_few_bits_do() -> None:
    o = seen(draw("normal"))
    specs = [Free(QType(bits, signed=True), symmetric=True) for bits in (2, 4, 8, 16)]
    widths = [max(-low, high) for low, high in map(o.range, specs)]
    assert widths == sorted(widths) and widths[0] < 2.5
    assert widths[3] > 0.95 * float(draw("normal").abs().max())


def test_no_data_but_zeros() -> None:
    zeros = Density(torch.tensor([0.0, 1.0]).double(), torch.zeros(1).double(), 5.0)
    assert best_range(zeros, Free(UINT8)) == (0.0, 0.0)
    assert seen(-torch.rand(9)).range(Free(UINT8, clip=(0.0, 6.0))) == (0.0, 0.0)


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0, 100.0])
@pytest.mark.parametrize("name", ["normal", "laplace", "half zeros", "uniform"])
def test_percentiles_are_quantiles(name: str, percent: float) -> None:
    from intact.observers import Percentile

    x = draw(name)
    tail = (1 - percent / 100) / 2
    used = x[x != 0]
    low, high = seen(x, Percentile(percent)).range(Free(UINT8))
    resolution = 0.002 * float(x.max() - x.min())
    assert low == pytest.approx(float(used.quantile(tail)), abs=resolution)
    assert high == pytest.approx(float(used.quantile(1 - tail)), abs=resolution)
    found = seen(x, Percentile(percent)).range(Free(INT8, symmetric=True))
    expected = float(used.abs().quantile(percent / 100))
    assert max(-found[0], found[1]) == pytest.approx(expected, abs=resolution)


def test_hundred_per_cent_is_min_and_max() -> None:
    from intact.observers import Percentile

    x = draw("gelu")
    found = seen(x, Percentile(100.0)).range(Free(UINT8))
    assert found == (float(x.min()), float(x.max()))


def test_entropy_clips_an_outlier_and_keeps_a_uniform() -> None:
    spec = Free(INT8, symmetric=True)
    assert seen(draw("outlier"), make_observer("entropy")).range(spec)[1] < 10
    assert seen(draw("uniform"), make_observer("entropy")).range(spec)[1] > 0.95
    for bits in (2, 4, 12, 16):
        low, high = seen(draw("normal"), make_observer("entropy")).range(Free(QType(bits, False)))
        assert low < -0.5 and high > 0.5
