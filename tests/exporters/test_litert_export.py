"""E2 and E3 for both LiteRT targets: every code of every edge, in the interpreter, whatever the scales; the options."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import intact
from intact.errors import ExportError
from intact.exporters.certificate import Certificate
from intact.exporters.litert.export import build_litert, compare_litert
from intact.exporters.litert.file import schema
from intact.exporters.litert.run import LiteRTKernels, LiteRTModel
from tests.contract.test_targets import REFUSED, captured
from tests.parity.cases import CASES, Case
from tests.parity.harness import calibrated, differing, hard_inputs, integer_ops

TARGETS = ("litert", "litert_reference")
RECIPE = intact.Recipe(default=intact.Quant(activation_observer="minmax"))


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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [*(c for c in CASES if c.name not in REFUSED["litert"]), *MORE], ids=lambda c: c.name)
def test_codes_equal_the_interpreter(case: Case, target: str) -> None:
    torch.manual_seed(1)
    xs = tuple(torch.randn(4, *s) for s in case.shapes)
    fm = intact.capture(case.build(), xs) if case in MORE else captured(case.name)[0]
    for kind in ("as calibrated", "dyadic", "wild"):
        qfloat = calibrated(fm, xs, RECIPE, kind=kind, target=target)
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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("weights", "activations"), [(4, 8), (8, 4), (3, 5), (8, 7)])
def test_fewer_bits_run_in_the_same_kernels(weights: int, activations: int, target: str) -> None:
    q, x = made(target, weight_bits=weights, activation_bits=activations)
    assert certified(q, {q.graph.inputs[0].name: 2 * x}).clean


@pytest.mark.parametrize("target", TARGETS)
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
