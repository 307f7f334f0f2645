"""LiteRT (TensorFlow Lite) with int8 activations and weights: a plain interpreter, and the reference kernels.

``litert``: what ``Interpreter(path)`` runs on x86-64, XNNPACK. ``litert_reference``: ``BUILTIN_REF``, the arithmetic of
TFLite Micro's portable kernels. Measured with ai-edge-litert 2.3.0; docs/litert.md has the table. Nothing runs in float
between the input's QUANTIZE and the output's DEQUANTIZE.
"""

from __future__ import annotations

import math
from dataclasses import replace

from intact.arithmetic import (
    Arithmetic,
    BinaryRule,
    MeanRule,
    PoolRule,
    Requantize,
    ResizeRule,
    Rounding,
    SoftmaxRule,
)
from intact.graph import Graph, Node
from intact.kernels import UNARY_OPS
from intact.targets.catalog.fixed_point import bilinear, fixed_mean, static_softmax
from intact.targets.schema import OpRule, Output, Target
from intact.types import INT8, QParams

__all__ = ["LITERT", "LITERT_REFERENCE"]


def _flat(node: Node, graph: Graph) -> str | None:
    return None if len(node.shape) in (3, 4) else "no integer kernel for three spatial axes"


def _max_pool(node: Node, graph: Graph) -> str | None:
    if any(d != 1 for d in node.attrs["dilation"]):
        return "no kernel for dilated max pooling"
    return _flat(node, graph)


def _avg_pool(node: Node, graph: Graph) -> str | None:
    """Every window must be whole: the kernel divides by the positions that it sees."""
    a, sizes = node.attrs, graph[node.inputs[0]].shape[2:]
    if any(a["padding"]) and not a["count_include_pad"]:
        return "no kernel for an average that leaves out padding"
    if a["ceil_mode"] and any(not isinstance(n, int) or (n + 2 * p - k) % s for n, p, k, s in zip(
            sizes, a["padding"], a["kernel"], a["stride"], strict=True)):
        return "no kernel for an average over windows that stick out"
    return _flat(node, graph)


def _rank(node: Node, graph: Graph) -> str | None:
    return None if len(node.shape) <= _MOST_AXES else f"more than {_MOST_AXES} axes"


def _mean(node: Node, graph: Graph) -> str | None:
    reason = fixed_mean(node, graph)
    count = math.prod(n for a in node.attrs["axes"] if isinstance(n := graph[node.inputs[0]].shape[a], int))
    return reason if reason or count <= _MOST_SUMMED else f"a mean over {count} values, more than {_MOST_SUMMED}"


_MOST_AXES = 4  # to which the kernels broadcast
_MOST_SUMMED = 2**23  # of 8 bits in an int32

_RULES: dict[str, OpRule] = {
    "conv": OpRule("CONV_2D", check=_flat, macs=True),
    "linear": OpRule("FULLY_CONNECTED", macs=True),
    "add": OpRule("ADD", check=_rank),
    "sub": OpRule("SUB", check=_rank),
    "mul": OpRule("MUL", check=_rank),
    "concat": OpRule("CONCATENATION"),
    "mean": OpRule("MEAN", check=_mean),
    "interpolate": OpRule("RESIZE_BILINEAR", Output.SHARED, check=bilinear),
    "softmax": OpRule("SOFTMAX", check=static_softmax, fixed={8: QParams.per_tensor(2.0**-8, -128, INT8)}),
    "avg_pool": OpRule("AVERAGE_POOL_2D", Output.SHARED, check=_avg_pool),
    "max_pool": OpRule("", Output.SHARED, check=_max_pool),
    **{op: OpRule("", Output.SHARED) for op in
       ("reshape", "permute", "slice", "pad", "expand", "index_select", "interpolate_nearest")},
    **{op: OpRule("table") for op in UNARY_OPS},
    # any other encoding of LOGISTIC is refused by the kernels, of TANH by the specification
    "sigmoid": OpRule("table", fixed={8: QParams.per_tensor(2.0**-8, -128, INT8)}),
    "tanh": OpRule("table", fixed={8: QParams.per_tensor(2.0**-7, 0, INT8)}),
}

LITERT = Target(
    name="litert",
    version=1,
    arithmetic=Arithmetic(
        "litert",
        rounding=Rounding.HALF_EVEN,
        add=BinaryRule.XNNPACK,
        mul=BinaryRule.XNNPACK,
        average_pool=PoolRule.CODES,
        mean=MeanRule.XNNPACK,
        resize=ResizeRule.XNNPACK,
        softmax=SoftmaxRule.FLOAT_TABLE,
        requantize=Requantize.FLOAT,
        reciprocal=True,
    ),
    rules=_RULES,
    signed_activations=True,
    float_operations=False,
)

LITERT_REFERENCE = replace(
    LITERT,
    name="litert_reference",
    arithmetic=Arithmetic(
        "litert_reference",
        rounding=Rounding.HALF_AWAY,
        add=BinaryRule.TFLITE,
        mul=BinaryRule.TFLITE,
        average_pool=PoolRule.CODES,
        mean=MeanRule.TFLITE,
        resize=ResizeRule.TFLITE,
        softmax=SoftmaxRule.TFLITE,
        requantize=Requantize.FIXED_POINT_TWICE,
    ),
    # the reference FULLY_CONNECTED rounds in float64, which no device does: 1x1 convolutions are what both round alike
    rules={**_RULES, "linear": OpRule("CONV_2D", macs=True)},
)
