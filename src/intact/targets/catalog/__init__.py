"""The targets that come with Intact, one value per file."""

from __future__ import annotations

from intact.errors import PlanError
from intact.targets.catalog.fixed_point import FIXED_POINT
from intact.targets.catalog.horizon_j6 import HORIZON_J6, HORIZON_J6_HALF_UP
from intact.targets.catalog.litert import LITERT, LITERT_16X8, LITERT_REFERENCE
from intact.targets.catalog.onnxruntime import ONNXRUNTIME
from intact.targets.catalog.power_of_two import POWER_OF_TWO
from intact.targets.catalog.reference import REFERENCE_TARGET
from intact.targets.catalog.x86_avx2 import X86_AVX2
from intact.targets.schema import Target

__all__ = ["BUILT_IN", "TARGETS", "register_target"]

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (ONNXRUNTIME, X86_AVX2, FIXED_POINT, HORIZON_J6, HORIZON_J6_HALF_UP, POWER_OF_TWO, LITERT,
              LITERT_REFERENCE, LITERT_16X8, REFERENCE_TARGET)
}
#: those that every Intact of this version knows: saved models name them, and carry the description of any other
BUILT_IN = frozenset(TARGETS)


def register_target(target: Target) -> None:
    """Make a target of your own known by name.

    Raises:
        PlanError: if the name is taken.

    >>> from dataclasses import replace
    >>> register_target(replace(ONNXRUNTIME, name="my_runtime", weight_bits=(8,)))
    >>> TARGETS["my_runtime"].weight_bits
    (8,)
    """
    if target.name in TARGETS:
        raise PlanError("a target of this name exists", got=target.name)
    TARGETS[target.name] = target
