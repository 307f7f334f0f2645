"""SmoothQuant: the mathematics by hand, equality in float, and what it is worth."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.algorithms.smooth_core import Seen, candidates, choose, outliers, output_error
from intact.graph.passes import SmoothChannels, repeated_passes, transform
from intact.graph.passes.smooth_channels import divisors, smoothable, split_columns
from tests.parity.harness import differing
from tests.zoo import ZOO
from tests.zoo.bert import Encoder, tokens, with_outliers


def seen(rows: Tensor) -> Seen:
    return Seen(rows.amin(0), rows.amax(0), [rows])


def encoder() -> Encoder:
    torch.manual_seed(0)
    return with_outliers(Encoder()).eval()


def sqnr(wanted: Tensor, got: Tensor) -> float:
    return 10 * math.log10(float(wanted.square().sum() / (wanted - got).square().sum()))


# -- mathematics ---------------------------------------------------------------------------------


def test_candidates_follow_the_formula() -> None:
    a, w = torch.tensor([4.0, 1.0, 1.0, 1.0]), torch.tensor([[1.0, 1.0, 1.0, 0.25]])
    found = candidates(a, [w])
    assert found[0] == [0, 0, 0, 0]
    # strength 1/2: log2 sqrt(a / w) = 1, 0, 0, 1, minus their mean 1/2, in quarters
    assert found[1] == [2, -2, -2, 2]
    # down to 1 times the median, which is 1
    assert found[-1] == [8, 0, 0, 0]


def test_split_columns_give_the_same_product() -> None:
    w, x = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    copies = [1, 1, 1, 3]
    wide = torch.cat([x, x[:, copies]], 1)
    torch.testing.assert_close(wide @ split_columns(w, copies).t(), x @ w.t())
    assert torch.equal(split_columns(w, copies)[:, 1], w[:, 1] / 4)


def test_copies_are_for_weights_that_dwarf_their_row() -> None:
    w = torch.ones(2, 256)
    assert outliers(w) == []
    w[1, 7] = 8.0
    assert outliers(w) == [7] * 7
    w[1, 9] = 1000.0
    assert len(outliers(w)) == 8 and set(outliers(w)) == {9}  # at most a 32nd of the channels
    assert outliers(torch.ones(2, 3)) == []


def test_the_error_is_that_of_rounding() -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(400, 32), torch.randn(16, 32)
    step = float(rows.max() - rows.min()) / 255
    noise = step**2 / 12 * float(weight.square().sum())
    weights_step = weight.abs().amax(1) / 127
    noise += float((weights_step**2 / 12).sum()) * float(rows.square().sum(1).mean())
    power = (rows @ weight.t()).square().sum(1)
    expected = noise * float((1 / power).mean())
    assert output_error(seen(rows), [weight], [0] * 32) == pytest.approx(expected, rel=0.25)


def test_an_outlier_channel_is_taken_down() -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(256, 64), torch.randn(32, 64) * 0.1
    rows[:, 5] *= 50.0
    steps, copies, left = choose(seen(rows), [weight], copied=False)
    assert left < 0.1 and copies == []
    assert steps[5] >= max(s for i, s in enumerate(steps) if i != 5) + 8  # two octaves


def test_even_channels_are_left_alone() -> None:
    torch.manual_seed(0)
    rows = torch.rand(256, 64) * 2 - 1
    assert choose(seen(rows), [torch.rand(32, 64) * 2 - 1], copied=True)[2] > 0.8


def test_zeros_are_no_trouble() -> None:
    rows = torch.zeros(8, 16)
    assert choose(seen(rows), [torch.zeros(4, 16)], copied=True)[2] <= 1.0


# -- models --------------------------------------------------------------------------------------


def test_outputs_stay_and_the_users_model_does_too() -> None:
    net, data = encoder(), [tokens(32, 1)]
    before = copy.deepcopy(net.state_dict())
    fm = intact.capture(net, data[0])
    smoothed = intact.smooth(fm, data)
    assert smoothed.smoothing and any(v["copies"] for v in smoothed.smoothing.values())
    x = tokens(9, 2)
    for a, b in zip(fm(**x).values(), smoothed(**x).values(), strict=True):
        assert float((a - b).abs().max()) < 1e-5 * float(a.abs().max())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_norm_that_linear_layers_alone_read_takes_the_divisors_in() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 16))
    net[0].weight.data[3] = 40.0
    x = torch.randn(64, 32)
    fm = intact.capture(net, x)
    smoothed = intact.smooth(fm, [x])
    assert [n.op for n in smoothed.graph] == [n.op for n in fm.graph]
    assert float(smoothed.params["0.weight"][3]) < 10.0
    factor = divisors(smoothed.smoothing["0"]["steps"]).float()
    torch.testing.assert_close(smoothed.params["1.weight"], fm.params["1.weight"] * factor)


def test_it_is_worth_it() -> None:
    net, data, x = encoder(), [tokens(32, 1)], tokens(64, 2)
    keep = x["attention_mask"].bool()
    fm = intact.capture(net, data[0])

    def quality(model: intact.FloatModel) -> float:
        q = intact.convert(intact.calibrate(intact.prepare(model, intact.plan(model)), data))
        return sqnr(net(**x)["last_hidden_state"][keep], q(**x)["last_hidden_state"][keep])

    with torch.no_grad():
        assert quality(intact.smooth(fm, data)) > quality(fm) + 2.0


def test_one_call_smooths_a_model_with_attention_and_no_other() -> None:
    data = [tokens(16, 1), tokens(16, 2)]
    fm = intact.capture(encoder(), data[0])
    steps = intact.convert(intact.calibrate((qf := intact.prepare(
        model := intact.smooth(fm, data), intact.plan(model))), data)).codes(**data[0])
    for given in (data, iter(data)):
        once = intact.quantize(encoder(), given)
        assert once.info["smoothing"].keys() == qf.float_model.smoothing.keys()
        codes = once.codes(**data[0])
        assert codes.keys() == steps.keys() and all(torch.equal(codes[k], steps[k]) for k in codes)
    x = ZOO["keyword"].example(8)
    assert intact.quantize(ZOO["keyword"].build(), [x]).info["smoothing"] == {}


def test_the_comparison_repeats_it() -> None:
    net, data = encoder(), [tokens(16, 1)]
    q = intact.quantize(net, data)
    assert q.info["smoothing"]
    for model in (net, intact.capture(net, data[0]), intact.smooth(intact.capture(net, data[0]), data)):
        assert intact.compare(model, q, data, latency=False).samples == 16
    fm = intact.capture(net, data[0])
    smoothing = intact.smooth(fm, data).smoothing
    again = intact.capture(net, data[0], passes=repeated_passes({}, smoothing))
    assert transform(again, [SmoothChannels(smoothing)]).graph == again.graph  # done once


def test_what_stays_float_or_is_shared_is_left_alone() -> None:
    net, data = encoder(), [tokens(16, 1)]
    fm = intact.capture(net, data[0])
    recipe = intact.Recipe(default=intact.FLOAT)
    assert intact.smooth(fm, data, plan=intact.plan(fm, recipe=recipe)) is fm

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(self.norm(self.linear(x)))
            return y

    assert smoothable(intact.capture(Tied(), torch.randn(4, 8))) == {}


def test_a_smoothed_model_trains_and_is_loaded_again(tmp_path: object) -> None:
    data = [tokens(16, 1)]
    fm = intact.smooth(intact.capture(encoder(), data[0]), data)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), data).train()
    assert not any("divisor" in name for name, _ in qfloat.named_parameters())
    qfloat(**data[0])["pooler_output"].square().sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in qfloat.parameters())
    q = intact.convert(qfloat.eval())
    intact.save(q, f"{tmp_path}/net.intact")
    again = intact.load(f"{tmp_path}/net.intact")
    assert differing(q, again, data[0]) == []


def test_bad_data_is_named() -> None:
    fm = intact.capture(encoder(), tokens(4))
    with pytest.raises(intact.CalibrationError, match="no data"):
        intact.smooth(fm, [])
    with pytest.raises(intact.CaptureError, match="of another model"):
        transform(fm, [SmoothChannels({"norm": {"steps": [0]}})])


class Gated(nn.Module):
    """A gated feed-forward layer behind an RMS norm, as most language models have it; and one gate in one product."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.norm, self.fused = nn.RMSNorm(32), fused
        self.gate, self.up, self.both = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(32, 128)
        self.down = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        gate, up = self.both(y).chunk(2, -1) if self.fused else (self.gate(y), self.up(y))
        z: Tensor = x + self.down(nn.functional.silu(gate) * up)
        return z


@pytest.mark.parametrize("fused", [False, True])
def test_rms_norms_and_gates_take_the_divisors_in(fused: bool) -> None:
    torch.manual_seed(0)
    net, x = Gated(fused).eval(), torch.randn(8, 16, 32)
    with torch.no_grad():
        net.norm.weight[3] *= 30.0
        for layer in (net.gate, net.up, net.both):
            layer.weight[:, 3] /= 30.0
        rows = net.both.weight[64:] if fused else net.up.weight  # one of the channels of the product is large
        rows[5] *= 40.0
        net.down.weight[:, 5] /= 40.0
    fm = intact.capture(net, x)
    recipe = intact.Recipe((intact.Rule(intact.op("mul"), intact.FLOAT),))  # as it is beside attention
    smoothed = intact.smooth(fm, [x], plan=intact.plan(fm, recipe=recipe))
    assert len(smoothed.smoothing) == 2 and len(smoothed.graph.nodes) == len(fm.graph.nodes)

    def error(model: intact.FloatModel) -> float:
        q = intact.convert(intact.calibrate(intact.prepare(model, intact.plan(model, recipe=recipe)), [x]))
        return sqnr(net(x).detach() - x, q(x) - x)

    assert error(smoothed) > error(fm) + 6.0
    q = intact.quantize(smoothed, [x])
    assert intact.compare(net, q, [x], latency=False).samples == 8
