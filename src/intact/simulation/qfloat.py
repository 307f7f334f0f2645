"""The simulated model: float parameters under the user's names, deployed arithmetic in the forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from intact.errors import CalibrationError
from intact.graph import FloatModel, Node
from intact.graph.float_model import run_node
from intact.observers import Observer, make_observer
from intact.planning import Plan
from intact.simulation.bind import Bound, bind
from intact.simulation.program import Program
from intact.types import Fixed, Free, Joined, QParams, Shared

__all__ = ["QFloatModel"]


class QFloatModel(nn.Module):
    """A prepared model: observes in calibration, then simulates the integer model bit for bit.

    Before calibration ``forward`` runs in float. After it, ``forward`` gives what the integer model gives, and
    :meth:`codes` the codes of every edge. Parameters have the user's names in ``state_dict``.
    """

    def __init__(self, model: FloatModel, plan: Plan) -> None:
        super().__init__()
        self._float = model
        self.plan = plan
        for name, value in model.params.items():
            _register(self, name, value.clone())
        self._observers: dict[str, Observer] = {}
        #: edge that a corrected layer reads -> (sum of each channel in float64, number of values summed)
        self.channel_sums: dict[str, tuple[Tensor, int]] = {}
        #: a few calibration samples, by input name
        self.samples: dict[str, Tensor] = {}
        self._bound: Bound | None = None
        self.reset_observers()

    # -- calibration ------------------------------------------------------------------------

    @property
    def calibrated(self) -> bool:
        """True once every edge has its parameters."""
        return self._bound is not None

    @property
    def observers(self) -> Mapping[str, Observer]:
        """Observers by edge name."""
        return self._observers

    @property
    def float_model(self) -> FloatModel:
        """The captured model with this module's current parameters."""
        return self._float.with_graph(self._float.graph, dict(self._tensors()))

    def reset_observers(self) -> None:
        """Forget everything that was observed; the model is uncalibrated after."""
        self._bound = None
        self.channel_sums = {}
        self._observers = {
            name: make_observer(_free(spec).observer)
            for name, spec in self.plan.edges.items()
            if isinstance(spec, (Free, Joined))
        }

    def freeze(self) -> None:
        """Turn what the observers saw into parameters, and the weights into codes.

        Raises:
            CalibrationError: if an observer saw nothing, or a number cannot be expressed.
        """
        self._edges = self._edge_params()
        self._means = {name: total / count for name, (total, count) in self.channel_sums.items()}
        self._shifts: dict[str, Tensor] = {}
        self._bound = bind(self.plan, dict(self._tensors()), self._edges, self._means)

    def shift_biases(self, shifts: Mapping[str, Tensor]) -> None:
        """Take systematic errors (per node and channel) off the biases, and bind anew.

        Raises:
            CalibrationError: before calibration.
        """
        before = self.bound
        self._shifts = {**self._shifts, **{k: self._shifts.get(k, 0.0) + v for k, v in shifts.items()}}
        bound = bind(self.plan, dict(self._tensors()), self._edges, self._means, self._shifts, before.weights)
        self._bound = replace(bound, notes=tuple(dict.fromkeys((*before.notes, *bound.notes))))

    def _edge_params(self) -> dict[str, QParams]:
        found: dict[str, QParams] = {}
        for name, spec in self.plan.edges.items():
            if isinstance(spec, (Free, Joined)):
                observer = self._observers[name]
                if not observer.count:
                    raise CalibrationError("an edge saw no data", where=name, fix="calibrate with data that reaches it")
                found[name] = observer.qparams(_free(spec))
        for name, spec in self.plan.edges.items():
            if isinstance(spec, Joined) and _joins(found[name], found[spec.group], spec):
                found[name] = found[spec.group]
        for node in self.plan.graph:  # sources come before those that share with them
            edge = self.plan.edges.get(node.name)
            if isinstance(edge, Shared):
                found[node.name] = found[edge.source]
            elif isinstance(edge, Fixed):
                found[node.name] = edge.qparams
        return found

    # -- running ----------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The bound kernels.

        Raises:
            CalibrationError: before calibration.
        """
        bound = self.bound

        def step(node: Node, xs: list[Tensor], batch: int) -> Tensor:
            return run_node(model, node, xs, batch)

        model = self.float_model
        return Program(model.graph, model.signature, bound.kernels, bound.qparams, self.plan.target.arithmetic, step)

    @property
    def bound(self) -> Bound:
        """Kernels, parameters of edges, and notes on what was adjusted."""
        if self._bound is None:
            raise CalibrationError("the model is not calibrated", got=f"{len(self._observers)} observers without data",
                                   fix="call intact.calibrate(qfloat, data) first")
        return self._bound

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the integer model gives; in float before calibration."""
        if self._bound is None:
            return self.float_model(*args, **kwargs)
        return self.program.run(args, kwargs, integer=False)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Codes of every edge by name, computed on float carriers."""
        return self.program.codes(args, kwargs, integer=False)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: _lookup(self, name) for name in self._float.params}


def _free(spec: Free | Joined) -> Free:
    return spec.own if isinstance(spec, Joined) else spec


def _joins(own: QParams, group: QParams, spec: Joined) -> bool:
    """Ranges of like size; and a folded activation must still be the saturation of the codes."""
    if spec.own.clip is not None and int(group.zero_point) != int(own.zero_point):
        return False
    return float(own.scale) * spec.max_ratio >= float(group.scale)


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    """Register a parameter (floating) or a buffer under a dotted name."""
    *parents, leaf = name.split(".")
    module = root
    for part in parents:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if value.is_floating_point():
        module.register_parameter(leaf, nn.Parameter(value))
    else:
        module.register_buffer(leaf, value)


def _lookup(root: nn.Module, name: str) -> Tensor:
    *parents, leaf = name.split(".")
    module = root
    for part in parents:
        module = getattr(module, part)
    value: Tensor = getattr(module, leaf)
    return value
