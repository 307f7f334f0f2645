"""From an unmodified nn.Module to a FloatModel: ``torch.export`` with free axes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from intact.errors import CaptureError, IntactError
from intact.graph import aten, aten_composed, aten_elementwise  # noqa: F401  (they register the conversions)
from intact.graph.batch_axes import at_least_two, batch_of, with_batch, with_samples
from intact.graph.confirm import Multiples, confirmed
from intact.graph.converter import Const, Converter, Edge
from intact.graph.dynamic import Dynamic, axes_of, given_limits, long_enough, multiplied, stretched, symbols_in
from intact.graph.exported import FixedAxis, exported, functional
from intact.graph.float_model import FloatModel
from intact.graph.free import first_samples
from intact.graph.hints import hints_of, in_float
from intact.graph.inplace import mutates
from intact.graph.ir import Graph, Node
from intact.graph.isolate import CAPTURE_FAILURES, capture_around, failing_module
from intact.graph.opaque import OpaqueCall
from intact.graph.outputs import plain_outputs
from intact.graph.program_inputs import example_tensors, program_signature
from intact.graph.shapes import infer_shapes
from intact.graph.symbols import limits_of_program, names_of_axes, sizes_of_program, symbols_of_inputs
from intact.graph.tree import leaves, map_leaves
from intact.types.dims import BATCH, symbols_of

__all__ = ["capture", "capture_program", "evaluation_mode"]


#: samples of the example inputs that are kept, to check transformations and exports on
_KEPT = 32


def capture(model: nn.Module, example_inputs: Any, dynamic: Dynamic | None = None, *, coded: bool = False
            ) -> FloatModel:
    """Capture ``model`` in evaluation mode as one graph whose batch size stays free.

    The model is left as it was: its mode, its parameters, its hooks. A submodule that cannot be captured
    becomes one float call, noted by path and reason.

    Args:
        model: any module; training mode is set to evaluation for the capture and restored.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs. A batch of one
            sample is doubled, so that the batch is not specialised.
        dynamic: further axes that stay free, as ``dynamic_shapes`` of torch.export: ``{"input_ids": {1: "length"}}``.
            Axes of one name have one size; ``"8*height"`` is a multiple; True leaves the name to us. What was captured
            is held against the model at other sizes, the smallest included.
        coded: whether layers may have weights in codes, as ``quantize_dynamic`` and ``quantize_weights`` give them.

    Returns:
        The float model: canonical operations, parameters under the user's names.

    Raises:
        CaptureError: if the model cannot be captured, or depends on the size of an axis that shall be free; names the
            module or the axis and the reason.

    >>> import torch
    >>> fm = capture(torch.nn.Linear(3, 2), torch.zeros(4, 3))
    >>> [n.op for n in fm.graph]
    ['input', 'linear']
    >>> capture(torch.nn.Conv1d(3, 2, 3), torch.zeros(4, 3, 9), {2: "length"}).graph.nodes[-1].shape
    ('batch', 2, 'length - 2')
    """
    _refuse_quantized(model, coded)
    args, kwargs = normalise_example(example_inputs)
    axes = axes_of(model, args, kwargs, dynamic)
    with evaluation_mode(model), in_float(model), plain_outputs(model) as lost, torch.no_grad():
        axes = with_batch(model, (args, dict(kwargs)), axes, CAPTURE_FAILURES)
        args, kwargs = long_enough(at_least_two((args, dict(kwargs)), axes), axes)
        _try_out(model, args, kwargs, axes)
        fm = _free(model, args, kwargs, axes, given_limits(dynamic), coded)
    used = {node.attrs["module"] for node in fm.graph if node.op == "opaque"}
    opaque = {key: call for key, call in fm.opaque.items() if key in used}
    notes = dict.fromkeys((call.path, f"could not be captured, one float call: {call.reason}")
                          for call in opaque.values())
    gone = [("", f"the output '{place}' is None: it is a {kind}, and only tensors can be kept")
            for place, kind in lost.items()]
    return replace(fm, opaque=opaque, notes=(*fm.notes, *notes, *gone), hints=hints_of(model))


#: a captured model, its example inputs by edge, and the sizes in it; none where all but the batch is fixed
_Captured = tuple[FloatModel, dict[str, Tensor], list[str]]


def _free(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Any,
          given: Mapping[str, tuple[int, int | None]], coded: bool) -> FloatModel:
    """The captured model, held against the user's; sizes that it takes in multiples only become multiples."""
    fm, inputs, known = _captured(model, args, kwargs, axes)

    def call(tensors: Mapping[str, Tensor]) -> Any:
        other = {id(x): tensors[edge] for edge, x in inputs.items()}
        now, named = map_leaves((args, dict(kwargs)), lambda x: other.get(id(x), x))
        return model(*now, **named)

    try:
        fm = confirmed(fm, call, inputs, given, coded)
    except Multiples as found:
        return _free(model, args, kwargs, multiplied(axes, found.factors), given, coded)
    return fm.with_graph(infer_shapes(fm, known)) if known else fm


def _captured(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Any
              ) -> _Captured:
    def attempt(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], opaque: Mapping[str, OpaqueCall]
                ) -> _Captured:
        own = axes if part is model else axes_of(part, args, kwargs, None)
        program = exported(part, args, kwargs, own)
        fm, known = _converted(program, (args, kwargs), part, opaque, own)
        return fm, example_tensors(program, args, kwargs), known

    try:
        return attempt(model, args, kwargs, {})
    except FixedAxis as error:
        free = dict.fromkeys(symbols_in((args, dict(kwargs)), axes), 1)
        place = failing_module(model, *stretched((args, dict(kwargs)), axes, free))
        where = f"{error.where}: it fails in '{place}' with another size" if place else error.where
        raise CaptureError(error.what, where=where, got=error.got, fix=error.fix) from error
    except CAPTURE_FAILURES as failure:
        found: _Captured = capture_around(model, args, kwargs, attempt, failure, axes)
        return found


def _try_out(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Any) -> None:
    """Call the model once on two samples, or all: what is wrong with the inputs is said in plain words."""
    try:
        result = _called(model, args, kwargs, axes)
    except CAPTURE_FAILURES as error:
        keys = next((", ".join(map(str, a)) for a in args if isinstance(a, Mapping)), None)
        raise CaptureError("the model fails on the example inputs", where=type(model).__name__,
                           got=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
                           fix="check shapes and dtypes by calling the model with them" if keys is None else
                           f"name the keys of the batch ({keys}) like the arguments of forward") from error
    if not any(isinstance(x, Tensor) for x in leaves(result)):
        raise CaptureError("the model returns no tensor", where=type(model).__name__,
                           fix="return tensors, in tuples, lists, dicts or data classes")


def _called(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Any) -> Any:
    given = (args, dict(kwargs))
    few, named = with_samples(given, axes, min(2, batch_of(given, axes)))
    try:
        return model(*few, **named)
    except (*CAPTURE_FAILURES, IntactError):  # the first axis need not be that of the samples
        return model(*args, **kwargs)


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


#: identities and float arithmetic of torch's eager mode, which stand in models that were never converted
_STUBS = ("QuantStub", "DeQuantStub", "QuantWrapper", "FloatFunctional", "FXFloatFunctional")


def _refuse_quantized(model: nn.Module, coded: bool) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError("the model is not a torch.nn.Module", got=type(model).__name__,
                           fix="pass the float module itself")
    for path, module in model.named_modules():
        name = f"{type(module).__module__}."
        if name.startswith(("torch.ao.", "torch.nn.quantized.", "torchao.", "intact.simulation.")) and not (
                name.startswith("torch.ao.") and type(module).__name__ in _STUBS):
            raise CaptureError("the model is already quantized", where=path or "model",
                               got=type(module).__name__, fix="pass the float model")
        if not coded and name == "intact.leaves.weight.":
            raise CaptureError("the model is already quantized", where=path.rpartition(".")[0] or "model",
                               got="a weight of codes",
                               fix="pass the float model; intact.export takes this one as it is")
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


def capture_program(
    program: torch.export.ExportedProgram,
    example: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None,
    model: nn.Module | None = None,
) -> FloatModel:
    """A FloatModel from an exported program (for instance one loaded from a ``.pt2`` file).

    Args:
        program: what torch.export gave.
        example: ``(args, kwargs)`` that it was exported with; by default those that it holds.
        model: what it was exported from, for the names of its inputs.

    Raises:
        CaptureError: if an operation or a shape has no canonical form.
    """
    if example is None:
        if program.example_inputs is None:
            raise CaptureError("the exported program has no example inputs", fix="export it with example inputs")
        example = program.example_inputs
    program = functional(program)
    fm, known = _converted(program, example, model, {}, None)
    if not known:
        return fm
    inputs, call = example_tensors(program, *example), program.module()

    def run(tensors: Mapping[str, Tensor]) -> Any:
        other = {id(x): tensors[edge] for edge, x in inputs.items()}
        args, kwargs = map_leaves(example, lambda x: other.get(id(x), x))
        return call(*args, **kwargs)

    try:
        with torch.no_grad():
            fm = confirmed(fm, run, inputs, {})
    except Multiples as found:
        raise CaptureError("a free axis is right for multiples only", got=found.factors, fix=
                           "export it with 8 * torch.export.Dim(...) or the like") from found
    return fm.with_graph(infer_shapes(fm, known))


def _converted(
    program: torch.export.ExportedProgram, example: tuple[tuple[Any, ...], Mapping[str, Any]], model: nn.Module | None,
    opaque: Mapping[str, OpaqueCall], axes: Any,
) -> tuple[FloatModel, list[str]]:
    """A FloatModel, and the sizes in it; none where all but the batch is fixed.

    Args:
        program: in which no in-place operation matters.
        example: ``(args, kwargs)`` that it was exported with.
        model: what it was exported from, for the names of its inputs.
        opaque: calls of submodules that are kept as they are.
        axes: names of the free axes, in the structure of ``example``.
    """
    params, table = _parameters(program)
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in _user_inputs(program)]
    tensors = example_tensors(program, *example)
    symbols, aliases = symbols_of_inputs(inputs, names_of_axes(tensors, example, axes))
    conv = Converter(params, symbols, aliases)
    limits = limits_of_program(program, symbols)
    env: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _placeholder(conv, node, table, limits)
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
    kept = {k: v.detach().clone() for k, v in first_samples(graph, tensors, _KEPT).items()}
    fm = FloatModel(graph, params, signature, kept,
                    dict(opaque), sources=params, buffers=_buffers(program, params, graph),
                    frozen=_frozen(program), dropouts=dict(conv.dropouts))
    shaped = infer_shapes(fm, batch_only=True)  # with free sizes only a look whether all of it runs
    if set(symbols.values()) <= {BATCH}:
        return fm.with_graph(shaped), []
    return fm.with_graph(fm.graph), sizes_of_program(program, symbols)


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


def _placeholder(conv: Converter, node: fx.Node, table: Mapping[str, str], limits: Mapping[str, list[int | None]]
                 ) -> Any:
    if node.name in table:
        name = table[node.name]
        return Const(conv.params[name], name)
    example = node.meta.get("val")
    if not isinstance(example, Tensor):
        return example
    conv.unique_named(node.name)
    shape = tuple(d if isinstance(d, int) else str(d) for d in conv.dims(example.shape))
    own = {name: limits[name] for d in shape for name in sorted(symbols_of(d)) if name in limits}
    conv.nodes.append(Node(node.name, "input", shape=shape, attrs={"limits": own} if own else {},
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
