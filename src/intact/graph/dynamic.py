"""Which axes of the inputs stay free: what the user says, in the words of torch.export, for every tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from intact.errors import CaptureError
from intact.graph.ir import Node
from intact.graph.signature import Signature
from intact.graph.tree import leaves, map_leaves
from intact.types.dims import BATCH, Sizes, is_dim, line

__all__ = ["Axes", "Dynamic", "axes_of", "by_tensor", "default_name", "differing_axes", "dynamic_of",
           "export_shapes", "first_free", "given_limits", "long_enough", "multiplied", "paired", "stretched",
           "symbols_in"]

T = TypeVar("T")

#: as ``dynamic_shapes`` of torch.export: an input's name (or place) -> {axis: name or Dim or True}
Dynamic = Mapping[Any, Any] | Sequence[Any]

_NAMES = {2: ("", "length"), 3: ("", "length", "length"), 4: ("", "channels", "height", "width"),
          5: ("", "channels", "depth", "height", "width")}


@dataclass(frozen=True)
class Axes:
    """The free axes of one tensor: axis to its name, or to a multiple such as ``"8*height"``."""

    names: Mapping[int, str] = field(default_factory=dict)


def default_name(rank: int, axis: int) -> str:
    """What an axis is called by default.

    >>> default_name(2, 1), default_name(4, 3), default_name(7, 2)
    ('length', 'width', 'axis2')
    """
    return _NAMES[rank][axis] if rank in _NAMES and axis else f"axis{axis}"


def axes_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic | None) -> Any:
    """``(args, kwargs)`` with the free axes in place of every tensor, and None in place of what is none.

    Args:
        model: whose ``forward`` names the inputs.
        args: positional inputs.
        kwargs: inputs by name.
        dynamic: by name or place of the input ``{axis: name}``; of a model with one tensor as input the axes alone.

    Raises:
        CaptureError: if an input or an axis is unknown, or a name is none.
    """
    spec: Any = {} if dynamic is None else dynamic
    names, taken = _positional(model, len(args)), _Names()
    if isinstance(spec, Mapping) and spec and all(type(k) is int for k in spec):
        tensors = [t for t in leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
        if len(tensors) != 1:
            raise CaptureError("the free axes are given without an input", got=dict(spec),
                               fix="write dynamic={'name of the input': {axis: 'name of the axis'}}")
        found = taken.axes(tensors[0], spec, "the input")
        return map_leaves((args, dict(kwargs)), lambda x: found if isinstance(x, Tensor) else None)
    if not isinstance(spec, Mapping):
        if not isinstance(spec, Sequence) or isinstance(spec, str):
            raise CaptureError("dynamic is neither a dict nor a tuple", got=spec,
                               fix="write dynamic={'name of the input': {axis: 'name of the axis'}}")
        spec = dict(zip([*names, *kwargs], spec, strict=False))
    unknown = sorted(map(str, spec.keys() - {*names, *kwargs}))
    if unknown:
        raise CaptureError("dynamic names an unknown input", got=", ".join(unknown),
                           allowed=", ".join([*names, *map(str, kwargs)]))
    return (tuple(_match(v, spec.get(n), n, taken) for n, v in zip(names, args, strict=True)),
            {k: _match(v, spec.get(k), k, taken) for k, v in kwargs.items()})


def _positional(model: nn.Module, count: int) -> list[str]:
    names: list[str] = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}_{i}" for i in range(count - len(names))]  # as torch.export names them
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    return [*names, *(f"arg{i}" for i in range(len(names), count))][:count]


def _match(value: Any, spec: Any, where: str, taken: _Names) -> Any:
    if isinstance(value, Tensor):
        return taken.axes(value, spec, where)
    if isinstance(value, Mapping):
        given = spec if isinstance(spec, Mapping) else {}
        return {k: _match(v, given.get(k), f"{where}[{k!r}]", taken) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = list(spec) if isinstance(spec, Sequence) else [None] * len(value)
        if len(parts) != len(value):
            raise CaptureError("dynamic has another structure than the input", where=where, got=spec)
        return tuple(_match(v, s, f"{where}[{i}]", taken) for i, (v, s) in enumerate(zip(value, parts, strict=True)))
    if spec:
        raise CaptureError("dynamic names an input that is no tensor", where=where, got=type(value).__name__)
    return None


class _Names:
    """Names of axes; one that has none gets one of its own, which torch may find to be the same as another."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def axes(self, x: Tensor, spec: Any, where: str) -> Axes:
        """What the user says of one tensor."""
        if spec is None:
            return Axes()
        if isinstance(spec, Sequence) and not isinstance(spec, str):
            spec = dict.fromkeys(spec, True)
        if not isinstance(spec, Mapping):
            raise CaptureError("free axes are no dict", where=where, got=spec, allowed="{axis: name}")
        found = {}
        for axis, name in spec.items():
            if type(axis) is not int or not -x.ndim <= axis < x.ndim:
                raise CaptureError("an input has no such axis", where=where, got=axis,
                                   allowed=f"0 to {x.ndim - 1}" if x.ndim else "none")
            if name is not None and name is not False:
                place = axis % x.ndim
                found[place] = self._name(name, f"{where}, axis {axis}") or self.new(default_name(x.ndim, place))
        return Axes(found)

    def new(self, base: str) -> str:
        """A name that no other axis has."""
        name, n = base, 1
        while name in self.made:
            n += 1
            name = f"{base}_{n}"
        self.made.add(name)
        return name

    def _name(self, given: Any, where: str) -> str | None:
        if given is True or given in (torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC):
            return None
        text = given if isinstance(given, str) else str(getattr(given, "__name__", ""))
        straight = line(text) if is_dim(text) else None
        if straight is None or straight[2]:
            raise CaptureError("this cannot name a free axis", where=where, got=given, allowed=
                               "a name such as 'length', a multiple such as '8*height', a torch.export.Dim, or True")
        return text


def differing_axes(first: Any, others: Sequence[Any], *, named: bool = False) -> Any:
    """``dynamic`` for the axes, besides the first, whose sizes differ among batches; None if there are none.

    Args:
        first: inputs of the first batch.
        others: inputs of all, the first among them.
        named: give axes that have the same size in every batch one name; else torch finds out which are the same.

    >>> batches = [{"x": torch.zeros(2, 5), "y": torch.zeros(2, 5)}, {"x": torch.zeros(2, 7), "y": torch.zeros(1, 7)}]
    >>> differing_axes(batches[0], batches), differing_axes(batches[0], batches, named=True)
    ({'x': {1: True}, 'y': {1: True}}, {'x': {1: 'length'}, 'y': {1: 'length'}})
    """
    others = [o for o in others if map_leaves(o, lambda _: None) == map_leaves(first, lambda _: None)]
    columns = zip(*map(leaves, others), strict=True)
    names, taken = dict[tuple[int, ...], str](), _Names()

    def differ(x: Any) -> Any:
        column = next(columns)
        if not isinstance(x, Tensor) or any(not isinstance(y, Tensor) or y.ndim != x.ndim for y in column):
            return None
        own = {}
        for axis in range(1, x.ndim):
            sizes = tuple(y.shape[axis] for y in column)
            if len(set(sizes)) > 1:
                if sizes not in names:
                    names[sizes] = taken.new(default_name(x.ndim, axis))
                own[axis] = names[sizes]
        return Axes(own)

    if not others:
        return None
    found = map_leaves(first, differ)
    if not any(own is not None and own.names for own in leaves(found)):
        return None
    return map_leaves(found, lambda own: own and (dict(own.names) if named else dict.fromkeys(own.names, True)))


def first_free(attempt: Callable[[Any], T], ways: Sequence[Any]) -> T:
    """What an attempt gives with the first of several ways to leave axes free that it can be made with.

    Raises:
        CaptureError: that of the last, if there is none.
    """
    for way in ways[:-1]:
        with suppress(CaptureError):
            return attempt(way)
    return attempt(ways[-1])


def dynamic_of(inputs: Iterable[Node], signature: Signature) -> dict[str, Any]:
    """``dynamic`` for the free axes that a captured model has."""
    nodes = {n.name: n for n in inputs}
    found = {n: _axes_in(t, nodes) for n, t in zip(signature.names, signature.templates, strict=True)}
    return {name: map_leaves(axes, lambda own: dict(own.names)) for name, axes in found.items()
            if any(own.names for own in leaves(axes))}


def _axes_in(template: Mapping[str, Any], nodes: Mapping[str, Node]) -> Any:
    if template["kind"] == "edge":
        shape = nodes[template["name"]].shape
        return Axes({i: d for i, d in enumerate(shape) if isinstance(d, str) and (i, d) != (0, BATCH)})
    items = template.get("items", ())
    return {k: _axes_in(t, nodes) for k, t in items.items()} if isinstance(items, Mapping) else \
        [_axes_in(t, nodes) for t in items]


def given_limits(dynamic: Any) -> dict[str, tuple[int, int | None]]:
    """Ranges that come with a ``torch.export.Dim`` in ``dynamic``."""
    found: dict[str, tuple[int, int | None]] = {}
    for leaf in leaves(dynamic):
        low, high, name = (getattr(leaf, k, None) for k in ("min", "max", "__name__"))
        if isinstance(name, str) and isinstance(low, int):
            found[name] = (max(1, low), int(high) if isinstance(high, int) and high < 2**31 else None)
    return found


def paired(value: Any, axes: Any, change: Any) -> Any:
    """The structure of ``value`` with every tensor changed, who sees its axes too."""
    own = leaves(axes)
    return map_leaves(value, lambda x: _changed(x, next(own), change))


def _changed(x: Any, own: Axes | None, change: Any) -> Any:
    return change(x, own) if isinstance(x, Tensor) and own is not None else x


def long_enough(value: Any, axes: Any) -> Any:
    """The inputs with a free axis of size 1 doubled: torch.export takes a size of 1 for one that never changes."""
    def doubled(x: Tensor, own: Axes) -> Tensor:
        for axis in own.names:
            x = torch.cat([x, x], axis) if x.shape[axis] == 1 else x
        return x

    return paired(value, axes, doubled)


def stretched(value: Any, axes: Any, by: Sizes) -> Any:
    """The inputs with larger free axes: each symbol grows by so much; the values go round."""
    def longer(x: Tensor, own: Axes) -> Tensor:
        for axis, name in own.names.items():
            told = line(name)
            more = told[1] * by.get(told[0], 0) if told is not None else 0
            if more:
                x = x.index_select(axis, torch.arange(x.shape[axis] + more, device=x.device) % x.shape[axis])
        return x

    return paired(value, axes, longer)


def symbols_in(value: Any, axes: Any) -> dict[str, int]:
    """The symbols of the free axes, and what they are."""
    found: dict[str, int] = {}
    for x, own in zip(leaves(value), leaves(axes), strict=True):
        for axis, name in (own.names.items() if own is not None else ()):
            told = line(name)
            if told is not None:
                found.setdefault(told[0], x.shape[axis] // told[1])
    return found


def multiplied(axes: Any, factors: Mapping[str, int]) -> Any:
    """The axes with some symbols replaced by multiples of them."""
    def times(name: str) -> str:
        told = line(name)
        factor = told[1] * factors.get(told[0], 1) if told is not None else 1
        return name if told is None or factor == told[1] else f"{factor}*{told[0]}"

    return map_leaves(axes, lambda own: own and Axes({axis: times(name) for axis, name in own.names.items()}))


def export_shapes(value: Any, axes: Any, batch: int) -> Any:
    """What torch.export is told of every leaf; the first axis is the batch where it has that size."""
    known: dict[str, Any] = {BATCH: torch.export.Dim(BATCH, min=1)}
    for _, own in by_tensor(value, axes):
        for told in map(line, own.names.values()):
            if told is not None and told[1] > 1:
                known.setdefault(told[0], torch.export.Dim(told[0], min=1))

    def dim(name: str) -> Any:
        told = line(name)
        if told is None or name == BATCH or (told[1] == 1 and told[0] not in known):
            return known[BATCH] if name == BATCH else torch.export.Dim.DYNAMIC
        return known[told[0]] if told[1] == 1 else told[1] * known[told[0]]

    def shape(x: Tensor, own: Axes) -> Any:
        found = {axis: dim(name) for axis, name in own.names.items()}
        if x.ndim and 0 not in found and BATCH not in own.names.values() and x.shape[0] == batch:
            found[0] = known[BATCH]
        return found or None

    specs = leaves(axes)
    return map_leaves(value, lambda x: _changed(x, next(specs), shape) if isinstance(x, Tensor) else _none(next(specs)))


def _none(_: object) -> None:
    return None


def by_tensor(value: Any, axes: Any) -> Iterator[tuple[Tensor, Axes]]:
    """Every tensor and its axes."""
    for x, own in zip(leaves(value), leaves(axes), strict=True):
        if isinstance(x, Tensor) and own is not None:
            yield x, own
