"""Operators of the runtime's own domain, each with its meaning in standard ONNX, which travels in the file.

ONNX Runtime runs its own kernel of that name; a tool that does not know the name runs the function instead.
"""

from __future__ import annotations

import onnx
from onnx import helper

__all__ = ["FUNCTIONS", "RUNTIME_DOMAIN"]

RUNTIME_DOMAIN = "com.microsoft"


def _quick_gelu() -> onnx.FunctionProto:
    """``x * sigmoid(alpha * x)``."""
    alpha = helper.make_node("Constant", [], ["alpha"])
    alpha.attribute.add(name="value_float", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    body = [alpha, helper.make_node("Mul", ["X", "alpha"], ["scaled"]),
            helper.make_node("Sigmoid", ["scaled"], ["gate"]), helper.make_node("Mul", ["X", "gate"], ["Y"])]
    return helper.make_function(RUNTIME_DOMAIN, "QuickGelu", ["X"], ["Y"], body, [helper.make_opsetid("", 21)],
                                attributes=["alpha"])


def _matmul_integer_to_float() -> onnx.FunctionProto:
    """``float32(A @ B) * (a_scale * b_scale)`` for integers A and B."""
    body = [helper.make_node("MatMulInteger", ["A", "B"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["real"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["a_scale", "b_scale"], ["scale"]),
            helper.make_node("Mul", ["real", "scale"], ["Y"])]
    return helper.make_function(RUNTIME_DOMAIN, "MatMulIntegerToFloat", ["A", "B", "a_scale", "b_scale"], ["Y"], body,
                                [helper.make_opsetid("", 21)])


#: (domain, operator) -> its definition
FUNCTIONS: dict[tuple[str, str], onnx.FunctionProto] = {
    (RUNTIME_DOMAIN, "QuickGelu"): _quick_gelu(),
    (RUNTIME_DOMAIN, "MatMulIntegerToFloat"): _matmul_integer_to_float(),
}
