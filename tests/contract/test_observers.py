"""What every registered observer must do; a new one is tested by being registered: streams, merges, states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intact.errors import ArtifactError, CalibrationError, NonFiniteError, PlanError
from intact.observers import OBSERVERS, MinMax, Observer, Percentile, make_observer
from intact.types import INT8, UINT8, Free, PerChannel, QParams, QType

SPECS = (
    Free(UINT8),
    Free(INT8, symmetric=True),
    Free(QType(4, signed=False)),
    Free(UINT8, clip=(0.0, math.inf)),
    Free(UINT8, clip=(0.0, 6.0)),
    Free(QType(16, signed=True)),
)
ORDERED = {"moving_average"}  # depend on how data is cut and ordered, by definition
NAMES = sorted(OBSERVERS)
UNORDERED = [name for name in NAMES if name not in ORDERED]
EXTREMES = {
    "scalar": torch.tensor(3.7),
    "single negative": torch.tensor([-3.7]),
    "constant": torch.full((2, 9), 0.1),
    "negative constant": torch.full((2, 9), -0.1),
    "zeros": torch.zeros(4, 4),
    "negative zero": torch.tensor([-0.0, 0.0]),
    "huge": torch.tensor([1e30, -1e30]),
    "tiny": torch.tensor([1e-30, -1e-30, 0.0]),
    "float32 max": torch.tensor([3.4028234e38, -3.4028234e38, 1.0]),
    "denormal": torch.tensor([1e-45, 0.0]),
    "two neighbours": torch.tensor([1.0, 1.0000001]).repeat(50),
    "neighbours across an edge of bins": torch.tensor([0.99999994, 1.0]).repeat(50),
    "outlier of 1e30": torch.cat([torch.linspace(-1.0, 1.0, 1000), torch.tensor([1e30])]),
}
INVALID = (math.nan, math.inf, -math.inf)


def seen(name: str, *batches: torch.Tensor) -> Observer:
    observer = make_observer(name)
    for batch in batches:
        observer.update(batch)
    return observer


def merged(*observers: Observer) -> Observer:
    """A new observer that has seen what all of them have, in this order."""
    first = observers[0]
    total = type(first)()
    for observer in observers:
        total.merge(observer)
    return total


def assert_same(a: Observer, b: Observer) -> None:
    for spec in SPECS:
        p, q = a.qparams(spec), b.qparams(spec)
        assert torch.equal(p.scale, q.scale), spec
        assert torch.equal(p.zero_point, q.zero_point), spec


def same_state(a: Observer, b: Observer) -> bool:
    x, y = a.state(), b.state()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def batches(seed: int = 0) -> list[torch.Tensor]:
    """Batches whose ranges differ by orders of magnitude, one with an outlier, one all zero."""
    g = torch.Generator().manual_seed(seed)
    scales = (1e-3, 1.0, 30.0, 0.5, 0.0, 7.0)
    found = [torch.randn(4, 50 * (i + 1), generator=g) * s for i, s in enumerate(scales)]
    found[3][0, 0] = -400.0
    return found


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    def test_saw_nothing_is_a_state_of_its_own(self, name: str) -> None:
        observer = make_observer(name)
        assert observer.count == 0
        with pytest.raises(CalibrationError, match=r"layer3\.conv1 saw no data"):
            observer.qparams(SPECS[0], where="layer3.conv1")
        with pytest.raises(CalibrationError, match="saw no data"):
            observer.range(SPECS[0])

    def test_merging_with_nothing_changes_nothing(self, name: str) -> None:
        a = seen(name, *batches())
        before = a.state()
        a.merge(make_observer(name))
        assert all(torch.equal(before[k], v) for k, v in a.state().items())
        assert same_state(merged(a), a)
        empty = make_observer(name)
        empty.merge(make_observer(name))
        assert empty.count == 0

    def test_merge_is_commutative_and_associative(self, name: str) -> None:
        a, b, c = (seen(name, *batches(seed)[seed:]) for seed in range(3))
        assert_same(merged(a, b), merged(b, a))
        assert_same(merged(merged(a, b), c), merged(a, merged(b, c)))
        assert_same(merged(c, a, b), merged(a, b, c))
        assert merged(a, b, c).count == a.count + b.count + c.count

    def test_merge_leaves_the_other_alone(self, name: str) -> None:
        a, b = seen(name, torch.ones(3) * 100), seen(name, torch.ones(3))
        before = b.state()
        a.merge(b)
        a.update(torch.ones(3) * -1000)
        assert all(torch.equal(before[k], v) for k, v in b.state().items())

    def test_merge_refuses_another_kind_and_other_settings(self, name: str) -> None:
        other = Percentile() if name != "percentile" else MinMax()
        with pytest.raises(CalibrationError, match="cannot be merged"):
            make_observer(name).merge(other)
        with pytest.raises(CalibrationError, match="cannot be merged"):
            Percentile(99.0).merge(Percentile(98.0))

    @pytest.mark.parametrize("bad", INVALID)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_non_finite_is_refused_and_leaves_the_state(
        self, name: str, bad: float, dtype: torch.dtype
    ) -> None:
        observer = seen(name, *batches())
        before = observer.state()
        x = torch.randn(3, 5, 7).mul_(100).to(dtype)
        x[1, 2, 3] = x[2, 0, 0] = bad
        with pytest.raises(NonFiniteError) as error:
            observer.update(x, where="net.head.fc", batch=17)
        for part in ("net.head.fc", "batch 17", "2 of 105"):
            assert part in str(error.value)
        assert all(torch.equal(before[k], v) for k, v in observer.state().items())
        fresh = make_observer(name)
        with pytest.raises(NonFiniteError):
            fresh.update(x)
        assert fresh.count == 0

    def test_float64_beyond_float32_is_not_finite(self, name: str) -> None:
        with pytest.raises(NonFiniteError, match="1 of 2"):
            make_observer(name).update(torch.tensor([1.0, 1e300], dtype=torch.float64))

    @pytest.mark.parametrize(
        "x", [torch.zeros(0), torch.zeros(0, 3), torch.ones(2, dtype=torch.complex64)]
    )
    def test_no_real_number_is_an_error(self, name: str, x: torch.Tensor) -> None:
        with pytest.raises(CalibrationError, match=r"no real number.*stem"):
            make_observer(name).update(x, where="stem")

    @pytest.mark.parametrize("case", EXTREMES)
    def test_extreme_data_gives_valid_parameters(self, name: str, case: str) -> None:
        observer = seen(name, EXTREMES[case])
        for spec in SPECS:
            low, high = observer.range(spec)
            assert math.isfinite(low) and math.isfinite(high) and low <= high
            p = observer.qparams(spec)  # QParams checks: finite, positive, normal, 0.0 has a code
            assert p.qtype == spec.qtype
            assert low <= 0.0 <= high or name not in ("mse", "entropy")

    @pytest.mark.parametrize("value", [3.7, -0.3, 1e30, 1e-20])
    def test_a_constant_is_exact_within_half_a_step(self, name: str, value: float) -> None:
        x = torch.full((3, 5), value)
        for spec in (Free(UINT8), Free(INT8, symmetric=True), Free(QType(4, signed=False))):
            assert error(x, seen(name, x).qparams(spec)) <= 1e-6 * abs(value)

    def test_all_zeros_have_scale_one(self, name: str) -> None:
        p = seen(name, torch.zeros(9)).qparams(Free(UINT8))
        assert (float(p.scale), int(p.zero_point)) == (1.0, 0)

    def test_state_has_a_fixed_size_and_restores(self, name: str) -> None:
        sizes = {k: (v.shape, v.dtype) for k, v in make_observer(name).state().items()}
        observer = make_observer(name)
        for batch in batches():
            observer.update(batch)
            state = observer.state()
            assert {k: (v.shape, v.dtype) for k, v in state.items()} == sizes
            copy = make_observer(name)
            copy.load_state(state)
            assert copy.count == observer.count
            assert_same(copy, observer)
            copy.update(torch.ones(2) * 1e4)
            assert same_state(observer, merged(observer)) or name in ORDERED
        assert all(type(v) is torch.Tensor for v in observer.state().values())

    def test_a_damaged_state_is_refused(self, name: str) -> None:
        observer = seen(name, torch.randn(9))
        state = observer.state()
        key = next(k for k in state if k != "config")
        wrong = (
            {k: v for k, v in state.items() if k != key},
            {**state, "more": torch.zeros(1)},
            {**state, key: state[key].to(torch.float16)},
            {**state, key: torch.zeros(3, 3, dtype=state[key].dtype)},
        )
        for damaged in wrong:
            with pytest.raises(ArtifactError, match="not the state of"):
                observer.load_state(damaged)

    def test_specs_that_are_not_per_tensor_are_refused(self, name: str) -> None:
        with pytest.raises(PlanError, match="one scale per tensor"):
            seen(name, torch.randn(9)).qparams(Free(UINT8, granularity=PerChannel(0)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.double(),
            lambda x: x.to(memory_format=torch.channels_last),
            lambda x: x.permute(3, 1, 0, 2),
            lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
            lambda x: x.flip(2),
            lambda x: x.clone().requires_grad_(),
        ],
    )
    def test_layout_and_wider_dtype_change_nothing(
        self, name: str, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        x = torch.randn(2, 5, 6, 7)
        assert_same(seen(name, x), seen(name, change(x)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.int64])
    def test_other_dtypes_count_as_their_float32_values(
        self, name: str, dtype: torch.dtype
    ) -> None:
        x = (torch.rand(300) * 100).to(dtype)
        assert_same(seen(name, x), seen(name, x.to(torch.float32)))

    def test_booleans_and_expanded_tensors(self, name: str) -> None:
        flags = torch.tensor([True, False, True])
        assert_same(seen(name, flags), seen(name, flags.float()))
        x = torch.tensor([[1.0], [5.0]]).expand(2, 6)
        assert seen(name, x).count == 12
        assert_same(seen(name, x), seen(name, x.contiguous()))

    def test_inference_mode_and_then_not(self, name: str) -> None:
        x = torch.randn(50)
        observer = make_observer(name)
        with torch.inference_mode():
            observer.update(x)
        observer.update(x * 10)
        with torch.inference_mode():
            observer.update(x)
        assert_same(observer, seen(name, x, x * 10, x))

    def test_update_leaves_the_data_alone(self, name: str) -> None:
        x = torch.randn(4, 40)
        before = x.clone()
        seen(name, x)
        assert torch.equal(x, before)


def error(x: torch.Tensor, p: QParams) -> float:
    """Largest error of quantizing ``x``."""
    from intact.arithmetic import dequantize, quantize

    return float((dequantize(quantize(x, p), p) - x).abs().max())


@pytest.mark.parametrize("name", UNORDERED)
class TestEveryUnordered:
    """One run over all the data, in any cut and order, by any number of workers."""

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 99),
        cuts=st.lists(st.integers(1, 2000), max_size=8),
        workers=st.integers(1, 4),
    )
    def test_cut_order_and_workers_change_not_one_bit(
        self, name: str, seed: int, cuts: list[int], workers: int
    ) -> None:
        whole = torch.cat([b.flatten() for b in batches(seed)])
        mixed = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))]
        edges = sorted({0, len(mixed), *(c for c in cuts if c < len(mixed))})
        parts = [mixed[a:b] for a, b in itertools.pairwise(edges)]
        crew = [seen(name, *parts[i::workers]) for i in range(workers)]
        assert_same(merged(*crew), seen(name, whole))
        assert same_state(merged(*crew), seen(name, whole))

    @settings(max_examples=50)
    @given(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
        st.integers(0, 10**6),
    )
    def test_any_finite_float32(self, name: str, values: list[float], where: int) -> None:
        x = torch.tensor(values, dtype=torch.float32)
        at = where % len(x)
        cut = merged(*(seen(name, part) for part in (x[at:], x[:at]) if len(part)))
        assert same_state(cut, seen(name, x))
        assert_same(cut, seen(name, x))

    def test_number_of_threads_changes_nothing(self, name: str) -> None:
        x = torch.randn(300_001)
        before = torch.get_num_threads()
        try:
            found = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(seen(name, x))
                found[-1].range(SPECS[0])
        finally:
            torch.set_num_threads(before)
        assert same_state(*found)
        assert_same(*found)


def test_moving_average_is_what_it_says() -> None:
    observer = seen("moving_average", *(torch.tensor([-t, t]) for t in (10.0, 20.0, 0.0)))
    low, high = observer.range(Free(UINT8))
    expected = (10.0 * 0.9 + 20.0 * 0.1) * 0.9
    assert high == pytest.approx(expected, rel=1e-12) and low == -high
    a, b = seen("moving_average", *[torch.ones(1)] * 3), seen("moving_average", torch.ones(1) * 5)
    assert merged(a, b).range(Free(UINT8)) == (2.0, 2.0)
