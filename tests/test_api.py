"""The one call takes modules, captured models and exported programs alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import intact
from intact import CalibrationError, CaptureError, IntactError
from intact.graph.passes import DEFAULT_PASSES, EqualizeChannels


def net() -> nn.Sequential:
    torch.manual_seed(5)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
                           nn.Flatten(), nn.Linear(96, 4)).eval()
    layers[1].running_var.copy_(torch.logspace(-1, 1, 8))
    return layers


def data(batch: int = 6) -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(batch, 3, 8, 8, generator=g), torch.arange(batch) % 4) for _ in range(2)]


def program(batch: int, free: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1)},) if free else None
    return torch.export.export(net(), (data(batch)[0][0],), dynamic_shapes=shapes)


def test_a_captured_model_and_a_program_give_the_modules_codes() -> None:
    batches, x = data(), data()[0][0]
    q = intact.quantize(net(), batches)
    for model in (intact.capture(net(), x), program(6, True), program(6, False)):
        other = intact.quantize(model, batches)
        codes, mine = q.codes(x), other.codes(x)
        assert codes.keys() == mine.keys()
        assert all(torch.equal(codes[k], mine[k]) for k in codes)
    assert torch.equal(intact.capture(program(6, True))(x), intact.capture(net(), x)(x))


@pytest.mark.parametrize("kind", ["module", "captured", "program", "fixed program"])
def test_compare_takes_what_quantize_takes(kind: str) -> None:
    model: Any = {"module": net, "captured": lambda: intact.capture(net(), data()[0][0]),
                  "program": lambda: program(3, True), "fixed program": lambda: program(6, False)}[kind]()
    q = intact.quantize(model, iter(data()))
    report = intact.compare(model, q, iter(data()))
    assert report.samples == 12 and report.metric is not None and report.latency is not None
    assert report.latency.engine.endswith("batches of 6") == (kind == "fixed program")
    assert report.agreement is not None and report.outputs[0].error.sqnr_db > 25


@pytest.mark.parametrize("free", [True, False])
def test_a_program_is_compared_with_the_passes_of_the_artifact(free: bool, tmp_path: Path) -> None:
    passes = (*DEFAULT_PASSES[:3], EqualizeChannels(), *DEFAULT_PASSES[3:])
    fm = intact.capture(net(), data()[0][0], passes=passes)
    assert fm.equalization
    whole = intact.quantize(fm, data())
    model = program(6, free)
    q = whole if free else intact.quantize(intact.capture(model, passes=passes), data())
    report = intact.compare(model, intact.load(intact.save(q, tmp_path / "net.intact")), data(), latency=False)
    assert all(site.weight is None or site.weight.sqnr_db > 30 for site in report.sites)
    assert report.to_json() == intact.compare(net() if free else intact.capture(model, passes=passes), q, data(),
                                              latency=False).to_json()


@pytest.mark.parametrize(("model", "batches", "error", "words"), [
    (torch.relu, [torch.zeros(2, 3)], CaptureError, "no model"),
    (nn.Linear(3, 2), torch.zeros(2, 3), CalibrationError, "not an iterable of batches"),
    (nn.Linear(3, 2), [], CalibrationError, "no data"),
])
def test_what_is_neither(model: Any, batches: Any, error: type[IntactError], words: str) -> None:
    with pytest.raises(error, match=words):
        intact.quantize(model, batches)
    with pytest.raises(error, match=words):
        intact.compare(model, intact.quantize(nn.Linear(3, 2), [torch.zeros(2, 3)]), batches)
    with pytest.raises(IntactError, match="integer model second"):
        intact.compare(nn.Linear(3, 2), nn.Linear(3, 2), [torch.zeros(2, 3)])  # type: ignore[arg-type]


def test_an_export_is_checked_on_any_batch(tmp_path):
    """As for calibration: a tensor, (inputs, labels), a dict."""
    x, y = torch.randn(6, 3), torch.zeros(6)
    q = intact.quantize(torch.nn.Linear(3, 2), [x])
    for batch in (x, (x, y), [x], {"input": x, "label": y}):
        certificate = intact.export(q, tmp_path / "net.onnx", data=batch)
        assert (certificate.samples, certificate.codes_differ) == (6, 0)
