"""What every registered kernel must do, on random bindings; a new one needs only a drawing in tests/kernels/drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intact.engine.op_schema import OPS
from intact.kernels import KERNELS, UNARY_OPS
from tests.kernels.drawn import DRAWN, MOVING, same_in_both_carriers


def test_every_kernel_is_drawn() -> None:
    assert set(DRAWN) == set(KERNELS)


def test_every_kernel_has_a_schema() -> None:
    """Without one, a model that has it could be saved and not be loaded."""
    assert set(KERNELS) <= set(OPS)


@pytest.mark.parametrize("op", sorted(KERNELS))
def test_the_carriers_agree(op: str) -> None:
    @settings(max_examples=8 if op in UNARY_OPS else 40)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        binding, xs, batch = DRAWN[op](data.draw)
        before = [x.clone() for x in xs]
        y = same_in_both_carriers(binding, xs, batch)
        KERNELS[op](binding)(xs, {"batch": batch})
        assert all(torch.equal(x, b) for x, b in zip(xs, before, strict=True))  # operands have other readers
        assert torch.equal(KERNELS[op](binding)([x.clone() for x in xs], {"batch": batch}), y)
        if op in MOVING and op not in ("max_pool", "pad"):
            assert set(y.unique().tolist()) <= set(xs[0].unique().tolist())

    run()


@pytest.mark.parametrize("op", sorted(KERNELS.keys() - {"permute"}))  # which moves the batch elsewhere
def test_a_sample_does_not_depend_on_the_others(op: str) -> None:
    @settings(max_examples=4 if op in UNARY_OPS else 15)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        binding, xs, batch = DRAWN[op](data.draw)
        whole = KERNELS[op](binding)([x.clone() for x in xs], {"batch": batch})
        if any(x.shape[0] != batch or x.ndim != max(v.ndim for v in xs) for x in xs) or whole.shape[0] % batch:
            return  # an operand without a batch
        rows = whole.shape[0] // batch
        for i in range(batch):
            alone = KERNELS[op](binding)([x[i : i + 1].clone() for x in xs], {"batch": 1})
            assert torch.equal(alone, whole[i * rows : (i + 1) * rows])

    run()
