"""From an unmodified nn.Module to a FloatModel: ``torch.export`` with a dynamic batch, and nothing else."""

from __future__ import annotations

import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from intact.errors import CaptureError
from intact.graph import aten, aten_composed, aten_elementwise  # noqa: F401  (they register the conversions)
from intact.graph.converter import Const, Converter, Edge
from intact.graph.float_model import FloatModel
from intact.graph.hints import hints_of, in_float
from intact.graph.inplace import is_plain, mutates
from intact.graph.ir import Graph, Node
from intact.graph.isolate import CAPTURE_FAILURES, capture_around
from intact.graph.opaque import OpaqueCall
from intact.graph.program_inputs import example_tensors, program_signature
from intact.graph.shapes import infer_shapes
from intact.graph.tree import first_tensor, map_leaves
from intact.private import causal_only_where_said

__all__ = ["capture", "capture_program", "evaluation_mode"]


#: samples of the example inputs that are kept, to check transformations and exports on
_KEPT = 32


def capture(model: nn.Module, example_inputs: Any) -> FloatModel:
    """Capture ``model`` in evaluation mode as one graph whose batch size stays free.

    The model is left as it was: its mode, its parameters, its hooks. A submodule that cannot be captured
    becomes one float call, noted by path and reason.

    Args:
        model: any module; training mode is set to evaluation for the capture and restored.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs. A batch of one
            sample is doubled, so that the batch is not specialised.

    Returns:
        The float model: canonical operations, parameters under the user's names.

    Raises:
        CaptureError: if the model cannot be captured; names the module and the reason.

    >>> import torch
    >>> fm = capture(torch.nn.Linear(3, 2), torch.zeros(4, 3))
    >>> [n.op for n in fm.graph]
    ['input', 'linear']
    """
    _refuse_quantized(model)
    args, kwargs = normalise_example(example_inputs)
    args, kwargs = _at_least_two(args), _at_least_two(kwargs)
    with evaluation_mode(model), in_float(model), torch.no_grad():
        _try_out(model, args, kwargs)
        try:
            fm = _attempt(model, args, kwargs, {})
        except CAPTURE_FAILURES as failure:
            fm = capture_around(model, args, kwargs, _attempt, failure)
    used = {node.attrs["module"] for node in fm.graph if node.op == "opaque"}
    opaque = {key: call for key, call in fm.opaque.items() if key in used}
    notes = dict.fromkeys((call.path, f"could not be captured, one float call: {call.reason}")
                          for call in opaque.values())
    return replace(fm, opaque=opaque, notes=(*fm.notes, *notes), hints=hints_of(model))


def _attempt(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], opaque: Mapping[str, OpaqueCall]
) -> FloatModel:
    return capture_program(_export(model, args, kwargs), (args, kwargs), model, opaque)


def _try_out(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call the model once on a sample or two: what is wrong with the inputs is said in plain words."""
    try:
        model(*_first_two(args), **_first_two(kwargs))
    except CAPTURE_FAILURES as error:
        keys = next((", ".join(map(str, a)) for a in args if isinstance(a, Mapping)), None)
        raise CaptureError("the model fails on the example inputs", where=type(model).__name__,
                           got=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
                           fix="check shapes and dtypes by calling the model with them" if keys is None else
                           f"name the keys of the batch ({keys}) like the arguments of forward") from error


def _first_two(value: Any) -> Any:
    return map_leaves(value, lambda x: x[:2] if isinstance(x, Tensor) and x.ndim else x)


def normalise_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise CaptureError("example inputs are neither tensor, tuple nor dict", got=type(example).__name__,
                       fix="pass a tensor, a tuple of inputs, or a dict of keyword inputs")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode restored after."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _refuse_quantized(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError("the model is not a torch.nn.Module", got=type(model).__name__,
                           fix="pass the float module itself")
    for path, module in model.named_modules():
        name = f"{type(module).__module__}."
        if name.startswith(("torch.ao.", "torch.nn.quantized.", "torchao.", "intact.simulation.")):
            raise CaptureError("the model is already quantized", where=path or "model",
                               got=type(module).__name__, fix="pass the float model")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_quantized:
            raise CaptureError("the model is already quantized", where=name, got=tensor.dtype,
                               fix="pass the float model")
        if _of_leaf(model, name):
            continue
        if isinstance(tensor, Tensor) and tensor.dtype in (torch.float16, torch.bfloat16, torch.float64):
            raise CaptureError("a parameter is not float32", where=name, got=tensor.dtype,
                               fix="convert the model with model.float()")


def _of_leaf(model: nn.Module, name: str) -> bool:
    """Whether a tensor is part of the weight of a quantized layer, which may be stored in 16 bits."""
    return type(model.get_submodule(name.rpartition(".")[0])).__module__.startswith("intact.leaves.")


def _at_least_two(value: Any) -> Any:
    """Tensors with a batch of one, doubled; nothing else changed."""
    def doubled(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.ndim:
            return x
        if x.shape[0] == 0:
            raise CaptureError("an example input is empty", got=tuple(x.shape), fix="give at least one sample")
        return torch.cat([x, x]) if x.shape[0] == 1 else x

    return map_leaves(value, doubled)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.export.ExportedProgram:
    first = first_tensor((args, kwargs))
    if first is None:
        raise CaptureError("no tensor among the example inputs", fix="pass a batch of inputs")
    batch, dim = first.shape[0], torch.export.Dim("batch", min=1)

    def free(x: Any) -> Any:
        return {0: dim} if isinstance(x, Tensor) and x.ndim and x.shape[0] == batch else None

    shapes = _by_parameter(model, map_leaves(args, free), map_leaves(kwargs, free))
    with _quiet(), causal_only_where_said():
        program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=shapes)
        return _functional(program)


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What belongs to each argument, as torch.export wants it: ``*xs`` is one tuple."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), None)
    if at is not None:
        args = (*args[:at], tuple(args[at:]))
    if not kwargs:
        return args
    unnamed = sorted(kwargs.keys() - {p.name for p in parameters})
    if unnamed:
        raise CaptureError("an input has no name in the signature of forward", got=", ".join(unnamed),
                           allowed=", ".join(p.name for p in parameters if p.kind is not p.VAR_KEYWORD),
                           fix="wrap the model in a module whose forward names its inputs (torch.export cannot keep "
                               "the batch of **kwargs free)")
    return {**dict(zip([p.name for p in parameters], args, strict=False)), **kwargs}


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program in which no in-place operation matters."""
    if is_plain(program.graph) and not program.graph_signature.buffers_to_mutate:
        return program
    functional: torch.export.ExportedProgram = program.run_decompositions({})
    return functional


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints at length about modules that it refuses; we report the reason."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(said):
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*isinstance.treespec.*")
            yield
        sys.stderr.write(said.getvalue())  # nothing was refused: it is the model that speaks
    finally:
        logging.disable(disabled)


def capture_program(
    program: torch.export.ExportedProgram,
    example: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None,
    model: nn.Module | None = None,
    opaque: Mapping[str, OpaqueCall] | None = None,
) -> FloatModel:
    """A FloatModel from an exported program (for instance one loaded from a ``.pt2`` file).

    Raises:
        CaptureError: if an operation or a shape has no canonical form.
    """
    if example is None:
        if program.example_inputs is None:
            raise CaptureError("the exported program has no example inputs", fix="export it with example inputs")
        example = program.example_inputs
        program = _functional(program)
    params, table = _parameters(program)
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in _user_inputs(program)]
    conv = Converter(params, _symbols(inputs))
    env: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _placeholder(conv, node, table)
        elif node.op == "call_function":
            env[node] = conv.convert(node, env)
            if mutates(str(node.target)):  # who reads the operand from now on reads the result
                source = node.args[0]
                while isinstance(source, fx.Node):
                    env[source] = env[node]
                    source = source.args[0] if mutates(str(source.target)) else None
    output = _output_template(program, conv, env)
    graph = Graph(tuple(conv.nodes), output).validate()
    graph = graph.rewritten(graph.nodes)
    signature = program_signature(program, model)
    tensors = example_tensors(program, *example)
    fm = FloatModel(graph, params, signature, {k: v.detach()[:_KEPT].clone() for k, v in tensors.items()},
                    dict(opaque or {}), sources=params, buffers=_buffers(program, params, graph),
                    frozen=_frozen(program), dropouts=dict(conv.dropouts))
    return fm.with_graph(infer_shapes(fm))


def _user_inputs(program: torch.export.ExportedProgram) -> set[str]:
    return {str(name) for name in program.graph_signature.user_inputs}


def _parameters(program: torch.export.ExportedProgram) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters by user name (a tied one once), and placeholder name to user name."""
    sig = program.graph_signature
    if sig.buffers_to_mutate:
        raise CaptureError("the model writes to a buffer in evaluation mode",
                           where=", ".join(map(str, sig.buffers_to_mutate.values())),
                           fix="make forward free of side effects in eval()")
    targets = {**sig.inputs_to_parameters, **sig.inputs_to_buffers, **sig.inputs_to_lifted_tensor_constants}
    params: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    table: dict[str, str] = {}
    for placeholder, name in targets.items():
        tensor = program.state_dict.get(name, program.constants.get(name))
        if not isinstance(tensor, Tensor):
            raise CaptureError("a constant of the program is not a tensor", where=name, got=type(tensor).__name__)
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key not in first:
            first[key] = name
            params[name] = tensor.detach().clone()
        table[placeholder] = first[key]
    return params, table


def _buffers(program: torch.export.ExportedProgram, params: Mapping[str, Tensor], graph: Graph) -> frozenset[str]:
    """Names that no optimizer may touch: buffers, constants, and what was computed without being a weight or bias."""
    sig = program.graph_signature
    trained = set(sig.inputs_to_parameters.values())
    fixed = {*sig.inputs_to_buffers.values(), *sig.inputs_to_lifted_tensor_constants.values()}
    layers = {n.params[r] for n in graph for r in ("weight", "bias") if r in n.params} - fixed
    return frozenset(k for k, v in params.items() if not v.is_floating_point() or k not in trained | layers)


def _frozen(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Parameters that the user does not train."""
    names = program.graph_signature.inputs_to_parameters.values()
    return frozenset(n for n in names if isinstance(t := program.state_dict.get(n), Tensor) and not t.requires_grad)


def _symbols(inputs: Sequence[fx.Node]) -> dict[str, str]:
    symbols: dict[str, str] = {}
    for node in inputs:
        for i, dim in enumerate(getattr(node.meta.get("val"), "shape", ())):
            if not isinstance(dim, int):
                if i != 0 or (symbols and str(dim) not in symbols):
                    raise CaptureError("only the batch axis may be dynamic", where=node.name, got=f"axis {i}",
                                       fix="capture with fixed sizes for the other axes")
                symbols[str(dim)] = "batch"
    return symbols


def _placeholder(conv: Converter, node: fx.Node, table: Mapping[str, str]) -> Any:
    if node.name in table:
        name = table[node.name]
        return Const(conv.params[name], name)
    example = node.meta.get("val")
    if not isinstance(example, Tensor):
        return example
    conv.unique_named(node.name)
    conv.nodes.append(Node(node.name, "input", shape=conv.dims(example.shape),
                           dtype=str(example.dtype).removeprefix("torch.")))
    return Edge(node.name)


def _output_template(program: torch.export.ExportedProgram, conv: Converter, env: dict[fx.Node, Any]) -> Any:
    node = next(n for n in program.graph.nodes if n.op == "output")
    values = [conv.resolve(a, env) for a in node.args[0]]
    mutated = len(values) - len(program.graph_signature.user_outputs)
    structure = program.call_spec.out_spec.unflatten(values[mutated:])
    return _template(structure, conv)


def _template(value: Any, conv: Converter) -> dict[str, Any]:
    if isinstance(value, (Edge, Const)):
        return {"kind": "edge", "name": conv.edge(value).name}
    if isinstance(value, Mapping):
        return {"kind": "dict", "items": {str(k): _template(v, conv) for k, v in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_template(v, conv) for v in value]}
    if value is None or isinstance(value, (int, float, str, bool)):
        return {"kind": "const", "value": value}
    raise CaptureError("an output has a structure that cannot be kept", got=type(value).__name__,
                       fix="return tensors in tuples, lists or dicts")
