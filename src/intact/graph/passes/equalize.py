"""Channels of unlike range are brought closer, so that one scale for the whole tensor wastes fewer codes.

For a ReLU, ``relu(x / s) = relu(x) / s`` with s > 0: the producer's channel is divided by s and what every reader
does with that channel is multiplied by s. The float model stays the same (Nagel et al., "Data-free quantization
through weight equalization and bias correction", 2019; here with the ranges of activations, because weights have a
scale per channel and activations have not).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intact.arithmetic import Rounding, round_to_int
from intact.errors import CaptureError
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass

__all__ = ["EqualizeChannels"]

#: shares of the spread of ranges (in the logarithm) that may move from the activations into the readers' weights
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: what searching the range for the least squared error leaves of the largest value, typically
_CLIPPED = 0.7
#: no channel is scaled by more than this
LARGEST = 16.0
#: factors are powers of two to this fraction, so that they can be written down exactly
STEPS = 4
#: samples whose ranges are looked at: channels differ far more than samples do
_SAMPLES = 8

_THROUGH = frozenset({"max_pool"})


@dataclass(frozen=True)
class _Reader:
    """A convolution that reads the channels from ``offset`` on of its operand."""

    name: str
    offset: int


class EqualizeChannels(Pass):
    """Equalize what convolutions with a ReLU, or without activation, give to convolutions.

    Nothing else may read it, but for max pooling and concatenations of channels in between. Ranges come from the
    example inputs.
    """

    name = "equalize_channels"

    def __init__(
        self, strengths: Sequence[float] = STRENGTHS, steps: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """The example inputs decide, or ``steps`` of an earlier run (edge to quarter octaves) are repeated."""
        self.strengths, self.steps = tuple(strengths), steps

    def run(self, model: FloatModel) -> FloatModel:
        """Scale every channel that can be scaled."""
        readers = {n.name: found for n in model.graph if (found := _readers(model, n))}
        if not readers:
            return model
        steps = self.steps if self.steps is not None else self._measured(model, readers)
        params = dict(model.params)
        for name, values in steps.items():
            if name not in readers or len(values) != model.graph[name].shape[1]:
                raise CaptureError("the equalization is of another model", where=name)
            factor = torch.pow(2.0, -torch.tensor(values, dtype=torch.float64) / STEPS)
            _scale(model, params, name, readers[name], factor)
        if not steps:
            return model
        note = ("", f"channels of {len(steps)} activation(s) equalized")
        return replace(model.with_graph(model.graph, params), notes=(*model.notes, note), equalization=dict(steps))

    def _measured(self, model: FloatModel, readers: Mapping[str, list[_Reader]]) -> dict[str, list[int]]:
        """Quarter octaves by which each channel is to be enlarged: the strength with the least expected error."""
        sources = {model.graph[x.name].inputs[0] for found in readers.values() for x in found}
        seen, steps = _statistics(model, sources | set(readers)), {}
        for name, found in readers.items():
            own = seen[name]
            top = max(float(seen[model.graph[r.name].inputs[0]].largest.max()) for r in found)
            if top <= 0.0 or not math.isfinite(top):
                continue
            spread = torch.where(own.largest > 0, top / own.largest, torch.ones_like(own.largest)).clamp(min=1.0)
            octaves = spread.log2().clamp(max=math.log2(LARGEST))
            choices = [round_to_int(octaves * s * STEPS, Rounding.HALF_EVEN) for s in self.strengths]
            errors = [_expected_error(model, own, found, top, torch.pow(2.0, c / STEPS)) for c in choices]
            best = choices[errors.index(min(errors))]
            if bool(best.any()):
                steps[name] = [int(v) for v in best]
        return steps

    def ensures(self, model: FloatModel) -> str | None:
        """Nothing is promised but equal outputs, which every pass is checked for."""
        return None


@dataclass(frozen=True, eq=False)
class _Channels:
    """Of every channel: largest magnitude, mean square, share of values that are not zero (float64)."""

    largest: Tensor
    square: Tensor
    active: Tensor


def _statistics(model: FloatModel, edges: set[str]) -> dict[str, _Channels]:
    """Statistics of edges on the example inputs."""
    found: dict[str, _Channels] = {}

    def tap(node: Node, value: Tensor) -> None:
        if node.name in edges:
            flat = value.transpose(0, 1).flatten(1)
            largest = torch.maximum(flat.amax(1), -flat.amin(1))
            square, active = (flat * flat).mean(1), flat.sign().abs_().mean(1)
            found[node.name] = _Channels(*(t.to(torch.float64) for t in (largest, square, active)))

    model.run(model.small_example(_SAMPLES), tap)
    return found


def _expected_error(
    model: FloatModel, channels: _Channels, readers: list[_Reader], top: float, enlarged: Tensor
) -> float:
    """Mean square error of the readers' outputs from rounding to 8 bits, up to what all strengths share.

    Rounding an activation costs step**2 / 12 where it is not zero, times the reader's weights, which the
    enlargement divides; rounding the reader's weights costs its own step**2 / 12, times the enlarged activations.
    """
    step = _CLIPPED * top / 255.0
    total = 0.0
    for reader in readers:
        weight = model.params[model.graph[reader.name].params["weight"]].to(torch.float64).flatten(2)
        part = slice(reader.offset, reader.offset + enlarged.numel())
        taps = weight.shape[2]
        scaled = weight.clone()
        scaled[:, part] = scaled[:, part] / enlarged.reshape(1, -1, 1)
        power = (scaled[:, part] ** 2).sum((0, 2))
        total += float(step**2 / 12 * (channels.active * power).sum())
        weight_step = scaled.abs().amax((1, 2)) / 127.0
        total += float((weight_step**2).sum() / 12 * taps * (channels.square * enlarged**2).sum())
    return total


def _readers(model: FloatModel, node: Node) -> list[_Reader] | None:
    """Every convolution that reads the channels of ``node``; None if anything else does."""
    if node.op != "conv" or node.attrs.get("activation", [0.0, math.inf]) != [0.0, math.inf]:
        return None
    if _shared(model, node):
        return None
    users, outputs = model.graph.consumers(), set(model.graph.outputs)
    found: list[_Reader] = []

    def follow(edge: str, offset: int) -> bool:
        if edge in outputs:
            return False
        for user in users[edge]:
            if user.op in _THROUGH:
                if not follow(user.name, offset):
                    return False
            elif user.op == "concat" and user.attrs["axis"] == 1:
                start = 0
                for operand in user.inputs:
                    if operand == edge and not follow(user.name, offset + start):
                        return False
                    start += int(model.graph[operand].shape[1])
            elif user.op == "conv" and _takes(user) and not _shared(model, user):
                reader = _Reader(user.name, offset)
                if reader not in found:
                    found.append(reader)
            else:
                return False
        return True

    return found if follow(node.name, 0) and found else None


def _takes(conv: Node) -> bool:
    return bool(conv.attrs["groups"] == 1)


def _shared(model: FloatModel, node: Node) -> bool:
    """Whether another layer uses the same parameters."""
    names = set(node.params.values())
    return sum(len(names & set(n.params.values())) > 0 for n in model.graph) > 1


def _scale(model: FloatModel, params: dict[str, Tensor], name: str, readers: list[_Reader], factor: Tensor) -> None:
    producer = model.graph[name]
    weight = producer.params["weight"]
    shape = [-1] + [1] * (params[weight].ndim - 1)
    params[weight] = (params[weight].to(torch.float64) / factor.reshape(shape)).to(torch.float32)
    if "bias" in producer.params:
        bias = producer.params["bias"]
        params[bias] = (params[bias].to(torch.float64) / factor).to(torch.float32)
    for reader in readers:
        key = model.graph[reader.name].params["weight"]
        wide = params[key].to(torch.float64).clone()
        part = slice(reader.offset, reader.offset + factor.numel())
        wide[:, part] = wide[:, part] * factor.reshape(1, -1, *[1] * (wide.ndim - 2))
        params[key] = wide.to(torch.float32)
