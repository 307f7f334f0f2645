"""An eager model with quantized layers -> ONNX, and the proof that the runtime's integers are the layers' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from intact.errors import ExportError
from intact.exporters.builder import place
from intact.exporters.certificate import Certificate
from intact.exporters.files import check_path, is_large, placed, write
from intact.exporters.leaves.certificate import Batch, certify_leaves
from intact.exporters.onnx.build import build_float, output_names
from intact.exporters.onnx.float import unsupported
from intact.graph import FloatModel
from intact.graph.capture import capture, evaluation_mode, normalise_example
from intact.graph.dynamic import differing_axes, first_free
from intact.graph.outputs import plain_result
from intact.graph.signature import check_inputs
from intact.graph.tree import leaves, map_leaves
from intact.leaves import has_leaves
from intact.leaves.base import Leaf
from intact.leaves.recording import as_operations
from intact.leaves.weight import QWeight
from intact.types.dims import BATCH

__all__ = ["export_leaves"]

_SAMPLES = 8  # to compare on; what is between the layers is compared value by value


def export_leaves(
    model: nn.Module, path: str | Path, *, example_inputs: Any = None, data: Any = None,
    external_data: bool | None = None, dynamic: Any = None,
) -> Certificate:
    """Write a model with quantized layers in ONNX, after it was run in ONNX Runtime.

    The model is captured; every quantized layer stays one operation, which is written in the form that the runtime has
    integer kernels for: ``DynamicQuantizeLinear`` and ``MatMulInteger`` (activations per tensor), the same by rows
    (per token), ``ConvInteger``, ``MatMulNBits`` (weights of 4 and 8 bits), codes that are looked up (embeddings), a
    ``Scan`` of such products (LSTM, GRU, RNN). Integers must be equal, each operation given the runtime's own
    operands; nothing is left behind if one is not.

    Args:
        model: from ``quantize_dynamic`` or ``quantize_weights``; it is not changed.
        path: the file to write.
        example_inputs: a batch to capture with: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
            The batch size stays free.
        data: batches like it, to compare on: one, or a list of them (of several lengths, say); by default the same.
        external_data: weights in a file of their own; by default above 1.8 GB.
        dynamic: axes besides the batch that stay free, as :func:`intact.capture` takes them; by default those whose
            sizes differ between ``example_inputs`` and ``data``.

    Returns:
        The certificate, which is also stored beside the model as ``<path>.certificate.json``.

    Raises:
        ExportError: before anything is written: nothing is quantized, there are no inputs, an operation has no ONNX
            form, an integer differs.
        CaptureError: if the model cannot be captured.

    >>> import tempfile, intact
    >>> q = intact.quantize_dynamic(nn.Linear(8, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_leaves(q, f"{folder}/net.onnx", example_inputs=torch.randn(3, 8)).codes_differ
    0
    """
    target = Path(path)
    _check(model, example_inputs, data, str(target))
    check_path(target)
    _refuse_half(model)
    given = data if isinstance(data, list) else [example_inputs if data is None else data]
    with as_operations():
        ways = _free_axes(example_inputs, given) if dynamic is None else [dynamic]
        captured = first_free(lambda way: capture(model, example_inputs, way, coded=True), ways)
    _refuse_unsupported(captured)
    batches = [b for some in given for b in _batches(model, captured, some)]
    proto = build_float(captured)
    with placed(target) as draft:
        write(proto, draft, is_large(proto) if external_data is None else external_data)
        onnx.checker.check_model(str(draft), full_check=True)
        certificate = certify_leaves(captured, draft, batches)
        if not certificate.ok:
            raise ExportError("the runtime gives other integers", where=certificate.first_difference,
                              got=f"{certificate.codes_differ} of {certificate.codes_compared} differ",
                              fix="nothing was written; report this model")
        (draft.parent / f"{target.name}.certificate.json").write_text(certificate.to_json() + "\n")
    return certificate


def _free_axes(example: Any, data: list[Any]) -> list[Any]:
    """``dynamic`` for the axes whose sizes differ, each on its own or those of one size as one; None for none."""
    first, *others = (args or kwargs for args, kwargs in map(normalise_example, [example, *data]))
    ways = [differing_axes(first, [first, *others], named=named) for named in (False, True)]
    return ways if ways[0] is not None else [None]


def _check(model: nn.Module, example_inputs: Any, data: Any, where: str) -> None:
    if not has_leaves(model):
        raise ExportError("nothing in the model is quantized", where=where, got=type(model).__name__,
                          fix="call intact.quantize, intact.quantize_dynamic or intact.quantize_weights first")
    if example_inputs is None:
        raise ExportError("an eager model is captured with inputs, and there are none", where=where,
                          fix="pass example_inputs=: a batch of what the model is called with")
    if isinstance(data, list) and not data:
        raise ExportError("there is nothing to compare on", where=where, got="data=[]",
                          fix="pass a batch or more, or leave data= out")


def _refuse_half(model: nn.Module) -> None:
    """Layers that make or take other numbers than float32: their codes are for any, their file is for float32."""
    for name, module in model.named_modules():
        if isinstance(module, Leaf):
            found = {t.dtype for t in module.parameters() if t.is_floating_point()}
            found |= {w.dtype for w in module.modules() if isinstance(w, QWeight)}
            if other := found - {torch.float32}:
                raise ExportError("a quantized layer is of other numbers than float32", where=name or None,
                                  got=", ".join(sorted(str(d) for d in other)),
                                  fix="call .float() on the quantized model (its codes stay as they are)")


def _refuse_unsupported(model: FloatModel) -> None:
    bad = [f"{place(n)}: {reason}" for n in model.graph if n.op != "opaque" and (reason := unsupported(n))]
    bad += [f"{call.path}: could not be captured ({call.reason})" for call in model.opaque.values()]
    if bad:
        raise ExportError("the model has operations without ONNX form", where=bad[0].partition(": ")[0],
                          got="; ".join(bad[:5]), fix="write this part of the model with other operations")


def _batches(model: nn.Module, captured: FloatModel, data: Any) -> list[Batch]:
    """The samples to compare on, and fewer of them, with what the user's module gives for them."""
    args, kwargs = normalise_example(data)
    shapes, size = _shapes(captured, args, kwargs)
    batches = []
    for count in sorted({min(size, _SAMPLES), min(size, 3), 1} if size else {0}, reverse=True):
        some, named = _cut(args, shapes, count), _cut(kwargs, shapes, count)
        with evaluation_mode(model), torch.no_grad():
            found = [t for t in leaves(plain_result(model(*some, **named))) if isinstance(t, Tensor)]
        names = [name for name, _ in output_names(captured.graph)]
        if len(found) != len(names):
            raise ExportError("the captured model has other outputs than the module", got=f"{len(names)} tensors",
                              allowed=f"{len(found)} tensors")
        inputs = _bound(captured, some, named)
        check_inputs(captured.graph, inputs)
        batches.append(Batch(inputs, dict(zip(names, found, strict=True))))
    return batches


def _bound(captured: FloatModel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs by edge; arguments that are no tensors are part of what was captured."""
    def tensors(x: Any) -> bool:
        return any(isinstance(t, Tensor) for t in leaves(x))

    return captured.signature.bind([a for a in args if tensors(a)], {k: v for k, v in kwargs.items() if tensors(v)})


def _shapes(captured: FloatModel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[int, Any], int]:
    """What the axes of every tensor are, by its id; samples in the batch, 0 where their number is not free."""
    inputs = _bound(captured, args, kwargs)
    shapes = {id(x): captured.graph[name].shape for name, x in inputs.items()}
    free = any(BATCH in shape for shape in shapes.values())
    return shapes, check_inputs(captured.graph, inputs)[BATCH] if free else 0


def _cut(value: Any, shapes: Mapping[int, Any], count: int) -> Any:
    """The first samples of everything that has an axis of them; all where ``count`` is 0."""
    def cut(x: Any) -> Any:
        for axis, dim in enumerate(shapes.get(id(x), ()) if count else ()):
            x = x.narrow(axis, 0, count) if dim == BATCH else x
        return x

    found = map_leaves(value, cut)
    return dict(found) if isinstance(value, Mapping) else found
