"""A convolution and a linear layer that train with the codes of their weight and of what they read."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intact.graph import Hint, Hinted
from intact.nn.settings import Options, Settings
from intact.nn.trackers import AveragedRange, GlobalRange
from intact.observers import affine_parameters
from intact.simulation.batch_norm import normalise
from intact.simulation.ste import fake_quantize
from intact.simulation.training import folded_factor

__all__ = ["QuantConv2d", "QuantLinear"]


class _Quantized(Hinted):
    """What the layers share; a layer that has seen no training batch computes in float."""

    settings: Settings
    weight: Tensor
    input_range: AveragedRange
    output_range: AveragedRange
    weight_range: GlobalRange
    batch_norm: nn.BatchNorm1d | nn.BatchNorm2d | None

    def _equip(self, settings: Settings, channels: int, norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]) -> None:
        self.settings = settings
        self.input_range, self.output_range = AveragedRange(), AveragedRange()
        self.weight_range = GlobalRange(channels)
        self.batch_norm = norm(channels, settings.bn_eps, settings.bn_momentum) if settings.batch_norm else None

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Values on the grids of their codes; float while captured, and before training."""
        if self.in_float or not (self.training or self.weight_range.known):
            y = self._apply_weight(x, self.weight)
            return y if self.batch_norm is None else self.batch_norm(y)
        if self.training:
            self.weight_range.update(self.weight, type(self).__name__)
            self.input_range.update(x, type(self).__name__)
        norm = self._norm()
        y = self._apply_weight(self._rounded_input(x), self._rounded_weight(norm))
        if self.batch_norm is not None:
            y, _ = normalise(y, norm, self.settings.bn_eps, self._momentum(self.batch_norm), self.training)
        if self.training:
            self.output_range.update(y, type(self).__name__)
        return y

    def _rounded_input(self, x: Tensor) -> Tensor:
        qtype = self.settings.activation_type
        if qtype is None:
            return x
        low, high = self.input_range.low.double().clamp(max=0), self.input_range.high.double().clamp(min=0)
        scale, zero = affine_parameters(low, high, qtype, self.settings.a_symmetric)
        offset = zero.to(torch.float32)
        return fake_quantize(x, scale, qtype.qmin - offset, qtype.qmax - offset)

    def _rounded_weight(self, norm: dict[str, Tensor]) -> Tensor:
        qtype = self.settings.weight_type
        if qtype is None:
            return self.weight
        shape = (-1, *[1] * (self.weight.ndim - 1))
        factor = self._factor(norm).reshape(shape)
        scale, zero = (v.reshape(shape) if v.ndim else v for v in self._weight_parameters(norm))
        offset = zero.to(torch.float32)
        return fake_quantize(self.weight * factor, scale, qtype.qmin - offset, qtype.qmax - offset) / factor

    def _weight_parameters(self, norm: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the folded weight: the tracked range of the layer's own, times the factor."""
        qtype, factor = self.settings.weight_type, self._factor(norm)
        assert qtype is not None
        ends = torch.stack([self.weight_range.low * factor, self.weight_range.high * factor]).double()
        low, high = ends.amin(0).clamp(max=0), ends.amax(0).clamp(min=0)
        if not self.settings.by_channel:
            low, high = low.min(), high.max()
        return affine_parameters(low, high, qtype, self.settings.w_symmetric)

    def _norm(self) -> dict[str, Tensor]:
        bn = self.batch_norm
        if bn is None:
            return {}
        found = {"mean": bn.running_mean, "var": bn.running_var, "weight": bn.weight, "bias": bn.bias}
        return {k: v for k, v in found.items() if v is not None}

    def _factor(self, norm: dict[str, Tensor]) -> Tensor:
        return folded_factor(norm, self.settings.bn_eps) if norm else torch.ones_like(self.weight_range.low)

    def _momentum(self, bn: nn.BatchNorm1d | nn.BatchNorm2d) -> float:
        """Momentum of this batch: the first one is copied, not averaged with the ones of an empty buffer."""
        if not self.training or bn.num_batches_tracked is None:
            return bn.momentum or 0.0
        bn.num_batches_tracked.add_(1)
        seen = int(bn.num_batches_tracked)
        return 1.0 / seen if seen == 1 or bn.momentum is None else bn.momentum

    def hint(self) -> Hint:
        """Settings and trained ranges, for capture."""
        s, scale, zero = self.settings, None, None
        if s.weight_type is not None and self.weight_range.known:
            scale, zero = (v.detach().cpu().clone() for v in self._weight_parameters(self._norm()))
        return Hint(
            weight_bits=s.w_bits, activation_bits=s.activation_bits, per_channel=s.by_channel,
            weight_symmetric=s.w_symmetric, activation_symmetric=s.a_symmetric, input_range=self.input_range.ends,
            output_range=self.output_range.ends, weight_scale=scale, weight_zero=zero,
            batch_norm="batch_norm" if s.batch_norm else "",
        )


class QuantConv2d(nn.Conv2d, _Quantized):
    """A 2-d convolution that trains with codes, as ``nn.Conv2d`` otherwise.

    Weights have the widest range they ever had, what is read an averaged one (momentum 0.1). Ranges move in training
    mode only. Before its first training batch the layer computes in float.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as torch.
        **options: those of :class:`Settings`: ``a_bits``, ``w_bits``, ``a_symmetric``, ``w_symmetric``,
            ``per_channel``, ``first_layer``, ``batch_norm``, ``bn_momentum``, ``bn_eps``.

    >>> layer = QuantConv2d(1, 2, 3, a_bits=4, w_bits=4, batch_norm=True)
    >>> layer(torch.randn(4, 1, 8, 8)).shape
    torch.Size([4, 2, 6, 6])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1, padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        **options: Unpack[Options],
    ) -> None:
        settings = Settings(**options)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode)
        self._equip(settings, out_channels, nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """Values on the grids of their codes."""
        return _Quantized.forward(self, x)

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._around(), mode=self.padding_mode), (0, 0)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _around(self) -> list[int]:
        """Padding of left, right, top and bottom."""
        if self.padding == "valid":
            return [0, 0, 0, 0]
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            pairs = [(t // 2, t - t // 2) for t in total]
        else:
            pairs = [(int(p), int(p)) for p in self.padding]
        return [*pairs[1], *pairs[0]]


class QuantLinear(nn.Linear, _Quantized):
    """A linear layer that trains with codes, as ``nn.Linear`` otherwise; see :class:`QuantConv2d`.

    Args:
        in_features, out_features, bias: as torch.
        **options: those of :class:`Settings`.

    >>> layer = QuantLinear(8, 2, a_bits=8, w_bits=2, per_channel="L")
    >>> layer(torch.randn(4, 8)).shape, layer.hint().weight_scale.shape
    (torch.Size([4, 2]), torch.Size([]))
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Unpack[Options]) -> None:
        settings = Settings(**options)
        super().__init__(in_features, out_features, bias)
        self._equip(settings, out_features, nn.BatchNorm1d)

    def forward(self, x: Tensor) -> Tensor:
        """Values on the grids of their codes."""
        return _Quantized.forward(self, x)

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)
