"""Fixed point in float32: whatever is said to be proven holds for every accumulator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intact.arithmetic import (
    Arithmetic,
    Requantize,
    Rounding,
    multiplier,
    quick_multiplier,
    requantize,
    requantize_quickly,
)

ONE = torch.ones(())
LIMIT = 2**18 - 1


@given(
    st.lists(st.floats(-17, 3).map(lambda e: 2.0**e), min_size=1, max_size=4), st.integers(0, 2**24 - 1),
    st.sampled_from([(-128, 127), (0, 255), (-8, 7), (0, 200)]), st.integers(-128, 255), st.sampled_from(Rounding),
    st.sampled_from([Requantize.FIXED_POINT, Requantize.SHIFT]), st.booleans(), st.integers(0, 2**31),
)
def test_every_code_of_every_channel(reals, bound, ends, zero, rounding, way, inside, seed):
    arithmetic = Arithmetic("a", rounding=rounding, requantize=way, zero_inside=inside)
    real = torch.tensor(reals, dtype=torch.float64)
    real = 2.0 ** real.log2().round() if way is Requantize.SHIFT else real
    by = multiplier(real, ONE, ONE, arithmetic, float(bound))
    quick = quick_multiplier(by, zero, *ends, arithmetic, float(bound))
    if quick is None:
        return
    # all that are small, the extremes, all near ties, and some of the others
    near = ((torch.arange(ends[0], ends[1] + 1) - zero - 0.5) / real[:, None]).flatten().round().clamp(-bound, bound)
    some = torch.randint(-bound, bound + 1, (3000,), generator=torch.Generator().manual_seed(seed))
    small = torch.arange(-min(bound, 3000), min(bound, 3000) + 1)
    acc = torch.cat([near - 1, near, near + 1, some, small, torch.tensor([-bound, bound])]).clamp(-bound, bound)
    acc = acc.to(torch.float32)[:, None].repeat(1, len(reals))
    wanted = requantize(acc.to(torch.int64), by, zero, *ends, arithmetic)
    assert torch.equal(requantize_quickly(acc.clone(), quick, by, zero, *ends, arithmetic, 1), wanted)
    assert torch.equal(requantize_quickly(acc.t().clone(), quick, by, zero, *ends, arithmetic, 0), wanted.t())


def test_channels_that_float32_cannot_do_take_the_long_way():
    """Steep ones it can; where a code has thousands of accumulators, some threshold lies too near an integer."""
    arithmetic = Arithmetic("a", requantize=Requantize.FIXED_POINT)
    real = torch.cat([torch.linspace(0.01, 0.02, 30), torch.linspace(0.0004, 0.0006, 30)]).double()
    by = multiplier(real, ONE, ONE, arithmetic, LIMIT)
    quick = quick_multiplier(by, 3, -128, 127, arithmetic, LIMIT)
    assert quick is not None and 0 < len(quick.others) <= 30
    acc = torch.arange(-LIMIT, LIMIT + 1).float()
    for channel in quick.others.tolist():  # rightly so: some accumulator would get another code
        mine = acc.mul(real[channel].float()).round_().add_(3).clamp_(-128, 127)
        assert not torch.equal(mine, requantize(acc.clone(), multiplier(
            real[channel], ONE, ONE, arithmetic, LIMIT), 3, -128, 127, arithmetic))
    both = acc[:, None].repeat(1, len(real))
    wanted = requantize(both.to(torch.int32), by, 3, -128, 127, arithmetic)
    assert torch.equal(requantize_quickly(both, quick, by, 3, -128, 127, arithmetic, 1), wanted)


@pytest.mark.parametrize("way", [Requantize.FLOAT, Requantize.FIXED_POINT_TWICE, Requantize.FIXED_POINT_16])
def test_not_for_other_ways(way: Requantize):
    arithmetic = Arithmetic("a", requantize=way)
    assert quick_multiplier(multiplier(torch.tensor(0.01), ONE, ONE, arithmetic), 0, -128, 127, arithmetic, 1e4) is None


def test_not_beyond_float32_nor_for_16_bits():
    arithmetic = Arithmetic("a", requantize=Requantize.FIXED_POINT)
    by = multiplier(torch.tensor(0.01), ONE, ONE, arithmetic)
    assert quick_multiplier(by, 0, -128, 127, arithmetic, 2.0**24) is None
    assert quick_multiplier(by, 0, -32768, 32767, arithmetic, 1e4) is None
