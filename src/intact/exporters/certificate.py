"""The parity certificate: what the runtime computed, held against the integer model, code for code."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from intact.arithmetic import dequantize
from intact.engine import QModel
from intact.exporters.onnx.build import Instrumented, output_names
from intact.exporters.runtime import Array, open_session, optimised_nodes, results
from intact.graph.free import free_symbols, limits_of, resized
from intact.graph.signature import check_inputs, split_batch
from intact.targets import EXACT_FLOAT
from intact.types.dims import BATCH, Sizes, resolve_shape

__all__ = ["Certificate", "certify", "example_inputs", "named_inputs"]


@dataclass(frozen=True)
class Certificate:
    """What was compared, and what was found.

    Args:
        runtime: name and version of the runtime.
        samples: samples that were run.
        edges: integer edges compared.
        codes_compared, codes_differ: codes of integer operations, each given the runtime's own operand codes.
        first_difference: the first operation whose codes differ.
        float_codes_compared, float_codes_differ: codes of edges that a float operation makes, end to end: the
            runtime's float kernels and torch's may differ in the last bit.
        outputs_compared, outputs_differ: values of the model's outputs, end to end, bit for bit.
        outputs_largest_difference: the largest absolute difference among them.
        kernels_planned, kernels_actual: integer kernels by name, in the plan and in the optimised graph.
        not_fused: planned nodes that the runtime does not run as planned.
        integer_mac_share: share of multiply-accumulates in the integer kernels of the optimised graph.
        sizes: of each free axis besides the batch those that were run.
        results_compared, results_differ: of a model with quantized layers, float results of every layer and operation,
            each given the runtime's own operands, bit for bit.
        results_largest_difference: the largest of them, as a share of the largest value of that operation.
        checked: False if there was nothing to run the file with; it was written all the same.
        memory: bytes by what they are for, where the exporter plans memory.
        batches: sizes of batches in which they were run too, or in which all were run.
    """

    runtime: str
    samples: int
    edges: int
    codes_compared: int
    codes_differ: int
    first_difference: str | None
    float_codes_compared: int
    float_codes_differ: int
    outputs_compared: int
    outputs_differ: int
    outputs_largest_difference: float
    kernels_planned: dict[str, int]
    kernels_actual: dict[str, int]
    not_fused: tuple[str, ...]
    integer_mac_share: float
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    results_compared: int = 0
    results_differ: int = 0
    results_largest_difference: float = 0.0
    checked: bool = True
    memory: Mapping[str, int] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 3)

    @property
    def ok(self) -> bool:
        """No code of an integer operation differs, and that was looked at."""
        return self.checked and self.codes_differ == 0

    @property
    def clean(self) -> bool:
        """Nothing differs at all, and every planned kernel is an actual one."""
        return self.ok and not (self.float_codes_differ or self.outputs_differ or self.not_fused)

    def to_json(self) -> str:
        """Stable JSON."""
        return json.dumps({"format": "intact-certificate", "version": 1, **asdict(self)}, indent=2, sort_keys=True)

    def __str__(self) -> str:
        memory = [f"  {what}: {size:,} bytes" for what, size in self.memory.items()]
        if not self.checked:
            return "\n".join([f"NOT CHECKED ({self.runtime})", *memory])
        batches = "" if self.memory else f", batches of {' and '.join(map(str, self.batches))}"
        lines = [
            f"Parity certificate ({self.runtime}, {self.samples} samples{batches}"
            + "".join(f", {name} {' '.join(map(str, run))}" for name, run in self.sizes.items()) + ")",
            f"  integer operations: {self.codes_differ} of {self.codes_compared:,} codes differ on {self.edges} edges",
            f"  after float operations: {self.float_codes_differ} of {self.float_codes_compared:,} codes differ"
            if not self.results_compared else f"  float results of operations: {self.results_differ:,} of "
            f"{self.results_compared:,} values differ, by at most {self.results_largest_difference:.1g} of the largest",
            f"  outputs: {self.outputs_differ} of {self.outputs_compared:,} values differ"
            + (f", by at most {self.outputs_largest_difference:.3g}" if self.outputs_differ else ""),
            f"  integer kernels: {sum(self.kernels_actual.values())} of {sum(self.kernels_planned.values())} planned, "
            f"{self.integer_mac_share:.1%} of multiply-accumulates",
        ]
        if self.first_difference:
            lines.append(f"  first difference: {self.first_difference}")
        if self.not_fused:
            lines.append(f"  not run as planned: {', '.join(self.not_fused)}")
        lines += memory
        return "\n".join(lines)


@dataclass
class _Counts:
    compared: int = 0
    differ: int = 0
    float_compared: int = 0
    float_differ: int = 0
    outputs: int = 0
    outputs_differ: int = 0
    largest: float = 0.0
    first: str | None = None
    edges: int = 0


def certify(
    q: QModel, instrumented: Instrumented, path: Path, data: Any, float_io: bool
) -> Certificate:
    """Run the written file and its instrumented twin, and compare every edge and every output."""
    inputs = named_inputs(q, data) if data is not None else example_inputs(q)
    counts = _Counts()
    twin, product = open_session(instrumented.model), open_session(path) if float_io else None
    points = _points(q, check_inputs(q.graph, inputs))
    for point in points:
        _compare(q, resized(q.graph, inputs, point), twin, product, instrumented.tensors, counts)
    planned = Counter(_planned(q).values())
    actual, missing, share = _kernels(q, path)
    return Certificate(
        f"onnxruntime {onnxruntime.__version__}", points[0][BATCH], counts.edges, counts.compared, counts.differ,
        counts.first, counts.float_compared, counts.float_differ, counts.outputs, counts.outputs_differ, counts.largest,
        dict(sorted(planned.items())), actual, missing, share,
        {name: tuple(sorted({point[name] for point in points})) for name in free_symbols(q.graph)},
    )


def _points(q: QModel, sizes: Sizes) -> list[dict[str, int]]:
    """Batches of three sizes; each free axis at its smallest, and longer than in the example, alone and together."""
    limits = limits_of(q.graph)
    batches = sorted({sizes[BATCH], min(3, sizes[BATCH]), 1}, reverse=True) if BATCH in limits else [sizes[BATCH]]
    points = [{**sizes, BATCH: batch} for batch in batches]
    small = {**sizes, BATCH: batches[min(1, len(batches) - 1)]}
    free = free_symbols(q.graph)
    lowest = {name: limits[name][0] for name in free}
    longer = {name: min(2 * sizes[name] + 1, high) if (high := limits[name][1]) is not None else 2 * sizes[name] + 1
              for name in free}
    for change in (lowest, longer, *({name: n} for name, n in (*lowest.items(), *longer.items()) if len(free) > 1)):
        point = {**small, **change}
        if point not in points:
            points.append(point)
    return points


def named_inputs(q: QModel, data: Any) -> dict[str, Tensor]:
    """Inputs by edge name: as they are given, or those of a batch."""
    names = {node.name for node in q.graph.inputs}
    if isinstance(data, Mapping) and data.keys() == names:
        return dict(data)
    args, kwargs = split_batch(data, q.signature.names)
    return q.signature.bind(args, kwargs)


def example_inputs(q: QModel) -> dict[str, Tensor]:
    """The calibration samples that the model kept, or random numbers of the inputs' ranges."""
    if q.example is not None:
        return dict(q.example)
    generator = torch.Generator().manual_seed(0)
    sizes = {name: max(low, min(16, high or 16)) for name, (low, high) in limits_of(q.graph).items()} | {BATCH: 4}
    made = {}
    for node in q.graph.inputs:
        shape, dtype = resolve_shape(node.shape, sizes), getattr(torch, node.dtype)
        if node.name in q.qparams:
            p = q.qparams[node.name]
            codes = torch.randint(p.qtype.qmin, p.qtype.qmax + 1, shape, generator=generator)
            made[node.name] = ((codes - p.zero_point) * p.scale).to(dtype)
        else:
            made[node.name] = torch.ones(shape, dtype=dtype)
    return made


def _compare(q: QModel, inputs: Mapping[str, Tensor], twin: Any, product: Any, tensors: Mapping[str, str],
             counts: _Counts) -> None:
    feeds = {k: v.numpy() for k, v in inputs.items() if k in {i.name for i in twin.get_inputs()}}
    names = [o.name for o in twin.get_outputs()]
    found = dict(zip(names, results(twin, feeds), strict=True))
    _compare_edges(q, inputs, {e: found[t] for e, t in tensors.items() if t in found}, counts)
    values = q.program.values(inputs, integer=True)
    produced = dict(zip([o.name for o in product.get_outputs()], results(product, feeds), strict=True)) if product \
        else found
    for name, edge in output_names(q.graph):
        ours, theirs = values[edge].numpy(), np.asarray(produced[name])
        counts.outputs += ours.size
        differs = ~((ours == theirs) | ((ours != ours) & (theirs != theirs)))
        counts.outputs_differ += int(differs.sum())
        if differs.any():
            gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            counts.largest = max(counts.largest, float(gap.max()))


def _compare_edges(q: QModel, inputs: Mapping[str, Tensor], runtime: Mapping[str, Array], counts: _Counts) -> None:
    """Integer edges given the runtime's own operand codes; the others end to end."""
    ours = q.program.codes_from(inputs, integer=True)
    sizes = check_inputs(q.graph, inputs)
    counts.edges = len(runtime)
    for node in q.graph:
        if node.name not in runtime:
            continue
        theirs, params = runtime[node.name], q.qparams[node.name]
        if node.name in q.bindings:
            operands = [torch.from_numpy(runtime[i]) if i in runtime else ours[i] for i in node.inputs]
            mine = q.program.kernels[node.name](operands, sizes)
            if params.qtype.bits > 16:
                mine = dequantize(mine, params)
            differs = int((mine.numpy() != theirs).sum())
            counts.compared += theirs.size
            counts.differ += differs
            if differs and counts.first is None:
                counts.first = f"{node.path or node.name} ({node.op}, edge '{node.name}')"
        else:
            is_input = node.op == "input"
            differs = int((ours[node.name].numpy() != theirs).sum())
            if is_input:
                counts.compared += theirs.size
                counts.differ += differs
                if differs and counts.first is None:
                    counts.first = f"input '{node.name}'"
            else:
                counts.float_compared += theirs.size
                counts.float_differ += differs


_TOKEN = re.compile(r"(_token_\d+|_nhwc)+$")
#: optimised node types by the kernel that the plan names
_SAME = {"QLinearMatMul": ("QLinearMatMul", "MatMulIntegerToFloat"), "QGemm": ("QGemm",)}


def _planned(q: QModel) -> dict[str, str]:
    """Integer kernels by node."""
    return {name: k for name, k in q.info.get("kernels", {}).items() if k and k != EXACT_FLOAT}


def _kernels(q: QModel, path: Path) -> tuple[dict[str, int], tuple[str, ...], float]:
    """Integer kernels of the optimised graph, planned nodes that are not among them, share of MACs that are."""
    nodes = optimised_nodes(path)
    actual: dict[str, set[str]] = {}
    for n in nodes:  # the layout transformation appends a token to a node's name
        actual.setdefault(_TOKEN.sub("", n.name), set()).add(n.op_type)
    planned = _planned(q)
    found: Counter[str] = Counter()
    missing = []
    for name, kernel in planned.items():
        kinds = actual.get(name, set())
        exact_sum = q.qparams[name].qtype.bits > 16 and kernel == "QLinearGlobalAveragePool"
        if kinds & set(_SAME.get(kernel, (kernel,))) or exact_sum:
            found[kernel] += 1
        else:
            missing.append(f"{name} ({kernel}{', runs as ' + ', '.join(sorted(kinds)) if kinds else ''})")
    total, done = 0, 0
    macs: Mapping[str, int] = q.info.get("macs", {})
    lost = {m.split(" ")[0] for m in missing}
    for name, count in macs.items():
        total += count
        done += count if name in planned and name not in lost else 0
    return dict(sorted(found.items())), tuple(missing), done / total if total else 1.0
