"""The Horizon Journey 6 line: symmetric codes, zero point 0 everywhere, int32 accumulators, no floats."""

from __future__ import annotations

from dataclasses import replace

from intact.arithmetic import Arithmetic, BinaryRule, PoolRule, Requantize, Rounding
from intact.targets.catalog.fixed_point import INTEGER_RULES
from intact.targets.schema import Target

__all__ = ["HORIZON_J6", "HORIZON_J6_HALF_UP"]

HORIZON_J6 = Target(
    name="horizon_j6",
    version=1,
    arithmetic=Arithmetic(
        "horizon_j6",
        rounding=Rounding.HALF_EVEN,
        add=BinaryRule.INTEGER,
        mul=BinaryRule.INTEGER,
        average_pool=PoolRule.SUM,
        requantize=Requantize.FIXED_POINT,
    ),
    rules=INTEGER_RULES,
    weight_bits=(4, 8),
    activation_bits=(8, 16),
    signed_activations=True,
    symmetric_activations=True,
    float_operations=False,
)

#: releases before half-even became the default: floor(x + 0.5)
HORIZON_J6_HALF_UP = replace(
    HORIZON_J6, name="horizon_j6_half_up",
    arithmetic=replace(HORIZON_J6.arithmetic, name="horizon_j6_half_up", rounding=Rounding.HALF_UP),
)
