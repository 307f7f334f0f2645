"""What was captured with free axes, held against the model itself at other sizes: that one is free is not believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from intact.errors import CaptureError
from intact.graph.float_model import FloatModel
from intact.graph.free import free_symbols, limits_of, resized, sizes_near
from intact.graph.isolate import CAPTURE_FAILURES
from intact.graph.signature import check_inputs
from intact.graph.tree import leaves
from intact.types.dims import BATCH, Sizes, symbols_of

__all__ = ["Multiples", "confirmed"]

#: of the largest value: what another order of float operations may change
_TOLERANCE = 1e-3
#: of the norm, where numbers become codes on the way: one that lies between two codes may get either, and so may all
#: that follow; about what their rounding costs
_TOLERANCE_OF_CODES = 0.1
_LARGEST_STEP = 64


class Multiples(Exception):
    """Sizes that the model takes in multiples only: symbol to factor."""

    def __init__(self, factors: Mapping[str, int]) -> None:
        super().__init__(str(dict(factors)))
        self.factors = dict(factors)


def confirmed(model: FloatModel, call: Callable[[Mapping[str, Tensor]], Any], inputs: Mapping[str, Tensor],
              given: Mapping[str, tuple[int, int | None]], coded: bool = False) -> FloatModel:
    """The captured model, after it gave what the user's model gives at other sizes, and with the range of each.

    Args:
        model: captured; its free axes were those of torch.export.
        call: the user's model with other tensors for the inputs.
        inputs: the example, by input edge.
        given: ranges that the user gave.
        coded: whether activations become codes within the model.

    Raises:
        CaptureError: naming the size at which the model fails or gives something else.
        Multiples: if it is right for multiples of a number.
    """
    sizes = check_inputs(model.graph, inputs)
    check = _Check(model, call, inputs, {**sizes, BATCH: min(2, sizes[BATCH])}, _near_by_norm if coded else _near)
    model = replace(model, notes=(*model.notes, *check.example()))
    free, limits = free_symbols(model.graph), limits_of(model.graph)
    if not free:
        return model
    factors = {name: step for name in free if (step := check.step(name)) > 1}
    if factors:
        raise Multiples(factors)
    for point in list(sizes_near(check.sizes, limits))[1:]:
        problem = check.at(point)
        if problem is not None:
            raise _refused(point, free, problem)
    found = {}
    for name in free:
        low, high = limits[name]
        own, most = given.get(name, (1, None))
        low = max(own, check.lowest(name, low))
        highs = [h for h in (high, most) if h is not None]
        found[name] = [low, min(highs) if highs else None]
    return _limited(model, found)


def _refused(point: Sizes, free: tuple[str, ...], problem: str) -> CaptureError:
    sizes = ", ".join(f"{name} {point[name]}" for name in free)
    return CaptureError(f"an axis cannot be left free: with {sizes} {problem}", where=", ".join(free), fix=
                        "leave the axis out of dynamic, give the range in which the model works as "
                        "torch.export.Dim(name, min=, max=), or let forward treat all sizes alike")


@dataclass(frozen=True)
class _Check:
    """The two models side by side."""

    model: FloatModel
    call: Callable[[Mapping[str, Tensor]], Any]
    inputs: Mapping[str, Tensor]
    sizes: Sizes
    close: Callable[[Tensor, Tensor], bool]

    def at(self, sizes: Sizes) -> str | None:
        """What is wrong at some sizes; None if nothing is."""
        other = resized(self.model.graph, self.inputs, sizes)
        try:
            wanted = self.call(other)
        except CAPTURE_FAILURES as error:
            return f"the model itself fails: {_first_line(error)}"
        try:
            got = self.model.run(other)
        except CAPTURE_FAILURES as error:
            return f"what was captured fails: {_first_line(error)}"
        return None if _alike(wanted, got, self.close) else "the model takes another way through its forward"

    def example(self) -> tuple[tuple[str, str], ...]:
        """A note, if the two differ on the example itself.

        Raises:
            CaptureError: if the model is not one function of its inputs.
        """
        problem = self.at(self.sizes)
        if problem is None:
            return ()
        inputs = resized(self.model.graph, self.inputs, self.sizes)
        if not _alike(self.call(inputs), self.call(inputs), self.close):
            raise CaptureError("the model gives something else in every call", fix="take random numbers out of its "
                               "forward in evaluation mode, or let them be inputs")
        text = ("what was captured differs from the model on the example inputs: where a mask hides all that a row of "
                "attention sees (padding), torch gives 0 and this a mean; if there is no such row, report it")
        return (("", text),)

    def step(self, name: str) -> int:
        """1 if the next sizes are right; else the smallest step from the example at which they are."""
        own = self.sizes[name]
        if self._near(name, 1):
            return 1
        for step in range(2, _LARGEST_STEP + 1):
            if own % step == 0 and self._near(name, step):
                return step
        return 1  # the caller finds out what is wrong

    def _near(self, name: str, step: int) -> bool:
        """Whether two steps from the example, to a larger or a smaller size, are right."""
        (low, high), own = limits_of(self.model.graph)[name], self.sizes[name]
        sizes = [own + k * step for k in (1, 2) if high is None or own + k * step <= high]
        sizes = sizes or [own - k * step for k in (1, 2) if own - k * step >= low]
        return all(self.at({**self.sizes, name: size}) is None for size in sizes)

    def lowest(self, name: str, low: int) -> int:
        """The smallest size that is right, of the few smallest that torch.export allows (it never tries 1)."""
        for size in range(low, min(low + 4, self.sizes[name])):
            if self.at({**self.sizes, name: size}) is None:
                return size
        return min(self.sizes[name], low + 4)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _alike(wanted: Any, got: Any, close: Callable[[Tensor, Tensor], bool]) -> bool:
    xs, ys = ([v for v in leaves(value) if isinstance(v, Tensor)] for value in (wanted, got))
    return len(xs) == len(ys) and all(_close(x, y, close) for x, y in zip(xs, ys, strict=True))


def _close(x: Tensor, y: Tensor, close: Callable[[Tensor, Tensor], bool]) -> bool:
    if x.shape != y.shape or not x.is_floating_point():
        return x.shape == y.shape and torch.equal(x, y)
    known = torch.isfinite(x) & torch.isfinite(y)
    return not bool(known.any()) or close(x[known], y[known])


def _near(x: Tensor, y: Tensor) -> bool:
    return float((x - y).abs().max()) <= _TOLERANCE * float(x.abs().max()) + 1e-6


def _near_by_norm(x: Tensor, y: Tensor) -> bool:
    return float((x - y).norm()) <= _TOLERANCE_OF_CODES * float(x.norm()) + 1e-6


def _limited(model: FloatModel, found: Mapping[str, list[int | None]]) -> FloatModel:
    nodes = []
    for node in model.graph:
        own = {n: found[n] for d in node.shape for n in sorted(symbols_of(d)) if n in found}
        nodes.append(node.with_attrs(limits=own) if own and node.op == "input" else node)
    return replace(model, graph=replace(model.graph, nodes=tuple(nodes)))
