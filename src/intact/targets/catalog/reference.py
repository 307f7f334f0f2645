"""Plain integer arithmetic of no runtime in particular: to simulate 2 to 16 bits."""

from __future__ import annotations

from dataclasses import replace

from intact.arithmetic import REFERENCE
from intact.targets.catalog.onnxruntime import ONNXRUNTIME
from intact.targets.schema import Target

__all__ = ["REFERENCE_TARGET"]

REFERENCE_TARGET = Target(
    name="reference",
    version=1,
    arithmetic=REFERENCE,
    rules={op: replace(rule, fixed={}) for op, rule in ONNXRUNTIME.rules.items()},
    weight_bits=tuple(range(2, 17)),
    activation_bits=tuple(range(2, 17)),
    asymmetric_weights=True,
)
