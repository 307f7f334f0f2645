"""QModel -> ONNX with QuantizeLinear and DequantizeLinear, and the proof that the runtime gives our codes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import helper
from torch import Tensor

from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import Builder
from intact.exporters.certificate import Certificate, certify
from intact.exporters.onnx_float import emit_float, unsupported
from intact.exporters.onnx_int import emit_integer
from intact.exporters.onnx_tables import emit_table
from intact.exporters.runtime import wrap
from intact.graph import FloatModel, Graph, Node
from intact.simulation.program import value_tables
from intact.types import QParams

__all__ = ["build", "export_onnx", "float_onnx"]

IO = Literal["float", "codes"]
_EXTERNAL_ABOVE = 1_800_000_000  # protobuf refuses 2 GiB


def export_onnx(
    q: QModel,
    path: str | Path,
    *,
    data: Mapping[str, Tensor] | None = None,
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
        data: named inputs to compare on; by default the calibration samples that the model kept, or random ones.
        inputs: ``"float"``, or ``"codes"`` for integer tensors (scale and zero point stand in the
            model's metadata).
        outputs: likewise.
        external_data: weights in a file of their own; by default above 1.8 GB.

    Raises:
        ExportError: before anything is written: an operation without ONNX form, an unwritable path, codes that
            differ.
    """
    target = Path(path)
    _check_path(target)
    _check_exportable(q)
    model = build(q, inputs=inputs, outputs=outputs)
    external = external_data if external_data is not None else _size(model) > _EXTERNAL_ABOVE
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".intact-") as folder:
        draft = Path(folder) / target.name
        _write(model, draft, external)
        onnx.checker.check_model(str(draft), full_check=True)
        certificate = certify(q, build(q, edges=True), draft, data, inputs == "float" and outputs == "float")
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
    _check_path(target)
    _refuse_unsupported(list(model.graph))
    b = Builder(model.graph, model.params, {}, {})
    proto = _build(b, model.graph, "float", "float", edges=False)
    _write(proto, target, _size(proto) > _EXTERNAL_ABOVE)
    return target


def build(q: QModel, *, inputs: IO = "float", outputs: IO = "float", edges: bool = False) -> onnx.ModelProto:
    """The ONNX model; with ``edges`` every edge's codes are outputs too."""
    b = Builder(q.graph, q.float_params, q.qparams, q.bindings)
    return _build(b, q.graph, inputs, outputs, edges)


def _build(b: Builder, graph: Graph, inputs: IO, outputs: IO, edges: bool) -> onnx.ModelProto:
    for node in graph:
        b._names.add(node.name)
    feeds: dict[str, tuple[str, list[Any]]] = {}
    tables = value_tables(graph, b.bindings, b.qparams)
    for node in graph:
        b.path = node.path
        if node.op == "input":
            feeds[node.name] = _input(b, node, inputs)
        elif node.name in b.bindings:
            emit_integer(b, node, b.bindings[node.name])
        elif node.name in tables:
            b.floats[node.name] = emit_table(b, node, tables[node.name])
        else:
            b.floats[node.name] = emit_float(b, node, [b.float_of(i) for i in node.inputs])
    b.path = ""
    results = _outputs(b, graph, outputs)
    if edges:
        results.update(_edge_outputs(b, graph))
    used = {i for n in b.nodes for i in n.input}
    b.initializers = {k: v for k, v in b.initializers.items() if k in used}
    model = wrap(b, feeds, results)
    _describe(b, graph, model, inputs, outputs)
    return model


def _input(b: Builder, node: Node, io: IO) -> tuple[str, list[Any]]:
    if io == "codes" and node.name in b.qparams:
        b.codes[node.name] = node.name
        return str(b.qparams[node.name].qtype.storage).removeprefix("torch."), list(node.shape)
    b.floats[node.name] = node.name
    return node.dtype, list(node.shape)


def _outputs(b: Builder, graph: Graph, io: IO) -> dict[str, tuple[str, list[Any]]]:
    """Named outputs. A tensor gets the output's name; one that is returned twice, or passed through, is copied."""
    results: dict[str, tuple[str, list[Any]]] = {}
    renamed: dict[str, str] = {}
    for name, edge in output_names(graph):
        node = graph[edge]
        if io == "codes":
            q = b.qparams.get(edge)
            if q is None or q.qtype.bits > 16:
                raise ExportError("an output has no codes", where=name, fix="plan with Recipe(quantized_outputs=True)")
            tensor, dtype = b.codes_of(edge), str(q.qtype.storage).removeprefix("torch.")
        else:
            tensor, dtype = b.float_of(edge), node.dtype
        made = any(tensor in n.output for n in b.nodes)
        if not made or tensor in renamed:
            copy = b.op("Identity", [renamed.get(tensor, tensor)], f"{name}:copy")
            renamed[copy] = name
        else:
            renamed[tensor] = name
        results[name] = (dtype, list(node.shape))
    for n in b.nodes:
        for i, v in enumerate(n.input):
            n.input[i] = renamed.get(v, v)
        for i, v in enumerate(n.output):
            n.output[i] = renamed.get(v, v)
    for table in (b.floats, b.codes, b.dequantized):
        table.update({k: renamed[v] for k, v in table.items() if v in renamed})
    return results


def output_names(graph: Graph) -> list[tuple[str, str]]:
    """(output name, edge): the user's keys, else ``output`` or ``output_0``, ``output_1``, ..."""
    found: list[tuple[str, str]] = []

    def walk(template: Mapping[str, Any], name: str) -> None:
        if template["kind"] == "edge":
            found.append((name, template["name"]))
        elif template["kind"] == "dict":
            for key, item in template["items"].items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif template["kind"] in ("tuple", "list"):
            for i, item in enumerate(template["items"]):
                walk(item, f"{name}.{i}" if name else f"output_{i}")

    walk(graph.output, "")
    taken = {n.name for n in graph.inputs}
    return [(name + "_out" if name in taken else name or "output", edge) for name, edge in found]


def _edge_outputs(b: Builder, graph: Graph) -> dict[str, tuple[str, list[Any]]]:
    """Codes (or the value of an accumulator) of every edge, under the tensors' own names."""
    results: dict[str, tuple[str, list[Any]]] = {}
    for node in graph:
        q = b.qparams.get(node.name)
        if q is None or node.op == "constant":
            continue
        if q.qtype.bits > 16:
            tensor, dtype = b.floats[node.name], "float32"
        elif node.name in b.codes:
            tensor, dtype = b.codes[node.name], str(q.qtype.storage).removeprefix("torch.")
        else:
            continue
        made = any(tensor in n.output for n in b.nodes)
        if made:
            results[tensor] = (dtype, list(node.shape))
    return results


def edge_tensors(q: QModel) -> dict[str, str]:
    """Edge name to the tensor of its codes (accumulator: value) in ``build(q, edges=True)``."""
    b = Builder(q.graph, q.float_params, q.qparams, q.bindings)
    _build(b, q.graph, "float", "float", True)
    return {
        n.name: b.floats[n.name] if q.qparams[n.name].qtype.bits > 16 else b.codes[n.name]
        for n in q.graph
        if n.name in q.qparams and n.op != "constant" and (n.name in b.codes or n.name in b.floats)
    }


def _describe(b: Builder, graph: Graph, model: onnx.ModelProto, inputs: IO, outputs: IO) -> None:
    """Scale and zero point of integer inputs and outputs, as metadata."""
    entries: dict[str, str] = {}
    pairs = [(n.name, n.name) for n in graph.inputs] if inputs == "codes" else []
    pairs += output_names(graph) if outputs == "codes" else []
    for name, edge in pairs:
        q: QParams | None = b.qparams.get(edge)
        if q is not None:
            entries[f"{name}.scale"] = float(q.scale).hex()
            entries[f"{name}.zero_point"] = str(int(q.zero_point))
    if entries:
        helper.set_model_props(model, dict(sorted(entries.items())))


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise ExportError("the output path is a directory", where=str(path), fix="give a file name")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ExportError("the output path cannot be written", where=str(path),
                          fix="create the folder, or choose another")


def _check_exportable(q: QModel) -> None:
    if not isinstance(q, QModel):
        raise ExportError("export takes an integer model", got=type(q).__name__, fix="call intact.quantize first")
    if q.target.name != "onnxruntime":
        raise ExportError("the model was made for another target", got=q.target.name, allowed="onnxruntime",
                          fix="quantize with target='onnxruntime'")
    _refuse_unsupported([n for n in q.graph if n.name not in q.bindings])


def _refuse_unsupported(nodes: list[Node]) -> None:
    bad = [(n, reason) for n in nodes if (reason := unsupported(n))]
    if bad:
        raise ExportError("the model has operations without ONNX form", where=bad[0][0].path or bad[0][0].name,
                          got="; ".join(f"{n.name}: {r}" for n, r in bad[:5]),
                          fix="the integer model runs in Python; exclude these modules from the exported part")


def _size(model: onnx.ModelProto) -> int:
    return sum(len(t.raw_data) for t in model.graph.initializer)


def _write(model: onnx.ModelProto, path: Path, external: bool) -> None:
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
                        location=f"{path.name}.data", size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))


