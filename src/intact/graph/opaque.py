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
from intact.graph.ir import Dim
from intact.graph.tree import leaves, map_leaves

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
    """Stands for a number that grows with the batch."""

    factor: int


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
        arguments: ``(args, kwargs)`` with placeholders for tensors and for sizes that grow with the batch.
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

    def run(self, xs: Sequence[Tensor], batch: int) -> list[Tensor]:
        """Tensors of the result, and then the arguments that the module changed; ``xs`` stay as they are."""
        ys = [x.clone() for x in xs]
        args, kwargs = _filled(self.arguments, ys, batch)
        found = [t for t in leaves(self.module(*args, **kwargs)) if isinstance(t, Tensor)]
        if not set(_differing(xs, ys)) <= set(self.changed):
            raise CaptureError("a module that could not be captured changes its operand in place, which it did not on "
                               "the example", where=self.path, fix="let it return a new tensor")
        found += [ys[i] for i in self.changed]
        if len(found) != len(self.outputs):
            raise CaptureError("a module that could not be captured returned another structure", where=self.path,
                               got=f"{len(found)} tensors", allowed=f"{len(self.outputs)} as in the example")
        return found

    def output(self, xs: Sequence[Tensor], batch: int, index: int) -> Tensor:
        """One of the tensors; those asked for next, with the same operands, are of the same call."""
        known, rest = self._asked
        same = len(known) == len(xs) and all(a is b for a, b in zip(known, xs, strict=True))
        if not (same and index in rest):
            rest = dict(enumerate(self.run(xs, batch)))
            known = list(xs)
        found = rest.pop(index)
        self._asked = (known, rest) if rest else ([], {})
        return found

    def answer(self, ys: Sequence[Tensor], batch: Any) -> Any:
        """The result, made of its tensors."""
        return _filled(self.result, ys, batch)

    def batch_of(self, xs: Sequence[Tensor]) -> Any:
        """The batch size (maybe symbolic) that these operands tell; None if none of them does."""
        for x, shape in zip(xs, self.inputs, strict=True):
            for size, dim in zip(x.shape, shape, strict=True):
                if isinstance(dim, str):
                    factor = dim.partition("*")[0]
                    return size // int(factor) if factor.isdigit() else size
        return None


def _filled(template: Any, tensors: Sequence[Tensor], batch: Any) -> Any:
    def fill(leaf: Any) -> Any:
        if isinstance(leaf, _Slot):
            return tensors[leaf.index]
        return leaf.factor * batch if isinstance(leaf, _Size) else leaf

    return map_leaves(template, fill)


def describe(module: nn.Module, key: str, path: str, reason: str, calls: tuple[Recorded, Recorded],
             batches: tuple[int, int]) -> OpaqueCall:
    """A call site, from the same call watched at two batch sizes.

    Raises:
        CaptureError: if it takes or returns what cannot be told from outside.
    """
    a, b = calls
    given: list[tuple[Tensor, Tensor]] = []
    made: list[tuple[Tensor, Tensor]] = []
    arguments = _template((a.args, a.kwargs), (b.args, b.kwargs), batches, given)
    result = _template(a.result, b.result, batches, made)
    if not made:
        raise CaptureError("it returns no tensor")
    inputs = [_shape(x, y, batches) for x, y in given]
    changed = _changed(module, a)
    made += [given[i] for i in changed]
    outputs = [(_shape(x, y, batches), x.dtype) for x, y in made]
    free = any(isinstance(d, str) for shape in inputs for d in shape)
    if not given or (not free and any(isinstance(d, str) for shape, _ in outputs for d in shape)):
        raise CaptureError("it takes no tensor from which the batch size could be told")
    return OpaqueCall(module, key, reason, path, arguments, result, inputs, outputs, changed)


def _template(a: Any, b: Any, batches: tuple[int, int], tensors: list[tuple[Tensor, Tensor]]) -> Any:
    """What both have in common, with placeholders for the rest."""
    if map_leaves(a, lambda _: None) != map_leaves(b, lambda _: None):
        raise CaptureError("the structure of its arguments or results depends on the batch size")
    others = leaves(b)

    def common(x: Any) -> Any:
        y = next(others)
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            tensors.append((x, y))
            return _Slot(len(tensors) - 1)
        if not isinstance(x, _PLAIN) or type(x) is not type(y):
            raise CaptureError("it takes or returns more than tensors and plain values", got=type(x).__name__)
        if x == y:
            return x
        if isinstance(x, int) and isinstance(y, int) and x * batches[1] == y * batches[0] and x % batches[0] == 0:
            return _Size(x // batches[0])
        raise CaptureError("an argument or result depends on the data", got=f"{x!r} and {y!r}")

    return map_leaves(a, common)


def _shape(a: Tensor, b: Tensor, batches: tuple[int, int]) -> tuple[Dim, ...]:
    if a.ndim != b.ndim or a.dtype != b.dtype:
        raise CaptureError("the rank or dtype of a tensor depends on the batch size")
    return tuple(_dim(x, y, batches) for x, y in zip(a.shape, b.shape, strict=True))


def _dim(x: int, y: int, batches: tuple[int, int]) -> Dim:
    if x == y:
        return x
    if x * batches[1] != y * batches[0] or x % batches[0]:
        raise CaptureError("a size depends on the data", got=(x, y))
    return "batch" if x == batches[0] else f"{x // batches[0]}*batch"


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
