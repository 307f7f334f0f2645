"""Parameters of an edge from a batch that every process has a part of."""

from __future__ import annotations

from torch import Tensor

from intact import dist
from intact.observers import Observer, make_observer
from intact.types import Free, QParams

__all__ = ["first_guess", "of_all_processes"]


def first_guess(x: Tensor, spec: Free, where: str) -> QParams:
    """What calibration on this one batch (of all processes) would find."""
    # of one batch an average is its extremes, but averages of several processes' parts are not those of the whole
    name = "minmax" if spec.observer == "moving_average" else spec.observer
    observer = make_observer(name)
    observer.update(x.cpu(), where=where)
    return of_all_processes(observer, name).qparams(spec, where=where)


def of_all_processes(observer: Observer, name: str) -> Observer:
    """What all processes have seen together."""
    if dist.world_size() == 1:
        return observer
    total = make_observer(name)
    for state in dist.gather(observer.state()):
        other = make_observer(name)
        other.load_state(state)
        total.merge(other)
    return total
