"""E2 and E3 for the LiteRT targets: every code of every edge, in the interpreter, whatever the scales; the options."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import ExportError, PlanError
from intact.exporters.certificate import Certificate
from intact.exporters.litert.export import build_litert, compare_litert
from intact.exporters.litert.file import schema
from intact.exporters.litert.run import LiteRTKernels, LiteRTModel
from tests.contract.test_targets import REFUSED, captured, widest
from tests.parity.cases import CASES, Case
from tests.parity.harness import calibrated, differing, hard_inputs, integer_ops, respecified

NARROW = ("litert", "litert_reference")
TARGETS = (*NARROW, "litert_16x8")


def certified(q: intact.QModel, inputs: Any, **options: Any) -> Certificate:
    return compare_litert(q, build_litert(q, **options), build_litert(q, **options, edges=True), inputs)


class Probabilities(nn.Module):
    """Softmax over each axis of an image, over classes, and of many values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(297, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [*(self.conv(torch.softmax(y, i)) for i in (1, 2, 3)), torch.softmax(self.head(y.flatten(1)), 1),
                self.head(torch.softmax(3 * y.flatten(1), 1))]


MORE = [
    Case("softmax of images and of classes", Probabilities, ((3, 9, 11),), frozenset({"softmax"})),
    Case("dimensions that are permuted and kept", lambda: nn.Sequential(nn.Linear(7, 6), nn.Flatten(0, 1),
         nn.Linear(6, 5)), ((4, 7),), frozenset({"linear"})),
]


class Encoder(nn.Module):
    """A small transformer: attention with and without a mask's scale, layer norms before and after, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.where = nn.Linear(12, 16), nn.Parameter(torch.randn(9, 16))
        layers = [nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu", norm_first=first)
                  for first in (True, False)]
        self.first, self.second = layers
        self.norm, self.head = nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.embed(x) + self.where))
        y: Tensor = self.head(self.norm(x).mean(1))
        return y


@pytest.mark.parametrize("target", TARGETS)
def test_a_transformer_in_one_call(target: str) -> None:
    torch.manual_seed(3)
    net, x = Encoder().eval(), torch.randn(32, 9, 12)
    q = intact.quantize(net, [x], target=target, progress=False)
    file = build_litert(q)
    operators = _operators(file.content)
    assert operators.count("BATCH_MATMUL") == 4 and operators.count("SOFTMAX") == 2
    assert certified(q, hard_inputs(q, 3)).clean
    with torch.no_grad():
        noise = float((q(x) - net(x)).square().mean() / net(x).square().mean())
    assert noise < (1e-4 if "16x8" in target else 2e-2)
    assert intact.compare(net, q, [x], latency=False).samples == 32
    fm = intact.planning.lowered(intact.capture(net, x[:2]), target)
    for kind in ("dyadic", "wild"):
        q = intact.convert(calibrated(fm, [x], kind=kind, target=target))
        assert certified(q, hard_inputs(q, 1)).clean, kind


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [*(c for c in CASES if c.name not in REFUSED["litert"]), *MORE], ids=lambda c: c.name)
def test_codes_equal_the_interpreter(case: Case, target: str) -> None:
    torch.manual_seed(1)
    xs = tuple(torch.randn(4, *s) for s in case.shapes)
    fm = intact.capture(case.build(), xs) if case in MORE else captured(case.name)[0]
    for kind in ("as calibrated", "dyadic", "wild"):
        recipe = intact.Recipe(default=intact.Quant(activation_bits=widest(target), activation_observer="minmax"))
        qfloat = calibrated(fm, xs, recipe, kind=kind, target=target)
        q = intact.convert(qfloat)
        assert case.covers & q.target.rules.keys() <= integer_ops(q)
        inputs = hard_inputs(q, 2)
        assert differing(qfloat, q, inputs) == []
        certificate = certified(q, inputs)
        assert (certificate.codes_differ, certificate.first_difference) == (0, None), kind
        assert certificate.clean, kind
        assert certificate.edges == len({k for k in q.qparams if q.graph[k].op != "constant"})


class Net(nn.Module):
    """Convolutions, a depthwise one, a residual, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.point(torch.nn.functional.relu6(self.deep(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def made(target: str = "litert", **quant: Any) -> tuple[intact.QModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 9, 9)
    recipe = intact.Recipe(default=intact.Quant(**quant)) if quant else None
    return intact.quantize(Net(), [x], target=target, recipe=recipe, progress=False), x


@pytest.mark.parametrize("target", NARROW)
@pytest.mark.parametrize(("weights", "activations"), [(4, 8), (8, 4), (3, 5), (8, 7)])
def test_fewer_bits_run_in_the_same_kernels(weights: int, activations: int, target: str) -> None:
    q, x = made(target, weight_bits=weights, activation_bits=activations)
    assert certified(q, {q.graph.inputs[0].name: 2 * x}).clean


@pytest.mark.parametrize("weights", [2, 4])
def test_fewer_bits_of_weights_with_wide_activations(weights: int) -> None:
    q, x = made("litert_16x8", weight_bits=weights, activation_bits=16)
    assert certified(q, {q.graph.inputs[0].name: 2 * x}).clean


@pytest.mark.parametrize("target", NARROW)
def test_the_other_kernels_give_other_codes(target: str) -> None:
    """What the two targets are for: on enough data, the wrong set of kernels differs."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 32, 32)
    q = intact.quantize(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), [x], target=target,
                        progress=False)
    file = build_litert(q)
    want = q(x[:8]).numpy()
    differ = {}
    for kernels in (LiteRTKernels.REFERENCE, LiteRTKernels.DELEGATED):
        model = LiteRTModel(file.content, kernels)
        (name, *_), = file.outputs
        found = np.concatenate([model.run({"input": x[i: i + 1].numpy()})[name] for i in range(8)])
        differ[kernels] = int((found != want).sum())
    assert differ.pop(file.kernels) == 0
    assert all(differ.values())


def test_without_additions_all_kernels_give_the_same_16_bit_codes() -> None:
    """Fed with codes; the input's QUANTIZE rounds in another way in a plain interpreter, and so does ADD."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 9, 9)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 8, 3, groups=8), nn.Tanh(), nn.Flatten(),
                        nn.Linear(200, 7), nn.Softmax(1))
    q = intact.quantize(net, [x], target="litert_16x8", progress=False)
    file = build_litert(q, inputs="codes", outputs="codes", batch=8)
    want = q.codes(x)
    for kernels in LiteRTKernels:
        (found,) = LiteRTModel(file.content, kernels).run({"input": want["input"].numpy()}).values()
        assert found.dtype == np.int16 and np.array_equal(found, want[q.graph.outputs[0]].numpy())
    file, ties = build_litert(q, batch=8, edges=True), hard_inputs(q, 8)["input"]
    codes, (tensor, _) = q.codes(ties)["input"].numpy(), file.edges["input"]
    differ = {k: int((LiteRTModel(file.content, k).run({"input": ties.numpy()})[tensor] != codes).sum())
              for k in LiteRTKernels}
    assert {k for k, n in differ.items() if n == 0} == {LiteRTKernels.REFERENCE}


@pytest.mark.parametrize("target", NARROW)
def test_hard_swish_is_one_operator(target: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1))
    q = intact.quantize(net, [x], target=target, progress=False)
    assert "HARD_SWISH" in _operators(build_litert(q).content) and certified(q, x).clean


def test_16_bits_need_no_table_where_there_is_an_operator() -> None:
    x = torch.randn(16, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Tanh(), nn.AvgPool2d(2), nn.ReLU(), nn.ReLU6(),
                        nn.Softmax(1), nn.Conv2d(8, 4, 1))
    q = intact.quantize(net, [x], target="litert_16x8", progress=False)
    operators = _operators(build_litert(q).content)
    assert "GATHER" not in operators and {"LOGISTIC", "TANH", "SOFTMAX"} <= set(operators) and certified(q, x).clean


class Squares(nn.Module):
    """Products of a tensor by itself, seen and hidden, beside one of equal values."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.ModuleList(nn.Linear(16, 3) for _ in range(4))
        self.zero = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> list[Tensor]:
        ys = [x * x, torch.relu(x * x.reshape(-1, 16)), x**2 - x, x + self.zero]
        return [f(y) for f, y in zip(self.after, ys, strict=True)]


@pytest.mark.parametrize("target", TARGETS)
def test_squares_and_constants_of_zeros(target: str) -> None:
    """XNNPACK multiplies a tensor by itself with another arithmetic; zeros have no scale of their own."""
    torch.manual_seed(0)
    x = 1e-3 * torch.randn(64, 16)
    fm = intact.capture(Squares(), x)
    for seed in range(3):
        qfloat = calibrated(fm, [x], kind="as calibrated", target=target)
        q = intact.convert(qfloat if not seed else respecified(qfloat, "dyadic", seed))
        inputs = {"x": every_code(q)}
        assert differing(qfloat, q, inputs) == [] and certified(q, inputs).clean


def every_code(q: intact.QModel) -> Tensor:
    """Inputs at every code of 8 bits (of 16: some)."""
    p = q.qparams["x"]
    codes = torch.linspace(p.qtype.qmin, p.qtype.qmax, 256).round().reshape(16, 16)
    return (codes - p.zero_point) * p.scale


class Coarse(nn.Module):
    """A sum of large values of which the clamp keeps a small part: its step is far below theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer((x + x.flip(1)).clamp(-0.5, 0.5))
        return y


def test_an_operand_that_is_too_coarse_for_xnnpack_is_refused_by_name() -> None:
    x = 1000 * torch.randn(64, 4)
    with pytest.raises(PlanError, match="XNNPACK has no kernel") as caught:
        intact.quantize(Coarse(), [x], target="litert", progress=False)
    assert "litert_reference" in str(caught.value)
    assert certified(intact.quantize(Coarse(), [x], target="litert_reference", progress=False), x).clean


class Beyond(nn.Module):
    """Products of more axes than the kernels take, with a vector, and a long mean."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "axes":
            y = x.reshape(-1, 1, 1, 1, 256, 256)
            return y @ y
        return x.mean((2, 3)) if self.what == "mean" else x @ torch.ones(256)


@pytest.mark.parametrize(("what", "said"), [("axes", "more than 5 axes"), ("mean", "a mean over 65536 values"),
                                            ("vector", "vector")])
def test_what_has_no_exact_kernel_is_refused_in_the_plan(what: str, said: str) -> None:
    fm = intact.capture(Beyond(what), torch.randn(2, 1, 256, 256))
    with pytest.raises(PlanError, match=said):
        intact.plan(fm, "litert_16x8")


def test_a_split_layer_norm_is_offered() -> None:
    fm = intact.capture(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(2, 8))
    with pytest.raises(PlanError, match="lowered"):
        intact.plan(fm, "litert")
    assert "layer_norm" in str(intact.plan(fm, "fixed_point"))


@pytest.mark.parametrize("io", ["float", "codes"])
@pytest.mark.parametrize("layout", ["torch", "channels_last"])
@pytest.mark.parametrize("batch", [1, 4])
def test_inputs_outputs_layout_and_batch(io: Any, layout: Any, batch: int, tmp_path: Path) -> None:
    q, x = made()
    certificate = intact.export(q, tmp_path / "net.tflite", data=x, inputs=io, outputs=io, layout=layout, batch=batch)
    assert certificate.clean and certificate.samples == 16 and certificate.batches == (batch,)
    model = LiteRTModel((tmp_path / "net.tflite").read_bytes(), LiteRTKernels.DELEGATED)
    part = x[:batch]
    codes = q.codes(part)
    value = codes["x"].numpy() if io == "codes" else part.numpy()
    value = value.transpose(0, 2, 3, 1) if layout == "channels_last" else value
    (found,) = model.run({"x": np.ascontiguousarray(value)}).values()
    (edge,) = q.graph.outputs
    assert np.array_equal(found, codes[edge].numpy() if io == "codes" else q(part).numpy())


def test_only_the_outside_is_transposed() -> None:
    """Convolutions, sums and means follow one another in LiteRT's own order of axes."""
    q, _ = made()
    for layout, count in (("torch", 1), ("channels_last", 0)):
        file = build_litert(q, layout=layout)  # type: ignore[arg-type]
        assert sum(c == "TRANSPOSE" for c in _operators(file.content)) == count
    assert "DEPTHWISE_CONV_2D" in _operators(file.content)


def _operators(content: bytes) -> list[str]:
    s = schema()
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(content))
    names = {v: k for k, v in vars(s.BuiltinOperator).items() if isinstance(v, int)}
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


def test_a_file_whose_codes_differ_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q, _ = made()
    first = next(k for k in q.program.kernels.values() if k.binding.op == "conv")
    monkeypatch.setattr(first, "codes", -first.codes)  # type: ignore[attr-defined]  # no longer what the file holds
    with pytest.raises(ExportError, match="the runtime gives other codes") as caught:
        intact.export(q, tmp_path / "net.tflite")
    assert "conv" in str(caught.value.where)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q, _ = made()
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("ai_edge_litert"):
            raise ImportError("no ai_edge_litert")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match="ai-edge-litert") as caught:
        intact.export(q, tmp_path / "net.tflite")
    assert "pip install 'intact[litert]'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_for_another_runtime(tmp_path: Path) -> None:
    q = intact.quantize(nn.Linear(4, 2), [torch.randn(8, 4)], progress=False)
    with pytest.raises(ExportError, match="another target") as caught:
        intact.export(q, tmp_path / "net.tflite")
    assert "target='litert'" in str(caught.value)
    for target, said in (("litert", "computes in float"), ("litert_reference", "have no C form")):
        with pytest.raises(ExportError, match=said):
            intact.export(made(target)[0], tmp_path / "net.c")
    q, _ = made()
    with pytest.raises(ExportError, match="no such free axis"):
        intact.export(q, tmp_path / "net.tflite", sizes={"length": 5})
    assert list(tmp_path.iterdir()) == []


def test_a_free_axis_has_one_size_in_the_file() -> None:
    net, x = nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(5, 2, 1)), torch.randn(8, 3, 21)
    fm = intact.capture(net, x, dynamic={"input": {2: "length"}})
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, target="litert")), [x])
    q = intact.convert(qfloat)
    for sizes, length in ((None, 21), ({"length": 40}, 40)):
        certificate = certified(q, x, sizes=sizes)
        assert certificate.clean and certificate.sizes == {"length": (length,)}


def test_averages_are_on_their_operands_grid_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    fm = intact.capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.UpsamplingBilinear2d(scale_factor=2)), x)
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm, target="litert")), [x])
    scale = float(qfloat.bound.qparams[qfloat.plan.graph.outputs[0]].scale)
    y = qfloat.train()(x)
    assert y.requires_grad
    steps = y.detach() / scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)  # values of codes, in float32


def test_names_that_clash() -> None:
    class Clash(nn.Module):
        def forward(self, output: Tensor, shape: Tensor) -> Tensor:
            y: Tensor = output.flatten(1) * 2 + shape
            return y

    xs = (torch.randn(8, 2, 3), torch.randn(8, 6))
    q = intact.quantize(Clash(), [xs], target="litert", progress=False)
    assert certified(q, xs).clean


class Ends(nn.Module):
    """What leaves is an input, a constant, and a mean over more axes than a delegate takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.value = nn.Conv2d(4, 4, 1), nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        b, _, h, w = x.shape
        tiles = self.layer(x).view(b, 2, 2, h // 2, 2, w // 2, 2).permute(0, 6, 4, 1, 2, 3, 5)
        return [x, self.value, x.flatten(1), tiles.mean((1, 4)), tiles.mean(1, keepdim=True)]


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_and_constants_leave_as_codes_and_means_have_many_axes(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Ends(), torch.randn(8, 4, 6, 6)
    q = intact.quantize(net, [x], target=target, progress=False)
    assert not torch.equal(q(x)[0], x) and float((q(x)[0] - x).abs().max()) < 0.05
    for options in ({}, {"inputs": "codes", "outputs": "codes"}, {"layout": "channels_last"}):
        assert intact.export(q, tmp_path / "net.tflite", data=x[:2], **options).clean, options


def test_softmax_of_few_bits_runs_in_the_kernel_of_eight() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 3)), torch.randn(8, 6)
    for target in NARROW:
        recipe = intact.Recipe(default=intact.Quant(activation_bits=5))
        q = intact.quantize(net, [x], target=target, recipe=recipe, progress=False)
        assert certified(q, (x,)).clean
