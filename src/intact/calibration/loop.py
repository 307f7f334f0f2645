"""The calibration loop: one float pass over the data, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from intact import dist
from intact.calibration.collect import Collector
from intact.calibration.peek import about_batch
from intact.calibration.reservoir import Reservoir
from intact.errors import CalibrationError, IntactError, NonFiniteError
from intact.graph import FloatModel, Node
from intact.graph.signature import split_batch
from intact.simulation import QFloatModel
from intact.simulation.guess import of_all_processes
from intact.types.dims import resolve_shape

__all__ = ["batches", "calibrate", "items", "label_of"]


def calibrate(qfloat: QFloatModel, data: Iterable[Any], *, progress: bool | None = None) -> QFloatModel:
    """Observe one float pass over ``data``, then fix every parameter.

    Args:
        qfloat: a prepared model; calibrated in place. A model that is calibrated already starts anew.
        data: batches: tensors, tuples (inputs first), or dicts by input name.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        The same model.

    Raises:
        CalibrationError: if there is no data or a batch does not fit the model.
        NonFiniteError: naming the module and the batch in which a NaN or an infinity first appears.

    >>> import torch
    >>> from intact.graph import capture
    >>> from intact.planning import plan
    >>> from intact.simulation import prepare
    >>> fm = capture(torch.nn.Linear(3, 2), torch.zeros(2, 3))
    >>> calibrate(prepare(fm, plan(fm)), [torch.randn(8, 3)]).calibrated
    True
    """
    if not isinstance(qfloat, QFloatModel):
        raise CalibrationError("calibrate takes a prepared model", got=type(qfloat).__name__,
                               fix="call intact.prepare(fm, plan) first")
    qfloat.reset_observers()
    model, seen = qfloat.float_model, 0
    reservoir = Reservoir(model.graph, samples_for(model))
    for args, kwargs in batches(data, model.signature.names, "calibrating", progress):
        try:
            inputs = model.signature.bind(args, kwargs)
            _observe(qfloat, model, inputs, seen)
            reservoir.add(inputs)
        except NonFiniteError:
            raise
        except IntactError as error:
            raise about_batch(error, seen, model) from error
        seen += 1
    if not seen:
        raise CalibrationError("there is no calibration data", got="0 batches",
                               fix="pass a non-empty iterable; a generator can be consumed only once")
    merge_processes(qfloat)
    qfloat.freeze()
    qfloat.samples = reservoir.samples()
    return qfloat


def merge_processes(qfloat: QFloatModel) -> None:
    """Let every process have the statistics of all: the same parameters as one process with all the data."""
    if dist.world_size() == 1:
        return
    dist.check_same("plan", qfloat.plan_text())
    for name, observer in qfloat.observers.items():
        observer.load_state(of_all_processes(observer, qfloat.free_spec(name).observer).state())
    for name, (total, count) in qfloat.channel_sums.items():
        both = dist.gather({"total": total, "count": torch.tensor([count])})
        qfloat.channel_sums[name] = (
            torch.stack([b["total"] for b in both]).sum(0), sum(int(b["count"]) for b in both)
        )


def samples_for(model: FloatModel) -> int:
    """How many calibration samples a model keeps, to correct biases and check exports on.

    4 to 32: fewer where samples are large, for the positions of a feature map are samples too.
    """
    values = max((math.prod(resolve_shape(n.shape, model.sample)) for n in model.graph.inputs), default=1)
    return max(4, min(32, (1 << 19) // max(1, values)))


def _observe(qfloat: QFloatModel, model: FloatModel, inputs: Mapping[str, Tensor], number: int) -> None:
    """One batch through the float graph, every observed edge shown to its observer."""
    observe = Collector(qfloat, number)
    try:
        outputs = model.run(inputs, observe)
    except NonFiniteError as error:
        raise _located(model, inputs, number) or error from None
    for value in _tensors(outputs):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            located = _located(model, inputs, number)
            if located is not None:
                raise located


def _located(model: FloatModel, inputs: Mapping[str, Tensor], number: int) -> NonFiniteError | None:
    """The first operation that makes a non-finite value from finite ones."""
    clean: dict[str, bool] = {}
    found: list[NonFiniteError] = []

    def tap(node: Node, value: Tensor) -> None:
        bad = int((~torch.isfinite(value)).sum()) if value.is_floating_point() else 0
        clean[node.name] = not bad
        if bad and all(clean[i] for i in node.inputs) and not found:
            origin = "the input" if node.op == "input" else f"operation {node.op}"
            found.append(NonFiniteError(
                f"NaN or infinity from {origin}", where=node.path or node.name, got=f"{bad} values in batch {number}",
                fix="mend the data or this module"))

    model.run(inputs, tap)
    return found[0] if found else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def items(data: Iterable[Any], title: str, progress: bool | None) -> Iterator[Any]:
    """Batches as the data yields them, with a progress bar on a terminal.

    Raises:
        CalibrationError: if ``data`` is a single tensor's worth of samples or no iterable.
    """
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise CalibrationError("data is not an iterable of batches", where=title, got=type(data).__name__,
                               fix="pass a list of batches, such as [x], or a DataLoader")
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    total = length_hint(data) or None  # a loader over an iterable data set has a __len__ that raises
    with Progress(console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(title, total=total)
        for item in data:
            yield item
            bar.advance(task)


def batches(
    data: Iterable[Any], names: tuple[str, ...], title: str, progress: bool | None
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Batches as arguments; labels are ignored."""
    for item in items(data, title, progress):
        yield split_batch(item, names)


def label_of(item: Any, inputs: int) -> Any:
    """What follows the inputs in a batch; None if nothing does."""
    if not isinstance(item, (tuple, list)) or not item:
        return None
    used = 1 if isinstance(item[0], Mapping) else inputs
    return item[used] if len(item) > used else None
