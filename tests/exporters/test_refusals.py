"""What cannot be exported is named early, and where it stands in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import intact
from intact.errors import ExportError
from intact.exporters import float_onnx
from intact.exporters.onnx import qdq
from intact.exporters.onnx.float import EXPORTABLE
from intact.exporters.runtime import run_model
from intact.graph.generic import declared
from intact.targets.catalog.onnxruntime import ONNXRUNTIME


class Median(nn.Module):
    """An operation without ONNX form, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x).kthvalue(2, 1).values.flatten(1))
        return y


class Wrapped(nn.Module):
    """The same in a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Median()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return y


X = torch.randn(4, 3, 8, 8)


def test_the_target_knows_what_the_exporter_has() -> None:
    # if not: write sorted(EXPORTABLE), one a line, to targets/catalog/onnx_operations.txt
    assert ONNXRUNTIME.exported == EXPORTABLE


def test_what_is_exported_may_be_run() -> None:
    assert [t for t in EXPORTABLE if t.startswith("aten.") and declared(t) is None] == []


@pytest.mark.parametrize(("net", "place"), [(Median(), "the model itself"), (Wrapped(), "part")])
def test_the_plan_and_the_error_name_the_operation(net: nn.Module, place: str, tmp_path: Path) -> None:
    fm = intact.capture(net, X)
    text = str(intact.plan(fm))
    assert f"{place}: aten.kthvalue.default runs in float in Python; it has no ONNX form yet: export will refuse it" \
        in text
    assert "export will refuse" not in str(intact.plan(fm, target="reference"))
    q = intact.quantize(net, [X], progress=False)
    assert q(X).shape == (4, 2)
    for export, model in ((intact.export, q), (float_onnx, fm)):
        with pytest.raises(ExportError) as caught:
            export(model, tmp_path / "net.onnx")  # type: ignore[operator]
        assert caught.value.where == f"{place} (aten.kthvalue.default)"
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_can_be_exported_has_no_such_note() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    assert "export will refuse" not in str(intact.plan(intact.capture(net, X)))


def test_options_that_an_export_does_not_have(tmp_path: Path) -> None:
    net = nn.Linear(4, 2)
    models = {"net.onnx": intact.quantize(net, [torch.randn(8, 4)], progress=False),
              "net.c": intact.quantize(net, [torch.randn(8, 4)], target="fixed_point", progress=False),
              "leaves.onnx": intact.quantize_dynamic(net)}
    for name, q in models.items():
        with pytest.raises(ExportError, match="no such option") as error:
            intact.export(q, tmp_path / name, layout="torch")
        assert error.value.got == "layout" and "data" in str(error.value.allowed)
    with pytest.raises(ExportError, match=r"\*\.tflite"):
        intact.export(models["net.onnx"], tmp_path / "net.bin")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q = intact.quantize(nn.Linear(8, 4), [torch.randn(8, 8)], progress=False)
    monkeypatch.setattr(qdq, "build", None)
    with pytest.raises(ExportError, match="the output folder does not exist") as caught:
        intact.export(q, tmp_path / "none" / "net.onnx")
    assert caught.value.where == str(tmp_path / "none" / "net.onnx")


def test_a_model_for_processors_without_vnni_is_a_file_for_the_same_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = intact.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), [torch.randn(4, 3, 9, 9)],
                        target="x86_avx2")
    assert {b.weight.qparams.qtype.bits for b in q.bindings.values() if b.weight is not None} == {7}
    assert intact.export(q, tmp_path / "net.onnx").ok


def test_a_model_that_the_runtime_cannot_run_is_an_error_of_ours() -> None:
    x, shape = (helper.make_tensor_value_info(n, kind, [None]) for n, kind in (("x", 1), ("shape", 7)))
    y = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", [x, shape], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ExportError, match=r"ONNX Runtime fails in the model.*report this model"):
        run_model(model, {"x": np.zeros(4, np.float32), "shape": np.array([3])})
