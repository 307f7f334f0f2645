"""One file for a model with leaves: its tensors, and which leaves stand where as JSON. No pickle, no classes.

The structure is the user's: a file is loaded into a float model, whose layers are swapped again, without data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from intact.engine.container import LEAVES_FORMAT, read_container, writable, write_container
from intact.errors import ArtifactError, PlanError
from intact.leaves.base import Leaf
from intact.leaves.how import LeafHow, how_from_json, how_to_json
from intact.leaves.registry import leaf_class
from intact.leaves.swap import swapped
from intact.leaves.weight import skeleton

__all__ = ["has_leaves", "load_leaves", "save_leaves"]

_VERSION = 1


def has_leaves(model: nn.Module) -> bool:
    """Whether something of the model is quantized.

    >>> has_leaves(nn.Linear(2, 2))
    False
    """
    return any(isinstance(m, Leaf) for m in model.modules())


def save_leaves(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model with leaves. Tensors that share memory (tied weights) are stored once.

    Args:
        model: from ``quantize_dynamic`` or ``quantize_weights``.
        path: the file, by custom ``*.safetensors``: any reader of that format sees the tensors by their names.

    Returns:
        The path.

    Raises:
        ArtifactError: if nothing in the model is quantized, or the path cannot be written.
    """
    if not has_leaves(model):
        raise ArtifactError("nothing in the model is quantized", got=type(model).__name__,
                            fix="call intact.quantize_dynamic or intact.quantize_weights first")
    target = writable(path)
    leaves = {n: how_to_json(m.how) for n, m in model.named_modules() if isinstance(m, Leaf)}
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ArtifactError("an entry of the state is no tensor", where=name, got=type(value).__name__)
        plain = value.detach()
        key = (plain.device, plain.data_ptr(), plain.dtype, tuple(plain.shape), plain.stride())
        home = first.setdefault(key, name) if plain.numel() else name
        if home != name:
            same[name] = home
        else:
            tensors[name] = plain.cpu().contiguous().clone()  # views of one memory are stored apart
    document = {"format": LEAVES_FORMAT, "format_version": _VERSION, "leaves": leaves, "same": same}
    write_container(target, document, tensors)
    return Path(path)


def load_leaves(path: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """A copy of a float model with the leaves and all tensors of a file. Nothing in the file is executed.

    Args:
        path: the file.
        model: the float model, or what makes it; its weights do not matter, its structure does. It is not changed.

    Raises:
        ArtifactError: for a file that is missing, damaged or malicious, or a model that it does not fit.
    """
    document, tensors = _read(path)
    net = model if isinstance(model, nn.Module) else model()
    if not isinstance(net, nn.Module):
        raise ArtifactError("a float model is needed to load into", where=str(path), got=type(net).__name__)
    modules = dict(net.named_modules())
    hows: dict[str, LeafHow] = {}
    for name, record in document["leaves"].items():
        if name not in modules or leaf_class(modules[name]) is None:
            raise ArtifactError("the model has no layer to take a leaf of the file", where=f"{path}: {name}",
                                got=type(modules[name]).__name__ if name in modules else "no such module",
                                fix="load into the float model that was quantized")
        hows[name] = how_from_json(record)
    try:
        loaded = swapped(net, hows, skeleton)
    except PlanError as error:
        raise ArtifactError(error.what, where=f"{path}: {error.where}", got=error.got, allowed=error.allowed,
                            fix="load into the float model that was quantized") from None
    _fill(loaded, tensors, str(path))
    return loaded


def _read(path: str | os.PathLike[str]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Document and tensors, those that are stored once under all their names."""
    try:
        document, tensors = read_container(path, LEAVES_FORMAT, _VERSION)
    except ArtifactError as e:
        raise ArtifactError(e.what, where=f"{path}: {e.where}" if e.where else str(path), got=e.got,
                            allowed=e.allowed, fix=e.fix) from None
    except (OSError, RecursionError, MemoryError) as e:
        raise ArtifactError("the file cannot be read", where=str(path), got=str(e) or type(e).__name__,
                            fix="check that the file exists and that you may read it") from None
    leaves, same = document.get("leaves"), document.get("same")
    if not isinstance(leaves, Mapping) or not leaves or not isinstance(same, Mapping):
        raise ArtifactError("the file does not say what its leaves are", where=str(path))
    for name, home in same.items():
        if not isinstance(home, str) or home not in tensors or name in tensors:
            raise ArtifactError("a tensor refers to one that is not there", where=f"{path}: {name}")
        tensors[name] = tensors[home]
    return document, tensors


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load all tensors, after their names, shapes and dtypes were compared.

    Raises:
        ArtifactError: if something is missing, too much, or of another shape or dtype.
    """
    wanted = model.state_dict()
    for kind, names in (("missing from the file", wanted.keys() - tensors.keys()),
                        ("not in the model", tensors.keys() - wanted.keys())):
        if names:
            raise ArtifactError(f"tensors are {kind}", where=where, got=", ".join(sorted(names)[:5]),
                                fix="load into the float model that was quantized")
    for name, value in wanted.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise ArtifactError("a tensor does not fit the model", where=f"{where}: {name}",
                                got=f"{found.dtype}, {tuple(found.shape)}",
                                allowed=f"{value.dtype}, {tuple(value.shape)}",
                                fix="load into the float model that was quantized")
    model.load_state_dict(dict(tensors))
