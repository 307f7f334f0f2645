"""ONNX Runtime sessions: run a model, and read back what the session made of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as bindings
from torch import Tensor

from intact.errors import ExportError
from intact.exporters.builder import IR_VERSION, OPSET, Builder, onnx_type
from intact.exporters.onnx.functions import FUNCTIONS

__all__ = ["latencies", "open_session", "optimised_nodes", "results", "run_model", "wrap"]

Array = npt.NDArray[Any]

#: what the bindings raise; these classes have no base of their own
_FAILURES = (RuntimeError, *(getattr(bindings, name) for name in (
    "Fail", "RuntimeException", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile",
    "EPFail") if hasattr(bindings, name)))


def wrap(
    b: Builder, inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, tuple[str, Sequence[Any] | None]],
) -> onnx.ModelProto:
    """A model of a builder's nodes; inputs and outputs are name to (dtype, shape), which need not be known."""
    def infos(values: Mapping[str, tuple[str, Sequence[Any] | None]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(k, onnx_type(t), None if s is None else list(s))
                for k, (t, s) in values.items()]

    graph = helper.make_graph(b.nodes, "intact", infos(inputs), infos(outputs), list(b.initializers.values()))
    domains = sorted({"", *(n.domain for n in b.nodes)})
    versions = [helper.make_opsetid(d, OPSET if d == "" else 1) for d in domains]
    functions = [FUNCTIONS[k] for k in sorted({(n.domain, n.op_type) for n in b.nodes} & FUNCTIONS.keys())]
    model = helper.make_model(graph, opset_imports=versions, producer_name="intact", functions=functions)
    model.ir_version = IR_VERSION
    return model


def open_session(
    model: onnx.ModelProto | str | Path, *, threads: int = 0, optimised: bool = True, dump: Path | None = None
) -> onnxruntime.InferenceSession:
    """A CPU session with the default optimisations, or none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        raise ExportError("ONNX Runtime refuses the model", got=str(error).splitlines()[0][:300]) from error


def results(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs of a session, in the order that it names them.

    Raises:
        ExportError: if an operation of the model cannot run.
    """
    try:
        return [np.asarray(v) for v in session.run(None, dict(feeds))]
    except _FAILURES as error:
        sizes = ", ".join(f"{k} {v.shape}" for k, v in feeds.items())
        raise ExportError("ONNX Runtime fails in the model", where=sizes[:200], got=str(error).splitlines()[0][:300],
                          fix="nothing was written; report this model") from error


def run_model(model: onnx.ModelProto | str | Path, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs for one set of inputs."""
    return results(open_session(model), feeds)


def optimised_nodes(model: onnx.ModelProto | str | Path) -> list[onnx.NodeProto]:
    """The nodes that the default session really runs."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "optimised.onnx"
        open_session(model, dump=dump)
        return list(onnx.load(str(dump), load_external_data=False).graph.node)


def latencies(paths: Sequence[str | Path], inputs: Mapping[str, Tensor], *, repeats: int = 30) -> list[float]:
    """Median milliseconds of each model on one thread, the models interleaved."""
    sessions = [open_session(p, threads=1) for p in paths]
    feeds = [{i.name: inputs[i.name].numpy() for i in s.get_inputs()} for s in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(repeats + 3):
        for session, feed, record in zip(sessions, feeds, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            record.append((time.perf_counter() - start) * 1e3)
    return [sorted(record[3:])[repeats // 2] for record in times]
