"""How the weights of a leaf, and what they are multiplied with, are encoded: a sum type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from intact.errors import ArtifactError, PlanError
from intact.types import Granularity, PerChannel, PerGroup, PerTensor, PerToken

__all__ = ["Dynamic", "Float16", "LeafHow", "PerGroupAtMost", "WeightOnly", "how_from_json", "how_to_json"]

_PER_CHANNEL = PerChannel(0)
_PER_TOKEN = PerToken()
_GROUPS = PerGroup(1, 64)
_LEAST_GROUP = 16  # a scale of 16 bits for fewer weights of 4 bits costs too much


@dataclass(frozen=True)
class Dynamic:
    """int8 weights; activations become int8 (per token) or uint8 (per tensor) at run time; products are integers.

    Args:
        weight: ``PerTensor()``, ``PerChannel(0)`` (output channels) or ``PerGroup(1, size)``; always symmetric.
        activation: ``PerToken()``: every row its own scale; ``PerTensor()``: as ONNX ``DynamicQuantizeLinear``.
        balance: linear layers divide their columns by the square root of their sizes, and multiply their inputs by
            it: for networks in which some features are much larger than the others (most transformers).

    >>> print(Dynamic())
    int8 weights per channel (axis 0), activations per token
    """

    weight: Granularity = _PER_CHANNEL
    activation: Granularity = _PER_TOKEN
    balance: bool = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        _check_flags(self, "balance")
        if not isinstance(self.activation, PerTensor | PerToken):
            raise PlanError("activations have one scale per tensor or per token", got=str(self.activation))

    def __str__(self) -> str:
        return f"int8 weights {self.weight}, activations {self.activation}{', balanced' if self.balance else ''}"


@dataclass(frozen=True)
class PerGroupAtMost(PerGroup):
    """Groups of ``size``, or of the largest smaller size that divides the rows of a layer; see :meth:`fitting`."""

    def fitting(self, columns: Iterable[int]) -> PerGroup | PerChannel:
        """What a layer gets whose weights have rows of so many columns: one scale a row if no group of 16 divides.

        >>> groups = PerGroupAtMost(1, 64)
        >>> print(groups.fitting([384]), groups.fitting([147]), groups.fitting([131]), sep=", ")
        per group of 64 (axis 1), per group of 49 (axis 1), per channel (axis 0)
        """
        common = math.gcd(*columns)
        sizes = (n for n in range(self.size, min(self.size, _LEAST_GROUP) - 1, -1) if common and common % n == 0)
        size = next(sizes, None)
        return PerChannel(0) if size is None else PerGroup(self.axis, size)


@dataclass(frozen=True)
class WeightOnly:
    """int8 or int4 weights, which are made float again for the product; activations stay float.

    Args:
        bits: 4 (two codes a byte) or 8.
        weight: ``PerChannel(0)`` or ``PerGroup(1, size)``; the scales of groups are stored as bfloat16.
        symmetric: zero point 0; else every scale has a zero point.
        refine: search ranges and zero points for the least squared error; else they reach the extremes.
        balance: linear layers divide their columns by their sizes, and multiply their inputs by them: the rounding of
            a column is then as small as the column.

    >>> print(WeightOnly(4, PerGroup(1, 32)))
    int4 weights per group of 32 (axis 1)
    """

    bits: int = 4
    weight: Granularity = _GROUPS
    symmetric: bool = False
    refine: bool = True
    balance: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise PlanError("no such weight-only encoding", got=f"{self.bits} bits", allowed="4 or 8 bits")
        _check_weight(self.weight)
        _check_flags(self, "symmetric", "refine", "balance")

    def __str__(self) -> str:
        marks = [name for name, on in (("symmetric", self.symmetric), ("not balanced", not self.balance)) if on]
        return ", ".join([f"int{self.bits} weights {self.weight}", *marks])


@dataclass(frozen=True)
class Float16:
    """float16 weights, which are made float32 again for the product.

    >>> print(Float16())
    float16 weights
    """

    def __str__(self) -> str:
        return "float16 weights"


LeafHow = Dynamic | WeightOnly | Float16


def _check_flags(how: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(how, name), bool):
            raise PlanError("neither True nor False", where=name, got=repr(getattr(how, name)))


def _check_weight(granularity: Granularity) -> None:
    match granularity:
        case PerTensor() | PerChannel(axis=0):
            return
        case PerGroup(axis=1, size=int(size)) if not isinstance(size, bool) and size > 0:
            return
    raise PlanError("weights cannot be grouped like this", got=str(granularity),
                    allowed="PerTensor(), PerChannel(0), PerGroup(1, size)")


def _granularity_to_json(granularity: Granularity) -> Any:
    match granularity:
        case PerTensor():
            return "tensor"
        case PerToken():
            return "token"
        case PerChannel():
            return "channel"
        case PerGroup(size=size):
            return size


def _granularity_from_json(value: Any) -> Granularity:
    match value:
        case "tensor":
            return PerTensor()
        case "token":
            return PerToken()
        case "channel":
            return PerChannel(0)
        case int():
            return PerGroup(1, value)
    raise ArtifactError("no such granularity", got=str(value)[:40])


def how_to_json(how: LeafHow) -> dict[str, Any]:
    """A plain record, of which :func:`how_from_json` makes the same value again.

    >>> how_to_json(Dynamic())
    {'kind': 'dynamic', 'weight': 'channel', 'activation': 'token', 'balance': False}
    """
    match how:
        case Dynamic():
            return {"kind": "dynamic", "weight": _granularity_to_json(how.weight),
                    "activation": _granularity_to_json(how.activation), "balance": how.balance}
        case WeightOnly():
            return {"kind": "weight_only", "weight": _granularity_to_json(how.weight), "bits": how.bits,
                    "symmetric": how.symmetric, "refine": how.refine, "balance": how.balance}
        case Float16():
            return {"kind": "float16"}


def how_from_json(record: Any) -> LeafHow:
    """The value of a record.

    Raises:
        ArtifactError: if no such value exists.

    >>> how_from_json({"kind": "float16"})
    Float16()
    """
    if not isinstance(record, Mapping):
        raise ArtifactError("the encoding of a leaf is missing", got=type(record).__name__)
    fields = {k: v for k, v in record.items() if k != "kind"}
    if record.get("kind") != "float16":
        fields.setdefault("balance", False)  # of files written before there was balance
    kinds: dict[Any, tuple[type[Dynamic | WeightOnly | Float16], set[str]]] = {
        "dynamic": (Dynamic, {"weight", "activation", "balance"}),
        "weight_only": (WeightOnly, {"weight", "bits", "symmetric", "refine", "balance"}), "float16": (Float16, set())}
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in kinds or set(fields) != kinds[kind][1]:
        raise ArtifactError("no such encoding of a leaf", got=str(dict(record))[:80])
    for name in ("weight", "activation"):
        if name in fields:
            fields[name] = _granularity_from_json(fields[name])
    if any(not isinstance(fields[n], bool) for n in ("symmetric", "refine", "balance") if n in fields):
        raise ArtifactError("no such encoding of a leaf", got=str(dict(record))[:80])
    try:
        return kinds[kind][0](**fields)
    except PlanError as error:
        raise ArtifactError(error.what, got=error.got, allowed=error.allowed) from None
