"""What a machine whose kernels add products in pairs of 16 bits would make of a model: counted on data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intact.analysis.text import table
from intact.arithmetic import pairs_saturate
from intact.calibration import batches
from intact.engine import QModel
from intact.errors import CalibrationError, IntactError
from intact.graph.signature import check_inputs, samples_in
from intact.kernels import Binding

__all__ = ["PairSaturation", "SaturatingLayer", "saturating_pairs"]

_LOW, _HIGH = -(2**15), 2**15 - 1
_CHUNK = 1 << 22  # sums at a time


@dataclass(frozen=True)
class SaturatingLayer:
    """What was counted in one layer.

    Args:
        edge: its output, as in ``q.codes``.
        path: module path.
        at_risk: output channels of which some two products could saturate, whatever the data and the order.
        channels: output channels.
        pairs: sums of two products that were computed.
        saturated: those beyond 16 bits.
        outputs: values that the layer computed.
        wrong: those with a saturated pair in their sum.
    """

    edge: str
    path: str
    at_risk: int
    channels: int
    pairs: int
    saturated: int
    outputs: int
    wrong: int


@dataclass(frozen=True)
class PairSaturation:
    """The layers in order of execution; ``print`` it, or walk through ``layers``.

    Args:
        samples: how many were seen.
        layers: convolutions and linear layers that run in integers.
    """

    samples: int
    layers: tuple[SaturatingLayer, ...]

    @property
    def saturated(self) -> int:
        """Pairs beyond 16 bits, in all layers."""
        return sum(layer.saturated for layer in self.layers)

    def __str__(self) -> str:
        rows = [("module", "channels at risk", "pairs beyond 16 bits", "outputs that have one")]
        rows += [(x.path or x.edge, f"{x.at_risk} of {x.channels}", f"{x.saturated:,} of {x.pairs:,}",
                  f"{x.wrong / max(1, x.outputs):.2%}") for x in self.layers]
        risky = sum(x.at_risk > 0 for x in self.layers)
        return "\n".join([f"Sums of two products in 16 bits over {self.samples} samples: {self.saturated:,} saturate; "
                          f"{risky} of {len(self.layers)} layers are at risk", *table(rows, "lrrr")])


def saturating_pairs(q: QModel, data: Iterable[Any], *, progress: bool | None = None) -> PairSaturation:
    """Count the sums of two products that do not fit in 16 bits (x86 with AVX2 and without VNNI: ``vpmaddubsw``).

    Neighbours are those of ONNX Runtime's kernels: positions 2i and 2i + 1 of the reduction in the order (kernel,
    channel). Another library may pair others; ``at_risk``, and the target ``x86_avx2``, do not depend on it.

    Args:
        q: an integer model, such as one with 8-bit weights for ``onnxruntime``.
        data: batches, as for :func:`intact.calibrate`.
        progress: show a progress bar; by default only on a terminal.

    Raises:
        CalibrationError: if there is no data or a batch does not fit the model.

    >>> import torch, intact.api as intact
    >>> net, x = torch.nn.Linear(4, 1, bias=False), torch.ones(3, 4)
    >>> _ = torch.nn.init.ones_(net.weight)
    >>> found = saturating_pairs(intact.quantize(net, [x]), [x])
    >>> found.layers[0].pairs, found.layers[0].saturated, found.layers[0].wrong
    (6, 6, 3)
    >>> saturating_pairs(intact.quantize(net, [x], target="x86_avx2"), [x]).saturated
    0
    """
    counters = {n.name: _Counter(q.bindings[n.name]) for n in q.graph
                if n.op in ("conv", "linear") and n.name in q.bindings}
    samples = number = 0
    for args, kwargs in batches(data, q.signature.names, "counting", progress):
        try:
            inputs = q.signature.bind(args, kwargs)
            codes = q.program.codes_from(inputs, integer=True)
        except IntactError as error:
            raise CalibrationError(f"batch {number}: {error.what}", where=error.where, got=error.got,
                                   allowed=error.allowed, fix=error.fix) from error
        for name, counter in counters.items():
            counter.update(codes[q.graph[name].inputs[0]])
        samples += samples_in(q.graph, check_inputs(q.graph, inputs))
        number += 1
    if not number:
        raise CalibrationError("there is no data", got="0 batches", fix="pass a non-empty iterable")
    return PairSaturation(samples, tuple(c.layer(name, q.graph[name].path) for name, c in counters.items()))


class _Counter:
    """One layer: its weights in the kernel's order, and of them only the pairs that can saturate."""

    def __init__(self, binding: Binding) -> None:
        assert binding.weight is not None
        self.binding, codes = binding, binding.weight.codes
        p = binding.inputs[0]
        self.low, self.reach = p.qtype.qmin, p.qtype.qmax - p.qtype.qmin
        self.at_risk = int(pairs_saturate(codes, self.reach).sum())
        self.groups = int(binding.attrs.get("groups", 1))
        ordered = codes.movedim(1, -1).flatten(1).to(torch.int32)  # (out, kernel * channel)
        self.length = ordered.shape[1]
        halves = F.pad(ordered, (0, self.length % 2)).unflatten(1, (-1, 2))
        above, below = halves.clamp(min=0).sum(2) * self.reach, halves.clamp(max=0).sum(2) * self.reach
        self.out, self.pair = ((above > _HIGH) | (below < _LOW)).nonzero(as_tuple=True)
        self.weights = halves[self.out, self.pair]  # (pairs, 2)
        self.channels, self.per_output = len(codes), halves.shape[1]
        self.pairs = self.saturated = self.outputs = self.wrong = 0

    def update(self, x: Tensor) -> None:
        """Count for the codes of the operand."""
        rows = 0
        for group, columns in enumerate(self._columns(x.to(torch.int32) - self.low)):
            rows = len(columns)
            first, last = (self.channels * g // self.groups for g in (group, group + 1))
            mine = ((self.out >= first) & (self.out < last)).nonzero().squeeze(1)
            for part in columns.split(max(1, _CHUNK // max(1, len(mine)))) if len(mine) else ():
                self._count(part, mine)
        self.outputs += rows * self.channels
        self.pairs += rows * self.channels * self.per_output

    def _count(self, columns: Tensor, mine: Tensor) -> None:
        left, right = (columns[:, 2 * self.pair[mine] + side] * self.weights[mine, side] for side in (0, 1))
        sums = left.add_(right)
        beyond = (sums > _HIGH) | (sums < _LOW)
        self.saturated += int(beyond.sum())
        touched = torch.zeros(len(columns), self.channels, dtype=torch.int32)
        touched.index_add_(1, self.out[mine], beyond.to(torch.int32))
        self.wrong += int((touched > 0).sum())

    def _columns(self, x: Tensor) -> Iterator[Tensor]:
        """Unsigned codes as each output of a group reads them: (rows, kernel * channel), a column more if odd."""
        a: Mapping[str, Any] = self.binding.attrs
        if self.binding.op == "linear":
            yield F.pad(x.reshape(-1, x.shape[-1]), (0, self.length % 2))
            return
        assert self.binding.weight is not None
        pads = [v for pair in zip(reversed(a["pad_begin"]), reversed(a["pad_end"]), strict=True) for v in pair]
        x = F.pad(x, pads, value=float(int(self.binding.inputs[0].zero_point) - self.low))
        for i, size in enumerate(self.binding.weight.codes.shape[2:]):
            step = a["dilation"][i]
            x = x.unfold(2 + i, (size - 1) * step + 1, a["stride"][i])[..., ::step]
        x = x.movedim(1, -1)  # (batch, *out, *kernel, channel)
        kept = 1 + len(a["stride"])
        for part in x.chunk(self.groups, -1):
            yield F.pad(part.flatten(kept).flatten(0, kept - 1), (0, self.length % 2))

    def layer(self, edge: str, path: str) -> SaturatingLayer:
        """What was counted."""
        return SaturatingLayer(edge, path, self.at_risk, self.channels, self.pairs, self.saturated, self.outputs,
                               self.wrong)
