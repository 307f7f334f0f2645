"""What goes wrong at the user's end: an error that says what, where and how to mend it, or a model that still works."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact import CaptureError, ExportError, IntactError, NonFiniteError, PlanError
from tests.parity.harness import certified, differing


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


X = torch.linspace(-2, 2, 4 * 3 * 64).reshape(4, 3, 8, 8)


def generator() -> Iterator[Tensor]:
    yield X
    yield X / 2


def exhausted() -> Iterator[Tensor]:
    g = generator()
    list(g)
    return g


def says(error: IntactError, *parts: str) -> None:
    """What, where or what was got, and the way out."""
    text = str(error)
    assert error.what and (error.where or error.got is not None) and (error.fix or error.allowed is not None), text
    assert [p for p in parts if p not in text] == [], text


# -- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "parts"), [
    ([], ("there is no", "data", "0 batches")),
    (exhausted(), ("there is no", "data", "generator")),
    (X, ("Tensor", "list of batches")),
    ("images", ("str", "list of batches")),
    (None, ("NoneType", "DataLoader")),
    ({"x": X}, ("dict", "list of batches")),
    ([()], ("empty tuple",)),
    ([None], ("NoneType", "yield tensors")),
    ([[1.0, 2.0]], ("float",)),
    ([X[:0]], ("empty",)),
    ([X, X[:0]], ("batch 1", "empty")),
    ([X, X[:, :2]], ("batch 1", "(4, 2, 8, 8)", "(batch, 3, 8, 8)")),
    ([X, X[..., :5]], ("batch 1", "wrong shape")),
    ([X, X[0]], ("batch 1", "wrong shape")),
    ([X, X.double()], ("batch 1", "float64", "float32")),
    ([X, X.to(torch.int64)], ("batch 1", "int64")),
    ([X, {"image": X}], ("image", "input")),
], ids=lambda v: "" if isinstance(v, tuple) else None)
def test_bad_data(data: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(IntactError) as caught:
        intact.quantize(net(), data)
    says(caught.value, *parts)


@pytest.mark.parametrize("first", [X[:, :2], X.double(), X.to(torch.int64), X[0], X[..., :2]],
                         ids=["channels", "float64", "int64", "no batch", "too small"])
def test_first_batch_does_not_fit_the_model(first: Tensor) -> None:
    with pytest.raises(IntactError) as caught:
        intact.quantize(net(), [first])
    says(caught.value, "example inputs")


def test_generator_is_read_once_and_whole() -> None:
    q, two = intact.quantize(net(), generator()), intact.quantize(net(), [X, X / 2])
    assert q.graph.inputs == two.graph.inputs
    assert {k: float(p.scale) for k, p in q.qparams.items() if p.scale.ndim == 0}.keys() == {
        k for k, p in two.qparams.items() if p.scale.ndim == 0}


def test_one_batch_of_one_sample_is_enough() -> None:
    q = intact.quantize(net(), [X[:1]])
    assert q(X).shape == (4, 5)


def test_labels_and_dictionaries_are_data() -> None:
    torch.manual_seed(0)
    model = net()
    expected = intact.quantize(model, [X])(X)
    for data in ([(X, torch.zeros(4))], [[X, torch.zeros(4)]], [{"input": X, "label": torch.zeros(4)}]):
        assert torch.equal(intact.quantize(model, data)(X), expected)


@pytest.mark.parametrize("bad", [X[:0], X[:, :2], X.double(), X[0], X.numpy(), None])
def test_integer_model_refuses_bad_inputs(bad: Any) -> None:
    q = intact.quantize(net(), [X])
    with pytest.raises(IntactError) as caught:
        q(bad)
    assert "input" in str(caught.value)


def test_integer_model_refuses_wrong_numbers_of_inputs() -> None:
    q = intact.quantize(net(), [X])
    for args, kwargs in (((), {}), ((X, X), {}), ((), {"image": X}), ((X,), {"input": X})):
        with pytest.raises(IntactError) as caught:
            q(*args, **kwargs)
        assert "input" in str(caught.value)


# -- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, net, torch.relu, X, "resnet18"])
def test_not_a_module(model: Any) -> None:
    with pytest.raises(IntactError) as caught:
        intact.quantize(model, [X])
    says(caught.value)
    with pytest.raises(CaptureError) as caught_:
        intact.capture(model, X)
    says(caught_.value, "torch.nn.Module")


def test_already_quantized() -> None:
    qfloat = intact.prepare(*(lambda fm: (fm, intact.plan(fm)))(intact.capture(net(), X)))
    for capture in (lambda: intact.capture(qfloat, X), lambda: intact.quantize(nn.Sequential(qfloat), [X])):
        with pytest.raises(CaptureError, match="already quantized") as caught:
            capture()
        says(caught.value)
    q = intact.quantize(net(), [X])
    with pytest.raises(IntactError):
        intact.quantize(q, [X])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_parameters_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError) as caught:
        intact.quantize(net().to(dtype), [X.to(dtype)])
    says(caught.value, "0.weight", "model.float()")


def test_unknown_target() -> None:
    with pytest.raises(PlanError) as caught:
        intact.quantize(net(), [X], target="onnxrutime")
    says(caught.value, "onnxruntime", "did you mean")


def test_stages_out_of_order() -> None:
    fm = intact.capture(net(), X)
    plan, other = intact.plan(fm), intact.plan(intact.capture(nn.Linear(3, 2), torch.zeros(2, 3)))
    qfloat = intact.prepare(fm, plan)
    for call in (lambda: intact.prepare(net(), plan), lambda: intact.prepare(fm, other), lambda: intact.convert(qfloat),
                 lambda: intact.convert(fm), lambda: intact.calibrate(net(), [X]), lambda: qfloat.codes(X),
                 lambda: intact.export(qfloat, "net.onnx"), lambda: intact.plan(net())):
        with pytest.raises(IntactError) as caught:
            call()
        says(caught.value)


# -- numbers that are not numbers ---------------------------------------------------------------


class Breaks(nn.Module):
    """Makes NaN or infinity from some input, somewhere inside."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.spoil = spoil
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.spoil(self.body(x)))
        return y


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_input_is_not_finite(value: float) -> None:
    bad = X.clone()
    bad[1, 2, 3, 4:6] = value
    with pytest.raises(NonFiniteError) as caught:
        intact.quantize(net(), [X, X, bad])
    says(caught.value, "input", "2 values", "batch 2")
    with pytest.raises(IntactError) as late:
        intact.quantize(net(), [X])(bad)
    says(late.value, "input", "2 values")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["0.weight", "3.weight", "0.bias", "3.bias"])
def test_parameter_is_not_finite(name: str, value: float) -> None:
    model = net()
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[1] = value
    with pytest.raises(IntactError) as caught:
        intact.quantize(model, [X])
    assert caught.value.where in (name, name.split(".")[0]), caught.value


@pytest.mark.parametrize("site", ["nan from a logarithm", "infinity from an exponential", "nan in the last layer"])
def test_network_makes_non_finite_values(site: str) -> None:
    spoils: dict[str, Callable[[Tensor], Tensor]] = {
        "nan from a logarithm": lambda y: torch.log(y - 1), "infinity from an exponential": lambda y: torch.exp(y * 20),
        "nan in the last layer": lambda y: y}
    model = Breaks(spoils[site])
    if site == "nan in the last layer":
        with torch.no_grad():
            model.head.bias[1] = math.nan
    with torch.no_grad():
        model.body[0].bias.fill_(2.0)
    fine, bad = X * 0, X * 50
    data = [fine, fine, bad] if site != "nan in the last layer" else [fine]
    with pytest.raises(NonFiniteError) as caught:
        intact.quantize(model, data)
    where = "head" if site == "nan in the last layer" else {"n": "log", "i": "exp"}[site[0]]
    says(caught.value, where, "batch 2" if len(data) > 1 else "batch 0", "values")


def test_first_site_is_named_not_where_it_shows() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[3].weight[0, 0] = 1e38
        model[3].weight[0, 1] = 1e38
    with pytest.raises(IntactError) as caught:
        intact.quantize(model, [torch.full((4, 4), 1e4)])
    assert caught.value.where == "3"


# -- numbers at the edge of what works ----------------------------------------------------------


def works(model: nn.Module, *data: Tensor, folder: Path) -> intact.QModel:
    """Quantizes; the three forms agree; outputs are finite."""
    fm = intact.capture(model.eval(), data[0])
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), data)
    q = intact.convert(qfloat)
    (edge,) = q.graph.inputs
    for x in data:
        assert differing(qfloat, q, {edge.name: x}) == []
        assert bool(torch.isfinite(q(x)).all())
    certificate = certified(q, folder)
    assert (certificate.codes_differ, certificate.first_difference, certificate.not_fused) == (0, None, ())
    return q


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-20, -1e20])
def test_constant_data(value: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = net(), torch.full((4, 3, 8, 8), value)
    q = works(model, x, folder=tmp_path)
    with torch.no_grad():
        want = model(x)
    assert float((q(x) - want).abs().max()) <= 0.02 * float(want.abs().max())


def test_channels_of_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        model[0].weight[1:3] = 0
        model[0].bias[2] = 0
        model[3].weight[0] = 0
        model[3].bias[0] = 0
    q = works(model, X, folder=tmp_path)
    assert torch.equal(q(X)[:, 0], torch.zeros(4))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(works(model, X, folder=tmp_path)(X), torch.zeros(4, 5))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-6, 1e6, 1e20, 1e30])
def test_weights_of_any_size(size: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    with torch.no_grad():
        model[0].weight.mul_(size)
        model[3].weight.div_(size)
    works(model, X, folder=tmp_path)
    mixed = nn.Linear(16, 6)
    with torch.no_grad():
        mixed.weight.mul_(torch.logspace(-30, 30, 6)[:, None])
    works(mixed, torch.randn(8, 16), folder=tmp_path)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("size", [1e4, 1e8, -1e12, 1e30])
def test_huge_biases_fit_into_int32(layer: int, size: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        model[layer].bias[0] = size
        model[layer].bias[1] = -size
        model[layer].weight.mul_(1e-3)
    q = works(model, X, folder=tmp_path)
    if abs(size) >= 1e8:
        assert any("bias" in text and path.startswith(str(layer)) for path, text in q.info["notes"])
    if layer == 3:
        assert float((q(X)[:, 0] / size - 1).abs().max()) < 1e-3


# -- recipes ------------------------------------------------------------------------------------


def test_rule_that_matches_nothing() -> None:
    recipe = intact.Recipe(rules=(intact.Rule(intact.path("backbone.conv7"), intact.FLOAT),))
    with pytest.raises(PlanError) as caught:
        intact.quantize(nn.Sequential(OrderedDict(backbone=nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 3))))), [X],
                        recipe=recipe)
    says(caught.value, "path('backbone.conv7')", "matches nothing", "nearest: backbone.conv1")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)))
        return y


def test_rules_that_contradict_on_a_tied_weight() -> None:
    recipe = intact.Recipe(rules=(intact.Rule(intact.path("b"), intact.Quant(weight_bits=4)),))
    with pytest.raises(PlanError) as caught:
        intact.quantize(Tied(), [torch.randn(8, 6)], recipe=recipe)
    says(caught.value, "a.weight", "int8", "int4", "'b'")


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [intact.export, intact.save], ids=["export", "save"])
def test_output_path_that_cannot_be_written(write: Callable[[intact.QModel, Path], object], tmp_path: Path) -> None:
    q = intact.quantize(net(), [X])
    suffix = "onnx" if write is intact.export else "intact"
    (tmp_path / "file").write_text("in the way")
    (tmp_path / f"folder.{suffix}").mkdir()
    for path in (tmp_path / "missing" / f"net.{suffix}", tmp_path / "file" / f"net.{suffix}",
                 tmp_path / f"folder.{suffix}"):
        with pytest.raises(IntactError) as caught:
            write(q, path)
        says(caught.value, str(path))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", f"folder.{suffix}"]


def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q = intact.quantize(net(), [X])
    (tmp_path / "net.onnx").write_text("the old one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises((IntactError, OSError)):
        intact.export(q, tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "the old one"


def test_difference_to_the_runtime_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q = intact.quantize(net(), [X])
    name = next(iter(q.bindings))
    kernel = q.program.kernels[name]
    kernel.multiplier = replace(kernel.multiplier, real=kernel.multiplier.real * 1.5)  # what a wrong kernel would do
    with pytest.raises(ExportError, match="other codes") as caught:
        intact.export(q, tmp_path / "net.onnx")
    says(caught.value, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "options"), [("net", {}), ("net.tflite", {}), ("net.onnx", {"format": "tflite"})])
def test_unknown_export_format(name: str, options: dict[str, str], tmp_path: Path) -> None:
    q = intact.quantize(net(), [X])
    with pytest.raises(ExportError) as caught:
        intact.export(q, tmp_path / name, **options)
    says(caught.value, "onnx")
    assert list(tmp_path.iterdir()) == []
