"""What a runtime computes in a model with quantized layers, held against the layers: integers with equality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from intact.arithmetic import quantize_rows, quantize_tensor, tensor_range
from intact.errors import ExportError
from intact.exporters.builder import Builder, place
from intact.exporters.certificate import Certificate
from intact.exporters.leaves.forms import Probe, product
from intact.exporters.leaves.weights import LeafWeight, weight_of
from intact.exporters.onnx.build import opened
from intact.exporters.runtime import Array, open_session, optimised_nodes, results, wrap
from intact.graph import FloatModel, Node
from intact.graph.float_model import run_node
from intact.graph.signature import check_inputs
from intact.kernels.integer import conv_int, matmul_int
from intact.leaves.how import Dynamic, how_from_json
from intact.planning import macs_of
from intact.types.dims import BATCH

__all__ = ["Batch", "certify_leaves"]

_ONE_HOT = 1024  # rows, of the test that a weight is what it should be
_FLOAT_LIMIT = 1e-3  # of the largest value: another function, not another rounding
# of the root mean square: where a state is quantized again at every step, a last bit (of a sigmoid) can be a code in
# the next step, and codes are apart by what quantization rounds off; another function is apart by all of the values
_RECURRENT_LIMIT = 0.05
#: kernels that an integer product may become
_PRODUCTS = frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
_KERNELS = _PRODUCTS | {"ConvInteger", "MatMulNBits"}


@dataclass(frozen=True)
class Batch:
    """Inputs by edge name, and the outputs of the user's own module for them, by output name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass
class _Found:
    codes: int = 0
    differ: int = 0
    first: str | None = None
    edges: int = 0
    results: int = 0
    results_differ: int = 0
    results_largest: float = 0.0
    outputs: int = 0
    outputs_differ: int = 0
    outputs_largest: float = 0.0

    def equal(self, ours: Tensor, theirs: Array, where: str) -> None:
        """Count integers, and what has to be as exact."""
        differs = ~_same(ours.numpy(), theirs)
        self.codes += theirs.size
        self.differ += int(differs.sum())
        if differs.any() and self.first is None:
            self.first = where


def certify_leaves(model: FloatModel, path: Path, batches: Sequence[Batch]) -> Certificate:
    """Run a written file and twins of it that show what is inside, and compare.

    Args:
        model: the captured model.
        path: the file.
        batches: what to compare on.

    Raises:
        ExportError: if an operation of the runtime is not the one that it stands for.
    """
    found = _Found()
    _weights(model, found)
    for inside in (True, False):
        twin = opened(model, inside=inside)
        session = open_session(twin.model)
        names = [o.name for o in session.get_outputs()]
        for batch in batches:
            feeds = {i.name: batch.inputs[i.name].numpy() for i in session.get_inputs()}
            values = {**feeds, **dict(zip(names, results(session, feeds), strict=True))}
            if inside:
                found.edges = len(twin.probes)
                for probe in twin.probes:
                    _compare(probe, values, found)
            else:
                _operations(model, batch, {k: values[v] for k, v in twin.edges.items()}, found)
    _ends(path, batches, found)
    planned, actual = _kernels(onnx.load(str(path), load_external_data=False).graph.node), _kernels(
        optimised_nodes(path))
    missing = _missing(planned, actual)
    whole, integer = _macs(model)
    sizes = [check_inputs(model.graph, b.inputs) for b in batches]
    run = {name: tuple(sorted({s[name] for s in sizes})) for name in sizes[0] if name != BATCH}
    largest = max(s.get(BATCH, 1) for s in sizes)
    return Certificate(
        f"onnxruntime {onnxruntime.__version__}", largest, found.edges, found.codes, found.differ, found.first, 0, 0,
        found.outputs, found.outputs_differ, found.outputs_largest, planned, actual, missing,
        integer / whole if whole else 1.0, run, found.results, found.results_differ, found.results_largest)


def _same(ours: Array, theirs: Array) -> Array:
    same: Array = (ours == theirs) | ((ours != ours) & (theirs != theirs))
    return same


# -- integers -----------------------------------------------------------------------------------


def _compare(probe: Probe, values: Mapping[str, Array], found: _Found) -> None:
    """Codes of the runtime's own operand, and sums of the runtime's own codes; in a loop those of every step."""
    x, tensors = values[probe.operand], {k: values[v] for k, v in probe.tensors.items()}
    if not probe.stacked:
        _compare_step(probe, _tensor(x), tensors, found)
        return
    for i in range(x.shape[0]):
        _compare_step(probe, _tensor(x[i]), {k: v[i] for k, v in tensors.items()}, found)


def _tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _compare_step(probe: Probe, x: Tensor, theirs: Mapping[str, Array], found: _Found) -> None:
    where = place(probe.node)
    scale: Tensor | None = None
    if "zero" in theirs:
        step, zero = tensor_range(x)
        ours = {"codes": quantize_tensor(x, step, zero), "step": step, "zero": zero.to(torch.uint8)}
        codes, offset = _tensor(theirs["codes"]), int(theirs["zero"])
    else:
        codes, step, low = quantize_rows(x)
        ours = {"codes": codes[:, : x.shape[1]], "step": step, "low": low}
        codes, offset = _tensor(theirs["codes"]), 0
        scale = None if probe.settings else probe.weight.qweight.derived().row_scale
    for role, value in ours.items():
        found.equal(value, theirs[role], where)
    for i, acc in enumerate(_sums(probe, codes, offset)):
        if scale is not None:
            acc = acc.to(torch.float32) * (scale if scale.ndim == 1 else scale[:, i])
        found.equal(acc, theirs[f"sums{i}"], where)


def _sums(probe: Probe, codes: Tensor, zero: int) -> Iterator[Tensor]:
    """Exact sums of products, of every group."""
    s, w = probe.settings, probe.weight.qweight
    if s:
        none = [0] * len(s["stride"])
        x = codes.reshape(codes.shape[0], *s["inside"])
        yield conv_int(x, w.codes, zero, s["stride"], none, none, s["dilation"], s["groups"])
        return
    groups = w.scale.shape[1] if w.scale is not None and w.scale.ndim == 2 else 1
    size = probe.weight.columns // groups
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        yield matmul_int(codes[..., part], w.codes[:, part].contiguous(), zero)


def _weights(model: FloatModel, found: _Found) -> None:
    """What the runtime multiplies with where weights are made float: the rows of one-hot inputs."""
    done: set[str] = set()
    for n in model.graph:
        if n.op != "leaf_product" or n.params["codes"] in done:
            continue
        done.add(n.params["codes"])
        b = Builder(model.graph, model.params, {}, {})
        w = weight_of(b, n, (model.params[n.params["codes"]].shape[0], int(model.graph[n.inputs[0]].shape[-1])))
        if not isinstance(w.how, Dynamic):
            _one_hot(b, n, w, found)


def _one_hot(b: Builder, n: Node, w: LeafWeight, found: _Found) -> None:
    y = product(b, n, "one_hot", w, None)
    session = open_session(wrap(b, {"one_hot": ("float32", [None, w.columns])}, {y: ("float32", [None, w.shape[0]])}))
    chosen = torch.linspace(0, w.columns - 1, min(w.columns, _ONE_HOT)).long()
    x = torch.nn.functional.one_hot(chosen, w.columns).to(torch.float32)
    found.equal(w.qweight.dequantize().t()[chosen], results(session, {"one_hot": x.numpy()})[0], place(n))


# -- float results ------------------------------------------------------------------------------


def _operations(model: FloatModel, batch: Batch, edges: Mapping[str, Array], found: _Found) -> None:
    """Every operation by itself, given the runtime's own operands.

    Raises:
        ExportError: if one of them is not what it stands for.
    """
    sizes = check_inputs(model.graph, batch.inputs)
    known = {k: torch.from_numpy(v) for k, v in edges.items()}
    known |= {n.name: model.params[n.params["value"]].detach() for n in model.graph if n.op == "constant"}
    known |= dict(batch.inputs)
    with torch.no_grad():
        for n in model.graph:
            if n.name not in edges or n.op in ("input", "constant") or any(i not in known for i in n.inputs):
                continue
            ours = run_node(model, n, [known[i] for i in n.inputs], sizes).numpy()
            if n.op == "leaf_rows":  # one rounding: rows are as exact as codes
                found.equal(torch.from_numpy(ours), edges[n.name], place(n))
            differs, share = _apart(ours, edges[n.name])
            apart = _mean_apart(ours, edges[n.name]) if n.op == "leaf_recurrent" else share
            if apart > (_RECURRENT_LIMIT if n.op == "leaf_recurrent" else _FLOAT_LIMIT):
                raise ExportError("the runtime computes something else", where=place(n),
                                  got=f"a difference of {apart:.3g} of the values",
                                  fix="nothing was written; report this model")
            found.results += ours.size
            found.results_differ += differs
            found.results_largest = max(found.results_largest, share)


def _apart(ours: Array, theirs: Array) -> tuple[int, float]:
    """How many values differ; the largest difference as a share of the largest finite value."""
    if ours.shape != theirs.shape:
        return ours.size, np.inf
    differs = ~_same(ours, theirs)
    if not differs.any():
        return 0, 0.0
    a, b = ours[differs].astype(np.float64), theirs[differs].astype(np.float64)
    if ours.dtype.kind != "f" or not (np.isfinite(a) & np.isfinite(b)).all():
        return int(differs.sum()), np.inf
    largest = np.abs(ours[np.isfinite(ours)]).max()
    return int(differs.sum()), float(np.abs(a - b).max() / max(float(largest), 1e-30))


def _mean_apart(ours: Array, theirs: Array) -> float:
    """The root mean square of all differences, as a share of that of the values."""
    if ours.shape != theirs.shape:
        return np.inf
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not (finite | _same(ours, theirs)).all():
        return np.inf
    a, b = a[finite], b[finite]
    return float(np.sqrt(np.square(a - b).sum() / max(float(np.square(a).sum()), 1e-30)))


def _ends(path: Path, batches: Sequence[Batch], found: _Found) -> None:
    """Outputs of the file and of the user's module."""
    session = open_session(path)
    names = [o.name for o in session.get_outputs()]
    for batch in batches:
        feeds = {i.name: batch.inputs[i.name].numpy() for i in session.get_inputs()}
        for name, theirs in zip(names, results(session, feeds), strict=True):
            ours = batch.outputs[name].numpy()
            differs = ~_same(ours, np.asarray(theirs))
            found.outputs += ours.size
            found.outputs_differ += int(differs.sum())
            if differs.any():
                gap = np.abs(ours.astype(np.float64) - np.asarray(theirs).astype(np.float64))[differs]
                found.outputs_largest = max(found.outputs_largest, float(gap.max()))


# -- kernels ------------------------------------------------------------------------------------


def _kernels(nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    """Integer kernels and products with packed weights, those in loops too."""
    found: Counter[str] = Counter()
    for n in nodes:
        kind = "MatMulIntegerToFloat" if n.op_type == "MatMulInteger" else n.op_type
        found.update([kind] if kind in _KERNELS else [])
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                found.update(_kernels(a.g.node))
    return dict(sorted(found.items()))


def _missing(planned: Mapping[str, int], actual: Mapping[str, int]) -> tuple[str, ...]:
    """Kernels of which the optimised graph has fewer than the file."""
    kinds: dict[str, Callable[[str], bool]] = {
        "MatMulIntegerToFloat": lambda k: k in _PRODUCTS, "ConvInteger": lambda k: k == "ConvInteger",
        "MatMulNBits": lambda k: k == "MatMulNBits"}
    found = []
    for kind, belongs in kinds.items():
        want, have = (sum(v for k, v in table.items() if belongs(k)) for table in (planned, actual))
        if have < want:
            found.append(f"{kind} ({have} of {want})")
    return tuple(found)


def _macs(model: FloatModel) -> tuple[int, int]:
    """Multiply-accumulates of a sample, and those of integers."""
    whole = integer = 0
    for n in model.graph:
        count = _leaf_macs(model, n) if n.op.startswith("leaf_") else macs_of(n, model)
        whole += count
        if n.op.startswith("leaf_") and isinstance(how_from_json(n.attrs["settings"]["how"]), Dynamic):
            integer += count
    return whole, integer


def _leaf_macs(model: FloatModel, n: Node) -> int:
    if n.op == "leaf_product":
        given = int(np.prod([d for d in model.graph[n.inputs[0]].shape if isinstance(d, int)]))
        return given * int(model.params[n.params["codes"]].shape[0])
    if n.op == "leaf_conv":
        out = int(np.prod([d for d in n.shape if isinstance(d, int)]))
        return out * int(np.prod(n.attrs["settings"]["shape"][1:]))
    if n.op == "leaf_recurrent" and n.attrs["index"] == 0:
        steps = n.shape[0] if isinstance(n.shape[0], int) else 1
        return steps * sum(model.params[v].numel() for k, v in n.params.items() if k.endswith("codes"))
    return 0
