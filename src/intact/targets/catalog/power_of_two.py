"""Devices that requantize by a shift: every scale is a power of two (Q formats of DSPs, some NPUs)."""

from __future__ import annotations

from intact.arithmetic import Arithmetic, BinaryRule, PoolRule, Requantize, Rounding
from intact.targets.catalog.fixed_point import INTEGER_RULES
from intact.targets.schema import Target

__all__ = ["POWER_OF_TWO"]

POWER_OF_TWO = Target(
    name="power_of_two",
    version=1,
    arithmetic=Arithmetic(
        "power_of_two",
        rounding=Rounding.HALF_UP,  # add half, shift
        add=BinaryRule.INTEGER,
        mul=BinaryRule.INTEGER,
        average_pool=PoolRule.SUM,
        requantize=Requantize.SHIFT,
    ),
    rules=INTEGER_RULES,
    activation_bits=tuple(range(2, 17)),
    signed_activations=True,
    symmetric_activations=True,
    float_operations=False,
)
