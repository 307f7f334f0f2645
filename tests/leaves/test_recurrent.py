"""The recurrent leaves: float mode equals torch for every flag; codes stay close; packed sequences and cells."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import intact
from intact.leaves import product, recurrent
from intact.leaves.how import Float16, LeafHow
from intact.leaves.swap import swapped
from intact.leaves.weight import QWeight

TYPES = (nn.LSTM, nn.GRU, nn.RNN)


class FloatWeight(QWeight):
    """The float weight itself: what remains is the recurrence."""

    def without_columns(self) -> torch.Tensor:
        return self.codes


def exact(weight: torch.Tensor, how: LeafHow, where: str = "", *, product: bool = False) -> QWeight:
    return FloatWeight(how, tuple(weight.shape), weight.detach().clone())


def float_mode(net: nn.Module) -> nn.Module:
    return swapped(net, {"": Float16()}, exact)


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value if v is not None for t in flat(v)]


def close(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    return all(x.shape == y.shape and float((x - y).detach().abs().max()) <= tolerance
               for x, y in zip(flat(a), flat(b), strict=True))


FLAGS = list(itertools.product(TYPES, (1, 3), (False, True), (True, False), (False, True), (0, 3)))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("kind", "layers", "bidirectional", "bias", "batch_first", "proj"), FLAGS)
def test_float_mode_equals_torch_for_every_flag(kind, layers, bidirectional, bias, batch_first, proj) -> None:  # type: ignore[no-untyped-def]
    if proj and kind is not nn.LSTM:
        pytest.skip("only an LSTM has projections")
    extra = {"proj_size": proj} if proj else {}
    net = kind(4, 5, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
               dropout=0.5 if layers > 1 else 0.0, **extra).eval()
    ours = float_mode(net)
    x, cells, out = torch.randn(3, 3, 4), layers * (2 if bidirectional else 1), proj or 5
    h0 = torch.randn(cells, 3, out)
    hx = (h0, torch.randn(cells, 3, 5)) if kind is nn.LSTM else h0
    with torch.no_grad():
        assert close(ours(x), net(x)) and close(ours(x, hx), net(x, hx))
        one = tuple(s[:, 0] for s in hx) if kind is nn.LSTM else h0[:, 0]
        assert close(ours(x[0], one), net(x[0], one)) and close(ours(x[0]), net(x[0]))
        packed = pack_padded_sequence(x, [2, 3, 1], batch_first=batch_first, enforce_sorted=False)
        mine, theirs = ours(packed, hx), net(packed, hx)
        assert close(mine[1], theirs[1])
        assert close(pad_packed_sequence(mine[0])[0], pad_packed_sequence(theirs[0])[0])
        assert close(ours(packed)[1], net(packed)[1])


def test_relu_and_sorted_packed_sequences() -> None:
    net = nn.RNN(4, 5, 2, nonlinearity="relu", bidirectional=True).eval()
    x = pack_padded_sequence(torch.randn(6, 3, 4), [6, 4, 1])
    mine, theirs = float_mode(net)(x), net(x)
    assert torch.equal(mine[0].batch_sizes, theirs[0].batch_sizes) and mine[0].sorted_indices is None
    assert close(mine[0].data, theirs[0].data) and close(mine[1], theirs[1])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_float_cells_equal_torch(kind: type[nn.Module], bias: bool) -> None:
    net = kind(4, 5, bias=bias)
    ours, x, h = float_mode(net), torch.randn(3, 4), torch.randn(3, 5)
    hx = (h, torch.randn(3, 5)) if kind is nn.LSTMCell else h
    one = tuple(s[0] for s in hx) if kind is nn.LSTMCell else h[0]
    assert close(ours(x), net(x)) and close(ours(x, hx), net(x, hx)) and close(ours(x[0], one), net(x[0], one))


@pytest.mark.parametrize("kind", TYPES)
def test_codes_are_close_and_dropout_is_for_training_only(kind: type[nn.Module]) -> None:
    net = kind(32, 48, 2, dropout=0.5, bidirectional=True)
    q, x = intact.quantize_dynamic(net.eval()), torch.randn(9, 4, 32)
    assert torch.equal(q(x)[0], q(x)[0])
    assert float(((q(x)[0] - net(x)[0]).pow(2).mean() / net(x)[0].pow(2).mean()).detach()) < 1e-3
    q.train()
    assert not torch.equal(q(x)[0], q(x)[0])


@pytest.mark.parametrize(("x", "hx", "words"), [
    (torch.zeros(0, 2, 4), None, "no steps"),
    (torch.zeros(3, 2, 5), None, "does not fit"),
    (torch.zeros(3, 2, 4), (torch.zeros(1, 3, 5), torch.zeros(1, 2, 5)), "initial state"),
])
def test_bad_sequences(x: torch.Tensor, hx: Any, words: str) -> None:
    with pytest.raises(intact.IntactError, match=words):
        intact.quantize_dynamic(nn.LSTM(4, 5))(x, hx)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("features", "size", "bias"), [(5, 8, True), (16, 36, False), (3, 64, True), (3, 192, True)])
@pytest.mark.parametrize("spec", [None, {"activation": "per_tensor"}])
def test_all_steps_at_once_give_the_numbers_of_single_steps(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], bidirectional: bool, features: int, size: int, bias: bool,
    spec: Any,
) -> None:
    q = intact.quantize_dynamic(kind(features, size, 2, bias=bias, bidirectional=bidirectional), spec)
    x = torch.randn(7, 5, features)
    packed = pack_padded_sequence(x, [2, 7, 1, 7, 3], enforce_sorted=False)
    h0 = torch.randn(4 if bidirectional else 2, 5, size)
    hx = (h0, torch.randn_like(h0)) if kind is nn.LSTM else h0
    given = [t.clone() for t in flat(hx)]
    at_once = [flat(q(x)), flat(q(x[:, :1])), flat(q(x, hx)), flat(q(packed, hx)[0].data), flat(q(packed, hx)[1])]
    assert all(map(torch.equal, flat(hx), given))
    assert recurrent.loops_are_exact()
    monkeypatch.setattr(recurrent, "loops_are_exact", lambda: False)
    single = [flat(q(x)), flat(q(x[:, :1])), flat(q(x, hx)), flat(q(packed, hx)[0].data), flat(q(packed, hx)[1])]
    assert all(torch.equal(a, b) for x, y in zip(at_once, single, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_fast_paths_give_the_numbers_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], bias: bool
) -> None:
    q, x = intact.quantize_dynamic(kind(24, 32, 2, bias=bias, bidirectional=True)), torch.randn(6, 3, 24)
    fast = flat(q(x))
    monkeypatch.setattr(recurrent, "loops_are_exact", lambda: False)
    monkeypatch.setattr(product, "_fused_is_exact", lambda: False)
    monkeypatch.setattr(product, "packed_matmul_is_exact", lambda: False)
    assert all(map(torch.equal, fast, flat(q(x))))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_makes_all_so_that_shares_its_scale(kind: type[nn.Module], bad: float) -> None:
    q, x = intact.quantize_dynamic(kind(4, 8), {"activation": "per_tensor"}), torch.randn(6, 2, 4)
    x[3, 1, 2] = bad
    assert not bool(torch.isfinite(q(x)[0]).any())


def test_what_is_not_finite_stays_so_from_its_step_on() -> None:
    q, x = intact.quantize_dynamic(nn.LSTM(4, 8)), torch.randn(6, 2, 4)
    x[3, 1, 2] = torch.nan
    y = q(x)[0]
    assert bool(torch.isfinite(y[:, 0]).all()) and bool(torch.isfinite(y[:3]).all())
    assert not bool(torch.isfinite(y[3:, 1]).any())
    state = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
    state[1][0, 0, 3] = torch.inf  # a cell may be infinite: its tanh is 1
    assert bool(torch.isfinite(q(torch.randn(6, 2, 4), state)[0]).all())
    state[1][0, 0, 3] = torch.nan
    assert not bool(torch.isfinite(q(torch.randn(6, 2, 4), state)[0][1:, 0]).any())
