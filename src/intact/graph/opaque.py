"""One call of a submodule that torch.export refuses: how its arguments and results are made of tensors."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from intact.errors import CaptureError
from intact.graph.tree import leaves, map_leaves
from intact.types.dims import Dim, Sizes, fit, line, resolve_dim, symbols_of

__all__ = ["OpaqueCall", "Recorded", "describe"]

#: values that a call may be repeated with as they are
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, slice, enum.Enum,
          type(None), type(Ellipsis))


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor."""

    index: int


@dataclass(frozen=True)
class _Size:
    """Stands for a number that grows with the inputs."""

    dim: str


@dataclass(frozen=True, eq=False)
class Recorded:
    """Arguments and result of a call that was watched, and the modules that were running."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    inside: tuple[nn.Module, ...]


@dataclass(eq=False)
class OpaqueCall:
    """One call site of a module that could not be captured.

    Args:
        module: the module, in evaluation mode.
        key: unique in the model.
        reason: why torch.export refused it.
        path: module path in the user's model.
        arguments: ``(args, kwargs)`` with placeholders for tensors and for sizes that grow with the inputs.
        result: the structure of the result, likewise.
        inputs: shapes of the tensors among the arguments.
        outputs: shapes and dtypes of the tensors of the result, and after them of the arguments that it changes.
        changed: which of the tensors among the arguments it changes in place.
    """

    module: nn.Module
    key: str
    reason: str
    path: str
    arguments: Any
    result: Any
    inputs: list[tuple[Dim, ...]]
    outputs: list[tuple[tuple[Dim, ...], torch.dtype]]
    changed: tuple[int, ...] = ()
    _asked: tuple[list[Tensor], dict[int, Tensor]] = field(default_factory=lambda: ([], {}))

    def run(self, xs: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """Tensors of the result, and then the arguments that the module changed; ``xs`` stay as they are."""
        ys = [x.clone() for x in xs]
        args, kwargs = _filled(self.arguments, ys, sizes)
        found = [t for t in leaves(self.module(*args, **kwargs)) if isinstance(t, Tensor)]
        if not set(_differing(xs, ys)) <= set(self.changed):
            raise CaptureError("a module that could not be captured changes its operand in place, which it did not on "
                               "the example", where=self.path, fix="let it return a new tensor")
        found += [ys[i] for i in self.changed]
        if len(found) != len(self.outputs):
            raise CaptureError("a module that could not be captured returned another structure", where=self.path,
                               got=f"{len(found)} tensors", allowed=f"{len(self.outputs)} as in the example")
        return found

    def output(self, xs: Sequence[Tensor], sizes: Sizes, index: int) -> Tensor:
        """One of the tensors; those asked for next, with the same operands, are of the same call."""
        known, rest = self._asked
        same = len(known) == len(xs) and all(a is b for a, b in zip(known, xs, strict=True))
        if not (same and index in rest):
            rest = dict(enumerate(self.run(xs, sizes)))
            known = list(xs)
        found = rest.pop(index)
        self._asked = (known, rest) if rest else ([], {})
        return found

    def answer(self, ys: Sequence[Tensor], sizes: Sizes) -> Any:
        """The result, made of its tensors."""
        return _filled(self.result, ys, sizes)

    def sizes_of(self, xs: Sequence[Tensor]) -> dict[str, Any]:
        """What the symbols are (numbers, or torch's own symbols) that these operands tell."""
        found: dict[str, Any] = {}
        for x, shape in zip(xs, self.inputs, strict=True):
            for size, dim in zip(x.shape, shape, strict=True):
                told = line(dim)
                if told is not None and told[0] not in found:
                    name, step, base = told
                    found[name] = (size - base) // step if (step, base) != (1, 0) else size
        return found


def _filled(template: Any, tensors: Sequence[Tensor], sizes: Sizes) -> Any:
    def fill(leaf: Any) -> Any:
        if isinstance(leaf, _Slot):
            return tensors[leaf.index]
        return resolve_dim(leaf.dim, sizes) if isinstance(leaf, _Size) else leaf

    return map_leaves(template, fill)


def describe(module: nn.Module, key: str, path: str, reason: str, calls: Sequence[Recorded],
             points: Sequence[Sizes]) -> OpaqueCall:
    """A call site, from the same call watched with inputs of several sizes.

    Args:
        module: what is called.
        key: of the call.
        path: of the module.
        reason: why torch.export refuses it.
        calls: what was watched.
        points: what the symbols were in each of them.

    Raises:
        CaptureError: if it takes or returns what cannot be told from outside.
    """
    given: list[tuple[Tensor, ...]] = []
    made: list[tuple[Tensor, ...]] = []
    arguments = _template([(c.args, c.kwargs) for c in calls], points, given)
    result = _template([c.result for c in calls], points, made)
    if not made:
        raise CaptureError("it returns no tensor")
    inputs = [_shape(xs, points) for xs in given]
    changed = _changed(module, calls[0])
    made += [given[i] for i in changed]
    outputs = [(_shape(xs, points), xs[0].dtype) for xs in made]
    told = {told[0] for shape in inputs for d in shape if (told := line(d)) is not None}
    asked = {s for shape, _ in outputs for d in shape for s in symbols_of(d)}
    if not given or not asked <= told:
        raise CaptureError("it takes no tensor from which the batch size could be told")
    return OpaqueCall(module, key, reason, path, arguments, result, inputs, outputs, changed)


def _template(values: Sequence[Any], points: Sequence[Sizes], tensors: list[tuple[Tensor, ...]]) -> Any:
    """What all have in common, with placeholders for the rest."""
    if any(map_leaves(v, lambda _: None) != map_leaves(values[0], lambda _: None) for v in values[1:]):
        raise CaptureError("the structure of its arguments or results depends on the batch size")
    others = zip(*map(leaves, values[1:]), strict=True)

    def common(x: Any) -> Any:
        ys = (x, *next(others))
        if all(isinstance(y, Tensor) for y in ys):
            tensors.append(ys)
            return _Slot(len(tensors) - 1)
        if not isinstance(x, _PLAIN) or any(type(x) is not type(y) for y in ys):
            raise CaptureError("it takes or returns more than tensors and plain values", got=type(x).__name__)
        if all(x == y for y in ys):
            return x
        dim = fit(ys, points) if isinstance(x, int) else None
        if dim is None:
            raise CaptureError("an argument or result depends on the data", got=" and ".join(map(repr, ys)))
        return _Size(str(dim))

    return map_leaves(values[0], common)


def _shape(xs: Sequence[Tensor], points: Sequence[Sizes]) -> tuple[Dim, ...]:
    if any(x.ndim != xs[0].ndim or x.dtype != xs[0].dtype for x in xs):
        raise CaptureError("the rank or dtype of a tensor depends on the batch size")
    dims = [fit(sizes, points) for sizes in zip(*(x.shape for x in xs), strict=True)]
    if None in dims:
        raise CaptureError("a size depends on the data", got=[tuple(x.shape) for x in xs])
    return tuple(d for d in dims if d is not None)


def _changed(module: nn.Module, call: Recorded) -> tuple[int, ...]:
    """Which of the tensors it changes in place: of these, or (control flow being what it is) of their negation."""
    found: set[int] = set()
    for sign in (1.0, -1.0):
        def ours(x: Any, sign: float = sign) -> Any:
            return (x * sign if x.is_floating_point() else x.clone()) if isinstance(x, Tensor) else x

        args, kwargs = map_leaves((call.args, call.kwargs), ours)
        before = [t.clone() for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        with suppress(RuntimeError, ValueError, IndexError):  # it need not take negative numbers
            module(*args, **kwargs)
        found.update(_differing(before, [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]))
    return tuple(sorted(found))


def _differing(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[int]:
    """Which tensors are not the same any more (a NaN stays one)."""
    return [i for i, (x, y) in enumerate(zip(before, after, strict=True))
            if x.shape != y.shape or not bool(((x == y) | ((x != x) & (y != y))).all())]
