"""FloatModel + Plan -> QFloatModel."""

from __future__ import annotations

from intact.errors import PlanError
from intact.graph import FloatModel
from intact.graph.masks import masks_as_operands
from intact.planning import Plan
from intact.simulation.hints import trained_edges, trained_weights
from intact.simulation.qfloat import QFloatModel
from intact.simulation.schedule import Schedule

__all__ = ["prepare"]


def prepare(model: FloatModel, plan: Plan, *, schedule: Schedule | None = None) -> QFloatModel:
    """The model with an observer on every edge that needs its own parameters.

    Ranges that layers of :mod:`intact.nn` have trained are where it starts: calibration keeps those of what they read,
    and finds the others. If they are all there are, the model can be converted as it is.

    Args:
        model: a captured model; not changed, its parameters are copied.
        plan: a plan of this very model.
        schedule: when training observes, quantizes and freezes; by default from the first step, and never.

    Returns:
        The model in evaluation mode.

    Raises:
        PlanError: if the plan is of another model.

    >>> import torch
    >>> from intact.graph import capture
    >>> from intact.planning import plan
    >>> fm = capture(torch.nn.Linear(3, 2), torch.zeros(2, 3))
    >>> prepare(fm, plan(fm)).calibrated
    False
    """
    if not isinstance(model, FloatModel):
        raise PlanError("prepare takes a captured model", got=type(model).__name__,
                        fix="call intact.capture(model, example_inputs) first")
    if plan.graph != model.graph:  # a plan for integers alone has masks as operands
        model = masks_as_operands(model)
    if plan.graph != model.graph:
        raise PlanError("the plan was made for another model", got=f"a plan of {len(plan.graph.nodes)} nodes",
                        allowed=f"a plan of these {len(model.graph.nodes)} nodes", fix="plan this model")
    qfloat = QFloatModel(model, plan, schedule)
    read, made = trained_edges(model, plan)
    if read or made:
        qfloat.start(read, made, trained_weights(model, plan))
    return qfloat
