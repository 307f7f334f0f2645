"""aten functions of one value as canonical ones: activations, and those that torch writes with several operations."""

from __future__ import annotations

import math
from typing import Any

from intact.graph.converter import Converter, Edge, Symbolic, Value, handler

__all__ = ["function_of_one"]

_NEAR = 8  # nodes back: torch writes the parts of a function one after the other


def _unary(op: str, *targets: str) -> None:
    @handler(*targets)
    def convert(c: Converter, x: Value, *rest: Any, **options: Any) -> Value:
        return c.emit(op, [x])


for _name in ("relu", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh", "mish", "exp", "log", "sqrt",
              "rsqrt", "reciprocal", "abs", "neg", "sin", "cos", "erf", "log_sigmoid"):
    _unary(_name, f"aten.{_name}.default")


@handler("aten.softplus.default")
def _softplus(c: Converter, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta != 1 or threshold != 20:
        return c.emit("scaled_softplus", [x], beta=float(beta), threshold=float(threshold))
    return c.emit("softplus", [x])


@handler("aten.gelu.default")
def _gelu(c: Converter, x: Value, *, approximate: str = "none") -> Value:
    return c.emit("gelu", [x], approximate=approximate)


@handler("aten.leaky_relu.default")
def _leaky(c: Converter, x: Value, slope: float = 0.01) -> Value:
    return c.emit("leaky_relu", [x], slope=float(slope))


@handler("aten.elu.default")
def _elu(c: Converter, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if scale == 1 and input_scale == 1:
        return c.emit("elu", [x], alpha=float(alpha))
    return c.emit("scaled_elu", [x], alpha=float(alpha), scale=float(scale), input_scale=float(input_scale))


@handler("aten.selu.default")
def _selu(c: Converter, x: Value) -> Value:
    return _elu(c, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@handler("aten.celu.default")
def _celu(c: Converter, x: Value, alpha: float = 1.0) -> Value:
    return _elu(c, x, alpha, 1.0, 1.0 / alpha)


@handler("aten.rrelu.default")
def _rrelu(c: Converter, x: Value, low: float = 1 / 8, high: float = 1 / 3, training: bool = False,
           generator: Any = None) -> Value:
    """In evaluation the mean of its slopes."""
    return c.emit("leaky_relu", [x], slope=(float(low) + float(high)) / 2)


@handler("aten.hardshrink.default")
def _hardshrink(c: Converter, x: Value, bound: float = 0.5) -> Value:
    return c.emit("hardshrink", [x], bound=float(bound))


@handler("aten.softshrink.default")
def _softshrink(c: Converter, x: Value, bound: float = 0.5) -> Value:
    return c.emit("softshrink", [x], bound=float(bound))


@handler("aten.threshold.default")
def _threshold(c: Converter, x: Value, threshold: float, value: float) -> Value:
    return c.emit("threshold", [x], threshold=float(threshold), value=float(value))


@handler("aten.hardtanh.default", "aten.clamp.default", "aten.relu6.default")
def _clamp(c: Converter, x: Value, low: float | None = None, high: float | None = None) -> Value:
    target = str(c.current.target) if c.current is not None else ""
    if "relu6" in target:
        low, high = 0.0, 6.0
    elif "hardtanh" in target:
        low, high = (-1.0 if low is None else low), (1.0 if high is None else high)
    return _between(c, x, low, high)


@handler("aten.clamp_min.default")
def _clamp_min(c: Converter, x: Value, low: float) -> Value:
    return _between(c, x, low, None)


@handler("aten.clamp_max.default")
def _clamp_max(c: Converter, x: Value, high: float) -> Value:
    return _between(c, x, None, high)


def _between(c: Converter, x: Value, low: Value, high: Value) -> Value:
    """Integers stay integers; a bound may be a size."""
    if not c.fake().dtype.is_floating_point or isinstance(low, Symbolic) or isinstance(high, Symbolic):
        return c.generic("aten.clamp.default", [x, low, high], {})
    return c.emit("clamp", [x], low=-math.inf if low is None else float(low),
                  high=math.inf if high is None else float(high))


def function_of_one(c: Converter, op: str, a: Value, b: Value) -> str | None:
    """The function that a difference or a quotient is, as torch writes it: ``x - tanh(x)``, ``x / (1 + |x|)``.

    As one function it is one table, and not a difference of rounded values.
    """
    made = {n.name: n for n in c.nodes[-_NEAR:]}
    if not isinstance(a, Edge) or not isinstance(b, Edge) or b.name not in made:
        return None
    last = made[b.name]
    if op == "sub":
        return "tanhshrink" if last.op == "tanh" and last.inputs == (a.name,) else None
    first = made.get(last.inputs[0]) if op == "div" and last.op == "add_scalar" and last.attrs["value"] == 1 else None
    return "softsign" if first is not None and first.op == "abs" and first.inputs == (a.name,) else None
