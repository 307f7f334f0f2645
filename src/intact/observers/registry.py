"""Observers by name, as recipes and specs call them."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from intact.errors import PlanError
from intact.observers.base import Observer
from intact.observers.easyquant import EasyQuant
from intact.observers.entropy import Entropy
from intact.observers.minmax import MinMax
from intact.observers.moving_average import MovingAverage
from intact.observers.mse import Mse
from intact.observers.percentile import Percentile

__all__ = ["OBSERVERS", "make_observer", "register_observer"]

OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "mse": Mse,
    "percentile": Percentile,
    "entropy": Entropy,
    "easyquant": EasyQuant,
}


def make_observer(name: str) -> Observer:
    """A new observer of the kind ``name``.

    Raises:
        PlanError: if no observer has that name; lists the nearest names.

    >>> make_observer("mse").count
    0
    """
    if name not in OBSERVERS:
        near = difflib.get_close_matches(name, OBSERVERS, n=3, cutoff=0.4) or sorted(OBSERVERS)
        raise PlanError(
            "no observer has this name", got=name, allowed=f"nearest: {', '.join(near)}",
            fix=f"choose one of {', '.join(sorted(OBSERVERS))}, or register_observer() your own",
        )
    return OBSERVERS[name]()


def register_observer(name: str, factory: Callable[[], Observer]) -> None:
    """Make ``factory`` available as ``name`` in specs and recipes.

    Raises:
        PlanError: if the name is taken, or the factory makes no observer.

    >>> register_observer("percentile_99", lambda: Percentile(99.0))
    >>> make_observer("percentile_99").config
    (4096, 99.0)
    >>> del OBSERVERS["percentile_99"]
    """
    if name in OBSERVERS:
        raise PlanError("the name of an observer is taken", got=name, fix="choose another name")
    if not isinstance(factory(), Observer):
        raise PlanError("not a factory of observers", where=name, got=type(factory()).__name__)
    OBSERVERS[name] = factory
