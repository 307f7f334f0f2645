"""Float model and integer model side by side on data: one pass, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intact.analysis.lint import lint
from intact.analysis.metrics import Accuracy, Agreement, Cosine, Mean, Sqnr
from intact.analysis.probe import Meters, Probe
from intact.analysis.repeat import as_quantized
from intact.analysis.report import Error, Latency, Metric, Output, Report, Site, Sizes
from intact.calibration import items, label_of
from intact.engine import QModel
from intact.errors import CalibrationError, IntactError, NonFiniteError
from intact.graph import FloatModel
from intact.graph.capture import capture
from intact.graph.dynamic import dynamic_of
from intact.graph.ir import Node, fill_template
from intact.graph.passes import repeated_passes, transform
from intact.graph.signature import check_inputs, samples_in, split_batch

__all__ = ["compare_models"]

MetricFunction = Callable[[Any, Any], float]

#: every layer is looked at alone on the first samples, and then on a share of the batches, spread over the data:
#: that costs several passes, and the ratios are settled after a few hundred samples
_ALONE_SAMPLES = 256
_ALONE_SHARE = 1 / 16


def compare_models(
    net: nn.Module | FloatModel,
    q: QModel,
    data: Iterable[Any],
    *,
    metric: MetricFunction | None = None,
    latency: Latency | None = None,
    sizes: Sizes | None = None,
    progress: bool | None = None,
) -> Report:
    """Compare a float model with its integer model: quality, outputs, and the error of every layer.

    Args:
        net: the module that was quantized; other weights are fine, another structure is not. Or a captured float
            model, where the module was transformed before it was quantized.
        q: the integer model.
        data: batches: tensors, tuples (inputs first; what follows is the label), or dicts by input name.
        metric: ``metric(outputs, labels)`` gives a number for a batch, averaged over samples; without labels it gets
            the batch as ``data`` yields it. By default top-1 accuracy, where labels are 1-d integers and the output
            is one tensor (N, C); else no metric.
        latency: measured elsewhere, to be part of the report.
        sizes: measured elsewhere, to be part of the report.
        progress: show a progress bar; by default only on a terminal.

    Returns:
        The report.

    Raises:
        CaptureError: if ``net`` cannot be captured.
        CalibrationError: if there is no data or a batch does not fit the model.
        NonFiniteError: naming the site and the batch in which the float model is not finite.
        IntactError: if ``net`` is another model than ``q`` was made from, or the metric gives no finite number.

    >>> from intact.api import quantize
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> x = torch.randn(64, 8)
    >>> report = compare_models(net, quantize(net, [x]), [(x, net(x).argmax(1))])
    >>> report.samples, report.metric.name, report.metric.float_value
    (64, 'top-1 accuracy', 1.0)
    """
    if not isinstance(q, QModel):
        raise IntactError("compare takes the integer model second", got=type(q).__name__, allowed="QModel")
    names, comparison = q.signature.names, None
    for number, item in enumerate(items(data, "comparing", progress)):
        args, kwargs = split_batch(item, names)
        if comparison is None:
            comparison = _Comparison(_float_model(net, q, args or kwargs), q, metric)
        try:
            comparison.update(q.signature.bind(args, kwargs), item, number)
        except NonFiniteError:
            raise
        except IntactError as error:
            raise CalibrationError(f"batch {number}: {error.what}", where=error.where, got=error.got,
                                   allowed=error.allowed, fix=error.fix) from error
    if comparison is None:
        raise CalibrationError("there is no data to compare on", got="0 batches",
                               fix="pass a non-empty iterable; a generator can be consumed only once")
    return comparison.report(latency, sizes)


class _Comparison:
    """Everything that is added up over batches."""

    def __init__(self, model: FloatModel, q: QModel, metric: MetricFunction | None) -> None:
        self.q, self.probe, self.samples, self.alone = q, Probe(model, q), 0, 0
        self.outputs = {edge: _OutputMeters() for edge in q.graph.outputs}
        self.score = _Score(q, metric)

    def update(self, inputs: Mapping[str, Tensor], item: Any, number: int) -> None:
        samples = samples_in(self.q.graph, check_inputs(self.q.graph, inputs))
        alone = self.alone < max(_ALONE_SAMPLES, self.samples * _ALONE_SHARE)
        right, found = self.probe.run(inputs, number, alone=alone)
        if number == 0:
            self._check_carrier(inputs, found)
        for edge, meters in self.outputs.items():
            meters.update(right[edge], found[edge], samples)
        self.score.update(right, found, item, samples)
        self.samples += samples
        self.alone += samples if alone else 0

    def _check_carrier(self, inputs: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        """The integer engine itself gives what is measured here."""
        engine = self.q.program.values(inputs, integer=True)
        for edge in self.outputs:
            if not torch.equal(torch.nan_to_num(engine[edge]), torch.nan_to_num(found[edge])):
                raise IntactError("the integer engine and its simulation differ", where=edge, fix="report this model")

    def report(self, latency: Latency | None, sizes: Sizes | None) -> Report:
        q = self.q
        names = {edge: name for name, edge in _places(q.graph.output)}
        sites = tuple(_site(node, self.probe.meters[node.name], q) for node in q.graph
                      if node.name in self.probe.meters)
        coverage = q.info.get("coverage") or {}
        macs = coverage.get("macs")
        return Report(
            target=q.target.name, samples=self.samples, own_samples=self.alone, metric=self.score.result(),
            latency=latency, sizes=sizes,
            outputs=tuple(meters.result(names[edge], edge) for edge, meters in self.outputs.items()),
            sites=sites, findings=lint(q, sites, latency, sizes),
            integer_macs=coverage["integer_macs"] / macs if macs else None,
        )


class _OutputMeters:
    """Likeness of one output."""

    def __init__(self) -> None:
        self.sqnr, self.cosine = Sqnr(), Cosine()
        self.agreement: Agreement | None = None

    def update(self, right: Tensor, found: Tensor, samples: int) -> None:
        if _are_scores(right, samples):
            self.agreement = self.agreement or Agreement()
            self.agreement.update(right, found)
        if not right.is_floating_point():
            right, found = right.to(torch.float64), found.to(torch.float64)
        self.sqnr.update(right, found)
        self.cosine.update(right, found)

    def result(self, name: str, edge: str) -> Output:
        agreement = None if self.agreement is None else self.agreement.value
        return Output(name, edge, Error.of(self.sqnr), self.cosine.value, agreement)


class _Score:
    """The metric of both models."""

    def __init__(self, q: QModel, metric: MetricFunction | None) -> None:
        self.q, self.metric = q, metric
        self.name = "top-1 accuracy" if metric is None else getattr(metric, "__name__", type(metric).__name__)
        self.accuracies = Accuracy(), Accuracy()
        self.means = Mean(), Mean()
        self.seen = False

    def update(self, right: Mapping[str, Tensor], found: Mapping[str, Tensor], item: Any, samples: int) -> None:
        labels = label_of(item, len(self.q.signature.names))
        if self.metric is not None:
            for mean, values in zip(self.means, (right, found), strict=True):
                outputs = fill_template(self.q.graph.output, values)
                mean.update(self._number(self.metric(outputs, item if labels is None else labels)), samples)
            self.seen = True
        elif _are_classes(labels) and len(right) == 1:
            (edge,) = right
            if _are_scores(right[edge], samples):
                if len(labels) != samples:
                    raise IntactError("there are more or fewer labels than samples", got=len(labels), allowed=samples)
                for accuracy, values in zip(self.accuracies, (right, found), strict=True):
                    accuracy.update(values[edge], labels)
                self.seen = True

    def _number(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise IntactError("the metric gives no number", where=self.name, got=type(value).__name__,
                              fix="return one float for the batch") from None
        if not math.isfinite(number):
            raise IntactError("the metric gives no finite number", where=self.name, got=number)
        return number

    def result(self) -> Metric | None:
        if not self.seen:
            return None
        float_side, integer_side = self.accuracies if self.metric is None else self.means
        return Metric(self.name, float_side.value, integer_side.value)


def _float_model(net: nn.Module | FloatModel, q: QModel, example: Any) -> FloatModel:
    """The captured float model, whose edges must be those of ``q``."""
    model = net if isinstance(net, FloatModel) else transform(
        capture(net, example, dynamic_of(q.graph.inputs, q.signature)),
        repeated_passes(q.info.get("equalization", {})))
    model = as_quantized(model, q)
    mine, theirs = list(model.graph), list(q.graph)
    for a, b in zip(mine, theirs, strict=False):
        if (a.name, a.op, a.inputs, a.shape) != (b.name, b.op, b.inputs, b.shape):
            raise _other_model(f"{a.name} ({a.op}, shape {a.shape})", f"{b.name} ({b.op}, shape {b.shape})", b.path)
    if len(mine) != len(theirs) or model.graph.outputs != q.graph.outputs:
        raise _other_model(f"{len(mine)} operations", f"{len(theirs)} operations", "")
    return model


def _other_model(got: str, allowed: str, where: str) -> IntactError:
    return IntactError("the float model has another structure than the integer model was made from", where=where,
                       got=got, allowed=allowed,
                       fix="pass the module that was quantized (its weights may differ), or the captured float model")


def _are_classes(labels: Any) -> bool:
    """Integer class labels of shape (N,)."""
    return isinstance(labels, Tensor) and labels.ndim == 1 and not (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _are_scores(output: Tensor, samples: int) -> bool:
    """Scores of shape (N, C) for N samples."""
    return output.is_floating_point() and output.ndim == 2 and len(output) == samples and output.shape[1] > 1


def _places(template: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Place in the user's output structure, and edge."""
    kind = template["kind"]
    if kind == "edge":
        yield place, template["name"]
    elif kind in ("tuple", "list"):
        for i, item in enumerate(template["items"]):
            yield from _places(item, f"{place}[{i}]")
    elif kind == "dict":
        for key, item in template["items"].items():
            yield from _places(item, f"{place}[{key!r}]")


def _site(node: Node, m: Meters, q: QModel) -> Site:
    """What was added up, as findings."""
    qparams = q.qparams[node.name]
    dead = code_low = code_high = None
    if not qparams.scale.ndim and qparams.qtype.bits != 32:
        scale, zero, t = float(qparams.scale), int(qparams.zero_point), qparams.qtype
        code_low, code_high = (t.qmin - zero) * scale, (t.qmax - zero) * scale
        if m.code_low is not None and m.code_high is not None:
            dead = 1.0 - (m.code_high - m.code_low + 1) / (t.qmax - t.qmin + 1)
    low, high = (m.low, m.high) if m.total.count else (0.0, 0.0)
    return Site(
        edge=node.name, path=node.path, op=node.op, integer=node.name in q.bindings, total=Error.of(m.total),
        own=Error.of(m.own), added=Error.of(m.added), weight=None if m.weight is None else Error.of(m.weight),
        activation=None if m.activation is None else Error.of(m.activation),
        clipped=m.clipped / max(1, m.total.count), dead=dead, low=low, high=high, code_low=code_low,
        code_high=code_high,
    )
