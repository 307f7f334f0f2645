"""Quantizers of weights in training. They work on the weights that the integer model will hold: batch norm folded."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from intact.errors import TrainingError
from intact.observers import affine_parameters
from intact.planning import WeightSpec
from intact.simulation.quantizer import COLLAPSED
from intact.simulation.ste import fake_quantize, learned_fake_quantize, power_of_two, relative
from intact.types import PerChannel, QParams

__all__ = ["WeightQuantizer", "weight_quantizer"]


class WeightQuantizer(nn.Module):
    """Scales from the weights themselves, at every step (``observed``).

    Where 8-bit and wider codes reach the largest weight, narrower ones are clipped: by the share of the range that
    gave the least squared error when the model was calibrated.

    Args:
        spec: encoding of the weight.
        channels: number of output channels.
        where: parameter name, for messages.
    """

    def __init__(self, spec: WeightSpec, channels: int, where: str) -> None:
        super().__init__()
        self.spec, self.where = spec, where
        self.shape = (channels,) if isinstance(spec.granularity, PerChannel) else ()
        self.register_buffer("ratio", torch.ones(self.shape))
        self.ratio: Tensor
        self.known = False
        self.enabled = True
        self.frozen = False

    #: whether scaling the weight scales its codes' values alike
    equivariant = True
    #: whether the integer model must be bound to this quantizer's parameters even before training
    binds = False

    def initialise(self, weight: Tensor, gauge: Tensor | None, found: QParams | None = None) -> None:
        """Start from the parameters that calibration would choose.

        Args:
            weight: folded weight.
            gauge: magnitude of the factor of each channel that a batch norm was folded with.
            found: instead of those, parameters that are known already.
        """
        if found is None:
            found = self.spec.qparams(self.transform(weight.detach()), self.where)
        self._start(found, weight.detach(), gauge)
        self.known = True

    def _start(self, found: QParams, weight: Tensor, gauge: Tensor | None) -> None:
        whole, _ = self._extremes(weight)
        self.ratio.copy_(found.scale / whole)

    def transform(self, weight: Tensor) -> Tensor:
        """What is quantized, for a weight."""
        return weight

    def parameters_for(self, weight: Tensor, gauge: Tensor | None, raw: bool = False) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the folded weight, of shape (channels,) or ().

        Args:
            weight: folded, or (``raw``) still to be multiplied by the gauge.
            gauge: magnitude of the factor of each channel.
            raw: whether the weight is the user's.
        """
        scale, zero = self._extremes(weight.detach(), gauge=gauge if raw else None)
        if self.spec.observer == "minmax":
            return scale, zero
        if self.spec.symmetric:
            return scale * self.ratio, zero
        return self._extremes(weight.detach(), self.ratio)

    def _extremes(
        self, weight: Tensor, ratio: Tensor | None = None, gauge: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows = weight.flatten(1) if self.shape or gauge is not None else weight.reshape(1, -1)
        ends = torch.aminmax(rows, dim=1)
        low, high = ends.min.double().clamp(max=0.0), ends.max.double().clamp(min=0.0)
        if gauge is not None:
            low, high = low * gauge, high * gauge
            low, high = (low, high) if self.shape else (low.amin(), high.amax())
        if ratio is not None:
            low, high = low * ratio, high * ratio
        scale, zero = affine_parameters(low, high, self.spec.qtype, self.spec.symmetric, self.spec.power_of_two)
        return scale.reshape(self.shape), zero.reshape(self.shape)

    def qparams(self, weight: Tensor, gauge: Tensor | None) -> QParams:
        """What the integer model is bound to, on the CPU.

        Raises:
            TrainingError: if a scale has collapsed; names the weight.
        """
        device = self.ratio.device
        scale, zero = self.parameters_for(weight.to(device), None if gauge is None else gauge.to(device))
        scale = scale.detach().to("cpu", torch.float32).clone()
        bad = ~(torch.isfinite(scale) & (scale > 0))
        if bool(bad.any()):
            raise TrainingError("a learned scale has collapsed", where=self.where, got=f"{int(bad.sum())} channel(s)",
                                fix="lower the learning rate of the scales")
        return QParams(scale, zero.cpu(), self.spec.qtype, self.spec.granularity)

    def forward(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """The weight on the grid of its codes, on the user's scale.

        Args:
            weight: as the user has it.
            factor: what folding a batch norm multiplies each channel by (not 0); the grid is that of the product.
        """
        along = None if factor is None else factor.reshape(-1, *[1] * (weight.ndim - 1))
        gauge = None if factor is None else factor.abs()
        if not self.known:
            self.initialise(weight if along is None else weight * along, gauge)
        if not self.enabled:
            return weight
        if along is None or not (self.spec.symmetric and self.equivariant):
            folded = weight if along is None else weight * along
            scale, zero = self.parameters_for(folded, gauge)
            low, high = self._limits(zero, weight.ndim)
            on_grid = self.fake(self.transform(folded), self._along(scale, weight.ndim), low, high)
            return on_grid if along is None else on_grid / along
        # a symmetric grid does not care for signs: divide the scales, not the weights
        scale, _ = self.parameters_for(weight, gauge, raw=True)
        q = self.spec.qtype
        return self.fake(weight, self._along(scale, weight.ndim) / along.abs(), q.qmin, q.qmax)

    def fake(self, weight: Tensor, scale: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        """Fake-quantized weight."""
        return fake_quantize(weight, scale, low, high)

    def _limits(self, zero: Tensor, ndim: int) -> tuple[Tensor | float, Tensor | float]:
        q = self.spec.qtype
        if self.spec.symmetric:
            return q.qmin, q.qmax
        z = self._along(zero.to(torch.float32), ndim)
        return q.qmin - z, q.qmax - z

    def _along(self, value: Tensor, ndim: int) -> Tensor:
        return value.reshape(-1, *[1] * (ndim - 1)) if self.shape else value

    def collapsed(self) -> int:
        """How many scales have fallen to their floor."""
        return 0

    def freeze(self) -> None:
        """Let nothing but the weights themselves move the parameters any more."""
        self.frozen = True


class DoReFa(WeightQuantizer):
    """``tanh(w)``, brought back to the largest weight, then quantized (Zhou et al., "DoReFa-Net", 2016, eq. 9).

    The paper brings it to [-1, 1], which suits networks trained from nothing; keeping the largest weight lets a
    trained network start from where it is.
    """

    binds = True
    equivariant = False

    def _start(self, found: QParams, weight: Tensor, gauge: Tensor | None) -> None:
        self.ratio.fill_(1.0)

    def transform(self, weight: Tensor) -> Tensor:
        """The squashed weight."""
        squashed = torch.tanh(weight)
        largest = weight.detach().abs().max()
        top = squashed.detach().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        return squashed * (largest / top)

    def parameters_for(self, weight: Tensor, gauge: Tensor | None, raw: bool = False) -> tuple[Tensor, Tensor]:
        """From the extremes of the squashed weight."""
        return self._extremes(self.transform(weight.detach()))


class LearnedWeight(WeightQuantizer):
    """LSQ: the scale is a parameter, carried along when the factor of a folded batch norm changes."""

    binds = True

    def __init__(self, spec: WeightSpec, channels: int, where: str) -> None:
        super().__init__(spec, channels, where)
        self.gain = nn.Parameter(torch.zeros(self.shape))
        for name, value in (("gauge", 1.0), ("unit", 1.0), ("kept", 0.0)):
            self.register_buffer(name, torch.full(self.shape, value))
        self.register_buffer("zero_point", torch.zeros(self.shape, dtype=torch.int32))
        self.gauge: Tensor
        self.unit: Tensor
        self.kept: Tensor
        self.zero_point: Tensor

    def _start(self, found: QParams, weight: Tensor, gauge: Tensor | None) -> None:
        with torch.no_grad():
            self.zero_point.copy_(found.zero_point)
            self.gauge.copy_(self._gauge(gauge))
            self.unit.copy_(found.scale)
            self.gain.zero_()
            self.kept.zero_()

    def _gauge(self, gauge: Tensor | None) -> Tensor:
        if gauge is None:
            return torch.ones_like(self.gauge)
        value = gauge.detach().to(torch.float32)
        value = value if self.shape else value.mean()
        return torch.where(value > 0, value, torch.ones_like(value))

    def raw(self) -> Tensor:
        """The scale at the batch norm factors of the start."""
        return relative(self.kept if self.frozen else self.gain.clamp(-COLLAPSED, COLLAPSED), self.unit)

    def parameters_for(self, weight: Tensor, gauge: Tensor | None, raw: bool = False) -> tuple[Tensor, Tensor]:
        """Learned scale, times how much the folded factor has changed since."""
        return self.raw() * (self._gauge(gauge) / self.gauge), self.zero_point

    def qparams(self, weight: Tensor, gauge: Tensor | None) -> QParams:
        """What the integer model is bound to."""
        dead = self.collapsed()
        if dead:
            raise TrainingError("a learned scale has collapsed", where=self.where, got=f"{dead} channel(s)",
                                fix="lower the learning rate of the scales")
        return super().qparams(weight, gauge)

    def collapsed(self) -> int:
        """How many scales have fallen to their floor."""
        return 0 if self.frozen else int((~(self.gain.detach().abs() < COLLAPSED)).sum())

    def fake(self, weight: Tensor, scale: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        """Fake-quantized weight, with a gradient for the scale."""
        if self.frozen:
            return fake_quantize(weight, scale, low, high)
        # LSQ's 1 / sqrt(N * Q), made for layers of many weights; in a small one a single weight at the end of the
        # range would move the scale Q * Q times as much as itself
        top = self.spec.qtype.qmax
        return learned_fake_quantize(weight, scale, low, high, min(1.0 / math.sqrt(weight.numel() * top), top**-2.0))

    def freeze(self) -> None:
        """Keep the present scale, whatever an optimizer does to the parameter."""
        self.kept.copy_(self.gain.detach().clamp(-COLLAPSED, COLLAPSED))
        self.frozen = True


class PowerOfTwoWeight(LearnedWeight):
    """TQT: the scales are the next powers of two; what is learned are their exponents."""

    def parameters_for(self, weight: Tensor, gauge: Tensor | None, raw: bool = False) -> tuple[Tensor, Tensor]:
        """Powers of two."""
        scale, zero = super().parameters_for(weight, gauge)
        return power_of_two(torch.log2(scale)), zero


class Passive(LearnedWeight):
    """The scale it was given, whatever the weights do."""

    def __init__(self, spec: WeightSpec, channels: int, where: str) -> None:
        super().__init__(spec, channels, where)
        self.gain.requires_grad_(False)
        self.frozen = True


_KINDS: dict[str, type[WeightQuantizer]] = {
    "observed": WeightQuantizer, "dorefa": DoReFa, "lsq": LearnedWeight, "lsq+": LearnedWeight,
    "tqt": PowerOfTwoWeight, "passive": Passive,
}


def weight_quantizer(spec: WeightSpec, channels: int, where: str) -> WeightQuantizer:
    """The quantizer that a spec names."""
    return _KINDS[spec.quantizer](spec, channels, where)
