"""LiteRT (TensorFlow Lite): a plain interpreter, and the reference kernels; int8 activations, or int16 ("16x8").

``litert``: what ``Interpreter(path)`` runs on x86-64, XNNPACK. ``litert_reference``: ``BUILTIN_REF``, the arithmetic of
TFLite Micro's portable kernels. With int16 activations both run the same kernels: ``litert_16x8`` and
``litert_16x8`` differ in the input's QUANTIZE only. Measured with ai-edge-litert 2.3.0; docs/litert.md has
the table. Nothing runs in float between the input's QUANTIZE and the output's DEQUANTIZE.
"""

from __future__ import annotations

import math
from dataclasses import replace

from intact.arithmetic import (
    Arithmetic,
    BinaryRule,
    FunctionRule,
    MatMulRule,
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
from intact.types import INT8, INT16, QParams

__all__ = ["LITERT", "LITERT_16X8", "LITERT_REFERENCE"]


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


def _product(node: Node, graph: Graph) -> str | None:
    ranks = [len(graph[i].shape) for i in node.inputs]
    if min(ranks) < 2:
        return "no kernel for a product with a vector"
    return None if max(ranks) <= _MOST_PRODUCT_AXES else f"more than {_MOST_PRODUCT_AXES} axes"


def _summed(node: Node, graph: Graph, most: int) -> str | None:
    """The kernels sum the codes of a mean, or of a window, in 32 bits."""
    sizes = node.attrs["kernel"] if node.op == "avg_pool" else [graph[node.inputs[0]].shape[a]
                                                                for a in node.attrs["axes"]]
    count = math.prod(n for n in sizes if isinstance(n, int))
    return None if count <= most else f"a mean over {count} values, more than {most}"


def _mean(node: Node, graph: Graph) -> str | None:
    return fixed_mean(node, graph) or _summed(node, graph, _MOST_SUMMED)


def _wide_mean(node: Node, graph: Graph) -> str | None:
    return fixed_mean(node, graph) or _summed(node, graph, _MOST_SUMMED_WIDE)


def _wide_avg_pool(node: Node, graph: Graph) -> str | None:
    return _avg_pool(node, graph) or _summed(node, graph, _MOST_SUMMED_WIDE)


_MOST_AXES = 4  # to which the kernels broadcast
_MOST_PRODUCT_AXES = 5
_MOST_SUMMED = 2**23  # of 8 bits in an int32
_MOST_SUMMED_WIDE = 2**15  # of 16 bits

_RULES: dict[str, OpRule] = {
    "conv": OpRule("CONV_2D", check=_flat, macs=True),
    "linear": OpRule("FULLY_CONNECTED", macs=True),
    "matmul": OpRule("BATCH_MATMUL", check=_product, macs=True),
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
        matmul=MatMulRule.XNNPACK,
        functions=FunctionRule.LITERT,
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
        matmul=MatMulRule.TFLITE,
        functions=FunctionRule.LITERT,
        requantize=Requantize.FIXED_POINT_TWICE,
    ),
    # the reference FULLY_CONNECTED rounds in float64, which no device does: 1x1 convolutions are what both round alike
    rules={**_RULES, "linear": OpRule("CONV_2D", macs=True)},
)

_WIDE_RULES: dict[str, OpRule] = {
    **_RULES,
    # FULLY_CONNECTED rounds in float64 here; a 1x1 convolution as all others
    "linear": OpRule("CONV_2D", macs=True),
    "mean": OpRule("MEAN", check=_wide_mean),
    "avg_pool": OpRule("AVERAGE_POOL_2D", Output.SHARED, check=_wide_avg_pool),
    **{op: replace(_RULES[op], fixed={16: QParams.per_tensor(2.0**-15, 0, INT16)})
       for op in ("softmax", "sigmoid", "tanh")},
}

LITERT_16X8 = replace(
    LITERT_REFERENCE,
    name="litert_16x8",
    arithmetic=replace(LITERT_REFERENCE.arithmetic, name="litert_16x8", accumulator_bits=48,
                       requantize=Requantize.FIXED_POINT_16),
    rules=_WIDE_RULES,
    activation_bits=(16,),
    symmetric_activations=True,
)
