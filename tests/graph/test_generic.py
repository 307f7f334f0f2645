"""Operations that are run by name: one check for graphs that were captured and graphs from a file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import ArtifactError, CaptureError
from intact.graph import Node
from intact.graph.generic import declared, problem, run_aten


def attrs(target: Any, *args: Any, index: Any = None, **kwargs: Any) -> dict[str, Any]:
    return {"target": target, "args": list(args), "kwargs": kwargs, "index": index}


REFUSED = {
    "an enum": attrs("aten.clone.default", {"input": 0}, memory_format=999),
    "a file": attrs("aten.from_file.default", "/etc/hostname"),
    "writing": attrs("aten.fill_.Scalar", {"input": 0}, 1.0),
    "chance": attrs("aten.rand_like.default", {"input": 0}),
    "a private name": attrs("aten._softmax.default", {"input": 0}, 0, False),
    "not a name": attrs(3, {"input": 0}),
    "another operand": attrs("aten.floor.default", {"input": 1}),
    "a parameter that is not there": attrs("aten.floor.default", {"param": "arg0"}),
    "a missing argument": attrs("aten.cumsum.default", {"input": 0}),
    "an argument too many": attrs("aten.floor.default", {"input": 0}, 1),
    "an index of one result": attrs("aten.floor.default", {"input": 0}, index=0),
    "no index of two results": attrs("aten.sort.default", {"input": 0}),
    "a tensor of any size": attrs("aten.arange.default", 10**12),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_alike_in_memory_and_in_a_file(name: str) -> None:
    from intact.engine.op_schema import check_node

    assert problem(REFUSED[name], 1, {}) is not None
    with pytest.raises(CaptureError):
        run_aten([torch.zeros(2, 2)], {}, REFUSED[name], {})
    with pytest.raises(ArtifactError):
        check_node(Node("y", "aten", ("x",), attrs=REFUSED[name], shape=(2, 2)))


def test_fill_is_a_function_of_its_operand() -> None:
    call = attrs("aten.fill.Scalar", {"input": 0}, 2.0)
    assert declared("aten.fill.Scalar") is not None
    assert torch.equal(run_aten([torch.zeros(3)], {}, call, {}), torch.full((3,), 2.0))


class Numbers(nn.Module):
    """Integers and numbers together."""

    def forward(self, x: Tensor) -> list[Tensor]:
        i = x.argmax(1)
        return [i + 1, 3 * i, i - 2, 5 - i, i / 2, i * 0.5, i.masked_fill(i == 1, 7), torch.where(i > 1, i, 0),
                torch.zeros_like(i), x.new_full((x.shape[0], 2), 3, dtype=torch.int64)]


def test_integers_stay_integers() -> None:
    x = torch.randn(4, 5, 3)
    fm = intact.capture(Numbers(), x)
    for ours, theirs in zip(fm(x), Numbers()(x), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
