"""Columns of weights divided by their sizes: what is rounded, stored, tied, moved and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import intact
from intact.errors import PlanError
from intact.leaves.how import Dynamic, LeafHow, WeightOnly
from intact.leaves.product import product
from intact.leaves.weight import QWeight, column_sizes, encode
from intact.types import PerChannel, PerGroup

HOWS: list[LeafHow] = [
    WeightOnly(4, PerGroup(1, 32)), WeightOnly(8, PerChannel(0), symmetric=True), Dynamic(balance=True),
    Dynamic(PerGroup(1, 32), balance=True)]


def uneven(rows: int = 48, columns: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of which some features are large, and weights that are small there, as training leaves them."""
    g = torch.Generator().manual_seed(3)
    sizes = torch.ones(columns)
    sizes[::16] = 20.0
    return torch.randn(200, columns, generator=g) * sizes, torch.randn(rows, columns, generator=g) / sizes


def error(y: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((y - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_is_closer_where_features_are_uneven(how: LeafHow) -> None:
    x, w = uneven()
    wanted = x @ w.T
    assert error(product(x, encode(w, how, product=True)), wanted) < 0.7 * error(product(x, encode(w, how)), wanted)


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_is_the_product_with_scaled_inputs(how: LeafHow) -> None:
    x, w = uneven()
    q = encode(w, how, product=True)
    assert q.columns is not None and float(q.columns.amax()) == 1.0
    plain = QWeight(how, q.shape, q.codes, q.scale, q.zero_point)
    assert torch.equal(product(x, q), product(x * q.columns, plain))
    assert torch.equal(q.dequantize(), plain.dequantize() * q.columns)
    assert torch.equal(q.rows(torch.tensor([5, 0])), q.dequantize()[[5, 0]])
    half = product(x.half(), q)
    assert half.dtype == torch.float16 and torch.equal(half, product(x.half().float(), q).half())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-38, 38), st.integers(0, 2**31))
def test_sizes_are_between_0_and_1(rows: int, columns: int, exponent: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g).clamp(-3, 3) * 10.0**exponent
    w = w * (torch.rand(columns, generator=g) < 0.7)
    for power in (0.5, 1.0):
        sizes = column_sizes(w, power)
        assert bool((sizes > 0).all()) and bool((sizes <= 1).all())
        assert bool(torch.isfinite(w / sizes).all())
    assert encode(w, Dynamic(balance=True), product=True).problem() is None


def test_none_where_nothing_is_balanced() -> None:
    names = {"linear": nn.Linear(64, 8), "lstm": nn.LSTM(64, 64), "table": nn.Embedding(10, 64)}
    q = intact.quantize_weights(nn.ModuleDict(names), bits=4, group=32)
    assert [n for n in q.state_dict() if n.endswith("columns")] == ["linear.qweight.columns"]
    q = intact.quantize_weights(nn.ModuleDict(names), bits=4, group=32, balance=False)
    assert not [n for n in q.state_dict() if n.endswith("columns")]


def test_a_weight_that_is_also_a_table_stays_one_and_as_it_is() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.table = nn.Linear(64, 10, bias=False), nn.Embedding(10, 64)
            self.head.weight = self.table.weight

    q = intact.quantize_weights(Tied(), bits=8, group=None)
    assert q.head.qweight is q.table.qweight and q.head.qweight.columns is None


def test_spec_and_arguments() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    q = intact.quantize_dynamic(net, {"0": {"balance": True}, "1": "int8"})
    assert q[0].how == Dynamic(balance=True) and q[1].how == Dynamic()
    q = intact.quantize_dynamic(net, {"0": {"weight": "int8"}, "1": {"balance": False}}, balance=True)
    assert q[0].how == Dynamic(balance=True) and q[1].how == Dynamic()
    with pytest.raises(PlanError, match="neither True nor False"):
        intact.quantize_dynamic(net, {"0": {"balance": "yes"}})
    assert intact.quantize_dynamic(net, {"weight": "int8", "balance": True})[1].how == Dynamic(balance=True)
    for wanted in (True, False):
        q = intact.quantize_dynamic(net, {"0": {"activation": torch.float32, "balance": wanted}})
        assert q[0].how == WeightOnly(8, PerChannel(0), symmetric=True, balance=wanted)
    with pytest.raises(PlanError, match="only int8 layers are balanced"):
        intact.quantize_dynamic(net, dtype=torch.float16, balance=True)
    with pytest.raises(PlanError, match="only int8 layers are balanced"):
        intact.quantize_dynamic(net, {"0": {"weight": torch.float16, "balance": True}})


@pytest.mark.parametrize("dynamic", [True, False])
def test_stored_moved_captured_and_exported(dynamic: bool, tmp_path: Path) -> None:
    x, w = uneven(64, 64)
    net = nn.Sequential(nn.Linear(64, 64), nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)).eval()
    with torch.no_grad():
        net[0].weight.copy_(w)
    q = intact.quantize_dynamic(net, balance=True) if dynamic else intact.quantize_weights(net, bits=4, group=32)
    x = x.reshape(10, 20, 64)
    again = intact.load(intact.save(q, tmp_path / "net.safetensors"), model=net)
    with torch.no_grad():
        assert torch.equal(again(x), q(x))
    columns = q[0].qweight.columns.clone()
    assert torch.equal(q.half().float()[0].qweight.columns, columns)
    certificate = intact.export(again, tmp_path / "net.onnx", example_inputs=x)
    assert certificate.codes_differ == 0 and certificate.codes_compared > 0 and certificate.not_fused == ()


def test_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    q = intact.quantize_weights(nn.Linear(64, 8), bits=4, group=32)
    q.qweight.columns[3] = 0.0
    with pytest.raises(intact.IntactError, match="between 0 and 1"):
        intact.save(q, tmp_path / "net.safetensors")


def test_gradients_flow_to_inputs() -> None:
    x, w = uneven()
    q, x = encode(w, WeightOnly(4, PerGroup(1, 32)), product=True), x.requires_grad_()
    product(x, q).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, q.dequantize().sum(0).expand_as(x), rtol=1e-5, atol=1e-6)
