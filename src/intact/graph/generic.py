"""Runs an aten operation by its public name, for float operations that have no canonical form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from intact.errors import CaptureError
from intact.graph.ir import resolve_dim

__all__ = ["run_aten"]

# names that start with an underscore are torch's own; from_file reads the disk
_ALLOWED = re.compile(r"^aten\.(?!from_file)[a-zA-Z]\w*\.\w+$|^aten\._to_copy\.default$")


def run_aten(
    xs: Sequence[Tensor], params: Mapping[str, Tensor], attrs: Mapping[str, Any], batch: int
) -> Tensor:
    """Call ``torch.ops.aten.<op>.<overload>`` with the stored argument template.

    Raises:
        CaptureError: if the name is not a public aten operation.
    """
    target = attrs["target"]
    if not _ALLOWED.match(target):
        raise CaptureError("not an operation that may be run by name", got=target, allowed="public aten operations")
    _, name, overload = target.split(".")
    op = getattr(getattr(torch.ops.aten, name), overload)

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            if "input" in value:
                return xs[value["input"]]
            if "param" in value:
                return params[value["param"]]
            if "dim" in value:
                return resolve_dim(value["dim"], batch)
            return getattr(torch, value["dtype"])
        if isinstance(value, list):
            return [fill(v) for v in value]
        return value

    result = op(*[fill(a) for a in attrs["args"]], **{k: fill(v) for k, v in attrs["kwargs"].items()})
    index = attrs.get("index")
    return result if index is None else result[index]  # type: ignore[no-any-return]
