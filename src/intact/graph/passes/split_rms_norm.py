"""An RMS norm becomes a layer norm of its values and their negatives, or means, products and reciprocal roots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from intact.graph.derive import Derived, derivation, evaluate
from intact.graph.float_model import FloatModel
from intact.graph.ir import Node
from intact.graph.passes.base import Pass
from intact.graph.passes.norm_parts import Parts

__all__ = ["RMS_NORM", "SplitRMSNorm"]

RMS_NORM = "aten.rms_norm.default"


@derivation("twice")
def _twice(xs: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    x = xs[0].reshape(attrs["shape"])
    return torch.cat([x, x], -1)


@dataclass(frozen=True)
class _Found:
    """An RMS norm of the last axes of an edge."""

    x: str
    shape: tuple[int, ...]
    eps: float
    weight: str | None


class SplitRMSNorm(Pass):
    """``x * rsqrt(mean(x**2) + eps) * weight``: torch's own, and as models write it themselves.

    The mean of ``x`` and ``-x`` is 0, their variance the mean square: the first half of ``layer_norm(concat(x, -x))``
    is the norm, in one integer kernel. Without a layer norm it is taken apart (:class:`Parts`).

    Args:
        layer_norm: whether there is a layer norm to make it of.
    """

    name = "split_rms_norm"

    def __init__(self, layer_norm: bool = True) -> None:
        self.layer_norm = layer_norm
        #: operations that it is made of
        self.parts = frozenset({"neg", "concat", "layer_norm", "slice"}) if layer_norm else Parts.operations

    def run(self, model: FloatModel) -> FloatModel:
        """Split every RMS norm."""
        nodes: list[Node] = []
        params, derived = dict(model.params), dict(model.derived)
        found = self.found(model)
        for node in model.graph:
            if node.name not in found:
                nodes.append(node)
            elif self.layer_norm:
                nodes += _as_layer_norm(node, found[node.name], model, params, derived)
            else:
                nodes += _apart(node, found[node.name], model)
        return model.with_graph(model.graph.rewritten(nodes), params, derived)

    def ensures(self, model: FloatModel) -> str | None:
        """None is left."""
        return next(iter(self.found(model)), None)

    def found(self, model: FloatModel) -> dict[str, _Found]:
        """RMS norms by the node that gives their result."""
        index, users, outputs = model.graph.index, model.graph.consumers(), set(model.graph.outputs)
        norms: dict[str, _Found] = {}
        for node in model.graph:
            norm = _torch_norm(node) if node.op == "aten" else _written_norm(node, index)
            if norm is None:
                continue
            (user,) = users[node.name] if len(users[node.name]) == 1 and node.name not in outputs else (None,)
            weight = _weight_of(user, node, norm, index) if user is not None and norm.weight is None else None
            if user is not None and weight is not None:
                norms[user.name] = replace(norm, weight=weight)
            else:
                norms[node.name] = norm
        return norms


def _torch_norm(node: Node) -> _Found | None:
    if node.attrs["target"] != RMS_NORM or node.attrs["kwargs"]:
        return None
    _, shape, weight, eps = (*node.attrs["args"], None, None)[:4]
    if len(node.inputs) != 1 or node.dtype != "float32" or any(not isinstance(d, int) for d in shape):
        return None
    given = torch.finfo(torch.float32).eps if eps is None else float(eps)
    return _Found(node.inputs[0], tuple(shape), given, None if weight is None else node.params[weight["param"]])


def _written_norm(node: Node, index: Mapping[str, Node]) -> _Found | None:
    """``x * rsqrt(mean(x * x) + eps)``, with any of the ways to write a reciprocal root."""
    if node.op not in ("mul", "div") or "activation" in node.attrs or node.inputs[0] == node.inputs[1]:
        return None
    for x, factor in (node.inputs, node.inputs[::-1]) if node.op == "mul" else (node.inputs,):
        raised = _rooted(index[factor], index, node.op == "div")
        mean = index[raised.inputs[0]] if raised is not None and raised.op == "add_scalar" else None
        if raised is None or mean is None or mean.op != "mean" or "activation" in mean.attrs:
            continue
        square, rank = index[mean.inputs[0]], len(node.shape)
        width, axes = node.shape[-1], [a % rank for a in mean.attrs["axes"]]
        if square.op == "mul" and square.inputs == (x, x) and "activation" not in square.attrs \
                and mean.attrs["keepdim"] and axes == [rank - 1] and isinstance(width, int) \
                and index[x].shape == node.shape and raised.attrs["value"] > 0:
            return _Found(x, (width,), float(raised.attrs["value"]), None)
    return None


def _rooted(node: Node, index: Mapping[str, Node], divided: bool) -> Node | None:
    """What ``node`` is the root of, or the reciprocal root where nothing is divided by it."""
    power = node.attrs["value"] if node.op == "pow_scalar" else None
    if divided:
        return index[node.inputs[0]] if node.op == "sqrt" or power == 0.5 else None
    if node.op == "reciprocal":
        return _rooted(index[node.inputs[0]], index, True)
    return index[node.inputs[0]] if node.op == "rsqrt" or power == -0.5 else None


def _weight_of(user: Node, node: Node, norm: _Found, index: Mapping[str, Node]) -> str | None:
    """The constant that the only user multiplies by, with a number for each value of the last axes."""
    if user.op != "mul" or "activation" in user.attrs or user.inputs[0] == user.inputs[1]:
        return None
    other = index[next(i for i in user.inputs if i != node.name)]
    trailing = tuple(d for d in other.shape if d != 1)
    fits = other.op == "constant" and user.shape == node.shape and other.shape[-1:] == norm.shape[-1:] \
        and trailing == norm.shape
    return other.params["value"] if fits else None


def _apart(node: Node, norm: _Found, model: FloatModel) -> list[Node]:
    parts = Parts(replace(node, op="mul"), range(len(node.shape) - len(norm.shape), len(node.shape)))
    parts.normalised(norm.x, norm.eps)
    return parts.scaled(model, {} if norm.weight is None else {"weight": norm.weight})


def _as_layer_norm(
    node: Node, norm: _Found, model: FloatModel, params: dict[str, Tensor], derived: dict[str, Derived]
) -> list[Node]:
    axis, width, roles = len(node.shape) - 1, norm.shape[-1], {}
    if norm.weight is not None:
        roles["weight"] = f"{norm.weight}@twice"
        derived[roles["weight"]] = Derived("twice", (model.expr(norm.weight),), {"shape": list(norm.shape)})
        params[roles["weight"]] = evaluate(derived[roles["weight"]], model.sources or model.params)
    wide = (*node.shape[:-1], 2 * width)
    plain = replace(node, params={}, attrs={})
    minus, both, normal = (f"{node.name}/{part}" for part in ("minus", "both", "norm"))
    return [
        replace(plain, name=minus, op="neg", inputs=(norm.x,)),
        replace(plain, name=both, op="concat", inputs=(norm.x, minus), attrs={"axis": axis}, shape=wide),
        replace(plain, name=normal, op="layer_norm", inputs=(both,), params=roles, shape=wide,
                attrs={"shape": [*norm.shape[:-1], 2 * width], "eps": norm.eps}),
        replace(plain, op="slice", inputs=(normal,), attrs={"axis": axis, "start": 0, "end": width, "step": 1}),
    ]
