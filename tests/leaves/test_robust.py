"""Models and inputs as users have them: half precision, empty batches, hooks, wrong shapes, huge numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import intact
from intact import IntactError, PlanError
from intact.graph.tree import first_tensor
from intact.leaves.how import Dynamic, Float16, LeafHow, WeightOnly
from intact.types import PerChannel, PerGroup, PerTensor

WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "int8": lambda n: intact.quantize_dynamic(n, {nn.Module}),
    "float16": lambda n: intact.quantize_dynamic(n, {nn.Module}, torch.float16),
    "int4": lambda n: intact.quantize_weights(n, {nn.Module}, group=8),
}


class Layers(nn.Module):
    """Every kind of leaf behind float layers that insist on their own dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bag = nn.Embedding(9, 8), nn.EmbeddingBag(9, 8, mode="sum")
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.lstm, self.cell = nn.LSTM(8, 8, bidirectional=True), nn.GRUCell(16, 8)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        weights = torch.ones(index.shape, dtype=self.norm.weight.dtype)
        x = self.norm(self.table(index) + self.bag(index, per_sample_weights=weights)[:, None])
        x = self.norm(self.fc(x) + self.conv(x.transpose(1, 2)).transpose(1, 2))
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.cell(self.lstm(x)[0][:, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("way", WAYS)
def test_models_of_other_dtypes(way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, index = Layers(), torch.randint(0, 9, (3, 5))
    plain = net(index).detach()
    moved, cast = WAYS[way](net).to(dtype), WAYS[way](copy.deepcopy(net).to(dtype))
    for q in (moved, cast):
        y = q(index).detach()
        assert y.dtype == dtype and q.fc.weight.dtype == dtype
        assert float((y - plain).std() / plain.std()) < (0.5 if way == "int4" else 0.1)
    kept = WAYS[way](net).state_dict()
    for name, value in moved.state_dict().items():  # codes and scales are what they were
        assert "qweight" not in name or torch.equal(value, kept[name])
    again = intact.load(intact.save(moved, tmp_path / "net"), model=copy.deepcopy(net).to(dtype))
    assert torch.equal(again(index), moved(index))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_empty_batches(kind: type[nn.Module]) -> None:
    net, x = kind(4, 6, 2, bidirectional=True), torch.zeros(3, 0, 4)
    (y, state), (want, last) = intact.quantize_dynamic(net)(x), net(x)
    assert y.shape == want.shape
    pairs = zip(state, last, strict=True) if isinstance(last, tuple) else [(state, last)]
    assert all(a.shape == b.shape for a, b in pairs)
    with pytest.raises(IntactError, match="no steps"):
        intact.quantize_dynamic(net)(torch.zeros(0, 2, 4))


def attend(**options: Any) -> Callable[[], Any]:
    x = torch.randn(2, 3, 8)
    return lambda: intact.quantize_dynamic(nn.MultiheadAttention(8, 2, batch_first=True))(x, x, x, **options)


@pytest.mark.parametrize("call", [
    lambda: intact.quantize_dynamic(nn.Linear(8, 4))(torch.ones(2, 7)),
    lambda: intact.quantize_dynamic(nn.Linear(8, 4))(torch.ones(2, 8, dtype=torch.long)),
    lambda: intact.quantize_weights(nn.Linear(8, 4), group=8)(torch.ones(2, 8, dtype=torch.complex64)),
    lambda: intact.quantize_dynamic(nn.Conv1d(8, 4, 1), {nn.Conv1d})(torch.ones(2, 7, 3)),
    lambda: intact.quantize_dynamic(nn.Conv1d(8, 4, 1), {nn.Conv1d})(torch.ones(8)),
    lambda: intact.quantize_dynamic(nn.GRUCell(8, 4))(torch.ones(2, 7)),
    lambda: intact.quantize_dynamic(nn.GRUCell(8, 4))(torch.ones(2, 2, 8)),
    lambda: intact.quantize_dynamic(nn.GRUCell(8, 4))(torch.ones(2, 8), torch.ones(1, 4)),
    lambda: intact.quantize_dynamic(nn.LSTMCell(8, 4))(torch.ones(2, 8), (torch.ones(2, 4), torch.ones(2, 5))),
    attend(attn_mask=torch.zeros(1, 3)), attend(attn_mask=torch.zeros(3, 3, dtype=torch.long)),
    attend(attn_mask=torch.zeros(2, 3, 3)), attend(key_padding_mask=torch.zeros(3, 2)), attend(is_causal=True),
], ids=range(14))
def test_inputs_that_do_not_fit_are_named(call: Callable[[], Any]) -> None:
    with pytest.raises(IntactError, match=r"fit|missing"):
        call()


@pytest.mark.parametrize("index", [torch.tensor([-1]), torch.tensor([9]), torch.ones(9, dtype=torch.uint8),
                                   torch.ones(9, dtype=torch.bool)])
def test_what_is_no_index_is_refused_as_in_torch(index: torch.Tensor) -> None:
    for net in (nn.Embedding(9, 8), nn.EmbeddingBag(9, 8)):
        for q in (net, intact.quantize_dynamic(net)):
            with pytest.raises((IndexError, RuntimeError)):
                q(index if isinstance(net, nn.Embedding) else index[None])


def pruned() -> nn.Module:
    net = nn.Linear(16, 16)
    prune.l1_unstructured(net, "weight", 0.5)
    return net


def hooked() -> nn.Module:
    net = nn.Linear(8, 8)
    w = net._parameters.pop("weight")
    net.weight = w.detach()
    return net


def old_weight_norm() -> nn.Module:
    return torch.nn.utils.weight_norm(nn.LSTM(16, 16), "weight_hh_l0")


@pytest.mark.parametrize(("make", "words"), [
    (lambda: nn.LazyLinear(4), "no values yet"), (lambda: nn.Linear(4, 4, device="meta"), "no values yet"),
    (hooked, "a hook that is not known")])
def test_weights_that_are_not_there_are_refused(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        intact.quantize_dynamic(nn.Sequential(make()))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "pruned": pruned, "old weight norm of one weight": old_weight_norm,
    "old weight norm": lambda: torch.nn.utils.weight_norm(nn.Linear(16, 16)),
    "old spectral norm": lambda: torch.nn.utils.spectral_norm(nn.Linear(16, 16)),
    "both": lambda: prune.l1_unstructured(torch.nn.utils.weight_norm(nn.Linear(16, 16)), "bias", 0.5),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(16, 16)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 16)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.GRUCell(16, 16), "weight_hh"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NORMS)
def test_weights_that_are_made_at_every_call_are_quantized_as_they_are(name: str, tmp_path: Path) -> None:
    net, x = nn.Sequential(NORMS[name]()).eval(), torch.randn(4, 16)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)  # what a hook has made before is out of date
    before = {k: v.clone() for k, v in net.state_dict().items()}
    q, w = intact.quantize_dynamic(net), intact.quantize_weights(net, bits=8, group=16)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and len(before) == len(net.state_dict())
    real = first_tensor(net(x)).detach()
    for other in (q, w):
        mine = first_tensor(other(x)).detach()
        assert float((mine - real).std() / real.std()) < 0.02
        again = first_tensor(intact.load(intact.save(other, tmp_path / "net"), model=net)(x))
        assert torch.equal(again, mine)
    assert not any("weight_g" in k or "_orig" in k or "original" in k for k in q.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_layers_that_stay_float_keep_their_hooks() -> None:
    net, x = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(16, 16)), nn.Linear(16, 4)), torch.randn(4, 16)
    net(x)  # the hook leaves a tensor with a history
    q = intact.quantize_dynamic(net, {"1"})
    with torch.no_grad():
        q[0].weight_g.mul_(2.0)
    assert torch.allclose(q[0](x) - q[0].bias, 2 * (net[0](x) - net[0].bias), atol=1e-5)


def test_a_replaced_forward_is_kept() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(3, 8)
    before = net[0].forward
    net[0].forward = lambda input: before(input) * 2  # as offloading tools do it
    q = intact.quantize_dynamic(net)
    assert type(q[0]) is nn.Linear and float((q(x) - net(x)).detach().std() / net(x).detach().std()) < 0.02


def test_leaves_are_called_and_asked_as_the_layers_they_stand_for() -> None:
    fc, conv, table = nn.Linear(4, 4), nn.Conv1d(4, 4, 3, padding=1), nn.Embedding(4, 4)
    fc.tag = "mine"
    q = intact.quantize_dynamic(nn.ModuleList([fc, conv, table, nn.RNN(4, 4, nonlinearity="relu")]), {nn.Module})
    assert q[0](input=torch.ones(1, 4)).shape == (1, 4) and q[2](input=torch.tensor([1])).shape == (1, 4)
    assert q[1](input=torch.ones(1, 4, 4)).shape == (1, 4, 4)
    assert (q[0].tag, q[1].in_channels, q[1].padding, q[2].max_norm) == ("mine", 4, (1,), None)
    assert q[3].nonlinearity == "relu"


@pytest.mark.parametrize("how", [WeightOnly(4, PerGroup(1, 16)), WeightOnly(4, PerTensor(), True),
                                 WeightOnly(8, PerChannel(0))], ids=str)
@pytest.mark.parametrize("factor", [2.0**120, 1.0, 2.0**-100])
def test_codes_do_not_depend_on_the_unit(how: LeafHow, factor: float) -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 32)
    net, scaled = nn.Linear(32, 6), nn.Linear(32, 6)
    net.weight.data, scaled.weight.data = w, w * factor
    q, p = (intact.quantize_dynamic(n, {"": how}) for n in (net, scaled))
    assert torch.equal(q.qweight.codes, p.qweight.codes) and torch.equal(p.weight / factor, q.weight)


def test_numbers_at_the_ends_of_float32() -> None:
    for how in (WeightOnly(4, PerGroup(1, 4)), WeightOnly(8, PerChannel(0), True), Dynamic()):
        net = nn.Linear(4, 2, bias=False)
        net.weight.data = torch.tensor([[1e-40, 0, 0, 0], [0, 0, 0, 0.0]])
        assert torch.equal(intact.quantize_dynamic(net, {"": how})(torch.ones(1, 4)), torch.zeros(1, 2))
    net.weight.data.fill_(1e5)
    with pytest.raises(PlanError, match="too large for float16"):
        intact.quantize_dynamic(net, {"": Float16()})


@pytest.mark.parametrize("options", [{"bits": 4.0}, {"group": "8"}, {"group": 8.0}, {"symmetric": "no"},
                                     {"refine": 1}, {"bits": True}])
def test_options_of_the_wrong_type(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        intact.quantize_weights(nn.Linear(8, 8), **options)


def test_the_name_of_a_type_is_explained() -> None:
    with pytest.raises(PlanError, match="pass the class Linear itself"):
        intact.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {"Linear"})
