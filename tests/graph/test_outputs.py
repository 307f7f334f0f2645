"""What a model may return besides tensors: caches, data classes, objects of its own."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import CaptureError
from intact.graph.outputs import plain_result

Pair = namedtuple("Pair", "first, second")


class Cache:
    """Holds tensors, and is none."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


@dataclass
class Result:
    """As a model may return it."""

    scores: Tensor
    cache: Any = None


class Net(nn.Module):
    """Its results are made by a function."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


X = torch.randn(6, 4)


@pytest.mark.parametrize(("wrap", "place"), [
    (lambda y: {"scores": y, "cache": Cache(y)}, "cache"),
    (lambda y: Result(y, Cache(y)), "cache"),
    (lambda y: (y, [1, Cache(y)]), "[1][1]"),
    (lambda y: Pair(y, Cache(y)), "[1]"),
], ids=["dict", "data class", "tuple", "named tuple"])
def test_what_holds_no_plain_tensors_is_none_and_is_said(wrap: Any, place: str) -> None:
    net = Net(wrap)
    q = intact.quantize(net, [X])
    assert f"the output '{place}' is None: it is a Cache" in str(q.plan)
    found = q(X)
    first = found["scores"] if isinstance(found, dict) else found[0]
    assert torch.allclose(first, net.layer(X), atol=0.1) and not net._forward_hooks
    assert "Cache" not in str(intact.quantize(Net(lambda y: {"scores": y}), [X]).plan)


def test_a_data_class_is_a_dict(tmp_path: Path) -> None:
    q = intact.quantize(Net(Result), [X])
    assert q(X).keys() == {"scores", "cache"} and q(X)["cache"] is None
    small = intact.quantize_dynamic(Net(lambda y: Result(y, Cache(y))))
    assert intact.export(small, tmp_path / "net.onnx", example_inputs=X).codes_differ == 0


def test_without_a_tensor_there_is_nothing_to_capture() -> None:
    with pytest.raises(CaptureError, match="the model returns no tensor"):
        intact.capture(Net(Cache), X)


def test_plain_results_are_the_same_object() -> None:
    result = {"y": X, "n": (1, None, "text")}
    assert plain_result(result) is result
