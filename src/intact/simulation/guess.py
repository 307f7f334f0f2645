"""Parameters of an edge from a batch that every process has a part of."""

from __future__ import annotations

from torch import Tensor

from intact import dist
from intact.observers import Observer, make_observer
from intact.types import Free, QParams

__all__ = ["first_guess", "of_all_processes"]


def first_guess(x: Tensor, spec: Free, where: str) -> QParams:
    """What calibration on this one batch (of all processes) would find."""
    observer = make_observer(spec.observer)
    observer.update(x.cpu(), where=where)
    return of_all_processes(observer, spec).qparams(spec, where=where)


def of_all_processes(observer: Observer, spec: Free) -> Observer:
    """What all processes have seen together."""
    if dist.world_size() == 1:
        return observer
    total = make_observer(spec.observer)
    for state in dist.gather(observer.state()):
        other = make_observer(spec.observer)
        other.load_state(state)
        total.merge(other)
    return total
