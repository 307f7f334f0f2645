"""From what a user calls a target to the target."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from intact.errors import PlanError
from intact.targets.catalog import TARGETS
from intact.targets.codec import load_target
from intact.targets.schema import Target

__all__ = ["TargetLike", "get_target"]

#: a name, a TOML file, or the target itself
TargetLike = str | os.PathLike[str] | Target


def get_target(target: TargetLike) -> Target:
    """The target of that name, of that TOML file (``"npu.toml"``), or the target itself.

    Raises:
        PlanError: for an unknown name; names the nearest ones. For a file, as :func:`load_target`.

    >>> get_target("onnxruntime").name
    'onnxruntime'
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, os.PathLike) or Path(str(target)).suffix == ".toml":
        return load_target(target)
    if target not in TARGETS:
        near = difflib.get_close_matches(str(target), TARGETS, n=1, cutoff=0.65)
        raise PlanError("unknown target", got=target, allowed=f"{', '.join(TARGETS)}, or a file *.toml",
                        fix=f"did you mean {near[0]!r}?" if near else None)
    return TARGETS[target]
