"""The targets that come with Intact, one value per file."""

from __future__ import annotations

import difflib

from intact.errors import PlanError
from intact.targets.catalog.fixed_point import FIXED_POINT
from intact.targets.catalog.onnxruntime import ONNXRUNTIME
from intact.targets.catalog.reference import REFERENCE_TARGET
from intact.targets.schema import Target

__all__ = ["TARGETS", "get_target", "register_target"]

TARGETS: dict[str, Target] = {t.name: t for t in (ONNXRUNTIME, FIXED_POINT, REFERENCE_TARGET)}


def get_target(target: str | Target) -> Target:
    """The target of that name, or the target itself.

    Raises:
        PlanError: for an unknown name; names the nearest ones.

    >>> get_target("onnxruntime").name
    'onnxruntime'
    """
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        near = difflib.get_close_matches(str(target), TARGETS, cutoff=0.5)
        raise PlanError("unknown target", got=target, allowed=", ".join(TARGETS),
                        fix=f"did you mean {near[0]!r}?" if near else None)
    return TARGETS[target]


def register_target(target: Target) -> None:
    """Make a target of your own known by name.

    Raises:
        PlanError: if the name is taken.

    >>> from dataclasses import replace
    >>> register_target(replace(ONNXRUNTIME, name="my_runtime", weight_bits=(8,)))
    >>> get_target("my_runtime").weight_bits
    (8,)
    """
    if target.name in TARGETS:
        raise PlanError("a target of this name exists", got=target.name)
    TARGETS[target.name] = target
