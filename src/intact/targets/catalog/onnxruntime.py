"""ONNX Runtime, CPU execution provider, default session (all graph optimisations) on x86-64.

Measured with onnxruntime 1.31: which QDQ groups the session fuses into integer kernels, and their arithmetic.
``tests/parity`` runs every rule against the runtime.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources

import numpy as np

from intact.arithmetic import Arithmetic, BinaryRule, PoolRule, Rounding
from intact.graph import Graph, Node
from intact.kernels import UNARY_OPS
from intact.targets.schema import OpRule, Output, Target

__all__ = ["ONNXRUNTIME"]

ARITHMETIC = Arithmetic(
    "onnxruntime",
    rounding=Rounding.HALF_EVEN,
    add=BinaryRule.FUSED,
    mul=BinaryRule.FUSED,
    average_pool=PoolRule.DEQUANTIZED,
    zero_inside_pool=True,
    wide_accumulator_bits=53,  # in float64, and in float32 by parts
)


def _static_channels(node: Node, graph: Graph) -> str | None:
    return None if len(node.shape) in (3, 4, 5) else "a convolution needs 1 to 3 spatial axes"


def _mean(node: Node, graph: Graph) -> str | None:
    source = graph[node.inputs[0]]
    axes = node.attrs["axes"]
    if 0 in axes:
        return "a mean over the batch axis has no integer kernel"
    if any(not isinstance(source.shape[a], int) for a in axes) and axes != list(range(2, len(source.shape))):
        return "a mean over a free axis has an integer kernel only where it is over all spatial axes"
    return None


def _avg_pool(node: Node, graph: Graph) -> str | None:
    if node.attrs["ceil_mode"] and node.attrs["count_include_pad"]:
        return "the runtime divides windows that stick out by the whole window"
    return None


def _binary(node: Node, graph: Graph) -> str | None:
    """QLinearAdd's order of operations depends on the layout if its left operand broadcasts, or all is one number."""
    if graph[node.inputs[0]].shape != node.shape:
        return "both operands broadcast"
    if math.prod(d for d in node.shape if isinstance(d, int)) == 1:
        return "a single number per sample"
    return None


def _interpolate(node: Node, graph: Graph) -> str | None:
    if node.attrs["mode"] != "bilinear":
        return f"no exact form of {node.attrs['mode']} interpolation"
    for source, size in zip(node.attrs["source"], node.attrs["size"], strict=True):
        free = isinstance(source, str) or isinstance(size, str)  # then the runtime is given the size itself
        if not free and math.floor(source * float(np.float32(size / source))) != size:
            return "the runtime would round the size of this scale factor differently"
    return None


def _max_pool(node: Node, graph: Graph) -> str | None:
    return None if len(node.attrs["kernel"]) <= 2 else "no integer kernel for 3-d max pooling"


RULES: dict[str, OpRule] = {
    "conv": OpRule("QLinearConv", check=_static_channels, macs=True),
    "linear": OpRule("QGemm", Output.FREE_OR_ACCUMULATOR, macs=True),
    "matmul": OpRule("QLinearMatMul", Output.FREE_OR_ACCUMULATOR, macs=True),
    "add": OpRule("QLinearAdd", check=_binary),
    "mul": OpRule("QLinearMul"),
    "sub": OpRule(""),
    "interpolate": OpRule("", check=_interpolate),
    "concat": OpRule("QLinearConcat"),
    "mean": OpRule("QLinearGlobalAveragePool", Output.FREE_OR_ACCUMULATOR, check=_mean),
    "avg_pool": OpRule("QLinearAveragePool", check=_avg_pool),
    "max_pool": OpRule("", Output.SHARED, check=_max_pool),
    **{op: OpRule("", Output.SHARED) for op in
       ("reshape", "permute", "slice", "pad", "expand", "index_select", "interpolate_nearest")},
    **{op: OpRule("") for op in UNARY_OPS},
}

#: float operations with an ONNX form, one name a line; tests hold the list against the exporter
EXPORTED = frozenset(resources.files(__package__).joinpath("onnx_operations.txt").read_text("utf-8").split())

ONNXRUNTIME = Target(
    name="onnxruntime",
    version=1,
    arithmetic=ARITHMETIC,
    rules={op: replace(rule, kernel_bits=8) for op, rule in RULES.items()},
    activation_bits=(*range(2, 9), 16),
    symmetric_from=9,
    signed_from=9,
    exported=EXPORTED,
)
