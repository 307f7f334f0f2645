"""Ranges of every weight and every activation of a float model: one pass, in constant memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from intact.analysis.metrics import energy
from intact.analysis.text import table
from intact.calibration import batches
from intact.errors import CalibrationError, IntactError
from intact.graph import MAC_OPS, FloatModel, Node
from intact.graph.signature import check_inputs, samples_in

__all__ = ["Row", "Statistics", "tensor_statistics"]

#: of :meth:`Statistics.to_json`; grows when a key changes its meaning or goes away
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Row:
    """What was seen of one tensor.

    Args:
        kind: a weight, or the activation that a layer makes (or that the model is given).
        name: parameter name, or edge name as in ``qfloat.codes``.
        path: module path in the user's model; "" for what stands in its own ``forward``.
        op: canonical operation.
        shape: of the weight; of the activation for one sample.
        count: values seen.
        low, high, mean, std: of the finite values; 0.0 if there are none.
        not_finite: how many values are NaN or infinite.
    """

    kind: Literal["weight", "activation"]
    name: str
    path: str
    op: str
    shape: tuple[int, ...]
    count: int
    low: float
    high: float
    mean: float
    std: float
    not_finite: int = 0


@dataclass(frozen=True)
class Statistics:
    """A table: ``print`` it, walk through its rows, or take it as data.

    Args:
        samples: batches of how many samples were seen, in all.
        weights: of every layer with multiply-accumulates, in order of execution, each tensor once.
        activations: the inputs and what every layer makes, in order of execution.
    """

    samples: int
    weights: tuple[Row, ...]
    activations: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Weights, then activations."""
        return self.weights + self.activations

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of a parameter or an edge; or, by module path, of the last activation made there.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        return {row.path: row for row in self.activations}[name]

    def to_json(self) -> str:
        """Versioned JSON; the same table, the same text."""
        data = {"format": "intact.statistics", "format_version": FORMAT_VERSION, "samples": self.samples,
                "weights": [asdict(r) for r in self.weights], "activations": [asdict(r) for r in self.activations]}
        return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [f"Statistics of the float model over {self.samples} samples"]
        for title, rows in (("Weights, as they are quantized", self.weights), ("Activations", self.activations)):
            lines += ["", f"  {title} ({len(rows)}):", *_text(rows)]
        return "\n".join(lines)


def _text(rows: tuple[Row, ...]) -> list[str]:
    if not rows:
        return ["    none"]
    bad = any(r.not_finite for r in rows)
    head = ("name", "module", "op", "shape", "min", "max", "mean", "std") + ("not finite",) * bad
    body = [(r.name, r.path or "-", r.op, "x".join(map(str, r.shape)) or "-",
             *(f"{v:.4g}" for v in (r.low, r.high, r.mean, r.std))) + (f"{r.not_finite:,}",) * bad for r in rows]
    return table([head, *body], "llllr")


class _Meter:
    """Extremes and moments of one tensor over batches (Chan et al., "Updating formulae", 1979)."""

    def __init__(self) -> None:
        self.count = self.finite = 0
        self.low, self.high, self.mean, self.squares = math.inf, -math.inf, 0.0, 0.0

    def update(self, x: Tensor) -> None:
        self.count += x.numel()
        flat = x.detach().reshape(-1)
        flat = flat if flat.dtype == torch.float32 else flat.to(torch.float64)
        if not flat.numel():
            return
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            flat = flat[torch.isfinite(flat)]
            if not flat.numel():
                return
            low, high = (float(v) for v in torch.aminmax(flat))
        new, mean = flat.numel(), float(flat.mean())
        self.low, self.high = min(self.low, low), max(self.high, high)
        delta, total = mean - self.mean, self.finite + new
        self.squares += energy(flat - mean) + delta * delta * self.finite * new / total
        self.mean += delta * new / total
        self.finite = total

    def row(self, kind: Literal["weight", "activation"], name: str, node: Node, shape: tuple[int, ...]) -> Row:
        seen = self.finite > 0
        return Row(kind, name, node.path, node.op, shape, self.count, self.low if seen else 0.0,
                   self.high if seen else 0.0, self.mean, math.sqrt(self.squares / self.finite) if seen else 0.0,
                   self.count - self.finite)


def tensor_statistics(model: FloatModel, data: Iterable[Any], *, progress: bool | None = None) -> Statistics:
    """Minimum, maximum, mean and standard deviation of every weight and of every activation.

    Args:
        model: a captured model. Batch norms and activation functions that were folded into a layer are part of it,
            in the weights and in the range; ``intact.capture(net, x, passes=())`` keeps every one apart.
        data: batches, as for :func:`intact.calibrate`.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        The table.

    Raises:
        CalibrationError: if there is no data or a batch does not fit the model.

    >>> from intact.api import capture
    >>> fm = capture(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), torch.zeros(2, 2))
    >>> found = tensor_statistics(fm, [torch.tensor([[-1.0, 3.0]]), torch.tensor([[0.0, 2.0]])])
    >>> found["input"].low, found["input"].high, found["input"].mean, found["0"].low >= 0
    (-1.0, 3.0, 1.0, True)
    """
    meters: dict[str, _Meter] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    samples = number = 0

    def tap(node: Node, value: Tensor) -> None:
        meters.setdefault(node.name, _Meter()).update(value)
        shapes[node.name] = tuple(value.shape[1:] if node.shape[:1] == ("batch",) else value.shape)

    for args, kwargs in batches(data, model.signature.names, "statistics", progress):
        try:
            inputs = model.signature.bind(args, kwargs)
            model.run(inputs, tap)
        except IntactError as error:
            raise CalibrationError(f"batch {number}: {error.what}", where=error.where, got=error.got,
                                   allowed=error.allowed, fix=error.fix) from error
        samples += samples_in(model.graph, check_inputs(model.graph, inputs))
        number += 1
    if not number:
        raise CalibrationError("there is no data to take statistics of", got="0 batches",
                               fix="pass a non-empty iterable; a generator can be consumed only once")
    activations = [meters[n.name].row("activation", n.name, n, shapes[n.name])
                   for n in model.graph if n.name in meters]
    return Statistics(samples, tuple(_weights(model)), tuple(activations))


def _weights(model: FloatModel) -> Iterator[Row]:
    seen = set()
    for node in model.graph:
        name = node.params.get("weight")
        if node.op in MAC_OPS and name is not None and name not in seen:
            seen.add(name)
            meter, weight = _Meter(), model.params[name]
            meter.update(weight)
            yield meter.row("weight", name, node, tuple(weight.shape))
