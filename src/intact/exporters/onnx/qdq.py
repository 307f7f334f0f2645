"""QModel -> ONNX with QuantizeLinear and DequantizeLinear, and the proof that the runtime gives our codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.certificate import Certificate, certify
from intact.exporters.files import check_path, is_large, placed, write
from intact.exporters.onnx.build import IO, build, build_float, instrumented
from intact.exporters.onnx.float import unsupported
from intact.graph import FloatModel, Node

__all__ = ["RUNTIMES", "build", "export_onnx", "float_onnx"]

#: targets that ONNX Runtime gives the codes of
RUNTIMES = ("onnxruntime", "x86_avx2")


def export_onnx(
    q: QModel,
    path: str | Path,
    *,
    data: Any = None,
    inputs: IO = "float",
    outputs: IO = "float",
    external_data: bool | None = None,
) -> Certificate:
    """Write an ONNX model after it was run in ONNX Runtime and gave the codes of ``q``.

    Nothing is left behind if the runtime disagrees. The certificate is returned, and stored beside the model as
    ``<path>.certificate.json``.

    Args:
        q: an integer model for target ``onnxruntime``.
        path: the file to write.
        data: a batch to compare on, as for calibration (a tensor, a tuple, a dict); by default the calibration samples
            that the model kept, or random ones.
        inputs: ``"float"``, or ``"codes"`` for integer tensors (scale and zero point stand in the
            model's metadata).
        outputs: likewise.
        external_data: weights in a file of their own; by default above 1.8 GB.

    Raises:
        ExportError: before anything is written: an operation without ONNX form, an unwritable path, codes that
            differ.
    """
    target = Path(path)
    check_path(target)
    _check_exportable(q)
    model = build(q, inputs=inputs, outputs=outputs)
    with placed(target) as draft:
        write(model, draft, is_large(model) if external_data is None else external_data)
        onnx.checker.check_model(str(draft), full_check=True)
        certificate = certify(q, instrumented(q), draft, data, inputs == "float" and outputs == "float")
        if not certificate.ok:
            raise ExportError("the runtime gives other codes", where=certificate.first_difference,
                              got=f"{certificate.codes_differ} of {certificate.codes_compared} codes differ",
                              fix="nothing was written; report this model")
        (draft.parent / f"{target.name}.certificate.json").write_text(certificate.to_json() + "\n")
    return certificate


def float_onnx(model: FloatModel, path: str | Path) -> Path:
    """Write the float model in ONNX, to compare sizes and speed with.

    Raises:
        ExportError: if an operation has no ONNX form.
    """
    target = Path(path)
    check_path(target)
    _refuse_unsupported(list(model.graph))
    proto = build_float(model)
    write(proto, target, is_large(proto))
    return target


def _check_exportable(q: QModel) -> None:
    if not isinstance(q, QModel):
        raise ExportError("export takes an integer model", got=type(q).__name__, fix="call intact.quantize first")
    if q.target.name not in RUNTIMES:
        raise ExportError("the model was made for another target", got=q.target.name, allowed=", ".join(RUNTIMES),
                          fix="quantize with target='onnxruntime'")
    _refuse_unsupported([n for n in q.graph if n.name not in q.bindings])


def _refuse_unsupported(nodes: list[Node]) -> None:
    bad = [(n, reason) for n in nodes if (reason := unsupported(n))]
    if bad:
        raise ExportError("the model has operations without ONNX form", where=place(bad[0][0]),
                          got="; ".join(f"{place(n)}: {r}" for n, r in bad[:5]),
                          fix="the integer model runs in Python; exclude these modules from the exported part")
