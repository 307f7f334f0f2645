"""Tensors and modules under dotted names, whatever the names: ``plan`` or ``codes`` may be the user's, too."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from intact.errors import CaptureError

__all__ = ["child", "find_tensor", "graft", "tensor_at"]

T = TypeVar("T", Tensor, nn.Module)


def child(parent: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Add a child without asking whether an attribute has that name."""
    parent._modules[name] = module
    return module


def graft(root: nn.Module, name: str, value: T) -> T:
    """Register a parameter, a buffer or a module under a dotted name; intermediate modules are made."""
    *parents, leaf = name.split(".")
    module = root
    for part in parents:
        found = module._modules.get(part)
        module = found if found is not None else child(module, part, nn.Module())
    if isinstance(value, nn.Module):
        child(module, leaf, value)
    elif isinstance(value, nn.Parameter):
        module._parameters[leaf] = value
    else:
        module._buffers[leaf] = value
    return value


def tensor_at(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a dotted name.

    Raises:
        CaptureError: if there is none.
    """
    found = find_tensor(root, name)
    if found is None:
        raise CaptureError("no such parameter", where=name)
    return found


def find_tensor(root: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of a dotted name, if there is one."""
    *parents, leaf = name.split(".")
    module: nn.Module | None = root
    for part in parents:
        module = module._modules.get(part) if module is not None else None
    if module is None:
        return None
    found: Tensor | None = module._parameters.get(leaf)
    return found if found is not None else module._buffers.get(leaf)
