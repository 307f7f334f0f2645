"""Integers only: NPUs, DSPs and microcontrollers without a float unit. The target of the C exporter."""

from __future__ import annotations

import math

from intact.arithmetic import Arithmetic, BinaryRule, FunctionRule, PoolRule, Requantize, Rounding
from intact.arithmetic.layer_norm import MOST_VALUES
from intact.graph import Graph, Node
from intact.kernels import UNARY_OPS
from intact.targets.schema import OpRule, Output, Target

__all__ = ["FIXED_POINT", "INTEGER_RULES"]


def fixed_mean(node: Node, graph: Graph) -> str | None:
    """A mean needs a known number of elements, none of them of other samples."""
    shape, axes = graph[node.inputs[0]].shape, node.attrs["axes"]
    if 0 in axes:
        return "a mean over the batch axis has no integer kernel"
    if any(not isinstance(shape[a], int) for a in axes):
        return "a mean over a dynamic axis has no integer kernel"
    return None


def bilinear(node: Node, graph: Graph) -> str | None:
    """Other modes have no integer form."""
    return None if node.attrs["mode"] == "bilinear" else f"no integer form of {node.attrs['mode']} interpolation"


def static_softmax(node: Node, graph: Graph) -> str | None:
    """The length of a sum must be known."""
    return None if isinstance(node.shape[node.attrs["axis"]], int) else "a softmax over a dynamic axis"


def _layer_norm(node: Node, graph: Graph) -> str | None:
    count = math.prod(node.attrs["shape"])
    return None if count <= MOST_VALUES else f"a layer norm over {count} values, more than {MOST_VALUES}"


#: what runs on nothing but integers
INTEGER_RULES: dict[str, OpRule] = {
    "conv": OpRule("conv", macs=True),
    "linear": OpRule("fully connected", macs=True),
    "matmul": OpRule("matrix product", macs=True),
    "add": OpRule("add"),
    "sub": OpRule("subtract"),
    "mul": OpRule("multiply"),
    "concat": OpRule("concatenate"),
    "interpolate": OpRule("bilinear interpolation", check=bilinear),
    "mean": OpRule("mean", check=fixed_mean),
    "avg_pool": OpRule("average pool"),
    "softmax": OpRule("softmax", check=static_softmax),
    "layer_norm": OpRule("layer norm", check=_layer_norm),
    "max_pool": OpRule("", Output.SHARED),
    **{op: OpRule("", Output.SHARED) for op in
       ("reshape", "permute", "slice", "pad", "expand", "index_select", "interpolate_nearest")},
    **{op: OpRule("table") for op in UNARY_OPS},
}

FIXED_POINT = Target(
    name="fixed_point",
    version=2,  # functions of 16-bit codes are interpolated
    arithmetic=Arithmetic(
        "fixed_point",
        rounding=Rounding.HALF_UP,
        add=BinaryRule.INTEGER,
        mul=BinaryRule.INTEGER,
        average_pool=PoolRule.SUM,
        requantize=Requantize.FIXED_POINT,
        functions=FunctionRule.INTERPOLATED,
    ),
    rules=INTEGER_RULES,
    activation_bits=tuple(range(2, 17)),
    signed_activations=True,
    symmetric_from=9,
    float_operations=False,
)
