"""Configurations as users write them: dtypes, schemes, records; each becomes an encoding or an error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from intact.errors import PlanError
from intact.leaves.how import Dynamic, Float16, LeafHow, WeightOnly
from intact.leaves.observer import Observer
from intact.types import Granularity, PerChannel, PerGroup, PerTensor, PerToken, QType

__all__ = ["dynamic_how", "how_of_dtype", "weight_only_how"]

_INT8, _UINT8 = ("qint8", "int8"), ("quint8", "uint8")
_HALF, _FLOAT = ("float16", "half"), ("float32", "float")
_KEYS = ("activation", "weight", "qscheme", "dynamic", "balance")
_WEIGHT_KEYS = ("bits", "group", "symmetric", "refine", "balance")


def _dtype_name(dtype: object) -> str:
    """``torch.qint8``, ``"qint8"`` and our own ``INT8`` by one name."""
    if isinstance(dtype, QType):
        return str(replace(dtype, narrow=False))
    return str(dtype).removeprefix("torch.")


def how_of_dtype(dtype: object, where: str = "") -> LeafHow:
    """What ``quantize_dynamic(dtype=...)`` stands for.

    Raises:
        PlanError: for a dtype that weights cannot have.

    >>> print(how_of_dtype("int8"))
    int8 weights per channel (axis 0), activations per token
    """
    name = _dtype_name(dtype)
    if name in _INT8:
        return Dynamic()
    if name in _HALF:
        return Float16()
    raise PlanError("no layer can have weights of this type", where=where, got=dtype,
                    allowed="torch.qint8, torch.int8, 'int8', intact.types.INT8, torch.float16",
                    fix="for 4 bits call intact.quantize_weights" if "4" in name else "pass dtype=torch.qint8")


def _scheme(value: object, where: str) -> Granularity:
    """Granularity of a scheme; whether it is affine or symmetric is not the user's to say."""
    if isinstance(value, PerTensor | PerChannel | PerGroup | PerToken):
        return value
    name = str(value).removeprefix("torch.").removesuffix("_float_qparams")
    name = name.removesuffix("_affine").removesuffix("_symmetric")
    known: dict[str, Granularity] = {
        "per_tensor": PerTensor(), "per_channel": PerChannel(0), "per_token": PerToken()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise PlanError("no such scheme", where=where, got=value, allowed=", ".join(known),
                        fix=f"did you mean {near[0]!r}?" if near else None)
    return known[name]


def _check_keys(config: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in config:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.3)
            fix = f"did you mean {near[0]!r}?" if near else None
            if key in _WEIGHT_KEYS:
                fix = "call intact.quantize_weights, or pass intact.leaves.WeightOnly(...) as the configuration"
            raise PlanError("unknown key of a configuration", where=where, got=key, allowed=", ".join(allowed), fix=fix)


def _part(value: Any, where: str) -> tuple[str | None, Granularity | None]:
    """Dtype and granularity of one operand: a dtype, a scheme, an observer, or a record of both."""
    match value:
        case None:
            return None, None
        case Observer():
            return _dtype_name(value.dtype), _scheme(value.qscheme, where)
        case Mapping():
            _check_keys(value, ("dtype", "qscheme", "dynamic"), where)
            _check_dynamic(value, where)
            scheme = value.get("qscheme")
            dtype = value.get("dtype")
            return (None if dtype is None else _dtype_name(dtype)), None if scheme is None else _scheme(scheme, where)
        case PerTensor() | PerChannel() | PerGroup() | PerToken():
            return None, value
        case str() if value.startswith("per_"):
            return None, _scheme(value, where)
    return _dtype_name(value), None


def _check_dynamic(config: Mapping[str, Any], where: str) -> None:
    if config.get("dynamic", True) is not True:
        raise PlanError("static quantization needs data", where=where, got=f"dynamic={config['dynamic']!r}",
                        fix="call intact.quantize(model, data), or leave 'dynamic' out")


def _of_qconfig(config: Any, where: str, default: LeafHow) -> LeafHow | None:
    """The encoding of a ``QConfig`` of torch's, whose two parts make observers."""
    activation, weight = config.activation(), config.weight()
    dtype, scheme = _dtype_name(weight.dtype), getattr(weight, "qscheme", None) or torch.per_channel_symmetric
    if dtype in _HALF:
        return Float16()
    if _dtype_name(activation.dtype) in (*_HALF, *_FLOAT):
        return WeightOnly(4 if "4" in dtype else 8, _scheme(scheme, where), symmetric="symmetric" in str(scheme))
    read = {"dtype": activation.dtype, "qscheme": getattr(activation, "qscheme", None)}
    return dynamic_how({"activation": read, "weight": {"dtype": dtype, "qscheme": scheme}}, where, default)


def dynamic_how(config: Any, where: str, default: LeafHow) -> LeafHow | None:
    """The encoding of a configuration of ``quantize_dynamic``; None for float.

    Raises:
        PlanError: if it is no configuration, or what it asks for does not exist.

    >>> print(dynamic_how({"weight": "int8", "qscheme": "per_tensor"}, "fc", Dynamic()))
    int8 weights per tensor, activations per token
    """
    if config is None or isinstance(config, Dynamic | WeightOnly | Float16):
        return config
    if not isinstance(config, Mapping):
        if isinstance(config, str | QType) or type(config).__name__ == "dtype":
            return how_of_dtype(config, where)
        if all(callable(getattr(config, part, None)) for part in ("activation", "weight")):
            return _of_qconfig(config, where, default)
        raise PlanError("no such configuration", where=where, got=type(config).__name__,
                        allowed=f"None (float), a dtype, or a dict with {', '.join(_KEYS)}")
    _check_keys(config, _KEYS, where)
    _check_dynamic(config, where)
    weight, weight_scheme = _part(config.get("weight"), f"{where}: weight")
    activation, activation_scheme = _part(config.get("activation"), f"{where}: activation")
    if "qscheme" in config:
        scheme = _scheme(config["qscheme"], where)
        if isinstance(scheme, PerToken):
            activation_scheme = activation_scheme or scheme
        else:
            weight_scheme = weight_scheme or scheme
    how = default if weight is None else how_of_dtype(weight, where)
    if not isinstance(how, Dynamic):
        if config.get("balance", False) is not False:
            raise PlanError("only int8 layers are balanced", where=where, got=f"{how}, balance={config['balance']!r}",
                            fix="leave it out")
        return how
    granularity = weight_scheme or how.weight
    if activation in (*_HALF, *_FLOAT, "bfloat16"):
        return WeightOnly(8, granularity, symmetric=True, balance=config.get("balance", True))
    if activation not in (None, *_INT8, *_UINT8):
        raise PlanError("activations cannot have this type", where=where, got=activation,
                        allowed="torch.quint8, torch.qint8, torch.float32")
    balance = config.get("balance", isinstance(default, Dynamic) and default.balance)
    return Dynamic(granularity, activation_scheme or how.activation, balance)


def weight_only_how(config: Any, where: str, default: WeightOnly) -> LeafHow | None:
    """The encoding of a configuration of ``quantize_weights``; None for float.

    Raises:
        PlanError: if it is no configuration, or what it asks for does not exist.

    >>> print(weight_only_how({"bits": 8, "group": None}, "fc", WeightOnly()))
    int8 weights per channel (axis 0)
    """
    if config is None or isinstance(config, Dynamic | WeightOnly | Float16):
        return config
    if isinstance(config, int) and not isinstance(config, bool):
        return replace(default, bits=config)
    if not isinstance(config, Mapping):
        raise PlanError("no such configuration", where=where, got=type(config).__name__,
                        allowed=f"None (float), a number of bits, or a dict with {', '.join(_WEIGHT_KEYS)}")
    _check_keys(config, _WEIGHT_KEYS, where)
    fields = {k: v for k, v in config.items() if k != "group"}
    if "group" in config:
        fields["weight"] = PerChannel(0) if config["group"] is None else PerGroup(1, config["group"])
    return replace(default, **fields)
