"""Element-wise float operations of torch in ONNX: comparisons, logic, rounding, division, functions."""

from __future__ import annotations

import math

from intact.exporters.onnx.call import Call, aten

__all__: list[str] = []

_SIMPLE = {
    "floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign", "tan": "Tan", "atan": "Atan", "asin": "Asin",
    "acos": "Acos", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
    "isnan": "IsNaN", "isinf": "IsInf", "selu": "Selu",
}


def _simple(kind: str) -> None:
    @aten(f"{kind}.default")
    def emit(c: Call) -> str:
        return c.op(_SIMPLE[kind], c.tensor("self"))


for _kind in _SIMPLE:
    _simple(_kind)


@aten("_to_copy.default")
def _to_copy(c: Call) -> str:
    return c.cast(c.tensor("self"), c.dtype)


# -- comparisons and logic ----------------------------------------------------------------------


def _comparison(name: str, kind: str, negated: bool = False) -> None:
    @aten(f"{name}.Scalar", f"{name}.Tensor")
    def emit(c: Call) -> str:
        dtype = c.common("self", "other")
        y = c.op(kind, c.tensor("self", dtype), c.tensor("other", dtype))
        return c.op("Not", y) if negated else y


for _name, _kind in {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal"}.items():
    _comparison(_name, _kind)
_comparison("ne", "Equal", negated=True)


def _logical(name: str, kind: str) -> None:
    @aten(f"logical_{name}.default")
    def emit(c: Call) -> str:
        return c.op(kind, c.tensor("self", "bool"), c.tensor("other", "bool"))

    @aten(f"bitwise_{name}.Tensor", f"bitwise_{name}.Scalar")
    def bitwise(c: Call) -> str:
        return c.op(kind if c.dtype == "bool" else f"Bitwise{kind}", c.tensor("self", c.dtype),
                    c.tensor("other", c.dtype))


for _name, _kind in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    _logical(_name, _kind)


@aten("logical_not.default")
def _logical_not(c: Call) -> str:
    return c.op("Not", c.tensor("self", "bool"))


@aten("bitwise_not.default")
def _bitwise_not(c: Call) -> str:
    return c.op("Not" if c.dtype == "bool" else "BitwiseNot", c.tensor("self"))


@aten("isfinite.default")
def _isfinite(c: Call) -> str:
    x = c.tensor("self")
    return c.op("Not", c.op("Or", c.op("IsNaN", x), c.op("IsInf", x)))


# -- arithmetic ---------------------------------------------------------------------------------


def _arithmetic(name: str, kind: str) -> None:
    @aten(f"{name}.Tensor", f"{name}.Scalar")
    def emit(c: Call) -> str:
        other = c.tensor("other", c.dtype)
        if c["alpha"] not in (None, 1):
            other = c.op("Mul", other, c.number(c["alpha"], c.dtype, "alpha"))
        return c.op(kind, c.tensor("self", c.dtype), other)


for _name, _kind in {"add": "Add", "sub": "Sub", "mul": "Mul"}.items():
    _arithmetic(_name, _kind)


@aten("rsub.Scalar", "rsub.Tensor")
def _rsub(c: Call) -> str:
    x = c.tensor("self", c.dtype)
    if c["alpha"] != 1:
        x = c.op("Mul", x, c.number(c["alpha"], c.dtype, "alpha"))
    return c.op("Sub", c.tensor("other", c.dtype), x)


def _trunc_of(c: Call, x: str) -> str:
    return c.op("Mul", c.op("Sign", x), c.op("Floor", c.op("Abs", x)))


@aten("trunc.default")
def _trunc(c: Call) -> str:
    return _trunc_of(c, c.tensor("self"))


@aten("frac.default")
def _frac(c: Call) -> str:
    x = c.tensor("self")
    return c.op("Sub", x, _trunc_of(c, x))


def _wraps(c: Call, rest: str, b: str) -> str:
    """Where a remainder is not zero and has not the divisor's sign."""
    zero = c.number(0, c.dtype, "zero")
    signs = c.op("Xor", c.op("Less", rest, zero), c.op("Less", b, zero))
    return c.op("And", signs, c.op("Not", c.op("Equal", rest, zero)))


def _floor_div(c: Call, a: str, b: str) -> str:
    """Torch's own steps: 1.0 // 0.1 is 9, though 1.0 / 0.1 is 10."""
    rest = c.op("Mod", a, b, fmod=1)
    one = c.number(1, c.dtype, "one")
    quotient = c.op("Div", c.op("Sub", a, rest), b)
    quotient = c.op("Where", _wraps(c, rest, b), c.op("Sub", quotient, one), quotient)
    if not c.dtype.startswith("float"):
        return quotient
    down = c.op("Floor", quotient)
    above = c.op("Greater", c.op("Sub", quotient, down), c.number(0.5, c.dtype, "half"))
    return c.op("Where", above, c.op("Add", down, one), down)


@aten("floor_divide.default", "floor_divide.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _rounded_division(c: Call) -> str:
    a, b = c.tensor("self", c.dtype), c.tensor("other", c.dtype)
    if c["rounding_mode"] != "trunc":
        return _floor_div(c, a, b)
    y = c.op("Div", a, b)
    return _trunc_of(c, y) if c.dtype.startswith("float") else y


@aten("fmod.Scalar", "fmod.Tensor")
def _fmod(c: Call) -> str:
    return c.op("Mod", c.tensor("self", c.dtype), c.tensor("other", c.dtype), fmod=1)


@aten("remainder.Scalar", "remainder.Tensor")
def _remainder(c: Call) -> str:
    b = c.tensor("other", c.dtype)
    rest = c.op("Mod", c.tensor("self", c.dtype), b, fmod=1)
    return c.op("Where", _wraps(c, rest, b), c.op("Add", rest, b), rest)


@aten("clamp.default", "clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def _clamp(c: Call) -> str:
    y = c.tensor("self", c.dtype)
    for name, kind in (("min", "Max"), ("max", "Min")):
        if c[name] is not None:
            y = c.op(kind, y, c.tensor(name, c.dtype))
    return y


@aten("pow.Tensor_Tensor", "pow.Scalar", "pow.Tensor_Scalar")
def _pow(c: Call) -> str:
    return c.op("Pow", c.tensor("self", c.dtype), c.tensor("exponent", c.dtype))


@aten("lerp.Scalar", "lerp.Tensor")
def _lerp(c: Call) -> str:
    a = c.tensor("self")
    return c.op("Add", a, c.op("Mul", c.op("Sub", c.tensor("end"), a), c.tensor("weight")))


@aten("addcmul.default", "addcdiv.default")
def _addc(c: Call) -> str:
    kind = "Mul" if "mul" in c.n.attrs["target"] else "Div"
    part = c.op(kind, c.tensor("tensor1", c.dtype), c.tensor("tensor2", c.dtype))
    return c.op("Add", c.tensor("self", c.dtype), c.op("Mul", part, c.number(c["value"], c.dtype, "value")))


# -- functions ----------------------------------------------------------------------------------


def _logarithm(name: str, factor: float) -> None:
    @aten(f"{name}.default")
    def emit(c: Call) -> str:
        return c.op("Mul", c.op("Log", c.tensor("self", c.dtype)), c.number(factor, c.dtype, "factor"))


_logarithm("log2", 1 / math.log(2))
_logarithm("log10", 1 / math.log(10))


@aten("log1p.default")
def _log1p(c: Call) -> str:
    return c.op("Log", c.op("Add", c.tensor("self", c.dtype), c.number(1, c.dtype, "one")))


@aten("expm1.default")
def _expm1(c: Call) -> str:
    return c.op("Sub", c.op("Exp", c.tensor("self", c.dtype)), c.number(1, c.dtype, "one"))


@aten("exp2.default")
def _exp2(c: Call) -> str:
    return c.op("Pow", c.number(2, c.dtype, "two"), c.tensor("self", c.dtype))


@aten("celu.default")
def _celu(c: Call) -> str:
    return c.op("Celu", c.tensor("self"), alpha=float(c["alpha"]))


@aten("elu.default")
def _elu(c: Call) -> str:
    """With scales of its own, as selu is written."""
    x = c.tensor("self")
    zero, one = c.number(0.0, name="zero"), c.number(1.0, name="one")
    below = c.op("Mul", c.op("Min", x, zero), c.number(c["input_scale"], name="input_scale"))
    below = c.op("Mul", c.op("Sub", c.op("Exp", below), one), c.number(c["alpha"], name="alpha"))
    return c.op("Mul", c.op("Add", c.op("Max", x, zero), below), c.number(c["scale"], name="scale"))


@aten("log_sigmoid.default")
def _log_sigmoid(c: Call) -> str:
    return c.op("Neg", c.op("Softplus", c.op("Neg", c.tensor("self"))))


@aten("softplus.default")
def _softplus(c: Call) -> str:
    x, beta = c.tensor("self"), c.number(c["beta"], name="beta")
    scaled = c.op("Mul", x, beta)
    linear = c.op("Greater", scaled, c.number(c["threshold"], name="threshold"))
    return c.op("Where", linear, x, c.op("Div", c.op("Softplus", scaled), beta))


@aten("threshold.default")
def _threshold(c: Call) -> str:
    x = c.tensor("self")
    above = c.op("Greater", x, c.number(c["threshold"], c.dtype, "threshold"))
    return c.op("Where", above, x, c.number(c["value"], c.dtype, "value"))


@aten("rrelu.default")
def _rrelu(c: Call) -> str:
    """Not in training: a leaky ReLU of the mean slope."""
    return c.op("LeakyRelu", c.tensor("self"), alpha=(c["lower"] + c["upper"]) / 2)
