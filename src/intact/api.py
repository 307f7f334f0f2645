"""The verbs of Intact, from an unmodified module to an integer model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

from torch import Tensor, nn
from torch.export import ExportedProgram

from intact.algorithms import correct_bias, smooth, smooth_attention
from intact.analysis import Latency, Report, Sizes, Statistics, compare_models, tensor_statistics
from intact.analysis.repeat import as_quantized
from intact.calibration import calibrate
from intact.calibration.peek import first_inputs, fixed, noted
from intact.engine import QModel, convert
from intact.engine import load as _load_integer
from intact.engine import save as _save_integer
from intact.errors import CalibrationError, CaptureError, ExportError, IntactError, PlanError
from intact.exporters import Certificate, export_c, export_leaves, export_litert, export_onnx, float_onnx, latencies
from intact.exporters.files import with_options
from intact.graph import FloatModel
from intact.graph.capture import capture as _capture_module
from intact.graph.capture import capture_program as _capture_program
from intact.graph.dynamic import Dynamic, dynamic_of, first_free
from intact.graph.passes import DEFAULT_PASSES, Pass, repeated_passes, transform
from intact.graph.signature import samples_in
from intact.leaves import has_leaves, load_leaves, save_leaves
from intact.planning import Recipe, lowered, plan
from intact.simulation import QFloatModel, prepare
from intact.targets import TargetLike, get_target

__all__ = [
    "calibrate",
    "capture",
    "compare",
    "convert",
    "correct_bias",
    "export",
    "load",
    "plan",
    "prepare",
    "quantize",
    "save",
    "smooth",
    "statistics",
]


#: what can be quantized: a module, a captured model, or a program of ``torch.export``
Model = nn.Module | FloatModel | ExportedProgram


def capture(
    model: nn.Module | ExportedProgram, example_inputs: Any = None, *, dynamic: Dynamic | None = None,
    passes: Sequence[Pass] = DEFAULT_PASSES
) -> FloatModel:
    """Capture a module as a float graph: batch norms folded, activations fused, dropout gone.

    The module is not changed. The batch size stays free (that of a program as it was exported).

    Args:
        model: any ``nn.Module``, in training or evaluation mode; or a program of ``torch.export``.
        example_inputs: a batch: a tensor, a tuple of positional inputs, or a dict of keyword inputs. A program has
            its own.
        dynamic: further axes that stay free, as ``dynamic_shapes`` of torch.export: ``{"input_ids": {1: "length"}}``
            by the name of the input; of a model with one tensor as input ``{1: "length"}``. Axes of one name have one
            size, ``"8*height"`` is a multiple of 8, a ``torch.export.Dim`` has a range. A program has its own.
        passes: transformations, each checked to keep the outputs; ``intact.graph.passes`` has more.

    Raises:
        CaptureError: if the model cannot be captured, or works with one size only of an axis that shall be free; names
            the module or the axis and the reason.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    >>> [n.op for n in capture(net, torch.randn(2, 3, 8, 8)).graph]
    ['input', 'conv']
    """
    if isinstance(model, ExportedProgram):
        return transform(_capture_program(model), passes)
    return transform(_capture_module(model, example_inputs, dynamic), passes)


def as_captured(model: Model, example_inputs: Any, dynamic: Dynamic | None) -> FloatModel:
    """What :func:`capture` gave, or gives now.

    Raises:
        CaptureError: if the model cannot be captured, or ``dynamic`` is given with one that has its axes.
    """
    if not isinstance(model, FloatModel):
        return capture(model, example_inputs, dynamic=dynamic)
    if dynamic is not None:
        raise CaptureError("a captured model has its free axes", got=f"dynamic={dynamic!r}",
                           fix="give dynamic= to intact.capture")
    return model


def captured(
    model: Model, data: Iterable[Any], *, example_inputs: Any = None, dynamic: Dynamic | None = None,
    passes: Sequence[Pass] = DEFAULT_PASSES
) -> tuple[FloatModel, Iterable[Any]]:
    """The model as a float graph, captured with the inputs of the first batch, and data that still holds that batch.

    Axes whose sizes differ among the first batches are left free, where ``dynamic`` does not say which are.

    Raises:
        CaptureError: if the model cannot be captured.
        CalibrationError: if there is no data, or no batches.

    >>> import torch
    >>> fm, data = captured(torch.nn.Linear(3, 2), iter([torch.randn(4, 3)]))
    >>> len(fm.graph.nodes), len(list(data))
    (2, 1)
    """
    if not isinstance(model, Model):
        raise CaptureError("this is no model", got=type(model).__name__,
                           allowed="torch.nn.Module, intact.FloatModel or torch.export.ExportedProgram",
                           fix="pass the float module itself")
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise CalibrationError("the data is not an iterable of batches", got=type(data).__name__,
                               fix="pass a list of batches, such as [x], or a DataLoader")
    if isinstance(model, FloatModel):
        return as_captured(model, None, dynamic), data
    if isinstance(model, nn.Module) and example_inputs is None:
        example_inputs, ways, spare, data = first_inputs(model, data)
        attempt = partial(capture, model, example_inputs, passes=passes)
        if dynamic is not None or not ways:
            return noted(attempt(dynamic=dynamic), spare), data
        try:
            return noted(first_free(lambda way: attempt(dynamic=way), ways), spare), data
        except CaptureError as error:  # the model has one size, or a batch is wrong; that is named in its turn
            return noted(fixed(attempt(), error), spare), data
    return capture(model, example_inputs, dynamic=dynamic, passes=passes), data


def statistics(model: Model | QFloatModel, data: Iterable[Any], *, progress: bool | None = None) -> Statistics:
    """Minimum, maximum, mean and standard deviation of every weight and of every layer's activations, in float.

    One pass over the data, in constant memory. Batch norms and activation functions that capture folds into a layer
    are part of it: these are the weights and values that will get codes. ``capture(net, x, passes=())`` keeps every
    layer of the user's own apart.

    Args:
        model: a module, which is not changed; or what :func:`capture` or :func:`prepare` gave; or a program of
            ``torch.export``.
        data: batches: tensors, tuples (inputs first), or dicts by input name.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        A table: print it, walk through its rows, or take ``.to_json()``.

    Raises:
        CaptureError: if the model cannot be captured.
        CalibrationError: if there is no data or a batch does not fit the model.

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> table = statistics(net, [torch.tensor([[-1.0, 3.0]]), torch.tensor([[0.0, 5.0]])])
    >>> [row.name for row in table], table["input"].low, table["input"].high
    (['weight', 'input', 'linear'], -1.0, 5.0)
    """
    fm, data = (model.float_model, data) if isinstance(model, QFloatModel) else captured(model, data)
    return tensor_statistics(fm, data, progress=progress)


def quantize(
    model: Model,
    data: Iterable[Any] | None = None,
    *,
    target: TargetLike | None = None,
    recipe: Recipe | None = None,
    example_inputs: Any = None,
    dynamic: Dynamic | None = None,
    progress: bool | None = None,
) -> QModel:
    """Quantize a module in one call: capture, plan, prepare, calibrate, convert; of a model with attention also smooth.

    Args:
        model: an unmodified float module, which is not changed; or what :func:`capture` gave; or a program of
            ``torch.export``; or a QFloat model, which is put in evaluation mode and converted as it is.
        data: calibration batches: tensors, tuples (inputs first), or dicts by input name. A DataLoader that
            yields (inputs, labels) works as it is. Not needed where every range is known already: in a QFloat model
            that was calibrated or trained (data is not read then), and in a network of trained ``intact.nn`` layers
            (data finds the ranges of what they do not read).
        target: the runtime whose codes the integer model gives, by name or as a TOML file; by default ONNX Runtime.
        recipe: rules for parts of the model; by default everything that the target can run is quantized.
        example_inputs: inputs to capture with; by default the first batch of ``data``.
        dynamic: axes besides the batch that stay free, as for :func:`capture`; by default those whose sizes differ
            among the first batches of ``data``.
        progress: show a progress bar; by default only on a terminal.

    Raises:
        CaptureError, PlanError: before the data is read.
        CalibrationError: if there is no data, or it does not fit the model.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> q = quantize(net, [torch.randn(32, 8)])
    >>> q(torch.randn(5, 8)).shape
    torch.Size([5, 4])
    """
    if isinstance(model, QFloatModel):
        if target is not None or recipe is not None or example_inputs is not None:
            raise PlanError("a QFloat model is planned already", got="target, recipe or example_inputs",
                            fix="give them to intact.plan or intact.quantize_qat")
        qfloat = model.eval()
    else:
        target = get_target("onnxruntime" if target is None else target)  # a file is read once
        if data is not None:
            fm, data = captured(model, data, example_inputs=example_inputs, dynamic=dynamic)
            fm, data = smooth_attention(lowered(fm, target), data, target, recipe)
        elif isinstance(model, nn.Module) and example_inputs is None:
            raise CalibrationError("there is no data", got="NoneType",
                                   fix="pass a list of batches, such as [x], or a DataLoader")
        else:
            fm = lowered(as_captured(model, example_inputs, dynamic), target)
        qfloat = prepare(fm, plan(fm, target=target, recipe=recipe))
    if qfloat.calibrated and (data is None or qfloat is model):
        return convert(qfloat)
    if data is None:
        missing = [name for name, quantizer in qfloat.edge_quantizers.items() if not quantizer.known]
        raise CalibrationError("there is no data", got=f"{len(missing)} ranges that nothing has trained: "
                               f"{', '.join(missing[:5])}", fix="pass calibration batches")
    return convert(calibrate(qfloat, data, progress=progress))


#: format (and suffix) to what writes an integer model
EXPORTERS: dict[str, Callable[..., Certificate]] = {"c": export_c, "onnx": export_onnx, "tflite": export_litert}
#: likewise, an eager model with quantized layers
LEAF_EXPORTERS: dict[str, Callable[..., Certificate]] = {"onnx": export_leaves}


def export(q: QModel | nn.Module, path: str | Path, *, format: str | None = None, **options: Any) -> Certificate:
    """Write a quantized model for a runtime, after the runtime gave its codes.

    Args:
        q: an integer model; or what :func:`quantize_dynamic` or :func:`quantize_weights` gave.
        path: the file to write; ``.onnx`` is ONNX with QuantizeLinear and DequantizeLinear, ``.c`` is C99 of integers
            (target ``fixed_point`` and its like), with a header and a test beside it; ``.tflite`` is LiteRT.
        format: instead of the suffix: ``"onnx"``, ``"c"`` or ``"tflite"``.
        **options: those of :func:`intact.exporters.export_onnx`: ``data``, ``inputs`` and ``outputs`` (``"float"`` or
            ``"codes"``), ``external_data``; of ``export_c``: ``data``, ``compiler``; of ``export_litert``: ``data``,
            ``inputs``, ``outputs``, ``layout``, ``batch``; for a model with quantized layers of ``export_leaves``:
            ``example_inputs`` (needed), ``data``, ``dynamic``, ``external_data``.

    Returns:
        The parity certificate, which is also stored beside the file.

    Raises:
        ExportError: before anything is written, naming what cannot be exported or which codes differ.

    >>> import tempfile, torch
    >>> q = quantize(torch.nn.Linear(8, 4), [torch.randn(32, 8)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(q, f"{folder}/net.onnx").codes_differ
    0
    """
    kind = format or Path(path).suffix.lstrip(".")
    if kind not in EXPORTERS:
        raise ExportError("unknown export format", where=str(path), got=kind or "no suffix",
                          allowed=", ".join(EXPORTERS), fix="name the file *.onnx, *.c or *.tflite, or pass format=")
    if isinstance(q, nn.Module) and not isinstance(q, QFloatModel):
        if kind not in LEAF_EXPORTERS:
            raise ExportError("models with quantized layers cannot be exported to this format", where=str(path),
                              got=kind, allowed=", ".join(LEAF_EXPORTERS), fix="quantize the whole model instead")
        return with_options(LEAF_EXPORTERS[kind], q, path, options)
    return with_options(EXPORTERS[kind], q, path, options)


def save(model: QModel | nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a quantized model to one file, safetensors with JSON in its metadata; no pickle.

    Args:
        model: an integer model, whose file needs no classes to be loaded; or what :func:`quantize_dynamic` or
            :func:`quantize_weights` gave, whose file is loaded into the float model it was made of.
        path: the file, by custom ``*.intact`` or ``*.safetensors``; its folder must exist. It appears whole or not
            at all; the same model gives the same bytes.

    Returns:
        The path.

    Raises:
        ArtifactError: if the path cannot be written, or the model is not quantized.

    >>> import tempfile, torch
    >>> q = quantize(torch.nn.Linear(4, 2), [torch.randn(16, 4)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(q, f"{folder}/net.intact").name
    'net.intact'
    """
    if isinstance(model, nn.Module) and has_leaves(model):
        return save_leaves(model, path)
    return _save_integer(cast(QModel, model), path)


@overload
def load(path: str | os.PathLike[str]) -> QModel: ...
@overload
def load(path: str | os.PathLike[str], *, model: nn.Module | Callable[[], nn.Module]) -> nn.Module: ...
def load(
    path: str | os.PathLike[str], *, model: nn.Module | Callable[[], nn.Module] | None = None
) -> QModel | nn.Module:
    """Read a model that :func:`save` wrote. Nothing in the file is executed; it is checked first, byte for byte.

    Args:
        path: the file.
        model: for a model with quantized layers: the float model, or what makes it. Its layers are swapped as the
            file says, and its tensors replaced; it is not changed itself, and no data is needed.

    Returns:
        A model that gives what the saved one gives, bit for bit; an eager one in evaluation mode.

    Raises:
        ArtifactError: for a file that is missing, damaged, malicious, of a newer format or of the other kind, or that
            does not fit the float model; and no other error.

    >>> import tempfile, torch
    >>> from intact import quantize_dynamic
    >>> net, x = torch.nn.Linear(4, 2), torch.randn(3, 4)
    >>> q = quantize_dynamic(net)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(save(q, f"{folder}/net.safetensors"), model=lambda: torch.nn.Linear(4, 2))
    >>> torch.equal(again(x), q(x))
    True
    """
    return _load_integer(path) if model is None else load_leaves(path, model)


def compare(
    net: Model, q: QModel, data: Iterable[Any], metric: Any = None, *, latency: bool = True,
    progress: bool | None = None,
) -> Report:
    """Hold an integer model against the float module it came from.

    Args:
        net: the float module; or what :func:`capture` gave, or a program of ``torch.export``.
        q: the integer model.
        data: batches; what follows the inputs in a tuple is the label.
        metric: ``metric(outputs, labels) -> float``, averaged over samples; by default top-1 accuracy where
            there are labels.
        latency: measure file sizes and single-sample latency of both models in the runtime.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        A report: print it, or take ``report.to_json()``.

    >>> import torch
    >>> net = torch.nn.Linear(8, 4)
    >>> x = torch.randn(32, 8)
    >>> compare(net, quantize(net, [x]), [x], latency=False).samples
    32
    """
    if not isinstance(q, QModel):
        raise IntactError("compare takes the integer model second", got=type(q).__name__, allowed="QModel")
    dynamic = None if isinstance(net, FloatModel) else dynamic_of(q.graph.inputs, q.signature)
    passes = repeated_passes(q.info.get("equalization", {}))
    model, data = captured(net, data, dynamic=dynamic, passes=passes)
    model = as_quantized(model, q)
    measured, sizes = _measure(model, q) if latency else (None, None)
    return compare_models(model, q, data, metric=metric, latency=measured, sizes=sizes, progress=progress)


def _measure(fm: FloatModel, q: QModel) -> tuple[Latency | None, Sizes | None]:
    """Files and latencies of float and integer model; nothing where the model has no ONNX form."""
    if [(n.name, n.shape) for n in fm.graph.inputs] != [(n.name, n.shape) for n in q.graph.inputs]:
        return None, None  # another model: the comparison will say so
    with tempfile.TemporaryDirectory() as folder:
        try:
            float_file = float_onnx(fm, Path(folder) / "float.onnx")
            export_onnx(q, Path(folder) / "integer.onnx")
        except ExportError:
            return None, None
        integer_file = Path(folder) / "integer.onnx"
        one = fm.small_example(1)
        slow, fast = latencies([float_file, integer_file], one)
        sizes = Sizes(float_bytes=float_file.stat().st_size, integer_bytes=integer_file.stat().st_size)
        size = samples_in(fm.graph, fm.sample)
        batch = f", batches of {size}" if size > 1 else ""
        return Latency(float_ms=slow, integer_ms=fast, engine=f"onnxruntime, CPU, one thread{batch}"), sizes
