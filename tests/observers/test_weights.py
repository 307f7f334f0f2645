from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intact.arithmetic import quantize_weight
from intact.errors import NonFiniteError, PlanError
from intact.observers import weight_qparams
from intact.types import INT8, INT8_NARROW, UINT8, PerChannel, PerGroup, PerTensor, PerToken, QType

INT4 = QType(4, signed=True, narrow=True)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("qtype", [INT8, UINT8, INT4])
def test_each_channel_is_as_if_alone(
    axis: int, method: str, symmetric: bool, qtype: QType
) -> None:
    w = torch.randn(4, 3, 5, 2) * torch.logspace(-3, 3, 4)[:, None, None, None]
    p = weight_qparams(w, qtype, PerChannel(axis), method=method, symmetric=symmetric)
    assert p.scale.shape == (w.shape[axis],)
    for i in range(w.shape[axis]):
        alone = weight_qparams(
            w.select(axis, i), qtype, PerTensor(), method=method, symmetric=symmetric
        )
        assert float(alone.scale) == float(p.scale[i])
        assert int(alone.zero_point) == int(p.zero_point[i])


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=8), st.booleans(),
    st.sampled_from(["minmax", "mse"]), st.integers(2, 16),
)
def test_any_magnitude_gives_valid_scales(
    exponents: list[float], symmetric: bool, method: str, bits: int
) -> None:
    torch.manual_seed(len(exponents))
    w = torch.randn(len(exponents), 7) * torch.tensor([10.0**e for e in exponents])[:, None]
    p = weight_qparams(
        w, QType(bits, signed=True), PerChannel(0), method=method, symmetric=symmetric
    )
    assert bool((p.scale >= 2.0**-100).all())  # QParams refuses what is not finite and normal
    if method == "minmax":
        off = (quantize_weight(w, p).dequantize() - w).abs()
        assert bool((off <= 0.5001 * p.scale[:, None]).all())


def test_a_channel_of_zeros_has_scale_one() -> None:
    w = torch.randn(3, 4)
    w[1] = 0.0
    for method in ("minmax", "mse"):
        p = weight_qparams(w, INT8, PerChannel(0), method=method)
        assert float(p.scale[1]) == 1.0 and int(p.zero_point[1]) == 0


def error(w: torch.Tensor, p: object) -> torch.Tensor:
    return (quantize_weight(w, p).dequantize() - w).double().square().sum(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_near_the_best_factor_of_a_fine_grid(bits: int, symmetric: bool) -> None:
    w = torch.randn(6, 3000)
    w[1], w[2] = torch.rand(3000), w[2].pow(3)
    w[3, 0] = 12.0
    qtype = QType(bits, signed=True, narrow=symmetric)
    found = error(w, weight_qparams(w, qtype, PerChannel(0), method="mse", symmetric=symmetric))
    plain = error(w, weight_qparams(w, qtype, PerChannel(0), symmetric=symmetric))
    best = plain
    for factor in torch.linspace(0.1, 1.0, 181):
        clipped = w.clamp(w.amin(1, True) * factor, w.amax(1, True) * factor)
        p = weight_qparams(clipped, qtype, PerChannel(0), symmetric=symmetric)
        best = torch.minimum(best, error(w, p))
    assert bool((found <= plain * (1 + 1e-6)).all())
    assert bool((found <= best * 1.06).all()), found / best


def test_a_long_row_is_summed_in_pieces() -> None:
    w = torch.randn(1, 100_003)
    p = weight_qparams(w, INT4, PerTensor(), method="mse")
    q = weight_qparams(w.reshape(-1), INT4, PerChannel(-1).__class__(0), method="minmax")
    assert q.scale.shape == (100_003,)
    assert float(error(w, p)) < 0.7 * float(error(w, weight_qparams(w, INT4, PerTensor())))


def test_threads_do_not_matter() -> None:
    w = torch.randn(3, 70_001)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(weight_qparams(w, INT4, PerChannel(0), method="mse").scale)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_dtypes_and_gradients() -> None:
    w = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.bfloat16))
    p = weight_qparams(w, INT8_NARROW, PerChannel(0))
    assert p.same_as(weight_qparams(w.detach().float(), INT8_NARROW, PerChannel(0)))
    assert not p.scale.requires_grad


def test_what_is_refused() -> None:
    w = torch.randn(3, 4)
    for granularity in (PerGroup(1, 2), PerToken(), PerChannel(2), PerChannel(-3)):
        with pytest.raises(PlanError, match=r"conv1"):
            weight_qparams(w, INT8, granularity, where="conv1")
    with pytest.raises(PlanError, match="method"):
        weight_qparams(w, INT8, PerTensor(), method="best")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="no real number"):
        weight_qparams(torch.zeros(0, 3), INT8, PerChannel(0))
    w[1, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"conv1.*1 of 12"):
        weight_qparams(w, INT8, PerChannel(0), where="conv1")
