"""Inception modules: parallel branches that are concatenated."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicConv2d(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.bn(x)
        return F.relu(x, inplace=True)


class Widths(NamedTuple):
    """Channels of the branches of an inception module, in the order of the paper's table 1."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int

    def scaled(self, factor: float) -> "Widths":
        """Return the widths times `factor`, at least one channel each."""
        return Widths(*(max(1, round(width * factor)) for width in self))


class Inception(nn.Module):
    """Branches of 1x1, 3x3, 5x5 (as 3x3) convolutions and of pooling, side by side."""

    def __init__(self, in_channels: int, widths: Widths) -> None:
        super().__init__()
        self.out_channels = widths.one + widths.three + widths.five + widths.pool
        self.branch1 = BasicConv2d(in_channels, widths.one, 1)
        self.branch2 = nn.Sequential(
            BasicConv2d(in_channels, widths.three_reduce, 1),
            BasicConv2d(widths.three_reduce, widths.three, 3, padding=1),
        )
        # Common implementations use 3x3 where the paper has 5x5.
        self.branch3 = nn.Sequential(
            BasicConv2d(in_channels, widths.five_reduce, 1),
            BasicConv2d(widths.five_reduce, widths.five, 3, padding=1),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            BasicConv2d(in_channels, widths.pool, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return torch.cat(outputs, 1)


_STAGES = (
    (Widths(64, 96, 128, 16, 32, 32), Widths(128, 128, 192, 32, 96, 64)),
    (
        Widths(192, 96, 208, 16, 48, 64),
        Widths(160, 112, 224, 24, 64, 64),
        Widths(128, 128, 256, 24, 64, 64),
        Widths(112, 144, 288, 32, 64, 64),
        Widths(256, 160, 320, 32, 128, 128),
    ),
    (Widths(256, 160, 320, 32, 128, 128), Widths(384, 192, 384, 48, 128, 128)),
)


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015).

    It has no auxiliary classifiers, as they are absent at inference.

    Args:
        num_classes: number of logits.
        width_mult: multiplier of all channel counts.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0) -> None:
        super().__init__()
        stem, channels = round(64 * width_mult), round(192 * width_mult)
        self.conv1 = BasicConv2d(3, stem, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(stem, stem, 1)
        self.conv3 = BasicConv2d(stem, channels, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        stages = []
        for widths in _STAGES:
            blocks = []
            for width in widths:
                blocks.append(Inception(channels, width.scaled(width_mult)))
                channels = blocks[-1].out_channels
            stages.append(nn.Sequential(*blocks))
        self.inception3, self.inception4, self.inception5 = stages
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))
        x = self.conv3(self.conv2(x))
        x = self.maxpool2(x)
        x = self.maxpool3(self.inception3(x))
        x = self.maxpool4(self.inception4(x))
        x = self.inception5(x)
        x = torch.flatten(self.avgpool(x), 1)
        x = self.fc(self.dropout(x))
        return x
