"""Float, QFloat, Q: the three stages under the names of MegEngine, over the same planner and quantizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from intact.api import as_captured
from intact.errors import PlanError, TrainingError
from intact.graph import FloatModel
from intact.graph.dynamic import Dynamic
from intact.planning import FLOAT, Quant, Recipe, Rule, lowered, path, plan
from intact.planning.recipe import Float, match_rules
from intact.simulation import QFloatModel, prepare
from intact.simulation.quantizer import EdgeQuantizer
from intact.simulation.weight_quantizer import WeightQuantizer
from intact.targets import TargetLike
from intact.types import Granularity, PerChannel, QType, qtype

__all__ = [
    "QConfig",
    "calibration_qconfig",
    "disable_fake_quant",
    "disable_observer",
    "disable_quantize",
    "easyquant_qconfig",
    "ema_fakequant_qconfig",
    "ema_lowbit_fakequant_qconfig",
    "enable_fake_quant",
    "enable_observer",
    "lsq_qconfig",
    "min_max_fakequant_qconfig",
    "passive_qconfig",
    "quantize_qat",
    "reset_qconfig",
    "sync_ema_fakequant_qconfig",
    "tqt_qconfig",
]

_PER_CHANNEL = PerChannel(0)


@dataclass(frozen=True)
class QConfig:
    """How layers are quantized while they train.

    Args:
        weight_observer: ``"minmax"``, ``"mse"``, ``"auto"``; ``"passive"``: the scale of the start is kept.
        act_observer: a registered observer; ``"passive"``: the range of the start (from calibration, the first batch,
            or ``qfloat.edge_quantizers[name].initialise(qparams)``) is kept.
        weight_fake_quant: ``"observed"``, ``"lsq"``, ``"lsq+"``, ``"tqt"``, ``"dorefa"``; ``None``: switched off until
            :func:`enable_fake_quant`.
        act_fake_quant: the same, and ``"pact"`` and ``"gathered"``; ``None``: switched off, and one range is searched
            over all that is seen until it is switched on.
        weight_dtype: signed, by name or value. Symmetric codes never use the lowest one: [-127, 127].
        act_dtype: ``quint*`` are affine, ``qint*`` symmetric. The codes are unsigned: symmetric ones have their zero
            point in the middle, and at the bottom where there are no negative values.
        weight_granularity: ``PerChannel(0)`` or ``PerTensor()``.

    Raises:
        PlanError: for what is not there.

    >>> QConfig(weight_dtype="qint4", act_dtype="quint8").quant.weight_bits
    4
    """

    weight_observer: str = "minmax"
    act_observer: str = "moving_average"
    weight_fake_quant: str | None = "observed"
    act_fake_quant: str | None = "observed"
    weight_dtype: str | QType = "qint8_narrow"
    act_dtype: str | QType = "qint8"
    weight_granularity: Granularity = _PER_CHANNEL

    def __post_init__(self) -> None:
        weight, act = qtype(self.weight_dtype), qtype(self.act_dtype)
        if not weight.signed or weight.bits > 16:
            raise PlanError("weights need a signed dtype", where="weight_dtype", got=str(weight),
                            allowed="qint8_narrow, qint8, qint4")
        if act.narrow or act.bits > 16:
            raise PlanError("activations have no such dtype", where="act_dtype", got=str(act),
                            allowed="quint8, qint8, quint4, qint4")
        for name in ("weight", "act"):
            if getattr(self, f"{name}_observer") == "passive" and getattr(self, f"{name}_fake_quant") not in (
                    "observed", None):
                raise PlanError("a passive observer and learned parameters contradict each other", where=name,
                                got=getattr(self, f"{name}_fake_quant"), allowed="'observed'")
        _ = self.quant  # refuses unknown names

    @property
    def quant(self) -> Quant:
        """The same as the recipe says it."""
        weight, act = qtype(self.weight_dtype), qtype(self.act_dtype)
        passive = self.weight_observer == "passive"
        observer: Any = "minmax" if passive else self.weight_observer
        return Quant(
            weight_bits=weight.bits, activation_bits=act.bits, weight_granularity=self.weight_granularity,
            activation_symmetric=act.signed, weight_observer=observer,
            activation_observer="mse" if self.act_observer == "passive" else self.act_observer,
            weight_quantizer="passive" if passive else self.weight_fake_quant or "observed",
            activation_quantizer=self.act_fake_quant or "gathered",
        )


#: everything that was seen
min_max_fakequant_qconfig = QConfig(act_observer="minmax")
#: weights by their extremes, activations by averaged extremes
ema_fakequant_qconfig = QConfig()
ema_lowbit_fakequant_qconfig = QConfig(weight_dtype="qint4", act_dtype="qint4")
#: the ranges of several processes are always those of their common batch: the same as ``ema_fakequant_qconfig``
sync_ema_fakequant_qconfig = QConfig()
#: no fake quantization: ranges are searched in the histogram of all that is seen until ``enable_fake_quant``
calibration_qconfig = QConfig(act_observer="mse", weight_fake_quant=None, act_fake_quant=None)
#: trained thresholds: scales are powers of two
tqt_qconfig = QConfig("auto", "mse", "tqt", "tqt")
#: learned step sizes
lsq_qconfig = QConfig("auto", "mse", "lsq", "lsq")
#: parameters are given, and stay
passive_qconfig = QConfig("passive", "passive")
#: activations by cosine, between 0.8 and 1.2 times the scale of the extremes; weights by least squares
easyquant_qconfig = QConfig("mse", "easyquant", "observed", "gathered")

Mapped = Mapping[str, QConfig | None]


def quantize_qat(
    model: nn.Module | FloatModel | ExportedProgram,
    qconfig: QConfig = ema_fakequant_qconfig,
    *,
    example_inputs: Any = None,
    target: TargetLike = "onnxruntime",
    mapping: Mapped | None = None,
    recipe: Recipe | None = None,
    dynamic: Dynamic | None = None,
) -> QFloatModel:
    """Float to QFloat: a model in training mode, whose ranges start from calibration or from its first batch.

    Args:
        model: an unmodified module (not changed), or what :func:`intact.capture` gave.
        qconfig: for everything that nothing else is said about.
        example_inputs: a batch to capture a module with.
        target: the runtime.
        mapping: module path (glob) to another config; ``None`` for float.
        recipe: rules that come before ``mapping``; its default is not used.
        dynamic: axes besides the batch that stay free, as for :func:`intact.capture`.

    Returns:
        The QFloat model. With ``calibration_qconfig`` its batch norms are frozen, so that passes in training mode only
        observe. :func:`intact.quantize` makes it Q.

    Raises:
        CaptureError, PlanError: as for :func:`intact.quantize`.

    >>> import torch, intact
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> qfloat = quantize_qat(net, ema_fakequant_qconfig, example_inputs=torch.zeros(2, 3))
    >>> loss = qfloat(torch.randn(16, 3)).square().mean()
    >>> loss.backward()
    >>> intact.quantize(qfloat)(torch.randn(5, 3)).shape
    torch.Size([5, 2])
    """
    fm = as_captured(model, example_inputs, dynamic)
    return _prepared(lowered(fm, target), qconfig, target, mapping or {}, recipe or Recipe()).train()


def reset_qconfig(
    qfloat: QFloatModel, qconfig: QConfig, *, mapping: Mapped | None = None, recipe: Recipe | None = None
) -> QFloatModel:
    """The model with another config: a new plan and new quantizers, copies of the present parameters.

    Args:
        qfloat: a QFloat model, which is not changed.
        qconfig: the new config.
        mapping: as for :func:`quantize_qat`.
        recipe: likewise.

    Returns:
        A new QFloat model in the same mode, not calibrated; give its parameters to a new optimizer.

    >>> import torch
    >>> qfloat = quantize_qat(torch.nn.Linear(3, 2), example_inputs=torch.zeros(2, 3))
    >>> reset_qconfig(qfloat, lsq_qconfig).plan.recipe.default.weight_quantizer
    'lsq'
    """
    _check(qfloat, "reset_qconfig")
    fm = replace(qfloat.float_model, hints={})  # what layers said before is what the new config replaces
    new = _prepared(fm, qconfig, qfloat.plan.target, mapping or {}, recipe or Recipe())
    new.schedule = qfloat.schedule
    return new.train(qfloat.training)


def _prepared(fm: FloatModel, qconfig: QConfig, target: TargetLike, mapping: Mapped, recipe: Recipe) -> QFloatModel:
    rules = [Rule(path(p), FLOAT if c is None else c.quant) for p, c in mapping.items()]
    wish = replace(recipe, rules=(*recipe.rules, *rules), default=qconfig.quant)
    qfloat = prepare(fm, plan(fm, target, wish))
    configs = dict.fromkeys(fm.graph.index, qconfig)
    for pattern, config in reversed(list(mapping.items())):
        configs.update((name, config or qconfig) for name in _matched(qfloat, pattern))
    users = fm.graph.consumers()
    for name, quantizer in qfloat.edge_quantizers.items():
        readers = [u.name for u in users[name] if qfloat.plan.decisions[u.name].integer]
        config = configs[readers[0] if readers else name]
        quantizer.observing = config.act_observer != "passive"
        quantizer.enabled = config.act_fake_quant is not None
    for node in fm.graph:
        weights = qfloat.weight_quantizers.get(node.params.get("weight", ""))
        if weights is not None:
            weights.enabled = configs[node.name].weight_fake_quant is not None
    if qconfig.act_fake_quant is None:
        qfloat.freeze_batch_norm()
    return qfloat


# -- switches ---------------------------------------------------------------------------------------


def enable_observer(qfloat: QFloatModel, where: str | None = None) -> None:
    """Let ranges follow the data: in training mode, and (until the mode is set again) in evaluation mode as well.

    Args:
        qfloat: changed in place.
        where: a module path (glob) whose results are meant; by default all.

    Raises:
        PlanError: if the pattern matches nothing that is quantized; names the nearest paths.

    >>> import torch
    >>> qfloat = quantize_qat(torch.nn.Linear(3, 2), calibration_qconfig, example_inputs=torch.zeros(2, 3)).eval()
    >>> enable_observer(qfloat)
    >>> _ = qfloat(torch.randn(8, 3))
    >>> enable_fake_quant(qfloat)
    >>> qfloat.exact
    True
    """
    for quantizer in _edges(qfloat, where, "enable_observer"):
        quantizer.observing, quantizer.watching = True, not qfloat.training


def disable_observer(qfloat: QFloatModel, where: str | None = None) -> None:
    """Hold the ranges of activations still, in every mode; scales of weights still follow the weights.

    Args:
        qfloat: changed in place.
        where: a module path (glob) whose results are meant; by default all.

    Raises:
        PlanError: if the pattern matches nothing that is quantized; names the nearest paths.

    >>> import torch
    >>> qfloat = quantize_qat(torch.nn.Linear(3, 2), example_inputs=torch.zeros(2, 3))
    >>> disable_observer(qfloat)
    >>> any(q.observing for q in qfloat.edge_quantizers.values())
    False
    """
    for quantizer in _edges(qfloat, where, "disable_observer"):
        quantizer.observing = quantizer.watching = False


def enable_fake_quant(qfloat: QFloatModel, where: str | None = None) -> None:
    """Put values and weights on the grids of their codes, as the integer model does.

    Args:
        qfloat: changed in place.
        where: a module path (glob) whose weights and results are meant; by default all.

    Raises:
        PlanError: if the pattern matches nothing that is quantized; names the nearest paths.

    >>> import torch
    >>> qfloat = quantize_qat(torch.nn.Linear(3, 2), calibration_qconfig, example_inputs=torch.zeros(2, 3))
    >>> enable_fake_quant(qfloat)
    >>> all(q.enabled for q in qfloat.edge_quantizers.values())
    True
    """
    _switch(qfloat, where, True, "enable_fake_quant")


def disable_fake_quant(qfloat: QFloatModel, where: str | None = None) -> None:
    """Compute in float; such a model is not converted until :func:`enable_fake_quant`.

    Args:
        qfloat: changed in place.
        where: a module path (glob) whose weights and results are meant; by default all.

    Raises:
        PlanError: if the pattern matches nothing that is quantized; names the nearest paths.

    >>> import torch
    >>> net, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    >>> qfloat = quantize_qat(net, example_inputs=x)
    >>> disable_fake_quant(qfloat)
    >>> torch.equal(qfloat(x), net(x))
    True
    """
    _switch(qfloat, where, False, "disable_fake_quant")


def disable_quantize(qfloat: QFloatModel, where: str | None = None) -> QFloatModel:
    """Leave modules in float for good: they are planned anew, and what is known of the others is kept.

    Args:
        qfloat: a QFloat model, which is not changed.
        where: a module path (glob); by default the whole model.

    Returns:
        A new QFloat model in the same mode; give its parameters to a new optimizer.

    Raises:
        PlanError: if the pattern matches nothing; names the nearest paths.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> qfloat = disable_quantize(quantize_qat(net, example_inputs=torch.zeros(2, 3)), "2")
    >>> [(r.path, r.reason) for r in qfloat.plan.rejections]
    [('2', "the recipe says float (path('2'))")]
    """
    _check(qfloat, "disable_quantize")
    recipe, graph = qfloat.plan.recipe, qfloat.plan.graph
    if where is None:
        recipe = replace(recipe, rules=(), default=FLOAT)
    else:
        gone = _matched(qfloat, where)
        left = [r for r in recipe.rules if any(r.where.contains(n, graph) for n in graph if n.name not in gone)]
        recipe = replace(recipe, rules=(Rule(path(where), FLOAT), *left))
    fm = qfloat.float_model
    new = prepare(fm, plan(fm, qfloat.plan.target, recipe), schedule=qfloat.schedule)
    new.adopt(qfloat)
    return new.train(qfloat.training)


def _switch(qfloat: QFloatModel, where: str | None, value: bool, verb: str) -> None:
    quantizers: list[EdgeQuantizer | WeightQuantizer] = [*_edges(qfloat, where, verb), *_weights(qfloat, where)]
    for quantizer in quantizers:
        quantizer.enabled = value


def _edges(qfloat: QFloatModel, where: str | None, verb: str) -> list[EdgeQuantizer]:
    """Quantizers of what the modules make.

    Raises:
        PlanError: if nothing of them is quantized.
    """
    _check(qfloat, verb)
    if where is None:
        return list(qfloat.edge_quantizers.values())
    names = _matched(qfloat, where)
    found = [q for name, q in qfloat.edge_quantizers.items() if name in names]
    if not found and not list(_weights(qfloat, where)):
        raise PlanError("nothing is quantized there", where=f"path({where!r})", got=", ".join(sorted(names)[:3]),
                        fix="print(qfloat.plan) says why")
    return found


def _weights(qfloat: QFloatModel, where: str | None) -> Iterator[WeightQuantizer]:
    names = None if where is None else _matched(qfloat, where)
    for node in qfloat.plan.graph:
        weights = qfloat.weight_quantizers.get(node.params.get("weight", ""))
        if weights is not None and (names is None or node.name in names):
            yield weights


def _matched(qfloat: QFloatModel, pattern: str) -> set[str]:
    """Nodes of the modules; a pattern that matches nothing is an error."""
    rule = Rule(path(pattern), FLOAT)
    chosen = match_rules(Recipe(rules=(rule,)), qfloat.plan.graph, qfloat.float_model.folded)
    return {name for name, how in chosen.items() if isinstance(how, Float)}


def _check(qfloat: QFloatModel, verb: str) -> None:
    if not isinstance(qfloat, QFloatModel):
        raise TrainingError(f"{verb} takes a QFloat model", got=type(qfloat).__name__,
                            fix="call intact.quantize_qat(model) or intact.prepare first")
