"""Channels of a normalised or activated edge are scaled down where they are large, and the weights that read them up.

``(x / s) (w * s) = x w``: the activations, which have one scale for all channels, become easy to quantize, and the
weights, which have a scale for each output, take the spread (Xiao et al., "SmoothQuant: Accurate and efficient
post-training quantization for large language models", 2022). A channel whose weights would then dwarf those beside
them is split into copies, each with a part of the weight (Zhao et al., "Improving neural network quantization without
retraining using outlier channel splitting", 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intact.arithmetic import Rounding, round_to_int
from intact.errors import CaptureError
from intact.graph.float_model import FloatModel
from intact.graph.ir import Graph, Node
from intact.graph.passes.base import Pass
from intact.graph.passes.split_rms_norm import RMS_NORM
from intact.kernels import UNARY_OPS

__all__ = ["STEPS", "Site", "SmoothChannels", "divisors", "smoothable"]

#: divisors are powers of two to this fraction, so that they can be written down exactly
STEPS = 4
_SAMPLES = 8


@dataclass(frozen=True)
class Site:
    """An edge whose channels may be scaled.

    Args:
        edge: a layer norm or an RMS norm, an activation function of a linear layer, or the product of a linear layer
            and a gate.
        readers: the linear layers that read it.
        folded: parameters that the divisors can become part of, each with the channel that it starts at: nothing else
            reads the edge.
        producer: the linear layer whose outputs can be copied, or "".
    """

    edge: str
    readers: tuple[str, ...]
    folded: tuple[tuple[str, int], ...]
    producer: str

    @property
    def folds(self) -> bool:
        """Whether the divisors cost nothing."""
        return bool(self.folded)


def smoothable(model: FloatModel) -> dict[str, Site]:
    """Every edge whose channels may be scaled."""
    users, outputs = model.graph.consumers(), set(model.graph.outputs)
    uses = _uses(model)
    found = {}
    for node in model.graph:
        readers = tuple(dict.fromkeys(u.name for u in users[node.name] if u.op == "linear"))
        if not readers or any(uses[model.graph[r].params["weight"]] > 1 for r in readers):
            continue
        alone = node.name not in outputs and len(users[node.name]) == len(readers)
        if _is_norm(node):
            folded = _folded(model, node, uses) if alone and set(node.params) & {"weight", "arg0"} else ()
            found[node.name] = Site(node.name, readers, folded, "")
        elif node.op in UNARY_OPS and model.graph[node.inputs[0]].op == "linear":
            source = model.graph[node.inputs[0]]
            free = alone and _only(node, source, users, outputs) and bool(_folded(model, source, uses))
            found[node.name] = Site(node.name, readers, (), source.name if free else "")
        elif node.op == "mul" and "activation" not in node.attrs and len(set(node.inputs)) == 2:
            ways = (_factor(model, node, i, users, outputs, uses) for i in reversed(node.inputs))
            folded = next(filter(None, ways), ())
            if folded:
                found[node.name] = Site(node.name, readers, folded if alone else (), "")
    return found


def _is_norm(node: Node) -> bool:
    if node.op == "layer_norm":
        return len(node.attrs["shape"]) == 1
    return node.op == "aten" and node.attrs["target"] == RMS_NORM and len(node.attrs["args"][1]) == 1 \
        and not node.attrs["kwargs"]


def _folded(model: FloatModel, node: Node, uses: Mapping[str, int], start: int = 0) -> tuple[tuple[str, int], ...]:
    """The parameters of a node, if it alone has them and they are what they are."""
    own = all(uses[p] == 1 and p not in model.derived for p in node.params.values())
    return tuple((p, start) for p in node.params.values()) if own and "activation" not in node.attrs else ()


def _only(node: Node, source: Node, users: Mapping[str, list[Node]], outputs: set[str]) -> bool:
    """Whether nothing but a node reads another."""
    return all(u is node for u in users[source.name]) and source.name not in outputs


def _factor(model: FloatModel, node: Node, edge: str, users: Mapping[str, list[Node]], outputs: set[str],
            uses: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """What an operand of a product is made with, where it is a linear layer, or a part of its channels."""
    operand = model.graph[edge]
    if not _only(node, operand, users, outputs) or operand.shape != node.shape:
        return ()
    if operand.op == "linear":
        return _folded(model, operand, uses)
    source = model.graph[operand.inputs[0]] if operand.op == "slice" else operand
    parts = users[source.name]
    if source.op != "linear" or source.name in outputs or not all(_is_part(p) for p in parts):
        return ()
    start, end = operand.attrs["start"], operand.attrs["end"]
    apart = all(p is operand or p.attrs["end"] <= start or end <= p.attrs["start"] for p in parts)
    return _folded(model, source, uses, start) if apart else ()


def _is_part(node: Node) -> bool:
    """Whether it takes a range of the channels."""
    a = node.attrs
    return node.op == "slice" and a["axis"] == len(node.shape) - 1 and a["step"] == 1 \
        and type(a["start"]) is int and type(a["end"]) is int and 0 <= a["start"] < a["end"]


def _uses(model: FloatModel) -> dict[str, int]:
    uses: dict[str, int] = {}
    for node in model.graph:
        for name in node.params.values():
            uses[name] = uses.get(name, 0) + 1
    return uses


def divisors(steps: Sequence[int]) -> Tensor:
    """What each channel is divided by, float64.

    >>> divisors([0, 4, -4]).tolist()
    [1.0, 2.0, 0.5]
    """
    return torch.pow(2.0, torch.tensor(list(steps), dtype=torch.float64) / STEPS)


class SmoothChannels(Pass):
    """Divide channels by what was found for them, and multiply the weights that read them.

    Args:
        found: edge to ``{"steps": quarter octaves of each channel's divisor, "copies": channels given once more}``,
            as :func:`intact.smooth` finds it; by default half of the spread of each layer norm that takes it in,
            from the example inputs.
    """

    name = "smooth_channels"

    def __init__(self, found: Mapping[str, Mapping[str, Sequence[int]]] | None = None) -> None:
        self.found = found

    def run(self, model: FloatModel) -> FloatModel:
        """Scale every edge that is named and was not scaled yet; the values of the others stay."""
        sites = {} if self.found == {} else smoothable(model)
        new = {k: v for k, v in (_halves(model, sites) if self.found is None else self.found).items()
               if k not in model.smoothing}
        for edge, value in new.items():
            if edge not in sites or len(value["steps"]) != _channels(model, sites[edge]):
                raise CaptureError("the smoothing is of another model", where=edge)
            model = _smoothed(model, sites[edge], value["steps"], value.get("copies", ()))
        if not new:
            return model
        note = ("", f"channels of {len(new)} activation(s) smoothed")
        return replace(model, notes=(*model.notes, note), smoothing={**model.smoothing, **new})

    def ensures(self, model: FloatModel) -> str | None:
        """Nothing is promised but equal outputs, which every pass is checked for."""
        return None


def _halves(model: FloatModel, sites: Mapping[str, Site]) -> dict[str, dict[str, list[int]]]:
    """Steps at a migration strength of one half, ``sqrt(a / w)``, which the paper starts from."""
    largest: dict[str, Tensor] = {}

    def tap(node: Node, value: Tensor) -> None:
        if node.name in sites and sites[node.name].folds:
            largest[node.name] = value.abs().flatten(0, -2).amax(0).clamp(min=1e-6)

    model.run(model.small_example(_SAMPLES), tap)
    found = {}
    for edge, top in largest.items():
        weights = [model.params[model.graph[r].params["weight"]] for r in sites[edge].readers]
        reach = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=1e-6)
        steps = round_to_int((top / reach).log2() / 2 * STEPS, Rounding.HALF_EVEN)
        found[edge] = {"steps": [int(s) for s in steps]}
    return found


def _channels(model: FloatModel, site: Site) -> int:
    return int(model.params[model.graph[site.readers[0]].params["weight"]].shape[1])


def split_columns(weight: Tensor, copies: Sequence[int]) -> Tensor:
    """A weight (out, in) for inputs some of which are given more than once: each copy has its part.

    >>> split_columns(torch.tensor([[3.0, 8.0]]), [1])
    tensor([[3., 4., 4.]])
    """
    index = torch.cat([torch.arange(weight.shape[1]), torch.tensor(list(copies), dtype=torch.int64)])
    count = torch.bincount(index, minlength=weight.shape[1]).to(weight.dtype)
    return (weight / count).index_select(1, index)


def _smoothed(model: FloatModel, site: Site, steps: Sequence[int], copies: Sequence[int]) -> FloatModel:
    graph, params, factor = model.graph, dict(model.params), divisors(steps)
    for reader in site.readers:
        name = graph[reader].params["weight"]
        params[name] = split_columns(params[name].to(torch.float64) * factor, copies).to(torch.float32)
    if site.folds:
        for name, start in site.folded:
            whole = params[name].to(torch.float64)
            divisor = torch.ones(len(whole), dtype=torch.float64)
            divisor[start : start + len(factor)] = factor
            params[name] = (whole / divisor.reshape(-1, *[1] * (whole.ndim - 1))).to(torch.float32)
        return model.with_graph(graph, params)
    if copies:
        if not site.producer:
            raise CaptureError("the channels of this edge cannot be copied", where=site.edge)
        index = torch.cat([torch.arange(len(steps)), torch.tensor(list(copies), dtype=torch.int64)])
        factor = factor[index]
        for name in graph[site.producer].params.values():
            params[name] = params[name].index_select(0, index)
    name = f"{site.edge}/divisor"
    params[name] = factor.reciprocal().to(torch.float32)
    result = model.with_graph(_with_product(graph, site, name, len(factor)), params)
    return replace(result, buffers=result.buffers | {name})


def _with_product(graph: Graph, site: Site, param: str, channels: int) -> Graph:
    """The readers take the product of the edge and a constant."""
    node = graph[site.edge]
    constant = Node(param, "constant", (), {"value": param}, {}, node.path, (channels,))
    product = Node(f"{site.edge}/smoothed", "mul", (site.edge, param), {}, {}, node.path, node.shape)
    nodes: list[Node] = []
    for old in graph:
        moved = tuple(product.name if i == site.edge else i for i in old.inputs)
        nodes.append(replace(old, inputs=moved) if old.name in site.readers else old)
        if old.name == site.edge:
            nodes += [constant, product]
    return Graph(tuple(nodes), graph.output).validate()
