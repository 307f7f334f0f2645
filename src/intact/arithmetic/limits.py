"""How fine an output may be: the largest multiplier for which a runtime has a kernel, and the smallest."""

from __future__ import annotations

import math

from intact.arithmetic.arithmetic import Arithmetic, BinaryRule, MeanRule, Requantize

__all__ = ["largest_ratio", "smallest_multiplier"]

_XNNPACK = 256.0  # beyond it the library refuses a model, or hands it to a kernel that wraps
_AVERAGE = 256.0  # ONNX Runtime's QLinearGlobalAveragePool, and XNNPACK's mean
_SMALLEST = 2.0**-50  # 32 bits times it is nothing; fixed point expresses 2**-62


def largest_ratio(op: str, arithmetic: Arithmetic, bits: int = 8, bound: float = 2.0**31) -> float:
    """What the step of an operation's result must stay above, as a divisor of the operands' step.

    That is the scale of a sum of products or of a mean's sum, or the larger scale of what is added, over the output's
    scale. A finer output says nothing more: operands have no numbers between their codes.

    Args:
        op: canonical operation.
        arithmetic: the number rules.
        bits: of the output.
        bound: of the accumulator; what gemmlowp shifts to the left must stay within 32 bits.

    >>> from intact.arithmetic.arithmetic import REFERENCE
    >>> largest_ratio("add", REFERENCE), largest_ratio("mean", REFERENCE)
    (inf, 256.0)
    """
    a = arithmetic
    if op in ("add", "sub", "mul"):
        rule = a.mul if op == "mul" else a.add
        tflite = _gemmlowp(bound) if op == "mul" else 2.0**19 if bits <= 8 else 2.0**14
        most = {BinaryRule.XNNPACK: _XNNPACK, BinaryRule.TFLITE: tflite, BinaryRule.INTEGER: 2.0**30}
        return most.get(rule, math.inf)
    if op in ("mean", "avg_pool") and a.mean is not MeanRule.TFLITE and a.requantize is Requantize.FLOAT:
        return _AVERAGE
    if a.requantize is Requantize.FLOAT:
        return _XNNPACK if a.add is BinaryRule.XNNPACK else math.inf
    if a.requantize is Requantize.FIXED_POINT_16:
        return 128.0
    return _gemmlowp(bound) if a.requantize is Requantize.FIXED_POINT_TWICE else 2.0**30


def _gemmlowp(bound: float) -> float:
    return 2.0 ** min(29, math.floor(31 - math.log2(max(bound, 2.0))))


def smallest_multiplier(arithmetic: Arithmetic) -> float:
    """Below it nothing is left of an accumulator, and no multiplier may be left either.

    >>> from intact.arithmetic.arithmetic import REFERENCE
    >>> smallest_multiplier(REFERENCE)
    0.0
    """
    return _SMALLEST if arithmetic.requantize in (Requantize.FIXED_POINT, Requantize.SHIFT) else 0.0
