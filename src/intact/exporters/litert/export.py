"""QModel -> a LiteRT file, once the interpreter gave the codes of every edge."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from intact.arithmetic import dequantize
from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.certificate import Certificate, example_inputs, named_inputs
from intact.exporters.files import check_path
from intact.exporters.litert.build import Builder, Dialect, Perm, channels_last
from intact.exporters.litert.file import LiteRTTensor, litert_bytes, schema
from intact.exporters.litert.ops import EMITTERS
from intact.exporters.litert.run import LiteRTKernels, LiteRTModel
from intact.exporters.onnx.build import IO, output_names
from intact.graph.free import free_symbols, resized
from intact.graph.signature import check_inputs
from intact.targets.catalog.litert import LITERT, LITERT_16X8, LITERT_REFERENCE
from intact.types.dims import BATCH, Sizes

__all__ = ["LiteRTFile", "build_litert", "compare_litert", "export_litert"]

Layout = Literal["torch", "channels_last"]
_MOST_AXES = 4
_DIALECTS = {
    LITERT.name: (LITERT, Dialect(LiteRTKernels.DELEGATED, "delegated", linear_as_conv=False)),
    LITERT_REFERENCE.name: (LITERT_REFERENCE, Dialect(LiteRTKernels.REFERENCE, "reference", linear_as_conv=True)),
    LITERT_16X8.name: (LITERT_16X8, Dialect(LiteRTKernels.REFERENCE, "reference", linear_as_conv=True, bits=16)),
}
#: operators that compute a kernel of the plan
_SAME = {"CONV_2D": ("CONV_2D", "DEPTHWISE_CONV_2D"), "MUL": ("MUL", "GATHER"),
         "table": ("GATHER", "LOGISTIC", "TANH", "RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "MUL", "ADD",
                   "MINIMUM")}


@dataclass(frozen=True)
class LiteRTFile:
    """A file's content, and how to read it.

    Args:
        content: the flatbuffer.
        edges: edge name to the tensor of its codes, and the order of its axes in memory.
        inputs: input name to the order of its axes.
        outputs: tensor name, edge and order of axes of every output.
        codes: of each planned node, which operators compute it.
        kernels: the set that the file is written for.
        sizes: of every free axis, the batch among them.
    """

    content: bytes
    edges: Mapping[str, tuple[str, Perm]]
    inputs: Mapping[str, Perm]
    outputs: tuple[tuple[str, str, Perm], ...]
    codes: Mapping[str, tuple[str, ...]]
    kernels: LiteRTKernels
    sizes: Sizes


def export_litert(
    q: QModel,
    path: str | Path,
    *,
    data: Any = None,
    inputs: IO = "float",
    outputs: IO = "float",
    layout: Layout = "torch",
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
) -> Certificate:
    """Write a LiteRT file after the interpreter ran it and gave the codes of ``q`` on every edge.

    Nothing is left behind if a code differs. The certificate is returned, and stored beside the model as
    ``<path>.certificate.json``.

    Args:
        q: an integer model for target ``litert`` (what ``Interpreter(path)`` runs), or for ``litert_reference`` or
            ``litert_16x8`` (the reference kernels, which TFLite Micro follows).
        path: the file to write.
        data: a batch to compare on, as for calibration; by default the calibration samples that the model kept, or
            random ones.
        inputs: ``"float"``: the file quantizes; ``"codes"``: int8 or int16 tensors, whose scale and zero point the file
            has.
        outputs: likewise.
        layout: of inputs and outputs with 3 and 4 axes: as the model has them, or ``"channels_last"`` as LiteRT has
            them, without a transposition.
        batch: samples in a call; the shapes of a file are fixed.
        sizes: of each other free axis of the model; by default those of the calibration samples.

    Raises:
        ExportError: before anything is written: no package ai-edge-litert, an unwritable path, a model for another
            target, codes that differ.
    """
    target = Path(path)
    check_path(target)
    file = build_litert(q, inputs=inputs, outputs=outputs, layout=layout, batch=batch, sizes=sizes)
    certificate = compare_litert(q, file, build_litert(q, layout=layout, batch=batch, sizes=sizes, edges=True), data)
    if not certificate.ok or certificate.outputs_differ:
        raise ExportError("the runtime gives other codes", where=certificate.first_difference,
                          got=f"{certificate.codes_differ} of {certificate.codes_compared} codes and "
                              f"{certificate.outputs_differ} outputs differ",
                          fix="nothing was written; report this model")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".intact-") as folder:
        (Path(folder) / target.name).write_bytes(file.content)
        (Path(folder) / f"{target.name}.certificate.json").write_text(certificate.to_json() + "\n")
        for draft in sorted(Path(folder).iterdir()):
            os.replace(draft, target.parent / draft.name)
    return certificate


def _dialect(q: QModel) -> Dialect:
    """The set of kernels that a model is for.

    Raises:
        ExportError: for another target, or for one of that name with other number rules.
    """
    if not isinstance(q, QModel):
        raise ExportError("export takes an integer model", got=type(q).__name__, fix="call intact.quantize first")
    for target, dialect in _DIALECTS.values():
        if q.target.arithmetic == target.arithmetic:
            return dialect
    raise ExportError("the model was made for another target", got=q.target.name, allowed=", ".join(_DIALECTS),
                      fix="quantize with target='litert', or 'litert_reference' for microcontrollers")


def build_litert(
    q: QModel, *, inputs: IO = "float", outputs: IO = "float", layout: Layout = "torch", batch: int = 1,
    sizes: Mapping[str, int] | None = None, edges: bool = False,
) -> LiteRTFile:
    """The file of an integer model; with ``edges`` the codes of every edge are outputs too.

    Raises:
        ExportError: for a model that has no LiteRT form.
    """
    schema()
    dialect = _dialect(q)
    results = output_names(q.graph)
    whole = {**check_inputs(q.graph, example_inputs(q)), BATCH: batch, **(sizes or {})}
    if unknown := set(sizes or {}) - set(free_symbols(q.graph)):
        raise ExportError("the model has no such free axis", got=", ".join(sorted(unknown)),
                          allowed=", ".join(free_symbols(q.graph)) or "none", fix="the size of the batch is batch=")
    b = Builder(q.graph, q.float_params, q.qparams, q.bindings, q.target.arithmetic, dialect, whole,
                reserved=frozenset([*(n.name for n in q.graph.inputs), *(name for name, _ in results)]))
    made: dict[str, tuple[str, ...]] = {}
    feeds: dict[str, Perm] = {}
    for node in q.graph:
        start = len(b.ops)
        if node.op == "input":
            feeds[node.name] = _input(b, node.name, inputs, layout)
        elif node.name in q.bindings:
            EMITTERS[node.op](b, node, q.bindings[node.name])
        elif node.op != "constant":
            raise ExportError("the model has operations without LiteRT form", where=place(node),
                              fix="quantize with target='litert', which refuses them before any data is read")
        made[node.name] = tuple(op.code for op in b.ops[start:])
    found = tuple((name, edge, _output(b, name, edge, outputs, layout)) for name, edge in results)
    places = {e: (name, perm) for e in q.qparams if q.graph[e].op != "constant" and e in b.places
              for perm, name in [b.where(e)]}
    names = [name for name, _, _ in found]
    if edges:
        computed = {o for op in b.ops for o in op.outputs}
        names += sorted({name for name, _ in places.values()} & computed - set(names))
    ops = b.pruned(names)
    used = {*feeds, *names, *(i for op in ops for i in (*op.inputs, *op.outputs))}
    content = litert_bytes([t for t in b.tensors.values() if t.name in used], ops, list(feeds), names)
    return LiteRTFile(content, places, feeds, found, made, dialect.kernels, whole)


def _outside(rank: int, layout: Layout) -> Perm:
    return channels_last(rank) if layout == "channels_last" and rank in (3, 4) else tuple(range(rank))


def _input(b: Builder, name: str, io: IO, layout: Layout) -> Perm:
    """The file's input, and the codes that it becomes."""
    shape, q = b.shape(name), b.qparams.get(name)
    perm = _outside(len(shape), layout)
    sizes = [shape[p] for p in perm]
    if q is None:
        b.add(name, b.graph[name].dtype, sizes)
        b.put(name, perm, name)
    elif io == "codes":
        b.add(name, b.dialect.dtype, sizes, q)
        b.put(name, perm, name)
        _check_whole(b, name)
    else:
        b.add(name, "float32", sizes)
        codes = b.add(b.unique(f"{name}:codes"), b.dialect.dtype, sizes, q)
        few = _delegated(sizes)
        result = codes if few == tuple(sizes) else b.like(codes, f"{name}:flat", few)
        b.finish(b.op("QUANTIZE", [b.reshape(name, few)], result), codes)
        low, high = q.qtype.qmin, q.qtype.qmax
        if (low, high) != b.dialect.codes:
            codes = b.clamp_codes(codes, b.like(codes, f"{name}:clamped", sizes), low, high, q)
        b.put(name, perm, codes)
    return perm


def _check_whole(b: Builder, name: str) -> None:
    if b.qparams[name].qtype.bits != b.dialect.bits:
        raise ExportError(f"an input of fewer than {b.dialect.bits} bits cannot be fed as codes", where=name,
                          fix="inputs='float'")


def _output(b: Builder, name: str, edge: str, io: IO, layout: Layout) -> Perm:
    """One output of the file, from an edge."""
    perm = _outside(len(b.shape(edge)), layout)
    source = b.get(edge, perm)
    t = b.tensors[source]
    if b.graph[edge].op == "constant":  # the interpreter runs nothing that depends on no input
        values = dequantize(torch.from_numpy(np.asarray(t.data)), b.qparams[edge]).numpy()
        number = LiteRTTensor(name, "float32", t.shape, data=values)
        b.tensors[name] = replace(t, name=name) if io == "codes" else number
        return perm
    if t.dtype == "float32" or io == "codes":
        out = b.add(name, t.dtype, t.shape, b.qparams.get(edge))
        b.op("RESHAPE", [source, b.const(":shape", np.array(t.shape, np.int32))], out,
             newShape=np.array(t.shape, np.int32))
    else:
        b.add(name, "float32", t.shape)
        sizes = _delegated(t.shape)
        result = name if sizes == t.shape else b.like(name, f"{name}:flat", sizes)
        b.finish(b.op("DEQUANTIZE", [b.reshape(source, sizes)], result), name)
    return perm


def _delegated(shape: Sequence[int]) -> tuple[int, ...]:
    """The same numbers in no more axes than XNNPACK takes; other kernels round elsewhere."""
    return tuple(shape) if len(shape) <= _MOST_AXES else (math.prod(shape),)


# -- the certificate ------------------------------------------------------------------------------


def _batches(q: QModel, inputs: Mapping[str, Tensor], sizes: Sizes) -> Iterator[dict[str, Tensor]]:
    """The inputs in batches of the file's sizes; the last one is filled up from its start."""
    batched = {n.name for n in q.graph.inputs if n.shape and n.shape[0] == BATCH}
    samples, step = check_inputs(q.graph, inputs)[BATCH], sizes[BATCH]
    for start in range(0, samples if batched else 1, step):
        part = {k: v[start: start + step] if k in batched else v for k, v in inputs.items()}
        yield resized(q.graph, part, sizes)


def _back(value: np.ndarray[Any, Any], perm: Perm) -> np.ndarray[Any, Any]:
    return np.transpose(value, np.argsort(perm)) if perm else value


def compare_litert(q: QModel, file: LiteRTFile, twin: LiteRTFile, data: Any = None) -> Certificate:
    """Run a file and its twin that gives every edge, and hold both against the integer model."""
    inputs = named_inputs(q, data) if data is not None else example_inputs(q)
    whole, product = (LiteRTModel(f.content, f.kernels) for f in (twin, file))
    compared = differ = outputs = outputs_differ = 0
    largest, first = 0.0, None
    for part in _batches(q, inputs, file.sizes):
        ours, values = _ours(q, part)
        found = whole.run(_feeds(twin, part, ours, q))
        for edge, (tensor, perm) in twin.edges.items():
            if tensor not in found:
                continue
            wrong = int((ours[edge].numpy() != _back(found[tensor], perm)).sum())
            compared, differ = compared + ours[edge].numel(), differ + wrong
            if wrong and first is None:
                node = q.graph[edge]
                first = f"{node.path or node.name} ({node.op}, edge '{edge}')"
        results = product.run(_feeds(file, part, ours, q))
        for name, edge, perm in file.outputs:
            theirs = _back(results[name], perm)
            mine = (ours[edge] if theirs.dtype in (np.int8, np.int16) else values[edge]).numpy()
            outputs, outputs_differ = outputs + mine.size, outputs_differ + int((mine != theirs).sum())
            gap = np.abs(mine.astype(np.float64) - theirs.astype(np.float64))
            largest = max(largest, float(gap.max())) if gap.size else largest
    planned, actual, missing = _kernels(q, file)
    macs: Mapping[str, int] = q.info.get("macs", {})
    done = sum(m for n, m in macs.items() if n not in missing)
    runtime = f"LiteRT {metadata.version('ai-edge-litert')}, kernels {file.kernels.value}"
    return Certificate(
        runtime, check_inputs(q.graph, inputs)[BATCH], len(twin.edges), compared, differ, first, 0, 0, outputs,
        outputs_differ, largest, planned, actual, tuple(missing), done / sum(macs.values()) if macs else 1.0,
        batches=(file.sizes[BATCH],), sizes={name: (file.sizes[name],) for name in free_symbols(q.graph)})


def _ours(q: QModel, part: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    codes: dict[str, Tensor] = {}

    def tap(name: str, value: Tensor) -> None:
        codes[name] = value.to(q.qparams[name].qtype.storage)

    return codes, q.program.values(part, integer=True, tap=tap)


def _feeds(file: LiteRTFile, part: Mapping[str, Tensor], ours: Mapping[str, Tensor], q: QModel) -> dict[str, Any]:
    """What the file's inputs are given: floats, or codes."""
    feeds = {}
    for name, perm in file.inputs.items():
        codes = name in file.edges and file.edges[name][0] == name and name in q.qparams
        feeds[name] = np.ascontiguousarray((ours if codes else part)[name].numpy().transpose(perm))
    return feeds


def _kernels(q: QModel, file: LiteRTFile) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Kernels in the plan, those among them that the file has, and nodes whose kernel it does not have."""
    planned = {n: k for n, k in q.info.get("kernels", {}).items() if k}
    missing = [n for n, k in planned.items() if not set(_SAME.get(k, (k,))) & set(file.codes.get(n, ()))]
    counts = (Counter(planned.values()), Counter(k for n, k in planned.items() if n not in missing))
    return dict(sorted(counts[0].items())), dict(sorted(counts[1].items())), missing
