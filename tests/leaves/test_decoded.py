"""Products with weights that are made real part by part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import intact
from intact.leaves import decoded
from intact.leaves.decoded import decoded_product
from intact.leaves.how import Float16, LeafHow, WeightOnly
from intact.leaves.weight import encode
from intact.types import PerChannel, PerGroup

HOWS: list[LeafHow] = [Float16(), *(
    WeightOnly(bits, grid, symmetric) for bits in (4, 8) for grid in (PerChannel(0), PerGroup(1, 3), PerGroup(1, 8))
    for symmetric in (True, False))]


@given(m=st.integers(1, 20), groups=st.integers(1, 5), n=st.integers(1, 40), part=st.sampled_from([1, 64, 1 << 18]),
       seed=st.integers(0, 99), how=st.sampled_from(HOWS))
def test_parts_give_the_product(m: int, groups: int, n: int, part: int, seed: int, how: LeafHow) -> None:
    g = torch.Generator().manual_seed(seed)
    k = groups * (how.weight.size if not isinstance(how, Float16) and isinstance(how.weight, PerGroup) else 7)
    w = encode(torch.randn(n, k, generator=g), how)
    x, real = torch.randn(m, k, generator=g), w.without_columns()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "_PART", part)
        y, decoded_weight = decoded_product(x, w), decoded_product(torch.eye(k), w).t()
    exact = x.to(torch.float64) @ real.to(torch.float64).t()
    # zero points are taken off the sums: those are of codes up to 15 (255) times the scale
    most = x.abs().sum(1, keepdim=True) * real.abs().amax(1).clamp(min=1e-30)
    assert bool(((y - exact).abs() <= 1e-5 * most + 1e-30).all())
    assert torch.equal(decoded_weight, real)  # no rounding: scales of groups have 8 bits, others come last


@pytest.mark.parametrize("make", [lambda n: intact.quantize_weights(n, group=16),
                                  lambda n: intact.quantize_dynamic(n, dtype=torch.float16)])
def test_gradients_flow_to_inputs_and_biases(make: object) -> None:
    assert callable(make)
    q = make(torch.nn.Sequential(torch.nn.Linear(32, 5)))
    x = torch.randn(3, 32, requires_grad=True)
    q(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, q[0].weight.sum(0).expand(3, 32), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(q(x), torch.nn.functional.linear(x, q[0].weight, q[0].bias), atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")  # torch.func.jvp calls it
@pytest.mark.parametrize("spec", [4, 8, "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transforms_of_functions_go_through(spec: int | str, dtype: torch.dtype) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 32)).to(dtype)
    q = intact.quantize_dynamic(net, dtype=torch.float16) if spec == "float16" else intact.quantize_weights(
        net, {torch.nn.Linear: spec})
    x = torch.randn(5, 64).to(dtype)

    def real(v: torch.Tensor) -> torch.Tensor:
        w = q[0].qweight
        return torch.nn.functional.linear(w.balanced(v).float(), w.without_columns(), q[0].bias.float()).to(dtype)

    near = 1e-5 if dtype == torch.float32 else 2.0**-6  # the order of sums, or two roundings to bfloat16
    for found, wanted in (
        (torch.func.vmap(q)(x), real(x)),
        tuple(torch.func.jvp(f, (x,), (x,))[1] for f in (q, real)),
        tuple(torch.func.grad(lambda v, f=f: f(v).sum())(x) for f in (q, real)),
    ):
        torch.testing.assert_close(found, wanted, rtol=near, atol=near)
