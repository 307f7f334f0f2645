"""QModel -> ONNX with QuantizeLinear and DequantizeLinear, and the proof that the runtime gives our codes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import onnx

from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.certificate import Certificate, certify
from intact.exporters.onnx_build import IO, build, build_float, instrumented
from intact.exporters.onnx_float import unsupported
from intact.graph import FloatModel, Node

__all__ = ["RUNTIMES", "build", "check_path", "export_onnx", "float_onnx"]

#: targets that ONNX Runtime gives the codes of
RUNTIMES = ("onnxruntime", "x86_avx2")

_EXTERNAL_ABOVE = 1_800_000_000  # protobuf refuses 2 GiB


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
    external = external_data if external_data is not None else _size(model) > _EXTERNAL_ABOVE
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".intact-") as folder:
        draft = Path(folder) / target.name
        _write(model, draft, external)
        onnx.checker.check_model(str(draft), full_check=True)
        certificate = certify(q, instrumented(q), draft, data, inputs == "float" and outputs == "float")
        if not certificate.ok:
            raise ExportError("the runtime gives other codes", where=certificate.first_difference,
                              got=f"{certificate.codes_differ} of {certificate.codes_compared} codes differ",
                              fix="nothing was written; report this model")
        side = Path(folder) / f"{target.name}.certificate.json"
        side.write_text(certificate.to_json() + "\n")
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, target.parent / file.name)
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
    _write(proto, target, _size(proto) > _EXTERNAL_ABOVE)
    return target


def check_path(path: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        ExportError: saying why.
    """
    if path.is_dir():
        raise ExportError("the output path is a directory", where=str(path), fix="give a file name")
    folder = path.parent
    if not folder.is_dir():
        raise ExportError("the output folder does not exist", where=str(path), got=str(folder),
                          fix="create the folder, or choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError("the output folder cannot be written to", where=str(path), fix="choose another")


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


def _size(model: onnx.ModelProto) -> int:
    return sum(len(t.raw_data) for t in model.graph.initializer)


def _write(model: onnx.ModelProto, path: Path, external: bool) -> None:
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
                        location=f"{path.name}.data", size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))


