"""A plain training loop for QFloat models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intact.calibration import items, label_of
from intact.errors import TrainingError
from intact.graph import FloatModel
from intact.graph.signature import split_batch
from intact.simulation import QFloatModel, Schedule
from intact.training.distill import Distill, Teacher, distillation_loss, feature_edges
from intact.training.watch import Watch

__all__ = ["Epoch", "History", "parameter_groups", "train"]

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data gave: mean loss, learning rate at its start, and the validation figure."""

    number: int
    loss: float
    lr: float
    metric: float | None = None

    def __str__(self) -> str:
        figure = "" if self.metric is None else f"  metric {self.metric:.4f}"
        return f"epoch {self.number:3d}  loss {self.loss:.4f}  lr {self.lr:.2e}{figure}"


@dataclass
class History:
    """Epochs in order."""

    epochs: list[Epoch] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.epochs))


def parameter_groups(qfloat: QFloatModel, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for an optimizer: weights decay; biases, batch norms and the gains of learned scales do not.

    Args:
        qfloat: a calibrated model.
        lr: learning rate.
        weight_decay: of parameters with more than one axis.

    >>> import torch, intact
    >>> fm = intact.capture(torch.nn.Linear(3, 4), torch.zeros(2, 3))
    >>> len(parameter_groups(intact.prepare(fm, intact.plan(fm)), 1e-3))
    2
    """
    quantizers = [*qfloat.edge_quantizers.values(), *qfloat.weight_quantizers.values()]
    learned = {id(p) for q in quantizers for p in q.parameters()}
    decays = [p.ndim > 1 and id(p) not in learned for p in qfloat.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p, d in zip(qfloat.parameters(), decays, strict=True) if d == wanted], "lr": lr,
         "weight_decay": weight_decay if wanted else 0.0}
        for wanted in (True, False)
    ]
    return [g for g in groups if g["params"]]


def train(
    qfloat: QFloatModel,
    data: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float | None = None,
    weight_decay: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    distill: Distill | bool | None = None,
    teacher: FloatModel | nn.Module | None = None,
    schedule: Schedule | None = None,
    validate: Callable[[QFloatModel], float] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool | None = None,
) -> History:
    """Train a calibrated QFloat model, in place; it is left in evaluation mode, ready to convert.

    Args:
        qfloat: from :func:`intact.prepare` and :func:`intact.calibrate`.
        data: batches for every epoch anew (a DataLoader, a list): inputs, or (inputs, labels).
        epochs: passes over the data.
        lr: learning rate at the start, 1e-3 by default; it falls to zero along half a cosine. An optimizer has its own.
        weight_decay: of weights.
        optimizer: instead of Adam; then its own learning rates are scheduled alike.
        loss: ``loss(outputs, labels)``; by default cross-entropy.
        distill: learn from the float model, with or without labels; True for the defaults.
        teacher: whom to learn from; by default the float model as it is when training starts.
        schedule: when to observe, quantize and freeze; by default the model's own.
        validate: figure of merit of the model in evaluation mode, after every epoch.
        on_epoch: sees every epoch's figures as it ends, with the model in evaluation mode: ``on_epoch=print``, or
            what saves a checkpoint.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        Losses and figures by epoch.

    Raises:
        TrainingError: before the first step for settings that cannot work; later, naming the layer, if the loss is
            not finite or jumps, or a learned scale collapses.
        IntactError: if a batch does not fit the model, or holds what is no number.

    >>> import torch, intact
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    >>> fm = intact.capture(net, x)
    >>> qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), [x])
    >>> len(train(qfloat, [(x, y)], epochs=2).epochs)
    2
    """
    if optimizer is not None and lr is not None:
        raise TrainingError("two learning rates", got=f"lr={lr} and an optimizer", fix="give lr to the optimizer")
    lr = 1e-3 if lr is None else lr
    _check(qfloat, data, epochs, lr)
    _check_optimizer(qfloat, optimizer)
    how = Distill() if distill is True or (distill is None and teacher is not None) else distill or None
    runner = _Runner(qfloat, loss, how, teacher)
    if schedule is not None:
        qfloat.schedule = schedule
    opt = optimizer or torch.optim.Adam(parameter_groups(qfloat, lr, weight_decay))
    batches = _length(data)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(opt, batches * epochs) if batches else None
    history, watch, numbers = History(), Watch(qfloat), count(1)
    for number in range(1, epochs + 1):
        qfloat.train()
        total, seen, began = 0.0, 0, float(opt.param_groups[0]["lr"])
        title = f"epoch {number}/{epochs}"
        for item in items(data, title, progress):
            args, kwargs = split_batch(item, qfloat.input_names)
            value = runner.loss(args, kwargs, label_of(item, len(qfloat.input_names)))
            opt.zero_grad()
            value.backward()
            watch(next(numbers), float(value.detach()), args, kwargs)
            opt.step()
            if falling is not None:
                falling.step()
            total, seen = total + float(value.detach()), seen + 1
        qfloat.eval()
        if not seen:
            raise TrainingError("there is no training data", got=f"0 batches in epoch {number}",
                                fix="pass a list or a DataLoader; a generator can be consumed only once")
        figure = validate(qfloat) if validate is not None else None
        history.epochs.append(Epoch(number, total / seen, began, figure))
        if on_epoch is not None:
            on_epoch(history.epochs[-1])
    return history


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a loader over an iterable data set
        return None


def _check(qfloat: Any, data: Any, epochs: int, lr: float) -> None:
    if not isinstance(qfloat, QFloatModel):
        raise TrainingError("train takes a QFloat model", got=type(qfloat).__name__,
                            fix="call intact.prepare and intact.calibrate first")
    if not qfloat.calibrated:
        raise TrainingError("the model is not calibrated", fix="call intact.calibrate(qfloat, data) before train")
    if not any(p.requires_grad for p in qfloat.parameters()):
        raise TrainingError("every parameter is frozen", got="requires_grad=False, as in the float model",
                            fix="call qfloat.requires_grad_() to train them")
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise TrainingError("training data is not an iterable of batches", got=type(data).__name__,
                            fix="pass a list of (inputs, labels), or a DataLoader")
    if epochs > 1 and iter(data) is data:
        raise TrainingError("a generator lasts for one epoch only", got=f"{epochs} epochs",
                            fix="pass a list or a DataLoader")
    if epochs < 1 or not lr > 0:
        raise TrainingError("nothing would be trained", got=f"epochs={epochs}, lr={lr}", allowed="epochs >= 1, lr > 0")


def _check_optimizer(qfloat: QFloatModel, optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is None:
        return
    own = {id(p) for p in qfloat.parameters()}
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if own.isdisjoint(given):
        raise TrainingError("the optimizer moves no parameter of this model", got=f"{len(given)} parameters of another",
                            fix="make it with qfloat.parameters(), or with intact.parameter_groups(qfloat, lr)")


class _Runner:
    """Forward pass and loss of one batch."""

    def __init__(self, qfloat: QFloatModel, loss: Loss | None, how: Distill | None,
                 teacher: FloatModel | nn.Module | None) -> None:
        self.qfloat, self.how = qfloat, how
        self.of_labels = loss or _cross_entropy
        self.teacher: Teacher | None = None
        self.features: dict[str, float] = {}
        if how is not None:
            self.features = feature_edges(how.features, qfloat.plan.graph)
            self.teacher = Teacher(teacher if teacher is not None else qfloat.float_copy(), self.features)

    def loss(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], labels: Any) -> Tensor:
        """Of labels, of the teacher, or both."""
        seen: dict[str, Tensor] = {}

        def tap(name: str, value: Tensor) -> None:
            if name in self.features:
                seen[name] = value

        self.qfloat.tap = tap if self.features else None
        try:
            outputs = self.qfloat(*args, **kwargs)
        finally:
            self.qfloat.tap = None
        total: Tensor | None = None
        weight = 1.0 - self.how.weight if self.how is not None else 1.0
        if labels is not None and weight > 0.0:
            total = self.of_labels(outputs, labels) * weight
        if self.teacher is not None and self.how is not None:
            theirs, wanted = self.teacher(args, kwargs)
            taught = distillation_loss(self.how, outputs, theirs, seen, wanted, self.features)
            total = taught if total is None else total + taught
        if total is None:
            raise TrainingError("there is nothing to learn from", got="batches without labels, no distillation",
                                fix="give (inputs, labels), or pass distill=True")
        return total


def _cross_entropy(outputs: Any, labels: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or not isinstance(labels, Tensor):
        raise TrainingError("cross-entropy needs one tensor of logits and one of labels",
                            got=f"{type(outputs).__name__}, {type(labels).__name__}", fix="pass loss=")
    return F.cross_entropy(outputs, labels)
