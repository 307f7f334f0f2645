"""What is swapped, and what is not: specifications, refusals, the user's model, stubs and the observer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import intact
from intact import PlanError
from intact.leaves import Dynamic, Float16, WeightOnly
from intact.leaves.base import Leaf
from intact.types import INT8, PerChannel, PerGroup, PerTensor, PerToken


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = intact.QuantStub(), intact.DeQuantStub()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv1d(16, 16, 1)
        self.head = nn.Linear(16, 3)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quant(x)
        for block in self.blocks:
            x = block(x)
        return self.dequant(self.head(x + self.conv(x.unsqueeze(2))[..., 0]))


FC = {"blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"}


def leaves(net: nn.Module) -> dict[str, str]:
    return {n: str(m.how) for n, m in net.named_modules() if isinstance(m, Leaf)}


@pytest.mark.parametrize(("spec", "names"), [
    (None, FC | {"head"}),
    ({nn.Linear}, FC | {"head"}),
    ([nn.Linear, nn.Conv1d], FC | {"head", "conv"}),
    (nn.Conv1d, {"conv"}),
    ("head", {"head"}),
    ({"blocks.*.fc1"}, {"blocks.0.fc1", "blocks.1.fc1"}),
    ({"blocks.0", "conv"}, {"blocks.0.fc1", "blocks.0.fc2", "conv"}),
    ({Block}, FC),
    ({nn.Linear: torch.qint8, "head": None}, FC),
    ({nn.Module: "int8", "blocks": None, "blocks.1.fc2": torch.int8}, {"blocks.1.fc2", "conv", "head"}),
])
def test_what_is_meant(spec: Any, names: set[str]) -> None:
    net = Net()
    q = intact.quantize_dynamic(net, spec)
    assert leaves(q).keys() == names
    x = torch.randn(5, 16)
    assert float((q(x) - net(x)).std()) < 0.05
    assert type(q.quant) is intact.QuantStub and type(q.dequant) is intact.DeQuantStub


@pytest.mark.parametrize(("config", "how"), [
    (torch.qint8, Dynamic()), (torch.int8, Dynamic()), ("qint8", Dynamic()), (INT8, Dynamic()),
    (torch.float16, Float16()), ("float16", Float16()),
    ({"activation": torch.quint8, "weight": torch.qint8, "qscheme": torch.per_channel_symmetric, "dynamic": True},
     Dynamic()),
    ({"qscheme": torch.per_tensor_affine}, Dynamic(PerTensor())),
    ({"activation": {"dtype": torch.quint8, "qscheme": torch.per_tensor_affine, "dynamic": True},
      "weight": {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}}, Dynamic(PerChannel(0), PerTensor())),
    ({"activation": intact.Observer(torch.quint8, torch.per_tensor_affine),
      "weight": intact.Observer(torch.qint8, torch.per_tensor_symmetric)}, Dynamic(PerTensor(), PerTensor())),
    ({"weight": PerGroup(1, 8), "activation": "per_token"}, Dynamic(PerGroup(1, 8), PerToken())),
    ({"weight": torch.float16}, Float16()),
    ({"weight": torch.qint8, "activation": torch.float32}, WeightOnly(8, PerChannel(0), symmetric=True)),
    (WeightOnly(4, PerGroup(1, 16)), WeightOnly(4, PerGroup(1, 16))),
])
def test_configurations(config: Any, how: Any) -> None:
    assert leaves(intact.quantize_dynamic(Net(), {"head": config})) == {"head": str(how)}
    if isinstance(config, dict):  # for all usual layers
        assert set(leaves(intact.quantize_dynamic(Net(), config)).values()) == {str(how)}


@pytest.mark.parametrize(("spec", "dtype", "words"), [
    ({"haed"}, "int8", "did you mean 'head'"),
    ({"blocks.*.fc3"}, "int8", "nearest: blocks"),
    ({nn.LSTM}, "int8", "matches nothing"),
    ({nn.ReLU}, "int8", "nothing that can be quantized"),
    ({"blocks.0.act": torch.qint8}, "int8", "nothing that can be quantized"),
    (set(), "int8", "names nothing"),
    (3, "int8", "no such specification"),
    ({3}, "int8", "neither a type"),
    ({int}, "int8", "neither a type"),
    (None, torch.quint8, "weights of this type"),
    (None, "int4", "quantize_weights"),
    (None, "no", "weights of this type"),
    ({"head": {"wieght": torch.qint8}}, "int8", "did you mean 'weight'"),
    ({"head": {"weight": torch.qint8, "dynamic": False}}, "int8", "needs data"),
    ({"head": {"qscheme": "per_chanel"}}, "int8", "did you mean 'per_channel'"),
    ({"head": {"activation": torch.qint32}}, "int8", "activations cannot"),
    ({"head": intact.QuantStub()}, "int8", "no such configuration"),
    ({"head": Dynamic(PerGroup(1, 5))}, "int8", "do not divide"),
    ({"conv": Dynamic(PerGroup(1, 8))}, "int8", "cannot be quantized like this"),
])
def test_what_is_refused(spec: Any, dtype: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        intact.quantize_dynamic(Net(), spec, dtype)


@pytest.mark.parametrize(("options", "words"), [
    ({"bits": 3}, "4 or 8"), ({"group": 5}, "do not divide"), ({"group": 0}, "no such group"),
    ({"spec": {"head": {"bist": 4}}}, "did you mean 'bits'"), ({"spec": {"head": "int4"}}, "no such configuration"),
])
def test_weight_only_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        intact.quantize_weights(Net(), **{"group": 8, **options})


def test_weight_only_configurations() -> None:
    q = intact.quantize_weights(Net(), {nn.Linear: 8, "head": {"bits": 4, "group": 8, "symmetric": True},
                                        "blocks.0": None, "conv": {"group": None}}, group=16)
    assert leaves(q) == {"blocks.1.fc1": "int8 weights per group of 16 (axis 1)",
                         "blocks.1.fc2": "int8 weights per group of 16 (axis 1)",
                         "conv": "int4 weights per channel (axis 0)",
                         "head": "int4 weights per group of 8 (axis 1), symmetric"}


def test_models_that_cannot_be_quantized_again_or_at_all() -> None:
    q = intact.quantize_dynamic(Net())
    with pytest.raises(PlanError, match="quantized already"):
        intact.quantize_dynamic(q)
    with pytest.raises(PlanError, match="quantized already"):
        intact.quantize_dynamic(q, {"head"})
    assert "conv" in leaves(intact.quantize_dynamic(q, {"conv"}))
    with pytest.raises(PlanError, match="no layer to quantize"):
        intact.quantize_dynamic(nn.ReLU())
    with pytest.raises(PlanError, match="no eager module"):
        intact.quantize_dynamic(torch.relu)  # type: ignore[arg-type]
    bad = nn.Linear(2, 2)
    bad.weight.data[0, 0] = torch.nan
    with pytest.raises(intact.NonFiniteError, match="not finite"):
        intact.quantize_dynamic(bad)


def test_the_users_model_is_not_changed_and_shares_nothing() -> None:
    net = Net()
    before, x = copy.deepcopy(net.state_dict()), torch.randn(4, 16)
    y = net(x)
    q = intact.quantize_dynamic(net, {"blocks.0.fc1"})
    q.train(False)
    for p in (*q.parameters(), *q.buffers()):
        p.data.fill_(1)
    assert net.training and torch.equal(net(x), y)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_shared_layers_hooks_and_copies() -> None:
    layer, seen = nn.Linear(8, 8), []
    net = nn.Sequential(layer, layer)
    layer.register_forward_hook(lambda m, x, y: seen.append(type(m).__name__))
    q = intact.quantize_dynamic(net)
    x = torch.randn(2, 8)
    y = q(x)
    assert q[0] is q[1] and seen == ["QLinear", "QLinear"]
    assert torch.equal(copy.deepcopy(q)(x), y)
    q[0].qweight.codes.neg_()  # what follows from the codes is made again
    assert torch.allclose(q[0](x), x @ q[0].weight.t() + q[0].bias, atol=0.05)


def test_tied_weights_keep_one_storage_when_moved() -> None:
    net = nn.ModuleDict({"table": nn.Embedding(20, 32), "head": nn.Linear(32, 20, bias=False)})
    net["head"].weight = net["table"].weight
    q = intact.quantize_weights(net, group=32).to(torch.float64).to("cpu")
    assert q["table"].qweight is q["head"].qweight


class Conv1D(nn.Module):
    """As Hugging Face's: weight (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.randn(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


@pytest.mark.parametrize("rows", [1, 40])
def test_weights_that_are_stored_transposed(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv1D, "__module__", "transformers.pytorch_utils")
    net, x = Conv1D(), torch.randn(rows, 32)
    strided = nn.Linear(32, 32)
    strided.weight = nn.Parameter(torch.randn(32, 32).t())
    for module in (net, strided):
        for q in (intact.quantize_dynamic(module), intact.quantize_weights(module, bits=8, group=None)):
            assert float((q(x) - module(x)).detach().std() / module(x).detach().std()) < 0.02
            assert q.weight.shape == module.weight.shape
            assert all(b.is_contiguous() for b in q.buffers())


def test_embeddings_match_torch_in_all_modes() -> None:
    index, offsets = torch.tensor([1, 2, 4, 2, 0, 3]), torch.tensor([0, 0, 3])
    for mode in ("sum", "mean", "max"):
        for options in ({}, {"padding_idx": 2}, {"include_last_offset": True}):
            bag = nn.EmbeddingBag(6, 8, mode=mode, **options)
            q = intact.quantize_dynamic(bag)
            real = nn.EmbeddingBag.from_pretrained(q.weight, mode=mode, **options)
            ends = torch.tensor([0, 0, 3, 6]) if options.get("include_last_offset") else offsets
            assert torch.allclose(q(index, ends), real(index, ends))
            if not options.get("include_last_offset"):
                assert torch.allclose(q(index.reshape(2, 3)), real(index.reshape(2, 3)))
            if mode == "sum":
                w = torch.rand(6)
                assert torch.allclose(q(index, ends, w), real(index, ends, w))
    assert torch.equal(intact.quantize_dynamic(nn.Embedding(6, 8))(torch.zeros(0, 3, dtype=torch.long)),
                       torch.zeros(0, 3, 8))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_of_a_table_with_max_norm_are_as_they_are_read(kind: type[nn.Module]) -> None:
    table = kind(6, 8, max_norm=1.0, norm_type=1.0)
    kept, x = table.weight.detach().clone(), torch.arange(6).reshape(6, 1)
    q = intact.quantize_dynamic(table)
    assert torch.equal(table.weight, kept)
    assert torch.allclose(q(x), table(x).detach(), atol=1e-2) and float(q.weight.abs().sum(1).max()) < 1.01


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 1}, {"groups": 4}, {"dilation": 2, "padding": "same"}, {"padding_mode": "reflect",
    "padding": 1}, {"padding": "valid", "bias": False}, {"groups": 8},
])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("config", [None, {"activation": "per_tensor"}, {"weight": "float16"}])
def test_convolutions(kind: type[nn.Module], options: dict[str, Any], config: Any) -> None:
    net = kind(8, 8, 3, **options)
    q = intact.quantize_dynamic(net, {"": config or torch.qint8})
    x = torch.randn(2, 8, *[9] * (1 if kind is nn.Conv1d else 2))
    for value in (x, x[0]):
        y, plain = q(value), net(value).detach()
        assert y.shape == plain.shape and float((y.detach() - plain).std() / plain.std()) < 0.02


def test_stubs_are_identities_for_capture() -> None:
    net = nn.Sequential(intact.QuantStub(), nn.Linear(8, 4), nn.ReLU(), intact.DeQuantStub())
    x = torch.randn(16, 8)
    assert [n.op for n in intact.capture(net, x).graph] == [n.op for n in intact.capture(net[1:3], x).graph]
    assert intact.quantize(net, [x])(x).shape == (16, 4)


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8, "uint8", torch.int8])
@pytest.mark.parametrize("scheme", [torch.per_tensor_affine, torch.per_tensor_symmetric, torch.per_channel_affine,
                                    torch.per_channel_symmetric, "per_channel"])
def test_the_observer_keeps_the_extremes_of_all_calls(dtype: Any, scheme: Any) -> None:
    obs, x = intact.Observer(dtype, scheme), torch.randn(5, 3, 4)
    with pytest.raises(intact.CalibrationError, match="saw no data"):
        obs.calculate_qparams()
    assert all(obs(part) is part for part in x.split(2, 1))
    channels = "channel" in str(scheme)
    want = x.flatten(1) if channels else x.reshape(1, -1)
    assert torch.equal(obs.min_val, want.amin(1)) and torch.equal(obs.max_val, want.amax(1))
    scale, zero = obs.calculate_qparams()
    assert scale.shape == zero.shape == (5 if channels else 1,)
    low, high = obs.qtype.qmin, obs.qtype.qmax
    codes = ((want / scale[:, None]).round() + zero[:, None]).clamp(low, high)
    assert float((((codes - zero[:, None]) * scale[:, None] - want).abs() / scale[:, None]).max()) <= 0.6
    other = intact.Observer(dtype, scheme)
    other.load_state_dict(obs.state_dict())
    assert torch.equal(other.calculate_qparams()[0], scale)


def test_what_the_observer_refuses() -> None:
    for bad in ((torch.qint32, "per_tensor"), (torch.quint8, "per_row")):
        with pytest.raises(PlanError):
            intact.Observer(*bad)
    obs = intact.Observer(torch.qint8, "per_channel")
    obs(torch.zeros(3, 2))
    with pytest.raises(intact.CalibrationError, match="channels"):
        obs(torch.zeros(4, 2))
    with pytest.raises(intact.NonFiniteError):
        obs(torch.full((3, 2), torch.nan))


def test_groups_fit_each_layer_unless_one_is_named() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(384, 8), "odd": nn.Linear(131, 8), "conv": nn.Conv2d(3, 8, 7),
                         "lstm": nn.LSTM(80, 64), "own": nn.Linear(40, 8)})
    q = intact.quantize_weights(net, {"fc": 4, "odd": 8, "conv": 4, "lstm": {}, "own": {"group": 20}})
    assert {name: str(layer.how.weight) for name, layer in q.items()} == {
        "fc": "per group of 64 (axis 1)", "odd": "per channel (axis 0)", "conv": "per group of 49 (axis 1)",
        "lstm": "per group of 16 (axis 1)", "own": "per group of 20 (axis 1)"}
    with pytest.raises(intact.PlanError, match="do not divide"):
        intact.quantize_weights(net, {"own": {"group": 64}})


@pytest.mark.parametrize("make", [intact.quantize_dynamic, intact.quantize_weights])
def test_no_layer_gets_codes_twice(make: Callable[..., nn.Module]) -> None:
    q = make(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), {"0"})
    for again in (lambda: intact.quantize(q, [torch.randn(4, 16)]), lambda: intact.capture(q, torch.randn(4, 16)),
                  lambda: intact.quantize_qat(q, example_inputs=torch.randn(4, 16))):
        with pytest.raises(intact.CaptureError, match="already quantized") as error:
            again()
        assert error.value.where == "0"


@pytest.mark.parametrize("spec", [
    {"head": torch.qint8, "head*": None}, {"*": torch.qint8, nn.Linear: None}, {"": torch.qint8, "blocks.*": None},
    {"head": None, "*d": torch.float16}])
def test_a_key_that_never_decides_is_refused(spec: Any) -> None:
    with pytest.raises(PlanError, match="no effect"):
        intact.quantize_dynamic(Net(), spec)


@pytest.mark.parametrize("spec", [{nn.Linear: None}, {"*": None}, {"head": None}])
def test_a_specification_that_leaves_all_in_float_is_refused(spec: Any) -> None:
    for quantize in (intact.quantize_dynamic, intact.quantize_weights):
        with pytest.raises(PlanError, match="leaves every layer in float"):
            quantize(Net(), spec)


def test_all_but_some() -> None:
    assert leaves(intact.quantize_dynamic(Net(), {"*": torch.qint8, "blocks.*": None})).keys() == {"head", "conv"}
    assert leaves(intact.quantize_dynamic(Net(), {nn.Linear: torch.qint8, "head": None})).keys() == FC


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize("spec", [None, {nn.Linear}, {Doubled}, {"0"}])
def test_a_forward_of_its_own_is_named_as_the_reason(spec: Any) -> None:
    with pytest.raises(PlanError, match="Doubled: a forward of its own"):
        intact.quantize_dynamic(nn.Sequential(Doubled(4, 4)), spec)


def test_layers_that_share_a_weight_have_one_encoding() -> None:
    net = nn.ModuleList([nn.Embedding(6, 32), nn.Linear(32, 6)])
    net[1].weight = net[0].weight
    with pytest.raises(PlanError, match="share a weight"):
        intact.quantize_weights(net, {"0": 8, "1": 4})
    with pytest.raises(PlanError, match="share a weight"):
        intact.quantize_dynamic(net, {"0": torch.float16, "1": torch.qint8})
    assert type(intact.quantize_dynamic(net, {"1"})[0]) is nn.Embedding  # one of them may stay float


class Made:
    """An observer of torch's, as far as a QConfig says what it makes."""

    def __init__(self, dtype: torch.dtype, qscheme: Any = None) -> None:
        self.dtype, self.qscheme = dtype, qscheme


@pytest.mark.parametrize(("activation", "weight", "how"), [
    (Made(torch.quint8, torch.per_tensor_affine), Made(torch.qint8, torch.per_tensor_symmetric),
     Dynamic(PerTensor(), PerTensor())),
    (Made(torch.quint8, torch.per_tensor_affine), Made(torch.qint8, torch.per_channel_symmetric),
     Dynamic(PerChannel(0), PerTensor())),
    (Made(torch.float32), Made(torch.float16), Float16()),
    (Made(torch.float32), Made(torch.quint8, torch.per_channel_affine_float_qparams),
     WeightOnly(8, PerChannel(0), symmetric=False)),
    (Made(torch.float32), Made(torch.quint4x2, torch.per_channel_affine_float_qparams),
     WeightOnly(4, PerChannel(0), symmetric=False)),
])
def test_a_qconfig_of_torch_says_what_it_says_there(activation: Made, weight: Made, how: Any) -> None:
    config = SimpleNamespace(activation=lambda: activation, weight=lambda: weight)
    assert intact.quantize_dynamic(nn.Linear(16, 4), {"": config}).how == how


def test_weight_only_settings_say_where_they_belong() -> None:
    with pytest.raises(PlanError, match="quantize_weights"):
        intact.quantize_dynamic(Net(), {"head": {"bits": 4}})
