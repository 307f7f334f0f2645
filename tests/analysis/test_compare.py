"""Float and integer model side by side: every number against a plain computation of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
import intact.api as api
from intact.analysis import Latency, Problem, Report, Sizes, compare_models
from intact.analysis.lint import lint
from intact.arithmetic import dequantize, quantize
from intact.calibration.collect import masked_operands
from intact.errors import CalibrationError, IntactError, NonFiniteError
from tests.zoo import ZOO


class Two(nn.Module):
    """Two inputs, outputs in a dict with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        y = torch.relu(self.left(a)) + self.right(b)
        return {"sum": y, "more": [y.mean(1)]}


class Head(nn.Module):
    """A concatenation within a net, one operand ``ratio`` times the other."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.boxes, self.scores, self.last = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 3)
        with torch.no_grad():
            self.boxes.weight.mul_(ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.boxes(x), self.scores(x)], 1))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))


def sqnr(x: Tensor, y: Tensor) -> float:
    return float(10 * torch.log10(x.double().square().sum() / (y.double() - x.double()).square().sum()))


@pytest.fixture(scope="module")
def simple() -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(1)
    net, x = mlp(), torch.randn(40, 6)
    return net, api.quantize(net, [x]), x


def test_accuracy_agreement_and_outputs_are_those_of_both_models(simple: Any) -> None:
    net, q, x = simple
    labels = torch.randint(0, 5, (40,))
    report = compare_models(net, q, [(x[:30], labels[:30]), (x[30:], labels[30:])])
    with torch.no_grad():
        right, found = net(x), q(x)
    assert report.samples == 40
    assert report.metric is not None
    assert report.metric.float_value == pytest.approx(float((right.argmax(1) == labels).float().mean()))
    assert report.metric.integer_value == pytest.approx(float((found.argmax(1) == labels).float().mean()))
    assert report.agreement == pytest.approx(float((right.argmax(1) == found.argmax(1)).float().mean()))
    (output,) = report.outputs
    assert output.error.sqnr_db == pytest.approx(sqnr(right, found), abs=1e-3)
    assert output.cosine == pytest.approx(float(torch.cosine_similarity(right.flatten(), found.flatten(), 0)), abs=1e-6)
    assert "relu" not in report.to_json()  # folded into the layer before


@pytest.mark.parametrize("name", ["resnet20", "vit_softmax", "densenet121", "detector_dict", "keyword"])
def test_totals_are_the_codes_of_q_against_the_float_edges(name: str) -> None:
    entry = ZOO[name]
    x = entry.example(3, seed=1)
    fm = api.capture(entry.build(), entry.example(2))
    q = api.convert(api.calibrate(api.prepare(fm, api.plan(fm)), [entry.example(4)]))
    report, codes, edges = compare_models(fm, q, [x]), q.codes(x), {}
    fm.run(fm.signature.bind((x,), {}), lambda node, value: edges.__setitem__(node.name, value))
    assert [s.edge for s in report.sites] == [n.name for n in q.graph if n.name in q.qparams]
    masked = masked_operands(fm.graph)
    for s in report.sites:
        value = dequantize(codes[s.edge], q.qparams[s.edge])
        if s.edge not in masked:
            assert s.total.sqnr_db == pytest.approx(sqnr(edges[s.edge], value), abs=1e-3), s.edge
            assert (s.low, s.high) == (float(edges[s.edge].min()), float(edges[s.edge].max()))


def test_own_added_weight_and_activation_of_a_layer_by_their_definitions(simple: Any) -> None:
    net, q, x = simple
    site = compare_models(net, q, [x]).sites[1]
    b, arithmetic = q.bindings[site.edge], q.target.arithmetic
    w = b.weight.dequantize()
    bias = b.bias.float() * b.inputs[0].scale * b.weight.qparams.scale
    codes = quantize(x, b.inputs[0], arithmetic)
    xq, out = dequantize(codes, b.inputs[0]), b.output
    with torch.no_grad():
        right = torch.relu(net[0](x))
        ideal = torch.relu(net[0](xq))
        weighted = torch.relu(nn.functional.linear(x, w, bias))
    made = dequantize(q.program.kernels[site.edge]([codes], 40), out)
    assert site.own.sqnr_db == pytest.approx(sqnr(right, made), abs=1e-3)
    noise = (made - ideal).double().square().sum()
    assert site.added.sqnr_db == pytest.approx(float(10 * torch.log10(right.double().square().sum() / noise)), abs=1e-3)
    assert site.weight.sqnr_db == pytest.approx(sqnr(right, weighted), abs=1e-3)
    rounded = dequantize(quantize(ideal, out, arithmetic), out)
    assert site.activation.sqnr_db == pytest.approx(sqnr(right, rounded), abs=1e-3)
    assert site.dead == 1 - (int(q.codes(x)[site.edge].max()) - int(q.codes(x)[site.edge].min()) + 1) / 256
    # the first layer reads the input itself: alone or in the net is the same
    assert site.total == site.own


def test_any_split_into_batches_gives_the_same(simple: Any) -> None:
    net, q, x = simple
    labels = net(x).argmax(1)
    whole = compare_models(net, q, [(x, labels)]).as_dict()
    parts = compare_models(net, q, list(zip(x.split(7), labels.split(7), strict=True))).as_dict()
    assert _rounded(whole) == _rounded(parts)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items() if k != "findings"}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def test_layers_are_looked_at_alone_on_a_bounded_share_spread_over_the_data(simple: Any) -> None:
    net, q, _ = simple
    report = compare_models(net, q, (0.5 * torch.randn(64, 6) for _ in range(200)))
    assert report.samples == 12800
    assert 256 <= report.own_samples <= 12800 / 16 + 64
    assert f"{report.own_samples} samples" in str(report)
    assert report.sites[1].own.sqnr_db == pytest.approx(report.sites[1].total.sqnr_db, abs=0.3)


@pytest.mark.parametrize("form", ["tuple", "dict", "dict and label", "list and label"])
def test_forms_of_batches_and_structured_outputs(form: str) -> None:
    net, a, b = Two(), torch.randn(12, 6), torch.randn(12, 3)
    item = {"tuple": (a, b), "dict": {"a": a, "b": b, "id": 3}, "dict and label": ({"b": b, "a": a}, b),
            "list and label": [a, b, b]}[form]
    q = api.quantize(net, [(a, b)])
    seen = []

    def metric(outputs: Any, labels: Any) -> float:
        seen.append((outputs, labels))
        return float(outputs["more"][0].mean())

    report = compare_models(net, q, [item, item], metric=metric)
    assert [o.name for o in report.outputs] == ["['sum']", "['more'][0]"]
    assert [o.agreement is None for o in report.outputs] == [False, True]
    assert report.metric is not None and report.metric.name == "metric"
    wanted = b if "label" in form else item
    assert all(labels is wanted for _, labels in seen)
    (right, _), (found, _) = seen[:2]
    assert torch.equal(found["sum"], q(a, b)["sum"]) and torch.equal(found["more"][0], q(a, b)["more"][0])
    assert report.metric.float_value == pytest.approx(float(right["more"][0].mean()))
    assert report.metric.integer_value == pytest.approx(float(found["more"][0].mean()))


def test_a_metric_is_averaged_over_samples_not_batches(simple: Any) -> None:
    net, q, x = simple
    report = compare_models(net, q, [x[:30], x[30:]], metric=lambda outputs, batch: float(len(batch) == 30))
    assert report.metric is not None
    assert (report.metric.float_value, report.metric.integer_value) == (0.75, 0.75)


@pytest.mark.parametrize("labels", [torch.rand(40), torch.zeros(40, 1, dtype=torch.int64), "names", None])
def test_without_class_labels_there_is_no_metric(simple: Any, labels: Any) -> None:
    net, q, x = simple
    assert compare_models(net, q, [(x, labels)]).metric is None
    assert compare_models(net, q, [x]).metric is None


def bad_metric(outputs: Any, labels: Any) -> float:
    return float("nan")


@pytest.mark.parametrize(("data", "options", "kind", "message"), [
    ([], {}, CalibrationError, "no data.*0 batches"),
    (iter([]), {}, CalibrationError, "no data"),
    (torch.zeros(4, 6), {}, CalibrationError, "not an iterable of batches"),
    (3, {}, CalibrationError, "not an iterable of batches"),
    ([torch.zeros(4, 6), torch.zeros(4, 7)], {}, CalibrationError, "batch 1: an input has the wrong shape"),
    ([torch.zeros(4, 6), torch.zeros(0, 6)], {}, CalibrationError, "batch 1: an input is empty"),
    ([(torch.zeros(4, 6), torch.zeros(3, dtype=torch.int64))], {}, CalibrationError, "labels"),
    ([torch.full((4, 6), float("nan"))], {}, NonFiniteError, "24 values in batch 0"),
    ([torch.zeros(4, 6)], {"metric": bad_metric}, IntactError, "finite number.*bad_metric"),
    ([torch.zeros(4, 6)], {"metric": lambda o, y: "much"}, IntactError, "no number"),
])
def test_errors_name_what_is_wrong(simple: Any, data: Any, options: Any, kind: type, message: str) -> None:
    net, q, _ = simple
    with pytest.raises(kind, match=message):
        compare_models(net, q, data, **options)


class Inverse(nn.Module):
    """Infinite at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reciprocal()


def test_a_value_that_is_not_finite_is_named_by_its_module() -> None:
    net, x = nn.Sequential(Inverse(), nn.Linear(6, 2)), torch.rand(8, 6) + 1.0
    q = api.quantize(net, [x])
    zero = x.clone()
    zero[0, :3] = 0.0
    with pytest.raises(NonFiniteError, match=r"where: 0\].*3 values in batch 1"):
        compare_models(net, q, [x, zero])


def test_another_model_is_refused_and_other_weights_are_not(simple: Any) -> None:
    _, q, x = simple
    compare_models(mlp(), q, [x])
    deeper = nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(5, 5))
    wider = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))
    for net in (deeper, wider, nn.Sequential(*mlp()[:3]), nn.Sequential(nn.Linear(6, 32), nn.Sigmoid(), *mlp()[2:])):
        with pytest.raises(IntactError, match="another structure"):
            compare_models(net, q, [x])
    with pytest.raises(IntactError, match=r"integer model second.*Sequential"):
        compare_models(mlp(), mlp(), [x])  # type: ignore[arg-type]


def test_neither_model_is_changed(simple: Any) -> None:
    net, q, x = simple
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    codes = q.codes(x)
    compare_models(net, q, [x])
    assert net.training and all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(v, codes[k]) for k, v in q.codes(x).items())
    net.eval()


def test_a_data_loader_with_and_without_a_length(simple: Any) -> None:
    net, q, x = simple
    labels = torch.zeros(40, dtype=torch.int64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=16)

    class Stream(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(x)

    assert compare_models(net, q, loader, progress=True).samples == 40
    assert compare_models(net, q, torch.utils.data.DataLoader(Stream(), batch_size=16)).samples == 40


def problems(report: Report) -> set[tuple[Problem, str]]:
    return {(f.problem, f.where) for f in report.findings}


@pytest.mark.parametrize(("ratio", "found"), [(640.0, True), (8.0, False)])
def test_a_concatenation_that_swallows_an_operand_is_found(ratio: float, found: bool) -> None:
    net, x = Head(ratio), torch.randn(64, 6)
    report = compare_models(net, api.quantize(net, [x]), [x])
    shared = [f for f in report.findings if f.problem is Problem.SHARED_SCALE]
    assert bool(shared) is found
    assert not found or (shared[0].edge, "operand scores" in shared[0].message) == ("concat", True)


def test_clipped_low_and_constant_edges_are_found_and_a_fine_model_has_none(simple: Any) -> None:
    net, q, x = simple
    assert compare_models(net, q, [x]).findings == ()
    found = problems(compare_models(net, q, [x * 30]))
    assert {(Problem.CLIPPED, "0"), (Problem.LOW_SQNR, "0")} <= found
    dead = mlp()
    nn.init.constant_(dead[0].bias, -100.0)
    assert (Problem.CONSTANT, "0") in problems(compare_models(dead, api.quantize(dead, [x]), [x]))


def test_measurements_are_reported_and_a_slower_or_larger_model_is_a_finding(simple: Any) -> None:
    net, q, x = simple
    good = compare_models(net, q, [x], latency=Latency(2.0, 1.0, "onnxruntime"), sizes=Sizes(400, 100))
    assert good.findings == ()
    assert json.loads(good.to_json())["latency"]["engine"] == "onnxruntime"
    bad = compare_models(net, q, [x], latency=Latency(1.0, 2.0, "onnxruntime"), sizes=Sizes(100, 101))
    assert [f.problem for f in bad.findings] == [Problem.SLOWER, Problem.LARGER]


@pytest.mark.parametrize(("net", "recipe", "ratio", "words"), [
    (nn.Linear(6, 8), intact.Recipe(), 1.05, None),
    (nn.Linear(6, 8), intact.Recipe(), 1.2, "with 48 multiply-accumulates a sample"),
    (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)), intact.Recipe((intact.Rule(intact.path("1"), intact.FLOAT),)),
     1.2, "50% of its multiply-accumulates stay in float"),
    (nn.ReLU(), intact.Recipe(), 1.2, "nothing in it multiplies"),
    (nn.Sequential(nn.Linear(6, 1200), nn.Softmax(-1), nn.Linear(1200, 1200)), intact.Recipe(), 1.2,
     r"1 operation\(s\) between its integer layers stay in float, first '1' \(softmax\)"),
    (nn.Sequential(nn.Linear(6, 1200), nn.GELU(), nn.Linear(1200, 1200)), intact.Recipe(), 1.2,
     r"1 operation\(s\), most of them gelu, have no integer kernel"),
    (nn.Sequential(nn.Linear(6, 1200), nn.Linear(1200, 1200)), intact.Recipe(), 1.2, "all of it runs in integers"),
])
def test_slower_than_float_says_why(net: nn.Module, recipe: intact.Recipe, ratio: float, words: str | None) -> None:
    q = intact.quantize(net, [torch.randn(8, 6)], recipe=recipe)
    found = [f for f in lint(q, (), Latency(1.0, ratio, "onnxruntime")) if f.problem is Problem.SLOWER]
    assert len(found) == (words is not None)
    if words is not None:
        assert re.search(words, str(found[0]))
