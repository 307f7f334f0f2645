"""The float graph beside the integer program, node by node: where error comes from, and how it adds up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intact.analysis.metrics import Sqnr, energy
from intact.arithmetic import dequantize, quantize
from intact.calibration.collect import masked_operands
from intact.engine import QModel
from intact.errors import NonFiniteError
from intact.graph import FloatModel, Node
from intact.graph.float_model import last_uses, run_node
from intact.graph.float_ops import run_float
from intact.graph.signature import check_inputs
from intact.kernels import MOVES, Binding
from intact.types import QParams

__all__ = ["Meters", "Probe"]


@dataclass
class Meters:
    """What is added up for one quantized edge, over batches; see :class:`intact.analysis.Site` for the meanings."""

    total: Sqnr = field(default_factory=Sqnr)
    own: Sqnr = field(default_factory=Sqnr)
    added: Sqnr = field(default_factory=Sqnr)
    weight: Sqnr | None = None
    activation: Sqnr | None = None
    clipped: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    code_low: int | None = None
    code_high: int | None = None


class Probe:
    """Runs both models on a batch in lockstep and adds up errors; memory does not grow with the data.

    An edge of the float graph, and its freshly quantized copy, live until their last use. For each integer node
    five passes are made: the float operation; the kernel inside the integer model; the kernel alone, on freshly
    quantized inputs; the float operation on these; the float operation with quantized weights.

    An operand ``y`` that only ``relu(y + d)`` reads is compared as ``max(y, -max(d, 0))``, as it is calibrated:
    what the ReLU removes is no error.

    Args:
        model: the float model, whose graph is that of ``q``.
        q: the integer model.
    """

    def __init__(self, model: FloatModel, q: QModel) -> None:
        self.model, self.q = model, q
        self.meters = {node.name: Meters() for node in q.graph if node.name in q.qparams}
        self._nodes = q.graph.index
        self._weights = {name: _stored(b) for name, b in q.bindings.items() if b.weight is not None}

    def run(
        self, inputs: Mapping[str, Tensor], number: int, *, alone: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Output edges of the float model and of the integer model for named inputs.

        The program runs on float carriers, which is faster; its codes are those of the integers.

        Args:
            inputs: by input edge.
            number: of the batch, for messages.
            alone: look at each node alone too; else only at accumulated errors, ranges and codes.

        Raises:
            NonFiniteError: if the float value of a quantized edge is not finite.
        """
        with torch.no_grad():
            side = _FloatSide(self.model, self.q, inputs, alone)

            def tap(name: str, codes: Tensor) -> None:
                side.advance(name)
                self._measure(self._nodes[name], side, codes, number)

            found = self.q.program.values(inputs, integer=False, tap=tap)
            side.advance(None)
            return {name: side.values[name] for name in self.model.graph.outputs}, found

    def _measure(self, node: Node, side: _FloatSide, codes: Tensor, number: int) -> None:
        meters, qparams, y = self.meters[node.name], self.q.qparams[node.name], side.seen(node.name)
        if not y.numel():
            return
        _see_range(meters, node, y, qparams, number)
        _see_codes(meters, codes)
        signal = energy(y)
        _add(meters.total, y, signal, side.masked(node.name, dequantize(codes, qparams)).sub_(y))
        if not side.alone:
            return
        binding = self.q.bindings.get(node.name)
        if binding is None or node.op in MOVES:
            fresh = side.masked(node.name, side.fresh(node.name)[1]) - y
            _add(meters.own, y, signal, fresh)
            _add(meters.added, y, signal, fresh if binding is None else None)
            return
        inputs = [side.fresh(name) for name in node.inputs]
        codes = self.q.program.kernels[node.name]([c for c, _ in inputs], side.sizes)
        made = side.masked(node.name, dequantize(codes, qparams))
        ideal = run_node(self.model, node, [x for _, x in inputs], side.sizes)
        _add(meters.own, y, signal, made - y)
        _add(meters.added, y, signal, made.sub_(side.masked(node.name, ideal)))
        if node.name in self._weights:
            self._split(node, side, meters, signal, ideal)

    def _split(self, node: Node, side: _FloatSide, meters: Meters, signal: float, ideal: Tensor) -> None:
        """Contributions of weights alone and of activations alone; ``ideal`` has quantized inputs."""
        y, qparams, binding = side.seen(node.name), self.q.qparams[node.name], self.q.bindings[node.name]
        values = [side.values[name] for name in node.inputs]
        weighted = run_float(node.op, values, self._weights[node.name], node.attrs, side.sizes)
        meters.weight, meters.activation = meters.weight or Sqnr(), meters.activation or Sqnr()
        _add(meters.weight, y, signal, side.masked(node.name, weighted).sub_(y))
        if not binding.is_accumulator:
            ideal = dequantize(quantize(ideal, qparams, self.q.target.arithmetic), qparams)
        _add(meters.activation, y, signal, side.masked(node.name, ideal).sub_(y))


class _FloatSide:
    """The float model, run as far as somebody asks; values die once the program has passed their last use."""

    def __init__(self, model: FloatModel, q: QModel, inputs: Mapping[str, Tensor], alone: bool) -> None:
        self.sizes, self.alone = check_inputs(model.graph, inputs), alone
        self.values: dict[str, Tensor] = {}
        self._model, self._q, self._inputs = model, q, inputs
        self._masks = masked_operands(model.graph)
        self._fresh: dict[str, tuple[Tensor, Tensor]] = {}
        self._floors: dict[str, Tensor] = {}
        self._dying = last_uses(model.graph)
        self._ahead, self._behind = iter(model.graph), iter(model.graph)
        self._due: tuple[str, ...] = ()

    def advance(self, until: str | None) -> None:
        """The program is at a node, whose value and operands are then at hand; at the end for None."""
        for node in self._behind:
            self._release()
            self._value(node.name)
            self._due = tuple(self._dying.get(node.name, ()))
            if node.name == until:
                return
        self._release()

    def seen(self, name: str) -> Tensor:
        """The value of an edge, as far as it matters to the edge's only reader."""
        return self.masked(name, self.values[name])

    def masked(self, name: str, value: Tensor) -> Tensor:
        """``max(value, -max(d, 0))`` for an operand of ``relu(value + d)``; the value itself for other edges."""
        if name not in self._masks:
            return value
        if name not in self._floors:
            self._floors[name] = self._value(self._masks[name][1]).clamp(min=0.0).neg_()
        return torch.maximum(value, self._floors[name])

    def fresh(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes of an edge's float value, and what they stand for."""
        if name not in self._fresh:
            qparams = self._q.qparams[name]
            codes = quantize(self.values[name], qparams, self._q.target.arithmetic)
            self._fresh[name] = codes, dequantize(codes, qparams)
        return self._fresh[name]

    def _value(self, name: str) -> Tensor:
        while name not in self.values:
            node = next(self._ahead)
            if node.op == "input":
                self.values[node.name] = self._inputs[node.name]
            else:
                operands = [self.values[i] for i in node.inputs]
                self.values[node.name] = run_node(self._model, node, operands, self.sizes)
        return self.values[name]

    def _release(self) -> None:
        for name in self._due:
            del self.values[name]
            for cache in (self._fresh, self._floors):
                cache.pop(name, None)
        self._due = ()


def _stored(binding: Binding) -> dict[str, Tensor]:
    """Weight and bias as their codes have them, by role."""
    assert binding.weight is not None
    stored = {"weight": binding.weight.dequantize()}
    if binding.bias is not None:
        scale = binding.inputs[0].scale * binding.weight.qparams.scale
        stored["bias"] = (binding.bias.to(torch.float64) * scale.to(torch.float64)).to(torch.float32)
    return stored


def _add(meter: Sqnr, y: Tensor, signal: float, noise: Tensor | None) -> None:
    """Add a batch whose signal is known; no tensor is no noise."""
    meter.count += y.numel()
    meter.signal += signal
    if noise is not None:
        meter.noise += energy(noise)


def _see_range(meters: Meters, node: Node, y: Tensor, qparams: QParams, number: int) -> None:
    low, high = (float(v) for v in torch.aminmax(y))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteError("a float value is not finite", where=node.path or node.name,
                             got=f"{int((~torch.isfinite(y)).sum())} values in batch {number}",
                             fix="mend the data or the model")
    meters.low, meters.high = min(meters.low, low), max(meters.high, high)
    if qparams.scale.ndim or qparams.qtype.bits == 32:
        return
    scale, zero = float(qparams.scale), int(qparams.zero_point)
    first = (qparams.qtype.qmin - zero - 0.5) * scale  # beyond half a step below the lowest code it saturates
    last = (qparams.qtype.qmax - zero + 0.5) * scale
    if low < first:
        meters.clipped += int((y < first).sum())
    if high > last:
        meters.clipped += int((y > last).sum())


def _see_codes(meters: Meters, codes: Tensor) -> None:
    low, high = (int(v) for v in torch.aminmax(codes))
    meters.code_low = low if meters.code_low is None else min(low, meters.code_low)
    meters.code_high = high if meters.code_high is None else max(high, meters.code_high)
