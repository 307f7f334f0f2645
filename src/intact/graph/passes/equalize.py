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

#: share of the spread of ranges (in the logarithm) that moves from the activations into the readers' weights
STRENGTH = 0.5
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

    def __init__(self, strength: float = STRENGTH, steps: Mapping[str, Sequence[int]] | None = None) -> None:
        """Ranges decide, or ``steps`` of an earlier run (edge to quarter octaves per channel) are repeated."""
        self.strength, self.steps = strength, steps

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
        """Quarter octaves by which each channel is to be enlarged."""
        sources = {model.graph[x.name].inputs[0] for found in readers.values() for x in found}
        ranges, steps = _ranges(model, sources | set(readers)), {}
        for name, found in readers.items():
            own = ranges[name]
            top = max(float(ranges[model.graph[r.name].inputs[0]].max()) for r in found)
            if top <= 0.0 or not math.isfinite(top):
                continue
            spread = torch.where(own > 0, top / own, torch.ones_like(own)).clamp(min=1.0)
            octaves = (spread.log2() * self.strength).clamp(max=math.log2(LARGEST))
            steps[name] = [int(v) for v in round_to_int(octaves * STEPS, Rounding.HALF_EVEN)]
        return steps

    def ensures(self, model: FloatModel) -> str | None:
        """Nothing is promised but equal outputs, which every pass is checked for."""
        return None


def _ranges(model: FloatModel, edges: set[str]) -> dict[str, Tensor]:
    """Largest magnitude of every channel on the example inputs, float64."""
    found: dict[str, Tensor] = {}

    def tap(node: Node, value: Tensor) -> None:
        if node.name in edges:
            axes = [a for a in range(value.ndim) if a != 1]
            found[node.name] = torch.maximum(value.amax(axes), -value.amin(axes)).to(torch.float64)

    model.run(model.small_example(_SAMPLES), tap)
    return found


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
