"""LSTM, GRU and RNN in ONNX: the product of all inputs at once, and a Scan over the steps.

ONNX Runtime's ``DynamicQuantizeLSTM`` keeps its codes to itself and quantizes otherwise; in a Scan every step is what
the layer does, and its integers can be compared. Layers whose activations stay float become the operators LSTM, GRU
and RNN, with the weights made real when a session is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from intact.exporters.builder import Builder, onnx_type
from intact.exporters.leaves.forms import Probe, prepared, product, reshaped
from intact.exporters.leaves.weights import LeafWeight, numbers, parameter, real, weight_of
from intact.graph import Node
from intact.leaves.how import Dynamic
from intact.types import PerToken

__all__ = ["recurrent_node"]

#: weights by role
Weights = Mapping[str, LeafWeight]


def recurrent_node(b: Builder, n: Node, xs: list[str]) -> str:
    """One of the results of a recurrent layer: outputs of all steps, or a last state."""
    key = ("recurrent", tuple(sorted(n.params.items())), tuple(xs))
    if key not in b.shared:
        b.shared[key] = _layers(b, n, xs)
    found: str = b.shared[key][n.attrs["index"]]
    return found


def _layers(b: Builder, n: Node, xs: list[str]) -> list[str]:
    """All results."""
    s, x = n.attrs["settings"], xs[0]
    features, ways, count = int(b.graph[n.inputs[0]].shape[-1]), s["ways"], len([k for k in n.params if k.endswith(
        ".ih.codes")])
    sizes = [s["out"], s["hidden"]] if s["kind"] == "lstm" else [s["out"]]
    lasts: list[list[str]] = [[] for _ in sizes]
    for first in range(0, count, ways):
        states = [[_state(b, n, xs, i, k, size) for k, size in enumerate(sizes)] for i in range(first, first + ways)]
        weights = [_weights(b, n, i, features) for i in range(first, first + ways)]
        operator = not isinstance(weights[0]["ih"].how, Dynamic) and "hr" not in weights[0]
        if operator:
            x, last = _operator(b, n, x, weights, first, states)
            for k, value in enumerate(last):
                lasts[k].append(value)
        else:
            outputs = []
            for way in range(ways):
                y, *last = _direction(b, n, x, weights[way], first + way, states[way], reverse=way == 1)
                outputs.append(y)
                for k, value in enumerate(last):
                    lasts[k].append(b.op("Unsqueeze", [value, numbers(b, [0])], f"{n.name}:last"))
            x = b.op("Concat", outputs, f"{n.name}:ways", axis=2) if ways == 2 else outputs[0]
        features = ways * s["out"]
    return [x, *(b.op("Concat", parts, f"{n.name}:state", axis=0) for parts in lasts)]


def _weights(b: Builder, n: Node, i: int, features: int) -> Weights:
    s = n.attrs["settings"]
    columns = {"ih": features, "hh": s["out"], "hr": s["hidden"]}
    return {k: weight_of(b, n, (b.params[n.params[f"{i}.{k}.codes"]].shape[0], size), f"{i}.{k}.")
            for k, size in columns.items() if f"{i}.{k}.codes" in n.params}


def _state(b: Builder, n: Node, xs: list[str], i: int, k: int, size: int) -> str:
    """The state of a cell before the first step, (batch, size)."""
    if len(xs) > 1:
        return b.op("Gather", [xs[1 + k], b.const(f"index:{i}", np.array(i, np.int64))], f"{n.name}:before", axis=0)
    batch = b.op("Shape", [xs[0]], f"{n.name}:batch", start=1, end=2)
    shape = b.op("Concat", [batch, numbers(b, [size])], f"{n.name}:shape", axis=0)
    return b.op("Expand", [b.const("number:0", np.array(0.0, np.float32)), shape], f"{n.name}:before")


# -- steps in a Scan ----------------------------------------------------------------------------


def _direction(
    b: Builder, n: Node, x: str, weights: Weights, i: int, state: list[str], *, reverse: bool
) -> list[str]:
    """Outputs (steps, batch, features) and last states of one direction of one layer."""
    how = weights["ih"].how
    per_token = isinstance(how, Dynamic) and isinstance(how.activation, PerToken)
    rows = b.op("Reshape", [x, numbers(b, [-1, weights["ih"].columns])], f"{n.name}:flat") if per_token else x
    gates = product(b, n, rows, weights["ih"], parameter(b, n, f"{i}.bias_ih"))
    if per_token:
        gates = reshaped(b, gates, x, replace(n, shape=("steps", "batch", weights["ih"].shape[0])), rank=3)
    for name in ("hh", "hr"):
        if name in weights:
            prepared(b, weights[name])
    body = b.body()
    before = [body.unique(f"{n.name}:{k}") for k in ("h", "c")[: len(state)]]
    step = body.unique(f"{n.name}:step")
    after = _STEPS[n.attrs["settings"]["kind"]](body, n, step, before, weights, parameter(b, n, f"{i}.bias_hh"))
    results = [*after, body.op("Identity", [after[0]], f"{n.name}:out")]
    seen: list[Probe] = body.probes if b.inside else []
    wanted = {tensor: dtype for p in seen for tensor, dtype in p.types().items()}
    copies = {t: body.op("Identity", [t], f"{t}:seen") for t in wanted}
    graph = helper.make_graph(
        body.nodes, f"{n.name}:body", [helper.make_tensor_value_info(v, 1, None) for v in (*before, step)],
        [helper.make_tensor_value_info(v, 1, None) for v in results]
        + [helper.make_tensor_value_info(copies[t], onnx_type(wanted[t]), None) for t in wanted])
    names = [b.unique(f"{n.name}:{k}") for k in ("last_h", "last_c")[: len(state)]]
    out = b.unique(f"{n.name}:outputs")
    visible = {t: b.unique(f"{t}:steps") for t in wanted}
    way = int(reverse)
    b.node("Scan", [*state, gates], [*names, out, *visible.values()], body=graph, num_scan_inputs=1,
           scan_input_directions=[way], scan_output_directions=[way] * (1 + len(wanted)))
    b.probes += [replace(p.renamed(visible), stacked=True) for p in seen]
    return [out, *names]


def _halves(b: Builder, y: str, count: int, base: str) -> list[str]:
    names = [b.unique(f"{base}:gate") for _ in range(count)]
    b.node("Split", [y], names, axis=-1, num_outputs=count)
    return names


Step = Callable[[Builder, Node, str, list[str], Weights, "str | None"], list[str]]


def _lstm(b: Builder, n: Node, x: str, state: list[str], w: Weights, bias: str | None) -> list[str]:
    h, c = state
    y = b.op("Add", [x, product(b, n, h, w["hh"], bias)], f"{n.name}:gates")
    parts = _halves(b, y, 4, n.name)
    i, f, o = (b.op("Sigmoid", [parts[k]], f"{n.name}:sigmoid") for k in (0, 1, 3))
    g = b.op("Tanh", [parts[2]], f"{n.name}:tanh")
    c = b.op("Add", [b.op("Mul", [f, c], f"{n.name}:kept"), b.op("Mul", [i, g], f"{n.name}:new")], f"{n.name}:cell")
    h = b.op("Mul", [o, b.op("Tanh", [c], f"{n.name}:tanh")], f"{n.name}:hidden")
    return [h if "hr" not in w else product(b, n, h, w["hr"], None), c]


def _gru(b: Builder, n: Node, x: str, state: list[str], w: Weights, bias: str | None) -> list[str]:
    (h,) = state
    xs, hs = _halves(b, x, 3, n.name), _halves(b, product(b, n, h, w["hh"], bias), 3, n.name)
    r, z = (b.op("Sigmoid", [b.op("Add", [xs[k], hs[k]], f"{n.name}:sum")], f"{n.name}:sigmoid") for k in (0, 1))
    gated = b.op("Mul", [r, hs[2]], f"{n.name}:reset")
    new = b.op("Tanh", [b.op("Add", [xs[2], gated], f"{n.name}:sum")], f"{n.name}:tanh")
    kept = b.op("Mul", [z, b.op("Sub", [h, new], f"{n.name}:apart")], f"{n.name}:kept")
    return [b.op("Add", [new, kept], f"{n.name}:hidden")]


def _plain(kind: str) -> Step:
    def step(b: Builder, n: Node, x: str, state: list[str], w: Weights, bias: str | None) -> list[str]:
        y = b.op("Add", [x, product(b, n, state[0], w["hh"], bias)], f"{n.name}:sum")
        return [b.op(kind, [y], f"{n.name}:hidden")]

    return step


_STEPS: dict[str, Step] = {"lstm": _lstm, "gru": _gru, "tanh": _plain("Tanh"), "relu": _plain("Relu")}


# -- operators of ONNX --------------------------------------------------------------------------

#: operator, and which of torch's gates come first, second, ... there
_OPERATORS = {"lstm": ("LSTM", (0, 3, 1, 2)), "gru": ("GRU", (1, 0, 2)), "tanh": ("RNN", (0,)), "relu": ("RNN", (0,))}


def _operator(
    b: Builder, n: Node, x: str, weights: list[Weights], first: int, states: list[list[str]]
) -> tuple[str, list[str]]:
    """One layer as LSTM, GRU or RNN: outputs, and last states (directions, batch, features)."""
    s = n.attrs["settings"]
    kind, order = _OPERATORS[s["kind"]]
    hidden, ways = s["hidden"], len(weights)

    def ordered(parts: list[str], base: str) -> str:
        rows = [b.op("Unsqueeze", [_permuted(b, p, order, base), numbers(b, [0])], f"{base}:way") for p in parts]
        return b.op("Concat", rows, f"{base}:all", axis=0) if ways > 1 else rows[0]

    matrices = [ordered([real(b, w[k]) for w in weights], f"{n.name}:{k}") for k in ("ih", "hh")]
    biases = []
    for name in ("ih", "hh"):
        zero = np.zeros(len(order) * hidden, np.float32)
        found = [parameter(b, n, f"{first + way}.bias_{name}") for way in range(ways)]
        biases.append(ordered([f or b.const(f"{n.name}:no_bias", zero) for f in found], f"{n.name}:bias_{name}"))
    bias = b.op("Concat", biases, f"{n.name}:bias", axis=1)
    before = [b.op("Concat", [b.op("Unsqueeze", [state[k], numbers(b, [0])], f"{n.name}:before") for state in states],
                   f"{n.name}:before", axis=0) for k in range(len(states[0]))]
    names = [b.unique(f"{n.name}:{k}") for k in ("steps", "last_h", "last_c")[: 1 + len(before)]]
    extra: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    if kind == "RNN":
        extra = {"activations": [s["kind"].capitalize()] * ways}
    b.node(kind, [x, *matrices, bias, "", *before], names, hidden_size=hidden,
           direction="bidirectional" if ways == 2 else "forward", **extra)
    y = b.op("Transpose", [names[0]], f"{n.name}:outputs", perm=[0, 2, 1, 3])  # (steps, batch, ways, features)
    return b.op("Reshape", [y, numbers(b, [0, 0, -1])], f"{n.name}:outputs"), names[1:]


def _permuted(b: Builder, rows: str, order: tuple[int, ...], base: str) -> str:
    if len(order) == 1:
        return rows
    parts = [b.unique(f"{base}:gate") for _ in order]
    b.node("Split", [rows], parts, axis=0, num_outputs=len(order))
    return b.op("Concat", [parts[k] for k in order], f"{base}:gates", axis=0)
