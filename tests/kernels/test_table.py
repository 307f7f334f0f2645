"""Rows of a table of codes are the rows of the dequantized table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intact.arithmetic import dequantize
from intact.kernels.table import rows
from intact.types import INT8, UINT8, PerChannel, PerTensor, QParams, QTensor


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_rows_are_those_of_the_whole_table(seed: int, per_row: bool, affine: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    kind = UINT8 if affine else INT8
    codes = torch.randint(kind.qmin, kind.qmax + 1, (11, 3), generator=generator).to(kind.storage)
    shape = (11,) if per_row else ()
    scale = torch.rand(shape, generator=generator) + 1e-3
    zero = torch.randint(0, 200, shape, generator=generator, dtype=torch.int32) * int(affine)
    q = QParams(scale, zero, kind, PerChannel(0) if per_row else PerTensor())
    ids = torch.randint(0, 11, (2, 5), generator=generator)
    assert torch.equal(rows(QTensor(codes, q), ids), dequantize(codes, q)[ids])


def test_a_row_that_is_not_there() -> None:
    q = QParams(torch.ones(2), torch.zeros(2, dtype=torch.int32), INT8, PerChannel(0))
    with pytest.raises(IndexError):
        rows(QTensor(torch.zeros(2, 3, dtype=torch.int8), q), torch.tensor([2]))
