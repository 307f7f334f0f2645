"""The simulated model: the user's parameters under their names, deployed arithmetic in the forward; trainable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from intact import dist
from intact.errors import CalibrationError
from intact.graph import FloatModel, Node
from intact.graph.float_model import run_node
from intact.graph.ir import fill_template
from intact.graph.opaque import OpaqueCall
from intact.graph.signature import check_finite, check_inputs
from intact.observers import Observer, make_observer
from intact.planning import Plan
from intact.private import fingerprint, tensors_of
from intact.simulation.bind import Bound, bind
from intact.simulation.checkpoint import Checkpointed
from intact.simulation.guards import check_float32, check_names
from intact.simulation.program import Program
from intact.simulation.quantizer import EdgeQuantizer, edge_quantizer
from intact.simulation.schedule import Schedule
from intact.simulation.ste import anchor
from intact.simulation.switches import Switched
from intact.simulation.training import Layout, TrainingPass, folded_factor
from intact.simulation.tree import child, find_tensor, graft, tensor_at
from intact.simulation.uncompiled import Uncompiled
from intact.simulation.weight_quantizer import WeightQuantizer, weight_quantizer
from intact.types import Fixed, Free, Joined, QParams, Shared
from intact.types.dims import Sizes

__all__ = ["QFloatModel"]


class QFloatModel(Uncompiled, Switched):
    """A prepared model: observes in calibration, simulates the integer model bit for bit, and can be trained.

    In evaluation mode ``forward`` gives exactly what the integer model gives (float before calibration), and
    :meth:`codes` the codes of every edge. In training mode values and weights are put on the grids of their codes
    with straight-through gradients, and batch norms use the statistics of the batch. ``state_dict`` has the user's
    parameter names, and what belongs to quantization under ``_quantizers``.

    Args:
        model: a captured model; its parameters are copied.
        plan: of this model.
        schedule: when training observes, quantizes and freezes.
    """

    uncompiled = ("_evaluate", "_advance")  # the deployed arithmetic runs as it is; counting must not be traced

    def __init__(self, model: FloatModel, plan: Plan, schedule: Schedule | None = None) -> None:
        super().__init__()
        check_names([*model.sources, *(call.path for call in model.opaque.values())])
        self.plan, self.schedule = plan, schedule or Schedule()
        opaque = self._own_opaque(model)
        for name, value in model.sources.items():
            if find_tensor(self, name) is None:  # a module that could not be captured may hold it already
                own = value.clone()
                graft(self, name, own if name in model.buffers else nn.Parameter(own, name not in model.frozen))
        nothing = torch.empty(0)
        self._float = replace(model, params=dict.fromkeys(model.params, nothing), sources={}, opaque=opaque)
        self._names = tuple(model.sources)
        self._layout = Layout(self._float, plan)
        child(self, "_quantizers", _quantizers(model, plan))
        self._observers: dict[str, Observer] = {}
        #: edge that a corrected layer reads -> (sum of each channel in float64, number of values summed)
        self.channel_sums: dict[str, tuple[Tensor, int]] = {}
        #: a few calibration samples, by input name
        self.samples: dict[str, Tensor] = {}
        #: sees the value of every edge in training mode
        self.tap: Callable[[str, Tensor], None] | None = None
        self._bound: Bound | None = None
        self._program: Program | None = None
        self._seen_tensors: tuple[tuple[int, int], ...] = ()
        self.reset_observers()
        self.eval()

    def free_spec(self, name: str) -> Free:
        """The encoding of an edge that has parameters of its own."""
        spec = self.plan.edges[name]
        assert isinstance(spec, (Free, Joined))
        return _free(spec)

    def _own_opaque(self, model: FloatModel) -> dict[str, OpaqueCall]:
        """Copies of what could not be captured, each module once, under the user's paths."""
        copies: dict[int, nn.Module] = {}
        found = {}
        for key, call in model.opaque.items():
            if id(call.module) not in copies:
                copies[id(call.module)] = graft(self, call.path or key, copy.deepcopy(call.module))
            found[key] = replace(call, module=copies[id(call.module)])
        return found

    # -- parts ------------------------------------------------------------------------------

    def edge_quantizer(self, name: str) -> EdgeQuantizer:
        """The quantizer of an edge: its own, or that of the concatenation which it joins."""
        spec = self.plan.edges[name]
        if isinstance(spec, Joined) and self._joins.get(name):
            name = spec.group
        return self.edge_quantizers[name]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's arguments."""
        return self._float.signature.names

    def float_copy(self) -> FloatModel:
        """The float model with its present parameters, which later training does not change."""
        model = self.float_model
        opaque = {k: replace(c, module=copy.deepcopy(c.module).eval()) for k, c in model.opaque.items()}
        params = {k: v.detach().clone() for k, v in model.params.items()}
        return replace(model, params=params, sources={}, derived={}, opaque=opaque)

    @property
    def observers(self) -> Mapping[str, Observer]:
        """Calibration observers by edge name."""
        return self._observers

    @property
    def float_model(self) -> FloatModel:
        """The captured model with this module's current parameters, batch norms folded."""
        sources = self._sources()
        frozen = frozenset(k for k, v in sources.items() if isinstance(v, nn.Parameter) and not v.requires_grad)
        return replace(self._float, frozen=frozen).with_sources(sources)

    def _sources(self) -> dict[str, Tensor]:
        return {name: tensor_at(self, name) for name in self._names}

    # -- calibration ------------------------------------------------------------------------

    @property
    def calibrated(self) -> bool:
        """True once every edge has parameters, from calibration or from training."""
        self.follow()
        return all(q.known for q in self.edge_quantizers.values()) and bool(self._trained or self._calibrated)

    def reset_observers(self) -> None:
        """Forget everything that was observed; the model is uncalibrated after."""
        self._forget()
        self._calibrated, self._trained, self._joins = False, False, {}
        self._corrections.clear()
        self.channel_sums = {}
        for quantizer in self.edge_quantizers.values():
            quantizer.known = quantizer.seen = False
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
        self._forget()
        self._corrections.clear()
        for name, spec in self.plan.edges.items():
            if isinstance(spec, (Free, Joined)):
                observer = self._observers[name]
                if not observer.count:
                    raise CalibrationError("an edge saw no data", where=name, fix="calibrate with data that reaches it")
                self.edge_quantizers[name].initialise(self._starts.get(name) or observer.qparams(_free(spec)))
        self._decide_joins()
        self._start_weights()
        for name, (total, count) in self.channel_sums.items():
            self._corrections.set("mean", name, total / count)
        self._calibrated, self._trained = True, bool(self._starts)
        self._bind()

    def _decide_joins(self) -> None:
        """Which operands of concatenations take the scale of the result: once, when the ranges are first known."""
        found = {name: q.qparams() for name, q in self.edge_quantizers.items()}
        for name, spec in self.plan.edges.items():
            if isinstance(spec, Joined):
                self._joins[name] = _joins(found[name], found[spec.group], spec)

    def shift_biases(self, shifts: Mapping[str, Tensor]) -> None:
        """Take systematic errors (per node and channel) off the biases, and bind anew.

        Raises:
            CalibrationError: before calibration.
        """
        before = self.bound
        for name, shift in shifts.items():
            self._corrections.set("shift", name, self._corrections.get("shift", name) + shift)
        self._bind(before.weights)
        self._bound = replace(self.bound, notes=tuple(dict.fromkeys((*before.notes, *self.bound.notes))))

    # -- binding ----------------------------------------------------------------------------

    def _forget(self) -> None:
        self._bound = self._program = None

    def _edge_params(self) -> dict[str, QParams]:
        found: dict[str, QParams] = {}
        for name, spec in self.plan.edges.items():
            if isinstance(spec, (Free, Joined)):
                found[name] = self.edge_quantizer(name).qparams()
        for node in self.plan.graph:  # sources come before those that share with them
            edge = self.plan.edges.get(node.name)
            if isinstance(edge, Shared):
                found[node.name] = found[edge.source]
            elif isinstance(edge, Fixed):
                found[node.name] = edge.qparams
        return found

    def _folded(self) -> dict[str, Tensor]:
        """Parameters of the graph on the CPU, where codes are made the same for every device."""
        params = {k: v.detach().cpu() for k, v in self.float_model.params.items()}
        check_float32(params.items())
        return params

    def _gauge(self, name: str) -> Tensor | None:
        """Magnitude of the factors that a batch norm multiplies a weight with."""
        for node, weight in self._layout.weights.items():
            site = self._layout.sites.get(node)
            if weight == name and site is not None and site.weight is not None:
                sources = {k: v.detach().cpu() for k, v in self._sources().items()}
                norm = {r: sources[e] for r, e in site.roles.items() if isinstance(e, str)}
                return folded_factor(norm, site.eps).abs()
        return None

    def _bind(self, weights: Any = None) -> None:
        if not self._joins:
            self._decide_joins()
        params, trained = self._folded(), {}
        for name, quantizer in self.weight_quantizers.items():
            if self._trained or quantizer.binds:
                trained[name] = quantizer.qparams(params[name], self._gauge(name))
            params[name] = quantizer.transform(params[name]).detach()
        means = {} if self._trained else self._corrections.all("mean")
        shifts = {} if self._trained else self._corrections.all("shift")
        self._bound = bind(self.plan, params, self._edge_params(), means, shifts, weights, trained, self._trained)
        self._program = None
        self._seen_tensors = fingerprint(tensors_of(self))

    @property
    def bound(self) -> Bound:
        """Kernels, parameters of edges, and notes on what was adjusted; made anew when a parameter has changed.

        Raises:
            CalibrationError: before calibration.
        """
        if not self.calibrated:
            missing = [n for n, q in self.edge_quantizers.items() if not q.known]
            raise CalibrationError("the model is not calibrated", got=f"{len(missing)} edges without data",
                                   fix="call intact.calibrate(qfloat, data) first, or train it")
        if self._bound is None or self._seen_tensors != fingerprint(tensors_of(self)):
            self._bind()
        assert self._bound is not None
        return self._bound

    @property
    def program(self) -> Program:
        """The bound kernels.

        Raises:
            CalibrationError: before calibration.
        """
        bound = self.bound
        if self._program is None:
            model = self.float_model

            def step(node: Node, xs: list[Tensor], sizes: Sizes) -> Tensor:
                return run_node(model, node, xs, sizes)

            self._program = Program(model.graph, model.signature, bound.kernels, bound.qparams,
                                    self.plan.target.arithmetic, step, bound.tables,
                                    not self.plan.target.float_operations)
        return self._program

    # -- running ----------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """True if evaluation gives the integer model's numbers: calibrated, and nothing is switched off."""
        switched_on = all(q.enabled for q in (*self.edge_quantizers.values(), *self.weight_quantizers.values()))
        return self.calibrated and switched_on

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Training mode: differentiable. Evaluation: what the integer model gives; in float before calibration."""
        if self.training:
            return self._train(args, kwargs)
        return self._evaluate(args, kwargs)

    def _evaluate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        check_finite(self._float.signature.bind(args, kwargs), self.plan.edges)
        if any(q.watching for q in self.edge_quantizers.values()):
            self._trained = True
            return self._simulate(args, kwargs, observe=False, quantize=True, statistics=False)
        if self.exact:
            return self.program.run(args, kwargs, integer=False)
        if not self.calibrated:
            return self.float_model(*args, **kwargs)
        return self._simulate(args, kwargs, observe=False, quantize=True, statistics=False)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Codes of every edge by name, computed on float carriers."""
        check_finite(self._float.signature.bind(args, kwargs), self.plan.edges)
        return self.program.codes(args, kwargs, integer=False)

    def _advance(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, bool, bool]:
        """Count a step, and say what happens in it: observe, quantize, batch statistics."""
        check_float32(self.named_parameters())
        inputs = self._float.signature.bind(args, kwargs)
        check_finite({k: x for k, x in inputs.items() if x.device.type == "cpu"}, self.plan.edges)  # costs no waiting
        now, plan = self.step, self.schedule
        if now == 0:
            dist.check_same("plan", self.plan_text())
        if plan.freezes_ranges(now):
            self.freeze_ranges()
        self.step, self._trained = now + 1, True
        self._forget()  # batch norms write their statistics without raising the version of the tensors
        self.publish()
        statistics = not (plan.freezes_batch_norm(now) or self.batch_norm_frozen)
        self.batches += statistics
        return plan.observes(now), plan.quantizes(now), statistics

    def _train(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        observe, quantize, statistics = self._advance(args, kwargs)
        result = self._simulate(args, kwargs, observe=observe, quantize=quantize, statistics=statistics, drop=True,
                                tap=self.tap)
        if not torch.compiler.is_compiling():  # a break of the graph here would cost more than one step's delay
            self.publish()
        return result

    def look(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Callable[[str, Tensor], None]) -> None:
        """Run the simulation of training without changing anything; ``tap`` sees the value of every edge."""
        with torch.no_grad():
            self._simulate(args, kwargs, observe=False, quantize=True, statistics=False, tap=tap)

    def accumulate_statistics(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], weight: float) -> None:
        """Take a batch into the running statistics of batch norms with a given weight; nothing else moves."""
        self._trained = True
        self._forget()
        with torch.no_grad():
            self._simulate(args, kwargs, observe=False, quantize=True, statistics=True, momentum=weight)

    def _simulate(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, observe: bool, quantize: bool, statistics: bool,
        drop: bool = False, tap: Callable[[str, Tensor], None] | None = None, momentum: float | None = None,
    ) -> Any:
        inputs = self._float.signature.bind(args, kwargs)
        graph = self._float.graph
        run = TrainingPass(self._layout, self._sources(), self.edge_quantizer, self.weight_quantizers,
                           check_inputs(graph, inputs), observe, quantize, statistics, drop,
                           lambda own: self._momentum(own) if momentum is None else momentum, tap)
        values = run.run(inputs)
        if self.training and dist.world_size() > 1:
            first = next((k for k, v in values.items() if v.requires_grad), None)  # none without gradients
            if first is not None:
                values[first] = anchor(values[first], self._idle())
        return fill_template(graph.output, values)

    def _idle(self) -> list[Tensor]:
        """Learned parameters that the present step does not use: of frozen quantizers and of joined operands."""
        joined = [self.edge_quantizers[n] for n, joins in self._joins.items() if joins]
        frozen = [q for q in (*self.edge_quantizers.values(), *self.weight_quantizers.values()) if q.frozen]
        return list({id(p): p for q in (*joined, *frozen) for p in q.parameters()}.values())

    def __repr__(self) -> str:
        state = "calibrated" if self.calibrated else "not calibrated"
        return f"QFloatModel(target={self.plan.target.name!r}, {len(self.plan.graph.nodes)} nodes, {state})"


def _quantizers(model: FloatModel, plan: Plan) -> nn.Module:
    edges: dict[str, EdgeQuantizer] = {}
    for name, spec in plan.edges.items():
        if isinstance(spec, (Free, Joined)):
            edges[name] = edge_quantizer(_free(spec), name).float()  # whatever the default dtype is
    weights: dict[str, WeightQuantizer] = {
        name: weight_quantizer(spec, model.params[name].shape[0], name).float() for name, spec in plan.weights.items()
    }
    return Checkpointed.container(edges, weights, model, plan)


def _free(spec: Free | Joined) -> Free:
    return spec.own if isinstance(spec, Joined) else spec


def _joins(own: QParams, group: QParams, spec: Joined) -> bool:
    """Ranges of like size; and a folded activation must still be the saturation of the codes."""
    if spec.own.clip is not None and int(group.zero_point) != int(own.zero_point):
        return False
    return math.isfinite(float(own.scale)) and float(own.scale) * spec.max_ratio >= float(group.scale)
