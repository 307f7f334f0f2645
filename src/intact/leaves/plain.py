"""A layer with plain weights: what is made anew at every call, from other tensors, is made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["plain"]

_TABLES = (nn.Embedding, nn.EmbeddingBag)


def plain(module: nn.Module) -> nn.Module:
    """The module, or one that computes the same (in evaluation mode) from weights of its own.

    Weight norm, spectral norm, pruning and every parametrization are applied; so is ``max_norm`` of a table, to all
    rows. Nothing is changed in the module, and what need not be made is shared with it.

    >>> norm = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    >>> sorted(name for name, _ in plain(norm).named_parameters())
    ['bias', 'weight']
    """
    made, origins = _made(module)
    children = {name: plain(child) for name, child in module._modules.items() if child is not None}
    same = all(child is module._modules[name] for name, child in children.items())
    if not made and same:
        return module
    kind: type[nn.Module] = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    found: nn.Module = kind.__new__(kind)  # not copied: a parametrized module refuses it
    vars(found).update((k, v) for k, v in vars(module).items() if k not in made)
    found._modules = {**module._modules, **children}
    found._buffers = {k: v for k, v in module._buffers.items() if k not in origins}
    found._modules.pop("parametrizations", None)
    found._parameters = {k: v for k, v in module._parameters.items() if k not in origins}
    for name, value in made.items():
        found._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
    found._forward_pre_hooks = type(module._forward_pre_hooks)(
        (k, hook) for k, hook in module._forward_pre_hooks.items() if _of_hook(module, hook) is None)
    if isinstance(module, _TABLES):
        vars(found)["max_norm"] = None
    return found


def _made(module: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
    """Weights that are made of other tensors, as they are now; the names of those others."""
    made: dict[str, Tensor] = {}
    origins: set[str] = set()
    for hook in module._forward_pre_hooks.values():
        found = _of_hook(module, hook)
        if found is not None:
            made[found[0]], more = found[1], found[2]
            origins |= more
    if parametrize.is_parametrized(module):
        made |= {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    if isinstance(module, _TABLES) and module.max_norm is not None:
        table = made.get("weight", module.weight).detach().to(torch.float32, copy=True)
        rows = torch.arange(table.shape[0], device=table.device)
        made["weight"] = torch.embedding_renorm_(table, rows, module.max_norm, module.norm_type).to(module.weight.dtype)
    return made, origins


def _of_hook(module: nn.Module, hook: Any) -> tuple[str, Tensor, set[str]] | None:
    """What a hook makes, and of which tensors; None for a hook of another kind."""
    match hook:
        case WeightNorm():
            return hook.name, hook.compute_weight(module), {f"{hook.name}_g", f"{hook.name}_v"}
        case SpectralNorm():
            value = hook.compute_weight(module, do_power_iteration=False)
            return hook.name, value, {f"{hook.name}{end}" for end in ("_orig", "_u", "_v", "_sigma")}
        case BasePruningMethod():
            name = hook._tensor_name
            return name, hook.apply_mask(module), {f"{name}_orig", f"{name}_mask"}
    return None
