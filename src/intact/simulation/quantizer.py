"""Quantizers of edges in training: whose parameters are those that the integer model will have."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from intact import dist
from intact.arithmetic import Rounding, round_to_int
from intact.errors import TrainingError
from intact.observers import affine_parameters, make_observer
from intact.simulation.guess import first_guess, of_all_processes
from intact.simulation.ste import fake_quantize, learned_fake_quantize, power_of_two, relative
from intact.types import Free, QParams

__all__ = ["EdgeQuantizer", "edge_quantizer"]

_MOMENTUM = 0.1
#: a learned scale that is e**10 times smaller or larger than at the start has collapsed or exploded
COLLAPSED = 10.0


class EdgeQuantizer(nn.Module):
    """Scale and zero point of one edge, found by calibration and moved by what training sees.

    Args:
        spec: encoding of the edge.
        where: edge name, for messages.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: Free, where: str) -> None:
        super().__init__()
        self.spec, self.where = spec, where
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("range", torch.zeros(6))  # calibrated, first seen, averaged: low and high of each
        self.range: Tensor
        #: calibrated or observed
        self.known = False
        #: a batch was seen in training
        self.seen = False
        self.observing = True
        #: follows the data in evaluation mode too, until the mode is set again
        self.watching = False
        self.enabled = True
        self.frozen = False

    def initialise(self, found: QParams) -> None:
        """Start from calibrated parameters."""
        self.zero_point.copy_(found.zero_point)
        q = self.spec.qtype
        ends = torch.tensor([q.qmin, q.qmax], device=self.range.device) - self.zero_point
        self.range.zero_()[:2] = ends * found.scale.to(self.range.device)
        self._start(found.scale)
        self.known, self.seen = True, False

    def qparams(self) -> QParams:
        """What the integer model is bound to.

        Raises:
            TrainingError: if training has driven the scale to nothing; names the edge.
        """
        scale = self.current_scale().detach().to("cpu", torch.float32).clone()
        if not (bool(torch.isfinite(scale)) and float(scale) > 0.0):
            raise TrainingError("a learned scale has collapsed", where=self.where, got=float(scale),
                                allowed="a positive number", fix="lower the learning rate of the scales")
        return QParams(scale, self.zero_point.cpu().clone(), self.spec.qtype)

    def limits(self, scale: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Lowest and highest code, counted from the zero point, once the folded activation has clamped."""
        low, high = self._limits(scale)
        if low.device.type == "cpu" and not torch.compiler.is_compiling():
            return float(low), float(high)  # clamping to numbers is twice as fast, and reading them costs nothing here
        return low, high

    def _limits(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        q, zero = self.spec.qtype, self.zero_point.to(torch.float32)
        low, high = q.qmin - zero, q.qmax - zero
        if self.spec.clip is not None:
            if math.isfinite(self.spec.clip[0]):
                low = torch.maximum(low, round_to_int(self.spec.clip[0] / scale.detach(), Rounding.HALF_EVEN))
            if math.isfinite(self.spec.clip[1]):
                high = torch.minimum(high, round_to_int(self.spec.clip[1] / scale.detach(), Rounding.HALF_EVEN))
        return low, high

    def forward(self, x: Tensor, observe: bool = False, quantize: bool = True) -> Tensor:
        """``x`` on the grid of the codes; clipped only where quantization is switched off."""
        if ((observe or self.watching) and self.observing and not self.frozen) or not self.known:
            self.observe(x.detach())
        if not (quantize and self.enabled):
            return x if self.spec.clip is None else x.clamp(*self.spec.clip)
        return self.fake(x)

    # -- what kinds differ in ------------------------------------------------------------------

    def _start(self, scale: Tensor) -> None:
        raise NotImplementedError

    def current_scale(self) -> Tensor:
        """The scale, 0-d."""
        raise NotImplementedError

    def fake(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``."""
        raise NotImplementedError

    def observe(self, x: Tensor) -> None:
        """See a batch of training."""
        if not self.known:
            self.initialise(first_guess(x, self.spec, self.where))

    def freeze(self) -> None:
        """Let nothing move the parameters any more."""
        self.frozen = True


def _extremes(x: Tensor) -> Tensor:
    """Smallest and largest value of the global batch, with 0 between them; float32 of shape (2,)."""
    low, high = torch.aminmax(x)
    return dist.extremes(torch.stack([low.clamp(max=0), high.clamp(min=0)]).to(torch.float32))


def _parameters(ends: Tensor, spec: Free) -> tuple[Tensor, Tensor]:
    low, high = ends.to(torch.float64)
    if spec.clip is not None:
        low, high = low.clamp(min=spec.clip[0]), high.clamp(max=spec.clip[1])
    return affine_parameters(low, high, spec.qtype, spec.symmetric, spec.power_of_two)


class Buffered(EdgeQuantizer):
    """A scale that no optimizer moves."""

    def __init__(self, spec: Free, where: str) -> None:
        super().__init__(spec, where)
        self.register_buffer("scale", torch.ones(()))

    def _start(self, scale: Tensor) -> None:
        self.scale.copy_(scale)

    def current_scale(self) -> Tensor:
        """The scale, 0-d."""
        return self.scale

    def fake(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``."""
        low, high = self.limits(self.scale)
        return fake_quantize(x, self.scale, low, high)


class Observed(Buffered):
    """A range that follows the data: ``minmax`` grows, the others average with momentum 0.1.

    Averages of the extremes scale the calibrated range, so that what calibration clipped stays clipped.
    """

    def observe(self, x: Tensor) -> None:
        """Follow the extremes of the batch; the first one only sets the measure."""
        if not self.known:
            super().observe(x)
        ends = _extremes(x)
        calibrated, first, mean = self.range[:2], self.range[2:4], self.range[4:]
        if self.spec.observer == "minmax":
            ends = torch.stack([torch.minimum(calibrated[0], ends[0]), torch.maximum(calibrated[1], ends[1])])
            if self.seen and torch.equal(ends, calibrated):
                return
            calibrated.copy_(ends)
        elif not self.seen:
            first.copy_(ends)
            mean.copy_(ends)
            self.seen = True
            return
        else:
            mean.add_((ends - mean) * _MOMENTUM)
            growth = torch.where(first != 0, mean / first, torch.ones_like(mean))
            ends = calibrated * growth
        self.seen = True
        scale, zero = _parameters(ends, self.spec)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero)


class Gathered(Observed):
    """One range for everything that was seen while fake quantization was off: searched once, when it is needed."""

    def __init__(self, spec: Free, where: str) -> None:
        super().__init__(spec, where)
        self.statistics = make_observer(spec.observer)
        self.stale = False
        self.register_state_dict_pre_hook(_settle)  # type: ignore[no-untyped-call]

    def initialise(self, found: QParams) -> None:
        """Start from calibrated parameters; what was seen before is forgotten."""
        super().initialise(found)
        self.statistics, self.stale = make_observer(self.spec.observer), False

    def observe(self, x: Tensor) -> None:
        """Add a batch to what was seen."""
        if self.enabled and self.known:
            return
        self.statistics.update(x.cpu(), where=self.where)
        self.range.zero_()  # a buffer has changed, so the integer model is bound anew
        self.known = self.stale = True

    def current_scale(self) -> Tensor:
        """The scale, 0-d."""
        if self.stale:
            self.stale, total = False, of_all_processes(self.statistics, self.spec.observer)
            super().initialise(total.qparams(self.spec, where=self.where))
        return self.scale

    def fake(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``."""
        self.current_scale()
        return super().fake(x)


def _settle(module: nn.Module, *_: object) -> None:
    if isinstance(module, Gathered):
        module.current_scale()


class FixedRange(Buffered):
    """DoReFa: activations lie in [0, 1] (in [-1, 1] where they have a sign), whatever the data."""

    def initialise(self, found: QParams) -> None:
        """The range does not depend on the data."""
        low = 0.0 if self.spec.clip is not None and self.spec.clip[0] >= 0 else -1.0
        scale, zero = _parameters(torch.tensor([low, 1.0]), self.spec)
        super().initialise(QParams(scale, zero, self.spec.qtype))


class Learned(EdgeQuantizer):
    """LSQ: the scale is a ``unit``, found by calibration, times ``exp(gain)``. ``kept`` is a frozen gain."""

    gain: nn.Parameter
    unit: Tensor
    kept: Tensor

    def __init__(self, spec: Free, where: str) -> None:
        super().__init__(spec, where)
        self.gain = nn.Parameter(torch.zeros(()))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("kept", torch.zeros(()))

    def _start(self, scale: Tensor) -> None:
        with torch.no_grad():
            self.gain.zero_()
            self.kept.zero_()
            self.unit.copy_(scale)

    def current_scale(self) -> Tensor:
        """The scale, 0-d."""
        return relative(self.kept if self.frozen else self.gain.clamp(-COLLAPSED, COLLAPSED), self.unit)

    def qparams(self) -> QParams:
        """What the integer model is bound to."""
        gain = float(self.gain.detach())
        if not self.frozen and not abs(gain) < COLLAPSED:
            raise TrainingError("a learned scale has collapsed", where=self.where,
                                got=f"{math.exp(max(-99.0, min(99.0, gain))):.3g} times where it started",
                                fix="lower the learning rate of the scales")
        return super().qparams()

    def freeze(self) -> None:
        """Keep the present scale, whatever an optimizer does to the parameter."""
        self.kept.copy_(self.gain.detach().clamp(-COLLAPSED, COLLAPSED))
        super().freeze()

    def factor(self, x: Tensor) -> float:
        """LSQ's ``1 / sqrt(N * Q)``, with N counted for one sample so that it is the same for every batch.

        What a clipped value does to a scale, relative to it, grows with ``Q ** 1.5``: above 8 bits it stays as it is
        there, so that one learning rate suits every width.
        """
        top = self.spec.qtype.qmax
        return min(1.0, math.pow(255 / top, 1.5)) / math.sqrt((x[0].numel() if x.ndim else 1) * top)

    def fake(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``."""
        scale = self.current_scale()
        low, high = self.limits(scale)
        if self.frozen:
            return fake_quantize(x, scale, low, high)
        return learned_fake_quantize(x, scale, low, high, self.factor(x))


class LearnedAffine(Learned):
    """LSQ+: the zero point is learned too, where no folded activation fixes it."""

    def __init__(self, spec: Free, where: str) -> None:
        super().__init__(spec, where)
        self.offset = nn.Parameter(torch.zeros(()))

    def _start(self, scale: Tensor) -> None:
        super()._start(scale)
        with torch.no_grad():
            self.offset.copy_(self.zero_point)

    def fake(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``."""
        if self.frozen or self.spec.symmetric or self.spec.clip is not None:
            return super().fake(x)
        self._round()
        scale = self.current_scale()
        low, high = self.limits(scale)
        return learned_fake_quantize(x, scale, low, high, self.factor(x), self.offset)

    def _round(self) -> None:
        q = self.spec.qtype
        with torch.no_grad():
            self.zero_point.copy_(round_to_int(self.offset, Rounding.HALF_EVEN).clamp(q.qmin, q.qmax))

    def qparams(self) -> QParams:
        """What the integer model is bound to."""
        if not (self.frozen or self.spec.symmetric or self.spec.clip is not None):
            self._round()
        return super().qparams()


class PowerOfTwo(Learned):
    """TQT: the scale is the next power of two above ``unit * exp(gain)``; what is learned is its exponent."""

    def current_scale(self) -> Tensor:
        """The scale, 0-d."""
        return power_of_two(torch.log2(super().current_scale()))


class Clipped(Learned):
    """PACT: the largest value is a parameter, learned from what it clips."""

    def _steps(self) -> Tensor:
        return self.spec.qtype.qmax - self.zero_point.to(torch.float32)

    def _start(self, scale: Tensor) -> None:
        super()._start(scale * self._steps().to(scale.device))

    def current_scale(self) -> Tensor:
        """The scale, 0-d: the largest value over the number of steps."""
        return super().current_scale() / self._steps()

    def fake(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``."""
        scale = self.current_scale()
        low, high = self.limits(scale)
        if self.frozen:
            return fake_quantize(x, scale, low, high)
        return learned_fake_quantize(x, scale, low, high, 1.0, ends_only=True)


_KINDS: dict[str, type[EdgeQuantizer]] = {
    "observed": Observed, "lsq": Learned, "lsq+": LearnedAffine, "tqt": PowerOfTwo, "pact": Clipped,
    "dorefa": FixedRange, "gathered": Gathered,
}


def edge_quantizer(spec: Free, where: str) -> EdgeQuantizer:
    """The quantizer that a spec names."""
    return _KINDS[spec.quantizer](spec, where)
