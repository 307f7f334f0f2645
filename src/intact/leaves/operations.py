"""What leaves compute, as operations of torch and of a captured graph.

``torch.export`` sees one of these where a leaf is called while :func:`intact.leaves.recording.as_operations` is in
force. The codes are operands, so that the graph has them as parameters under the names of the user's model, and tied
ones once. Everything here is the leaf's own function; there is no second arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from intact.graph.converter import Converter, Value, handler
from intact.graph.float_ops import FLOAT_OPS
from intact.leaves.conv import convolve
from intact.leaves.embedding import look_up
from intact.leaves.how import how_from_json
from intact.leaves.product import product
from intact.leaves.recording import as_operations
from intact.leaves.recurrent import Gates, run_layers
from intact.leaves.weight import QWeight
from intact.types.dims import Sizes

__all__ = ["LEAF_OPS", "gates_of", "weight_of"]

#: operations of a graph that stand for leaves
LEAF_OPS = ("leaf_product", "leaf_rows", "leaf_conv", "leaf_recurrent")

_PARTS = ("codes", "scale", "zero_point")
_WEIGHT = "Tensor codes, Tensor? scale, Tensor? zero_point"
#: operands of one direction of a recurrent layer, by role
_CELL = (*(f"{w}.{p}" for w in ("ih", "hh", "hr") for p in _PARTS), "bias_ih", "bias_hh")


def weight_of(
    settings: Mapping[str, Any], shape: Sequence[int], parts: Mapping[str, Tensor | None], prefix: str = ""
) -> QWeight:
    """The weight in an operation's operands.

    Args:
        settings: of the operation; ``how`` is the encoding.
        shape: of the weight.
        parts: operands by role.
        prefix: of the roles.
    """
    codes, scale, zero = (parts.get(prefix + name) for name in _PARTS)
    assert codes is not None
    return QWeight(how_from_json(settings["how"]), tuple(shape), codes, scale, zero)


def gates_of(settings: Mapping[str, Any], inputs: int, parts: Mapping[str, Tensor | None]) -> list[Gates]:
    """The weights of a recurrent operation, layer after layer.

    Args:
        settings: of the operation.
        inputs: features of the input.
        parts: operands, by number of the cell and role.
    """
    found: list[Gates] = []
    ways, hidden, out = settings["ways"], settings["hidden"], settings["out"]
    for i in range(sum(name.endswith(".ih.codes") for name in parts)):
        columns = inputs if i < ways else ways * out

        def weight(name: str, size: int, i: int = i) -> QWeight | None:
            codes = parts.get(f"{i}.{name}.codes")
            return None if codes is None else weight_of(settings, (codes.shape[0], size), parts, f"{i}.{name}.")

        ih, hh = weight("ih", columns), weight("hh", out)
        assert ih is not None and hh is not None
        found.append(Gates(ih, hh, weight("hr", hidden), parts.get(f"{i}.bias_ih"), parts.get(f"{i}.bias_hh")))
    return found


# -- as operations of torch ---------------------------------------------------------------------


def _define(name: str, schema: str, run: Callable[..., Any], shape: Callable[..., Any]) -> None:
    def own(*args: Any) -> Any:
        with as_operations(False):
            return run(*args)

    torch.library.custom_op(f"intact::{name}", own, mutates_args=(), schema=schema).register_fake(shape)


def _product(x: Tensor, codes: Tensor, scale: Tensor | None, zero: Tensor | None, bias: Tensor | None, text: str
             ) -> Tensor:
    parts = {"codes": codes, "scale": scale, "zero_point": zero}
    return product(x, weight_of(json.loads(text), (codes.shape[0], x.shape[-1]), parts), bias)


def _rows(index: Tensor, codes: Tensor, scale: Tensor | None, zero: Tensor | None, text: str) -> Tensor:
    settings, parts = json.loads(text), {"codes": codes, "scale": scale, "zero_point": zero}
    return look_up(index, weight_of(settings, (codes.shape[0], settings["columns"]), parts))


def _conv(x: Tensor, codes: Tensor, scale: Tensor | None, zero: Tensor | None, bias: Tensor | None, text: str
          ) -> Tensor:
    s, parts = json.loads(text), {"codes": codes, "scale": scale, "zero_point": zero}
    return convolve(x, weight_of(s, s["shape"], parts), bias, s["stride"], s["dilation"], s["groups"])


def _conv_shape(x: Tensor, codes: Tensor, scale: Any, zero: Any, bias: Any, text: str) -> Tensor:
    s = json.loads(text)
    sizes = [(n - d * (k - 1) - 1) // t + 1 for n, k, d, t in zip(
        x.shape[2:], s["shape"][2:], s["dilation"], s["stride"], strict=True)]
    return x.new_empty(x.shape[0], s["shape"][0], *sizes)


def _recurrent(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor | None], text: str) -> list[Tensor]:
    settings, (steps, batch, inputs) = json.loads(text), x.shape
    gates = gates_of(settings, inputs, _by_role(weights))
    sizes = [settings["out"], settings["hidden"]] if settings["kind"] == "lstm" else [settings["out"]]
    before = tuple(state) or tuple(x.new_zeros(len(gates), batch, size) for size in sizes)
    y, after = run_layers(x.reshape(steps * batch, inputs), [batch] * steps, before, gates, settings["kind"],
                          settings["ways"])
    return [y.reshape(steps, batch, y.shape[-1]), *after]


def _recurrent_shape(x: Tensor, state: Sequence[Tensor], weights: Sequence[Any], text: str) -> list[Tensor]:
    s, (steps, batch, _) = json.loads(text), x.shape
    sizes = [s["out"], s["hidden"]] if s["kind"] == "lstm" else [s["out"]]
    return [x.new_empty(steps, batch, s["ways"] * s["out"]),
            *(x.new_empty(len(weights) // len(_CELL), batch, size) for size in sizes)]


def _by_role(weights: Sequence[Any]) -> dict[str, Any]:
    roles = [f"{i}.{role}" for i in range(len(weights) // len(_CELL)) for role in _CELL]
    return {role: w for role, w in zip(roles, weights, strict=True) if w is not None}


_define("leaf_product", f"(Tensor x, {_WEIGHT}, Tensor? bias, str settings) -> Tensor", _product,
        lambda x, codes, *rest: x.new_empty(*x.shape[:-1], codes.shape[0]))
_define("leaf_rows", f"(Tensor index, {_WEIGHT}, str settings) -> Tensor", _rows,
        lambda index, codes, scale, zero, text: torch.empty(
            *index.shape, json.loads(text)["columns"], dtype=torch.float32, device=index.device))
_define("leaf_conv", f"(Tensor x, {_WEIGHT}, Tensor? bias, str settings) -> Tensor", _conv, _conv_shape)
_define("leaf_recurrent", "(Tensor x, Tensor[] state, Tensor?[] weights, str settings) -> Tensor[]", _recurrent,
        _recurrent_shape)


# -- as operations of a graph -------------------------------------------------------------------


def _emit(c: Converter, op: str, xs: Sequence[Value], params: dict[str, Value], text: str, **more: Any) -> Value:
    c.leaf = True
    return c.emit(op, xs, params, settings=json.loads(text), **more)


@handler("intact.leaf_product.default", "intact.leaf_conv.default")
def _captured_product(
    c: Converter, x: Value, codes: Value, scale: Value, zero: Value, bias: Value, text: str
) -> Value:
    assert c.current is not None
    op = str(c.current.target).split(".")[1]
    return _emit(c, op, [x], {"codes": codes, "scale": scale, "zero_point": zero, "bias": bias}, text)


@handler("intact.leaf_rows.default")
def _captured_rows(c: Converter, index: Value, codes: Value, scale: Value, zero: Value, text: str) -> Value:
    return _emit(c, "leaf_rows", [index], {"codes": codes, "scale": scale, "zero_point": zero}, text)


@handler("intact.leaf_recurrent.default")
def _captured_recurrent(c: Converter, x: Value, state: Sequence[Value], weights: Sequence[Value], text: str) -> Value:
    count = 3 if json.loads(text)["kind"] == "lstm" else 2
    return [_emit(c, "leaf_recurrent", [x, *state], _by_role(weights), text, index=i) for i in range(count)]


def _run(name: str) -> Callable[[Sequence[Tensor], Mapping[str, Tensor], Mapping[str, Any], Sizes], Tensor]:
    op, roles = getattr(torch.ops.intact, name), [*_PARTS, *([] if name == "leaf_rows" else ["bias"])]

    def run(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Mapping[str, Any], sizes: Sizes) -> Tensor:
        y: Tensor = op(xs[0], *(p.get(role) for role in roles), json.dumps(a["settings"]))
        return y

    return run


def _run_recurrent(xs: Sequence[Tensor], p: Mapping[str, Tensor], a: Mapping[str, Any], sizes: Sizes) -> Tensor:
    count = sum(name.endswith(".ih.codes") for name in p)
    weights = [p.get(f"{i}.{role}") for i in range(count) for role in _CELL]
    results: list[Tensor] = torch.ops.intact.leaf_recurrent(
        xs[0], list(xs[1:]), weights, json.dumps(a["settings"]))
    y: Tensor = results[a["index"]]
    return y


FLOAT_OPS.update({name: _run(name) for name in LEAF_OPS[:3]}, leaf_recurrent=_run_recurrent)
