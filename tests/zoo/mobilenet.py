"""Inverted residuals on depthwise convolutions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never below 90 % of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm and ReLU6."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        padding = (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where the shape allows it."""

    def __init__(self, in_channels: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.use_res_connect = stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(ConvBNReLU(in_channels, hidden, kernel=1))
        layers += [
            ConvBNReLU(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        if self.use_res_connect:
            return x + out
        return out


# Expansion, channels, blocks and stride of each stage: table 2 of the paper.
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", CVPR 2018).

    Args:
        num_classes: number of logits.
        width_mult: multiplier of all channel counts.
        last_channels: channels before the classifier.
    """

    def __init__(
        self, num_classes: int = 1000, width_mult: float = 1.0, last_channels: int = 1280
    ) -> None:
        super().__init__()
        in_channels = make_divisible(32 * width_mult)
        layers: list[nn.Module] = [ConvBNReLU(3, in_channels, stride=2)]
        for expand, base, blocks, stride in _V2_STAGES:
            channels = make_divisible(base * width_mult)
            for i in range(blocks):
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(in_channels, channels, step, expand))
                in_channels = channels
        layers.append(ConvBNReLU(in_channels, last_channels, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last_channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.mean([2, 3])
        x = self.classifier(x)
        return x


class SqueezeExcite(nn.Module):
    """Scale each channel by a hard-sigmoid gate (Hu et al., CVPR 2018; Howard et al., 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.relu(self.fc1(scale), inplace=True)
        scale = F.hardsigmoid(self.fc2(scale), inplace=True)
        return scale * x


class _V3Block(NamedTuple):
    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    hardswish: bool
    stride: int


# Table 1 of the paper.
_V3_LARGE = (
    _V3Block(3, 16, 16, False, False, 1),
    _V3Block(3, 64, 24, False, False, 2),
    _V3Block(3, 72, 24, False, False, 1),
    _V3Block(5, 72, 40, True, False, 2),
    _V3Block(5, 120, 40, True, False, 1),
    _V3Block(5, 120, 40, True, False, 1),
    _V3Block(3, 240, 80, False, True, 2),
    _V3Block(3, 200, 80, False, True, 1),
    _V3Block(3, 184, 80, False, True, 1),
    _V3Block(3, 184, 80, False, True, 1),
    _V3Block(3, 480, 112, True, True, 1),
    _V3Block(3, 672, 112, True, True, 1),
    _V3Block(5, 672, 160, True, True, 2),
    _V3Block(5, 960, 160, True, True, 1),
    _V3Block(5, 960, 160, True, True, 1),
)


class ConvBNAct(nn.Sequential):
    """Convolution, batch norm and, unless it is `None`, an activation."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: Callable[..., nn.Module] | None = nn.Hardswish,
    ) -> None:
        padding = kernel // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(channels, eps=0.001, momentum=0.01),
        ]
        if act is not None:
            layers.append(act(inplace=True))
        super().__init__(*layers)


class InvertedResidualV3(nn.Module):
    """Inverted residual with an optional squeeze-and-excite gate."""

    def __init__(self, in_channels: int, block: _V3Block) -> None:
        super().__init__()
        _, hidden, channels, squeeze, hardswish, stride = block
        act: Callable[..., nn.Module] = nn.Hardswish if hardswish else nn.ReLU
        self.use_res_connect = stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(ConvBNAct(in_channels, hidden, 1, act=act))
        layers.append(ConvBNAct(hidden, hidden, block.kernel, stride, groups=hidden, act=act))
        if squeeze:
            layers.append(SqueezeExcite(hidden))
        layers.append(ConvBNAct(hidden, channels, 1, act=None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        if self.use_res_connect:
            out += x
        return out


class MobileNetV3Large(nn.Module):
    """MobileNetV3-Large (Howard et al., "Searching for MobileNetV3", ICCV 2019).

    Args:
        num_classes: number of logits.
        width_mult: multiplier of all channel counts of the convolutions.
        hidden: features of the classifier's hidden layer.
    """

    def __init__(
        self, num_classes: int = 1000, width_mult: float = 1.0, hidden: int = 1280
    ) -> None:
        super().__init__()
        in_channels = make_divisible(16 * width_mult)
        layers: list[nn.Module] = [ConvBNAct(3, in_channels, 3, stride=2)]
        for base in _V3_LARGE:
            block = base._replace(
                expanded=make_divisible(base.expanded * width_mult),
                channels=make_divisible(base.channels * width_mult),
            )
            layers.append(InvertedResidualV3(in_channels, block))
            in_channels = block.channels
        layers.append(ConvBNAct(in_channels, 6 * in_channels, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * in_channels, hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=0.2, inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.classifier(x)
        return x
