"""What :func:`compare_models` found, as data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from intact.analysis.metrics import Sqnr
from intact.analysis.text import render

__all__ = ["FORMAT_VERSION", "Error", "Finding", "Latency", "Metric", "Output", "Problem", "Report", "Site", "Sizes"]

#: of :meth:`Report.to_json`; grows when a key changes its meaning or goes away
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Error:
    """How far a tensor is from what it should be.

    Args:
        sqnr_db: decibels; ``inf`` if exact, ``-inf`` if there is noise but no signal.
        noise_rms: root mean square of the difference, in the tensor's own unit.
        signal_rms: root mean square of what it should be.

    >>> str(Error(30.0, 0.1, 3.2)), str(Error(float("inf"), 0.0, 1.0)), str(Error(float("-inf"), 0.1, 0.0))
    ('30.0', 'exact', 'no signal')
    """

    sqnr_db: float
    noise_rms: float
    signal_rms: float

    @staticmethod
    def of(meter: Sqnr) -> Error:
        """What a meter has added up."""
        return Error(meter.db, meter.noise_rms, meter.signal_rms)

    @property
    def severity(self) -> tuple[int, float]:
        """Sorts the worst first: measured ratios, then noise where there is no signal, then what is exact."""
        if self.noise_rms == 0.0:
            return 2, 0.0
        return (1, -self.noise_rms) if self.signal_rms == 0.0 else (0, self.sqnr_db)

    def __str__(self) -> str:
        if self.noise_rms == 0.0:
            return "exact"
        return f"{self.sqnr_db:.1f}" if self.signal_rms else "no signal"

    def as_dict(self) -> dict[str, Any]:
        """JSON values; an infinite ratio is null, told apart by the two rms values."""
        return {"sqnr_db": _number(self.sqnr_db), "noise_rms": _number(self.noise_rms),
                "signal_rms": _number(self.signal_rms)}


@dataclass(frozen=True)
class Site:
    """One quantized edge and the node that makes it.

    An operand ``y`` that only ``relu(y + d)`` reads is judged by ``max(y, -max(d, 0))``, as it is calibrated: what
    the ReLU removes is no error.

    Args:
        edge: name of the edge, as in ``q.codes``.
        path: module path in the user's model; "" for what stands in its own ``forward``.
        op: canonical operation.
        integer: made by an integer kernel; False for an input or the result of a float operation.
        total: accumulated error: the integer model's value against the float model's, in the whole net.
        own: error of the node alone: its kernel on freshly quantized float inputs, against the float output.
        added: what the node adds to the error of its inputs: its kernel against the float operation, both on
            freshly quantized inputs. A wrong weight, bias, range or zero point shows here and nowhere else.
        weight: error if only weight and bias are quantized; None without a weight.
        activation: error if only inputs and output are quantized; None without a weight.
        clipped: share of float values that saturate the code.
        dead: share of codes that never occur below and above those that do; None for an int32 accumulator.
        low: smallest float value.
        high: largest float value.
        code_low: smallest value that a code can stand for; None for an int32 accumulator.
        code_high: largest value that a code can stand for; None for an int32 accumulator.
    """

    edge: str
    path: str
    op: str
    integer: bool
    total: Error
    own: Error
    added: Error
    weight: Error | None
    activation: Error | None
    clipped: float
    dead: float | None
    low: float
    high: float
    code_low: float | None
    code_high: float | None

    @property
    def where(self) -> str:
        """Module path, or the edge where there is none."""
        return self.path or self.edge

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        errors = {name: error.as_dict() if error is not None else None for name, error in (
            ("total", self.total), ("own", self.own), ("added", self.added), ("weight", self.weight),
            ("activation", self.activation))}
        return {"edge": self.edge, "path": self.path, "op": self.op, "integer": self.integer, **errors,
                "clipped": self.clipped, "dead": self.dead, "range": [self.low, self.high],
                "code_range": None if self.code_low is None else [self.code_low, self.code_high]}


@dataclass(frozen=True)
class Output:
    """One output of the model.

    Args:
        name: its place in the user's structure, such as ``[0]['scores']``; "" for a single tensor.
        edge: name of the edge.
        error: integer against float.
        cosine: of the angle between the two.
        agreement: share of samples with the same largest entry; None unless of shape (N, C).
    """

    name: str
    edge: str
    error: Error
    cosine: float
    agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "edge": self.edge, "error": self.error.as_dict(), "cosine": self.cosine,
                "agreement": self.agreement}


@dataclass(frozen=True)
class Metric:
    """The user's measure of quality, averaged over samples.

    >>> Metric("top-1 accuracy", 0.75, 0.5).difference
    -0.25
    """

    name: str
    float_value: float
    integer_value: float

    @property
    def difference(self) -> float:
        """Integer minus float."""
        return self.integer_value - self.float_value

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "float": self.float_value, "integer": self.integer_value,
                "difference": self.difference}


@dataclass(frozen=True)
class Latency:
    """Time of one call on this machine, measured alike for both.

    >>> Latency(4.0, 2.0, "onnxruntime").ratio
    0.5
    """

    float_ms: float
    integer_ms: float
    engine: str

    @property
    def ratio(self) -> float:
        """Integer over float: below 1 is faster."""
        return self.integer_ms / self.float_ms

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"float_ms": self.float_ms, "integer_ms": self.integer_ms, "ratio": self.ratio, "engine": self.engine}


@dataclass(frozen=True)
class Sizes:
    """Bytes of the two models' files.

    >>> Sizes(400, 100).ratio
    0.25
    """

    float_bytes: int
    integer_bytes: int

    @property
    def ratio(self) -> float:
        """Integer over float: below 1 is smaller."""
        return self.integer_bytes / self.float_bytes

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"float_bytes": self.float_bytes, "integer_bytes": self.integer_bytes, "ratio": self.ratio}


class Problem(Enum):
    """What a finding is about."""

    SHARED_SCALE = "shared_scale"
    LOW_SQNR = "low_sqnr"
    CLIPPED = "clipped"
    CONSTANT = "constant"
    SLOWER = "slower"
    LARGER = "larger"


@dataclass(frozen=True)
class Finding:
    """One thing to look at: what, where (module path or edge), and what to do."""

    problem: Problem
    where: str
    edge: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"problem": self.problem.value, "where": self.where, "edge": self.edge, "message": self.message}


@dataclass(frozen=True)
class Report:
    """Float model and integer model side by side. ``print`` it, or take it as data.

    Args:
        target: name of the target.
        samples: how many were compared.
        own_samples: how many of them every layer was looked at alone with (own, added, weight, activation).
        outputs: every output of the model.
        sites: every quantized edge, in order of execution.
        findings: what to look at.
        metric: the measure of quality, if there was one.
        latency: if it was measured.
        sizes: if they were measured.
        integer_macs: share of multiply-accumulates that run in integers, if known.
    """

    target: str
    samples: int
    own_samples: int
    outputs: tuple[Output, ...]
    sites: tuple[Site, ...]
    findings: tuple[Finding, ...]
    metric: Metric | None = None
    latency: Latency | None = None
    sizes: Sizes | None = None
    integer_macs: float | None = None

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same largest output; None unless exactly one output has shape (N, C)."""
        found = [o.agreement for o in self.outputs if o.agreement is not None]
        return found[0] if len(found) == 1 else None

    @property
    def worst(self) -> tuple[Site, ...]:
        """Sites by the error that they add themselves, the worst first."""
        return tuple(sorted(self.sites, key=lambda s: s.added.severity))

    def site(self, name: str) -> Site:
        """The site of an edge, or the first of a module path.

        Raises:
            KeyError: if there is none.
        """
        found = [s for s in self.sites if s.edge == name] or [s for s in self.sites if s.path == name]
        if not found:
            raise KeyError(name)
        return found[0]

    def keep_float(self, count: int = 5) -> tuple[str, ...]:
        """Module paths to leave in float first: those that add the most error (the edge, where there is no path)."""
        paths = dict.fromkeys(s.where for s in self.worst if s.integer and s.added.noise_rms)
        return tuple(paths)[:count]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, the same keys in the same order always."""
        return {
            "format": "intact.report", "format_version": FORMAT_VERSION, "target": self.target,
            "samples": self.samples, "own_samples": self.own_samples,
            "metric": self.metric.as_dict() if self.metric else None,
            "agreement": self.agreement, "outputs": [o.as_dict() for o in self.outputs],
            "latency": self.latency.as_dict() if self.latency else None,
            "sizes": self.sizes.as_dict() if self.sizes else None, "integer_macs": self.integer_macs,
            "keep_float": list(self.keep_float(len(self.sites))), "worst": [s.edge for s in self.worst],
            "findings": [f.as_dict() for f in self.findings], "sites": [s.as_dict() for s in self.sites],
        }

    def to_json(self) -> str:
        """Versioned JSON (:data:`FORMAT_VERSION`), without NaN and infinities; the same report, the same text."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False, ensure_ascii=False)

    def __str__(self) -> str:
        return render(self)


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
