"""An ONNX model of a graph: every node in the form that the runtime runs, and the names of what goes in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx
from onnx import helper

from intact.engine import QModel
from intact.errors import ExportError
from intact.exporters.builder import Builder
from intact.exporters.onnx.float import emit_float
from intact.exporters.onnx.int import emit_integer
from intact.exporters.onnx.tables import emit_table
from intact.exporters.runtime import wrap
from intact.graph import FloatModel, Graph, Node
from intact.simulation.program import value_tables
from intact.types import QParams

__all__ = ["IO", "Instrumented", "Opened", "build", "build_float", "instrumented", "opened", "output_names"]

IO = Literal["float", "codes"]


@dataclass(frozen=True)
class Instrumented:
    """A model that also gives what is inside.

    Args:
        model: every edge's codes (or the value of an accumulator) are outputs too.
        tensors: edge name to the output that holds them.
    """

    model: onnx.ModelProto
    tensors: Mapping[str, str]


def build(q: QModel, *, inputs: IO = "float", outputs: IO = "float") -> onnx.ModelProto:
    """The ONNX model of an integer model."""
    return _build(Builder(q.graph, q.float_params, q.qparams, q.bindings, q.tables), inputs, outputs)


def build_float(model: FloatModel) -> onnx.ModelProto:
    """The ONNX model of a float model."""
    return _build(Builder(model.graph, model.params, {}, {}), "float", "float")


def instrumented(q: QModel) -> Instrumented:
    """The ONNX model with every edge that has codes among its outputs."""
    b = Builder(q.graph, q.float_params, q.qparams, q.bindings, q.tables)
    model = _build(b, "float", "float", _edge_outputs)
    return Instrumented(model, _edge_tensors(b))


@dataclass(frozen=True)
class Opened:
    """A float model of which everything can be seen.

    Args:
        model: every edge, and what its probes look at, are outputs too.
        edges: edge name to output.
        probes: of the quantized layers.
    """

    model: onnx.ModelProto
    edges: Mapping[str, str]
    probes: Sequence[Any]


def opened(model: FloatModel, *, inside: bool) -> Opened:
    """A float model with every edge among its outputs.

    Args:
        model: with quantized layers.
        inside: with what is inside of those layers; the runtime cannot fuse that then.
    """
    b = Builder(model.graph, model.params, {}, {}, inside=inside)

    def everything(b: Builder) -> dict[str, tuple[str, Any]]:
        made = {o for n in b.nodes for o in n.output}
        found: dict[str, tuple[str, Any]] = {
            b.floats[n.name]: (n.dtype, n.shape) for n in b.graph if b.floats[n.name] in made}
        for probe in b.probes if inside else ():
            for tensor, dtype in probe.types().items():
                if tensor in made:
                    found.setdefault(tensor, (dtype, None))
        return found

    proto = _build(b, "float", "float", everything)
    names = {o.name for o in proto.graph.output}
    return Opened(proto, {k: v for k, v in b.floats.items() if v in names}, tuple(b.probes))


def _build(
    b: Builder, inputs: IO, outputs: IO, also: Callable[[Builder], Mapping[str, tuple[str, Any]]] | None = None
) -> onnx.ModelProto:
    graph = b.graph
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
    if also is not None:
        results.update({k: v for k, v in also(b).items() if k not in results})
    used = set(_reads(b.nodes))
    b.initializers = {k: v for k, v in b.initializers.items() if k in used}
    model = wrap(b, feeds, results)
    _describe(b, graph, model, inputs, outputs)
    return model


def _reads(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """All names that nodes read, those in the bodies of loops too."""
    for n in nodes:
        yield from n.input
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from _reads(a.g.node)


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
        made = {o for n in b.nodes for o in n.output}
        node = graph[edge]
        if io == "codes":
            q = b.qparams.get(edge)
            if q is None or q.qtype.bits > 16:
                raise ExportError("an output has no codes", where=name, fix="plan with Recipe(quantized_outputs=True)")
            tensor, dtype = b.codes_of(edge), str(q.qtype.storage).removeprefix("torch.")
        else:
            tensor, dtype = b.float_of(edge), node.dtype
        if tensor not in made or tensor in renamed:
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
    b.probes = [probe.renamed(renamed) for probe in b.probes]
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
    named = [(name or "output", edge) for name, edge in found]
    return [(name + "_out" if name in taken else name, edge) for name, edge in named]


def _edge_tensors(b: Builder) -> dict[str, str]:
    """Edge name to the tensor of its codes (accumulator: value)."""
    found = {}
    for node in b.graph:
        q = b.qparams.get(node.name)
        if q is None or node.op == "constant":
            continue
        tensors = b.floats if q.qtype.bits > 16 else b.codes
        if node.name in tensors:
            found[node.name] = tensors[node.name]
    return found


def _edge_outputs(b: Builder) -> dict[str, tuple[str, list[Any]]]:
    """Codes of every edge, under the tensors' own names; what is an input of the graph is no output."""
    made = {o for n in b.nodes for o in n.output}
    results: dict[str, tuple[str, list[Any]]] = {}
    for edge, tensor in _edge_tensors(b).items():
        q = b.qparams[edge].qtype
        dtype = "float32" if q.bits > 16 else str(q.storage).removeprefix("torch.")
        if tensor in made:
            results[tensor] = (dtype, list(b.graph[edge].shape))
    return results


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
