"""SmoothQuant: outlier channels of activations are taken down before anything is quantized."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from intact.algorithms.smooth_core import Seen, choose
from intact.calibration import batches
from intact.calibration.peek import about_batch
from intact.errors import CalibrationError, IntactError
from intact.graph import FloatModel, Node
from intact.graph.attention import attention_softmaxes
from intact.graph.free import first_samples, sample_axis
from intact.graph.passes import SmoothChannels, transform
from intact.graph.passes.smooth_channels import Site, smoothable
from intact.graph.signature import check_inputs
from intact.graph.tree import first_tensor
from intact.planning import Plan, Recipe
from intact.planning import plan as make_plan
from intact.targets import TargetLike
from intact.types import Free

__all__ = ["smooth", "smooth_attention"]

#: samples that are looked at, and rows that errors are measured on
SAMPLES, ROWS = 32, 256
#: largest share of the error that may be left: what folds away is free, a product has to earn its time; and that of a
#: linear layer and a gate is worth it for real outliers only, as it is not normalised afterwards
_FREE, _PRODUCT = 0.95, 0.6


def smooth(model: FloatModel, data: Iterable[Any], *, plan: Plan | None = None) -> FloatModel:
    """Divide the outlier channels of what linear layers read, and multiply their weights, where that helps.

    For layer norms, and for activation functions of linear layers (GELU). The strength is the one of nine with the
    least error of the layers that read the channels; where none helps, nothing is changed. A layer norm that only
    linear layers read takes the divisors into its weight and bias; elsewhere they are one product in float. The
    model's outputs stay; that is checked on the example inputs.

    Args:
        model: a captured model.
        data: batches as for :func:`intact.calibrate`, of which the first 32 samples are used.
        plan: a plan of the model; what it leaves in float is left alone. By default the default plan.

    Returns:
        The changed model; ``.smoothing`` says what was done.

    Raises:
        CalibrationError: if there is no data.
        CaptureError: if an output would change.

    >>> from intact.graph import capture
    >>> net = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 8))
    >>> net[0].weight.data[3] = 50.0
    >>> x = torch.randn(64, 16)
    >>> smoothed = smooth(capture(net, x), [x])
    >>> len(smoothed.smoothing["0"]["steps"])
    16
    """
    chosen = make_plan(model) if plan is None else plan
    sites = {edge: s for edge, s in smoothable(model).items() if _in_integers(s, chosen)}
    if not sites:
        return model
    found = {}
    for edge, seen in _look(model, data, sites).items():
        site = sites[edge]
        names = [model.graph[r].params["weight"] for r in site.readers]
        spec = chosen.edges[edge]
        assert isinstance(spec, Free)
        steps, copies, left = choose(seen, [model.params[n] for n in names], bool(site.producer), spec.qtype,
                                     chosen.weights[names[0]].qtype)
        if left < (_FREE if site.folds and model.graph[edge].op != "mul" else _PRODUCT):
            found[edge] = {"steps": steps, "copies": copies}
    return transform(model, [SmoothChannels(found)])


def smooth_attention(
    model: FloatModel, data: Iterable[Any], target: TargetLike, recipe: Recipe | None = None
) -> tuple[FloatModel, Iterable[Any]]:
    """A model with attention, smoothed on the first batches, and data that still holds them; others as they are.

    >>> from intact.graph import capture
    >>> fm, batches = capture(torch.nn.Linear(4, 2), torch.randn(3, 4)), [torch.randn(3, 4)]
    >>> smooth_attention(fm, batches, "onnxruntime")[0] is fm
    True
    """
    if model.smoothing or model.hints or not attention_softmaxes(model.graph):
        return model, data
    chosen = make_plan(model, target=target, recipe=recipe)
    iterator, head, samples = iter(data), [], 0
    for item in iterator:
        head.append(item)
        first = first_tensor(item)
        samples += 1 if first is None else first.shape[0]
        if samples >= SAMPLES:
            break
    rest = itertools.chain(head, iterator) if iterator is data else data
    return (smooth(model, head, plan=chosen) if head else model), rest


def _in_integers(site: Site, plan: Plan) -> bool:
    """Whether every reader runs in integers, and the edge itself comes in float."""
    return (all(plan.decisions[r].integer for r in site.readers) and not plan.decisions[site.edge].integer
            and isinstance(plan.edges.get(site.edge), Free))


def _look(model: FloatModel, data: Iterable[Any], sites: Mapping[str, Site]) -> dict[str, Seen]:
    """What the edges hold on the first samples."""
    found: dict[str, Seen] = {}
    left = SAMPLES
    for number, (args, kwargs) in enumerate(batches(data, model.signature.names, "smoothing", False)):
        try:
            given = model.signature.bind(args, kwargs)
            check_inputs(model.graph, given)
        except IntactError as error:
            raise about_batch(error, number, model) from error
        inputs = first_samples(model.graph, given, left)
        count = max((inputs[n.name].shape[axis] for n in model.graph.inputs if (axis := sample_axis(n)) is not None),
                    default=SAMPLES)

        def tap(node: Node, value: Tensor, share: int = ROWS * count // SAMPLES) -> None:
            if node.name in sites:
                _add(found, node.name, value.flatten(0, -2), max(share, 1))

        model.run(inputs, tap)
        left -= count
        if left <= 0:
            break
    if not found:
        raise CalibrationError("there is no data to smooth with", got="0 batches",
                               fix="pass a non-empty iterable; a generator can be consumed only once")
    return found


def _add(found: dict[str, Seen], name: str, rows: Tensor, share: int) -> None:
    low, high = torch.aminmax(rows, dim=0)
    # rows far apart, with a stride that shares no factor with a sequence length
    some = rows[torch.arange(share) * 7919 % len(rows)] if len(rows) > share else rows
    if name not in found:
        found[name] = Seen(low, high)
    seen = found[name]
    seen.low, seen.high = torch.minimum(seen.low, low), torch.maximum(seen.high, high)
    seen.rows.append(some.clone())
