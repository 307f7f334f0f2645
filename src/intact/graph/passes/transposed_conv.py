"""A transposed convolution becomes a plain one that makes all phases, and a shuffle that interleaves them.

No CPU runtime has an integer kernel for transposed convolutions; each has one for convolutions.
Output o = i * stride - padding + k * dilation. For stride s and kernel K (dilation 1), the outputs of one phase
r = (o + padding) mod s see the taps k = r, r + s, r + 2s, ... only, that is a convolution with ceil(K / s) taps
(Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from intact.graph.derive import Derived, derivation, evaluate
from intact.graph.float_model import FloatModel
from intact.graph.ir import Dim, Node
from intact.graph.passes.base import Pass

__all__ = ["TransposedConv"]


class TransposedConv(Pass):
    """Rewrite as convolution, reshape, permute, reshape, slice: exact, and no multiplication is wasted.

    Left alone, with a note: dilation together with stride, or sizes that are not known.
    """

    name = "transposed_conv"

    def run(self, model: FloatModel) -> FloatModel:
        """Rewrite every transposed convolution that can be."""
        params, derived, nodes, notes = dict(model.params), dict(model.derived), [], []
        shapes = {n.name: n.shape for n in model.graph}
        for node in model.graph:
            if node.op != "conv_transpose":
                nodes.append(node)
                continue
            why = _refusal(node, shapes[node.inputs[0]])
            if why is not None:
                notes.append((node.path, f"transposed convolution left as it is: {why}"))
                nodes.append(node)
            else:
                nodes.extend(_rewrite(model, node, shapes[node.inputs[0]], params, derived))
        graph = model.graph.rewritten(nodes)
        return replace(model.with_graph(graph, params, derived), notes=(*model.notes, *notes))

    def ensures(self, model: FloatModel) -> str | None:
        """What is left was refused."""
        for node in model.graph:
            if node.op == "conv_transpose" and _refusal(node, model.graph[node.inputs[0]].shape) is None:
                return node.name
        return None


def _refusal(node: Node, shape: tuple[Dim, ...]) -> str | None:
    if any(not isinstance(d, int) for d in shape[2:]):
        return "its spatial size is dynamic"
    mixed = [d for d, s in zip(node.attrs["dilation"], node.attrs["stride"], strict=True) if d > 1 and s > 1]
    return "dilation together with stride" if mixed else None


def _axis(size: int, kernel: int, stride: int, padding: int, dilation: int, out: int) -> dict[str, Any]:
    """Taps per phase, padding of the convolution, length of each phase, and where the output starts."""
    if stride == 1:
        span = dilation * (kernel - 1)
        return {"taps": kernel, "dilation": dilation, "begin": span, "end": span, "length": size + span,
                "start": padding}
    taps = -(-kernel // stride)
    length = max(size + taps - 1, -(-(padding + out) // stride))
    return {"taps": taps, "dilation": 1, "begin": taps - 1, "end": length - size, "length": length,
            "start": padding}


def _phase_weight(weight: Tensor, groups: int, stride: list[int], axes: list[dict[str, Any]]) -> Tensor:
    """(in, out / groups, *kernel) to (groups * out / groups * phases, in / groups, *taps), taps reversed."""
    n = len(stride)
    w = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (groups, out/g, in/g, *kernel)
    phases = []
    for offset in itertools.product(*[range(s) for s in stride]):
        part = w
        for i, (r, s) in enumerate(zip(offset, stride, strict=True)):
            taps = part.narrow(3 + i, r, part.shape[3 + i] - r)[(slice(None),) * (3 + i) + (slice(None, None, s),)] \
                if r < part.shape[3 + i] else part.narrow(3 + i, 0, 0)
            missing = axes[i]["taps"] - taps.shape[3 + i]
            pad = [0, 0] * (n - 1 - i) + [0, missing]
            part = torch.nn.functional.pad(taps, pad)
        phases.append(part.flip(list(range(3, 3 + n))))
    stacked = torch.stack(phases, 2)  # (groups, out/g, phases, in/g, *taps)
    return stacked.flatten(0, 2).contiguous()


@derivation("transposed_phases")
def _phases(xs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    return _phase_weight(xs[0], attrs["groups"], attrs["stride"], attrs["axes"])


@derivation("transposed_bias")
def _repeated(xs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    return xs[0].repeat_interleave(attrs["phases"])


def _rewrite(
    model: FloatModel, node: Node, shape: tuple[Dim, ...], params: dict[str, Tensor], derived: dict[str, Derived]
) -> list[Node]:
    a, weight = node.attrs, model.params[node.params["weight"]]
    n, stride, groups = len(a["stride"]), a["stride"], a["groups"]
    axes = [
        _axis(int(shape[2 + i]), weight.shape[2 + i], stride[i], a["padding"][i], a["dilation"][i],
              int(node.shape[2 + i]))
        for i in range(n)
    ]
    phases = 1
    for s in stride:
        phases *= s
    new_weight, roles = f"{node.params['weight']}@phases", {}
    derived[new_weight] = Derived("transposed_phases", (model.expr(node.params["weight"]),),
                                  {"groups": groups, "stride": list(stride), "axes": axes})
    roles["weight"] = new_weight
    if "bias" in node.params:
        roles["bias"] = f"{node.params['bias']}@phases"
        derived[roles["bias"]] = Derived("transposed_bias", (model.expr(node.params["bias"]),), {"phases": phases})
    for name in roles.values():
        params[name] = evaluate(derived[name], model.sources or model.params)
    channels = weight.shape[1] * groups
    folded = {"activation": a["activation"]} if "activation" in a else {}
    conv = replace(
        node, name=f"{node.name}/conv", op="conv", params=roles,
        attrs={**folded, "stride": [1] * n, "pad_begin": [x["begin"] for x in axes],
               "pad_end": [x["end"] for x in axes],
               "dilation": [x["dilation"] for x in axes], "groups": groups},
    )
    return [conv, *_interleave(node, shape[0], channels, stride, axes)]


def _interleave(node: Node, batch: Dim, channels: int, stride: list[int], axes: list[dict[str, Any]]) -> list[Node]:
    """Phases to positions, then the part of the output that the padding keeps."""
    n, nodes, edge = len(stride), [], f"{node.name}/conv"
    plain = replace(node, params={})
    if any(s > 1 for s in stride):
        lengths = [x["length"] for x in axes]
        order = [0, 1] + [v for i in range(n) for v in (2 + n + i, 2 + i)]
        full = [x["length"] * s for x, s in zip(axes, stride, strict=True)]
        for suffix, op, attrs in (
            ("/phases", "reshape", {"shape": [batch, channels, *stride, *lengths]}),
            ("/order", "permute", {"axes": order}),
            ("/full", "reshape", {"shape": [batch, channels, *full]}),
        ):
            nodes.append(replace(plain, name=node.name + suffix, op=op, inputs=(edge,), attrs=attrs))
            edge = node.name + suffix
    for i, axis in enumerate(axes):
        start, size = axis["start"], int(node.shape[2 + i])
        if start == 0 and size == axis["length"] * stride[i]:
            continue
        attrs = {"axis": 2 + i, "start": start, "end": start + size, "step": 1}
        nodes.append(replace(plain, name=f"{node.name}/crop{i}", op="slice", inputs=(edge,), attrs=attrs))
        edge = f"{node.name}/crop{i}"
    # the edge keeps the user's name
    if nodes:
        nodes[-1] = replace(nodes[-1], name=node.name)
        return nodes
    return [replace(plain, op="reshape", inputs=(edge,), attrs={"shape": list(node.shape)})]
