"""One file for a model with leaves: its tensors, and which leaves stand where as JSON. No pickle, no classes.

The structure is the user's: a file is loaded into a float model, whose layers are swapped again, without data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intact.engine.container import DTYPES, LEAVES_FORMAT, read_container, writable, write_container
from intact.engine.readers import brief, record
from intact.errors import ArtifactError, PlanError
from intact.leaves.base import Leaf
from intact.leaves.how import LeafHow, how_from_json, how_to_json
from intact.leaves.registry import leaf_class
from intact.leaves.swap import swapped
from intact.leaves.weight import QWeight, skeleton

__all__ = ["has_leaves", "load_leaves", "save_leaves"]

_VERSION = 1
_DAMAGED = "the file is damaged or was not written by intact.save; get it again, or save the model again"


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
        ArtifactError: if nothing in the model is quantized, a tensor cannot be stored, a scale or a code cannot be
            (somebody wrote to it), or the path cannot be written.
    """
    if not has_leaves(model):
        raise ArtifactError("nothing in the model is quantized", got=type(model).__name__,
                            fix="call intact.quantize_dynamic or intact.quantize_weights first")
    target = writable(path)
    _check_weights(model)
    leaves = {n: how_to_json(m.how) for n, m in model.named_modules() if isinstance(m, Leaf)}
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ArtifactError("an entry of the state is no tensor", where=name, got=type(value).__name__)
        if value.layout != torch.strided or value.is_meta or value.dtype not in DTYPES.values():
            raise ArtifactError("a tensor of this kind cannot be stored", where=name,
                                got=f"{value.dtype}, {value.layout}, {value.device}",
                                allowed=f"dense values of {', '.join(str(d) for d in DTYPES.values())}",
                                fix="convert it, or register it as a buffer with persistent=False")
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

    Returns:
        The model in evaluation mode: a float model that was just made is in training mode, and its dropout would let
        the loaded model give other results than the saved one.

    Raises:
        ArtifactError: for a file that is missing, damaged or malicious, or a model that it does not fit.
    """
    with _located(path, _DAMAGED):
        hows, tensors = _read(path)
    net = model if isinstance(model, nn.Module) else model()  # the user's code: its errors are not the file's
    if not isinstance(net, nn.Module):
        raise ArtifactError("a float model is needed to load into", where=str(path), got=type(net).__name__,
                            fix="pass the float model that was quantized, or what makes it")
    with _located(path, "load into the float model that was quantized"):
        loaded = _swapped(net, hows)
        _fill(loaded, tensors)
        with _located(path, _DAMAGED):
            _check_weights(loaded)
    return loaded.eval()


@contextmanager
def _located(path: str | os.PathLike[str], fix: str) -> Iterator[None]:
    """Errors of the file or of its fit as ArtifactErrors that name the file."""
    try:
        yield
    except (ArtifactError, PlanError) as e:
        here = str(path)
        where = e.where if e.where and e.where.startswith(here) else f"{here}: {e.where}" if e.where else here
        mend = e.fix if isinstance(e, ArtifactError) and e.fix else fix
        raise ArtifactError(e.what, where=where, got=e.got, allowed=e.allowed, fix=mend) from None
    except (OSError, RecursionError, MemoryError) as e:
        raise ArtifactError("the file cannot be read", where=str(path), got=str(e) or type(e).__name__,
                            fix="check that the file exists and that you may read it") from None


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, LeafHow], dict[str, Tensor]]:
    """Encodings and tensors, those that are stored once under all their names."""
    document, tensors = read_container(path, LEAVES_FORMAT, _VERSION)
    fields = record(document, "document", "format", "format_version", "leaves", "same")
    leaves, same = record(fields["leaves"], "leaves"), record(fields["same"], "same")
    if not leaves:
        raise ArtifactError("the file does not say what its leaves are", where="leaves")
    homes = dict(tensors)
    for name, home in same.items():
        if not isinstance(home, str) or home not in homes or name in homes:
            raise ArtifactError("a tensor refers to one that is not there", where=f"same: {brief(name)}")
        tensors[name] = homes[home]
    hows = {}
    for name, value in leaves.items():
        with _located(f"leaves: {brief(name)}", ""):
            hows[name] = how_from_json(value)
    return hows, tensors


def _swapped(net: nn.Module, hows: Mapping[str, LeafHow]) -> nn.Module:
    """A copy of a float model with empty leaves."""
    modules = dict(net.named_modules())
    for name in hows:
        parents = {name[:i] for i, c in enumerate(name) if c == "."} | ({""} if name else set())
        if name not in modules or leaf_class(modules[name]) is None or parents & hows.keys():
            raise ArtifactError("the model has no layer to take a leaf of the file", where=brief(name),
                                got=type(modules[name]).__name__ if name in modules else "no such module")
    return swapped(net, hows, skeleton)


def _check_weights(model: nn.Module) -> None:
    """That all scales and codes can be."""
    for name, module in model.named_modules():
        problem = module.problem() if isinstance(module, QWeight) else None
        if problem:
            raise ArtifactError("the encoding of a weight is broken", where=name, got=problem)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors, after their names, shapes and dtypes were compared.

    Raises:
        ArtifactError: if something is missing, too much, or of another shape or dtype.
    """
    wanted = model.state_dict()
    for kind, names in (("missing from the file", wanted.keys() - tensors.keys()),
                        ("not in the model", tensors.keys() - wanted.keys())):
        if names:
            raise ArtifactError(f"tensors are {kind}", got=", ".join(sorted(names)[:5]))
    for name, value in wanted.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise ArtifactError("a tensor does not fit the model", where=name,
                                got=f"{found.dtype}, {tuple(found.shape)}",
                                allowed=f"{value.dtype}, {tuple(value.shape)}")
    model.load_state_dict(dict(tensors))
