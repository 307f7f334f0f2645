"""A new model whose leaves hold codes; the user's model is not changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from intact.errors import PlanError
from intact.leaves.base import Leaf, MakeWeight
from intact.leaves.config import dynamic_how, how_of_dtype, weight_only_how
from intact.leaves.how import Dynamic, LeafHow, PerGroupAtMost, WeightOnly
from intact.leaves.plain import plain
from intact.leaves.registry import EMBEDDINGS, USUAL, HuggingFaceConv1D, leaf_class
from intact.leaves.spec import choose
from intact.leaves.weight import QWeight, encode
from intact.types import Granularity, PerChannel, PerGroup

__all__ = ["quantize_dynamic", "quantize_weights", "swapped"]


class Encode(Protocol):
    """:func:`encode`, or what makes the same with codes of 0."""

    def __call__(self, weight: Tensor, how: LeafHow, where: str = "", *, product: bool = False) -> QWeight: ...


_PLAIN = (bool, int, float, str, tuple, torch.dtype, torch.device, type(None))
_MAX_COLUMNS = (2**31 - 1) // (255 * 127)  # more could overflow the int32 accumulator


def quantize_dynamic(
    model: nn.Module, spec: Any = None, dtype: Any = torch.qint8, *, balance: bool = False
) -> nn.Module:
    """Quantize layers of a model without data: integer weights now, integer activations at run time.

    The result is an ordinary eager module with other layers in the places of the chosen ones: same structure, same
    calls, a ``state_dict`` of plain tensors. Products of int8 layers are exact integer products; activations are
    quantized row by row (each row of the last axis has its own scale), weights per output channel.

    Args:
        model: any float module; it is not changed, and shares nothing that is.
        spec: what to quantize. None: every Linear (also Hugging Face's Conv1D), LSTM, GRU, RNN and their cells,
            MultiheadAttention, Embedding and EmbeddingBag (Conv1d and Conv2d are quantized where they are named). Or
            a set of types, names of modules and globs on them; a name stands for all that is inside. Or a dict of
            those to configurations: None (stays float), a dtype, :class:`intact.leaves.Dynamic` and its siblings, or
            a dict with the keys ``activation`` and ``weight`` (a dtype, or a dict with ``dtype`` and ``qscheme``),
            ``qscheme`` (``torch.per_tensor_affine``, ``torch.per_channel_symmetric``, ...: of the weights, which are
            always symmetric) and ``dynamic``. An exact name wins over a glob, and that over a type.
        dtype: ``torch.qint8`` (also ``torch.int8``, ``"int8"``) or ``torch.float16``, for what has no
            configuration of its own.
        balance: int8 Linear and attention divide the columns of their weights by the square root of their sizes, and
            multiply their inputs by it: closer to float where some features are much larger than others, as in
            most transformers, for one more pass over the inputs.

    Returns:
        The new model, in the mode (training or evaluation) of the old one. No gradient flows through int8 layers.

    Raises:
        PlanError: for a name or a type that matches nothing, with the nearest ones; for a dtype or a configuration
            that does not exist; for a model that is quantized already.
        NonFiniteError: if a weight is NaN or infinite.

    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> q = quantize_dynamic(net, {"0": torch.qint8, "2": {"weight": torch.qint8, "qscheme": torch.per_tensor_affine}})
    >>> q
    Sequential(
      (0): QLinear(8, 16, bias=True, int8 weights per channel (axis 0), activations per token)
      (1): ReLU()
      (2): QLinear(16, 4, bias=True, int8 weights per tensor, activations per token)
    )
    """
    _check_model(model)
    default = how_of_dtype(dtype)
    if isinstance(default, Dynamic):
        default = replace(default, balance=balance)
    elif balance is not False:
        raise PlanError("only int8 layers are balanced", where="balance", got=balance, fix="leave it out")
    chosen = choose(model, spec, default, lambda c, where: dynamic_how(c, where, default), USUAL, _can)
    return swapped(model, chosen, encode)


def quantize_weights(
    model: nn.Module, spec: Any = None, *, bits: Literal[4, 8] = 4, group: int | Literal["auto"] | None = "auto",
    symmetric: bool = False, refine: bool = True, balance: bool = True,
) -> nn.Module:
    """Store the weights of layers in 4 or 8 bits, without data; activations and products stay float.

    Args:
        model: any float module; it is not changed.
        spec: as in :func:`quantize_dynamic`; None stands for the same layers. Configurations are None (stays
            float), a number of bits, or a dict with the keys ``bits``, ``group``, ``symmetric``, ``refine``,
            ``balance``.
        bits: 4 (two codes a byte) or 8.
        group: numbers that share a scale, a divisor of the weight's columns such as 32, 64, 128; None: one scale
            for each output channel. ``"auto"``: 64, or the largest number from 16 on that divides the columns of the
            layer, or else one scale for each output channel.
        symmetric: no zero points: a little smaller, a little less exact.
        refine: search range and zero point of every group for the least error (see
            :func:`intact.leaves.group_codes.group_codes`); else they reach the group's extremes.
        balance: Linear and attention divide the columns of their weights by their sizes, and multiply their inputs by
            them (see :func:`intact.leaves.weight.column_sizes`). A weight that is tied to an embedding is left alone.

    Returns:
        The new model. Tied weights stay tied. Gradients flow to its inputs.

    Raises:
        PlanError: for a name or a type that matches nothing, a group that does not divide, a model that is quantized
            already.
        NonFiniteError: if a weight is NaN or infinite.

    >>> quantize_weights(torch.nn.Linear(128, 16), group=32)
    QLinear(128, 16, bias=True, int4 weights per group of 32 (axis 1))
    """
    _check_model(model)
    if group not in (None, "auto") and (type(group) is not int or group < 1):
        raise PlanError("no such group", got=repr(group), allowed='a positive number, "auto", or None')
    weight: Granularity = PerGroupAtMost(1, 64)
    if group != "auto":
        weight = PerChannel(0) if group is None else PerGroup(1, group)
    default = WeightOnly(bits, weight, symmetric, refine, balance)
    chosen = choose(model, spec, default, lambda c, where: weight_only_how(c, where, default), USUAL, _can)
    hows = {path: _fitting(plain(model.get_submodule(path)), how) for path, how in chosen.items()}
    return swapped(model, hows, encode)


def _fitting(module: nn.Module, how: LeafHow) -> LeafHow:
    """With a group that divides all weights of a layer, if it is for us to choose."""
    if not isinstance(how, WeightOnly) or not isinstance(how.weight, PerGroupAtMost):
        return how
    return replace(how, weight=how.weight.fitting(_columns(module)))


def _columns(module: nn.Module) -> list[int]:
    """How many numbers the rows of its weights have; the weight of a Conv1D is stored transposed."""
    turned = isinstance(module, HuggingFaceConv1D)
    return [len(p) if turned else p[0].numel() for p in module.parameters()
            if not isinstance(p, UninitializedParameter) and p.ndim > 1 and len(p)]


def _can(module: nn.Module) -> bool:
    return leaf_class(module) is not None


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise PlanError("this is no eager module", got=type(model).__name__, allowed="torch.nn.Module",
                        fix="pass the float module itself")


@torch.inference_mode(False)
@torch.no_grad()
def swapped(model: nn.Module, chosen: Mapping[str, LeafHow], make: Encode) -> nn.Module:
    """A copy of a model with leaves at the chosen paths; weights that are one tensor get one set of codes.

    Raises:
        PlanError: if one of the modules cannot be such a leaf.
    """
    modules = dict(model.named_modules())
    layers = {path: plain(modules[path]) for path in chosen}
    # a table of embeddings is not balanced: its rows are as they are, whatever they are multiplied with
    tables = {_place(t) for layer in layers.values() if isinstance(layer, EMBEDDINGS) for t in layer.parameters()}
    tied: dict[tuple[Any, ...], tuple[Tensor, QWeight]] = {}
    # what a hook has made in a layer that stays float cannot be copied with its history
    memo: dict[int, Any] = {id(v): v.detach().clone() for m in modules.values() for v in vars(m).values()
                            if isinstance(v, Tensor) and not v.is_leaf}
    for path, how in chosen.items():
        leaf = _leaf(layers[path], how, path, _sharing(tied, tables, make, how, path))
        leaf.train(layers[path].training)
        memo[id(modules[path])] = leaf
    copied: nn.Module = copy.deepcopy(model, memo)  # what is in the memo is taken from there: no weight is copied
    _without_fast_path(copied)
    return copied


def _sharing(
    tied: dict[tuple[Any, ...], tuple[Tensor, QWeight]], tables: set[Any], make: Encode, how: LeafHow, path: str
) -> MakeWeight:
    """Codes of a weight, made once for every tensor and encoding.

    Raises:
        PlanError: if layers that share a weight ask for different codes.
    """

    def of(weight: Tensor, name: str, *, product: bool = False) -> QWeight:
        product = product and _place(weight) not in tables
        key = (_place(weight), product, _weight_part(how))
        if key not in tied:
            other = next((k[2] for k in tied if k[0] == key[0] and _codes_part(k[2]) != _codes_part(key[2])), None)
            if other is not None:
                raise PlanError("layers that share a weight have different encodings", where=path,
                                got=f"{_codes_part(key[2])} and {_codes_part(other)}",
                                fix="give them the same, or copy the weight of one (.clone()) so that they share none")
            # kept with the weight: the address of one that is gone could be that of another
            tied[key] = weight, make(weight, how, f"{path}.{name}" if path else name, product=product)
        return tied[key][1]

    return of


def _place(weight: Tensor) -> tuple[Any, ...]:
    """Where a tensor is, and how it lies there."""
    return weight.data_ptr(), weight.shape, weight.stride()


def _weight_part(how: LeafHow) -> object:
    """What of an encoding the codes depend on."""
    return ("int8", how.weight, how.activation, how.balance) if isinstance(how, Dynamic) else how


def _codes_part(part: Any) -> str:
    """What of it the codes themselves depend on, in words."""
    return f"int8 weights {part[1]}" if isinstance(part, tuple) else str(part)


def _leaf(module: nn.Module, how: LeafHow, path: str, make: MakeWeight) -> Leaf:
    cls = leaf_class(module)
    assert cls is not None
    reason = cls.refusal(module, how) or _refusal(module, how)
    if reason:
        raise PlanError("a layer cannot be quantized like this", where=path or type(module).__name__, got=reason,
                        fix=f"leave it out: spec={{..., {path!r}: None}}")
    leaf = cls.from_float(module, how, make)
    for name, value in vars(module).items():  # what code around it may ask the layer for
        if isinstance(value, _PLAIN) and not name.startswith("_") and not hasattr(leaf, name):
            setattr(leaf, name, value)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
                 "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):
        getattr(leaf, name).update(getattr(module, name))
    return leaf


def _refusal(module: nn.Module, how: LeafHow) -> str | None:
    """Why no layer can be quantized like this; None if it can."""
    if any(p.is_meta or isinstance(p, UninitializedParameter) for p in module.parameters()):
        return "its weights have no values yet: run the model once, or load them"
    if any(isinstance(v, Tensor) for m in module.modules() for v in vars(m).values()):
        return "its weight is made anew at every call by a hook that is not known: remove it first"
    weights = [p for p in module.parameters(recurse=True) if p.ndim > 1]
    if any(p.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64) for p in weights):
        return "its weights are not real floating-point numbers"
    long = isinstance(how, Dynamic) and not isinstance(module, EMBEDDINGS) and any(
        columns > _MAX_COLUMNS for columns in _columns(module))
    return f"sums of more than {_MAX_COLUMNS} int8 products may overflow int32" if long else None


def _without_fast_path(model: nn.Module) -> None:
    """Keep ``nn.TransformerEncoder`` from handing the weights of its layers to one fused float operation."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, Leaf) for m in module.modules()):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Leaf) for m in module.modules()):
            module.use_nested_tensor = False
