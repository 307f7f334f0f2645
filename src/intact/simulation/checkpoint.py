"""What a checkpoint of a QFloat model holds beside tensors, and how it is checked when it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intact.errors import ArtifactError
from intact.graph import FloatModel
from intact.planning import Plan
from intact.simulation.progress import Progress
from intact.simulation.quantizer import EdgeQuantizer
from intact.simulation.schedule import Schedule
from intact.simulation.tree import child
from intact.simulation.weight_quantizer import WeightQuantizer

__all__ = ["Checkpointed"]

_VERSION = 1
_OF_EDGES = ("known", "seen", "observing", "enabled", "frozen")
_OF_WEIGHTS = ("known", "enabled", "frozen")
_OF_MODEL = ("_calibrated", "_trained", "batch_norm_frozen")


class Corrections(nn.Module):
    """Means of channels and shifts of biases that the calibrated (untrained) model is bound with."""

    def __init__(self, model: FloatModel, plan: Plan) -> None:
        super().__init__()
        self.known: set[str] = set()
        for node in model.graph:
            if plan.decisions[node.name].integer and "weight" in node.params and "bias" in node.params:
                source = model.graph[node.inputs[0]].shape
                channels = source[-1] if node.op == "linear" else source[1]
                self._add(f"mean:{node.inputs[0]}", int(channels))
                self._add(f"shift:{node.name}", model.params[node.params["weight"]].shape[0])

    def _add(self, key: str, size: int) -> None:
        self._buffers[key.replace(".", ":")] = torch.zeros(size, dtype=torch.float64)

    def set(self, kind: str, name: str, value: Tensor) -> None:
        """Keep a correction."""
        key = f"{kind}:{name}".replace(".", ":")
        buffer = self._buffers.get(key)
        if buffer is not None and buffer.shape == value.shape:
            buffer.copy_(value)
            self.known.add(f"{kind}:{name}")

    def get(self, kind: str, name: str) -> Tensor:
        """A correction; zeros if none was kept."""
        buffer = self._buffers[f"{kind}:{name}".replace(".", ":")]
        assert buffer is not None
        return buffer.cpu()

    def all(self, kind: str) -> dict[str, Tensor]:
        """Every correction of a kind, by edge or node."""
        names = [k.removeprefix(f"{kind}:") for k in sorted(self.known) if k.startswith(f"{kind}:")]
        return {name: self.get(kind, name) for name in names}

    def clear(self) -> None:
        """Forget all."""
        for buffer in self._buffers.values():
            if buffer is not None:
                buffer.zero_()
        self.known.clear()


class Checkpointed(nn.Module):
    """State of a QFloat model: tensors as torch keeps them, the rest as one JSON text in a byte tensor."""

    plan: Plan
    schedule: Schedule

    def __init__(self) -> None:
        super().__init__()
        #: forward passes in training mode so far; of those, how many moved the statistics of batch norms
        self.step = self.batches = 0
        self.batch_norm_frozen = False
        self._calibrated = False
        self._trained = False
        self._joins: dict[str, bool] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes of ours are never taken for the user's modules, which may have the same names."""
        if isinstance(value, (Tensor, nn.Module)):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    @staticmethod
    def container(
        edges: Mapping[str, EdgeQuantizer], weights: Mapping[str, WeightQuantizer], model: FloatModel, plan: Plan
    ) -> nn.Module:
        """The module that holds all quantizers."""
        root = nn.Module()
        for kind, table in (("edges", edges), ("weights", weights)):
            group = child(root, kind, nn.Module())
            for name, quantizer in table.items():
                child(group, name.replace(".", ":"), quantizer)
        child(root, "corrections", Corrections(model, plan))
        size = len(_OF_MODEL) + (len(_OF_EDGES) + 2) * len(edges) + len(_OF_WEIGHTS) * len(weights)
        child(root, "progress", Progress(size))
        root.edge_table, root.weight_table = dict(edges), dict(weights)  # type: ignore[assignment]
        return root

    @property
    def edge_quantizers(self) -> dict[str, EdgeQuantizer]:
        """Quantizers by edge name."""
        return self._modules["_quantizers"].edge_table  # type: ignore[union-attr, return-value]

    @property
    def weight_quantizers(self) -> dict[str, WeightQuantizer]:
        """Quantizers by parameter name."""
        return self._modules["_quantizers"].weight_table  # type: ignore[union-attr, return-value]

    @property
    def _corrections(self) -> Corrections:
        return self._modules["_quantizers"]._modules["corrections"]  # type: ignore[union-attr, return-value]

    def _forget(self) -> None:
        raise NotImplementedError

    @property
    def _progress(self) -> Progress:
        return self._modules["_quantizers"]._modules["progress"]  # type: ignore[union-attr, return-value]

    def publish(self) -> None:
        """Let copies that follow the buffers know what is known here."""
        flags = [bool(getattr(self, f)) for f in _OF_MODEL]
        for name, edge in self.edge_quantizers.items():
            flags += [getattr(edge, f) for f in _OF_EDGES]
            flags += [name in self._joins, self._joins.get(name, False)]
        self._progress.write(flags + [getattr(w, f) for w in self.weight_quantizers.values() for f in _OF_WEIGHTS])

    def follow(self) -> None:
        """Take over what the model that this one is an average of has published."""
        found = self._progress.read()
        if found is None:
            return
        flags = iter(found)
        for f in _OF_MODEL:
            setattr(self, f, next(flags))
        for name, edge in self.edge_quantizers.items():
            for f in _OF_EDGES:
                setattr(edge, f, next(flags))
            known, joins = next(flags), next(flags)
            if known:
                self._joins[name] = joins
        for weights in self.weight_quantizers.values():
            for f in _OF_WEIGHTS:
                setattr(weights, f, next(flags))
        self._forget()

    def plan_specs(self) -> dict[str, str]:
        """Every edge and weight with its encoding, as text."""
        edges = {f"edge {n}": str(s) for n, s in self.plan.edges.items()}
        return {**edges, **{f"weight {n}": str(s) for n, s in self.plan.weights.items()}}

    def plan_text(self) -> str:
        """Target and encodings as one text."""
        return json.dumps([self.plan.target.name, self.plan.target.version, self.plan_specs()], sort_keys=True)

    # -- what torch calls -------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Counters, flags and schedule, as bytes (so that safetensors can hold them)."""
        self.follow()
        data = {
            "version": _VERSION, "target": [self.plan.target.name, self.plan.target.version],
            "specs": self.plan_specs(), "schedule": self.schedule.to_json(), "step": self.step,
            "batches": self.batches, "calibrated": self._calibrated, "trained": self._trained, "joins": self._joins,
            "batch_norm_frozen": self.batch_norm_frozen, "corrections": sorted(self._corrections.known),
            "edges": {n: [f for f in _OF_EDGES if getattr(q, f)] for n, q in self.edge_quantizers.items()},
            "weights": {n: [f for f in _OF_WEIGHTS if getattr(q, f)] for n, q in self.weight_quantizers.items()},
        }
        return torch.frombuffer(bytearray(json.dumps(data, sort_keys=True).encode()), dtype=torch.uint8).clone()

    def set_extra_state(self, state: Any) -> None:
        """Restore what :meth:`get_extra_state` gave.

        Raises:
            ArtifactError: if it is of another plan; names the edges that differ.
        """
        data = _decode(state)
        self._compare(data)
        self.schedule = Schedule.from_json(data["schedule"])
        self.step, self._joins = int(data["step"]), dict(data["joins"])
        self.batches = int(data.get("batches", self.step))
        self._calibrated, self._trained = bool(data["calibrated"]), bool(data["trained"])
        self.batch_norm_frozen = bool(data["batch_norm_frozen"])
        self._corrections.known = set(data["corrections"])
        for name, edge in self.edge_quantizers.items():
            for flag in _OF_EDGES:
                setattr(edge, flag, flag in data["edges"][name])
        for name, weights in self.weight_quantizers.items():
            for flag in _OF_WEIGHTS:
                setattr(weights, flag, flag in data["weights"][name])
        self._forget()

    def adopt(self, other: Checkpointed) -> None:
        """Take over counters and corrections, and what is known of edges and weights that are encoded alike."""
        mine, theirs = self.plan_specs(), other.plan_specs()
        for kind, new, old, flags in (("edge", self.edge_quantizers, other.edge_quantizers, _OF_EDGES),
                                      ("weight", self.weight_quantizers, other.weight_quantizers, _OF_WEIGHTS)):
            for name in new.keys() & old.keys():
                if mine[f"{kind} {name}"] == theirs[f"{kind} {name}"]:
                    new[name].load_state_dict(old[name].state_dict())
                    for flag in flags:
                        setattr(new[name], flag, getattr(old[name], flag))
        for key in sorted(other._corrections.known):
            kind, _, name = key.partition(":")
            self._corrections.set(kind, name, other._corrections.get(kind, name))
        self.step, self.batches, self.batch_norm_frozen = other.step, other.batches, other.batch_norm_frozen
        self._calibrated, self._trained = other._calibrated, other._trained
        self._forget()

    def _compare(self, data: Mapping[str, Any]) -> None:
        mine, theirs = self.plan_specs(), data["specs"]
        target = [self.plan.target.name, self.plan.target.version]
        if data["target"] != target:
            raise ArtifactError("the checkpoint is of another plan", where="target", got=data["target"], allowed=target,
                                fix="prepare the model for that target")
        wrong = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if wrong:
            first = wrong[0]
            more = f" (and {len(wrong) - 1} more: {', '.join(wrong[1:6])})" if len(wrong) > 1 else ""
            raise ArtifactError("the checkpoint is of another plan", where=f"{first}{more}",
                                got=theirs.get(first, "not there"), allowed=mine.get(first, "not there"),
                                fix="prepare the model with the recipe that the checkpoint was made with")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch; ``strict=False`` also takes the float model's own state.

        Raises:
            ArtifactError: if the checkpoint is of another plan, or (when strict) of no QFloat model.
        """
        if strict and "_extra_state" not in state_dict:
            raise ArtifactError("this is not a checkpoint of a QFloat model", got=f"{len(state_dict)} entries, no state"
                                " of quantizers", fix="pass strict=False to load parameters of the float model")
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._forget()
        return result


def _decode(state: Any) -> dict[str, Any]:
    try:
        data = json.loads(bytes(state.to(torch.uint8).cpu().tolist()))
        if not isinstance(data, dict) or data["version"] != _VERSION:
            raise KeyError("version")
    except (AttributeError, KeyError, ValueError) as error:
        raise ArtifactError("the state of the quantizers cannot be read", got=type(state).__name__,
                            allowed=f"version {_VERSION}") from error
    return data
